"""GET /v1/models: the one model that is served, under each of its names."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from engine.engine_info import Task
from server.http.openapi import ERRORS, answer
from server.inputs import modalities_of_texts
from server.state import ServerState, State

router = APIRouter(responses=ERRORS, tags=["Models"])


class Model(BaseModel):
    """OpenAI's description of a model, two fields of vLLM's, and two of ours.

    Attributes:
        root: what clients may read as the name of the tokenizer.
        max_model_len: tokens of a prompt and its output at most; null until the model is loaded.
        tasks: what the model can do (docs/task-heads.md); null until it is loaded.
        modalities: what a request's `modality` can be (docs/inputs.md); null until it is loaded.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int | None
    tasks: list[Task] | None
    modalities: list[str] | None


class ModelList(BaseModel):
    """The model under each of its names."""

    object: Literal["list"]
    data: list[Model]


@router.head("/v1/models", include_in_schema=False)
@router.get("/v1/models", responses=answer(ModelList))
async def list_models(server: State) -> dict[str, Any]:
    """All names of the one model."""
    return {"object": "list", "data": [_describe(server, name) for name in server.model_names]}


@router.head("/v1/models/{name:path}", include_in_schema=False)
@router.get("/v1/models/{name:path}", responses=answer(Model))
async def retrieve_model(name: str, server: State) -> dict[str, Any]:
    """One model by name."""
    server.check_model(name)
    return _describe(server, name)


def _root(server: ServerState) -> str:
    """Return `root`, which never is a path: that would tell strangers of this machine's folders."""
    if server.config.model_root is not None:
        return server.config.model_root
    hub_folder = next((part for part in server.model_root.parts if part.startswith("models--")), None)
    if hub_folder is not None:  # in the hub's cache: models--org--name/snapshots/revision
        return hub_folder.removeprefix("models--").replace("--", "/")
    return server.model_name


def _describe(server: ServerState, name: str) -> dict[str, Any]:
    info = server.client.info
    return {
        "id": name,
        "object": "model",
        "created": server.created,
        "owned_by": "deepseek-serve",
        "root": _root(server),
        "max_model_len": info.max_seq_len if info is not None else None,
        "tasks": info.tasks if info is not None else None,
        "modalities": modalities_of_texts(info.modalities) if info is not None else None,
    }
