"""Batches from upload to files, over the API."""

import asyncio
import json
import time
from collections import Counter

import pytest

from engine.errors import StorageError
from server.batches.in_process import ask
from server.batches.run import BatchRun
from server.http.api_keys import ApiKeys, Caller
from server.storage.batches import BatchStore
from tests.server.batches.conftest import jsonl, line
from tests.server.conftest import check_error


async def test_a_batch_runs_and_its_files_are_in_the_order_of_the_input(batches):
    lines = [line(i) for i in range(50)]
    batch = await batches.run(lines, metadata={"a": "b"})
    assert batch["status"] == "completed", batch["errors"]
    assert batch["request_counts"] == {"total": 50, "completed": 50, "failed": 0}
    assert batch["metadata"] == {"a": "b"}
    assert batch["error_file_id"] is None
    results = await batches.results(batch)
    assert [result["custom_id"] for result in results] == [one["custom_id"] for one in lines]
    for one, result in zip(lines, results, strict=True):
        assert result["error"] is None
        assert result["response"]["status_code"] == 200
        alone = await batches.api.ask("/v1/completions", **one["body"])
        assert result["response"]["body"]["choices"] == alone["choices"]
    assert batch["usage"]["output_tokens"] == 150
    assert batch["usage"]["input_tokens"] == sum(r["response"]["body"]["usage"]["prompt_tokens"] for r in results)


async def test_what_a_request_is_refused_for_is_its_lines_error(batches):
    lines = [
        line(0),
        line(1, temperature=3),
        line(2, stream=True),
        line(3, prompt="x" * 100_000),
        line(4, unheard_of=1),
        line(5, timeout=1e-9),
    ]
    batch = await batches.run(lines)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 6, "completed": 1, "failed": 5}
    assert [r["custom_id"] for r in await batches.results(batch)] == ["id-0"]
    errors = await batches.results(batch, "error")
    assert [error["custom_id"] for error in errors] == ["id-1", "id-2", "id-3", "id-4", "id-5"]
    assert [error["response"]["status_code"] for error in errors] == [400, 400, 400, 400, 408]
    assert [error["response"]["body"]["error"]["param"] for error in errors] == [
        *("temperature", "stream", "prompt", "unheard_of", "timeout")
    ]
    assert all(error["error"] is None for error in errors)


CHAT = {"url": "/v1/chat/completions", "messages": [{"role": "user", "content": "hi"}], "prompt": None}


async def test_chats_run_as_batches_too(batches):
    batch = await batches.run([line(0, **CHAT)], endpoint="/v1/chat/completions")
    [result] = await batches.results(batch)
    assert result["response"]["body"]["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], ("empty_file", None, None)),
        ([line(0), b"{}\n"], ("missing_required_parameter", 2, "custom_id")),
        ([line(0), b"\n", b"{\n"], ("invalid_json_line", 3, None)),
        ([line(0), b"[]\n"], ("invalid_json_line", 2, None)),
        ([b'{"custom_id": "\xff"}\n'], ("invalid_json_line", 1, None)),
        ([b"[" * 1900], ("invalid_json_line", 1, None)),
        ([line(0), line(0)], ("duplicate_custom_id", 2, "custom_id")),
        ([line(0) | {"custom_id": 5}], ("invalid_custom_id", 1, "custom_id")),
        ([line(0) | {"method": "GET"}], ("invalid_method", 1, "method")),
        ([line(0, url="/v1/chat/completions")], ("invalid_url", 1, "url")),
        ([line(0) | {"body": "x"}], ("invalid_type", 1, "body")),
        ([line(0) | {"body": None}], ("missing_required_parameter", 1, "body")),
        ([line(0, model="gpt-4")], ("model_not_found", 1, "body.model")),
        ([line(0, prompt="x" * 3000)], ("line_too_long", 1, None)),
        ([line(i) for i in range(21)], ("too_many_requests", None, None)),
    ],
)
async def test_a_file_that_is_not_valid_fails_whole(start, lines, expected):
    batches = await start(max_body_size=2000 / (1 << 20), max_batch_lines=20)
    batch = await batches.run(lines)
    assert batch["status"] == "failed"
    [error] = batch["errors"]["data"]
    assert (error["code"], error["line"], error["param"]) == expected
    assert batch["output_file_id"] is batch["error_file_id"] is batch["in_progress_at"] is None
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}


async def test_errors_are_bounded(batches):
    batch = await batches.run([b"{}\n"] * 1000)
    assert [error["line"] for error in batch["errors"]["data"]] == list(range(1, 101))


