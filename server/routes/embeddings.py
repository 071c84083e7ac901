"""POST /v1/embeddings: OpenAI's, with vLLM's extensions."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from engine.errors import RequestError
from engine.protocol import PoolingParams
from server.heads.answers import EmbeddingList, embedding_of
from server.heads.call import as_list, checked_info
from server.heads.protocol import EmbeddingRequest
from server.heads.texts import Inputs
from server.heads.values import shortened
from server.http.access import LEFT
from server.http.json_body import JsonRoute
from server.http.openapi import ERRORS, answer, example
from server.pooling import pool
from server.state import State

if TYPE_CHECKING:
    from array import array

router = APIRouter(route_class=JsonRoute, responses=ERRORS, tags=["Embeddings and scores"])


@router.post("/v1/embeddings", responses=answer(EmbeddingList), openapi_extra=example({"input": "three rivers"}))
async def create_embeddings(request: Request, body: EmbeddingRequest, server: State) -> Response:
    """Embed one text or several."""
    info, defaults = checked_info(server, body, "embed", "Embeddings"), server.embedding_defaults
    if body.dimensions is not None and body.dimensions > info.hidden_size:
        message = f"'dimensions' is {body.dimensions}, and this model's embeddings have {info.hidden_size} numbers."
        raise RequestError(message, "dimensions")
    pooling = PoolingParams(task="embed", pooling=defaults.pooling_for(body.pooling))
    pooled = await pool(request, Inputs(server, body), pooling)
    if pooled is None:
        return Response(status_code=LEFT)
    normalize = defaults.normalize if body.normalizes is None else body.normalizes
    as_base64 = body.encoding_format == "base64"

    def item(index: int, vector: array[float]) -> dict[str, Any]:
        kept = shortened(vector, body.dimensions, normalize=normalize)
        return {"object": "embedding", "index": index, "embedding": embedding_of(kept, as_base64=as_base64)}

    rest = {"object": "list", "model": body.model or server.model_name, "usage": pooled.usage}
    return as_list(itertools.starmap(item, enumerate(pooled.vectors)), rest)
