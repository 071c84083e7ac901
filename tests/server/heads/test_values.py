"""From logits to scores, and from vectors to embeddings and cosines."""

from array import array

import pytest

from server.heads.values import cosine, paired, scores_of, shortened


def test_scores():
    assert scores_of([1000.0, 1000.0], "softmax") == [0.5, 0.5]
    assert scores_of([0.0, 1000.0, -1000.0], "sigmoid") == [0.5, 1.0, 0.0]
    assert sum(scores_of([1.0, 2.0, 3.0], "softmax")) == pytest.approx(1)
    assert scores_of([1.5], "none") == [1.5]


def test_shortened_and_cosine():
    assert shortened([3.0, 4.0, 12.0], 2, normalize=True).tolist() == pytest.approx([0.6, 0.8])
    assert shortened([3.0, 4.0], None, normalize=False).tolist() == [3, 4]
    assert shortened([0.0, 0.0], None, normalize=True).tolist() == [0, 0]
    assert cosine(array("f", [1.0000001, 0]), array("f", [1, 0])) == 1


def test_paired():
    assert paired(["a"], ["b", "c"]) == [("a", "b"), ("a", "c")]
    assert paired(["a", "b"], ["c", "d"]) == [("a", "c"), ("b", "d")]
