"""Times of native operations, of their torch versions, and the machine's lower bound.

python -m benchmarks.kernels --only paged_attention

The lower bound ("best") is the larger of two times: bytes read, at the bandwidth of a sum over a large tensor; and
flops, at the rate of a large matrix product in the same dtype (half of them count where products are of int8, of which
an instruction computes twice as many). KV caches are larger than the processor's cache, and
blocks are scattered, as in a server. Each time is the fastest of several calls.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch

from benchmarks.attention_cases import Step, causal, latent, paged, selected, store
from benchmarks.kernel_case import Case, fastest, peak_flops, read_bandwidth
from benchmarks.layer_cases import compression, experts, gelu, head_linear, linear, modality_embedding, route
from engine import device as devices
from kernels import native
from kernels.attention_pattern import FULL, BlockSparseAttention, LocalAttention
from kernels.resolve import resolve
from kernels.routing import RoutingRule

_SMOL, _LLAMA = (9, 3, 64), (32, 8, 128)  # heads, key heads, values of each
_MLA = (16, 512, 64)  # heads, latent, rotary values
_V3_RULE = RoutingRule(8, is_sigmoid=True, n_group=8, topk_group=4, best_of_group=2, renormalises=True, scale=2.5)


def main() -> None:
    """Print a table on stderr and one JSON line on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    args = parser.parse_args()
    threads, dtype = args.threads or devices.num_cores(), devices.DTYPES[args.dtype]
    devices.set_threads(threads)
    with torch.inference_mode():
        bandwidth, peak = read_bandwidth(), peak_flops(dtype)
        backends = {name: resolve(name, torch.device("cpu"), dtype) for name in ("native", "torch")}
        sys.stderr.write(
            f"{native.ISA}, {args.dtype}, {threads} threads: {bandwidth / 1e9:.1f} GB/s read, "
            f"{peak / 1e9:.0f} GFLOP/s\n{'':52}{'native':>10}{'torch':>10}{'best':>10} ms\n"
        )
        results = []
        for case in _cases(dtype):
            if args.only not in case.name:
                continue
            best = 1e3 * max(case.num_bytes / bandwidth, case.flops / peak)
            ms = {name: 1e3 * fastest(case.make(ops)) for name, ops in backends.items()}
            sys.stderr.write(f"{case.name:52}{ms['native']:10.3f}{ms['torch']:10.3f}{best:10.3f}\n")
            results.append({"name": case.name, "best_ms": best, **{f"{name}_ms": value for name, value in ms.items()}})
    machine = {"isa": native.ISA, "threads": threads, "read_bytes_per_second": bandwidth, "flops_per_second": peak}
    sys.stdout.write(json.dumps({"dtype": args.dtype, **machine, "cases": results}) + "\n")


def _cases(dtype: torch.dtype) -> list[Case]:
    return [
        *_attention(dtype),
        *_attention_patterns(dtype),
        *_latent_attention(dtype),
        *_products(dtype),
        *_others(dtype),
    ]


def _attention(dtype: torch.dtype) -> list[Case]:
    cases = (
        ("prefill 512, SmolLM2", Step([512], [512]), _SMOL, "auto"),
        ("prefill 4096, SmolLM2", Step([4096], [4096]), _SMOL, "auto"),
        ("chunk 512 of 4096, SmolLM2", Step([512], [4096]), _SMOL, "auto"),
        ("chunk 512 of 2048, 32/8/128", Step([512], [2048]), _LLAMA, "auto"),
        ("decode 1 x 160, SmolLM2", Step([1], [160]), _SMOL, "auto"),
        ("decode 32 x 192, SmolLM2", Step([1] * 32, [192] * 32), _SMOL, "auto"),
        ("decode 32 x 4096, SmolLM2", Step([1] * 32, [4096] * 32), _SMOL, "auto"),
        ("decode 8 x 2048, 32/8/128", Step([1] * 8, [2048] * 8), _LLAMA, "auto"),
        ("decode 32 x 4096, int8", Step([1] * 32, [4096] * 32), _SMOL, "int8"),
        ("decode 8 x 2048, int8", Step([1] * 8, [2048] * 8), _LLAMA, "int8"),
        ("decode 32 x 4096, int4", Step([1] * 32, [4096] * 32), _SMOL, "int4"),
        ("decode 8 x 2048, int4", Step([1] * 8, [2048] * 8), _LLAMA, "int4"),
        ("chunk 512 of 4096, int8", Step([512], [4096]), _SMOL, "int8"),
        ("chunk 512 of 4096, int4", Step([512], [4096]), _SMOL, "int4"),
    )
    return [paged(f"paged_attention {name}", step, *sizes, dtype, kind=kind) for name, step, sizes, kind in cases]


