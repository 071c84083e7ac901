from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from engine.errors import ConfigError
from training.read_config import read_settings
from training.read_yaml import parse_yaml, read_yaml

if TYPE_CHECKING:
    from pathlib import Path

BOMB = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)), "seed: *a8"]
)


def test_numbers_may_have_an_exponent_without_a_point() -> None:
    assert parse_yaml("a: 3e-5\nb: 2.5e3\nc: e5") == {"a": 3e-5, "b": 2500.0, "c": "e5"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 2024-13-45", "month must be"),
        ("seed: " + "9" * 5000, "digits"),
        ('seed: !!int "abc"', "invalid literal"),
        ('seed: !!float "abc"', "could not convert"),
        ("seed: " + "[" * 3000, "nested too deeply"),
        ("seed: 1\nseed: 2", "'seed' is there twice"),
        ("data: {files: [a], files: [b]}", "'files' is there twice"),
        ("1: 2", "a key is no text"),
        ("[a]: 2", "a key is no text"),
        (r'output: "a\0b"', "NUL or half a character"),
        (r'output: "a\ud800"', "NUL or half a character"),
        ("a: [", "expected the node content"),
    ],
)
def test_what_is_no_recipe_is_one_short_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_settings(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    if text.startswith("seed: ") and "\n" not in text:
        recipe = tmp_path / "good.yaml"
        recipe.write_text("output: out\nmodel: m\ndata: {files: [a]}\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            read_settings(recipe, [text.replace(": ", "=", 1)])


def test_a_value_that_unfolds_to_millions_is_shown_short(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output: out\nmodel: m\ndata: {{files: [a]}}\n{BOMB}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"seed is .*expected a whole number") as caught:
        read_settings(path)
    assert len(str(caught.value)) < 2000


def test_an_output_without_a_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("output: ''\nmodel: m\ndata: {files: [a]}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"output is .*; expected a path"):
        read_settings(path)


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b" " * (2 << 20))
    for name, message in (("pipe", "no regular file"), ("large", "at most"), ("absent", "No such file")):
        with pytest.raises(ConfigError, match=message):
            read_yaml(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "a\0b")
    with pytest.raises(ConfigError, match=r"too long|cannot be read") as caught:
        read_yaml(tmp_path / ("x" * 5000))
    assert len(str(caught.value)) < 6000
