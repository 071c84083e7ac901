"""Text to calibrate on: a user's file, or text of four kinds that needs no download.

Prose and chats are written for this project (texts/), documentation and code come with Python. Text of one kind does
not do: an input of some layer that is small all through prose may be large in code.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from engine.errors import ConfigError
from engine.loading.files import MIB, read_bytes

Text = str | list[dict[str, Any]]  # or the messages of a chat

_FOLDER = Path(__file__).parent / "texts"
_MODULES = ("bisect", "calendar", "configparser", "csv", "fractions", "locale", "queue")
_MAX_BYTES = 256 * MIB  # of a user's file
_HELD_OUT_INTERVAL = 4  # every fourth topic is for benchmarks.quality


def builtin_texts() -> dict[str, list[Text]]:
    """The built-in text to calibrate on, by kind."""
    chats = (_FOLDER / "chats.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "prose": [(_FOLDER / "prose.txt").read_text(encoding="utf-8")],
        "code": ["\n".join(filter(None, map(source_of, _MODULES)))],
        "docs": [help_topics(held_out=False)],
        "chat": [json.loads(line)["messages"] for line in chats],
    }


def help_topics(*, held_out: bool) -> str:
    """Python's help topics, longest first: for calibration, or held out for measurement. They share no paragraph."""
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


def source_of(module: str) -> str:
    """The source of a module in Python, without importing it; "" where there is none."""
    spec = find_spec(module)
    path = Path(spec.origin) if spec is not None and spec.origin is not None else Path()
    return path.read_text(encoding="utf-8") if path.suffix == ".py" and path.is_file() else ""


def read_texts(path: Path) -> list[Text]:
    """The texts in a file: the whole of a plain file, or "text", "prompt" or "messages" of each line of a .jsonl file.

    Raises:
        ConfigError: the file cannot be read, or has no text.
    """
    try:
        content = read_bytes(path, _MAX_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--calibration {path} cannot be read: {error}") from None
    texts: list[Text] = [content]
    if path.suffix == ".jsonl":
        texts = [_text_of(line, f"--calibration {path}, line {n}") for n, line in enumerate(content.splitlines(), 1)]
    if not any(text.strip() if isinstance(text, str) else text for text in texts):
        raise ConfigError(f"--calibration {path} has no text in it")
    return texts


def _text_of(line: str, where: str) -> Text:
    if not line.strip():
        return ""
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if isinstance(value, dict):
        text, messages = value.get("text", value.get("prompt")), value.get("messages")
        if isinstance(text, str):
            return text
        if isinstance(messages, list) and all(isinstance(message, dict) for message in messages):
            return messages
    raise ConfigError(f'{where}: expected an object with "text", "prompt" or "messages"')
