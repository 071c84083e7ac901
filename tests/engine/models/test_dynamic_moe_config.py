"""DynamicMoE's config.json: its defaults, and the name of each setting that is refused."""

import pytest

from engine.errors import ModelError
from engine.models import registry
from engine.models.config import CompressionConfig, TaskHeads
from kernels.attention_pattern import FULL, BlockSparseAttention, LocalAttention

RAW = {
    "architectures": ["DynamicMoEForCausalLM"],
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "moe_num_experts": 8,
    "moe_intermediate_size": 32,
}


def parse(**changes):
    return registry.parse(RAW | changes, {})


def test_the_defaults_are_those_of_the_page():
    config = parse()
    assert config.attention_patterns == tuple(BlockSparseAttention(64, 1, 2, 3, 0, layer) for layer in range(3))
    assert (config.head_dim, config.num_key_value_heads, config.max_position_embeddings) == (16, 4, 4096)
    assert (config.rms_norm_eps, config.rope_theta, config.tie_word_embeddings) == (1e-6, 10000.0, False)
    assert (config.moe.num_experts_per_tok, config.moe.router_hidden_size, config.moe.norm_topk_prob) == (2, 256, False)
    assert config.compression == CompressionConfig(size=25, layers=frozenset(range(3)))
    assert (config.num_modalities, config.task_heads) == (3, TaskHeads())


def test_layers_attend_as_their_types_say():
    sparse = {"sparse_block_size": 8, "sparse_num_global_blocks": 0, "sparse_num_local_blocks": 1}
    config = parse(attention_types=["local", "full", "block_sparse"], local_window=7, sparse_seed=1 << 40, **sparse)
    assert config.attention_patterns == (LocalAttention(7), FULL, BlockSparseAttention(8, 0, 1, 3, 1 << 40, 2))


@pytest.mark.parametrize("key", ["memory_compression_ratio", "memory_compression_layers"])
def test_null_means_no_compression(key):
    assert parse(**{key: None}).compression is None


def test_compression_is_of_the_layers_named():
    assert parse(memory_compression_layers=[]).compression is None
    config = parse(memory_compression_layers=[2, 0], memory_compression_ratio=0.25)
    assert config.compression == CompressionConfig(size=16, layers=frozenset({0, 2}))


def test_heads_are_named():
    heads = {"classification": {"labels": ["good", "bad"]}, "reasoning": {}}
    assert parse(task_heads=heads).task_heads == TaskHeads(labels=("good", "bad"), has_reasoning=True)
    one = parse(task_heads={"classification": {"labels": ["fits"]}}).task_heads
    assert one == TaskHeads(labels=("fits",), label_activation="sigmoid"), "a softmax of one label is always 1"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"task_heads": {"classification": {"labels": ["\ud800", "b"]}}}, r"^task_heads.classification in config.json"),
        ({"memory_compression_ratio": 1e308}, r"^memory_compression_ratio in config.json is 1e\+308"),
        ({"rms_norm_eps": 10**400}, r"^rms_norm_eps in config.json is 1000"),
        ({"attention_types": "full"}, r"^attention_types in config.json is 'full'; expected a list of full, local,"),
        ({"attention_types": ["full", "locl", "full"]}, r"^attention_types .* expected a list of full, local, block"),
        ({"attention_types": [["full"], "full", "full"]}, r"^attention_types .* expected a list of full, local, block"),
        (
            {"attention_types": ["full"]},
            r"^attention_types in config.json has 1 entries; expected one for each of .*3",
        ),
        ({"local_window": 0}, r"^local_window .* is 0; expected a whole number from 1"),
        ({"sparse_block_size": 0}, r"^sparse_block_size "),
        ({"sparse_num_random_blocks": -1}, r"^sparse_num_random_blocks .* from 0"),
        ({"sparse_num_local_blocks": 4097}, r"^sparse_num_local_blocks .* to 4096$"),
        ({"num_hidden_layers": 5000}, r"^num_hidden_layers .* to 4096$"),
        ({"sparse_seed": -1}, r"^sparse_seed "),
        (
            {f"sparse_num_{kind}_blocks": 0 for kind in ("global", "local", "random")},
            r"^sparse_num_global_blocks, .* are all 0; .* would see nothing$",
        ),
        ({"moe_num_experts": 1 << 20}, r"^moe_num_experts .* to 21845$"),
        ({"moe_num_experts": None}, r"^config.json lacks 'moe_num_experts'$"),
        ({"moe_num_experts": 4, "moe_top_k": 5}, r"^moe_top_k in config.json is 5; expected at most .* \(4\)$"),
        ({"moe_top_k": 0}, r"^moe_top_k "),
        ({"router_hidden_size": 0}, r"^router_hidden_size "),
        ({"norm_topk_prob": "yes"}, r"^norm_topk_prob "),
        ({"memory_compression_ratio": 0}, r"^memory_compression_ratio .* a positive number$"),
        ({"memory_compression_ratio": 0.01}, r"^memory_compression_ratio .* is 0.01; expected one that leaves 1 to "),
        ({"memory_compression_ratio": float("nan")}, r"^memory_compression_ratio "),
        ({"memory_compression_layers": 3}, r"^memory_compression_layers .* a list of layers' numbers"),
        ({"memory_compression_layers": [3]}, r"^memory_compression_layers .* different numbers from 0 to 2$"),
        ({"memory_compression_layers": [0, 0]}, r"^memory_compression_layers .* different numbers from 0 to 2$"),
        ({"memory_compression_layers": [True]}, r"^memory_compression_layers "),
        ({"num_modalities": 0}, r"^num_modalities "),
        ({"task_heads": []}, r"^task_heads in config.json is \[\]"),
        ({"task_heads": {"other": {}}}, r"^task_heads .* classification, reasoning or neither$"),
        ({"task_heads": {"reasoning": None}}, r"^task_heads.reasoning .* an empty object$"),
        ({"task_heads": {"classification": {}}}, r"^task_heads.classification .* a list of different names$"),
        ({"task_heads": {"classification": {"labels": []}}}, r"^task_heads.classification "),
        ({"task_heads": {"classification": {"labels": ["a", "a"]}}}, r"^task_heads.classification "),
        ({"task_heads": {"classification": {"labels": ["a", 1]}}}, r"^task_heads.classification "),
        ({"task_heads": {"classification": {"labels": [["a"]]}}}, r"^task_heads.classification "),
        ({"expert_capacity": 0}, r"^expert_capacity "),
        ({"hidden_dropout": 1}, r"^hidden_dropout .* from 0 to below 1$"),
        ({"attention_dropout": True}, r"^attention_dropout "),
        ({"attention_bias": True}, r"^attention_bias .* false"),
        ({"hidden_act": "gelu"}, r"^hidden_act "),
        ({"num_key_value_heads": 3}, r"^num_attention_heads \(4\) is not a multiple"),
        ({"head_dim": 15}, r"^15 dimensions rotate"),
        ({"architectures": ["DynamicMoE"]}, r"^architecture DynamicMoE is not supported yet; .*DynamicMoEForCausalLM$"),
    ],
    ids=lambda case: "-".join(f"{key} {value}" for key, value in case.items()) if isinstance(case, dict) else "",
)
def test_a_setting_that_cannot_be_served_is_refused_by_name(changes, error):
    with pytest.raises(ModelError, match=error):
        parse(**changes)
