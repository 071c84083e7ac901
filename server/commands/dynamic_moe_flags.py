"""The flags of `deepseek-serve make-checkpoint --like dynamic-moe`: what DynamicMoE has and other models have not."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError
from server.arguments import positive

if TYPE_CHECKING:
    from collections.abc import Callable

ATTENTION_TYPES = ("full", "local", "block_sparse")  # as engine.models.dynamic_moe_config reads them


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a group of flags, each of which sets a key of config.json."""
    group = parser.add_argument_group(
        "of --like dynamic-moe",
        "DynamicMoE (docs/dynamic-moe.md). Example: --like dynamic-moe --layers 6 --attention-types "
        "full,local,block_sparse --local-window 128 --labels good,bad --reasoning-head",
    )
    for flag, (name, type_, metavar, text) in _VALUES.items():
        group.add_argument(flag, dest=name, type=type_, metavar=metavar, help=text)
    group.add_argument("--reasoning-head", action="store_true", default=None, help="a head that values the text so far")


def settings(args: argparse.Namespace, num_layers: int) -> dict[str, Any]:
    """Keys of config.json of the flags that were given.

    Raises:
        ConfigError: there are more attention types than layers.
    """
    values = {name: value for name, value in _given(args).items() if name not in ("labels", "reasoning_head")}
    if (types := values.get("attention_types")) is not None:
        if len(types) > num_layers:
            raise ConfigError(f"--attention-types names {len(types)} types for {num_layers} layers (--layers)")
        values["attention_types"] = [types[layer % len(types)] for layer in range(num_layers)]
    if values.get("memory_compression_ratio") == 0:
        values["memory_compression_ratio"] = None
    heads: dict[str, Any] = {"classification": {"labels": args.labels}} if args.labels else {}
    heads |= {"reasoning": {}} if args.reasoning_head else {}
    return {**values, "task_heads": heads} if heads else values


def refuse(args: argparse.Namespace) -> None:
    """Raise an error if one of these flags was given for another model.

    Raises:
        ConfigError: naming the flag.
    """
    for name in _given(args):
        flag = next(flag for flag, dest in _FLAGS.items() if dest == name)
        raise ConfigError(f"{flag} is not for --like {args.like}; it is for dynamic-moe alone")


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name in _FLAGS.values() if (value := getattr(args, name)) is not None}


def _types(text: str) -> list[str]:
    types = text.split(",")
    if unknown := [name for name in types if name not in ATTENTION_TYPES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(ATTENTION_TYPES)}")
    return types


def _labels(text: str) -> list[str]:
    labels = text.split(",")
    if not all(labels) or len({*labels}) < len(labels):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different names, separated by commas")
    return labels


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


_VALUES: dict[str, tuple[str, Callable[[str], Any], str, str]] = {  # flag -> key of config.json, type, metavar, help
    "--attention-types": (
        "attention_types",
        _types,
        "TYPE,...",
        f"of {', '.join(ATTENTION_TYPES)}; one a layer, repeated from the first where there are fewer "
        "(default: block_sparse)",
    ),
    "--local-window": ("local_window", positive, "N", "positions that a local layer sees (default: 256)"),
    "--sparse-block": ("sparse_block_size", positive, "N", "positions of a block of block_sparse (default: 64)"),
    "--sparse-global": ("sparse_num_global_blocks", _count, "N", "first blocks, which all queries see (default: 1)"),
    "--sparse-local": ("sparse_num_local_blocks", _count, "N", "last blocks, the query's own included (default: 2)"),
    "--sparse-random": ("sparse_num_random_blocks", _count, "N", "blocks that a hash chooses between (default: 3)"),
    "--sparse-seed": ("sparse_seed", _count, "N", "of that hash (default: 0)"),
    "--router-hidden": ("router_hidden_size", positive, "N", "width of the router (default: 256)"),
    "--compression-ratio": (
        "memory_compression_ratio",
        float,
        "X",
        "width of the compression blocks as a part of the hidden size (default: 0.4); 0 for no blocks",
    ),
    "--modalities": ("num_modalities", positive, "N", "of text, code, image (default: 3)"),
    "--labels": ("labels", _labels, "NAME,...", "labels of a classification head (default: no such head)"),
}
_FLAGS = {flag: value[0] for flag, value in _VALUES.items()} | {"--reasoning-head": "reasoning_head"}
