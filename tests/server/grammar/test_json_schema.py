"""Whatever a schema's grammar allows is valid by the schema; what cannot be enforced is refused."""

import copy
import json
import random

import jsonschema
import pytest

from engine.errors import RequestError
from server.grammar.json_schema import prepare
from server.grammar.lark import grammar_of, schema_expression
from tests.support.grammar import EOS_ID, draw, matches

PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}}}
PETS = {
    "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
    "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}},
    "$defs": {
        "Cat": {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}},
                "additionalProperties": False},
        "Dog": {"type": "object", "properties": {"kind": {"const": "dog", "default": "dog"}},
                "required": ["kind"], "additionalProperties": False},
    },
}  # fmt: skip
SCHEMAS = [
    {},
    {"type": "object"},
    {**PERSON, "required": ["name", "age"], "additionalProperties": False},
    PERSON,
    {**PERSON, "additionalProperties": {"type": "boolean"}},
    {"type": "object", "patternProperties": {"^x_": {"type": "null"}}, "properties": {"x_a": {}, "b": {"enum": [1, 2]}},
     "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2},
    {"type": "array", "items": {"type": "integer", "minimum": -3, "maximum": 12}, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [{"type": "string", "maxLength": 2}, {"type": "boolean"}], "items": False},
    {"enum": ["a", 1, 1.5, None, True, [1, "x"], {"k": "v"}, 'quo"te', "né"]},
    {"const": {"a": [1, {"b": None}]}},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[a-f]{2,3}-\\d+$", "maxLength": 9},
    {"type": "string", "pattern": r"^\W\S\D.$"},
    {"type": "string", "pattern": r"^a\sb$"},
    {"type": ["string", "null"], "maxLength": 3},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "number", "minimum": -1.5, "maximum": 2.25},
    {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 1000},
    {"type": "number", "multipleOf": 0.25},
    {"anyOf": [{"type": "integer"}, {"type": "object", "properties": {"v": {"type": "null"}}, "required": ["v"]}]},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
               {"properties": {"b": {"type": "boolean"}}, "required": ["b"]}]},
    {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
        "value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["value", "next"], "additionalProperties": False}}},
    {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "string", "format": "date"}}},
    PETS,
    {"oneOf": [{"type": "string", "maxLength": 2}, {"type": "integer"}]},
    {"oneOf": [{"$ref": "#/$defs/day"}, {"type": "null"}], "$defs": {"day": {"type": "string", "format": "date"}}},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"oneOf": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/pair"}]},
     "leaf": {"type": "integer"}, "pair": {"type": "array", "prefixItems": [{"$ref": "#/$defs/tree"}], "maxItems": 1}}},
    {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [{"type": "integer"}],
     "additionalItems": {"type": "boolean"}},
    {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 3, "exclusiveMinimum": True},
    {"uniqueItems": False, "type": "array", "maxItems": 2},
    {"title": "T", "description": "d", "examples": [{"type": "nonsense"}], "type": "boolean", "x-more": 1},
    {"properties": {"title": {"type": "string", "maxLength": 3}, "format": {"type": "null"}}, "required": ["format"]},
    *({"type": "string", "format": name} for name in
      ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")),
    {"type": "string", "format": "int-or-whatever", "maxLength": 3},
]  # fmt: skip


def validator(schema):
    cls = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    return cls(schema, format_checker=cls.FORMAT_CHECKER)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_every_output_is_valid(compiler, schema):
    before, rng = copy.deepcopy(schema), random.Random(1)
    compiled = compiler.compile(grammar_of(schema_expression(schema)))
    texts = [draw(compiler.start(compiled, (EOS_ID,)), rng) for _ in range(15)]
    done = [text for text in texts if text is not None]
    assert done, "none of them ended"
    for text in done:
        validator(schema).validate(json.loads(text))
    assert schema == before, "the request's own schema was changed"


CASES = [  # schema, texts that its grammar allows, texts that it does not
    ({"type": "string", "format": "date"}, ['"2024-02-29"', '"0400-12-31"'], ['"2023-02-29"', '"1900-02-29"']),
    ({"type": "string", "format": "time"}, ['"23:59:59.5Z"', '"00:00:00+01:30"'], ['"24:00:00Z"', '"10:00:60Z"']),
    ({"type": "string", "format": "hostname"}, ['"a.b-c.example"', '"a"'], ['"xn--a"', '"a..b"', '"-a"']),
    ({"type": "number", "exclusiveMaximum": 1}, ["0.999", "-5", "0"], ["1", "1.0"]),
    ({"type": "array", "items": {}, "maxItems": 2}, ["[1,2]", "[1 ,\n    2]"], ["[1,2,3]", "[1,\n\n2]", "[1,    2]"]),
    (PERSON, ['{"name":"x","age":1}', "{}", '{"age":1,"more":null}'], ['{"age":1,"name":"x"}', '{"age":"1"}']),
    (PETS, ['{"kind":"cat","lives":9}', '{"kind":"dog"}'], ['{"lives":9}', "{}"]),
    (True, ["1", "{}", "null"], ["", "x"]),
    ({"type": "string", "pattern": '^[^"]$'}, ['"a"', r'"\n"', r'"\\"'], [r'"\""']),
    ({"type": "string", "pattern": r'^[^"\\]$'}, ['"a"', r'"\t"'], [r'"\""', r'"\\"']),
    ({"type": "string", "pattern": r"^[^\x20-\x7e]$"}, ['"é"', r'"\n"'], [r'"\""', r'"\\"']),
    ({"type": "string", "pattern": r"^[\x00-\x1f]$"}, [r'"\n"'], [r'"\""', r'"\\"']),
    ({"type": "string", "pattern": r"^[\x00-\x20]$"}, ['" "'], [r'"\""', r'"\\"']),
    ({"type": "string", "pattern": r"^\P{P}$"}, ['"a"'], [r'"\""', r'"\\"']),
    ({"type": "string", "pattern": r'^[^\s"]$'}, ['"a"'], [r'"\u001c"', r'"\""']),
    ({"type": "string", "pattern": "^[^]a]$"}, ['"b"'], ['"]"', '"a"']),
    ({"type": "string", "pattern": "^[^-a]+$"}, ['"b["'], ['"-"', '"a"']),
    ({"type": "string", "pattern": r"^[[:alpha:]\]]x[a-z]$"}, ['"]xb"', '"axb"'], ['"1xb"']),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, ["0.1", "1"], ["0", "0.0", "-0"]),
    ({"type": "number", "minimum": -1, "exclusiveMaximum": 0}, ["-0.1", "-1"], ["0", "0.0", "-0"]),
    ({"type": "integer", "minimum": 2**53 - 2, "maximum": 2**53}, [str(2**53)], [str(2**53 + 1)]),
    ({"const": -(2**53)}, [str(-(2**53))], [str(1 - 2**53)]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "right", "wrong"), CASES)
