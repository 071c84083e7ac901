"""Which layers get a finer scheme than the one that was asked for."""

import pytest

from engine.quantization.calibrate import Measurement
from engine.quantization.choose import choose
from kernels.linear_int8 import Input, StaticInput


def measurement(name, cost, static, dynamic):
    return Measurement((name,), cost, StaticInput(0.1, 3), static, dynamic)


def test_the_worst_layers_get_finer_schemes_within_their_budgets():
    layers = [measurement(f"l{i}", 1.0, 0.002, 0.0001) for i in range(38)]
    layers += [measurement("bad", 1.0, 0.9, 0.0002), measurement("worst", 1.0, 0.9, 0.5)]
    recipe = choose("w8a8-static", layers)
    assert recipe.inputs["worst"] is None
    assert recipe.inputs["bad"] is Input.DYNAMIC
    assert recipe.shares == pytest.approx({"static": 3 / 40, "dynamic": 36 / 40, "float": 0, "kept": 1 / 40})
    dynamic = choose("w8a8-dynamic", layers)
    assert dynamic.shares == pytest.approx({"static": 0, "dynamic": 39 / 40, "float": 0, "kept": 1 / 40})
    assert choose("w8", layers).shares["float"] == pytest.approx(1)
    tame = choose("w8a8-static", [measurement("a", 1.0, 0.0005, 0.0001)])
    assert tame.inputs == {"a": StaticInput(0.1, 3)}
