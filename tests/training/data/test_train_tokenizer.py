"""training.data.train_tokenizer: a folder that the server and transformers read alike."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from engine.loading.resolve import ModelSource
from server.text.tokenizer import Tokenizer
from training.data.train_tokenizer import main

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "<think>a</think>b"},
]


@pytest.fixture
def folder(write, tmp_path: Path) -> Path:
    records = [{"title": "The fox", "text": "the fox jumps over the river 2026\n    return a + b\n" * 50}, b"broken"]
    out = tmp_path / "out" / "tokenizer"
    assert main(["--files", str(write("a.jsonl", records)), "--vocab-size", "320", "--out", str(out)]) == 0
    return out


def test_what_is_trained(folder: Path) -> None:
    tokenizer = Tokenizer.load(ModelSource(folder, "trained"))
    assert 264 < tokenizer.vocab_size <= 320
    assert tokenizer.decode(tokenizer.encode("😀 ünseen\n\t")) == "😀 ünseen\n\t"
    assert len(tokenizer.encode("the fox jumps")) < 8
    assert len(tokenizer.encode("2026", add_special_tokens=False)) == 4
    assert tokenizer.encode("a")[0] == tokenizer.bos_id
    for text in ("[SEP]", "<|user|>", "<|end|>"):
        assert tokenizer.encode(text, add_special_tokens=False) == [tokenizer.special_id(text)]
    think = tokenizer.encode("<think>", add_special_tokens=False)
    assert len(think) == 1
    assert tokenizer.decode(think) == "<think>"
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.thinks


def test_transformers_reads_it_alike(folder: Path) -> None:
    ours, theirs = Tokenizer.load(ModelSource(folder, "trained")), AutoTokenizer.from_pretrained(folder)
    for text in ("the fox [SEP] jumps", "<|user|>a<think>b", " 12 ä"):
        assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.chat_template is not None
    for prompt in (True, False):
        rendered = ours.chat_template.render(CHAT, add_generation_prompt=prompt)
        assert rendered == theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt)
        assert ours.encode(rendered).count(ours.bos_id) == 1


def test_it_is_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main(["--files", str(tmp_path / "a.jsonl"), "--vocab-size", "320", "--out", str(again)]) == 0
    assert json.loads((again / "tokenizer.json").read_text()) == json.loads((folder / "tokenizer.json").read_text())


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([{"text": "abc"}], ["--vocab-size", "100"], "size is 100; expected 264 or more"),
        ([b"{"], [], "no text to train a tokenizer on: 1 not JSON"),
        ([], [], "the data is empty"),
    ],
)
def test_one_clear_error(write, tmp_path: Path, capsys, lines, options, message: str) -> None:
    out = tmp_path / "out"
    assert main(["--files", str(write("a.jsonl", lines)), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("size", ["9999999999999999999999999", "1000000000", "0", "9" * 5000])
def test_a_vocabulary_that_would_fill_memory_is_refused(tmp_path: Path, capsys, size: str) -> None:
    with pytest.raises(SystemExit):
        main(["--files", str(tmp_path), "--vocab-size", size, "--out", str(tmp_path / "out")])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{size[:20]!r} is no whole number from 1 to 1048576" in line
