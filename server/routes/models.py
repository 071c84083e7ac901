"""GET /v1/models: the one model that is served, under each of its names."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from server.openapi import ERRORS
from server.state import ServerState, State

router = APIRouter(responses={status: ERRORS[status] for status in (401, 404, 500)}, tags=["Models"])

_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


@router.head("/v1/models", include_in_schema=False)
@router.get("/v1/models")
async def list_models(server: State) -> dict[str, Any]:
    """All names of the one model."""
    return {"object": "list", "data": [_describe(server, name) for name in server.model_names]}


@router.head("/v1/models/{name:path}", include_in_schema=False)
@router.get("/v1/models/{name:path}")
async def retrieve_model(name: str, server: State) -> dict[str, Any]:
    """One model by name."""
    server.check_model(name)
    return _describe(server, name)


def _root(server: ServerState) -> str:
    """Return what clients may read as the name of the tokenizer: a path tells strangers of this machine's folders."""
    if server.config.model_root is not None:
        return server.config.model_root
    hub_folder = next((part for part in server.model_root.parts if part.startswith("models--")), None)
    if hub_folder is not None:  # in the hub's cache: models--org--name/snapshots/revision
        return hub_folder.removeprefix("models--").replace("--", "/")
    return str(server.model_root) if server.config.host in _THIS_MACHINE else server.model_name


def _describe(server: ServerState, name: str) -> dict[str, Any]:
    info = server.client.info
    return {
        "id": name,
        "object": "model",
        "created": server.created,
        "owned_by": "deepseek-serve",
        "root": _root(server),
        "max_model_len": info.max_seq_len if info is not None else None,
    }
