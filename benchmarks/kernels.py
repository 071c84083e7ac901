"""Times of native operations, of their torch versions, and the machine's lower bound.

python -m benchmarks.kernels --only paged_attention

The lower bound ("best") is the larger of two times: bytes read, at the bandwidth of a sum over a large tensor; and
flops, at the rate of a large matrix product in the same dtype (half of them count where products are of int8, of which
an instruction computes twice as many). KV caches are larger than the processor's cache, and
blocks are scattered, as in a server. Each time is the fastest of several calls.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from engine import device as devices
from engine.kv_cache_pool import CacheLayout, KVCachePool
from kernels import native
from kernels.attention_pattern import FULL, BlockSparseAttention, LocalAttention
from kernels.block_weight import FORMATS, BlockWeight
from kernels.kv_cache import values_of
from kernels.ops import Ops, resolve
from kernels.packed_rows import PackedRow
from kernels.paged_attention import AttentionBatch
from kernels.quantized_weight import Input, quantize_weight
from kernels.routing import RoutingRule

if TYPE_CHECKING:
    from collections.abc import Callable

    from kernels.attention_pattern import AttentionPattern
    from kernels.kv_cache import Cache
    from kernels.types import Weight

_CPU = torch.device("cpu")
_BLOCK = 16
_V3_RULE = RoutingRule(8, is_sigmoid=True, n_group=8, topk_group=4, best_of_group=2, renormalises=True, scale=2.5)


@dataclass(frozen=True)
class Case:
    """An operation at one size.

    Attributes:
        make: returns a call without arguments that runs the operation of a backend.
        num_bytes: bytes that the call must read or write.
        flops: flops of the call, 2 for a multiply-add.
    """

    name: str
    make: Callable[[Ops], Callable[[], object]]
    num_bytes: float
    flops: float


@dataclass(frozen=True)
class Step:
    """Number of queries and of positions (queries included) of each sequence in a step."""

    query_lens: list[int]
    context_lens: list[int]

    def batch(self, seed: int = 0) -> tuple[AttentionBatch, int]:
        """A batch with scattered blocks, and the number of blocks."""
        used = [-(-context_len // _BLOCK) for context_len in self.context_lens]
        ids = torch.randperm(sum(used), generator=torch.Generator().manual_seed(seed)).tolist()
        tables = [[ids.pop() for _ in range(count)] for count in used]
        return AttentionBatch(self.query_lens, self.context_lens, tables, _BLOCK, _CPU), sum(used)

    def num_pairs(self, pattern: AttentionPattern = FULL) -> int:
        """Number of pairs of a query and a visible position."""
        return sum(itertools.starmap(pattern.num_pairs, zip(self.query_lens, self.context_lens, strict=True)))

    def num_read(self, pattern: AttentionPattern = FULL) -> int:
        """Number of visible positions."""
        return sum(itertools.starmap(pattern.num_read, zip(self.query_lens, self.context_lens, strict=True)))


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
        backends = {name: resolve(name, _CPU, dtype) for name in ("native", "torch")}
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
    smol, llama, mla = (9, 3, 64), (32, 8, 128), (16, 512, 64)
    local, sparse = LocalAttention(256), BlockSparseAttention(64, 1, 2, 3)  # DynamicMoE's, by default
    return [
        paged("paged_attention prefill 512, SmolLM2", Step([512], [512]), *smol, dtype),
        paged("paged_attention prefill 4096, SmolLM2", Step([4096], [4096]), *smol, dtype),
        paged("paged_attention chunk 512 of 4096, SmolLM2", Step([512], [4096]), *smol, dtype),
        paged("paged_attention chunk 512 of 2048, 32/8/128", Step([512], [2048]), *llama, dtype),
        paged("paged_attention decode 1 x 160, SmolLM2", Step([1], [160]), *smol, dtype),
        paged("paged_attention decode 32 x 192, SmolLM2", Step([1] * 32, [192] * 32), *smol, dtype),
        paged("paged_attention decode 32 x 4096, SmolLM2", Step([1] * 32, [4096] * 32), *smol, dtype),
        paged("paged_attention decode 8 x 2048, 32/8/128", Step([1] * 8, [2048] * 8), *llama, dtype),
        paged("paged_attention decode 32 x 4096, int8", Step([1] * 32, [4096] * 32), *smol, dtype, kind="int8"),
        paged("paged_attention decode 8 x 2048, int8", Step([1] * 8, [2048] * 8), *llama, dtype, kind="int8"),
        paged("paged_attention decode 32 x 4096, int4", Step([1] * 32, [4096] * 32), *smol, dtype, kind="int4"),
        paged("paged_attention decode 8 x 2048, int4", Step([1] * 8, [2048] * 8), *llama, dtype, kind="int4"),
        paged("paged_attention chunk 512 of 4096, int8", Step([512], [4096]), *smol, dtype, kind="int8"),
        paged("paged_attention chunk 512 of 4096, int4", Step([512], [4096]), *smol, dtype, kind="int4"),
        *(
            paged(f"paged_attention {kind} {length}, 16/4/64, {name}", step, 16, 4, 64, dtype, pattern=pattern)
            for name, pattern in (("full", FULL), ("local", local), ("block_sparse", sparse))
            for kind, length, step in (
                ("decode 4 x", 2048, Step([1] * 4, [2048] * 4)),
                ("decode 4 x", 32768, Step([1] * 4, [32768] * 4)),
                ("prefill", 8192, Step([8192], [8192])),
            )
        ),
        _latent("latent_attention decode 1 x 160, V2-Lite", Step([1], [160]), *mla, dtype),
        _latent("latent_attention decode 32 x 192, V2-Lite", Step([1] * 32, [192] * 32), *mla, dtype),
        _latent("latent_attention decode 32 x 2048, V2-Lite", Step([1] * 32, [2048] * 32), *mla, dtype),
        *(
            _latent(
                f"latent_attention decode 32 x 2048, V2-Lite, {kind}",
                Step([1] * 32, [2048] * 32),
                *mla,
                dtype,
                kind=kind,
            )
            for kind in ("int8", "int4")
        ),
        _selected("lightning_indexer decode 8 x 8192, V3.2", Step([1] * 8, [8192] * 8), dtype),
        _selected("sparse_latent_attention decode 8 x 8192, V3.2", Step([1] * 8, [8192] * 8), dtype),
        _latent("latent_attention chunk 128 of 1024, V2-Lite", Step([128], [1024]), *mla, dtype),
        _causal("causal_attention 512 of 2048, 16/192/128", 512, 2048, 16, 192, 128, dtype),
        _head_linear("head_linear 1 x 16 x 128 x 512", 1, 16, 128, 512, dtype),
        _head_linear("head_linear 32 x 16 x 128 x 512", 32, 16, 128, 512, dtype),
        _head_linear("head_linear 32 x 16 x 512 x 128", 32, 16, 512, 128, dtype),
        *(
            _linear(f"linear {kind} {rows} x 2048 x 2048", rows, 2048, 2048, kind, dtype)
            for kind in ("int8", "q4_0", "q8_0", "q4_k", "q6_k", "q5_0")
            for rows in (1, 8, 32, 512)
        ),
        *(
            _experts(f"grouped_mlp {kind} {rows}, V2-Lite", rows, kind, dtype)
            for kind in ("int8", "q4_0")
            for rows in (1, 8, 32, 512)
        ),
        _route("routing 1, V2-Lite", 1, 64, RoutingRule(6)),
        _route("routing 32, V3", 32, 256, _V3_RULE),
        _route("routing 512, V3", 512, 256, _V3_RULE),
        _gelu("gelu 32 x 409", 32, 409, dtype),
        _modality_embedding("modality_embedding 32, 1024", 32, 1024, dtype),
        _compression("compression 1, 1024 to 409", 1, 1024, 409, dtype),
        _compression("compression 32, 1024 to 409", 32, 1024, 409, dtype),
        _compression("compression 512, 1024 to 409", 512, 1024, 409, dtype),
        _store("rotate_and_store 1, SmolLM2", 1, *smol, dtype),
        _store("rotate_and_store 32, SmolLM2", 32, *smol, dtype),
        _store("rotate_and_store 512, SmolLM2", 512, *smol, dtype),
        _store("rotate_and_store 512, SmolLM2, int8", 512, *smol, dtype, kind="int8"),
        _store("rotate_and_store 512, SmolLM2, int4", 512, *smol, dtype, kind="int4"),
    ]


def _caches(layout: CacheLayout, num_blocks: int) -> list[tuple[Cache, ...]]:
    """KV caches with random values, for as many layers as fit in 256 MB."""
    num_layers = max(1, (256 << 20) // (layout.bytes_per_block * num_blocks))
    pool = KVCachePool(replace(layout, num_layers=num_layers), num_blocks, _CPU)
    for layer in pool.layers:
        for cache in layer:
            if isinstance(cache, torch.Tensor):
                cache.copy_(torch.randint(-127, 128, cache.shape[1:]) / 64)
            else:
                cache.values.copy_(torch.randint(-127, 128, cache.values.shape[1:], dtype=torch.int8))
                cache.scales.fill_(1 / 64)
    return pool.layers


def _kv_layout(num_kv_heads: int, dim: int, dtype: torch.dtype, kind: str) -> CacheLayout:
    """One layer's keys and values: `auto`, `int8` or `int4`, as --kv-cache-dtype says it."""
    return CacheLayout(
        ((num_kv_heads, dim), (num_kv_heads, dim)),
        1,
        _BLOCK,
        dtype,
        scales=(1, 1) if kind == "int8" else None,
        packed=(PackedRow(dim, 5), PackedRow(dim, 4)) if kind == "int4" else None,
    )


