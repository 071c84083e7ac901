"""Batches by OpenAI's client against the real command, which is killed in the middle. `make batch-test` runs more."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from tests.e2e.server_process import ServerProcess
from tests.support.processes import wait_gone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NUM_LINES = int(os.environ.get("BATCH_TEST_LINES", "60"))
NUM_KILLS = int(os.environ.get("BATCH_TEST_KILLS", "1"))
ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture
def start(tmp_path: Path, flags: tuple[str, ...]) -> Any:
    """start() -> a server on the same data folder each time, to be entered; it ends few lines at a time."""
    flags += ("--data-dir", str(tmp_path / "state"), "--drain-timeout", "20", "--max-batch-size", "4")
    return lambda: ServerProcess(tmp_path, *flags)


@pytest.fixture(scope="module")
def server(flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    with ServerProcess(folder, *flags, "--data-dir", str(folder / "state")) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


@contextmanager
def client_of(server: ServerProcess) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30, http_client=http
    ) as client:
        yield client


def requests(num_lines: int, max_tokens: int) -> bytes:
    """Lines with outputs of different lengths, `max_tokens` in the mean."""

    def body(number: int) -> dict[str, Any]:
        length = max_tokens // 2 + number * 37 % max_tokens
        return {"messages": [{"role": "user", "content": "hi"}], "max_tokens": length, "ignore_eos": True}

    lines = (
        {"custom_id": f"id-{i}", "method": "POST", "url": "/v1/chat/completions", "body": body(i)}
        for i in range(num_lines)
    )
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def create(client: openai.OpenAI, content: bytes, **options: Any) -> openai.types.Batch:
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **options
    )


def num_completed(client: openai.OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    assert counts is not None
    return counts.completed


def stored(folder: Path) -> dict[tuple[str, int], bytes]:
    """The results that are committed, as a server that was killed left them."""
    with closing(sqlite3.connect(folder / "state" / "deepseek-serve.sqlite")) as database:
        rows = database.execute("SELECT content_id, number, data FROM parts WHERE content_id LIKE 'batch%'")
        return {(content_id, number): data for content_id, number, data in rows}


def until_ended(server: ServerProcess, client: openai.OpenAI, batch_id: str) -> openai.types.Batch:
    server.until(lambda: client.batches.retrieve(batch_id).status in ENDED, timeout=300)
    return client.batches.retrieve(batch_id)


def end_after(server: ServerProcess, client: openai.OpenAI, batch_id: str, number: int, sig: int) -> None:
    """End the whole server once so many lines are completed."""
    server.until(lambda: num_completed(client, batch_id) >= number, timeout=120)
    engine = server.engine.pid
    status, seconds = server.stop(sig)
    assert wait_gone([engine], 10)
    if sig == signal.SIGTERM:  # which waits for requests, but not for the lines of batches
        assert (status, "Traceback" in server.log) == (0, False), server.log
        assert seconds < 5


def test_a_batch_survives_kills_and_a_drain_and_no_finished_line_runs_twice(tmp_path: Path, start: Any) -> None:
    batch_id, kept = "", dict[tuple[str, int], bytes]()
    ends = [signal.SIGKILL] * NUM_KILLS + [signal.SIGTERM]
    for sig in ends:
        with start() as server, client_of(server) as client:
            batch_id = batch_id or create(client, requests(NUM_LINES, 200)).id
            end_after(server, client, batch_id, len(kept) + NUM_LINES // (len(ends) + 2), sig)
            now = stored(tmp_path)
            assert kept.items() <= now.items(), "a finished line ran again"
            assert len(kept) < len(now) < NUM_LINES
            kept = now
    with start() as server, client_of(server) as client:
        server.until(lambda: num_completed(client, batch_id) > len(kept), timeout=4)  # the drain gave the lease back
        batch = until_ended(server, client, batch_id)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.completed == batch.request_counts.total == NUM_LINES
        lines = client.files.content(batch.output_file_id or "").text.splitlines()
        assert [json.loads(line)["custom_id"] for line in lines] == [f"id-{i}" for i in range(NUM_LINES)]
        assert kept.items() <= stored(tmp_path).items(), "a finished line ran again"


def test_an_engine_that_dies_loses_no_line(server: ServerProcess, client: openai.OpenAI) -> None:
    batch_id = create(client, requests(40, 60)).id
    server.until(lambda: num_completed(client, batch_id) > 0)
    server.engine.kill()
    until_ended(server, client, batch_id)
    assert num_completed(client, batch_id) == 40


def test_openais_client_reads_files_and_batches(server: ServerProcess, client: openai.OpenAI) -> None:
    content = requests(3, 2)
    file = client.files.create(
        file=("lines.jsonl", content),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert file.expires_at == file.created_at + 3600
    assert client.files.wait_for_processing(file.id).status == "processed"
    assert client.files.content(file.id).read() == content
    newest = client.files.list(purpose="batch", order="desc", limit=1)
    assert newest.data[0].id == file.id
    batches = [create(client, content, metadata={"a": "b"}) for _ in range(3)]
    server.until(lambda: all(client.batches.retrieve(batch.id).status == "completed" for batch in batches))
    assert [b.id for b in client.batches.list(limit=2)][:3] == [batch.id for batch in reversed(batches)]
    batch = client.batches.retrieve(batches[0].id)
    assert batch.usage is not None
    assert batch.usage.output_tokens == 1 + 2 + 1
    result = json.loads(client.files.content(batch.output_file_id or "").text.splitlines()[0])
    completion = openai.types.chat.ChatCompletion.model_validate(result["response"]["body"], strict=True)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 1
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
