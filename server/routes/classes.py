"""POST /v1/classify, and /classify as vLLM has it: the labels of texts."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from engine.protocol import PoolingParams
from server.heads.answers import TextClasses
from server.heads.call import as_list, checked_info, opening
from server.heads.protocol import ClassificationRequest
from server.heads.texts import Inputs
from server.heads.values import scores_of
from server.http.access import LEFT
from server.http.json_body import JsonRoute
from server.http.openapi import ERRORS, answer, example
from server.pooling import pool
from server.state import State

if TYPE_CHECKING:
    from array import array

router = APIRouter(route_class=JsonRoute, responses=ERRORS, tags=["Embeddings and scores"])

_EXAMPLE = example({"input": "three rivers"})


@router.post("/classify", responses=answer(TextClasses), openapi_extra=_EXAMPLE, name="classify")
@router.post("/v1/classify", responses=answer(TextClasses), openapi_extra=_EXAMPLE, name="create_classification")
async def create_classification(request: Request, body: ClassificationRequest, server: State) -> Response:
    """Say of one text or several how likely each of the model's labels is."""
    info = checked_info(server, body, "classify", "Classification")
    pooled = await pool(request, Inputs(server, body), PoolingParams(task="classify"))
    if pooled is None:
        return Response(status_code=LEFT)
    activation = info.label_activation if body.use_activation else "none"

    def item(index: int, logits: array[float]) -> dict[str, Any]:
        probs = scores_of(logits, activation)
        label = info.labels[max(range(len(probs)), key=probs.__getitem__)]
        return {"index": index, "label": label, "probs": probs, "num_classes": len(probs)}

    rest = {**opening(server, body, "classify"), "usage": pooled.usage}
    return as_list(itertools.starmap(item, enumerate(pooled.vectors)), rest)