def _round_robin(layers: list[Any], call: Callable[..., object]) -> Callable[[], object]:
    """`call` with the tensors of the next layer each time, so that they are not in the processor's cache."""
    index = 0

    def next_layer() -> object:
        nonlocal index
        index = (index + 1) % len(layers)
        return call(*layers[index])

    return next_layer


def paged(
    name: str,
    step: Step,
    num_heads: int,
    num_kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    *,
    kind: str = "auto",
    pattern: AttentionPattern = FULL,
) -> Case:
    """Attention over keys and values. Calls take blocks from different places in turn, so as to read from memory."""
    layout = _kv_layout(num_kv_heads, dim, dtype, kind)
    num_bytes = step.num_read(pattern) * layout.entry_size

    def make(ops: Ops) -> Callable[[], object]:
        num_blocks = step.batch()[1]
        layers = _caches(layout, num_blocks)
        q_TND = torch.randn(sum(step.query_lens), num_heads, dim).to(dtype)
        num_plans = 1 if pattern == FULL else min(64, -(-(256 << 20) // num_bytes))
        plans = [ops.paged_attention.plan(step.batch(seed)[0], pattern) for seed in range(num_plans)]
        calls = [(*layers[i % len(layers)], plans[i % num_plans]) for i in range(max(len(layers), num_plans))]
        return _round_robin(calls, lambda k, v, plan: ops.paged_attention.forward(q_TND, k, v, plan, dim**-0.5))

    return Case(name, make, num_bytes, 4.0 * step.num_pairs(pattern) * num_heads * dim)


def _latent(
    name: str, step: Step, num_heads: int, latent_dim: int, rotary_dim: int, dtype: torch.dtype, *, kind: str = "auto"
) -> Case:
    batch, num_blocks = step.batch()
    width = latent_dim + rotary_dim
    scales = (2,) if kind == "int8" else None
    packed = (PackedRow(latent_dim, 4, rotary_dim),) if kind == "int4" else None
    layout = CacheLayout(((1, width),), 1, _BLOCK, dtype, scales, packed)

    def make(ops: Ops) -> Callable[[], object]:
        layers = _caches(layout, num_blocks)
        q_TNX = torch.randn(sum(step.query_lens), num_heads, width).to(dtype)
        plan, scale = ops.latent_attention.plan(batch), width**-0.5
        return _round_robin(
            layers, lambda cache: ops.latent_attention.forward(q_TNX, cache, plan, scale, latent_dim, None)
        )

    flops = 2.0 * step.num_pairs() * num_heads * (width + latent_dim)
    return Case(name, make, float(sum(step.context_lens) * layout.entry_size), flops)


def _selected(name: str, step: Step, dtype: torch.dtype, topk: int = 2048) -> Case:
    """The indexer, or the attention over what it selects, with V3.2's sizes."""
    num_heads, width, latent_dim, num_index_heads, index_dim = 128, 576, 512, 64, 128
    batch, num_blocks = step.batch()
    num_tokens = sum(step.query_lens)

    def make(ops: Ops) -> Callable[[], object]:
        layers = _caches(CacheLayout(((1, width), (1, index_dim)), 1, _BLOCK, dtype), num_blocks)
        q_TNX = torch.randn(num_tokens, num_heads, width).to(dtype)
        weights_TH = torch.randn(num_tokens, num_index_heads)
        q_THI = torch.randn(num_tokens, num_index_heads, index_dim).to(dtype)
        attention = ops.sparse_latent_attention
        plan = attention.plan(batch)
        if name.startswith("lightning_indexer"):
            return _round_robin(layers, lambda _, keys: ops.lightning_indexer(q_THI, weights_TH, keys, plan, topk))
        selection = ops.lightning_indexer(q_THI, weights_TH, values_of(layers[0][1]), plan, topk)
        return _round_robin(
            layers, lambda cache, _: attention.forward(q_TNX, cache, plan, width**-0.5, latent_dim, selection)
        )

    if name.startswith("lightning_indexer"):
        return Case(
            name,
            make,
            float(step.num_read() * index_dim * dtype.itemsize),
            2.0 * step.num_pairs() * num_index_heads * index_dim,
        )
    flops = 2.0 * num_tokens * topk * num_heads * (width + latent_dim)
    return Case(name, make, float(num_tokens * topk * width * dtype.itemsize), flops)


def _causal(
    name: str, num_queries: int, context_len: int, num_heads: int, dim: int, value_dim: int, dtype: torch.dtype
) -> Case:
    def make(ops: Ops) -> Callable[[], object]:
        q_QNX, k_LNX, v_LNV = (
            torch.randn(tokens, num_heads, size).to(dtype)
            for tokens, size in ((num_queries, dim), (context_len, dim), (context_len, value_dim))
        )
        return lambda: ops.causal_attention(q_QNX, k_LNX, v_LNV, dim**-0.5)

    flops = 2.0 * Step([num_queries], [context_len]).num_pairs() * num_heads * (dim + value_dim)
    return Case(name, make, context_len * num_heads * (dim + value_dim) * dtype.itemsize, flops)


def _head_linear(name: str, num_tokens: int, num_heads: int, num_in: int, num_out: int, dtype: torch.dtype) -> Case:
    num_bytes = num_heads * num_in * num_out * dtype.itemsize

    def make(ops: Ops) -> Callable[[], object]:
        weight_NKM = torch.randn(num_heads, num_in, num_out).to(dtype)
        copies = [ops.head_linear(weight_NKM.clone()) for _ in range(max(1, (64 << 20) // num_bytes))]
        x_TNK = torch.randn(num_tokens, num_heads, num_in).to(dtype)
        out_TNM = torch.empty(num_tokens, num_heads, num_out, dtype=dtype)
        return _round_robin([(apply,) for apply in copies], lambda apply: apply(x_TNK, out_TNM))

    return Case(name, make, num_bytes, 2.0 * num_tokens * num_heads * num_in * num_out)


def _weight(num_out: int, in_size: int, kind: str) -> Weight:
    """Random bits, of values that do not matter: int8 with a dynamic input, or a format of kernels.block_weight."""
    if kind == "int8":
        return quantize_weight(torch.randn(num_out, in_size), Input.DYNAMIC)
    form = FORMATS[kind]
    rows_OB = torch.randint(0, 64, (num_out, form.num_blocks(in_size) * form.bytes), dtype=torch.uint8)
    return BlockWeight(rows_OB, form, in_size, Input.DYNAMIC)


def _num_bytes(weight: Weight) -> int:
    return weight.rows_OB.nbytes if isinstance(weight, BlockWeight) else weight.shape[0] * weight.shape[1]


def _linear(name: str, num_tokens: int, num_out: int, in_size: int, kind: str, dtype: torch.dtype) -> Case:
    """Weights of more layers than the processor's cache holds."""
    weight, x_TI = _weight(num_out, in_size, kind), torch.randn(num_tokens, in_size).to(dtype)

    def make(ops: Ops) -> Callable[[], object]:
        num_layers = -(-(64 << 20) // _num_bytes(weight)) if ops.keeps_blocks else 1
        return _round_robin([(ops.projection(weight, None),) for _ in range(num_layers)], lambda apply: apply(x_TI))

    return Case(name, make, _num_bytes(weight), 1.0 * num_tokens * num_out * in_size)


def _experts(name: str, num_tokens: int, kind: str, dtype: torch.dtype) -> Case:
    """A layer of V2-Lite's: 6 of 64 experts for each token."""
    hidden, inter, top_k = 2048, 1408, 6
    gate_up, down = _weight(2 * inter, hidden, kind), _weight(hidden, inter, kind)
    ids_TK = torch.stack([torch.randperm(64)[:top_k] for _ in range(num_tokens)])
    weights_TK, x_TH = torch.rand(num_tokens, top_k), torch.randn(num_tokens, hidden).to(dtype)

    def make(ops: Ops) -> Callable[[], object]:
        apply = ops.grouped_mlp((gate_up, down) for _ in range(64))
        return lambda: apply(x_TH, ids_TK, weights_TK)

    num_bytes = len(ids_TK.unique()) * (_num_bytes(gate_up) + _num_bytes(down))
    return Case(name, make, num_bytes, 3.0 * num_tokens * top_k * hidden * inter)


def _route(name: str, num_tokens: int, num_experts: int, rule: RoutingRule) -> Case:
    logits_TE = torch.randn(num_tokens, num_experts)
    num_bytes = 4.0 * num_tokens * num_experts
    return Case(name, lambda ops: lambda: ops.routing(logits_TE, None, rule), num_bytes, 0.0)


def _gelu(name: str, num_tokens: int, size: int, dtype: torch.dtype) -> Case:
    x_TF = torch.randn(num_tokens, size).to(dtype)
    return Case(name, lambda ops: lambda: ops.gelu(x_TF), 2.0 * x_TF.nbytes, 0.0)


def _modality_embedding(name: str, num_tokens: int, hidden: int, dtype: torch.dtype) -> Case:
    weight_VH, scale_MH, shift_MH = torch.randn(49152, hidden).to(dtype), torch.randn(3, hidden), torch.randn(3, hidden)
    ids_T, modalities_T = torch.randint(49152, (num_tokens,)), torch.randint(3, (num_tokens,))

    def make(ops: Ops) -> Callable[[], object]:
        return lambda: ops.modality_embedding(weight_VH, scale_MH, shift_MH, ids_T, modalities_T)

    return Case(name, make, num_tokens * hidden * (dtype.itemsize + 4.0), 0.0)


def _compression(name: str, num_tokens: int, hidden: int, size: int, dtype: torch.dtype) -> Case:
    """Weights of more layers than the processor's cache holds."""
    num_layers = 64
    residual_TH, x_TH = torch.randn(num_tokens, hidden), torch.randn(num_tokens, hidden).to(dtype)

    def make(ops: Ops) -> Callable[[], object]:
        encoder = (torch.randn(size, hidden) / hidden**0.5).to(dtype), torch.zeros(size, dtype=dtype)
        decoder = (torch.randn(hidden, size) / size**0.5).to(dtype), torch.zeros(hidden, dtype=dtype)
        norm = torch.ones(hidden), torch.zeros(hidden)
        layers = [(ops.compression(encoder, decoder, norm),) for _ in range(num_layers)]
        return _round_robin(layers, lambda compress: compress(x_TH, residual_TH))

    num_values = 2.0 * hidden * size
    return Case(name, make, num_values * dtype.itemsize + 2.0 * residual_TH.nbytes, 2.0 * num_tokens * num_values)


def _store(
    name: str, num_tokens: int, num_heads: int, num_kv_heads: int, dim: int, dtype: torch.dtype, *, kind: str = "auto"
) -> Case:
    def make(ops: Ops) -> Callable[[], object]:
        layers = _caches(_kv_layout(num_kv_heads, dim, dtype, kind), 4096)
        qkv_TXD = torch.randn(num_tokens, num_heads + 2 * num_kv_heads, dim).to(dtype)
        cos_TD, sin_TD = torch.rand(num_tokens, dim), torch.rand(num_tokens, dim)
        slot_mapping_T = torch.randperm(4096)[:num_tokens] * _BLOCK + torch.randint(_BLOCK, (num_tokens,))
        return _round_robin(layers, lambda k, v: ops.rotate_and_store(qkv_TXD, cos_TD, sin_TD, k, v, slot_mapping_T))

    return Case(name, make, 2.0 * num_tokens * (num_heads + 2 * num_kv_heads) * dim * dtype.itemsize, 0.0)


def read_bandwidth() -> float:
    """Bytes per second of a sum over 512 MB."""
    values = torch.ones(64 << 20, dtype=torch.int64)
    return values.nbytes / fastest(values.sum)


def peak_flops(dtype: torch.dtype) -> float:
    """Flops per second of a product of large matrices."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    return 2.0 * 2048**3 / fastest(lambda: a @ b)


def fastest(call: Callable[[], object], least: int = 5) -> float:
    """Seconds of the fastest call, but for the first; calls are repeated for 0.3 s, and `least` times or more."""
    call()
    best, num_calls, end = float("inf"), 0, time.perf_counter() + 0.3
    while num_calls < least or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        num_calls += 1
    return best


if __name__ == "__main__":
    main()
