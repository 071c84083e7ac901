"""How many tokens a step may have so that running streams get their next token in time (--target-itl)."""

from __future__ import annotations

_SMOOTHING = 0.2  # weight of the newest step in the running means
_LEAST = 16  # prompt tokens that every step may take, so that prompts advance whatever the target is
_MARGIN = 0.9  # of the target that is planned for


class ChunkBudget:
    """Learns from computed steps what decodes and prompt tokens cost. Without a target, the budget is the limit.

    A step is taken to last `base + per_token * prompt tokens`, with base the time of its decodes.
    """

    def __init__(self, limit: int, target: float | None) -> None:
        self._limit, self._target = limit, target
        self._base: float | None = None
        self._per_token: float | None = None

    def tokens(self, num_decodes: int) -> int:
        """Tokens of the next step at most, its decodes included."""
        if self._target is None or num_decodes == 0:
            return self._limit
        if self._per_token is None:
            return min(self._limit, num_decodes + _LEAST)
        room = (self._target * _MARGIN - (self._base or 0.0)) / self._per_token
        return min(self._limit, num_decodes + max(_LEAST, int(room)))

    def observe(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """Take in how long a step took."""
        if num_prompt_tokens == 0:
            self._base = _mean(self._base, seconds)
        elif num_decodes:
            rest = max(seconds - (self._base or 0.0), 0.1 * seconds)
            self._per_token = _mean(self._per_token, rest / num_prompt_tokens)
        else:
            self._per_token = _mean(self._per_token, seconds / num_prompt_tokens)


def _mean(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _SMOOTHING * (value - mean)
