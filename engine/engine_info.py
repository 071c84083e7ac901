"""What the engine says of itself when it is ready. Requests are checked against it before they are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from engine.errors import RequestError

if TYPE_CHECKING:
    from engine.protocol import PoolingParams, SamplingParams

MODALITIES = ("text", "code", "image")  # a modality's id is its place here; a model knows the first ones
PoolingTask = Literal["embed", "classify", "value"]
Task = Literal["generate"] | PoolingTask
LabelActivation = Literal["softmax", "sigmoid", "none"]  # what makes scores of the logits of labels

_TASKS: dict[Task, str] = {  # as errors say it
    "generate": "generate text",
    "embed": "embed text",
    "classify": "classify text",
    "value": "say how sound a text is",
}


class EngineMemory(msgspec.Struct, frozen=True):
    """Bytes of memory that the engine takes, by part; all together once every block of the KV cache has been used.

    Attributes:
        weights: as they lie packed in memory; pages of a mapped file, which the system may drop, are not counted.
        kv_cache: all of its blocks.
        other: what was there beside the weights when the engine was ready: the program and its working memory.
    """

    weights: int = 0
    kv_cache: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """All parts together."""
        return self.weights + self.kv_cache + self.other

    def __str__(self) -> str:
        parts = {"weights": self.weights, "KV cache": self.kv_cache, "other": self.other}
        return ", ".join(f"{name} {num_bytes / 2**30:.2f} GiB" for name, num_bytes in parts.items())


class EngineInfo(msgspec.Struct, frozen=True, tag="ready"):
    """Sent once, when the engine can take requests: the limits that requests are checked against.

    Attributes:
        max_seq_len: tokens that one sequence can have, prompt and output; never more than the KV pool holds.
        vocab_size: width of the logits; token ids lie below it.
        max_batch_size: sequences in one step at most.
        shares_prompts: whether the sequences of one request compute their prompt once, by the prefix cache.
        modalities: names of those that the model knows, in the order of their ids.
        tasks: what the model can do.
        hidden_size: values of an embedding.
        labels: the names of what "classify" tells apart, in the order of their logits.
        label_activation: "softmax" where labels exclude each other, "sigmoid" where each is a yes or no, "none" where
            the logits are the scores (a regression).
        memory: that the engine takes.
    """

    max_seq_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    device: str
    dtype: str
    max_batch_size: int
    shares_prompts: bool = True
    modalities: tuple[str, ...] = MODALITIES[:1]
    tasks: tuple[Task, ...] = ("generate",)
    hidden_size: int = 0
    labels: tuple[str, ...] = ()
    label_activation: LabelActivation = "softmax"
    memory: EngineMemory = EngineMemory()

    def num_computed(self, n: int) -> int:
        """How many times a prompt is computed for n sequences; what they do not share is less than a block each."""
        return 1 if self.shares_prompts else n

    def check(self, prompt_token_ids: list[int], sampling: SamplingParams, modalities: bytes = b"") -> None:
        """Refuse what can never be computed here.

        Raises:
            RequestError: naming the field and the limit.
        """
        self.check_task("generate")
        sampling.check()
        self._check_prompt(prompt_token_ids, modalities)
        num_tokens = len(prompt_token_ids)
        if num_tokens + sampling.max_tokens > self.max_seq_len:
            raise RequestError(
                f"This server's maximum context length is {self.max_seq_len} tokens. However, you requested "
                f"{num_tokens + sampling.max_tokens} tokens ({num_tokens} in the prompt, {sampling.max_tokens} in the "
                "completion). Please reduce the length of either one.",
                "prompt" if num_tokens >= self.max_seq_len else "max_tokens",
                "context_length_exceeded",
            )
        for name in ("logit_bias", "stop_token_ids", "allowed_token_ids"):
            if any(not 0 <= token_id < self.vocab_size for token_id in getattr(sampling, name) or ()):
                raise RequestError(f"Token ids of {name} must lie from 0 to {self.vocab_size - 1}.", name)
        if any(not 0 <= token_id < self.vocab_size for word in sampling.bad_words for token_id in word):
            raise RequestError("A word of bad_words has tokens that the model lacks.", "bad_words")

    def check_pooling(self, prompt_token_ids: list[int], pooling: PoolingParams, modalities: bytes = b"") -> None:
        """Refuse what can never be computed here.

        Raises:
            RequestError: naming the field and the limit, or what the model can do instead.
        """
        pooling.check()
        self.check_task(pooling.task)
        self._check_prompt(prompt_token_ids, modalities)
        if (num_tokens := len(prompt_token_ids)) > self.max_seq_len:
            raise RequestError(
                f"This server's maximum context length is {self.max_seq_len} tokens. However, the prompt has "
                f"{num_tokens}. Please reduce its length.",
                "prompt",
                "context_length_exceeded",
            )

    def check_task(self, task: Task) -> None:
        """Refuse what the model has no head for.

        Raises:
            RequestError: saying what the model can do.
        """
        if task not in self.tasks:
            message = f"This model cannot {_TASKS[task]}; it can {' and '.join(_TASKS[task] for task in self.tasks)}."
            raise RequestError(message, "model", "task_not_supported")

    def _check_prompt(self, prompt_token_ids: list[int], modalities: bytes) -> None:
        if not prompt_token_ids:
            raise RequestError("The prompt is empty: it has no tokens.", "prompt")
        if not 0 <= min(prompt_token_ids) <= max(prompt_token_ids) < self.vocab_size:
            raise RequestError(f"Prompt token ids must lie from 0 to {self.vocab_size - 1}.", "prompt")
        if modalities and (len(modalities) != len(prompt_token_ids) or max(modalities) >= len(self.modalities)):
            known = ", ".join(self.modalities)
            raise RequestError(f"A prompt has a modality for each token; this model knows {known}.", "modality")
