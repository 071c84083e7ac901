"""The shapes of error bodies: OpenAI's on every route, but Anthropic's on the routes of its Messages API."""

from __future__ import annotations

from typing import Any

from server.http.request_record import current

Body = dict[str, Any]

_ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}  # others are invalid_request_error below 500, else api_error
_ANTHROPIC_CODES = ("thread_unsupported_request",)  # which its client acts on


def shaped_for(path: str, status: int, body: Body) -> Body:
    """Return an error's body, which is in OpenAI's shape, in the shape of the API that the path belongs to."""
    if path != _ANTHROPIC_PATH and not path.startswith(f"{_ANTHROPIC_PATH}/"):
        return body
    return anthropic_error(status, body["error"]["message"], body["error"]["code"])


def anthropic_error(status: int, message: str, code: str | None = None) -> Body:
    """Return the body of an error of the Messages API; a stream's error event has the same."""
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    record = current()
    details = {"details": {"error_code": code}} if code in _ANTHROPIC_CODES else {}
    return {
        "type": "error",
        "error": {"type": kind, "message": message, **details},
        "request_id": record.request_id if record is not None else None,
    }
