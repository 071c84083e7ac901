"""What the requests' models are made of: a strict base, types with their bounds, and errors that name a field."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from collections.abc import Iterator


def whole(value: Any) -> Any:
    """Return a number that is written with a fraction of zero as an integer, which it is in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(whole)
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]


class Strict(BaseModel):
    """A JSON object of just these fields; numbers are no strings, and each is finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def are_token_ids(value: Any) -> bool:
    """Whether a value is a list of whole numbers that a token id may be."""
    if not isinstance(value, list) or not {*map(type, value)} <= {int}:
        return False
    return not value or 0 <= min(value) <= max(value) < 1 << 31


def as_prompts(value: Any) -> list[str] | list[list[int]]:
    """Return one entry for each prompt: a request may have a text, token ids, or several of either.

    It is checked by hand: for a union of lists, pydantic would report every fault once for each kind of list.

    Raises:
        ValueError: it is none of these, or empty.
    """
    if value == []:
        raise ValueError("it must not be empty")
    if isinstance(value, str) or are_token_ids(value):
        return [value]
    kinds = {*map(type, value)} if isinstance(value, list) else set()
    if kinds == {str} or (kinds == {list} and are_token_ids([*chain.from_iterable(value)])):  # one pass: some have many
        prompts: list[str] | list[list[int]] = value
        return prompts
    raise ValueError("it must be a string, a list of strings, a list of token ids, or a list of lists of token ids")


def strings_of(value: Any) -> Iterator[str]:
    """Yield all strings in a JSON value, but for the names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_of(item)


def known_type(value: Any, known: tuple[str, ...], default: str | None = None) -> Any:
    """Refuse an object whose `type` is none of these by its name: pydantic would report a fault for each of them."""
    kind = value.get("type") or default if isinstance(value, dict) else None
    if kind not in known:
        shown = f"the type {kind!r:.40}" if isinstance(kind, str) else "what has no type"
        raise ValueError(f"{shown} is not one that this server takes here; it takes {', '.join(known)}")
    return {**value, "type": kind}


def fault(field: str, message: str) -> PydanticCustomError:
    """Return the error of a check over several fields, one of which is at fault."""
    return PydanticCustomError("value_error", message, {"param": field})
