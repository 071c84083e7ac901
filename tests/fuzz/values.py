"""Values as hostile files have them, and files with such values somewhere inside; FUZZ_EXAMPLES of them for a test."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
FUZZ = settings(
    max_examples=_EXAMPLES,
    deadline=5000,  # milliseconds for one input, on a busy machine
    derandomize=_EXAMPLES <= 100,  # the same ones in each run, where they are few
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    print_blob=True,
)
Path = tuple[Any, ...]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10),
    st.sampled_from([1 << 31, 1 << 63, -(1 << 63), 10**30, 1e308, float("inf"), float("nan"), 0.5]),
    st.text(max_size=8),
    st.sampled_from(["float32", "silu", "yarn", "🙂", "\ud800", "\0", "a" * 10_000]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def paths(tree: Any, before: Path = ()) -> Iterator[Path]:
    """The way to each value in a tree."""
    yield before
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from paths(value, (*before, key))


def replaced(tree: Any, path: Path, value: Any) -> Any:
    """The tree with another value in one place."""
    if not path:
        return value
    tree = copy.deepcopy(tree)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return tree


def damaged(tree: Any) -> st.SearchStrategy[Any]:
    """The tree with other values in one to three places."""
    places = [path for path in paths(tree) if path]
    changes = st.lists(st.tuples(st.sampled_from(places), values), min_size=1, max_size=3)

    def apply(pairs: list[tuple[Path, Any]]) -> Any:
        result = tree
        for path, value in pairs:
            try:
                result = replaced(result, path, value)
            except (LookupError, TypeError):  # a change before took this place away
                continue
        return result

    return changes.map(apply)


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """Bytes that are cut, overwritten, or repeated in some places."""
    place = st.integers(0, len(content))
    edit = st.tuples(place, st.integers(0, 8), st.binary(max_size=9))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        result = content
        for start, length, new in edits:
            result = result[:start] + new + result[start + length :]
        return result

    return st.lists(edit, min_size=1, max_size=4).map(apply)
