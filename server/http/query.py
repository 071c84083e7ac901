"""Queries of URLs: as fields of bodies, their parameters are honoured or refused by name, never ignored.

A route with a query declares it as one `Query` model; all others have none.
"""

from __future__ import annotations

from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import BaseModel, ConfigDict

from engine.errors import RequestError


class QueryModel(BaseModel):
    """The parameters of one route's query, and no others."""

    model_config = ConfigDict(extra="forbid")


async def refuse_unknown(request: Request) -> None:
    """A dependency of the API's routes: refuse the query of a route that has none.

    Raises:
        RequestError: naming the first parameter.
    """
    query = request.scope["query_string"]
    if query and not request.scope["route"].dependant.query_params:  # a model refuses by itself
        name = next((name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True)), "")
        if name:
            raise RequestError(f"Unsupported parameter: '{name}' is not implemented by this server.", name)
