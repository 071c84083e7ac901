"""GET /v1/models: the one model that is served, under each of its names."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from server.state import ServerState, State

router = APIRouter()


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


def _describe(server: ServerState, name: str) -> dict[str, Any]:
    info = server.client.info
    return {
        "id": name,
        "object": "model",
        "created": server.created,
        "owned_by": "deepseek-serve",
        "root": str(server.model_root),
        "max_model_len": info.max_seq_len if info is not None else None,
    }
