"""`python -m training.data`: what a run would make of its data."""

from pathlib import Path

import pytest

from training.data.__main__ import main
from training.data.train_tokenizer import main as train_tokenizer


@pytest.fixture
def folder(write, tmp_path: Path) -> str:
    write("a.jsonl", [{"text": "the fox"}, {"text": "a ```def``` b"}, b"{"])
    assert train_tokenizer(["--files", str(tmp_path / "a.jsonl"), "--vocab-size", "270", "--out", str(tmp_path)]) == 0
    return str(tmp_path)


def test_an_epoch_in_a_few_lines(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([folder, "--tokenizer", folder, "--micro-batch-size", "1", "--show", "1"]) == 0
    row, learnt, sums, padding, left_out = capsys.readouterr().out.splitlines()
    assert row in ("row:    <|begin|>the fox", "row:    <|begin|>a ```def``` b")
    assert learnt.endswith("<|end|>")
    assert sums.startswith("2 rows of ")
    assert padding == "padding: 0.0%"
    assert left_out == "left out: 1 not JSON"


def test_a_mistake_is_one_line(folder: str, write, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for arguments, message in (
        ([folder, "--tokenizer", f"{folder}/none"], "tokenizer.json is missing"),
        ([f"{folder}/none", "--tokenizer", folder], "No such file"),
        ([folder, "--tokenizer", folder, "--objective", "dpo", "--micro-batch-size", "3"], "even number"),
        (
            [folder, "--tokenizer", folder, "--objective", "sft"],
            "no record that can be used: 2 malformed, 1 not JSON",
        ),
    ):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert message in captured.err
