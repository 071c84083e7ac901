"""Targets of a quantization_config: names, expressions that match fast, and those that are refused."""

import pytest

from engine.errors import ModelError
from engine.models.targets import find, read_targets

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
    assert find([("group", read_targets("targets", [target]))], (), LAYER) == ("group" if is_match else None)


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
