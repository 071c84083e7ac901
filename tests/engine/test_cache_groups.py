"""Groups of layers: each has one of its layers on each layer of the pool, at most."""

import pytest

from engine.cache_groups import View, group_layers
from kernels.attention_pattern import FULL, BlockSparseAttention, LocalAttention

LOCAL = LocalAttention(256)


def sparse(layer, num_random=3):
    return BlockSparseAttention(64, 1, 2, num_random, seed=0, layer=layer)


@pytest.mark.parametrize(
    ("patterns", "groups"),
    [
        ([FULL] * 3, [[0, 1, 2]]),
        ([sparse(i) for i in range(3)], [[0, 1, 2]]),
        ([FULL, LOCAL, LOCAL, LOCAL] * 2, [[0, 4], [1, 2], [3, 5], [6, 7]]),
        ([LOCAL, LOCAL, FULL], [[0], [1], [2]]),
        ([FULL] * 4 + [LOCAL] * 5, [[0, 1, 2, 3], [4, 5, 6, 7, 8]]),  # a group with a layer too few
        ([LOCAL, LocalAttention(8), sparse(2), sparse(3, 0), FULL], [[0], [1], [2], [3], [4]]),
    ],
)
def test_layers_that_keep_the_same_are_together(patterns, groups):
    made = group_layers(tuple(patterns))
    assert [list(group) for group in made.groups] == groups
    assert made.num_pool_layers == max(map(len, groups))
    for group in groups:
        assert [made.pool_layer_of[layer] for layer in group] == list(range(len(group)))
    for layer, pattern in enumerate(patterns):
        (number,) = (g for g, layers in enumerate(groups) if layer in layers)
        assert made.views[made.view_of[layer]] == View(number, pattern)
    assert len(set(made.views)) == len(made.views)


def test_groups_are_few_even_where_a_kind_has_one_layer():
    made = group_layers((FULL, *[LOCAL] * 40))
    assert len(made.groups) <= 8
    assert sorted(layer for group in made.groups for layer in group) == list(range(41))


def test_layers_of_one_group_and_pattern_share_a_view_and_others_do_not():
    made = group_layers((FULL, FULL, LOCAL, LOCAL))
    assert made.view_of == (0, 0, 1, 1)
    assert group_layers(tuple(sparse(i) for i in range(3))).view_of == (0, 1, 2)
    assert group_layers((LOCAL, LOCAL, FULL)).view_of == (0, 1, 2)
