"""The engine's process by itself: how it answers its parent, and how it ends."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import zmq

from engine.config import EngineConfig
from engine.engine_info import EngineInfo
from engine.protocol import (
    EngineFailed,
    FromEngine,
    GenerateRequest,
    Loading,
    SamplingParams,
    SchedulingParams,
    SequenceOutput,
    Shutdown,
    StepOutput,
    ToEngine,
    decode_from_engine,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIMEOUT = 30  # seconds


class Parent:
    """The server's end of the line."""

    def __init__(self, process: subprocess.Popen[bytes], socket: zmq.Socket[bytes], log_path: Path) -> None:
        self.process, self._socket, self._log_path = process, socket, log_path
        self.phases: list[str] = []

    def send(self, message: ToEngine | bytes) -> None:
        self._socket.send(message if isinstance(message, bytes) else encode(message))

    def receive(self) -> FromEngine:
        """The next message but for those about loading."""
        while True:
            assert self._socket.poll(_TIMEOUT * 1000), self.log
            message: FromEngine = decode_from_engine(self._socket.recv())
            if not isinstance(message, Loading):
                return message
            self.phases.append(message.phase)

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")


@contextlib.contextmanager
def start(folder: Path, config: EngineConfig) -> Iterator[Parent]:
    endpoint = f"ipc://{folder}/engine"
    settings = {"name": "engine", "engine": config.model_dump(), "log_level": "info", "log_format": "text"}
    log_path = folder / "log"
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket, log_path.open("wb") as log:
        socket.linger = 0
        socket.bind(endpoint)
        command = [sys.executable, "-P", "-m", "engine.process", endpoint, json.dumps(settings)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log) as process:
            try:
                yield Parent(process, socket, log_path)
            finally:
                if process.poll() is None:
                    process.kill()


@pytest.fixture
def parent(tiny_llama: Path, tmp_path: Path) -> Iterator[Parent]:
    config = EngineConfig(model=str(tiny_llama), dtype="float32", device="cpu", threads=1, num_kv_blocks=64)
    with start(tmp_path, config) as parent:
        assert isinstance(parent.receive(), EngineInfo)
        yield parent


def test_it_tells_how_far_loading_is_and_has_a_name(parent: Parent) -> None:
    assert parent.phases[0] == "starting the engine"
    assert parent.phases[-1] == "warming up"
    process = psutil.Process(parent.process.pid)
    assert process.cmdline()[0] == "deepseek-serve: engine"
    names = {path.read_text().strip() for path in Path(f"/proc/{process.pid}/task").glob("*/comm")}
    assert {"serve-engine", "parent-watch"} <= names


def endless() -> GenerateRequest:
    return GenerateRequest(
        "r", [65], SamplingParams(max_tokens=500, ignore_eos=True), 1, SchedulingParams(time.monotonic())
    )


def test_no_message_ends_the_engine(parent: Parent) -> None:
    for request_id, prompt, max_tokens in (("vocab", [10**6], 1), ("empty", [], 1), ("pool", [65], 64 * 16)):
        parent.send(
            GenerateRequest(request_id, prompt, SamplingParams(max_tokens=max_tokens), 2, SchedulingParams(0.0))
        )
        reasons = [output.finish_reason for output in outputs_of(parent, request_id, 2)]
        assert reasons == ["error", "error"]
    parent.send(b"\xc1 is no MessagePack")
    parent.send(encode({"type": "generate", "request_id": 7}))
    parent.send(GenerateRequest("good", [65], SamplingParams(max_tokens=3, ignore_eos=True), 1, SchedulingParams(0.0)))
    assert [len(output.token_ids) for output in outputs_of(parent, "good", 3)] == [1, 1, 1]
    assert parent.log.count("cannot be taken in") == 3
    assert parent.log.count("cannot be decoded") == 2
    assert parent.log.count("Traceback") == 5


def outputs_of(parent: Parent, request_id: str, number: int) -> list[SequenceOutput]:
    """The next outputs; all are of this request."""
    outputs: list[SequenceOutput] = []
    while len(outputs) < number:
        step = parent.receive()
        assert isinstance(step, StepOutput)
        outputs += step.outputs
    assert {output.request_id for output in outputs} == {request_id}
    return outputs


def test_told_to_stop_it_ends_orderly_in_the_middle_of_work(parent: Parent) -> None:
    parent.send(endless())
    step = parent.receive()
    assert isinstance(step, StepOutput)
    assert step.outputs[0].request_id == "r"
    parent.send(Shutdown())
    assert parent.process.wait(_TIMEOUT) == 0, parent.log
    assert "Fatal" not in parent.log


@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_by_itself_when_its_parent_is_gone(parent: Parent, busy: bool) -> None:
    if busy:
        parent.send(endless())
        parent.receive()
    assert parent.process.stdin is not None
    parent.process.stdin.close()
    assert parent.process.wait(_TIMEOUT) == 0, parent.log


def test_a_model_that_cannot_be_loaded_is_reported_and_the_status_is_2(tmp_path: Path) -> None:
    with start(tmp_path, EngineConfig(model="/no/such/model")) as parent:
        failed = parent.receive()
        assert isinstance(failed, EngineFailed)
        assert "/no/such/model" in failed.message
        assert parent.process.wait(_TIMEOUT) == 2, parent.log
        assert parent.log == ""
