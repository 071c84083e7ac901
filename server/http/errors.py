"""Maps errors to HTTP answers that OpenAI's SDKs parse: {"error": {"message", "type", "param", "code"}}.

Routes of other APIs write the same answers in shapes of their own (server.http.error_shapes).
"""

from __future__ import annotations

import logging
import math
import re
import traceback
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from engine.errors import (
    ContentFilterError,
    DeadlineError,
    DeepseekServeError,
    DrainingError,
    EngineUnavailableError,
    NotFoundError,
    OverloadedError,
    RateLimitError,
    RequestError,
    StorageError,
    UnknownModelError,
)
from server.http.error_shapes import shaped_for
from server.http.request_record import current
from server.protocol.neutral import REFUSED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.routing import Route

    from server.observe.metrics import Metrics

logger = logging.getLogger(__name__)

# The `reason` of the metric requests_refused. queue_timeout is counted where it is found: streams have begun by then.
_REFUSALS: dict[type[Exception], str] = {
    RequestError: "invalid",
    ContentFilterError: "content_filter",
    NotFoundError: "invalid",
    UnknownModelError: "invalid",
    RequestValidationError: "invalid",
    OverloadedError: "queue_full",
    RateLimitError: "rate_limited",
    EngineUnavailableError: "unavailable",
    DrainingError: "draining",
}
# Likewise, for what is refused for its status alone; the other statuses are no requests for any route.
REFUSED_STATUSES = {400: "invalid", 413: "too_large", 429: "rate_limited", 431: "too_large", 503: "unavailable"}
_RETRY_AFTER = {"Retry-After": "1"}
_WRONG_TYPE = ("string_type", "list_type", "int_type")
_TYPE_NAME = re.compile(r"(constrained-)?(str|int)|list\[.*\]")  # in pydantic's paths: the type that was tried
_TYPES = {
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}  # others are 4xx or 5xx
_ANSWERS: dict[type[DeepseekServeError], tuple[int, str]] = {  # the first that fits
    NotFoundError: (404, "not_found_error"),
    RequestError: (400, "invalid_request_error"),
    EngineUnavailableError: (503, "service_unavailable_error"),
    StorageError: (503, "service_unavailable_error"),
    OverloadedError: (429, "rate_limit_error"),
    DeadlineError: (408, "timeout_error"),
}
UNEXPECTED = DeepseekServeError("The server had an error while processing your request.")


def error_body(error: DeepseekServeError) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error raised on purpose; a stream's error event has the same body."""
    status, kind = next((answer for cls, answer in _ANSWERS.items() if isinstance(error, cls)), (500, "server_error"))
    return status, _body(str(error), kind, error.param, error.code)


def unauthorized(path: str) -> Response:
    """Return the answer to a request for this path without a valid key."""
    body = _body(
        "Incorrect API key: send 'Authorization: Bearer KEY'.", "authentication_error", None, "invalid_api_key"
    )
    return _response(path, 401, body, {"WWW-Authenticate": "Bearer"})


def refused(path: str, error: DeepseekServeError) -> Response:
    """Return the answer to a request for this path that ends with an error raised on purpose."""
    status, body = error_body(error)
    headers = _RETRY_AFTER if status == 503 else None
    if isinstance(error, OverloadedError):
        headers = {"Retry-After": str(math.ceil(error.retry_after))}
    return _response(path, status, body, headers)


def error_response(status: int, message: str, headers: Any = None, *, path: str = "") -> Response:
    """Return an answer to what is refused for its status alone; an empty path stands for any."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return _response(path, status, _body(message, kind, None, None), headers)


def count_refusal(metrics: Metrics, error: Exception) -> None:
    """Count a request that ends with this error, if that is a refusal."""
    if (reason := _REFUSALS.get(type(error))) is not None:
        metrics.requests.count_refused(reason)


def install(app: FastAPI, metrics: Metrics) -> None:
    """Make the app answer every error in OpenAI's shape, and count refusals."""

    @app.exception_handler(DeepseekServeError)
    async def on_purpose(request: Request, error: DeepseekServeError) -> Response:
        count_refusal(metrics, error)
        return refused(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        count_refusal(metrics, error)
        message, param = first_problem(error.errors())
        _release_body(error)
        return _response(request.url.path, 400, _body(message, "invalid_request_error", param, None))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if (reason := REFUSED_STATUSES.get(error.status_code)) is not None:
            metrics.requests.count_refused(reason)
        headers = {"Allow": _methods(request)} if error.status_code == 405 else error.headers
        return error_response(error.status_code, str(error.detail), headers, path=request.url.path)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        record = current()  # this answer is given outside of server.http.access, which names the request elsewhere
        headers = {"X-Request-ID": record.request_id} if record else None
        return _response(request.url.path, *error_body(UNEXPECTED), headers)


def _methods(request: Request) -> str:
    """What may be asked of a path: Starlette names the methods of one of its routes, and there is a route for each."""
    routes: list[Route] = request.app.state.routes
    path = request.scope["path"]
    own = [route for route in routes if route.path == path]  # a parameter of others may match it too
    found = own or [route for route in routes if route.path_regex.match(path)]
    return ", ".join(sorted({method for route in found for method in route.methods or ()}))


def _release_body(error: RequestValidationError) -> None:
    """Break the circles in which the error's frames keep the error, and so the body, until the garbage collector comes.

    It comes late where bodies are made of strings and numbers, which it does not count: ten bodies took 120 MiB.
    """
    traceback.clear_frames(error.__traceback__)
    for problem in error.errors():
        if isinstance(cause := problem.get("ctx", {}).get("error"), Exception):
            cause.__traceback__ = None


def _body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _response(path: str, status: int, body: dict[str, Any], headers: Any = None) -> Response:
    return Response(msgspec.json.encode(shaped_for(path, status, body)), status, headers, media_type="application/json")


def first_problem(problems: Sequence[Any]) -> tuple[str, str | None]:
    """Return pydantic's first problem as a sentence, and the request field at fault."""
    problem = telling_problem(problems)
    path = [part for part in map(str, problem["loc"][1:]) if not _TYPE_NAME.fullmatch(part)]  # 0: body, query, path
    path = [part for i, part in enumerate(path) if part.isdecimal() or part not in path[i - 1 : i]]  # a union's kind
    field = "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in path).removeprefix(".")
    param = path[0] if path else problem.get("ctx", {}).get("param")
    if problem["type"] == "json_invalid":
        return f"The body is not valid JSON: {problem.get('ctx', {}).get('error', problem['msg'])}", None
    if problem["type"] == "extra_forbidden":
        reason = f"supported: {REFUSED[field]}" if field in REFUSED else "implemented by this server"
        return f"Unsupported parameter: '{field}' is not {reason}.", param
    if not path:
        return f"The body is not valid: {problem['msg'].removeprefix('Value error, ')}", param
    return f"Invalid '{field}': {problem['msg'].removeprefix('Value error, ')}", param


def telling_problem(problems: Sequence[Any]) -> Any:
    """Return the one of pydantic's problems that an answer tells of: of the field that has the first one.

    For a field of several types, pydantic reports one problem for each type. A problem with the value says more than
    one with the type, so it is preferred.
    """
    same_field = (problem for problem in problems if problem["loc"][:2] == problems[0]["loc"][:2])
    return next((problem for problem in same_field if problem["type"] not in _WRONG_TYPE), problems[0])
