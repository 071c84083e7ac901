"""deepseek-serve quantize: what it writes is served, all at once or not at all, and what it cannot do it names."""

import errno
import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from engine.quantization import gptq
from engine.quantization import quantize as quantization
from server import LLM, SamplingParams
from server.commands import quantize
from tests.support.gguf_writer import write_gguf


def run(model, out, *arguments):
    return quantize.main(["--model", str(model), "--out", str(out), "--tokens", "300", *arguments])


@pytest.mark.parametrize("scheme", ["w8a8-static", "w8a8-dynamic", "w8"])
def test_what_is_written_is_served(tmp_path, tiny_llama, capsys, scheme):
    assert run(tiny_llama, tmp_path / "int8", "--scheme", scheme) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["out"], figures["scheme"]) == (f"{tmp_path}/int8", scheme)
    assert figures["bytes"] > 0
    assert sum(figures["shares"].values()) == pytest.approx(1, abs=0.01)
    assert (
        load_file(tmp_path / "int8" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].dtype is torch.int8
    )
    llm = LLM(str(tmp_path / "int8"), dtype="float32", threads=1)
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    assert len(llm.generate(["abc"], params)[0].token_ids) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8"]


def test_a_gguf_file_becomes_a_hugging_face_folder(tmp_path, tiny_llama):
    vocabulary = json.loads((tiny_llama / "tokenizer.json").read_text())
    tokens = sorted(vocabulary["model"]["vocab"], key=vocabulary["model"]["vocab"].get)
    tokens[tokens.index("\u0100")] = "ab"  # in place of the byte 0: a GGUF file has at least one merge
    tokens += [token["content"] for token in vocabulary["added_tokens"]]
    write_gguf(
        tiny_llama,
        tmp_path / "model.gguf",
        tokenizer__ggml__model="gpt2",
        tokenizer__ggml__pre="smollm",
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__token_type=[1] * 256 + [3] * (len(tokens) - 256),
        tokenizer__ggml__merges=["a b"],
        tokenizer__ggml__bos_token_id=256,
        tokenizer__ggml__eos_token_id=257,
    )
    assert run(tmp_path / "model.gguf", tmp_path / "int8") == 0
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    read = [LLM(str(tmp_path / name), dtype="float32", threads=1) for name in ("model.gguf", "int8")]
    assert len(read[1].generate(["abc"], params)[0].token_ids) == 8
    assert len({tuple(llm.tokenizer.encode("abc def")) for llm in read}) == 1


def test_others_may_read_what_is_written_as_they_may_any_new_file(tmp_path, tiny_llama):
    assert run(tiny_llama, tmp_path / "int8") == 0
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "new", *(tmp_path / "int8").glob("*.safetensors"))}
    assert len(modes) == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path, tiny_llama, capsys):
    (tmp_path / "file").touch()
    assert run(tiny_llama, tmp_path / "file/int8") == 2
    assert f"--out {tmp_path}/file/int8 cannot be made: File exists" in capsys.readouterr().err


def test_a_folder_that_exists_is_not_touched(tmp_path, tiny_llama, capsys):
    (tmp_path / "there").mkdir()
    assert run(tiny_llama, tmp_path / "there") == 2
    assert "exists already" in capsys.readouterr().err
    assert list((tmp_path / "there").iterdir()) == []