async def test_a_batch_is_cancelled_and_keeps_what_is_finished(batches):
    batch = await batches.create([line(0), *(line(i, max_tokens=400) for i in range(1, 60))])
    while (await batches.get(batch))["request_counts"]["completed"] == 0:
        await asyncio.sleep(0.002)
    response = await batches.http.post(f"/v1/batches/{batch['id']}/cancel")
    assert response.json()["status"] == "cancelling"
    again = await batches.http.post(f"/v1/batches/{batch['id']}/cancel")
    assert again.json()["status"] in ("cancelling", "cancelled") or again.status_code == 400
    ended = await batches.end_of(batch)
    counts = ended["request_counts"]
    assert ended["status"] == "cancelled"
    assert ended["cancelling_at"] <= ended["cancelled_at"]
    assert 1 <= counts["completed"] < 60
    assert counts["completed"] + counts["failed"] == counts["total"] == 60
    finished, errors = await batches.results(ended), await batches.results(ended, "error")
    assert {r["custom_id"] for r in finished + errors} == {f"id-{i}" for i in range(60)}
    assert {error["error"]["code"] for error in errors} == {"batch_cancelled"}
    assert all(error["response"] is None for error in errors)
    late = await batches.http.post(f"/v1/batches/{batch['id']}/cancel")
    check_error(late, 400, param="batch_id")


async def test_a_batch_that_nobody_validated_yet_can_be_cancelled(start):
    batches = await start(run=False)
    batch = await batches.create([line(0)])
    await batches.http.post(f"/v1/batches/{batch['id']}/cancel")
    batches.start()
    ended = await batches.end_of(batch)
    assert (ended["status"], ended["output_file_id"], ended["error_file_id"]) == ("cancelled", None, None)


async def test_a_batch_expires_and_keeps_what_is_finished(start):
    batches = await start(run=False)
    clock = [time.time()]
    batches.runner.storage.batches._clock = lambda: clock[0]
    batch = await batches.create([line(0), *(line(i, max_tokens=400) for i in range(1, 60))])
    batches.start()
    while (await batches.get(batch))["request_counts"]["completed"] == 0:
        await asyncio.sleep(0.002)
    clock[0] += 86400
    batches.runner.wake()
    ended = await batches.end_of(batch)
    assert ended["status"] == "expired"
    assert {error["error"]["code"] for error in await batches.results(ended, "error")} == {"batch_expired"}
    assert await batches.results(ended)


async def test_a_file_may_be_deleted_while_its_batch_runs(batches):
    batch = await batches.create([line(i, max_tokens=50) for i in range(60)])
    file = f"/v1/files/{batch['input_file_id']}"
    assert (await batches.http.delete(file)).json() == {
        "id": batch["input_file_id"],
        "object": "file",
        "deleted": True,
    }
    check_error(await batches.http.get(file), 404)
    ended = await batches.end_of(batch)
    assert ended["request_counts"] == {"total": 60, "completed": 60, "failed": 0}
    files = batches.runner.storage.files
    await files.sweep()
    assert [part async for part in files.content(batch["input_file_id"], 0)] == []
    assert len(await batches.results(ended)) == 60


