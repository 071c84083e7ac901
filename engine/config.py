"""The engine's settings. One declaration of a setting gives its flag, environment variable, file key, help and bounds.

A class is a group of the command's help. `server.command_line` reads flags, environment and file; nothing is read here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.errors import ConfigError

MAX_BLOCK_SIZE = 65536
_WORDS = (
    ("Input should", "it must"),
    ("greater than or equal to", "at least"),
    ("less than or equal to", "at most"),
    ("greater than", "more than"),
)


def setting(default: Any, text: str, *, metavar: str = "N", **bounds: Any) -> Any:
    """A field of `Settings`: its default, its help, what the help calls its value, and bounds as pydantic's Field."""
    return Field(default, description=text, title=metavar, **bounds)


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


class Settings(BaseModel):
    """What every group of settings is: frozen, and a bad value is a ConfigError."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True, defer_build=True
    )

    def __init__(self, **values: Any) -> None:
        """Check the values.

        Raises:
            ConfigError: naming the flag and what is valid.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise self._explain(dict(error.errors()[0])) from None

    @classmethod
    def _explain(cls, mistake: dict[str, Any]) -> Exception:
        """One of pydantic's errors in the words of the command line."""
        kind, value, context = mistake["type"], mistake["input"], mistake.get("ctx", {})
        if kind == "value_error":  # raised by a validator below
            return ConfigError(str(context["error"]))
        name = mistake["loc"][0]
        if kind == "extra_forbidden":
            return TypeError(f"{cls.__name__} has no setting {name!r}")
        if kind == "literal_error":
            valid = context["expected"].replace("'", "").replace(" or ", ", ")
            return ConfigError(f"{flag(name)} is {value!r}; valid are {valid}")
        valid = mistake["msg"]
        for theirs, ours in _WORDS:
            valid = valid.replace(theirs, ours)
        return ConfigError(
            f"{flag(name)} is {value!r}; {valid}" if "parsing" in kind else f"{flag(name)} is {value}; {valid}"
        )


class ModelSettings(Settings):
    """What is served, and what computes it."""

    model_config = ConfigDict(title="model")

    model: str | Path | None = setting(
        None,
        "what to serve: a Hugging Face folder, a .gguf file, a hub id (org/name; from the local cache when offline), "
        "or the built-in smollm2-135m-instruct, which is also what no --model means",
        metavar="NAME|FOLDER|FILE.gguf|HUB_ID",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto",
        "number type of weights, activations and KV cache; auto is the checkpoint's own on a GPU and "
        "bfloat16 on a CPU that computes in it, else float32",
    )
    quantization: Literal["auto", "none", "int8", "int4"] = setting(
        "auto",
        "auto: compute with weights as they are stored (docs/weight-formats.md); none: expand blocks of 4 to 8 bits to "
        "--dtype; int8: make the weights of linear layers int8 while loading, from any checkpoint, "
        "their inputs as they come; a checkpoint that is int8 already is served so by itself, and int8 then adds its "
        "lm_head; int4: make them 4 bits, with a scale for each 32 inputs, and lm_head 8 bits (deepseek-serve quantize "
        "makes better ones of either)",
    )
    activations: Literal["auto", "int8", "float"] = setting(
        "auto",
        "inputs of weights that are stored in blocks: int8 (fast; each 32 to 128 values have a scale of their own), or "
        "float; auto is float for the default model, for FP8, and where a compressed-tensors checkpoint says so, else "
        "int8",
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto takes a GPU where there is one")
    kernels: Literal["auto", "native", "torch", "flash-attn", "reference"] = setting(
        "auto",
        "which kernels to run; auto takes the fastest that this machine has, a choice that it lacks is an error",
    )
    threads: int | None = setting(
        None, "CPU threads for arithmetic; default: the cores this process may use", ge=1, le=65536
    )


class BatchingSettings(Settings):
    """What is computed together, and how much memory it may use."""

    model_config = ConfigDict(title="batching and memory")

    max_batch_size: int = setting(32, "sequences computed in one step at most", ge=1, le=1 << 20)
    max_seq_len: int | None = setting(
        None, "tokens of one sequence at most, prompt and output; default: what the model was made for", ge=1
    )
    max_batched_tokens: int | None = setting(
        None,
        "tokens computed in one step at most; longer prompts are cut into chunks, so a smaller value lets "
        "others start sooner and a larger one prefills faster; default: 512 on a CPU, 8192 on a GPU",
        ge=1,
    )
    policy: Literal["length", "fcfs", "priority", "fair"] = setting(
        "length",
        "which waiting sequence starts next: length (shortest first, and ageing), fcfs, priority (the request's field, "
        "smallest first) or fair (tokens shared among API keys)",
    )
    target_itl: float | None = setting(
        None,
        "milliseconds between the tokens of running streams to aim at: prompts are cut into smaller chunks beside them",
        metavar="MS",
        gt=0,
    )
    prefill_share: float = setting(
        0.8,
        "without --target-itl: time that a step gives to each prompt that it computes, as a multiple of what its "
        "running streams take, so 0.8 aims at 1.8 times their time between tokens beside one prompt; inf is no bound",
        metavar="X",
        gt=0,
        allow_inf_nan=True,
    )
    background_share: float = setting(
        0.1,
        "time that the lines of batches may take of a step with live streams, as a multiple of what those take alone; "
        "0 computes lines only where no request runs",
        metavar="X",
        ge=0,
    )
    block_size: int | None = setting(
        None,
        "tokens in one block of the KV cache; default: 16, or with block-sparse attention what divides a sparse block",
        ge=1,
        le=MAX_BLOCK_SIZE,
    )
    kv_cache_memory: float | None = setting(
        None, "memory for the KV cache; default: a quarter of what is free on a CPU, 85% on a GPU", metavar="GiB", gt=0
    )
    kv_cache_dtype: Literal["auto", "int8", "int4"] = setting(
        "auto",
        "what keys and values are cached as: auto is the number type of --dtype; int8, with a scale for each token and "
        "head, holds about twice the tokens and is read faster, for a loss below what can be measured on most texts; "
        "int4 (keys in 5 bits, values and latents in 4) holds 3.4 times the tokens, for a loss that can "
        "be measured (docs/quantization.md)",
    )
    num_kv_blocks: int | None = setting(None, "the KV cache's size in blocks, instead of --kv-cache-memory", ge=1)
    prefix_caching: Literal["on", "off"] = setting(
        "on",
        "keep the blocks of finished sequences, until memory is wanted, for prompts that begin the same way",
    )
    batch_invariant: Literal["on", "off"] = setting(
        "off",
        "no answer's bits depend on what runs beside it or is cached. It slows long prompts of DeepSeek's MLA (1.1 "
        "times the time at 512 tokens, 1.5 times at 2,048, on a small model); other models are so anyway. On the "
        "native CPU kernels, in bfloat16",
    )
    seed: int = setting(0, "base of the random seeds of requests that bring none", ge=0)

    @model_validator(mode="after")
    def _check_batching(self) -> Self:
        if self.kv_cache_memory is not None and self.num_kv_blocks is not None:
            raise ConfigError("--kv-cache-memory and --num-kv-blocks both size the KV cache; give one of them")
        if self.max_batched_tokens is not None and self.max_batched_tokens < self.max_batch_size:
            raise ConfigError(
                f"--max-batched-tokens is {self.max_batched_tokens}; it must be at least --max-batch-size "
                f"({self.max_batch_size}), so that every running sequence can advance in each step"
            )
        return self


class EngineConfig(ModelSettings, BatchingSettings):
    """What the engine runs and how much it may use. `engine.resolve` settles None and "auto" of all but weights."""
