"""Engines on small checkpoints, run to the end: what tests of whole generations share."""

from __future__ import annotations

import itertools
import time
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from engine.build import load_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.protocol import GenerateRequest, PoolingParams, PoolRequest, SamplingParams, SchedulingParams

if TYPE_CHECKING:
    from collections.abc import Sequence as Several
    from pathlib import Path

    from engine.engine_info import PoolingTask
    from engine.protocol import SequenceOutput, TokenLogprobs

_numbers = itertools.count()


@dataclass
class Result:
    """All outputs of one sequence."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_token_id: int | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None
    num_outputs: int = 0
    num_cached_tokens: int = 0
    pooled: list[float] | None = None

    def add(self, output: SequenceOutput) -> None:
        assert self.finish_reason is None, "output after the end"
        self.token_ids += output.token_ids
        self.finish_reason, self.stop_token_id = output.finish_reason, output.stop_token_id
        self.logprobs += output.logprobs or []
        assert output.prompt_logprobs is None or self.num_outputs == 0
        self.prompt_logprobs = output.prompt_logprobs if self.num_outputs == 0 else self.prompt_logprobs
        self.num_cached_tokens += output.num_cached_tokens
        self.pooled = None if output.pooled is None else array("f", output.pooled).tolist()
        self.num_outputs += 1


def load(model: Path, **options: Any) -> Engine:
    """An engine in fp32 on the CPU."""
    return load_engine(
        EngineConfig(**{"model": str(model), "dtype": "float32", "device": "cpu", "threads": 1, **options})
    )


def greedy_params(max_tokens: int, **sampling: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True, **sampling})


def request(prompt: list[int], sampling: SamplingParams, n: int = 1, modalities: bytes = b"") -> GenerateRequest:
    scheduling = SchedulingParams(time.monotonic())
    return GenerateRequest(f"request {next(_numbers)}", prompt, sampling, n, scheduling, modalities)


def pool_request(prompt: list[int], task: PoolingTask = "embed", pooling: Any = "last") -> PoolRequest:
    params = PoolingParams(task=task, pooling=pooling)
    return PoolRequest(f"pool {next(_numbers)}", prompt, params, SchedulingParams(time.monotonic()))


def pool(engine: Engine, prompts: Several[list[int]], *params: Any) -> torch.Tensor:
    """The values of prompts that are computed together, [prompts, values]."""
    requests = [pool_request(prompt, *params) for prompt in prompts]
    for item in requests:
        engine.add(item)
    return torch.tensor([result.pooled for result in finish(engine, requests)])


def finish(engine: Engine, requests: Several[GenerateRequest | PoolRequest]) -> list[Result]:
    """Step until nothing is live; the results in order of request and index. Nothing may be left behind."""
    results = {(item.request_id, index): Result() for item in requests for index in range(item.n)}
    while engine.has_work:
        for output in engine.step().outputs:
            results[output.request_id, output.index].add(output)
    engine.batcher.check_idle()
    return list(results.values())


def generate(
    engine: Engine, prompts: Several[list[int]], sampling: SamplingParams | Several[SamplingParams]
) -> list[Result]:
    """Run prompts together, to the end."""
    several = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else sampling
    requests = [request(prompt, params) for prompt, params in zip(prompts, several, strict=True)]
    for item in requests:
        engine.add(item)
    return finish(engine, requests)


def make_prompt(length: int, seed: int = 0, vocab_size: int = 256) -> list[int]:
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def record_logits(engine: Engine) -> list[torch.Tensor]:
    """The list to which all logits that the model computes from now on are added, [rows, vocab] a call."""
    decoder, recorded = engine.executor.runner.model, []
    compute = decoder.logits

    def logits(*arguments: Any) -> torch.Tensor:
        computed = compute(*arguments)
        recorded.append(computed.clone())  # the sampler changes them in place
        return computed

    decoder.logits = logits
    return recorded


def prompt_logits(engine: Engine, prompt: list[int], num_tokens: int = 0) -> torch.Tensor:
    """The logits of every position of a prompt and of its greedy continuation, [positions, vocab]."""
    recorded = record_logits(engine)
    generate(engine, [prompt], greedy_params(num_tokens, prompt_logprobs=0))
    return torch.cat(recorded)


def assert_batched_equals_alone(engine: Engine, prompts: Several[list[int]], num_tokens: int) -> None:
    """Prompts that are computed together get the tokens that each gets alone."""
    together = [result.token_ids for result in generate(engine, prompts, greedy_params(num_tokens))]
    alone = [generate(engine, [prompt], greedy_params(num_tokens))[0].token_ids for prompt in prompts]
    assert together == alone


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())


def assert_parity(engine: Engine, reference: Any, prompt: list[int], num_tokens: int) -> None:
    """The logits of every position, prefilled and decoded, and the greedy tokens are those of a transformers model."""
    recorded = record_logits(engine)
    (result,) = generate(engine, [prompt], greedy_params(num_tokens, prompt_logprobs=0))
    ids = prompt + result.token_ids
    with torch.no_grad():  # one pass over the whole: if each token is the argmax of what precedes it, all are
        expected = reference(torch.tensor([ids[:-1]])).logits[0]
    assert result.token_ids == expected[len(prompt) - 1 :].argmax(-1).tolist()
    assert relative_error(torch.cat(recorded), expected) <= 1e-4
