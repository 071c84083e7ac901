"""Time of attention in one layer against context, for each attention pattern: a decoding token's, and a prompt's.

python -m benchmarks.attention --plot docs/images/attention.svg

Prints one line for each pattern and context: microseconds a token of native code, of torch, and the machine's lower
bound ("best", as in benchmarks.kernels). Heads are those of 16 query heads, 4 key heads and 64 values.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention_cases import Step, paged
from benchmarks.kernel_case import Case, fastest, peak_flops, read_bandwidth
from engine import device as devices
from kernels import native
from kernels.attention_pattern import FULL, AttentionPattern, BlockSparseAttention, LocalAttention
from kernels.resolve import resolve

_CPU = torch.device("cpu")
_HEADS = 16, 4, 64
_PATTERNS: dict[str, AttentionPattern] = {
    "full": FULL,
    "local": LocalAttention(256),
    "block_sparse": BlockSparseAttention(64, 1, 2, 3),
}
_CONTEXTS = [2**i << 10 for i in range(7)]
_LONGEST_FULL_PROMPT = 8 << 10  # a longer one takes minutes
_DECODES = 4


def main() -> None:
    """Print a table on stderr and one JSON line on stdout; with --plot, draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--longest", type=int, default=_CONTEXTS[-1], help="longest context (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="draw the figures (needs matplotlib)")
    args = parser.parse_args()
    threads, dtype = args.threads or devices.num_cores(), devices.DTYPES[args.dtype]
    devices.set_threads(threads)
    with torch.inference_mode():
        machine = {"read_bytes_per_second": read_bandwidth(), "flops_per_second": peak_flops(dtype)}
        sys.stderr.write(f"{native.ISA}, {args.dtype}, {threads} threads; us a token\n")
        sys.stderr.write(f"{'':35}{'native':>10}{'torch':>10}{'best':>10}\n")
        contexts = [context for context in _CONTEXTS if context <= args.longest]
        results = [
            _measure(kind, name, context, dtype, machine)
            for kind in ("decode", "prefill")
            for name in _PATTERNS
            for context in contexts
            if kind == "decode" or name != "full" or context <= _LONGEST_FULL_PROMPT
        ]
    if args.plot:
        draw(results, args.plot)
    sys.stdout.write(json.dumps({"dtype": args.dtype, "threads": threads, **machine, "results": results}) + "\n")


def _measure(kind: str, name: str, context: int, dtype: torch.dtype, machine: dict[str, float]) -> dict[str, Any]:
    step = Step([1] * _DECODES, [context] * _DECODES) if kind == "decode" else Step([context], [context])
    case = paged(f"{kind} {name} {context}", step, *_HEADS, dtype, pattern=_PATTERNS[name])
    times = {backend: _seconds(case, backend, dtype) for backend in ("native", "torch")}
    times["best"] = max(case.num_bytes / machine["read_bytes_per_second"], case.flops / machine["flops_per_second"])
    us = {backend: 1e6 * seconds / sum(step.query_lens) for backend, seconds in times.items()}
    sys.stderr.write(f"{case.name:35}{us['native']:10.2f}{us['torch']:10.2f}{us['best']:10.2f}\n")
    return {"kind": kind, "pattern": name, "context": context, **{f"{key}_us": value for key, value in us.items()}}


def _seconds(case: Case, backend: str, dtype: torch.dtype) -> float:
    return fastest(case.make(resolve(backend, _CPU, dtype)), least=3)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Microseconds a token against context, decoding on the left and prompts on the right, on logarithmic axes.

    Needs matplotlib, from the extra `bench`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("--plot needs matplotlib: pip install matplotlib")
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    titles = {"decode": f"a decoding token ({_DECODES} sequences)", "prefill": "a prompt's token"}
    for axes, (kind, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for color, pattern in enumerate(_PATTERNS):
            points = [result for result in results if (result["kind"], result["pattern"]) == (kind, pattern)]
            for key, style in (("native_us", "o-"), ("torch_us", "x:")):
                label = f"{pattern}, {key.removesuffix('_us')}"
                x = [result["context"] for result in points]
                axes.plot(x, [result[key] for result in points], style, color=f"C{color}", label=label)
        axes.set(title=title, xlabel="context, tokens", ylabel="us of attention in a layer", xscale="log", yscale="log")
        ticks = sorted({result["context"] for result in results})
        axes.set_xticks(ticks, [f"{tick >> 10}k" for tick in ticks], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(_PATTERNS), fontsize="small")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
