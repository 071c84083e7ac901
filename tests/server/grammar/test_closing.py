"""Objects that say nothing of further properties have none, where that leaves a schema something to allow."""

import pytest

from engine.errors import RequestError
from server.grammar.closing import closed

A = {"properties": {"a": {"type": "string"}}}
CLOSED_A = {**A, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (A, CLOSED_A),
        ({**A, "required": ["a"]}, {**CLOSED_A, "required": ["a"]}),
        ({**A, "additionalProperties": True}, {**A, "additionalProperties": True}),
        ({"anyOf": [A, {"type": "null"}]}, {"anyOf": [CLOSED_A, {"type": "null"}]}),
        ({"items": A, "$defs": {"x": A}}, {"items": CLOSED_A, "$defs": {"x": CLOSED_A}}),
        ({"type": "object"}, {"type": "object"}),
        ({"const": A, "enum": [A]}, {"const": A, "enum": [A]}),
        (True, True),
        ({"properties": {"properties": A}}, {"properties": {"properties": CLOSED_A}, "additionalProperties": False}),
    ],
)
def test_objects_are_closed(schema, expected):
    assert closed(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {**A, "required": ["b"]},
        {**A, "anyOf": [{"required": ["a"]}]},
        {"allOf": [A, {"properties": {"b": {}}}]},
        {"items": {**A, "minProperties": 2}},
        {**A, "patternProperties": {"^b": {}}},
    ],
)
def test_what_describes_an_object_in_parts_stays_open(schema):
    assert closed(schema) == schema


def test_a_schema_that_is_nested_too_deeply_is_refused():
    schema = {}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(RequestError, match="too deeply"):
        closed(schema)
