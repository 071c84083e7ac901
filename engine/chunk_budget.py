"""How many tokens a step may have so that running streams get their next token in time (--target-itl)."""

from __future__ import annotations

import collections

import numpy as np

_REMEMBERED = 32  # steps that the costs are taken from
_LEAST = 16  # prompt tokens that every step may take, so that prompts advance whatever the target is
_MARGIN = 0.9  # of the target that is planned for


class ChunkBudget:
    """Learns from computed steps what they cost. Without a target, the budget is the limit.

    A step is taken to last `base + per_decode * decodes + per_token * prompt tokens`.
    """

    def __init__(self, limit: int, target: float | None, least_share: float = 0.0) -> None:
        """Start with nothing learnt.

        Args:
            limit: tokens of a step, whatever the target.
            target: seconds of a step; None is none.
            least_share: of the decodes' time, that prompts are given even if the target is then missed.
        """
        self._limit, self._target, self._least_share = limit, target, least_share
        self._steps: collections.deque[tuple[int, int, int]] = collections.deque(maxlen=_REMEMBERED)
        self._seconds: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)

    def tokens(self, num_decodes: int) -> int:
        """Tokens of the next step at most, its decodes included."""
        if self._target is None or num_decodes == 0:
            return self._limit
        if not any(num_prompt_tokens for _, _, num_prompt_tokens in self._steps):
            return min(self._limit, num_decodes + _LEAST)
        base, per_decode, per_token = fit_costs(np.array(self._steps, dtype=float), np.array(self._seconds))
        decodes = base + per_decode * num_decodes
        room = max(self._target * _MARGIN - decodes, self._least_share * decodes) / max(per_token, 1e-9)
        return min(self._limit, num_decodes + max(_LEAST, int(room)))

    def observe(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """Take in how long a step took."""
        self._steps.append((1, num_decodes, num_prompt_tokens))
        self._seconds.append(seconds)


def fit_costs(steps: np.ndarray, seconds: np.ndarray) -> list[float]:
    """What each column of `steps` [S, C] costs, given how long the steps took [S]: least squares, none negative."""
    weights = 1 / np.sqrt(np.maximum(seconds, 1e-9))  # long steps are not to drown the short ones
    matrix, wanted = steps * weights[:, None], seconds * weights
    free = list(range(steps.shape[1]))
    costs = np.zeros(steps.shape[1])
    while free:
        costs[:] = 0.0
        costs[free] = np.linalg.lstsq(matrix[:, free], wanted, rcond=None)[0]
        if (costs >= 0).all():
            break
        free.remove(int(costs.argmin()))
    return costs.tolist()
