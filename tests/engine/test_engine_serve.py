"""The message loop: what it sends for what it gets, and that no request ends it."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

import pytest

from engine.protocol import AbortRequest, GenerateRequest, SequenceOutput, Shutdown, StepOutput, Terms
from tests.support.running import greedy_params, load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine.engine import Engine
    from engine.protocol import ToEngine


class Line:
    """A transport that ends the loop once all is sent and computed, and keeps what it was sent."""

    def __init__(self, *messages: ToEngine) -> None:
        self.inbox, self.sent = deque(messages), []

    def receive(self, *, wait: bool) -> ToEngine | None:
        if self.inbox:
            return self.inbox.popleft()
        return Shutdown() if wait else None

    def send(self, message: StepOutput) -> None:
        self.sent.append(message)

    def outputs(self, request_id: str) -> list[SequenceOutput]:
        return [output for step in self.sent for output in step.outputs if output.request_id == request_id]


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Engine:
    return load(tiny_llama, num_kv_blocks=20)


def generate(request_id: str, prompt: list[int], n: int = 1, **sampling: object) -> GenerateRequest:
    return GenerateRequest(request_id, prompt, greedy_params(**{"max_tokens": 4, **sampling}), n, Terms(0.0))


def check_answered(line: Line, engine: Engine, request_id: str, num_tokens: int = 4) -> None:
    outputs = line.outputs(request_id)
    assert sum(len(output.token_ids) for output in outputs) == num_tokens
    assert outputs[-1].finish_reason == "length"
    engine.batcher.check_idle()


@pytest.mark.parametrize(
    "bad",
    [
        generate("bad", [], n=2),
        generate("bad", [65, 258], n=2),
        generate("bad", [-1], n=2),
        generate("bad", [65], n=2, max_tokens=320),
        generate("bad", [65], n=2, logit_bias={10**9: 1.0}),
        generate("bad", [65], n=2, stop_token_ids=(-1,)),
    ],
    ids=["empty", "beyond the vocabulary", "negative", "beyond the pool", "logit_bias", "stop_token_ids"],
)
def test_a_request_that_cannot_be_taken_in_gets_an_error_and_others_their_tokens(
    engine: Engine, caplog: pytest.LogCaptureFixture, bad: GenerateRequest
) -> None:
    line = Line(generate("before", [65]), bad, generate("after", [66]))
    engine.serve(line)
    assert line.outputs("bad") == [SequenceOutput("bad", index, [], "error") for index in range(2)]
    for request_id in ("before", "after"):
        check_answered(line, engine, request_id)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "request bad cannot be taken in" in record.getMessage()
    assert record.exc_info is not None


def test_a_failure_half_way_takes_back_the_sequences_already_in(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add: Callable[..., None] = engine.batcher.add

    def fails(seq: object) -> None:
        if seq.index == 2:
            raise RuntimeError
        add(seq)

    monkeypatch.setattr(engine.batcher, "add", fails)
    line = Line(generate("bad", [65], n=4), generate("good", [66]))
    engine.serve(line)
    assert line.outputs("bad") == [SequenceOutput("bad", index, [], "error") for index in range(4)]
    check_answered(line, engine, "good")


def test_every_step_and_every_abort_is_one_message(engine: Engine) -> None:
    line = Line(generate("r", [65]))
    engine.serve(line)
    assert [[len(output.token_ids) for output in step.outputs] for step in line.sent] == [[1], [1], [1], [1]]
    line = Line(generate("r", [65]), AbortRequest("r"))
    engine.serve(line)
    assert line.sent == [StepOutput([], engine.batcher.stats())]


def test_told_to_stop_it_leaves_work_undone(engine: Engine) -> None:
    line = Line(generate("r", [65]), Shutdown(), generate("never", [65]))
    engine.serve(line)
    assert line.sent == []
    assert engine.has_work
    engine.abort(AbortRequest("r"))
    engine.batcher.check_idle()