async def test_what_a_running_batch_has_written_counts_among_the_files(start, monkeypatch):
    stopped = asyncio.Event()

    async def wordy(app, path, body, caller):
        if b"wait" in body:
            await stopped.wait()
        return 400, b'"%s"' % (b"x" * 20_000)

    monkeypatch.setattr("server.batches.run.ask", wordy)
    batches = await start(max_files_size=50_000 / (1 << 20))
    batch = await batches.create([*(line(i) for i in range(3)), line(3, prompt="wait")])
    while (await batches.get(batch))["request_counts"]["failed"] < 3:
        await asyncio.sleep(0.002)
    body = {"input_file_id": batch["input_file_id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    check_error(await batches.http.post("/v1/batches", json=body), 400, code="storage_limit_exceeded")
    stopped.set()
    assert (await batches.end_of(batch))["request_counts"]["failed"] == 4
    check_error(await batches.http.post("/v1/batches", json=body), 400, code="storage_limit_exceeded")


async def test_batches_share_the_engine(batches):
    first = await batches.create([line(i, max_tokens=20) for i in range(300)])
    second = await batches.create([line(i) for i in range(30)])
    assert (await batches.end_of(second))["status"] == "completed"
    assert (await batches.get(first))["status"] == "in_progress"
    await batches.http.post(f"/v1/batches/{first['id']}/cancel")
    assert (await batches.end_of(first))["status"] == "cancelled"


async def test_each_key_sees_its_own(start):
    keys = ApiKeys([Caller.of_key("a", 1.0, "anna"), Caller.of_key("b", 1.0, "bert")])
    batches = await start(keys=keys)
    http = batches.http
    http.headers["Authorization"] = "Bearer a"
    batch = await batches.run([line(0)])
    assert await batches.api.metric("key_generation_tokens_total", key="anna") == 3
    http.headers["Authorization"] = "Bearer b"
    for path in ("/v1/files", "/v1/batches"):
        assert (await http.get(path)).json()["data"] == []
    for path in (
        f"/v1/files/{batch['input_file_id']}",
        f"/v1/files/{batch['output_file_id']}/content",
        f"/v1/batches/{batch['id']}",
    ):
        check_error(await http.get(path), 404)
    check_error(await http.delete(f"/v1/files/{batch['output_file_id']}"), 404)
    check_error(await http.post(f"/v1/batches/{batch['id']}/cancel"), 404)
    body = {"input_file_id": batch["input_file_id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    check_error(await http.post("/v1/batches", json=body), 404, param="file_id")
    http.headers["Authorization"] = "Bearer a"
    assert len((await http.get("/v1/batches")).json()["data"]) == 1


async def test_a_stopped_server_goes_on_later_and_runs_no_finished_line_again(start, monkeypatch):
    first = await start()
    asked = Counter()

    async def counted(app, path, body, caller):
        answer = await ask(app, path, body, caller)
        asked[json.loads(body)["prompt"]] += 1
        return answer

    monkeypatch.setattr("server.batches.run.ask", counted)
    batch = await first.create([line(i, max_tokens=8) for i in range(100)])
    for completed in (1, 40):
        while (await first.get(batch))["request_counts"]["completed"] < completed:
            await asyncio.sleep(0.002)
        await first.stop()
        assert first.runner.slots.num_taken == 0
        first = await start()
    ended = await first.end_of(batch)
    assert ended["request_counts"] == {"total": 100, "completed": 100, "failed": 0}
    assert [r["custom_id"] for r in await first.results(ended)] == [f"id-{i}" for i in range(100)]
    assert set(asked.values()) == {1}


async def test_a_stop_waits_for_results_that_are_being_committed(batches, monkeypatch):
    store, saving, may_save = batches.runner.storage.batches, asyncio.Event(), asyncio.Event()
    save = store.save

    async def slow(batch_id, results):
        saving.set()
        await may_save.wait()
        await save(batch_id, results)

    monkeypatch.setattr(store, "save", slow)
    batch = await batches.create([line(i, max_tokens=8) for i in range(60)])
    await saving.wait()
    ended = asyncio.create_task(batches.stop())
    for _ in range(3):  # the drain's stop, the end of the server, and whatever else
        await asyncio.sleep(0.01)
        batches.runner.stop()
    batches.cancel()
    await asyncio.sleep(0.01)
    assert not ended.done()
    may_save.set()
    await ended
    assert batches.runner.slots.num_taken == 0
    assert (await batches.get(batch))["request_counts"]["completed"] > 0
    assert (await store.get(b"", batch["id"])).lease_owner is None


async def test_lines_that_fail_with_the_engine_are_run_again(batches):
    batch = await batches.create([line(i, max_tokens=100) for i in range(30)])
    while batches.runner.slots.num_taken < 10:
        await asyncio.sleep(0.002)
    batches.api.client.fail_all("The engine died.")
    ended = await batches.end_of(batch)
    assert ended["request_counts"] == {"total": 30, "completed": 30, "failed": 0}


async def test_a_line_that_kills_the_engine_each_time_is_given_up(batches, monkeypatch):
    async def deadly(app, path, body, caller):
        if b"deadly" in body:
            return 503, b'{"error": {}}'
        return await ask(app, path, body, caller)

    monkeypatch.setattr("server.batches.run.ask", deadly)
    batch = await batches.run([line(0), line(1, prompt="deadly"), line(2)])
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    [error] = await batches.results(batch, "error")
    assert error["response"]["status_code"] == 503


async def test_lines_wait_for_no_admission_and_count_in_no_latency(start):
    batches = await start(max_queued_requests=1, queue_timeout=1e-9)
    batch = await batches.run([line(i) for i in range(40)])
    assert batch["request_counts"]["completed"] == 40
    assert await batches.api.metric("time_to_first_token_seconds_count") == 0
    assert await batches.api.metric("generation_tokens_total") == 120
    assert await batches.api.metric("batch_lines_total", result="output") == 40
    assert await batches.api.metric("batches_ended_total", status="completed") == 1
    assert await batches.api.metric("batch_lines_in_flight") == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"endpoint": "/v1/images/generations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after"),
        ({"else": 1}, "else"),
    ],
)
async def test_a_bad_parameter_is_named(start, body, param):
    batches = await start(run=False)
    file = await batches.upload(jsonl([line(0)]))
    good = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    check_error(await batches.http.post("/v1/batches", json=good | body), 400, param=param)


async def test_only_a_batch_file_makes_a_batch(start):
    batches = await start(run=False)
    file = await batches.upload(b"x", "user_data")
    body = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    check_error(await batches.http.post("/v1/batches", json=body), 400, param="input_file_id")


async def test_batches_are_listed_by_pages_and_bounded(start):
    batches = await start(run=False, max_batches=5)
    made = [(await batches.create([line(0)]))["id"] for _ in range(5)][::-1]
    page = (await batches.http.get("/v1/batches", params={"limit": 2})).json()
    assert ([b["id"] for b in page["data"]], page["has_more"]) == (made[:2], True)
    page = (await batches.http.get("/v1/batches", params={"limit": 3, "after": made[1]})).json()
    assert ([b["id"] for b in page["data"]], page["has_more"]) == (made[2:], False)
    check_error(await batches.http.get("/v1/batches", params={"after": "x"}), 404)
    check_error(await batches.http.get("/v1/batches", params={"limit": 101}), 400, param="limit")
    file = (await batches.http.get("/v1/files")).json()["data"][0]["id"]
    body = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
    check_error(await batches.http.post("/v1/batches", json=body), 400, code="storage_limit_exceeded")


async def test_responses_run_as_batches_too(batches):
    body = {"input": "hi", "max_output_tokens": 3, "prompt": None, "max_tokens": None, "ignore_eos": True}
    batch = await batches.run([line(0, "/v1/responses", **body)], endpoint="/v1/responses")
    assert batch["request_counts"]["completed"] == 1, await batches.results(batch, "error")
    [result] = await batches.results(batch)
    assert result["response"]["body"]["object"] == "response"
    assert batch["usage"]["output_tokens"] == 3
    stored = await batches.http.get(f"/v1/responses/{result['response']['body']['id']}")
    assert stored.status_code == 200


def request_of(number, url, **body):
    return {"custom_id": f"id-{number}", "method": "POST", "url": url, "body": body}


async def test_embeddings_and_ranks_run_as_batches_too(batches):
    lines = [request_of(i, "/v1/embeddings", input=["a", "b" * i]) for i in range(1, 4)]
    batch = await batches.run([*lines, request_of(9, "/v1/embeddings", input="")], endpoint="/v1/embeddings")
    assert batch["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    results = await batches.results(batch)
    assert [len(result["response"]["body"]["data"]) for result in results] == [2, 2, 2]
    assert (batch["usage"]["input_tokens"], batch["usage"]["output_tokens"]) == (9, 0)
    rank = request_of(1, "/v1/rerank", query="a", documents=["b", "c"])
    batch = await batches.run([rank], endpoint="/v1/rerank")
    [result] = await batches.results(batch)
    assert len(result["response"]["body"]["results"]) == 2


async def test_lines_for_embeddings_count_with_what_they_ask_for(batches):
    size_of, width = batches.runner.size_of, batches.api.engine.info.hidden_size * 24
    assert size_of("/v1/completions", b"a,b") == 3
    assert size_of("/v1/embeddings", b'{"input": ["a", "b"]}') == 21 + 2 * width
    assert size_of("/v1/embeddings", b"," * 9000) == 9000 + 2048 * width


async def test_a_database_that_fails_for_a_while_only_delays(batches, monkeypatch, caplog):
    monkeypatch.setattr("server.batches.runner._POLL", 0.01)
    store, failures = batches.runner.storage.batches, [True, True]
    save = store.save

    async def failing(batch_id, results):
        if failures:
            failures.pop()
            raise StorageError("the disk is full")
        await save(batch_id, results)

    monkeypatch.setattr(store, "save", failing)
    batch = await batches.run([line(i) for i in range(60)])
    assert batch["request_counts"] == {"total": 60, "completed": 60, "failed": 0}
    assert [r["custom_id"] for r in await batches.results(batch)] == [f"id-{i}" for i in range(60)]
    assert "waits: the disk is full" in caplog.text


async def test_a_fault_of_ours_ends_no_other_batch(batches, monkeypatch, caplog):
    async def broken(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("server.batches.run.ask", broken)
        batch = await batches.create([line(0)])
        while "is left to another server" not in caplog.text:
            await asyncio.sleep(0.002)
    assert (await batches.run([line(1)]))["status"] == "completed"
    assert (await batches.get(batch))["status"] == "in_progress"
    assert batches.runner.slots.num_taken == 0


async def test_cancelling_at_any_moment_leaves_each_line_one_result(batches):
    made = []
    for number in range(12):
        made.append(await batches.create([line(i, max_tokens=1 + i % 20) for i in range(80)]))
        await asyncio.sleep(0.004 * number)
        await batches.http.post(f"/v1/batches/{made[-1]['id']}/cancel")
    for batch in made:
        ended = await batches.end_of(batch)
        counts = ended["request_counts"]
        assert ended["status"] in ("cancelled", "completed")
        assert counts["completed"] + counts["failed"] == counts["total"]
        lines = [await batches.results(ended), await batches.results(ended, "error")]
        assert list(map(len, lines)) == [counts["completed"], counts["failed"]]
        assert len({result["custom_id"] for result in lines[0] + lines[1]}) == counts["total"]


async def test_another_server_goes_on_when_a_lease_is_lost(start, monkeypatch):
    monkeypatch.setattr("server.batches.run.LEASE", 0.03)
    batches = await start()
    batch = await batches.create([line(i, max_tokens=100) for i in range(60)])
    while (await batches.get(batch))["request_counts"]["completed"] == 0:
        await asyncio.sleep(0.002)
    thief = BatchStore(batches.runner.storage.database, 10, clock=lambda: time.time() + 60)
    assert await thief.claim("tiny", set(), set()) is not None
    while batches.runner.slots.num_taken:
        await asyncio.sleep(0.002)
    before = await batches.get(batch)
    await asyncio.sleep(0.05)
    assert (await batches.get(batch))["request_counts"] == before["request_counts"]
    await thief.release(batch["id"])
    batches.runner.wake()
    assert (await batches.end_of(batch))["request_counts"]["completed"] == 60


async def test_a_runner_ends_also_where_the_engine_never_started(serve):
    api = await serve(run=False)
    running = asyncio.create_task(api.app.state.batches.run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_runner_that_fails_says_so_and_tries_again(start, monkeypatch, caplog):
    batches = await start(run=False)
    batch = await batches.create([line(0)])
    begin = batches.runner._begin
    monkeypatch.setattr(batches.runner, "_begin", None)
    batches.start()
    async with asyncio.timeout(20):
        while batches.runner.problem is None:
            await asyncio.sleep(0.002)
        response = await batches.http.get("/health")
        assert response.json() == {"status": "ready", "problem": "no batches are run: TypeError"}
        assert response.status_code == 200  # for all else it is
        assert await batches.api.metric("batch_faults_total") == 1
        assert "no batches are run; they are tried again in 10 s" in caplog.text
        monkeypatch.setattr(batches.runner, "_begin", begin)
        await batches.runner.storage.batches.release(batch["id"])  # which the fault left claimed, for a while
        batches.runner.wake()
        assert (await batches.end_of(batch))["status"] == "completed"
        while batches.runner.problem is not None:
            await asyncio.sleep(0.002)
    assert (await batches.http.get("/health")).json() == {"status": "ready"}


async def test_a_batch_that_fails_by_a_fault_of_ours_is_tried_again_later(start, monkeypatch, caplog):
    batches = await start()
    runner = batches.runner
    real = BatchRun.run
    monkeypatch.setattr("server.batches.runner._FIRST_REST", 0.2)

    async def fail(_):
        raise ZeroDivisionError

    monkeypatch.setattr(BatchRun, "run", fail)
    batch = await batches.create([line(0)])
    async with asyncio.timeout(20):
        while not runner.describe()["resting_after_a_fault"]:
            await asyncio.sleep(0.002)
        assert "or tried again in 0.2 s" in caplog.text
        monkeypatch.setattr(BatchRun, "run", real)
        while runner.describe()["resting_after_a_fault"]:
            await asyncio.sleep(0.01)
        runner.wake()
        assert (await batches.end_of(batch))["status"] == "completed"
    assert await batches.api.metric("batch_faults_total") == 1
