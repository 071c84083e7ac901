"""The engine: takes requests, runs steps, gives back what each step brought. One thread, no HTTP, no text.

serve:  messages  ->  add, abort  ->  step: schedule -> execute -> update  ->  StepOutput

A Transport carries the messages: ZeroMQ for the engine's process (engine.process), a queue for an engine in the
server's own process (server.in_process_engine). The engine knows neither.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

import msgspec

from engine.engine_info import EngineInfo
from engine.grammars import Grammars
from engine.protocol import (
    AbortRequest,
    GenerateRequest,
    Ping,
    PoolingParams,
    PoolRequest,
    SamplingParams,
    SchedulingParams,
    SequenceOutput,
    Shutdown,
    StepOutput,
    Vocabulary,
)
from engine.sampler import uniform
from engine.sequence import Sequence, SequenceStatus
from engine.snapshot import EngineSnapshot, Inspect, LastStep
from engine.step import mask_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from engine.dynamic_batcher import DynamicBatcher
    from engine.engine_info import Task
    from engine.executor import Executor
    from engine.protocol import EngineStats, ToEngine
    from engine.step import StepPlan

logger = logging.getLogger(__name__)

_COMPILE_WAIT = 0.005  # seconds that a step without other work waits for a grammar; messages wait as long at most
_NO_OUTPUT = SamplingParams(max_tokens=0)  # of sequences that generate nothing
_MAX_FAILURES = 3  # steps in a row that may fail; after the last, the engine ends and the server starts another


class Transport(Protocol):
    """The line to whoever sends requests."""

    def receive(self, *, wait: bool) -> ToEngine | None:
        """The next message; without `wait`, None if none is there."""

    def send(self, message: StepOutput | EngineSnapshot) -> None:
        """Send a message; waits at most while the receiver has many to read."""


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
        self.grammars = Grammars(info.vocab_size, eos_token_ids)
        self._eos_token_ids = eos_token_ids
        self._seed = seed
        self._num_requests = 0
        self._shared_params = SamplingParams()
        self._shared_mask: bytes | None = None
        self._num_failures = 0  # steps in a row
        self._num_failed_steps = 0
        self._latest_step: tuple[StepPlan, float, float] | None = None  # its seconds, and when it ended

    @property
    def has_work(self) -> bool:
        """Whether any sequence is live."""
        return self.batcher.has_work

    def serve(self, transport: Transport) -> None:
        """Serve until Shutdown. A round sends one StepOutput, unless nothing has happened since the one before."""
        told: EngineStats | None = None
        while True:
            outputs: list[SequenceOutput] = []
            is_asked = False
            message = transport.receive(wait=False)
            if message is None and not self.has_work:
                if self.prepare():
                    continue
                message = transport.receive(wait=True)
            while message is not None:
                if isinstance(message, Shutdown):
                    return
                if isinstance(message, Inspect):
                    transport.send(self.snapshot(message))
                elif isinstance(message, Ping):
                    is_asked = True
                else:
                    outputs += self._take(message)
                message = transport.receive(wait=False)
            step = self.step()
            if (outputs := outputs + step.outputs) or is_asked or step.stats != told:
                transport.send(StepOutput(outputs, step.stats))
                told = step.stats

    def _take(self, message: GenerateRequest | PoolRequest | AbortRequest | Vocabulary) -> list[SequenceOutput]:
        """Act on a message; a request that cannot be taken in gets an error for each of its sequences.

        The server refuses bad requests before it sends them (EngineInfo.check); whatever still goes wrong must not end
        the requests of others. What goes wrong in a step is `step`'s.
        """
        if isinstance(message, AbortRequest):
            self.abort(message)
            return []
        if isinstance(message, Vocabulary):
            self.grammars.learn(message)
            return []
        try:
            self.add(message)
        except Exception:
            logger.exception("request %s cannot be taken in", message.request_id)
            self.abort(AbortRequest(message.request_id))  # the sequences added before the failure
            return [SequenceOutput(message.request_id, index, [], "error") for index in range(message.n)]
        return []

    def step(self) -> StepOutput:
        """End what is past its deadline, then compute one step.

        A step that fails ends the sequences in it, not the engine; only when several fail in a row is the executor
        taken for broken, and its error raised.
        """
        started = time.monotonic()
        outputs = self.batcher.expire(started)
        for seq, matcher in self.grammars.ready(0 if self.batcher.can_step else _COMPILE_WAIT):
            outputs += self.batcher.ready(seq, matcher)
        assert self.batcher.can_step or self.grammars.are_compiling or not self.batcher.has_work, "nothing can advance"
        if self.batcher.can_step:
            plan = self.batcher.schedule(started)
            try:
                result = self.executor.execute(plan)
            except Exception:
                self._num_failures += 1
                self._num_failed_steps += 1
                if self._num_failures >= _MAX_FAILURES:
                    raise
                logger.exception("a step failed; its %d sequences end with an error", len(plan.scheduled))
                return StepOutput(outputs + self.batcher.fail(plan), self.batcher.stats())
            self._num_failures = 0
            outputs += self.batcher.update(plan, result)
            ended = time.monotonic()
            self.batcher.observe(plan, ended - started)
            self._latest_step = (plan, ended - started, ended)
        return StepOutput(outputs, self.batcher.stats())

    def prepare(self) -> bool:
        """Use an idle moment, of some milliseconds, for steps to come; False if there is nothing to do."""
        return self.executor.prepare(self.batcher.kv_cache.num_ever_taken)

    def snapshot(self, message: Inspect) -> EngineSnapshot:
        """Tell what is in the engine, between two steps; some ten microseconds for each sequence that is listed."""
        now, last = time.monotonic(), None
        if self._latest_step is not None:
            plan, seconds, ended = self._latest_step
            num_prompts = len(plan.scheduled) - plan.num_decodes
            last = LastStep(now - ended, seconds, plan.num_decodes, num_prompts, plan.num_prompt_tokens)
        return EngineSnapshot(message.number, self.batcher.snapshot(now, message.limit), last, self._num_failed_steps)

    def abort(self, request: AbortRequest) -> None:
        """End sequences now; their blocks are free when this returns."""
        self.batcher.abort(request.request_id, request.index)

    def add(self, request: GenerateRequest | PoolRequest) -> None:
        """Take in a request's `n` sequences.

        The sender has checked the request (EngineInfo.check); what that refuses is an invariant here.
        """
        if isinstance(request, PoolRequest):
            self._add_pooling(request)
        else:
            self._add_generating(request)

    def _add_pooling(self, request: PoolRequest) -> None:
        self._assert_valid(request, request.pooling.task)
        self.batcher.add(
            Sequence(
                request_id=request.request_id,
                token_ids=list(request.prompt_token_ids),
                num_prompt_tokens=len(request.prompt_token_ids),
                sampling=_NO_OUTPUT,
                scheduling=request.scheduling,
                modalities=request.modalities,
                pooling=request.pooling,
            )
        )

    def _add_generating(self, request: GenerateRequest) -> None:
        params, mask = self._share(request.sampling)
        self._assert_valid(request, "generate", params.max_tokens, params.token_ids)
        seed = params.seed if params.seed is not None else _mix(self._seed, self._num_requests)
        self._num_requests += 1
        stop_token_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_token_ids |= self._eos_token_ids
        for index in range(request.n):
            prompt_logprobs = None if index else params.prompt_logprobs  # one report is enough; the others share blocks
            seq = Sequence(
                request_id=request.request_id,
                index=index,
                token_ids=list(request.prompt_token_ids),
                num_prompt_tokens=len(request.prompt_token_ids),
                # No step needs the grammar's text.
                sampling=msgspec.structs.replace(params, grammar=None, prompt_logprobs=prompt_logprobs),
                seed=_mix(seed, index),
                stop_token_ids=stop_token_ids,
                scheduling=request.scheduling,
                mask=mask,
                modalities=request.modalities,
            )
            if params.grammar is None:
                self.batcher.add(seq)
            else:
                seq.status = SequenceStatus.COMPILING
                self.batcher.add(seq)
                self.grammars.compile(seq, params.grammar)

    def _share(self, params: SamplingParams) -> tuple[SamplingParams, bytes | None]:
        """Parameters, and the mask of their allowed_token_ids, in one copy for requests in a row that have the same.

        The prompts of one call come as that many requests: they may be thousands, and the parameters large.
        """
        if params != self._shared_params:
            self._shared_params, self._shared_mask = params, mask_of(params.allowed_token_ids)
        return self._shared_params, self._shared_mask

    def _assert_valid(
        self, request: GenerateRequest | PoolRequest, task: Task, max_tokens: int = 0, token_ids: Collection[int] = ()
    ) -> None:
        """`token_ids` are those that stand in parameters."""
        prompt, modalities = request.prompt_token_ids, request.modalities
        assert task in self.info.tasks, "a task that the model cannot do"
        assert prompt, "an empty prompt"
        ids = [*prompt, *token_ids]
        assert 0 <= min(ids) <= max(ids) < self.info.vocab_size, "token ids beyond the vocabulary"
        assert len(prompt) + max_tokens <= self.info.max_seq_len, "more than max_seq_len"
        assert len(modalities) in (0, len(prompt)), "not one modality a token"
        assert max(modalities, default=0) < len(self.info.modalities), "modalities beyond the model's"

    def warm_up(self) -> bool:
        """Compute a token or two, so that libraries build their kernels before the first request.

        Returns:
            Whether all that was computed is finite.
        """
        scheduling, is_finite = SchedulingParams(time.monotonic()), True
        others = tuple(task for task in self.info.tasks if task != "embed")  # they read what "embed" returns
        for task in others or self.info.tasks:
            if task == "generate":
                params = SamplingParams(max_tokens=min(2, self.info.max_seq_len - 1), temperature=0.0, ignore_eos=True)
                self.add(GenerateRequest("warm-up", [0], params, 1, scheduling))
            else:
                self.add(PoolRequest(f"warm-up {task}", [0], PoolingParams(task=task), scheduling))
        while self.has_work:  # unlike in `step`, nobody learns from how long these take
            plan = self.batcher.schedule(time.monotonic())
            result = self.executor.execute(plan)
            is_finite &= all(item.token_id is not None for item in result.sampled)
            is_finite &= None not in result.pooled.values()
            self.batcher.update(plan, result)
        self.batcher.check_idle()
        return is_finite


def _mix(seed: int, number: int) -> int:
    """A new seed from a seed and a number, so that streams do not run into each other."""
    return int(uniform(seed, number) * (1 << 53))
