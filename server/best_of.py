"""best_of: more choices are computed than are given; which of them are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.generation import Generation
    from server.text.choice_text import Delta


async def best_of(choices: list[Delta], generation: Generation, n: int) -> list[Delta]:
    """Return each prompt's n best choices, the best first; they get new numbers. Where n are made, all are returned.

    Best are those of the largest value, where the model has a head that values texts; else those of the highest mean
    logprob. Those that the guard has cut off come last.
    """
    made = len(choices) // len(generation.prompts)
    if made == n:
        return choices
    goodness = await generation.values(choices) if generation.has_values else list(map(_mean_logprob, choices))
    best: list[Delta] = []
    for first in range(0, len(choices), made):
        numbers = sorted(range(first, first + made), key=lambda i: (not choices[i].is_cut, goodness[i]), reverse=True)
        best += [choices[number] for number in numbers[:n]]
    for number, choice in enumerate(best):
        choice.choice = number
    return best


def _mean_logprob(choice: Delta) -> float:
    return sum(report.logprobs.logprob for report in choice.reports) / max(1, len(choice.reports))
