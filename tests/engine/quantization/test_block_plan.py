"""Which layers get 8 bits in a checkpoint of 4."""

import pytest
import torch

from engine.loading.resolve import resolve_model
from engine.quantization.block_plan import Site, choose, measure
from engine.quantization.scheme_bits import Bits
from tests.support.int8 import PROMPTS


def test_the_worst_for_their_size_get_8_bits_as_far_as_the_average_allows():
    sites = [Site(("q", "k"), 20, 0.4), Site(("o",), 10, 0.3), Site(("gate", "up"), 60, 0.9), Site(("down",), 10, 0.1)]
    assert choose(sites, Bits(4.5)) == dict.fromkeys(("q", "k", "o", "gate", "up", "down"), 4)
    assert choose(sites, Bits(5.7)) == {"q": 8, "k": 8, "o": 8, "gate": 4, "up": 4, "down": 4}
    assert choose(sites, Bits(6.2)) == {"q": 8, "k": 8, "o": 8, "gate": 4, "up": 4, "down": 8}
    assert choose(sites, Bits(8.5)) == dict.fromkeys(("q", "k", "o", "gate", "up", "down"), 8)


def test_layers_that_stay_as_they_are_take_more_of_the_average():
    sites = [Site((f"l{number}",), 10, 1 / (1 + number)) for number in range(10)]
    assert list(choose(sites, Bits(5.7)).values()).count(8) == 3
    assert list(choose(sites, Bits(5.7, wide=16)).values()).count(16) == 1


@pytest.fixture
def found(make_deepseek):
    source = resolve_model(str(make_deepseek("v3")))
    config = source.read_config()
    return measure(source.open_tensors(config), config, PROMPTS[:1], torch.float32, progress=False)


def test_layers_that_are_computed_as_one_are_one_site(found):
    sites = {site.layers for site in found}
    attention = ("model.layers.1.self_attn.q_a_proj", "model.layers.1.self_attn.kv_a_proj_with_mqa")
    assert attention in sites
    experts = [layers for layers in sites if "model.layers.1.mlp.experts.0.gate_proj" in layers]
    assert len(experts) == 1
    assert all("model.layers.1.mlp.experts." in layer for layer in experts[0])
    assert all(0 < site.error < 0.2 for site in found)
