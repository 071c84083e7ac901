"""What the requests' models are made of: a strict base, types with their bounds, and errors that name a field."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]


class Strict(BaseModel):
    """A JSON object of just these fields; numbers are no strings, and each is finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def fault(field: str, message: str) -> PydanticCustomError:
    """Return the error of a check over several fields, one of which is at fault."""
    return PydanticCustomError("value_error", message, {"param": field})