def _attention_patterns(dtype: torch.dtype) -> list[Case]:
    local, sparse = LocalAttention(256), BlockSparseAttention(64, 1, 2, 3)  # DynamicMoE's, by default
    return [
        paged(f"paged_attention {kind} {length}, 16/4/64, {name}", step, 16, 4, 64, dtype, pattern=pattern)
        for name, pattern in (("full", FULL), ("local", local), ("block_sparse", sparse))
        for kind, length, step in (
            ("decode 4 x", 2048, Step([1] * 4, [2048] * 4)),
            ("decode 4 x", 32768, Step([1] * 4, [32768] * 4)),
            ("prefill", 8192, Step([8192], [8192])),
        )
    ]


def _latent_attention(dtype: torch.dtype) -> list[Case]:
    cases = (
        ("decode 1 x 160, V2-Lite", Step([1], [160]), "auto"),
        ("decode 32 x 192, V2-Lite", Step([1] * 32, [192] * 32), "auto"),
        ("decode 32 x 2048, V2-Lite", Step([1] * 32, [2048] * 32), "auto"),
        ("decode 32 x 2048, V2-Lite, int8", Step([1] * 32, [2048] * 32), "int8"),
        ("decode 32 x 2048, V2-Lite, int4", Step([1] * 32, [2048] * 32), "int4"),
        ("chunk 128 of 1024, V2-Lite", Step([128], [1024]), "auto"),
    )
    return [
        *(latent(f"latent_attention {name}", step, *_MLA, dtype, kind=kind) for name, step, kind in cases),
        selected("lightning_indexer decode 8 x 8192, V3.2", Step([1] * 8, [8192] * 8), dtype),
        selected("sparse_latent_attention decode 8 x 8192, V3.2", Step([1] * 8, [8192] * 8), dtype),
        causal("causal_attention 512 of 2048, 16/192/128", 512, 2048, 16, 192, 128, dtype),
    ]


def _products(dtype: torch.dtype) -> list[Case]:
    return [
        head_linear("head_linear 1 x 16 x 128 x 512", 1, 16, 128, 512, dtype),
        head_linear("head_linear 32 x 16 x 128 x 512", 32, 16, 128, 512, dtype),
        head_linear("head_linear 32 x 16 x 512 x 128", 32, 16, 512, 128, dtype),
        *(
            linear(f"linear {kind} {rows} x 2048 x 2048", rows, 2048, 2048, kind, dtype)
            for kind in ("int8", "q4_0", "q8_0", "q4_k", "q6_k", "q5_0")
            for rows in (1, 8, 32, 512)
        ),
        *(
            experts(f"grouped_mlp {kind} {rows}, V2-Lite", rows, kind, dtype)
            for kind in ("int8", "q4_0")
            for rows in (1, 8, 32, 512)
        ),
    ]


def _others(dtype: torch.dtype) -> list[Case]:
    return [
        route("routing 1, V2-Lite", 1, 64, RoutingRule(6)),
        route("routing 32, V3", 32, 256, _V3_RULE),
        route("routing 512, V3", 512, 256, _V3_RULE),
        gelu("gelu 32 x 409", 32, 409, dtype),
        modality_embedding("modality_embedding 32, 1024", 32, 1024, dtype),
        *(compression(f"compression {rows}, 1024 to 409", rows, 1024, 409, dtype) for rows in (1, 32, 512)),
        *(store(f"rotate_and_store {rows}, SmolLM2", rows, *_SMOL, dtype) for rows in (1, 32, 512)),
        *(store(f"rotate_and_store 512, SmolLM2, {kind}", 512, *_SMOL, dtype, kind=kind) for kind in ("int8", "int4")),
    ]


if __name__ == "__main__":
    main()
