"""Tables for people, JSON for programs."""

import pytest

from server.commands.output import report, table


@pytest.mark.parametrize(
    ("out_is_terminal", "err_is_terminal", "as_json", "out", "err"),
    [
        (True, True, False, "text\n", ""),
        (True, True, True, '{"a": 1}\n', ""),
        (False, True, False, '{"a": 1}\n', "text\n"),
        (False, False, False, '{"a": 1}\n', ""),
    ],
)
def test_who_gets_what(capsys, monkeypatch, out_is_terminal, err_is_terminal, as_json, out, err):
    monkeypatch.setattr("sys.stdout.isatty", lambda: out_is_terminal)
    monkeypatch.setattr("sys.stderr.isatty", lambda: err_is_terminal)
    report("text", {"a": 1}, as_json=as_json)
    assert capsys.readouterr() == (out, err)


def test_several_results_are_a_line_each(capsys):
    report("text", [{"a": 1}, {"a": 2}], as_json=True)
    assert capsys.readouterr().out == '{"a": 1}\n{"a": 2}\n'


def test_columns_are_aligned():
    assert table([["name", "x"], ["a", "1.5"], ["long name", "10"]]) == "name         x\na          1.5\nlong name   10"
