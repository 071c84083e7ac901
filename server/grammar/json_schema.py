"""A JSON schema made ready for llguidance, so that every text that it allows is valid by the schema.

llguidance refuses most of what it cannot enforce. What it would let through, or refuses without need, is settled here:
the text says so where it is done. Nothing here is asynchronous or slow: the work grows with the schema's size.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from engine.errors import RequestError
from server.grammar import numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

Schema = dict[str, Any] | bool

_DRAFTS = (
    *("https://json-schema.org/draft/2020-12/schema", "https://json-schema.org/draft/2019-09/schema"),
    *(f"http://json-schema.org/draft-0{number}/schema" for number in (7, 6, 4)),
)
_MAPS = ("properties", "patternProperties", "$defs", "definitions")  # keywords whose values have schemas by name
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE = ("items", "additionalItems", "additionalProperties")

# An item of a pattern; a class may begin with a `]` that does not end it.
_ITEM = re.compile(r"\\[pP](?:\{[^}]{0,64}\}|.)|\\.|\[\^?\]?|.", re.DOTALL)
# llguidance lets a quote or a backslash through where a class has all control characters, so it gets none but spaces.
_NO_CONTROLS = r"[^\x00-\x08\x0e-\x1f]"
_CLASSES = {  # a class -> the characters that both JavaScript's and Python's have
    ".": r"[^\n\r\x{2028}\x{2029}]",
    r"\s": r"[ \t\n\r\f\v]",
    r"\S": r"[^\s\x{feff}]",
    r"\W": r"[^0-9A-Za-z_\x{80}-\x{10ffff}]",
    r"\D": r"[^0-9\p{Nd}]",
}

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP_YEAR = (
    "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"  # Gregorian, from the year 4 on
)
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
    f"|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = (
    "[a-z0-9](?:[a-z0-9-]?[a-z0-9]|[a-z0-9-][a-z0-9][a-z0-9-]{0,59}[a-z0-9]"
    "|[a-z0-9-]-[a-z0-9](?:[a-z0-9-]{0,58}[a-z0-9])?)?"
)
_EXACT: dict[str, dict[str, Any]] = {  # llguidance's own would let through a 29th of February, a second 60, `xn--`
    "date": {"pattern": f"^{_DATE}$"},
    "time": {"pattern": f"^{_TIME}$"},
    "date-time": {"pattern": f"^{_DATE}T{_TIME}$"},
    "hostname": {"pattern": rf"^{_LABEL}(?:\.{_LABEL})*$", "maxLength": 253},
}
_FORMATS = {  # of JSON Schema; any other is a remark to readers, as the standard has it
    *("date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6"),
    *("uri", "uri-reference", "iri", "iri-reference", "uri-template", "uuid", "json-pointer", "relative-json-pointer"),
    "regex",
}


def prepare(schema: Schema, *, closed: bool = False) -> Schema:
    """Return a schema whose every text is valid by the given one, for llguidance; the given one is left as it is.

    Args:
        schema: of the drafts 4 to 2020-12.
        closed: objects that say nothing of further properties have none.

    Raises:
        RequestError: it needs what cannot be enforced.
    """
    if isinstance(schema, bool):
        return schema
    try:
        root = copy.deepcopy(schema)
    except RecursionError:
        raise RequestError("the schema is nested too deeply") from None
    if "x-guidance" in root:
        raise RequestError("'x-guidance' is not taken from requests")
    if str(root.get("$schema", _DRAFTS[0])).rstrip("#") not in _DRAFTS:
        raise RequestError(f"'$schema' is not one of {', '.join(_DRAFTS)}")
    stack: list[Any] = [root]
    seen, copies, nodes = set[int](), set[int](), list[dict[str, Any]]()
    while stack:
        node = stack.pop()
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(options := node.get("oneOf"), list) and id(node) not in copies:  # of copies there would be no end
            node["oneOf"] = [_inlined(option, root, node) for option in options]
            copies.update(map(id, node["oneOf"]))
        stack += _subschemas(node)
        if isinstance(reference := node.get("$ref"), str):
            stack.append(target := _target(root, reference))  # which may lie where no schema is looked for
            if target is node:
                raise RequestError(f"'$ref' {reference!r} points to itself")
            if "$id" in node and not reference.startswith("#"):
                raise RequestError("'$ref' beside '$id' points to different places in different drafts of JSON schema")
        _settle(node, closed=closed)
        nodes.append(node)
    numbers.check_ranges(nodes)
    return root


def _settle(node: dict[str, Any], *, closed: bool) -> None:
    """Settle the keywords of one schema, in place."""
    if node.get("uniqueItems") is False:  # llguidance knows nothing of it, and nothing is asked
        del node["uniqueItems"]
    if closed and (node.get("type") == "object" or "properties" in node):
        node.setdefault("additionalProperties", False)
    if isinstance(name := node.get("format"), str):
        if name not in _FORMATS:
            del node["format"]
        elif name in _EXACT:
            _add_all_of(node, _EXACT[name])
    numbers.settle(node)
    if isinstance(pattern := node.get("pattern"), str):
        node["pattern"] = _in_all_dialects(pattern)
    if "additionalItems" in node and node.keys() & {"allOf", "anyOf", "oneOf", "$ref"}:
        raise RequestError("'additionalItems' does not go together with 'allOf', 'anyOf', 'oneOf' or '$ref' here")
    if isinstance(least := node.get("minProperties"), int | float):
        required = node.get("required")
        names = {name for name in required if isinstance(name, str)} if isinstance(required, list) else ()
        # Names that the schema does not list may be repeated in the output, and repeated ones count once.
        if least - len(names) > 1:
            raise RequestError(f"'minProperties' {least} is more than one beyond the properties that are required")


def _in_all_dialects(pattern: str) -> str:
    """A pattern without what only JavaScript matches by it, or only Python, whose classes have other characters.

    Within a class in brackets, and so behind a negation, all stays as it is; the class gets no control characters.
    """
    depth, written = 0, ""
    for found in _ITEM.finditer(pattern):
        item = found[0]
        if item[0] == "[":
            written += item if depth else f"[{item}"
            depth += 1
        elif item == "]" and depth:
            depth -= 1
            written += item if depth else f"]&&{_NO_CONTROLS}]"
        elif not depth and re.match(r"\\[pP]", item):
            written += f"[{item}&&{_NO_CONTROLS}]"
        else:
            written += item if depth else _CLASSES.get(item, item)
    return written


def _subschemas(node: dict[str, Any]) -> Iterator[Any]:
    for keyword in _MAPS:
        if isinstance(named := node.get(keyword), dict):
            yield from named.values()
    for keyword in _LISTS:
        if isinstance(several := node.get(keyword), list):
            yield from several
    for keyword in _SINGLE:
        yield node.get(keyword)


def _add_all_of(node: dict[str, Any], schema: dict[str, Any]) -> None:
    before = node.get("allOf", [])
    if not isinstance(before, list):
        raise RequestError("'allOf' must be an array")
    node["allOf"] = [*before, dict(schema)]


def _inlined(option: Any, root: dict[str, Any], parent: dict[str, Any]) -> Any:
    """An option of oneOf without its $ref, as llguidance does not look behind it to tell options apart.

    The property that tells them apart (OpenAPI's discriminator, which pydantic writes) is required: else an option
    that has a default for it would overlap with others.
    """
    if not isinstance(option, dict):
        return option
    if option.keys() == {"$ref"} and isinstance(target := _target(root, option["$ref"]), dict):
        option = dict(target)
    discriminator = parent.get("discriminator")
    name = discriminator.get("propertyName") if isinstance(discriminator, dict) else None
    required, properties = option.get("required", []), option.get("properties")
    if isinstance(properties, dict) and name in properties and isinstance(required, list) and name not in required:
        option = {**option, "required": [*required, name]}
    return option


def _target(root: dict[str, Any], reference: Any) -> Any:
    """What a `#/...` points to; None for any other, which llguidance resolves or refuses."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return root if reference == "#" else None
    node: Any = root
    for part in unquote(reference[2:]).split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict):
            node = node.get(name)
        elif isinstance(node, list) and name.isdecimal() and len(name) < 8 and int(name) < len(node):
            node = node[int(name)]
        else:
            return None
    return node
