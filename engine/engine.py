"""The engine: takes requests, runs steps, gives back what each step brought. One thread, no HTTP, no text.

add, abort  ->  step: schedule -> execute -> update  ->  StepOutput
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.loading.resolve import resolve_model
from engine.protocol import EngineInfo, GenerateRequest, SamplingParams, StepOutput, Terms
from engine.sampler import uniform
from engine.sequence import Sequence

if TYPE_CHECKING:
    from engine.config import EngineConfig
    from engine.dynamic_batcher import DynamicBatcher
    from engine.executor import Executor
    from engine.protocol import AbortRequest, EngineStats


class Engine:
    """A loaded model with its batcher and cache; see the module's drawing."""

    def __init__(
        self,
        info: EngineInfo,
        batcher: DynamicBatcher,
        executor: Executor,
        eos_token_ids: frozenset[int],
        seed: int,
    ) -> None:
        self.info = info
        self.batcher = batcher
        self.executor = executor
        self._eos_token_ids = eos_token_ids
        self._seed = seed
        self._num_requests = 0

    @classmethod
    def load(cls, config: EngineConfig, *, progress: bool = False) -> Engine:
        """Find the model, resolve the settings, build.

        Raises:
            ConfigError, ModelError: the settings or the model are at fault.
        """
        from engine.build import build  # which makes an Engine
        from engine.resolve import resolve

        return build(resolve(config, resolve_model(config.model)), progress=progress)

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return self.batcher.has_work

    def add(self, request: GenerateRequest) -> None:
        """Take in a request's `n` sequences.

        The sender has checked the request (EngineInfo.check); what that refuses is an invariant here.
        """
        params = request.sampling
        token_ids = (*request.prompt_token_ids, *(params.logit_bias or ()), *params.stop_token_ids)
        assert request.prompt_token_ids, "an empty prompt"
        assert 0 <= min(token_ids) <= max(token_ids) < self.info.vocab_size, "token ids beyond the vocabulary"
        assert len(request.prompt_token_ids) + params.max_tokens <= self.info.max_seq_len, "more than max_seq_len"
        seed = params.seed if params.seed is not None else _mix(self._seed, self._num_requests)
        self._num_requests += 1
        stop_token_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_token_ids |= self._eos_token_ids
        for index in range(request.n):
            self.batcher.add(
                Sequence(
                    request_id=request.request_id,
                    index=index,
                    token_ids=list(request.prompt_token_ids),
                    num_prompt_tokens=len(request.prompt_token_ids),
                    sampling=params,
                    seed=_mix(seed, index),
                    stop_token_ids=stop_token_ids,
                    terms=request.terms,
                )
            )

    def abort(self, request: AbortRequest) -> None:
        """End sequences now; their blocks are free when this returns."""
        self.batcher.abort(request.request_id, request.index)

    def step(self) -> StepOutput:
        """End what is past its deadline, then compute one step."""
        started = time.monotonic()
        outputs = self.batcher.expire(started)
        if self.has_work:
            plan = self.batcher.schedule(started)
            result = self.executor.execute(plan)
            outputs += self.batcher.update(plan, result)
            self.batcher.observe(plan, time.monotonic() - started)
        return StepOutput(outputs, self.batcher.stats())

    def prepare(self) -> bool:
        """Use an idle moment, of some milliseconds, for steps to come; False if there is nothing to do."""
        return self.executor.prepare(self.batcher.kv_cache.num_ever_taken)

    def stats(self) -> EngineStats:
        """The load at this moment."""
        return self.batcher.stats()

    def warm_up(self) -> None:
        """Compute a token or two, so that libraries build their kernels before the first request."""
        params = SamplingParams(max_tokens=min(2, self.info.max_seq_len - 1), temperature=0.0, ignore_eos=True)
        self.add(GenerateRequest("warm-up", [0], params, 1, Terms(time.monotonic())))
        while self.has_work:  # unlike in `step`, nobody learns from how long these take
            plan = self.batcher.schedule(time.monotonic())
            self.batcher.update(plan, self.executor.execute(plan))
        self._num_requests = 0
        self.batcher.check_idle()


def _mix(seed: int, number: int) -> int:
    """A new seed from a seed and a number, so that streams do not run into each other."""
    return int(uniform(seed, number) * (1 << 53))
