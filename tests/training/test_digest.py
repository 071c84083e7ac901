from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from training.digest import digest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("size", "places"), [(1, [0]), (100_000, [0, 70_000, 99_999]), (9_000_000, [0, 8_999_999])])
def test_a_change_that_keeps_the_size_is_seen(tmp_path: Path, size: int, places: list[int]) -> None:
    path, content = tmp_path / "a", bytearray(size)
    path.write_bytes(content)
    before = digest([path])
    assert digest([path.rename(tmp_path / "b").rename(path)]) == before
    for place in places:
        content[place] ^= 1
        path.write_bytes(content)
        assert digest([path]) != before
        content[place] ^= 1


def test_the_order_and_the_ends_of_files_count(tmp_path: Path) -> None:
    for name, content in {"a": b"12", "b": b"3", "c": b"1", "d": b"23"}.items():
        (tmp_path / name).write_bytes(content)
    found = {digest(tmp_path / name for name in names) for names in ("ab", "ba", "cd", "a", "")}
    assert len(found) == 5
