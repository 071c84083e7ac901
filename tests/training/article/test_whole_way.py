"""The tiny scale goes the whole way: text, tokenizer, training, EWC, alignment, int8, evaluation, serving, report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from training.article import cli
from training.article.workplace import SCALES, STAGES, Workplace

if TYPE_CHECKING:
    from pathlib import Path


def test_the_tiny_scale_goes_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = tmp_path / "run", tmp_path / "docs" / "article.md"
    assert cli.main(["--scale", "tiny", "--out", str(out), "--report", str(report)]) == 0
    place = Workplace(out, SCALES / "tiny")
    figures = {name: place.figures(name) or {} for name in STAGES}
    losses = figures["pretrain"]["losses"]
    assert losses["bigram"] < losses["unigram"]
    assert losses["model"] < 6.2  # of 6.24 for a vocabulary of 512
    assert {*figures["int8"]["perplexity_changes"]} == {"int8-dynamic", "int8-static"}
    assert figures["serving"]["moderations"]["texts"] > 0
    text = report.read_text()
    assert capsys.readouterr().out.endswith(text)
    pictures = [line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(pictures) == 3
    assert all((report.parent / name).stat().st_size > 1000 for name in pictures)
