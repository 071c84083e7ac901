"""GET /v1/models: the one model that is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from server.state import ServerState, State

router = APIRouter()


@router.get("/v1/models")
async def list_models(server: State) -> dict[str, Any]:
    """All models, which is one."""
    return {"object": "list", "data": [_describe(server)]}


@router.get("/v1/models/{name:path}")
async def retrieve_model(name: str, server: State) -> dict[str, Any]:
    """One model by name."""
    server.check_model(name)
    return _describe(server)


def _describe(server: ServerState) -> dict[str, Any]:
    info = server.client.info
    return {
        "id": server.model_name,
        "object": "model",
        "created": server.created,
        "owned_by": "deepseek-serve",
        "root": str(server.model_root),
        "max_model_len": info.max_seq_len if info is not None else None,
    }
