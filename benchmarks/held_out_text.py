"""Kinds of text to measure quality on: from Python, its packages and Debian, and apart from what calibration sees.

Of documentation and code calibration sees other parts, of chats others. It sees no licence, manual, JSON, Markdown and
no German. A kind whose files are not on this machine is left out.
"""

from __future__ import annotations

import gettext
import inspect
import random
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.quantization.calibration_text import help_topics, source_of

if TYPE_CHECKING:
    from collections.abc import Callable

_MODULES = ("shlex", "heapq", "textwrap", "cmd", "sched", "glob")
_PACKAGES = ("starlette.routing", "starlette.requests")
_FUNCTIONS = ("einsum", "linspace", "where", "histogram", "interp", "cov", "pad", "gradient", "unique")
_LICENCES = Path("/usr/share/common-licenses")
_MANUALS = Path("/usr/share/perl")
_GERMAN = Path("/usr/share/locale/de/LC_MESSAGES")
_DASHBOARD = Path(__file__).parent.parent / "deploy/grafana/dashboards/deepseek-serve.json"

# What the model that is measured is asked; its own answers are the kind "chat".
_TOPICS = ("volcanoes", "a healthy breakfast", "the French Revolution", "photosynthesis", "sorting in Python",
           "a job interview", "black holes", "writing a poem about autumn", "learning to swim", "the stock market",
           "how vaccines work", "naming a cat", "regular expressions", "a trip to Rome", "saving energy at home",
           "the rules of chess")  # fmt: skip
_REQUESTS = ("Tell me about {}.", "What should I know about {}? Make a list.", "Explain {} to a child.",
             "I need a short text with a title. The subject is {}.")  # fmt: skip


def _code() -> str:
    return "\n".join(map(source_of, _MODULES))


def _package() -> str:
    return "\n".join(map(source_of, _PACKAGES))


def _docstrings() -> str:
    return "\n\n".join(inspect.getdoc(getattr(np, name)) or "" for name in _FUNCTIONS)


def _licence() -> str:
    return "\n".join((_LICENCES / name).read_text(encoding="utf-8") for name in ("GPL-3", "MPL-2.0"))


def _manual() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(_MANUALS.glob("5*/pod/perldiag.pod")))


def _markdown() -> str:
    return metadata.metadata("fastapi").get_payload()  # type: ignore[return-value]


def _german() -> str:
    texts: list[str] = []
    for path in sorted(_GERMAN.glob("*.mo"), key=lambda path: -path.stat().st_size)[:3]:
        with path.open("rb") as file:
            catalog: dict[Any, str] = vars(gettext.GNUTranslations(file))["_catalog"]
        texts += [text for text in catalog.values() if len(text) > 60]
    return "\n".join(texts)


def _json() -> str:
    return _DASHBOARD.read_text(encoding="utf-8")


KINDS: dict[str, Callable[[], str]] = {
    "help": lambda: help_topics(held_out=True),
    "code": _code,
    "package": _package,
    "docstrings": _docstrings,
    "licence": _licence,
    "manual": _manual,
    "markdown": _markdown,
    "german": _german,
    "json": _json,
}


def read(kind: str) -> str:
    """The text of a kind; "" if its files are not here."""
    try:
        return KINDS[kind]()
    except (OSError, metadata.PackageNotFoundError):
        return ""


def questions(count: int) -> list[str]:
    """What a chat begins with, in an order that is always the same."""
    asked = [request.format(topic) for topic in _TOPICS for request in _REQUESTS]
    random.Random(0).shuffle(asked)
    return asked[:count]
