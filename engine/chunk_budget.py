"""How many tokens a step may have, so that running streams get their next token in time while prompts are computed."""

from __future__ import annotations

import collections
import math

import numpy as np

_REMEMBERED = 16  # steps of each kind that the costs are taken from
_LEAST = 4  # prompt tokens that every step may take, so that prompts advance whatever the target is
_MARGIN = 0.9  # of the target that is planned for


class ChunkBudget:
    """Bounds a step's tokens by what steps cost: `base + per_decode * decodes + per_token * prompt tokens`.

    The costs are learnt from the steps before. Steps with prompts and steps without are remembered apart, lest many of
    one kind make it forget the other.
    """

    def __init__(self, limit: int, target: float = 0.0, share: float = 0.0) -> None:
        """Start with nothing learnt; `limit` is all that counts where nothing decodes.

        `target` is how many seconds a step beside decodes should last; `share` is what each prompt is given of the
        decodes' time even if the target is then missed, inf is no bound.
        """
        self._limit, self._target, self._share = limit, target, share
        self._steps = [collections.deque[tuple[int, int, int, float]](maxlen=_REMEMBERED) for _ in range(2)]
        self._costs: list[float] | None = None  # as fitted to these steps

    def tokens(self, num_decodes: int, num_prompts: int = 1) -> int:
        """Tokens of the next step at most, its decodes included."""
        return self.within(self._target, self._share * num_prompts, num_decodes)

    def within(self, target: float, share: float, num_decodes: int) -> int:
        """The same for another target, and a share that all prompts have together."""
        if num_decodes == 0 or share == math.inf:
            return self._limit
        if (costs := self._fitted()) is None:
            return min(self._limit, num_decodes + _LEAST)
        base, per_decode, per_token = costs
        decodes = base + per_decode * num_decodes
        room = max(target * _MARGIN - decodes, share * decodes) / max(per_token, 1e-9)
        return int(min(self._limit, num_decodes + max(_LEAST, room)))

    def tokens_in(self, seconds: float, num_decodes: int) -> int:
        """Prompt tokens that lengthen a step of so many decodes by so much; none as long as nothing is learnt."""
        costs = self._fitted()
        return 0 if costs is None else int(min(self._limit - num_decodes, seconds / max(costs[2], 1e-9)))

    @property
    def costs(self) -> list[float] | None:
        """Seconds of a step: its base, for each decode, for each prompt token; None before they are learnt."""
        return self._fitted()

    def _fitted(self) -> list[float] | None:
        """The costs, once there has been a step with prompts."""
        without, with_prompts = self._steps
        if self._costs is None and with_prompts:
            steps = np.array([*without, *with_prompts])
            self._costs = fit_costs(steps[:, :3], steps[:, 3])
        return self._costs

    def observe(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """Take in how long a step took."""
        self._steps[num_prompt_tokens > 0].append((1, num_decodes, num_prompt_tokens, seconds))
        self._costs = None


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
