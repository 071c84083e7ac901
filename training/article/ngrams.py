"""What a model must beat: a unigram and a bigram of the same tokens.

The bigram is Kneser and Ney's, interpolated: a pair that was seen loses a discount, which its first token gives to all
tokens by how many different tokens they follow, and these in turn to the uniform distribution. No token has
probability 0, so both have a finite loss on any text.

Shapes: N pairs of neighbours in a text, V vocab.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Unigram:
    """The share of each token; one count is added to each."""

    log_shares_V: Floats

    @classmethod
    def of(cls, following_N: Ids, vocab_size: int) -> Unigram:
        """Count the tokens of a text."""
        counts_V = np.bincount(following_N, minlength=vocab_size) + 1
        return cls(np.log(counts_V / counts_V.sum()))

    def loss(self, following_N: Ids) -> float:
        """Return the mean cross-entropy in nats."""
        return -float(self.log_shares_V[following_N].mean())


@dataclass(frozen=True)
class Bigram:
    """Pairs that were seen, sorted by first * vocab + second, with what is left of their share after the discount.

    Attributes:
        given_V: what each first token gives to the lower order; 1 if it was never first.
        lower_V: the lower order's probabilities.
    """

    pairs: Ids
    shares: Floats
    given_V: Floats
    lower_V: Floats

    @classmethod
    def of(cls, first_N: Ids, following_N: Ids, vocab_size: int) -> Bigram:
        """Count the pairs of a text."""
        pairs, counts = np.unique(first_N * vocab_size + following_N, return_counts=True)
        first, second = np.divmod(pairs, vocab_size)
        discount = _discount(counts)
        totals_V = np.bincount(first, counts, minlength=vocab_size)
        followers_V = np.bincount(first, minlength=vocab_size)
        given_V = np.where(totals_V > 0, discount * followers_V / np.maximum(totals_V, 1), 1.0)
        kept_V = np.maximum(np.bincount(second, minlength=vocab_size) - discount, 0) / len(pairs)
        lower_V = kept_V + (1 - kept_V.sum()) / vocab_size
        return cls(pairs, (counts - discount) / totals_V[first], given_V, lower_V)

    def log_probabilities(self, first_N: Ids, following_N: Ids) -> Floats:
        """Of each following token, given the one before it."""
        keys = first_N * len(self.lower_V) + following_N
        at = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
        shares = np.where(self.pairs[at] == keys, self.shares[at], 0.0)
        logs: Floats = np.log(shares + self.given_V[first_N] * self.lower_V[following_N])
        return logs

    def loss(self, first_N: Ids, following_N: Ids) -> float:
        """Return the mean cross-entropy in nats."""
        return -float(self.log_probabilities(first_N, following_N).mean())


def _discount(counts: NDArray[np.int64]) -> float:
    """Ney's estimate from how many pairs were seen once and twice."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once else 0.5