def test_texts_that_are_allowed_and_texts_that_are_not(compiler, schema, right, wrong):
    grammar = grammar_of(schema_expression(schema))
    assert [text for text in right if not matches(compiler, grammar, text)] == []
    assert [text for text in wrong if matches(compiler, grammar, text)] == []


REFUSED = [
    ({"not": {"type": "string"}}, "not"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"if": {"type": "string"}, "then": {"minLength": 1}}, "if"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames"),
    ({"type": "array", "contains": {"type": "integer"}}, "contains"),
    ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    ({"type": "object", "minProperties": 2}, "minProperties"),
    ({"type": "number", "multipleOf": 0.01}, "multipleOf"),
    ({"type": "integer", "multipleOf": 99999999}, "multipleOf"),
    ({"type": "string", "format": "idn-hostname"}, "idn-hostname"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"type": "string", "pattern": "("}, "regex"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
    ({"type": "text"}, "text"),
    ({"$ref": "#/$defs/none"}, "none"),
    ({"$ref": "https://example.com/schema"}, "example.com"),
    ({"allOf": [{"$ref": "#"}, {"type": "object"}]}, "circular"),
    ({"$schema": "http://json-schema.org/draft-03/schema#", "type": "string"}, "$schema"),
    ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
    ({"enum": []}, "Unsatisfiable"),
    ({"$id": "http://a/b", "$ref": "c.json", "$defs": {"c": {"$id": "http://a/c.json"}}}, "different drafts"),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{}], "additionalItems": False, "allOf": [{}]},
     "additionalItems"),
    ({"type": "string", "format": "date", "allOf": 5}, "allOf"),
    ({"type": "object", "minProperties": 3, "required": [["a"], None]}, "minProperties"),
    ({"type": "number", "multipleOf": 0}, "multiple of"),
    ({"oneOf": [{"$ref": "#/oneOf/" + "9" * 5000}, {"$ref": 5}]}, ""),
    ({"minimum": float("inf")}, ""),
    (False, "allows nothing"),
    *(({"type": "number", low: a, high: b}, "cannot be enforced without its whole") for a, b, low, high in (
        (0, 0.5, "exclusiveMinimum", "maximum"),
        (1, 1.05, "exclusiveMinimum", "maximum"),
        (5, 5.5, "exclusiveMinimum", "exclusiveMaximum"),
        (-0.5, 0, "minimum", "exclusiveMaximum"),
        (-1.5, -1, "minimum", "exclusiveMaximum"),
        (-5.25, -5, "exclusiveMinimum", "exclusiveMaximum"))),
    ({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 0, "exclusiveMinimum": True, "maximum": 0.5},
     "whole number"),
    ({"allOf": [{"exclusiveMinimum": 0}, {"maximum": 0.5}]}, "whole number"),
    ({"exclusiveMinimum": 0, "anyOf": [{"maximum": 0.5}]}, "whole number"),
    *(({keyword: 2**53 + 1}, f"'{keyword}' has 9007199254740993") for keyword in
      ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "const")),
    ({"enum": [1, {"a": [-(2**64) - 1]}]}, "'enum' has -18446744073709551617"),
    ({"type": "integer", "minimum": -(10**30), "maximum": -(10**30) + 3}, "'minimum' has -1000"),
    ({"$ref": "#"}, "points to itself"),
    ({"type": "string", "pattern": r"^[\x01]$"}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "reason"), REFUSED, ids=lambda value: json.dumps(value)[:60])
def test_what_cannot_be_enforced_is_refused_with_the_reason(compiler, schema, reason):
    with pytest.raises(RequestError) as caught:
        compiler.compile(grammar_of(schema_expression(schema)))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_schema_in_an_instance_is_not_taken_for_one():
    schema = {"const": {"format": "date", "multipleOf": 0.01}, "default": {"x-guidance": 1, "uniqueItems": False}}
    assert prepare(schema) == schema


def test_closed_objects_have_no_further_properties(compiler):
    grammar = grammar_of(schema_expression({"type": "object", "properties": {"a": PERSON}}, closed=True))
    assert matches(compiler, grammar, '{"a":{"age":1}}')
    assert not matches(compiler, grammar, '{"b":1}')
    assert not matches(compiler, grammar, '{"a":{"b":1}}')


def test_a_schema_nested_beyond_all_bounds_is_refused(compiler):
    schema = {"type": "string"}
    for _ in range(5000):
        schema = {"anyOf": [schema]}
    with pytest.raises(RequestError, match="nested too deeply"):
        schema_expression(schema)
