"""POST /v1/embeddings: OpenAI's, with vLLM's extensions."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from engine.errors import RequestError
from engine.protocol import PoolingParams
from server.heads.answers import EmbeddingList, embedding_pieces
from server.heads.call import checked_info
from server.heads.protocol import EmbeddingRequest
from server.heads.texts import Inputs
from server.heads.values import shortened
from server.http.access import LEFT
from server.http.json_body import JsonRoute
from server.http.openapi import ERRORS, answer, example
from server.pipeline import yielding
from server.pooling import pool
from server.state import State

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
    vectors = [shortened(v, body.dimensions, normalize=normalize) async for v in yielding(pooled.vectors)]
    rest = {"model": body.model or server.model_name, "usage": pooled.usage}
    pieces = embedding_pieces(vectors, as_base64=body.encoding_format == "base64", rest=rest)
    return StreamingResponse(yielding(pieces), media_type="application/json")
