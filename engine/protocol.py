"""What crosses the line between the server and the engine: plain values, typed, without tensors and without pickle.

The engine process and the in-process engine speak these same messages; `encode` and `decode` give them their bytes
(MessagePack). Nothing here knows HTTP or text: stop strings are the server's, token ids are the engine's.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from engine.engine_info import EngineInfo, PoolingTask
from engine.errors import RequestError
from engine.snapshot import EngineSnapshot, Inspect

FinishReason = Literal["stop", "length", "abort", "error", "timeout"]
MAX_UNREAD = 64  # messages from the engine that each end of the socket may keep; then the engine waits for the server

_Count = Annotated[int, Meta(ge=0, le=1 << 31)]
_Fraction = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-100, le=100)]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one request's tokens are chosen.

    Attributes:
        max_tokens: output tokens at most; 0 computes the prompt only.
        min_tokens: end-of-sequence and stop tokens cannot be chosen before this many output tokens.
        temperature: 0 is greedy (argmax, exact).
        top_k: the number of likeliest tokens to choose among; 0 is all.
        top_p: the smallest set of likeliest tokens whose probabilities sum to this; 1 is all.
        min_p: tokens at least this fraction as likely as the likeliest one; 0 is all.
        presence_penalty: subtracted once from the logit of each token that the output has.
        frequency_penalty: subtracted once for each time that the output has it.
        repetition_penalty: divides (multiplies, if negative) the logits of tokens in prompt or output; 1 is none.
        logit_bias: token id -> value added to its logit.
        allowed_token_ids: the only tokens that can be chosen; none given is all.
        bad_words: token ids in a row that the output never has; a word's last token is barred behind the others.
        seed: the same seed, prompt and parameters draw the same random numbers, whatever else runs, and so the same
            tokens wherever logits are the same (docs/native-kernels.md says when); None draws a fresh one.
        stop: strings that end the text; the server, which owns text, looks for them.
        stop_token_ids: tokens that end the sequence, beside the model's own end-of-sequence tokens.
        ignore_eos: go on after the model's end-of-sequence tokens.
        logprobs: how many alternatives to report beside each output token; None reports none.
        prompt_logprobs: the same for the prompt's tokens.
        grammar: what the output must match, as llguidance's Lark text (engine.grammars); None is free text.
    """

    max_tokens: _Count = 16
    min_tokens: _Count = 0
    temperature: Annotated[float, Meta(ge=0, le=100)] = 1.0
    top_k: _Count = 0
    top_p: _Fraction = 1.0
    min_p: _Fraction = 0.0
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] = 1.0
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[Annotated[tuple[int, ...], Meta(min_length=1)], ...] = ()
    seed: int | None = None
    stop: tuple[Annotated[str, Meta(min_length=1)], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: _Count | None = None
    prompt_logprobs: _Count | None = None
    grammar: Annotated[str, Meta(min_length=1)] | None = None

    def check(self) -> None:
        """Refuse values of a wrong type or out of their range (the API's own checks are stricter).

        Raises:
            RequestError: naming the field and what is valid.
        """
        try:
            msgspec.convert(msgspec.to_builtins(self), SamplingParams)
        except (msgspec.ValidationError, TypeError) as error:  # TypeError: a value of no plain type
            reason, _, path = str(error).partition(" - at `$.")
            field = re.match(r"\w*", path)[0]  # type: ignore[index]  # matches any text
            message = ": ".join(filter(None, ("The sampling parameters are not valid", field, reason)))
            raise RequestError(message, field or None) from None
        if self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.max_tokens})", "min_tokens")
        if self.grammar is not None and self.allowed_token_ids:
            raise RequestError("allowed_token_ids does not go with a grammar", "allowed_token_ids")

    @property
    def has_penalties(self) -> bool:
        """Whether the sampler must count tokens."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def reads_tokens(self) -> bool:
        """Whether the sampler must know the tokens so far."""
        return bool(self.bad_words) or self.has_penalties

    @property
    def token_ids(self) -> list[int]:
        """All token ids in here."""
        words = (token_id for word in self.bad_words for token_id in word)
        return [*(self.logit_bias or ()), *self.stop_token_ids, *self.allowed_token_ids, *words]


class SchedulingParams(msgspec.Struct, frozen=True, array_like=True):
    """What a request is scheduled by; times are seconds of CLOCK_MONOTONIC, which all processes of a machine share.

    Attributes:
        priority: for the policy of that name, smallest first.
        tenant: whose it is (a hash of the API key): who shares by fair shares, and whose prefixes may be reused.
        cache_salt: only requests with the same one share prefixes.
        weight: of the tenant's share.
        deadline: when it ends unfinished; None is never. start_deadline: the same while it has not started.
        background: whether it is computed only with what all others leave (engine.background).
    """

    arrival_time: float
    priority: int = 0
    tenant: bytes = b""
    weight: float = 1.0
    deadline: float | None = None
    start_deadline: float | None = None
    background: bool = False
    cache_salt: bytes = b""

    @property
    def prefix_salt(self) -> bytes:
        """What the hashes of a prefix's blocks begin with: whoever has another one finds none of them."""
        return self.tenant + self.cache_salt


