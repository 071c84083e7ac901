"""What native functions refuse: every tensor of every function, spoilt in every way, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels import native
from kernels.kv_cache import Int8Cache, PackedCache
from kernels.packed_rows import PackedRow
from tests.kernels.compare import randn

pytestmark = pytest.mark.skipif(native.ISA is None, reason="the native kernels are not built")
BF16, F32 = torch.bfloat16, torch.float32
RULE = {
    "num_experts_per_tok": 2,
    "is_sigmoid": False,
    "n_group": 1,
    "topk_group": 1,
    "best_of_group": 1,
    "renormalises": True,
    "scale": 1.0,
}


def x(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return randn(*shape, dtype=dtype)


def ids(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape) % 5


def int8(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.int8)


def plan(kind: str) -> Any:
    if kind in ("lightning_indexer", "sparse_latent_attention"):
        return native.library.latent_attention_plan([1, 1, 1], [4, 3, 6], [[0], [1], [2]], 16)
    return getattr(native.library, f"{kind}_plan")([1, 2], [4, 3], [[0], [1]], 16)


def packed(*shape: int, dtype: torch.dtype = BF16, parts: int = 1) -> Any:
    return native.library.PackedWeight(x(*shape, dtype=dtype), None, dtype, 0.0, 0, 1, parts)


def packed_int8(*shape: int, operand: torch.dtype = torch.uint8, parts: int = 1) -> Any:
    return native.library.PackedWeight(int8(*shape), x(shape[0], dtype=F32), operand, 0.1, 3, 1, parts)


def linear(dtype: torch.dtype = BF16) -> Any:
    return native.library.Linear(packed(6, 8, dtype=dtype), x(6, dtype=F32), dtype)


def experts() -> Any:
    layer = native.library.Experts()
    for _ in range(5):
        layer.add(packed(12, 8, parts=2), packed(8, 6))
    return layer


def blocks(num_rows: int = 6) -> torch.Tensor:
    return torch.ones(num_rows, 2 * 34, dtype=torch.uint8)  # of q8_0


def block_linear() -> Any:
    weight = native.library.PackedBlocks(blocks(), "q8_0", 64, True)
    return native.library.BlockLinear([weight], x(6, dtype=F32), BF16)


WEIGHT = {
    "values_OI": x(6, 8),
    "scale_O": None,
    "operand": BF16,
    "scale": 0.0,
    "zero_point": 0,
    "rotation": 1,
    "parts": 1,
}
CACHE = {"k_cache": x(4, 2, 16, 8), "v_cache": x(4, 2, 16, 8)}
TURN = {"cos_TD": x(3, 8, dtype=F32), "sin_TD": x(3, 8, dtype=F32)}
STEP = {"qkv_TXD": x(3, 8, 8), **TURN, **CACHE, "slot_mapping_T": ids(3)}
LATENTS = {"x_TY": x(3, 24), "weight_C": x(16), "eps": 1e-5, "cos_TR": x(3, 8, dtype=F32), "sin_TR": x(3, 8, dtype=F32)}
GROUPED = {"x_TH": x(3, 8), "ids_TK": ids(3, 2), "weights_TK": x(3, 2, dtype=F32), "onto_TH": x(3, 8)}
Arguments = dict[str, Any]
# Of each function that takes tensors: how to get it, its arguments, and the dimensions of any size.
CASES: dict[str, tuple[Callable[[], Any], Arguments, set[tuple[str, int]]]] = {
    "add_layer_norm": (
        lambda: native.library.add_layer_norm,
        {**{key: x(8, dtype=F32) for key in ("weight_H", "bias_H")}, "eps": 1e-5}
        | {key: x(3, 8, dtype=F32) for key in ("x_TH", "residual_TH")},
        set(),
    ),
    "add_residual": (
        lambda: native.library.add_residual,
        {"x_TH": x(3, 8), "residual_TH": x(3, 8, dtype=F32)},
        set(),
    ),
    "causal_attention": (
        lambda: native.library.causal_attention,
        {"q_QNX": x(3, 2, 8), "k_LNX": x(5, 2, 8), "v_LNV": x(5, 2, 6), "scale": 0.1},
        {("q_QNX", 0), ("v_LNV", 2)},
    ),
    "combine": (
        lambda: native.library.combine,
        {"y_PH": x(6, 8), "where_TK": ids(3, 2), "weights_TK": x(3, 2, dtype=F32)},
        {("y_PH", 1)},
    ),
    "draw": (
        lambda: native.library.draw,
        {"logits_RV": x(2, 8), "temperatures": [0.0, 1.0], "uniforms": [0.5, 0.5]},
        {("logits_RV", 1)},
    ),
    "embedding": (
        lambda: native.library.embedding,
        {"weight_VH": x(5, 8), "token_ids_T": ids(3)},
        {("weight_VH", 0), ("weight_VH", 1), ("token_ids_T", 0)},
    ),
    "Experts.forward": (lambda: experts().forward, GROUPED, set()),
    "gelu": (lambda: native.library.gelu, {"x_TF": x(3, 12)}, {("x_TF", 0), ("x_TF", 1)}),
    "HeadLinear": (
        lambda: native.library.HeadLinear,
        {"weight_NKM": x(2, 8, 6)},
        {("weight_NKM", i) for i in range(3)},
    ),
    "HeadLinear.forward": (
        lambda: native.library.HeadLinear(x(2, 8, 6)).forward,
        {"x_TNK": x(3, 2, 8), "out_TNM": x(3, 2, 6)},
        set(),
    ),
    "latent_attention": (
        lambda: native.library.latent_attention,
        {"q_TNX": x(3, 2, 8), "cache": x(4, 1, 16, 8), "plan": plan, "scale": 0.1, "value_dim": 6},
        {("cache", 0), ("q_TNX", 1)},
    ),
    "lightning_indexer": (
        lambda: native.library.lightning_indexer,
        {"q_THI": x(3, 2, 8), "weights_TH": x(3, 2, dtype=F32), "cache": x(4, 1, 16, 8), "plan": plan, "topk": 2},
        {("cache", 0)},
    ),
    "Linear": (
        lambda: native.library.Linear,
        {"weight": lambda: packed(6, 8), "bias_O": x(6, dtype=F32), "out_dtype": BF16},
        set(),
    ),
    "Linear.forward": (lambda: linear().forward, {"x_TI": x(3, 8)}, {("x_TI", 0)}),
    "modality_embedding": (
        lambda: native.library.modality_embedding,
        {"weight_VH": x(5, 8), "token_ids_T": ids(3), "modality_ids_T": ids(3)}
        | {key: x(3, 8, dtype=F32) for key in ("scale_MH", "shift_MH")},
        {("weight_VH", 0)},
    ),
    "BlockLinear": (
        lambda: native.library.BlockLinear,
        {
            "weights": [native.library.PackedBlocks(blocks(), "q8_0", 64, True)],
            "bias_O": x(6, dtype=F32),
            "out_dtype": BF16,
        },
        set(),
    ),
    "BlockLinear.forward": (lambda: block_linear().forward, {"x_TI": x(3, 64)}, {("x_TI", 0)}),
    "PackedBlocks": (
        lambda: native.library.PackedBlocks,
        {"rows_OB": blocks(), "format": "q8_0", "in_size": 64, "is_dynamic": True},
        {("rows_OB", 0)},
    ),
    "embed_blocks": (
        lambda: native.library.embed_blocks,
        {"rows_VB": blocks(), "format": "q8_0", "size": 64, "token_ids_T": ids(3), "rounds": False},
        {("rows_VB", 0), ("token_ids_T", 0)},
    ),
    "PackedWeight": (lambda: native.library.PackedWeight, WEIGHT, {("values_OI", 0), ("values_OI", 1)}),
    "paged_attention": (
        lambda: native.library.paged_attention,
        {"q_TND": x(3, 4, 8), **CACHE, "plan": plan, "scale": 0.1},
        set(),
    ),
    "rms_norm": (
        lambda: native.library.rms_norm,
        {"x_TH": x(3, 8), "weight_H": x(8), "eps": 1e-5, "residual_TH": x(3, 8, dtype=F32)},
        set(),
    ),
    "rotate": (lambda: native.library.rotate, {"x_NI": x(3, 32), "block": 16}, {("x_NI", 0)}),
    "round_to_blocks": (
        lambda: native.library.round_to_blocks,
        {"weight_OI": x(6, 64), "four_bits": True},
        {("weight_OI", 0), ("weight_OI", 1)},
    ),
    "rotary": (lambda: native.library.rotary, {"x_TND": x(3, 2, 8), **TURN, "y_TND": x(3, 2, 8)}, set()),
    "rotate_and_store": (lambda: native.library.rotate_and_store, STEP, {("qkv_TXD", 1)}),
    "routing": (
        lambda: native.library.routing,
        {"logits_TE": x(3, 8, dtype=F32), "bias_E": x(8, dtype=F32), **RULE},
        {("logits_TE", 0)},
    ),
    "silu_mul": (lambda: native.library.silu_mul, {"gate_up_TF2": x(3, 12)}, {("gate_up_TF2", 0)}),
    "sparse_latent_attention": (
        lambda: native.library.sparse_latent_attention,
        {"q_TNX": x(3, 2, 8), "cache": x(4, 1, 16, 8), "plan": plan, "positions_TP": ids(3, 2)}
        | {"scale": 0.1, "value_dim": 6},
        {("cache", 0), ("q_TNX", 1), ("positions_TP", 1)},
    ),
    "store_latents": (
        lambda: native.library.store_latents,
        {**LATENTS, "cache": x(4, 1, 16, 24), "slot_mapping_T": ids(3)},
        {("cache", 0), ("cache", 2)},
    ),
    "take_rows": (
        lambda: native.library.take_rows,
        {"x_NX": x(5, 8), "rows_R": ids(3)},
        {("x_NX", 0), ("x_NX", 1), ("rows_R", 0)},
    ),
}
TENSORS = [(name, key) for name, case in CASES.items() for key, value in case[1].items() if torch.is_tensor(value)]
OPTIONAL = {
    ("Experts.forward", "ids_TK"),
    ("Experts.forward", "weights_TK"),
    ("Experts.forward", "onto_TH"),
    ("BlockLinear", "bias_O"),
    ("Linear", "bias_O"),
    ("modality_embedding", "modality_ids_T"),
    ("rms_norm", "residual_TH"),
    ("rotary", "y_TND"),
    ("routing", "bias_E"),
}


def call(name: str, **changes: Any) -> None:
    """Call a function with some of its arguments changed; no argument may be written if it raises."""
    get, arguments, _ = CASES[name]
    arguments = {key: value(name) if key == "plan" else value for key, value in arguments.items()} | changes
    arguments = {key: value() if key == "weight" else value for key, value in arguments.items()}
    arguments = {
        key: value.clone() if torch.is_tensor(value) and key not in changes else value
        for key, value in arguments.items()
    }
    before = {key: value.clone() for key, value in arguments.items() if torch.is_tensor(value) and not value.is_meta}
    try:
        get()(**arguments)
    except Exception:
        assert all(torch.equal(arguments[key], value) for key, value in before.items()), "it computed something"
        raise


def is_float(value: torch.Tensor) -> bool:
    return value.is_floating_point()


def enlarged(value: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.cat([value, value.narrow(dim, 0, 1)], dim)


def test_every_function_that_takes_a_tensor_is_here():
    found = set()
    for name, item in vars(native.library).items():
        if isinstance(item, type):
            methods = {key: method for key, method in vars(item).items() if hasattr(method, "__nb_signature__")}
            found |= {
                name if key == "__init__" else f"{name}.{key}"
                for key, method in methods.items()
                if "torch.Tensor" in str(method.__nb_signature__)
            }
        elif "torch.Tensor" in str(getattr(item, "__nb_signature__", "")):
            found.add(name)
    assert found == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_arguments_that_fit_are_taken(name):
    call(name)


@pytest.mark.parametrize(("name", "key"), TENSORS)
def test_another_dtype_or_device_raises_type_error(name, key):
    value = CASES[name][1][key]
    others = [value.double(), value.to(torch.int32), value.to("meta"), value.tolist()]
    if (name, key) not in OPTIONAL:
        others.append(None)
    if is_float(value):
        others.append(value.clone().requires_grad_())
    for other in others:
        with pytest.raises(TypeError, match=key.removesuffix("_scale")):
            call(name, **{key: other})


@pytest.mark.parametrize(("name", "key"), TENSORS)
def test_another_shape_or_stride_raises_value_error(name, key):
    value, free = CASES[name][1][key], CASES[name][2]
    others = [value[None], value[0], value.repeat_interleave(2, -1)[..., ::2]]
    others += [enlarged(value, dim) for dim in range(value.dim()) if (key, dim) not in free]
    for other in others:
        with pytest.raises(ValueError, match=r"must|plan|more"):
            call(name, **{key: other})


def test_free_dimensions_are_free():
    for name, (_, arguments, free) in CASES.items():
        for key, dim in free:
            call(name, **{key: enlarged(arguments[key], dim)})


@pytest.mark.parametrize("name", ["paged_attention", "rotate_and_store", "latent_attention", "store_latents"])
def test_the_parts_of_an_int8_cache_are_checked(name):
    keys = ["cache"] if "latent" in name else ["k_cache", "v_cache"]
    num_scales = 3 - len(keys)
    shape = CASES[name][1][keys[0]].shape
    caches = {key: Int8Cache(int8(*shape), torch.ones(*shape[:3], num_scales)) for key in keys}
    call(name, **caches)
    for key in keys:
        for values, scales, error in (
            (caches[key].values.int(), caches[key].scales, TypeError),
            (caches[key].values, caches[key].scales.bfloat16(), TypeError),
            (caches[key].values, caches[key].scales[..., :0], ValueError),
            (caches[key].values, caches[key].scales[:2], ValueError),
        ):
            with pytest.raises(error, match=key):
                call(name, **{**caches, key: Int8Cache(values, scales)})
    if len(keys) == 2:
        with pytest.raises(TypeError, match="v_cache"):
            call(name, **{**caches, "v_cache": x(*shape)})


TURN_16 = {"cos_TD": x(3, 16, dtype=F32), "sin_TD": x(3, 16, dtype=F32)}
LATENT_ROW = PackedRow(32, 4, 8)
PACKED = {  # arguments beside a packed cache, and its rows
    "paged_attention": ({"q_TND": x(3, 2, 16)}, {"k_cache": PackedRow(16, 5), "v_cache": PackedRow(16, 4)}),
    "rotate_and_store": (
        {"qkv_TXD": x(3, 8, 16), **TURN_16},
        {"k_cache": PackedRow(16, 5), "v_cache": PackedRow(16, 4)},
    ),
    "latent_attention": ({"q_TNX": x(3, 2, 40), "value_dim": 32}, {"cache": LATENT_ROW}),
    "store_latents": ({"x_TY": x(3, 40), "weight_C": x(32)}, {"cache": LATENT_ROW}),
}


@pytest.mark.parametrize("name", PACKED)
def test_the_parts_of_a_packed_cache_are_checked(name):
    arguments, rows = PACKED[name]
    num_heads = 1 if "cache" in rows else 2

    def cache(row: PackedRow, block_size: int = 16) -> PackedCache:
        values = torch.zeros(4, num_heads, block_size, row.num_bytes, dtype=torch.uint8)
        return PackedCache(values, torch.ones(4, num_heads, block_size, row.num_scales, dtype=BF16), row)

    whole = {**arguments, **{key: cache(row) for key, row in rows.items()}}
    call(name, **whole)
    for key, row in rows.items():
        fit = cache(row)
        for other, error in (
            (fit._replace(scales=fit.scales.float()), TypeError),
            (fit._replace(values=fit.values[..., 1:].contiguous()), ValueError),
            (fit._replace(scales=fit.scales[:2]), ValueError),
        ):
            with pytest.raises(error, match=key):
                call(name, **{**whole, key: other})
    if len(rows) == 2:
        eight = {key: cache(row, block_size=8) for key, row in rows.items()}
        with pytest.raises(ValueError, match="packed rows must lie in panels"):
            call(name, **{**whole, **eight})


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("combine", "where_TK"),
        ("embedding", "token_ids_T"),
        ("Experts.forward", "ids_TK"),
        ("modality_embedding", "modality_ids_T"),
        ("modality_embedding", "token_ids_T"),
        ("rotate_and_store", "slot_mapping_T"),
        ("store_latents", "slot_mapping_T"),
        ("take_rows", "rows_R"),
    ],
)
@pytest.mark.parametrize("bad", [-1, 64])
def test_indices_beyond_a_tensor_raise_index_error(name, key, bad):
    indices = CASES[name][1][key].clone()
    indices.view(-1)[-1] = bad
    with pytest.raises(IndexError, match=f"{key} must lie in 0 to .*, and has {bad}"):
        call(name, **{key: indices})


@pytest.mark.parametrize(
    "changes",
    [{"n_group": 3}, {"n_group": 4, "topk_group": 5}, {"best_of_group": 9}, {"n_group": 8, "topk_group": 1}],
    ids=str,
)
def test_a_rule_that_chooses_more_experts_than_there_are_raises_value_error(changes):
    with pytest.raises(ValueError, match="experts"):
        call("routing", **changes)


@pytest.mark.parametrize(
    ("query_lens", "context_lens", "block_tables", "block_size"),
    [
        ([1], [4, 4], [[0], [1]], 16),
        ([0], [4], [[0]], 16),
        ([5], [4], [[0]], 16),
        ([1], [17], [[0]], 16),
        ([1], [4], [[-1]], 16),
        ([1], [4], [[0]], 0),
    ],
)
@pytest.mark.parametrize("kind", ["paged_attention", "latent_attention"])
def test_a_plan_of_lengths_that_do_not_fit_raises_value_error(kind, query_lens, context_lens, block_tables, block_size):
    with pytest.raises(ValueError, match=r"must|block table"):
        getattr(native.library, f"{kind}_plan")(query_lens, context_lens, block_tables, block_size)


@pytest.mark.parametrize(
    ("query_lens", "block", "block_size"), [([1], 0, 16), ([1, 2], 4, 16), ([1, 2], 0, 8)], ids=str
)
@pytest.mark.parametrize("kind", ["paged_attention", "latent_attention"])
def test_a_plan_for_another_batch_or_cache_raises_value_error(kind, query_lens, block, block_size):
    tables = [[block]] * len(query_lens)
    other = getattr(native.library, f"{kind}_plan")(query_lens, query_lens, tables, block_size)
    with pytest.raises(ValueError, match="the plan is for"):
        call(kind, plan=other)


@pytest.mark.parametrize("name", ["lightning_indexer", "sparse_latent_attention"])
def test_positions_are_selected_for_decoding_sequences_only(name):
    with pytest.raises(ValueError, match="decoding sequences only"):
        call(name, plan=plan("latent_attention"))


@pytest.mark.parametrize(("positions", "message"), [([0, -1], "negative"), ([9, 4], "must select")], ids=str)
def test_a_query_selects_positions_of_its_own(positions, message):
    with pytest.raises(ValueError, match=message):
        call("sparse_latent_attention", positions_TP=torch.tensor([positions] * 3))


def test_a_weight_for_one_dtype_refuses_another():
    int8_in_floats = native.library.Linear(packed_int8(6, 8, operand=F32), None, F32)
    rounded = native.library.Linear(packed_int8(6, 8), None, BF16)
    for layer, dtype in ((linear(), F32), (int8_in_floats, BF16), (rounded, F32)):
        with pytest.raises(TypeError, match="x_TI must be of the dtype"):
            layer.forward(x(3, 8, dtype=dtype))
    linear(F32).forward(x(3, 8, dtype=F32))


def test_an_int8_weight_is_checked():
    arguments = {"values_OI": int8(6, 8), "scale_O": x(6, dtype=F32), "operand": torch.uint8}
    arguments |= {"scale": 0.1, "zero_point": 3, "rotation": 1, "parts": 2}
    native.library.PackedWeight(**arguments)
    for changes, error, message in (
        ({"values_OI": x(6, 8)}, TypeError, "values_OI"),
        ({"scale_O": x(6)}, TypeError, "scale_O"),
        ({"scale_O": x(5, dtype=F32)}, ValueError, "scale_O"),
        ({"operand": torch.int32}, TypeError, "operand"),
        ({"parts": 4}, ValueError, "parts"),
        ({"parts": 0}, ValueError, "parts"),
    ):
        with pytest.raises(error, match=message):
            native.library.PackedWeight(**(arguments | changes))


def test_experts_that_do_not_fit_raise_value_error():
    int8_pair, pair = (packed_int8(12, 8, parts=2), packed_int8(8, 6)), (packed(12, 8, parts=2), packed(8, 6))
    for gate_up, down in (
        (packed(12, 8), packed(8, 6)),
        (packed(12, 9, parts=2), packed(8, 6)),
        (packed(14, 8, parts=2), packed(8, 7)),
        (packed(12, 8, parts=2), packed_int8(8, 6)),
        (packed(12, 8, dtype=F32, parts=2), packed(8, 6, dtype=F32)),
        (packed_int8(12, 8, operand=BF16, parts=2), packed_int8(8, 6, operand=BF16)),
    ):
        layer = native.library.Experts()
        for fitting in (int8_pair, pair):
            layer.add(*fitting)
        with pytest.raises(ValueError, match="gate_up"):
            layer.add(gate_up, down)
