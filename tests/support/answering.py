"""An engine that computes nothing, and answers each request at once with as many tokens and logprobs as it asks for."""

from __future__ import annotations

import asyncio
from array import array

from engine.engine_info import EngineInfo
from engine.protocol import (
    AbortRequest,
    EngineStats,
    GenerateRequest,
    PoolRequest,
    SequenceOutput,
    StepOutput,
    ToEngine,
    TokenLogprobs,
)
from server.engine_client import EngineClient

_TOKEN = 65
_VALUES = array("f", [1.0, 0.0]).tobytes()


class AnsweringEngine(EngineClient):
    """Ready from the beginning."""

    def __init__(self, max_seq_len: int, vocab_size: int) -> None:
        super().__init__()
        info = EngineInfo(
            *(max_seq_len, vocab_size, 1024, 16, "cpu", "float32", 32),
            tasks=("generate", "embed", "classify"),
            hidden_size=2,
            labels=("no", "yes"),
        )
        self._ready(info)

    async def run(self) -> None:
        raise AssertionError("there is no engine to run")

    def _send(self, message: ToEngine) -> None:
        if isinstance(message, GenerateRequest):
            outputs = [_generated(message, index) for index in range(message.n)]
        elif isinstance(message, PoolRequest):
            outputs = [SequenceOutput(message.request_id, 0, [], "stop", queue_time=0.0, pooled=_VALUES)]
        else:
            assert isinstance(message, AbortRequest)
            return
        step = StepOutput(outputs, EngineStats(0, 0, 0, 8))
        asyncio.get_running_loop().call_soon(self._dispatch, step)


def _generated(request: GenerateRequest, index: int) -> SequenceOutput:
    sampling, num_tokens = request.sampling, min(request.sampling.max_tokens, 256)
    prompt_logprobs = None
    if sampling.prompt_logprobs is not None and index == 0:
        prompt_logprobs = [_logprobs(sampling.prompt_logprobs)] * (len(request.prompt_token_ids) - 1)
    logprobs = None if sampling.logprobs is None else [_logprobs(sampling.logprobs)] * num_tokens
    return SequenceOutput(
        request.request_id,
        index,
        [_TOKEN] * num_tokens,
        "length",
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        queue_time=0.0,
    )


def _logprobs(count: int) -> TokenLogprobs:
    return TokenLogprobs(-0.5, list(range(_TOKEN, _TOKEN + count)), [-0.5 - i for i in range(count)], 1)
