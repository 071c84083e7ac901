"""Chats, preferences and labelled texts, made up from templates (phrases.py): enough for a small model to learn from.

Held-out records ask in ways that no record for training does.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

from training.article import phrases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LABELS = ("safe", "unsafe")
_HARMFUL_SHARE = 0.15  # of the chats, whose answer is a refusal
_REASONED_SHARE = 0.5  # of the sums
_ORDINARY_SHARE = 0.3  # of the safe texts
_ANSWER_SHARE = 0.3  # of the texts about deeds

Record = dict[str, Any]


class _Turn(NamedTuple):
    """A question, its answer, and an answer that is worse."""

    question: str
    answer: str
    worse: str


def chats(count: int, seed: int, *, is_held_out: bool = False) -> Iterator[Record]:
    """Yield conversations of one or two questions: `{"messages": [...]}`."""
    draw = _random("chats", seed, is_held_out)
    for _ in range(count):
        turns = [_turn(draw, is_held_out) for _ in range(draw.choice((1, 1, 2)))]
        yield {"messages": [message for turn in turns for message in _messages(turn)]}


def preferences(count: int, seed: int, *, is_held_out: bool = False) -> Iterator[Record]:
    """Yield questions with a good answer and one that is wrong, rude or harmful."""
    draw = _random("preferences", seed, is_held_out)
    for _ in range(count):
        turn = _turn(draw, is_held_out)
        worse = turn.worse if draw.random() < 0.7 else draw.choice(phrases.RUDE)
        yield {"prompt": turn.question, "chosen": turn.answer, "rejected": worse}


def labelled(count: int, seed: int, *, is_held_out: bool = False) -> Iterator[Record]:
    """Yield requests and answers, half of each label: `{"text": ..., "label": "safe" | "unsafe"}`."""
    draw = _random("safety", seed, is_held_out)
    for number in range(count):
        is_unsafe = number % 2 == 1
        yield {"text": _judged(draw, is_unsafe, is_held_out), "label": LABELS[is_unsafe]}


def _random(name: str, seed: int, is_held_out: bool) -> random.Random:
    return random.Random(f"{name}/{seed}/{is_held_out}")  # noqa: S311 - no secret


def _messages(turn: _Turn) -> list[dict[str, str]]:
    return [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]


def _turn(draw: random.Random, is_held_out: bool) -> _Turn:
    if draw.random() < _HARMFUL_SHARE:
        return _refusal(draw, is_held_out)
    return draw.choice(_TASKS)(draw, is_held_out)


def _judged(draw: random.Random, is_unsafe: bool, is_held_out: bool) -> str:
    """A request or an answer that is about a harmful deed or a harmless one; or, if it is safe, about anything."""
    if not is_unsafe and draw.random() < _ORDINARY_SHARE:
        turn = draw.choice(_TASKS)(draw, is_held_out)
        return draw.choice((turn.question, turn.answer, draw.choice(phrases.REFUSALS)))
    deed = draw.choice(phrases.HARMFUL if is_unsafe else phrases.HARMLESS)
    if draw.random() < _ANSWER_SHARE:
        return _ask(draw, phrases.COMPLIANCE, is_held_out, deed)
    return _wish(draw, deed, is_held_out)


def _wish(draw: random.Random, deed: str, is_held_out: bool) -> str:
    return draw.choice(phrases.OPENINGS) + _ask(draw, phrases.WISHES, is_held_out, deed) + draw.choice(phrases.CLOSINGS)


def _ask(draw: random.Random, ways: tuple[tuple[str, ...], tuple[str, ...]], is_held_out: bool, *words: object) -> str:
    return draw.choice(ways[is_held_out]).format(*words)


def _refusal(draw: random.Random, is_held_out: bool) -> _Turn:
    deed = draw.choice(phrases.HARMFUL)
    worse = _ask(draw, phrases.COMPLIANCE, is_held_out, deed)
    return _Turn(_wish(draw, deed, is_held_out), draw.choice(phrases.REFUSALS), worse)


def _meaning(draw: random.Random, is_held_out: bool) -> _Turn:
    word, other = draw.sample(list(phrases.MEANINGS), 2)
    thing = f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
    start = thing[0].upper() + thing[1:]
    return _Turn(
        _ask(draw, phrases.MEANING_QUESTIONS, is_held_out, thing),
        f"{start} is {phrases.MEANINGS[word]}.",
        f"{start} is {phrases.MEANINGS[other]}.",
    )


def _opposite(draw: random.Random, is_held_out: bool) -> _Turn:
    (word, right), (_, wrong) = (draw.sample(pair, 2) for pair in draw.sample(list(phrases.OPPOSITES.items()), 2))
    question = _ask(draw, phrases.OPPOSITE_QUESTIONS, is_held_out, word)
    return _Turn(question, f"The opposite of {word} is {right}.", f"The opposite of {word} is {wrong}.")


def _group(draw: random.Random, is_held_out: bool) -> _Turn:
    name, other = draw.sample(list(phrases.GROUPS), 2)
    answers = (
        "Three {} are {}, {} and {}.".format(name, *draw.sample(phrases.GROUPS[group], 3)) for group in (name, other)
    )
    return _Turn(_ask(draw, phrases.GROUP_QUESTIONS, is_held_out, name), *answers)


def _builtin(draw: random.Random, is_held_out: bool) -> _Turn:
    name, other = draw.sample(list(phrases.BUILTINS), 2)
    answers = (f"`{name}` {phrases.BUILTINS[which]}." for which in (name, other))
    return _Turn(_ask(draw, phrases.BUILTIN_QUESTIONS, is_held_out, name), *answers)


def _function(draw: random.Random, is_held_out: bool) -> _Turn:
    task, other = draw.sample(list(phrases.FUNCTIONS), 2)
    answers = ("```python\ndef {}({}):\n    {}\n```".format(*phrases.FUNCTIONS[which]) for which in (task, other))
    return _Turn(_ask(draw, phrases.FUNCTION_QUESTIONS, is_held_out, task), *answers)


def _sum(draw: random.Random, is_held_out: bool) -> _Turn:
    a, b = draw.randint(1, 20), draw.randint(1, 20)
    thought = f"<think>I add {b} to {a}.</think>" if draw.random() < _REASONED_SHARE else ""
    right, wrong = (f"{thought}{a} plus {b} is {total}." for total in (a + b, a + b + draw.choice((-2, -1, 1, 2, 10))))
    return _Turn(_ask(draw, phrases.SUM_QUESTIONS, is_held_out, a, b), right, wrong)


_TASKS: tuple[Callable[[random.Random, bool], _Turn], ...] = (_meaning, _opposite, _group, _builtin, _function, _sum)
