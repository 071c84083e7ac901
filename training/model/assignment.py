"""Which tokens an expert takes: choices sorted by expert, in order of arrival, up to the expert's capacity.

All first choices arrive before all second ones, each in the order of the tokens (GShard, arXiv 2006.16668). What
arrives at a full expert passes it by. Padding arrives nowhere.

Shapes: N flat tokens, K choices of a token, E experts, M = K * N choices, number k * N + n; P places, sorted by expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Places:
    """The tokens of some experts, one behind the other.

    Attributes:
        counts: of each of these experts.
        choice_P: which choice a place is of.
        token_X: each place's token, [P + 1]; the last one stands for "no place" and names any token.
        place_KN: each choice's place; P if it has none.
    """

    counts: list[int]
    choice_P: torch.Tensor
    token_X: torch.Tensor
    place_KN: torch.Tensor


@dataclass(frozen=True, slots=True)
class Assignment:
    """The choices of all tokens.

    Attributes:
        sorted_M: choices by expert, then by arrival; those of padding at the end.
        arrived: choices of each expert.
        capacity: the most of them that an expert takes; None if it takes all.
        shape: K, N.
    """

    sorted_M: torch.Tensor
    arrived: list[int]
    capacity: int | None
    shape: tuple[int, int]

    @property
    def num_taken(self) -> list[int]:
        """Choices that each expert takes."""
        return [count if self.capacity is None else min(count, self.capacity) for count in self.arrived]

    def places(self, experts: Sequence[int]) -> Places:
        """The places of these experts, which are those of this rank."""
        starts, taken = [0, *accumulate(self.arrived)], self.num_taken
        counts = [taken[expert] for expert in experts]
        parts = [self.sorted_M[starts[expert] : starts[expert] + taken[expert]] for expert in experts]
        choice_P = torch.cat(parts)
        num_places, num_tokens = len(choice_P), self.shape[1]
        token_X = torch.zeros(num_places + 1, dtype=torch.int64, device=choice_P.device)
        torch.remainder(choice_P, num_tokens, out=token_X[:-1])
        place_M = torch.full_like(self.sorted_M, num_places)
        place_M[choice_P] = torch.arange(num_places, device=choice_P.device)
        return Places(counts, choice_P, token_X, place_M.view(self.shape))


def assign(ids_NK: torch.Tensor, is_token_N: torch.Tensor | None, num_experts: int, capacity: int | None) -> Assignment:
    """Sort the choices; `is_token_N` is None if there is no padding."""
    ids_KN = ids_NK.T
    if is_token_N is not None:
        ids_KN = ids_KN.where(is_token_N, num_experts)
    ids_M = ids_KN.flatten()
    arrived = torch.bincount(ids_M, minlength=num_experts)[:num_experts].tolist()
    return Assignment(ids_M.argsort(stable=True), arrived, capacity, (ids_KN.shape[0], ids_KN.shape[1]))


def expert_capacity(factor: float, num_tokens: int, top_k: int, num_experts: int) -> int:
    """The choices that an expert takes of a micro batch: `factor` times its even share, and at least 1."""
    return max(1, int(min(factor, num_experts) * num_tokens * top_k / num_experts))  # of num_experts, it takes all
