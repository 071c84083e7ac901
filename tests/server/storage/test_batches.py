"""Leases: a batch has one server at a time, and what another one writes does not count."""

import pytest
from sqlalchemy.exc import IntegrityError

from engine.errors import StorageError
from server.storage.batches import LEASE, BatchStore, LeaseLostError, Result
from server.storage.files import OUTPUT, FileStore

VALUES = {
    "key_name": "none",
    "weight": 1.0,
    "model": "m",
    "endpoint": "/v1/completions",
    "completion_window": "24h",
    "input_file_id": "file-x",
}


@pytest.fixture
def clock():
    return [1000.0]


@pytest.fixture
def stores(database, clock):
    """Those of two servers on one database."""
    return [BatchStore(database, 100, clock=lambda: clock[0]) for _ in range(2)]


async def make(store, tenant=b"", **values):
    return (await store.create(tenant, VALUES | values)).id


async def test_a_batch_is_claimed_once_and_by_a_server_of_its_model(stores):
    one, two = stores
    batch_id = await make(one)
    assert await one.claim("another", set(), set()) is None
    assert (await one.claim("m", set(), set())).id == batch_id
    assert await two.claim("m", set(), set()) is None
    assert await one.claim("m", {batch_id}, set()) is None
    await one.release(batch_id)
    assert (await two.claim("m", set(), set())).id == batch_id


async def test_the_oldest_of_a_tenant_that_is_not_busy_comes_first(stores):
    one, _ = stores
    first, second = await make(one, b"a"), await make(one, b"a")
    third = await make(one, b"b")
    claimed = []
    for busy in (set(), {b"a".hex()}, {b"a".hex(), b"b".hex()}):
        claimed.append((await one.claim("m", set(claimed), busy)).id)
    assert claimed == [first, third, second]


async def test_a_lease_that_is_not_renewed_is_lost(stores, clock):
    one, two = stores
    batch_id = await make(one)
    await one.claim("m", set(), set())
    assert await one.begin(batch_id, 2) == "in_progress"
    clock[0] += LEASE - 1
    assert await one.renew(batch_id) == "in_progress"
    clock[0] += LEASE - 1
    assert await two.claim("m", set(), set()) is None
    clock[0] += 1
    assert (await two.claim("m", set(), set())).status == "in_progress"
    for late in (
        one.renew(batch_id),
        one.save(batch_id, [Result(1, b"late", is_error=False)]),
        one.finalize(batch_id),
        one.end(batch_id, "completed", 1),
        one.release(batch_id),
    ):
        with pytest.raises(LeaseLostError):
            await late
    assert await two.finished(batch_id) == set()
    await two.save(batch_id, [Result(1, b"x", is_error=False)])
    assert (await two.get(b"", batch_id)).num_completed == 1


async def test_a_clock_that_was_set_back_does_not_hold_a_batch_for_ever(stores, clock):
    one, two = stores
    await make(one)
    await one.claim("m", set(), set())
    clock[0] -= 3600
    assert await two.claim("m", set(), set()) is not None


async def test_results_are_kept_once_and_become_files_in_order(stores, database):
    one, _ = stores
    batch_id = await make(one, output_expires_after=50)
    await one.claim("m", set(), set())
    await one.begin(batch_id, 3)
    await one.save(batch_id, [Result(3, b"c\n", is_error=False), Result(1, b"a\n", is_error=False, output_tokens=5)])
    with pytest.raises(StorageError) as caught:
        await one.save(batch_id, [Result(2, b"b\n", is_error=True), Result(3, b"again\n", is_error=True)])
    assert isinstance(caught.value.__cause__, IntegrityError)
    await one.save(batch_id, [Result(2, b"b\n", is_error=True)])
    row = await one.get(b"", batch_id)
    assert (row.num_completed, row.num_failed, row.num_output_tokens) == (2, 1, 5)
    assert await one.finished(batch_id) == {1, 2, 3}
    assert await one.finalize(batch_id) == "finalizing"
    await one.end(batch_id, "completed", 1000)
    row = await one.get(b"", batch_id)
    assert row.status == "completed"
    files = FileStore(database, 10, 1000, clock=lambda: 1000.0)
    output = await files.get(b"", row.output_file_id)
    assert (output.bytes, output.expires_at, output.purpose) == (4, 1050, "batch_output")
    assert [part async for part in files.content(batch_id, OUTPUT)] == [b"a\n", b"c\n"]


async def test_batches_that_ended_are_forgotten_after_a_month(stores, clock):
    one, _ = stores
    ended, live = await make(one), await make(one, model="other")
    await one.claim("m", set(), set())
    await one.fail(ended, [])
    assert await one.counts() == {"validating": 1, "in_progress": 0, "finalizing": 0, "cancelling": 0}
    clock[0] += 30 * 86400
    await one.forget_old()
    rows, _ = await one.page(b"", after=None, limit=10)
    assert [row.id for row in rows] == [live]


async def test_a_long_content_is_read_piece_by_piece(database, monkeypatch):
    store = FileStore(database, 10, 1 << 30)
    async with store.upload(b"") as upload:
        for number in range(50):
            await upload.write(b"%02d" % number)
        file = await upload.finish("x", "batch", None)
    monkeypatch.setattr("server.storage.files._MAX_READ", 7)
    assert [part async for part in store.content(file.id, file.kind)] == [b"%02d" % n for n in range(50)]
    monkeypatch.setattr("server.storage.files._MAX_ROWS", 1)
    assert [part async for part in store.content(file.id, file.kind)] == [b"%02d" % n for n in range(50)]
