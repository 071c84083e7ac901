"""What the routes of task heads share: the refusal of a model that lacks the head, and how answers are written."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import Response
from fastapi.responses import StreamingResponse

from engine.errors import RequestError
from server.pipeline import yielding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from engine.engine_info import EngineInfo, PoolingTask
    from server.heads.protocol import PoolingFields
    from server.state import ServerState


def checked_info(server: ServerState, body: PoolingFields, task: PoolingTask, api: str) -> EngineInfo:
    """Return what the engine says of itself, once the model is the one that is asked for and can do the task.

    Raises:
        UnknownModelError: the model is another one.
        RequestError: in vLLM's words, and with what the model can do instead.
        EngineUnavailableError: no engine takes requests now.
    """
    server.check_model(body.model)
    info = server.client.require_info()
    try:
        info.check_task(task)
    except RequestError as error:
        raise RequestError(f"The model does not support {api} API. {error}", error.param, error.code) from None
    return info


def opening(server: ServerState, body: PoolingFields, kind: str) -> dict[str, Any]:
    """Return the fields that an answer begins with; its id begins with `kind`."""
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": body.model or server.model_name,
    }


def as_list(items: Iterable[dict[str, Any]], rest: dict[str, Any], name: str = "data") -> Response:
    """Return an answer with a list of these; they are made and written one by one, lest thousands stall streams."""
    return StreamingResponse(yielding(_list_pieces(items, rest, name)), media_type="application/json")


def _list_pieces(items: Iterable[dict[str, Any]], rest: dict[str, Any], name: str) -> Iterator[bytes]:
    yield msgspec.json.encode(rest).removesuffix(b"}") + b',"%b":' % name.encode()
    yield from list_pieces(items)
    yield b"}"


def list_pieces(items: Iterable[Any]) -> Iterator[bytes]:
    """Yield the JSON of a list, an item at a time."""
    begin = b"["
    for item in items:
        yield begin + msgspec.json.encode(item)
        begin = b","
    yield b"]" if begin == b"," else b"[]"


def as_json(answer: dict[str, Any]) -> Response:
    """Return an answer in one piece."""
    return Response(msgspec.json.encode(answer), media_type="application/json")
