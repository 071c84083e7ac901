"""Tokens per second of a training step of DynamicMoE, without data and optimizer, and the use of the machine.

python -m benchmarks.training --precision bfloat16 --rows 8 --tokens 512 --attention full,local,block_sparse

With --clock cpu it counts the processor's time, of one thread: what a core does, on a machine that is busy.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from server.commands.output import report
from training.batch import TokenBatch
from training.model.build import build_model
from training.model.description import ModelDescription
from training.model.dynamic_moe import DynamicMoE
from training.model.losses import cross_entropy
from training.work import TrainingWork

_PEAK_SIZE = 2048
_SIZES = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "moe_num_experts": 8,
    "moe_top_k": 2,
    "moe_intermediate_size": 512,
}


def main() -> None:
    """Run one configuration; print a summary on a terminal, and one JSON line into a pipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, size in _SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size, help="as in config.json")
    parser.add_argument("--attention", default="full,local,block_sparse", help="types of layers, which take turns")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512, help="of a row")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--repeats", type=int, default=5, help="number of steps; the fastest is reported")
    parser.add_argument("--json", action="store_true", help="print JSON on a terminal too")
    args = parser.parse_args()
    as_json = vars(args).pop("json")

    clock = time.perf_counter
    if args.clock == "cpu":
        torch.set_num_threads(1)
        clock = time.process_time
    types = (args.attention.split(",") * args.num_hidden_layers)[: args.num_hidden_layers]
    sizes = {name: getattr(args, name) for name in _SIZES}
    raw = {
        "architectures": ["DynamicMoEForCausalLM"],
        "attention_types": types,
        "expert_capacity": args.moe_num_experts,  # nothing is dropped: all that is counted is computed
        **sizes,
    }
    description = ModelDescription.parse(raw)
    model = build_model(description, None)
    model.activation_checkpointing = args.activation_checkpointing
    dtype = getattr(torch, args.precision)
    peak = 2 * _PEAK_SIZE**3 / _fastest(clock, args.repeats, _product(dtype))
    seconds = _fastest(clock, args.repeats, lambda: _step(model, args.rows, args.tokens, dtype))
    flops = TrainingWork(description.config).flops([args.tokens] * args.rows)
    result = {
        **vars(args),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "tokens_per_second": args.rows * args.tokens / seconds,
        "flops_per_second": flops / seconds,
        "mfu": flops / seconds / peak,
    }
    text = (
        f"{result['tokens_per_second']:.0f} tokens/s, {seconds:.3f} s a step of {result['parameters'] / 1e6:.1f} M "
        f"parameters; {flops / seconds / 1e9:.0f} GFLOP/s, {result['mfu']:.0%} of {peak / 1e9:.0f}\n"
    )
    report(text, result, as_json=as_json)


def _product(dtype: torch.dtype) -> Any:
    a, b = (torch.randn(_PEAK_SIZE, _PEAK_SIZE).to(dtype) for _ in range(2))
    return lambda: torch.mm(a, b)


def _step(model: DynamicMoE, rows: int, num_tokens: int, dtype: torch.dtype) -> None:
    """The gradients of a micro batch."""
    ids = torch.randint(model.config.vocab_size, (rows, num_tokens))
    tokens = TokenBatch(ids, torch.zeros_like(ids), torch.full((rows,), num_tokens))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = cross_entropy(model, model(tokens), ids.roll(-1, 1)) / ids.numel()
    loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()


def _fastest(clock: Any, repeats: int, work: Any) -> float:
    """Seconds, after a run that warms up."""
    times = []
    for _ in range(repeats + 1):
        started = clock()
        work()
        times.append(clock() - started)
    return float(min(times[1:]))


if __name__ == "__main__":
    main()
