"""Write a small random checkpoint with the structure of a real model, and a tokenizer, ready to serve."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from engine.errors import ConfigError, ModelError
from engine.loading.presets import PRESETS
from engine.loading.resolve import resolve_model
from server.arguments import Parser, positive
from server.commands import dynamic_moe_flags
from server.commands.output import fault_of
from server.commands.stopping import stoppable

SIZES = {  # flag -> config.json's name: DeepSeek's, and DynamicMoE's where it differs
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "intermediate": "intermediate_size",
    "moe-intermediate": "moe_intermediate_size",
    "heads": "num_attention_heads",
    "experts": "n_routed_experts",
    "experts-per-token": "num_experts_per_tok",
    "kv-lora-rank": "kv_lora_rank",
    "q-lora-rank": "q_lora_rank",
}
_DYNAMIC_MOE = {"n_routed_experts": "moe_num_experts", "num_experts_per_tok": "moe_top_k"}


def main(argv: list[str]) -> int:
    """Run the command; the exit status."""
    args = _parser().parse_args(argv)
    from engine.loading import random_checkpoint  # imports torch, which --help need not wait for
    from server.text.tokenizer import Tokenizer

    try:
        with stoppable():
            config = _config(PRESETS[args.like], args)
            tokenizer = Tokenizer.load(resolve_model(args.tokenizer))
            ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
            config |= {"vocab_size": tokenizer.vocab_size, **ids, **_settings(args.set)}
            num_parameters = random_checkpoint.write(
                args.out,
                config,
                dtype=random_checkpoint.DTYPES[args.dtype],
                seed=args.seed,
                fp8=args.fp8,
                progress=sys.stderr.isatty(),
            )
            tokenizer.save(args.out)
    except (ConfigError, ModelError, OSError, RuntimeError, MemoryError) as error:
        sys.stderr.write(f"deepseek-serve make-checkpoint: error: {fault_of(error, args.out)}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\ndeepseek-serve make-checkpoint: stopped; no weights are kept\n")
        return 130
    sys.stdout.write(f"{args.out}: {num_parameters / 1e6:.1f} M random parameters; deepseek-serve --model {args.out}\n")
    return 0


def _parser() -> Parser:
    parser = Parser("deepseek-serve make-checkpoint", __doc__)
    add = parser.add_argument
    presets, structure = sorted(PRESETS), "the model whose structure it gets"
    add("--like", required=True, choices=presets, metavar="NAME", help=f"{structure}: {', '.join(presets)}")
    add("--out", required=True, type=Path, metavar="DIR", help="the folder to write")
    for flag, name in SIZES.items():
        also = f" ({_DYNAMIC_MOE[name]} of dynamic-moe)" if name in _DYNAMIC_MOE else ""
        add(f"--{flag}", dest=name, type=positive, metavar="N", help=f"{name} of config.json{also}")
    dynamic_moe_flags.add_flags(parser)
    add("--set", action="append", default=[], metavar="KEY=JSON", help="any other key of config.json; may be repeated")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add("--fp8", action="store_true", help="store linear layers in FP8 with block factors, as V3 is released")
    add("--seed", type=int, default=0, help="of the random numbers (default: %(default)s)")
    add("--tokenizer", metavar="MODEL", help="whose tokenizer and chat template it gets; default: the built-in model's")
    return parser


def _config(preset: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    is_dynamic = args.like == "dynamic-moe"
    sizes = {}
    for flag, name in SIZES.items():
        if (value := getattr(args, name)) is None:
            continue
        own_name = _DYNAMIC_MOE.get(name, name) if is_dynamic else name
        if own_name not in preset:
            raise ConfigError(f"--{flag} is not for --like {args.like}, which has no {name}")
        sizes[own_name] = value
    if "num_attention_heads" in sizes:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    config = preset | sizes
    if is_dynamic:
        return config | dynamic_moe_flags.settings(args, config["num_hidden_layers"])
    dynamic_moe_flags.refuse(args)
    return config


def _settings(pairs: list[str]) -> dict[str, Any]:
    settings = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            separator = ""
        if not separator:
            raise ConfigError(f"--set {pair}: expected KEY=JSON, such as index_topk=64 or 'hidden_act=\"silu\"'")
    return settings
