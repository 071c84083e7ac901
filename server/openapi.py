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
    400: "the request is not valid; the error names the field",
    401: "the API key is missing or wrong",
    404: "there is no such model or object",
    408: "the request's time was over, or it arrived too slowly",
    413: "the body is too large",
    429: "too much waits already; Retry-After says when to come back",
    500: "the server failed",
    503: "the model is loading, the server is about to end, or its storage fails",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": text[0].upper() + text[1:]} for status, text in STATUSES.items()
}
STREAM: dict[str, Any] = {
    "description": "The answer; with `stream: true`, server-sent events",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
