"""Targets of a quantization_config: names, expressions that match fast, and those that are refused."""

import time

import pytest

from engine.errors import ModelError
from engine.models.quantization_config import read_quantization
from engine.models.targets import Targets, read_targets

LAYER = "model.layers.10.mlp.experts.3.gate_proj"


@pytest.mark.parametrize(
    ("target", "is_match"),
    [
        (LAYER, True),
        ("gate_proj", False),
        ("re:.*self_attn.*", False),
        ("re:model.layers.[0-9]+.mlp.gate$", False),
        (r"re:.*mlp\.experts\.\d+\.(gate|up|gate_up|down)_proj.*", True),
        ("re:.*layers.*mlp.*experts.*", True),
        (r"re:^(?!.*\.mlp\.experts\.).*", False),
        (rf"re:.*layers\.(?:{'|'.join(map(str, range(61)))})\.(?P<part>mlp)\..*?", True),
        ("re:" + "|".join(f".*{part}_proj$" for part in ("q", "k", "v", "o", "gate", "up", "down")), True),
    ],
)
def test_names_and_usual_expressions(target, is_match):
    targets = Targets([("group", read_targets("targets", [target]))], ())
    assert targets.find(LAYER) == ("group" if is_match else None)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(.*)*(.*)*(.*)*(.*)*!", "could take very long"),
        ("(a+)+$", "could take very long"),
        ("(?:a|a)*?b", "could take very long"),
        ("(?=a*){2,}b", "could take very long"),
        (".*" * 6, "could take very long"),
        ("(.|.)" * 31 + "!", "could take very long"),
        ("(?x)(a*) *", "white space"),
        ("(?#[)(a*)*", "white space"),
        ("(a", "is no regular expression"),
        ("a{99999999999999}", "is no regular expression"),
        ("(" * 900 + ")" * 900, "is no regular expression"),
        ("a" * 2001, "more than 2000 letters"),
    ],
)
def test_expressions_that_are_refused(expression, message):
    with pytest.raises(ModelError, match=message) as error:
        read_targets("ignore", [f"re:{expression}"])
    assert len(str(error.value)) < 300


def test_the_first_group_that_names_a_layer_has_it_before_groups_of_all():
    targets = Targets([("all", ("Linear",)), ("some", ("re:.*up_proj",)), ("one", ("a.up_proj", "b"))], ("re:.*head",))
    found = {layer: targets.find(layer) for layer in ("a.up_proj", "b", "c", "lm_head")}
    assert found == {"a.up_proj": "some", "b": "one", "c": "all", "lm_head": None}


def test_expressions_that_are_slow_together_are_refused(monkeypatch):
    monkeypatch.setattr("engine.models.targets._MAX_SECONDS", 0.2)
    slow = [f"re:{'.*' * 5}!{number}" for number in range(200)]
    targets = Targets([("group", read_targets("targets", slow))], ())
    started = time.thread_time()
    with pytest.raises(ModelError, match=r"expressions that take more than 0\.2 s to match with the names of all"):
        targets.find(LAYER)
    assert time.thread_time() - started < 2


def test_a_layer_is_matched_once(monkeypatch):
    targets = Targets([("group", ("re:model",))], ())
    assert targets.find(LAYER) == "group"
    monkeypatch.setattr("engine.models.targets._MAX_SECONDS", -1.0)
    assert targets.find(LAYER) == "group"


@pytest.mark.parametrize("texts", [["re:a"] * 2001, ["re:" + "a" * 1990] * 60], ids=["many", "long"])
@pytest.mark.parametrize("is_ignore", [True, False], ids=["ignore", "targets"])
def test_too_many_expressions_are_refused_before_they_are_compiled(texts, is_ignore, monkeypatch):
    monkeypatch.setattr("engine.models.targets._fault_of", lambda _: pytest.fail("compiled"))
    targets, ignore = ([], texts) if is_ignore else (texts, [])
    config = {"quant_method": "compressed-tensors", "config_groups": {"a": {"targets": targets}}, "ignore": ignore}
    with pytest.raises(ModelError, match=r"has \d+ expressions of \d+ letters; valid are 2000 and 100000"):
        read_quantization({"quantization_config": config})