def test_a_failure_half_way_leaves_nothing(tmp_path, tiny_llama, capsys, monkeypatch):
    def fails(folder, *_, **__):
        (folder / "half").write_text("")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(quantization, "write", fails)
    assert run(tiny_llama, tmp_path / "int8") == 2
    assert f"--out {tmp_path / 'int8'} cannot be written: No space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "cannot be read"),
        ("a.txt", " \n", "has no text"),
        ("a.jsonl", '{"text": "x"}\n{"other": 1}\n', 'line 2: expected an object with "text", "prompt" or "messages"'),
        ("a.jsonl", "not json", "line 1: expected an object"),
    ],
)
def test_calibration_files_at_fault_are_named(tmp_path, tiny_llama, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert run(tiny_llama, tmp_path / "int8", "--calibration", str(tmp_path / name)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "int8").exists()


def test_calibration_files_decide_the_grids(tmp_path, tiny_llama):
    for name, content in (("a.txt", "aaaa bbbb " * 20), ("b.jsonl", '{"text": "zzzz"}\n\n{"prompt": "yyyy xx"}\n')):
        (tmp_path / name).write_text(content)
        assert (
            run(tiny_llama, tmp_path / name[0], "--scheme", "w8a8-static", "--calibration", str(tmp_path / name)) == 0
        )
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    scales = [name for name in a if name.endswith("input_scale") and name in b]
    assert scales
    assert any(a[name] != b[name] for name in scales)


def test_an_int8_checkpoint_is_not_quantised_again(tmp_path, tiny_llama, capsys):
    run(tiny_llama, tmp_path / "int8", "--scheme", "w8")
    assert run(tmp_path / "int8", tmp_path / "again") == 2
    assert "is quantised already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--tokens", "1"], "at least 2"), (["--scheme", "w4"], "invalid choice")]
)
def test_flags_at_fault_are_named(tmp_path, tiny_llama, capsys, arguments, message):
    try:
        status = run(tiny_llama, tmp_path / "int8", *arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_weights_of_4_bits_are_written_and_served(tmp_path, tiny_llama, capsys):
    assert run(tiny_llama, tmp_path / "int4", "--scheme", "w4a8", "--bits", "6") == 0
    figures = json.loads(capsys.readouterr().out)
    assert sum(figures["shares"].values()) == pytest.approx(1, abs=0.01)
    assert 0 < figures["shares"]["8 bits"] <= 0.375
    config = json.loads((tmp_path / "int4" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"
    llm = LLM(str(tmp_path / "int4"), threads=1)
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    assert len(llm.generate(["abc"], params)[0].token_ids) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scheme", "w8", "--bits", "5"), "--bits and --wide are for the schemes w4a8 and w4a16; --scheme is w8"),
        (
            ("--scheme", "w4a8", "--bits", "3"),
            "--bits is 3.0; it must be from 4.5 (all layers in 4 bits) to 8.5",
        ),
        (("--scheme", "w4a16", "--bits", "nan"), "--bits is nan; it must be from 4.5"),
    ],
)
def test_bits_that_cannot_be_are_named(tmp_path, tiny_llama, capsys, arguments, message):
    assert run(tiny_llama, tmp_path / "int4", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "int4").exists()


def test_a_failure_half_way_through_4_bits_leaves_nothing(tmp_path, tiny_llama, capsys, monkeypatch):
    to_4_bits, calls = gptq.to_4_bits, []

    def fail_at_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise MemoryError("no room")
        return to_4_bits(*args)

    monkeypatch.setattr(gptq, "to_4_bits", fail_at_third)
    assert run(tiny_llama, tmp_path / "int4", "--scheme", "w4a16", "--bits", "4.5") == 2
    assert "no room" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_memory_has_no_room_for_is_refused_before_it_is_begun(tmp_path, tiny_llama, capsys, monkeypatch):
    monkeypatch.setattr("engine.quantization.working_memory.devices.available_bytes", lambda *_, **__: 100_000)
    monkeypatch.setattr(quantization, "quantize_blocks", lambda *_, **__: pytest.fail("it was begun"))
    assert run(tiny_llama, tmp_path / "int4", "--scheme", "w4a8") == 2
    error = capsys.readouterr().err
    assert "a scheme of 4 bits needs at least" in error
    assert "GPTQ of model.layers.2.mlp.down_proj, which has" in error
    assert not list(tmp_path.iterdir())
    assert run(tiny_llama, tmp_path / "int8") == 0


@pytest.mark.parametrize("scheme", ["w8", "w4a8"])
def test_what_the_disk_has_no_room_for_is_refused_before_it_is_begun(tmp_path, tiny_llama, capsys, monkeypatch, scheme):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert run(tiny_llama, tmp_path / "new" / "int4", "--scheme", scheme) == 2
    assert f"{tmp_path}/new/int4 would have " in (told := capsys.readouterr().err)
    assert "its disk has 1e-06 GB free" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_half_way_leaves_nothing(tmp_path, tiny_llama, monkeypatch, number, status):
    monkeypatch.setattr(gptq, "to_4_bits", lambda *_: signal.raise_signal(number))
    before = signal.getsignal(signal.SIGTERM)
    try:
        ended = run(tiny_llama, tmp_path / "int4", "--scheme", "w4a16", "--bits", "4.5")
    except SystemExit as end:
        ended = end.code
    assert ended == status
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_bits_that_leave_nothing_to_do_are_refused(tmp_path, tiny_llama, capsys):
    assert run(tiny_llama, tmp_path / "int4", "--scheme", "w4a8", "--bits", "16", "--wide", "16") == 2
    assert "nothing to make int4: no linear layer that --bits leaves in 4 bits" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
