"""What routes say of themselves in the OpenAPI document beyond their bodies: errors and streams."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What is wrong: `param` is the field at fault, `code` a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """OpenAI's error body."""

    error: ErrorDetail


STATUSES = {
    400: "The request is not valid; the error names the field",
    401: "The API key is missing or wrong",
    404: "There is no such model or object",
    408: "The request's time was over, or it arrived too slowly",
    413: "The body is too large",
    429: "Too much waits already; Retry-After says when to come back",
    500: "The server failed",
    503: "The model is loading, the server is about to end, or its storage fails",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": text} for status, text in STATUSES.items()
}
STREAM: dict[str, Any] = {
    "description": "The answer; with `stream: true`, server-sent events",
    "content": {"text/event-stream": {"schema": {}}},
}


def leave_out_validation_errors(document: dict[str, Any]) -> None:
    """Take FastAPI's 422 out of a document: here, what is not valid is a 400 in OpenAI's shape."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
