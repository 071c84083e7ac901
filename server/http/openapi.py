"""What the OpenAPI document says beyond FastAPI's own: errors, streams, links, and requests as they are really taken.

Nothing here is looked at while requests are answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi.routing import APIRoute

Json = dict[str, Any]
_KEYS: Json = {  # either of them
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_SCHEMAS = "#/components/schemas/"
_error_models: set[type[BaseModel]] = set()
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
Responses = dict[int | str, Json]


class ErrorDetail(BaseModel):
    """What is wrong: `param` is the field at fault, `code` a word for programs."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None
    code: str | None


class Error(BaseModel):
    """OpenAI's error body."""

    error: ErrorDetail


STATUSES = {
    400: "The request is not valid; the error names the field",
    401: "The API key is missing or wrong",
    403: "A browser sends it for a page of another site (--cors-origins)",
    404: "There is no such model or object",
    408: "The request's time was over, or it arrived too slowly",
    413: "The body is too large",
    429: "Too much waits already, or the client is at its limit; Retry-After says when to come back",
    431: "The headers are too large",
    500: "The server failed",
    503: "The model is loading, the server is about to end, or its storage fails",
}
RETRY_AFTER: Json = {
    "Retry-After": {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 0}, "required": True}
}


def errors(model: type[BaseModel], statuses: Iterable[int] = STATUSES) -> Responses:
    """Return the errors with these statuses, with bodies of this model.

    They name its schema, which `finish` writes: FastAPI would make a validator for each status of each route.
    """
    _error_models.add(model)
    content = {"application/json": {"schema": {"$ref": _SCHEMAS + model.__name__}}}
    answers: Responses = {status: {"description": STATUSES[status], "content": content} for status in statuses}
    for status in {429, 503} & answers.keys():
        answers[status]["headers"] = RETRY_AFTER
    return answers


ERRORS = errors(Error)
ANY_ERRORS = errors(Error, (400, 403, 408, 413, 431, 500, 503))  # of any request, whatever it asks


def answer(model: type[BaseModel], *, chunk: str | None = None, links: Json | None = None) -> Responses:
    """Return the answer to a request that succeeds; `chunk` says what the events of its stream are."""
    said: Json = {"model": model, "description": "The answer"}
    if chunk is not None:
        said["description"] = "The answer; with `stream: true`, server-sent events"
        said["content"] = {"text/event-stream": {"schema": {"description": chunk}}}
    if links is not None:
        said["links"] = links
    return {200: said}


def media(*kinds: str) -> Responses:
    """Return an answer that is no JSON, of these media types."""
    return {200: {"description": "The answer", "content": {kind: {"schema": {"type": "string"}} for kind in kinds}}}


def links(parameter: str, *operations: str) -> Json:
    """Return what may be asked next with the `id` of an answer, as this parameter of these operations."""
    return {name: {"operationId": name, "parameters": {parameter: "$response.body#/id"}} for name in operations}


def example(body: Json) -> Json:
    """Return a request body that any model answers, for a route's `openapi_extra`."""
    return {"requestBody": {"content": {"application/json": {"example": body}}}}


def operation_id(route: APIRoute) -> str:
    """Return an operation's name in generated clients."""
    return route.name


def finish(document: Json, public_paths: Iterable[str], *, needs_key: bool) -> None:
    """Complete a document: keys, and no 422, since what is not valid is a 400 here."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            if method == "get":  # which any page may ask; it cannot read the answer
                operation["responses"].pop("403", None)
            for response in operation["responses"].values():
                _keep_references(response)
            if needs_key and path not in public_paths:
                operation["security"] = [{scheme: []} for scheme in _KEYS]
            elif path in public_paths:
                operation["responses"].pop("401", None)
    _write_whole_bounds(document)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for model in _error_models:
        schema = model.model_json_schema(ref_template=_SCHEMAS + "{model}")
        document["components"]["schemas"] |= {**schema.pop("$defs", {}), model.__name__: schema}
    if needs_key:
        document["components"]["securitySchemes"] = _KEYS


def _write_whole_bounds(said: Any) -> None:
    """Make bounds integers where they are: FastAPI makes them floats, and 2**63 is no decimal number of 16 digits."""
    if isinstance(said, list):
        for item in said:
            _write_whole_bounds(item)
    if isinstance(said, dict):
        for name, value in said.items():
            if name in _BOUNDS and isinstance(value, float) and value.is_integer():
                said[name] = int(value)
            _write_whole_bounds(value)


def _keep_references(response: Json) -> None:
    """Take away what FastAPI has read from a function's type beside a model that was named for the document."""
    said = response.get("content", {}).get("application/json")
    if said is not None and "$ref" in said["schema"]:
        said["schema"] = {"$ref": said["schema"]["$ref"]}
