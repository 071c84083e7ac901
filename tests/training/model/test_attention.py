"""Attention of every pattern against a dense mask, forward and backward, and how much memory it takes."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from kernels.attention_pattern import FULL, AttentionPattern, BlockSparseAttention, LocalAttention
from tests.support.tensor_sizes import LargestTensor, PeakMemory
from tests.support.token_batches import make_tokens
from training.model import attention
from training.model import causal_attention as causal
from training.model.attention import attend_to_all, attend_to_blocks
from training.model.attention_dropout import attend_with_dropout
from training.model.losses import cross_entropy
from training.model.visible_blocks import block_plan

PATTERNS: dict[str, AttentionPattern] = {
    "full": FULL,
    "local 1": LocalAttention(1),
    "local 20": LocalAttention(20),
    "local 65": LocalAttention(65),
    "local 300": LocalAttention(300),
    "sparse 16": BlockSparseAttention(16, 1, 2, 3, seed=3, layer=1),
    "sparse 7, no random blocks": BlockSparseAttention(7, 2, 1, 0),
    "sparse 16, random blocks alone": BlockSparseAttention(16, 0, 0, 2, layer=2),
    "sparse 64": BlockSparseAttention(64, 1, 1, 1),
}
LONG = 4096


def sees(pattern: AttentionPattern, query: int, key: int) -> bool:
    if key > query or pattern == FULL:
        return key <= query
    if isinstance(pattern, LocalAttention):
        return key > query - pattern.window
    return key // pattern.block_size in pattern.visible_blocks(query // pattern.block_size)


@functools.cache
def dense_mask(pattern: AttentionPattern, length: int) -> torch.Tensor:
    return torch.tensor([[sees(pattern, query, key) for key in range(length)] for query in range(length)])


def dense(q, k, v, pattern):
    """[B, T, Q, D], by a T x T mask."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    mask = dense_mask(pattern, q.shape[1])
    scores = torch.einsum("btnd,bsnd->bnts", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bnts,bsnd->btnd", scores.masked_fill(~mask, -math.inf).softmax(-1), v)


def attend(q, k, v, pattern):
    plan = block_plan(pattern, q.shape[1])
    return attend_to_all(q, k, v) if plan is None else attend_to_blocks(q, k, v, plan)


def without_dropout(q, k, v, pattern):
    return attend_with_dropout(q, k, v, pattern, 0.0)


@pytest.mark.parametrize("compute", [attend, without_dropout])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 64, 131])
@pytest.mark.parametrize("name", PATTERNS)
def test_outputs_and_gradients_are_those_of_a_dense_mask(name, length, kv_heads, compute):
    check(PATTERNS[name], length, kv_heads, compute)


def check(pattern, length, kv_heads, compute):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, length, heads, 16, generator=generator) for heads in (4, kv_heads, kv_heads)]
    out_grad = torch.randn(2, length, 4, 16, generator=generator)
    results = []
    for function in (dense, compute):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves, pattern)
        results.append([out, *torch.autograd.grad(out, leaves, out_grad)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 131, 300])
def test_products_for_bf16_are_exact_in_fp32(length, monkeypatch):
    """The path that bf16 takes on CPUs, with parts of 32 queries."""
    monkeypatch.setattr(causal, "_VALUES", 1)
    monkeypatch.setattr(attention, "_prefers_products", lambda _: True)
    for pattern in (FULL, PATTERNS["local 65"], PATTERNS["sparse 16"]):
        check(pattern, length, 2, attend)


def test_dropout_drops_its_share_of_the_weights_and_scales_the_others():
    """Each key's value is a unit vector of its own, so that outputs are the weights."""
    length, dropout = 64, 0.25
    values = torch.eye(length)[None, :, None].expand(1, length, 1, length)
    queries = torch.zeros(1, length, 1, length)
    torch.manual_seed(0)
    out = attend_with_dropout(queries, queries, values, FULL, dropout)[0, :, 0]
    counts = torch.arange(1, length + 1)[:, None]
    is_visible = torch.ones(length, length).tril().bool()
    share = (out[is_visible] == 0).float().mean()
    assert share == pytest.approx(dropout, abs=0.03)
    weights = (out * counts)[out != 0]
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / (1 - dropout)))


@pytest.mark.parametrize(("precision", "dropout"), [("float32", 0.0), ("float32", 0.1), ("bfloat16", 0.0)])
@pytest.mark.parametrize("kind", ["full", "local", "block_sparse"])
def test_training_on_4096_tokens_makes_no_tensor_of_4096_x_4096(make_model, kind, dropout, precision):
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "moe_intermediate_size": 16}
    model = make_model(
        "mixed",
        num_hidden_layers=1,
        attention_types=[kind],
        local_window=256,
        sparse_block_size=64,
        sparse_num_random_blocks=3,
        attention_dropout=dropout,
        **sizes,
    )
    tokens = make_tokens(LONG)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = cross_entropy(model, model(tokens), tokens.token_ids_BT)
        loss.backward()

    with LargestTensor() as largest:
        step()
    assert largest.numel <= LONG * 1024
    with PeakMemory() as peak:
        step()
    assert peak.bytes < 2 * LONG * LONG * 4  # the heads' scores of all pairs
