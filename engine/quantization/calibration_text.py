"""Text to calibrate on: a user's file, or the prose and code of Python's own help, which needs no download."""

from __future__ import annotations

import json
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

from engine.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_HELD_OUT_INTERVAL = 4  # every fourth topic is for benchmarks.quality


def builtin_text(*, held_out: bool) -> str:
    """Help topics, longest first: for calibration, or held out for measurement. The two share no paragraph."""
    ordered = sorted(topics, key=lambda name: (-len(topics[name]), name))
    parts: dict[bool, list[str]] = {True: [], False: []}
    seen: set[str] = set()
    for number, name in enumerate(ordered):
        for paragraph in topics[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if words and words not in seen:  # topics repeat parts of each other
                seen.add(words)
                parts[number % _HELD_OUT_INTERVAL == 1].append(paragraph)
    return "\n\n".join(parts[held_out])


def read_texts(path: Path) -> list[str]:
    """The texts in a file: the whole of a plain file, or "text" or "prompt" of each line of a .jsonl file.

    Raises:
        ConfigError: the file cannot be read, or has no text.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--calibration {path} cannot be read: {error}") from None
    if path.suffix != ".jsonl":
        texts = [content]
    else:
        texts = [_text_of(line, f"--calibration {path}, line {n}") for n, line in enumerate(content.splitlines(), 1)]
    if not any(text.strip() for text in texts):
        raise ConfigError(f"--calibration {path} has no text in it")
    return texts


def _text_of(line: str, where: str) -> str:
    if not line.strip():
        return ""
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    text = value.get("text", value.get("prompt")) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise ConfigError(f'{where}: expected an object with "text" or "prompt"')
    return text
