"""Unigram and bigram: distributions that sum to 1, close to what made the text, and finite on what was never seen."""

from __future__ import annotations

import numpy as np
import pytest

from training.article.ngrams import Bigram, Unigram

VOCAB = 12


def chain(length: int, seed: int, transitions: np.ndarray) -> np.ndarray:
    """Tokens of a Markov chain."""
    rng = np.random.default_rng(seed)
    ids = [0]
    for _ in range(length - 1):
        ids.append(int(rng.choice(VOCAB, p=transitions[ids[-1]])))
    return np.array(ids)


@pytest.fixture(scope="module")
def transitions() -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.full(VOCAB, 0.3), VOCAB)


def test_probabilities_of_what_may_follow_sum_to_1(transitions: np.ndarray) -> None:
    ids = chain(200, 1, transitions)
    bigram = Bigram.of(ids[:-1], ids[1:], VOCAB + 1)  # a token more than there ever was
    for first in range(VOCAB + 1):
        probabilities = np.exp(bigram.log_probabilities(np.full(VOCAB + 1, first), np.arange(VOCAB + 1)))
        assert probabilities.sum() == pytest.approx(1.0)
        assert probabilities.min() > 0
    assert np.exp(Unigram.of(ids, VOCAB + 1).log_shares_V).sum() == pytest.approx(1.0)


def test_losses_approach_the_entropy_of_what_made_the_text(transitions: np.ndarray) -> None:
    ids, held_out = chain(8000, 1, transitions), chain(4000, 3, transitions)
    entropy = -np.log(transitions[held_out[:-1], held_out[1:]]).mean()
    bigram = Bigram.of(ids[:-1], ids[1:], VOCAB).loss(held_out[:-1], held_out[1:])
    unigram = Unigram.of(ids[1:], VOCAB).loss(held_out[1:])
    assert entropy <= bigram < entropy + 0.02 < unigram


def test_text_of_unseen_tokens_has_a_finite_loss() -> None:
    bigram = Bigram.of(np.array([0, 1, 0]), np.array([1, 0, 1]), 5)
    assert np.isfinite(bigram.loss(np.array([3, 4, 3]), np.array([4, 3, 0])))
