"""The engine's settings: defaults, help texts and bounds. The command line is made from them (server.cli)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from engine.errors import ConfigError
from engine.policies import POLICIES


def option(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    metavar: str = "",
    at_least: float | None = None,
    infinite: bool = False,
) -> Any:
    """A dataclass field that can also be a command-line flag: its help, valid values and lower bound travel with it."""
    metadata = {"help": text, "choices": choices, "metavar": metavar, "at_least": at_least, "infinite": infinite}
    return field(default=default, metadata=metadata)


def check_options(config: Any) -> None:
    """Check every field made with `option` against its choices and its lower bound.

    Raises:
        ConfigError: naming the flag and what is valid.
    """
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        flag = "--" + spec.name.replace("_", "-")
        choices, at_least = spec.metadata.get("choices"), spec.metadata.get("at_least")
        if choices and value not in choices:
            raise ConfigError(f"{flag} is {value!r}; valid are {', '.join(choices)}")
        if at_least is not None and value is not None and not value >= at_least:
            raise ConfigError(f"{flag} is {value}; it must be at least {at_least:g}")
        if isinstance(value, float) and math.isinf(value) and not spec.metadata.get("infinite"):
            raise ConfigError(f"{flag} is {value}; it must be a finite number")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the engine runs and how much it may use. None and "auto" are settled once the model and device are known."""

    model: str | None = option(
        None,
        "what to serve: a Hugging Face folder, a .gguf file, a hub id (org/name; from the local cache when offline), "
        "or the built-in smollm2-135m-instruct, which is also what no --model means",
        metavar="NAME|FOLDER|FILE.gguf|HUB_ID",
    )
    dtype: str = option(
        "auto",
        "number type of weights, activations and KV cache; auto is the checkpoint's own on a GPU and "
        "bfloat16 on a CPU that computes in it, else float32",
        choices=("auto", "bfloat16", "float16", "float32"),
    )
    quantization: str = option(
        "none",
        "int8: make the weights of linear layers int8 while loading, from any checkpoint, their inputs as they come; "
        "a checkpoint that is int8 already is served so by itself, and int8 then adds its lm_head "
        "(deepseek-serve quantize makes one)",
        choices=("none", "int8"),
    )
    device: str = option("auto", "auto takes a GPU where there is one", choices=("auto", "cpu", "cuda"))
    kernels: str = option(
        "auto",
        "which kernels to run; auto takes the fastest that this machine has, a choice that it lacks is an error",
        choices=("auto", "native", "torch", "flash-attn", "reference"),
    )
    threads: int | None = option(
        None, "CPU threads for arithmetic; default: the cores this process may use", at_least=1
    )
    max_batch_size: int = option(32, "sequences computed in one step at most", at_least=1)
    max_seq_len: int | None = option(
        None, "tokens of one sequence at most, prompt and output; default: what the model was made for", at_least=1
    )
    max_batched_tokens: int | None = option(
        None,
        "tokens computed in one step at most; longer prompts are cut into chunks, so a smaller value lets "
        "others start sooner and a larger one prefills faster; default: 512 on a CPU, 8192 on a GPU",
        at_least=1,
    )
    policy: str = option(
        "length",
        "which waiting sequence starts next: length (shortest first, and ageing), fcfs, priority (the request's field, "
        "smallest first) or fair (tokens shared among API keys)",
        choices=tuple(POLICIES),
    )
    target_itl: float | None = option(
        None,
        "milliseconds between the tokens of running streams to aim at: prompts are cut into smaller chunks beside them",
        metavar="MS",
    )
    prefill_share: float = option(
        0.8,
        "without --target-itl: time that a step gives to each prompt that it computes, as a multiple of what its "
        "running streams take, so 0.8 aims at 1.8 times their time between tokens beside one prompt; inf is no bound",
        metavar="X",
        infinite=True,
    )
    block_size: int = option(16, "tokens in one block of the KV cache", at_least=1)
    kv_cache_memory: float | None = option(
        None, "memory for the KV cache; default: a quarter of what is free on a CPU, 85%% on a GPU", metavar="GiB"
    )
    kv_cache_dtype: str = option(
        "auto",
        "what keys and values are cached as: auto is the number type of --dtype; int8, with a scale for each token and "
        "head, holds about twice the tokens and is read faster, for a loss below what can be measured on most texts",
        choices=("auto", "int8"),
    )
    num_kv_blocks: int | None = option(None, "the KV cache's size in blocks, instead of --kv-cache-memory", at_least=1)
    prefix_caching: str = option(
        "on",
        "keep the blocks of finished sequences, until memory is wanted, for prompts that begin the same way",
        choices=("on", "off"),
    )
    seed: int = option(0, "base of the random seeds of requests that bring none", at_least=0)

    def __post_init__(self) -> None:
        check_options(self)
        if self.kv_cache_memory is not None and not self.kv_cache_memory > 0:
            raise ConfigError(f"--kv-cache-memory is {self.kv_cache_memory}; it must be more than 0 (GiB)")
        for name, most in (("threads", 65536), ("block_size", 65536), ("max_batch_size", 1 << 20)):
            value = getattr(self, name)
            if value is not None and value > most:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at most {most}")
        if self.target_itl is not None and not self.target_itl > 0:
            raise ConfigError(f"--target-itl is {self.target_itl}; it must be more than 0 (milliseconds)")
        if not self.prefill_share > 0:
            raise ConfigError(f"--prefill-share is {self.prefill_share}; it must be more than 0")
        if self.kv_cache_memory is not None and self.num_kv_blocks is not None:
            raise ConfigError("--kv-cache-memory and --num-kv-blocks both size the KV cache; give one of them")
        if self.max_batched_tokens is not None and self.max_batched_tokens < self.max_batch_size:
            raise ConfigError(
                f"--max-batched-tokens is {self.max_batched_tokens}; it must be at least --max-batch-size "
                f"({self.max_batch_size}), so that every running sequence can advance in each step"
            )
