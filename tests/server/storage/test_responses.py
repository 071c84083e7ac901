"""Stored responses: each tenant's own, for a time, and bounded in number and bytes."""

import pytest

from server.storage.responses import KEPT_FOR, ResponseStore


@pytest.fixture
def clock():
    return [1000.0]


@pytest.fixture
def store(database, clock):
    return ResponseStore(database, 3, 100, clock=lambda: clock[0])


async def test_a_tenant_finds_its_own_until_it_is_deleted(store):
    await store.put(b"a", "r1", b"{}")
    assert await store.get(b"a", "r1") == b"{}"
    assert await store.get(b"b", "r1") is None
    assert not await store.delete(b"b", "r1")
    assert await store.delete(b"a", "r1")
    assert await store.get(b"a", "r1") is None


async def test_a_response_goes_after_its_time(store, clock):
    await store.put(b"a", "r1", b"{}")
    clock[0] += KEPT_FOR
    assert await store.get(b"a", "r1") is None


@pytest.mark.parametrize(("size", "left"), [(10, ["r2", "r3", "r4"]), (40, ["r3", "r4"]), (101, [])])
async def test_the_oldest_make_room(store, size, left):
    for number in range(5):
        await store.put(b"a", f"r{number}", bytes(size))
    assert [f"r{n}" for n in range(5) if await store.get(b"a", f"r{n}") is not None] == left
