"""POST /v1/score and /v1/rerank, and their other paths: how well texts fit together.

A model whose head has one label says so of a pair; of any other model, it is the cosine of the texts' embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from engine.protocol import PoolingParams
from server.heads.answers import Ranks, ScoreList
from server.heads.call import as_json, checked_info, opening
from server.heads.scores import RerankRequest, ScoreRequest, ScoringRequest
from server.heads.texts import Pairs, Sides
from server.heads.values import cosine, is_cross_encoder, pair_score, paired, shortened
from server.http.access import LEFT
from server.http.json_body import JsonRoute
from server.http.openapi import ERRORS, answer, example
from server.pipeline import yielding
from server.pooling import pool
from server.state import ServerState, State

if TYPE_CHECKING:
    from server.pooling import Pooled

router = APIRouter(route_class=JsonRoute, responses=ERRORS, tags=["Embeddings and scores"])

_SCORE: dict[str, Any] = {
    "responses": answer(ScoreList),
    "openapi_extra": example({"text_1": "three rivers", "text_2": ["the Nile", "a bicycle"]}),
}
_RERANK: dict[str, Any] = {
    "responses": answer(Ranks),
    "openapi_extra": example({"query": "three rivers", "documents": ["a bicycle", "the Nile"]}),
}


@router.post("/score", **_SCORE, name="score")
@router.post("/v1/score", **_SCORE, name="create_score")
async def create_score(request: Request, body: ScoreRequest, server: State) -> Response:
    """Score one text with several others, or as many pairs as there are texts on either side."""
    scored = await _scored(request, body, server, "Score")
    if scored is None:
        return Response(status_code=LEFT)
    scores, usage = scored
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
    return as_json({**opening(server, body, "score"), "data": data, "usage": usage})


@router.post("/rerank", **_RERANK, name="rerank")
@router.post("/v2/rerank", **_RERANK, name="rerank_v2")
@router.post("/v1/rerank", **_RERANK, name="create_rerank")
async def create_rerank(request: Request, body: RerankRequest, server: State) -> Response:
    """Order documents by how well they fit a query."""
    scored = await _scored(request, body, server, "Rerank (Score)")
    if scored is None:
        return Response(status_code=LEFT)
    scores, usage = scored
    best = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[: body.top_n or None]
    results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in best]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": body.documents[result["index"]]}
    begin = opening(server, body, "rerank")
    return as_json({"id": begin["id"], "model": begin["model"], "results": results, "usage": usage})


async def _scored(
    request: Request, body: ScoringRequest, server: ServerState, api: str
) -> tuple[list[float], dict[str, int]] | None:
    """Return a score for each pair, and the usage; None if the client has left."""
    reads_pairs = is_cross_encoder(server.client.require_info())
    info = checked_info(server, body, "classify" if reads_pairs else "embed", api)
    if reads_pairs:
        pooled = await pool(request, Pairs(server, body), PoolingParams(task="classify"))
        if pooled is None:
            return None
        raw = not body.use_activation
        return [pair_score(logits, info, raw=raw) for logits in pooled.vectors], pooled.usage
    pooling = PoolingParams(task="embed", pooling=server.embedding_defaults.pooling_for(None))
    pooled = await pool(request, Sides(server, body), pooling)
    return None if pooled is None else (await _cosines(pooled, len(body.sides[0])), pooled.usage)


async def _cosines(pooled: Pooled, num_queries: int) -> list[float]:
    vectors = [shortened(vector, None, normalize=True) async for vector in yielding(pooled.vectors)]
    pairs = paired(vectors[:num_queries], vectors[num_queries:])
    return [cosine(*pair) async for pair in yielding(pairs)]
