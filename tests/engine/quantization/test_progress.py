"""Progress: a bar on a terminal, lines elsewhere."""

import pytest

from engine.quantization import progress
from engine.quantization.progress import shown


@pytest.mark.parametrize(
    ("is_terminal", "expected"), [(True, "reading: 100%"), (False, "reading: 2 of 3 letters, about 00:00")]
)
def test_a_terminal_gets_a_bar_and_a_file_lines(monkeypatch, capsys, is_terminal, expected):
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: is_terminal)
    assert list(shown("abc", "reading", "letter", 3, progress=True)) == list("abc")
    told = capsys.readouterr().err
    assert expected in told
    assert ("\r" in told) == is_terminal


def test_what_is_done_soon_or_in_silence_tells_nothing(capsys):
    for items in (shown("abc", "reading", "letter", 3, progress=True), shown("abc", "", "", 3, progress=False)):
        assert list(items) == list("abc")
    assert not capsys.readouterr().err
