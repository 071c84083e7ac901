"""Requests with their keys and times: generated from a seed, or read from a file."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_WORDS = (
    "the of and to in is that it for was on are as with they at be this from have or by one had not but what all were"
    " when we there can an your which their said if do will each about how up out them then many some so these would"
)


@dataclass(frozen=True)
class Request:
    """One request; `due` is in seconds from the start, or None in a closed loop."""

    prompt: str | list[int]
    max_tokens: int
    prefix: str | list[int] = ""
    key: str = ""
    due: float | None = None
    priority: int = 0


@dataclass(frozen=True)
class Source:
    """Requests in order: sent when due, or with `concurrency` requests in flight."""

    requests: Sequence[Request]
    concurrency: int | None = None


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths in tokens: 128, or 64-512, or lognormal:MEDIAN:SIGMA:MAX (a heavy tail)."""

    low: int
    high: int
    sigma: float | None = None

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Parse a flag's value.

        Raises:
            ValueError: it is of none of the three forms.
        """
        try:
            if text.startswith("lognormal:"):
                median, sigma, most = text.removeprefix("lognormal:").split(":")
                lengths = cls(int(median), int(most), float(sigma))
            else:
                low, _, high = text.partition("-")
                lengths = cls(int(low), int(high or low))
        except ValueError:
            lengths = cls(0, 0)
        if not 1 <= lengths.low <= lengths.high or (lengths.sigma is not None and not 0 <= lengths.sigma < math.inf):
            raise ValueError(f"'{text}' is not a length: expected 128, 64-512, or lognormal:MEDIAN:SIGMA:MAX")
        return lengths

    def __str__(self) -> str:
        if self.sigma is not None:
            return f"lognormal:{self.low}:{self.sigma:g}:{self.high}"
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"

    def draw(self, rng: random.Random) -> int:
        """One length, at least 1."""
        if self.sigma is None:
            return rng.randint(self.low, self.high)
        return min(max(1, round(rng.lognormvariate(math.log(self.low), self.sigma))), self.high)


def positive(text: str) -> int:
    """Parse a whole number from 1."""
    number = int(text)
    if number < 1:
        raise ValueError(f"'{text}' must be at least 1")
    return number


def parse_rate(text: str) -> float:
    """Parse arrivals per second, or inf."""
    rate = float(text)
    if not rate > 0:
        raise ValueError(f"'{text}' must be more than 0")
    return rate


_KEY_SETTINGS: dict[str, Callable[[str], Any]] = {
    "rate": parse_rate,
    **dict.fromkeys(("concurrency", "requests"), positive),
    **dict.fromkeys(("input-len", "output-len"), Lengths.parse),
}


@dataclass(frozen=True)
class Load:
    """Settings of the requests of one API key.

    Attributes:
        rate: arrivals a second (Poisson), inf for all at once; None for a closed loop of `concurrency`.
    """

    input_len: Lengths
    output_len: Lengths
    requests: int = 100
    rate: float | None = None
    concurrency: int = 8
    key: str = ""

    def of_key(self, text: str) -> Load:
        """This load with the changes in KEY[,rate=R][,concurrency=C][,requests=N][,input-len=L][,output-len=L].

        Raises:
            ValueError: a setting is unknown or has no such value.
        """
        key, *settings = text.split(",")
        changes: dict[str, Any] = {}
        for setting in settings:
            name, _, value = setting.partition("=")
            if name not in _KEY_SETTINGS:
                valid = ", ".join(_KEY_SETTINGS)
                raise ValueError(f"'{setting}' is no setting of a key: expected one of {valid}, and =VALUE")
            changes[name.replace("-", "_")] = _KEY_SETTINGS[name](value)
            if name == "concurrency":
                changes["rate"] = None
        return dataclasses.replace(self, key=key, **changes)


@dataclass(frozen=True)
class Prompts:
    """Generates prompts: random token ids below `vocab_size`, or words (about one token each) if it is None."""

    vocab_size: int | None = None
    shared_prefix: int = 0

    def make(self, rng: random.Random, length: int) -> str | list[int]:
        """A prompt with this number of tokens."""
        if self.vocab_size is None:
            return " ".join(rng.choices(_WORDS.split(), k=length))
        return rng.choices(range(self.vocab_size), k=length)


def generate(load: Load, prompts: Prompts, seed: int | str) -> Source:
    """The requests of one key. The same seed gives the same requests at the same times."""
    rng = random.Random(f"{seed}/{load.key}")
    prefix = prompts.make(random.Random(f"{seed}/prefix"), prompts.shared_prefix) if prompts.shared_prefix else ""
    requests = []
    for _ in range(load.requests):
        prompt, max_tokens = prompts.make(rng, load.input_len.draw(rng)), load.output_len.draw(rng)
        requests.append(Request(prompt, max_tokens, prefix, load.key))
    return _paced(requests, load, rng)


def read(path: Path, load: Load, prompts: Prompts, seed: int, *, limit: int | None, replay: bool) -> Source:
    """Requests from a file of JSON lines, at most `limit`.

    A line has "prompt", which is a text, token ids or a number of tokens to make up, and may have "max_tokens" (or
    "output"; else `load` says), "time", "key", "priority" and "prefix" ([name, tokens]): benchmarks.simulate reads the
    same. With `replay` they are sent at their times, otherwise as `load` says.

    Raises:
        ValueError: a line cannot be read; it is named.
    """
    rng = random.Random(f"{seed}/file")
    requests: list[Request] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or (limit is not None and len(requests) == limit):
            continue
        try:
            entry = json.loads(line)
            request = _from_entry(entry, load, prompts, rng, seed)
            requests.append(dataclasses.replace(request, due=entry["time"]) if replay else request)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {type(error).__name__}: {error}") from None
    if not requests:
        raise ValueError(f"{path} has no requests in it")
    return Source(sorted(requests, key=lambda request: request.due or 0)) if replay else _paced(requests, load, rng)


def _paced(requests: list[Request], load: Load, rng: random.Random) -> Source:
    """The requests at a load's rate, or in a closed loop."""
    if load.rate is None:
        return Source(requests, load.concurrency)
    times = itertools.accumulate(rng.expovariate(load.rate) for _ in requests)
    return Source([dataclasses.replace(request, due=due) for request, due in zip(requests, times, strict=True)])


def has_times(path: Path) -> bool:
    """Whether a file of requests is a recorded trace: its first line has a time."""
    with path.open(encoding="utf-8") as lines:
        return '"time"' in next((line for line in lines if line.strip()), "")


def _from_entry(entry: dict[str, Any], load: Load, prompts: Prompts, rng: random.Random, seed: int) -> Request:
    prompt = entry["prompt"]
    prefix: str | list[int] = ""
    if isinstance(prompt, int):
        name, length = entry.get("prefix") or ("", 0)
        if length := min(length, prompt - 1):
            prefix = prompts.make(random.Random(f"{seed}/prefix {name}"), length)
        prompt = prompts.make(rng, max(1, prompt - length))
    output = entry.get("max_tokens", entry.get("output"))
    return Request(
        prompt,
        load.output_len.draw(rng) if output is None else output,
        prefix,
        entry.get("key", load.key),
        priority=entry.get("priority", 0),
    )
