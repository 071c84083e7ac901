from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from engine.loading.resolve import ModelSource
from server.text.tokenizer import Tokenizer
from tests.support import tiny_recipe
from training import checkpoint_folder
from training.cli import run_command
from training.data.batches import BatchStream

if TYPE_CHECKING:
    from pathlib import Path

    from training.batch import Batch


def _error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on standard error of a command that ends with status 2."""
    assert run_command([*argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("deepseek-train: error: ")
    return line


def test_killed_twice_it_has_the_losses_of_an_undisturbed_run_to_the_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = {"total_steps": 24, "checkpoint_interval": 3, "peak_tflops": None}
    assert run_command([str(tiny_recipe.write(whole, **settings))]) == 0
    recipe, metrics = tiny_recipe.write(killed, **settings), killed / "run" / "metrics.jsonl"
    command = [sys.executable, "-m", "tests.training.kill_and_resume", recipe, metrics, "1", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("going on from") == 2
    losses = tiny_recipe.losses(killed)
    assert losses == tiny_recipe.losses(whole)
    assert list(losses) == list(range(1, 25))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (killed / "run" / "export" / name).read_bytes() == (whole / "run" / "export" / name).read_bytes()


def test_a_run_ends_with_an_export_that_has_all_that_serving_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe.write(tmp_path)
    assert run_command([str(recipe), "total_steps=2", "warmup_steps=0"]) == 0
    export = tmp_path / "run" / "export"
    assert json.loads((export / "config.json").read_text())["architectures"] == ["DynamicMoEForCausalLM"]
    assert Tokenizer.load(ModelSource(export, "tiny")).encode("a")
    assert capsys.readouterr().out.splitlines()[-1] == f"{export} is the trained model: deepseek-serve {export}"
    assert run_command([str(recipe), f"model={export}", f"output={tmp_path / 'next'}", "total_steps=1"]) == 0


def test_a_run_does_not_write_over_another_and_goes_on_where_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(tiny_recipe.write(tmp_path))
    assert run_command([recipe, "total_steps=4"]) == 0
    assert "has checkpoints up to step 4: --resume goes on" in _error(capsys, recipe, "total_steps=4")
    assert "seed was 0 and is 1" in _error(capsys, recipe, "seed=1", "--resume")
    assert "data's max_length changed" in _error(capsys, recipe, "data.max_length=16", "--resume")
    data, tokenizer = tmp_path / "data.jsonl", tmp_path / "model" / "tokenizer_config.json"
    for path, change, message in ((data, (b"so", b"SO"), "data's contents"), (tokenizer, (b"{", b"{ "), "tokenizer_")):
        content = path.read_bytes()
        path.write_bytes(content.replace(*change, 1))
        assert message in _error(capsys, recipe, "--resume", "total_steps=6")
        path.write_bytes(content)
    assert run_command([recipe, "--resume", "total_steps=6"]) == 0
    assert list(tiny_recipe.losses(tmp_path)) == [1, 2, 3, 4, 5, 6]
    assert run_command([str(tmp_path / "run" / "settings.yaml"), "--resume"]) == 0  # there is nothing left to do
    assert list(checkpoint_folder.step_folders(tmp_path / "run" / "checkpoints")) == [6, 4]


def test_held_out_documents_and_accumulation(tmp_path: Path) -> None:
    recipe = tiny_recipe.write(tmp_path)
    data = tmp_path / "data.jsonl"
    overrides = [f"validation={{files: [{data}], interval: 2, micro_batches: 3}}", "accumulation_steps=2"]
    assert run_command([str(recipe), *overrides, "total_steps=4", "precision=bfloat16"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert ["validation_loss" in line for line in lines] == [False, True, False, True]
    assert lines[3]["validation_loss"] < lines[1]["validation_loss"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=none/config.json", "none/config.json"),
        ("tokenizer=none", "tokenizer"),
        ("data.files=[none.jsonl]", "none.jsonl"),
        ("data.max_length=65", "data.max_length is 65; expected at most max_position_embeddings"),
        ("output=/proc/run", "output /proc/run cannot be written"),
        ("parallelism.pipeline=2", "torchrun --nproc-per-node 2"),
    ],
)
def test_what_is_at_fault_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert message in _error(capsys, str(tiny_recipe.write(tmp_path)), override)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_that_trained_nothing_exports_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe.write(tmp_path)
    (tmp_path / "model" / "config.json").write_text(json.dumps({**tiny_recipe.MODEL, "rope_theta": 1e-300}))
    assert run_command([str(recipe), "total_steps=1", "warmup_steps=0"]) == 2
    assert "error: all 1 steps were skipped" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run" / "export").exists()


def test_a_model_that_the_tokenizer_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe.write(tmp_path)
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({**tiny_recipe.MODEL, "vocab_size": 100, "eos_token_id": 99})
    )
    assert "vocab_size in config.json is 100; expected at least the 258 tokens" in _error(capsys, str(recipe))


def test_a_signal_leaves_a_checkpoint_and_a_status_that_tells_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, take = [], BatchStream.__next__

    def interrupted(stream: BatchStream) -> Batch:
        taken.append(1)
        if len(taken) == 3:
            signal.raise_signal(signal.SIGTERM)
        return take(stream)

    recipe = str(tiny_recipe.write(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(BatchStream, "__next__", interrupted)
        assert run_command([recipe]) == 128 + signal.SIGTERM
    assert capsys.readouterr().out.splitlines()[-1] == "stopped at step 3 with a checkpoint; --resume goes on from it"
    assert not (tmp_path / "run" / "export").exists()
    assert run_command([recipe, "--resume", "total_steps=4"]) == 0
    assert list(tiny_recipe.losses(tmp_path)) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("x: you can't allocate memory")]
)
def test_too_little_memory_is_told_with_what_takes_less(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def allocate(*_: object) -> None:
        raise error

    monkeypatch.setattr("training.worker.LocalWorker.forward_backward", allocate)
    assert "lower data.micro_batch_size" in _error(capsys, str(tiny_recipe.write(tmp_path)))


def test_two_runs_cannot_have_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from training.run_folder import locked

    recipe = tiny_recipe.write(tmp_path)
    with locked(tmp_path / "run"):
        assert "another process trains into" in _error(capsys, str(recipe))


@pytest.mark.parametrize("module", ["lion_pytorch", "tensorboard"])
def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    class Missing:
        def find_spec(self, name: str, *_: object) -> None:
            if name == module:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for loaded in [name for name in sys.modules if name.startswith((module, "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    assert f"{module} is not installed: pip install" in _error(capsys, str(tiny_recipe.write(tmp_path)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume", "--plan"], "not allowed with"),
        (["--memory", "80"], "--memory and --ranks-per-node go with --plan"),
        (["--plan", "--memory", "much"], "'much' is no number"),
        (["--plan", "--ranks-per-node", "9" * 5000], "'99999999999999999999' is no whole number from 1 to 999999;"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        run_command(["recipe.yaml", *flags])
    assert message in capsys.readouterr().err


def test_help_and_mistakes_in_flags_need_no_torch() -> None:
    program = "import sys; from training.cli import run_command; run_command(sys.argv[1:]); assert False"
    check = f"import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); {program}"
    for argv, status in ((["--help"], 0), ([], 2), (["a.yaml", "--resum"], 2)):
        ended = subprocess.run([sys.executable, "-c", check, *argv], capture_output=True, text=True)
        assert ended.returncode == status
        assert ended.stdout.splitlines()[-1] == "False"
        assert ended.stderr.count("\n") == (1 if status else 0)