class GenerateRequest(msgspec.Struct, frozen=True, tag="generate"):
    """Start `n` sequences on one prompt.

    Attributes:
        request_id: unique among live requests; the server draws it.
        prompt_token_ids: at least one; ids below the model's vocab_size.
        modalities: the id of each prompt token's modality; empty is text for all, id 0.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    n: int
    scheduling: SchedulingParams
    modalities: bytes = b""


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is computed of a prompt from which nothing is generated.

    Attributes:
        task: "embed" is the hidden state after the final norm; "classify" is a logit for each label; "value" is one
            logit, of how sound the text is.
        pooling: of the last token, or the mean over all of them, which "embed" alone takes.
    """

    task: PoolingTask
    pooling: Literal["last", "mean"] = "last"

    def check(self) -> None:
        """Refuse values that there are none of, and a mean of what has none.

        Raises:
            RequestError: naming the field and what is valid.
        """
        try:
            msgspec.convert(msgspec.to_builtins(self), PoolingParams)
        except (msgspec.ValidationError, TypeError) as error:
            raise RequestError(f"The pooling parameters are not valid: {error}") from None
        if self.pooling == "mean" and self.task != "embed":
            raise RequestError(f"'{self.task}' is computed of the last token; 'embed' alone takes the mean", "pooling")


class PoolRequest(msgspec.Struct, frozen=True, tag="pool"):
    """Compute values of one prompt; its one sequence, of index 0, ends with them.

    Attributes:
        request_id, prompt_token_ids: as GenerateRequest has them.
        modalities: the modality of each prompt token, a byte each; empty if all are text.
    """

    request_id: str
    prompt_token_ids: list[int]
    pooling: PoolingParams
    scheduling: SchedulingParams
    modalities: bytes = b""

    @property
    def n(self) -> int:
        """Sequences of the request."""
        return 1


class Vocabulary(msgspec.Struct, frozen=True, tag="vocabulary"):
    """What grammars are matched on; sent before the first request that has one.

    Attributes:
        tokens: each token's bytes, in the order of their ids; none for an id that stands for nothing.
        special_token_ids: tokens that are no text, whatever their bytes: these are their names.
    """

    tokens: list[bytes]
    special_token_ids: list[int]


class AbortRequest(msgspec.Struct, frozen=True, tag="abort"):
    """End sequences of a request now: all of them, or the one with this index. Unknown ids are ignored."""

    request_id: str
    index: int | None = None


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Ask for a sign of life: the round that takes this message sends a StepOutput, as each does."""


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the engine process."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """The natural-log probability of one token, and the likeliest tokens in its place, likeliest first.

    Attributes:
        rank: the token's place among all by probability, from 1.
    """

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]
    rank: int = 0


class SequenceOutput(msgspec.Struct, frozen=True, array_like=True):
    """What one step added to one sequence.

    Attributes:
        token_ids: new output tokens, the end-of-sequence or stop token included.
        logprobs: one entry for each of them, if asked for.
        prompt_logprobs: one entry for each prompt token but the first; once, with the first output of index 0.
        queue_time: seconds from arrival to the first step; once, with the first output.
        num_cached_tokens: prompt tokens that came from the prefix cache; once, with the first output.
        stop_token_id: the token that ended the sequence, when finish_reason is "stop".
        pooled: of a PoolRequest, once: its values as fp32, little-endian; hidden_size of them, one a label, or one.
    """

    request_id: str
    index: int
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    queue_time: float | None = None
    num_cached_tokens: int = 0
    pooled: bytes | None = None


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """The engine's load after a step; each figure costs O(1) to read.

    Attributes:
        num_preemptions: since the engine started.
        num_prompt_tokens: of all sequences started since, and num_cached_tokens those that the prefix cache had.
        num_steps: since the engine started; packing is the sum over them of how full they were, from 0 to 1.
        step_seconds: that they took, and step_tokens: that they computed, but for steps that failed.
    """

    num_running: int
    num_waiting: int
    num_used_blocks: int
    num_blocks: int
    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_steps: int = 0
    packing: float = 0.0
    step_seconds: float = 0.0
    step_tokens: int = 0

    @property
    def kv_cache_usage_ratio(self) -> float:
        """Blocks that live sequences hold, over all blocks."""
        return self.num_used_blocks / self.num_blocks


class StepOutput(msgspec.Struct, frozen=True, tag="step"):
    """Everything that one round of Engine.serve brought, a step at most: one message a round, not one a token."""

    outputs: list[SequenceOutput]
    stats: EngineStats


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """Sent while the engine is being loaded, at each phase (engine.loading.phases) and as its share grows."""

    phase: str
    share: float | None = None


class EngineFailed(msgspec.Struct, frozen=True, tag="failed"):
    """Sent instead of EngineInfo when the settings or the model are at fault; the message is for the user."""

    message: str


ToEngine = GenerateRequest | PoolRequest | Vocabulary | AbortRequest | Ping | Inspect | Shutdown
FromEngine = StepOutput | EngineSnapshot | Loading | EngineInfo | EngineFailed

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode
