"""POST /v1/moderations: which of a classifier's labels flag a text, in OpenAI's shape."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from engine.protocol import PoolingParams
from server.guard.model import safety_of
from server.heads.call import as_list, checked_info
from server.heads.moderations import ModerationRequest, Moderations
from server.heads.texts import Inputs
from server.http.access import LEFT
from server.http.json_body import JsonRoute
from server.http.openapi import ERRORS, answer, example
from server.pooling import pool
from server.state import State

if TYPE_CHECKING:
    from server.guard.safety import Verdict

router = APIRouter(route_class=JsonRoute, responses=ERRORS, tags=["Embeddings and scores"])

_EXAMPLE = example({"input": "three rivers"})


@router.post("/v1/moderations", responses=answer(Moderations), openapi_extra=_EXAMPLE)
async def create_moderation(request: Request, body: ModerationRequest, server: State) -> Response:
    """Say of one text or several whether it is flagged, and by which of the model's labels: of the guard, if any."""
    moderator = server.moderator
    info = checked_info(moderator, body, "classify", "Moderation")
    pooled = await pool(request, Inputs(moderator, body.to_classification()), PoolingParams(task="classify"))
    if pooled is None:
        return Response(status_code=LEFT)
    safety = safety_of(server.config)
    verdicts = (safety.judge(info.labels, info.label_activation, logits) for logits in pooled.vectors)
    return as_list(
        map(_moderation, verdicts), {"id": f"modr-{uuid.uuid4().hex}", "model": moderator.model_name}, "results"
    )


def _moderation(verdict: Verdict) -> dict[str, Any]:
    return {
        "flagged": bool(verdict.hits),
        "categories": {label: label in verdict.hits for label in verdict.scores},
        "category_scores": verdict.scores,
        "category_applied_input_types": {label: ["text"] for label in verdict.scores},
    }
