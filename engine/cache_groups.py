"""Which layers share a block table, and which tensor of the KV pool each layer uses. No torch; knows no sequences.

Layers that must keep the same of a sequence form a group, with a block table of its own. All groups have the same
number of layers (some are padded), so that a block of the one pool serves any of them: layer j of a group uses layer j
of the pool, whichever group it is. A model whose layers are all alike has one group, and the pool a layer for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from engine.retention import Readers, Window, Windows
from kernels.attention_pattern import AttentionPattern, BlockSparseAttention, LocalAttention

_MOST_GROUPS = 8  # each costs a block table and a slot mapping in every step


@dataclass(frozen=True)
class View:
    """What attention layers have in common that need one plan a step: the group, whose blocks they read, and how."""

    group: int
    pattern: AttentionPattern


@dataclass(frozen=True)
class CacheGroups:
    """The groups of a model's layers.

    Attributes:
        groups: the layers of each group, in order.
        num_pool_layers: layers that the KV pool needs.
        pool_layer_of: by layer, which of those it uses.
        views: the different ones that layers have.
        view_of: by layer, the number of its view.
    """

    groups: tuple[tuple[int, ...], ...]
    num_pool_layers: int
    pool_layer_of: tuple[int, ...]
    views: tuple[View, ...]
    view_of: tuple[int, ...]

    def windows(self, block_size: int) -> Windows:
        """What each group keeps of a sequence, in blocks of this size; None is all.

        Raises:
            ValueError: a block is larger than a sparse block, or no part of one.
        """
        return tuple(
            _window([view.pattern for view in self.views if view.group == group], block_size)
            for group in range(len(self.groups))
        )

    @property
    def sparse_block_sizes(self) -> set[int]:
        """The sizes of which a block of the pool must be a divisor."""
        patterns = [view.pattern for view in self.views]
        return {pattern.block_size for pattern in patterns if isinstance(pattern, BlockSparseAttention)}


@cache
def group_layers(patterns: tuple[AttentionPattern, ...]) -> CacheGroups:
    """Group the layers with these patterns, one a layer.

    The size of a group is the one that pads the fewest layers in at most 8 groups, and of these the largest.
    """
    kinds: dict[object, list[int]] = {}
    for layer, pattern in enumerate(patterns):
        kinds.setdefault(_kind(pattern), []).append(layer)

    def cost(size: int) -> tuple[bool, int, int]:
        num_groups = sum(-(-len(layers) // size) for layers in kinds.values())
        return num_groups > max(_MOST_GROUPS, len(kinds)), num_groups * size - len(patterns), -size

    size = min(range(1, max(map(len, kinds.values())) + 1), key=cost)
    groups = tuple(tuple(layers[i : i + size]) for layers in kinds.values() for i in range(0, len(layers), size))
    place_of = {layer: (g, j) for g, layers in enumerate(groups) for j, layer in enumerate(layers)}
    places = [place_of[layer] for layer in range(len(patterns))]
    views = [View(group, pattern) for (group, _), pattern in zip(places, patterns, strict=True)]
    distinct = tuple(dict.fromkeys(views))
    return CacheGroups(groups, size, tuple(j for _, j in places), distinct, tuple(map(distinct.index, views)))


def _kind(pattern: AttentionPattern) -> object:
    """What of a sequence a layer must keep: equal for layers that can be in one group."""
    if isinstance(pattern, BlockSparseAttention):  # whichever blocks the random ones are, some query may see them
        return pattern.block_size, pattern.num_global, pattern.num_local, pattern.num_random
    return pattern


def _window(patterns: list[AttentionPattern], block_size: int) -> Window | None:
    """What layers of one kind, with these patterns, keep together."""
    match patterns[0]:
        case LocalAttention(window):
            return Window(block_size, window)
        case BlockSparseAttention() as first:
            if first.block_size % block_size:
                raise ValueError(f"blocks of {block_size} are no part of sparse blocks of {first.block_size}")
            sparse = [pattern for pattern in patterns if isinstance(pattern, BlockSparseAttention)]
            return Window(
                block_size,
                max(1, first.num_local),  # a block is kept while it is written, whoever sees it
                unit=first.block_size,
                num_first=first.num_global * first.block_size // block_size,
                readers=Readers(sparse, first.num_global) if first.num_random else None,
            )
        case _:
            return None
