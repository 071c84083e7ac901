"""POST /v1/embeddings: OpenAI's, with vLLM's extensions. POST /v2/embed: Cohere's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from engine.errors import RequestError
from engine.protocol import PoolingParams
from server.heads.answers import EmbeddingList, embedding_of
from server.heads.call import as_list, checked_info, list_pieces, opening
from server.heads.cohere import CohereEmbeddingRequest, CohereEmbeddings, written
from server.heads.protocol import EmbeddingRequest
from server.heads.texts import Inputs
from server.heads.values import shortened
from server.http.access import LEFT
from server.http.json_body import JsonRoute
from server.http.openapi import ERRORS, answer, example
from server.pipeline import yielding
from server.pooling import pool
from server.state import ServerState, State

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

    from server.heads.cohere import EmbeddingType

router = APIRouter(route_class=JsonRoute, responses=ERRORS, tags=["Embeddings and scores"])

_COHERE: dict[str, Any] = {"responses": answer(CohereEmbeddings), "openapi_extra": example({"texts": ["three rivers"]})}


@router.post("/v1/embeddings", responses=answer(EmbeddingList), openapi_extra=example({"input": "three rivers"}))
async def create_embeddings(request: Request, body: EmbeddingRequest, server: State) -> Response:
    """Embed one text or several."""
    embedded = await _embedded(request, body, server)
    if embedded is None:
        return Response(status_code=LEFT)
    vectors, usage = embedded
    as_base64 = body.encoding_format == "base64"
    items = (
        {"object": "embedding", "index": index, "embedding": embedding_of(vector, as_base64=as_base64)}
        for index, vector in enumerate(vectors)
    )
    return as_list(items, {"object": "list", "model": body.model or server.model_name, "usage": usage})


@router.post("/v2/embed", **_COHERE)
async def embed(request: Request, body: CohereEmbeddingRequest, server: State) -> Response:
    """Embed texts, in the words of Cohere's API."""
    try:
        asked = body.to_embedding(server.embedding_defaults.prompts)
        size = server.client.require_info().hidden_size if body.output_dimension is None else body.output_dimension
        if size % 8 and {"binary", "ubinary"} & {*body.types}:
            message = f"'embedding_types' of bits need embeddings of 8 numbers, or times that; these have {size}."
            raise RequestError(message, "embedding_types")
        embedded = await _embedded(request, asked, server)
    except RequestError as error:
        raise body.reworded(error) from None
    if embedded is None:
        return Response(status_code=LEFT)
    vectors, usage = embedded
    meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": usage["prompt_tokens"]}}
    rest = {"id": opening(server, asked, "embd")["id"], "texts": body.texts, "meta": meta}
    kept = [vector async for vector in yielding(vectors)]
    return StreamingResponse(yielding(_by_type(kept, body.types, rest)), media_type="application/json")


def _by_type(vectors: list[array[float]], types: list[EmbeddingType], rest: dict[str, Any]) -> Iterator[bytes]:
    begin = msgspec.json.encode(rest).removesuffix(b"}") + b',"embeddings":{'
    for form in types:
        yield begin + f'"{form}":'.encode()
        yield from list_pieces(written(vector, form) for vector in vectors)
        begin = b","
    yield b"}}"


async def _embedded(
    request: Request, body: EmbeddingRequest, server: ServerState
) -> tuple[Iterator[array[float]], dict[str, int]] | None:
    """Return embeddings, each made when it is asked for, and the usage; None if the client has left."""
    info, defaults = checked_info(server, body, "embed", "Embeddings"), server.embedding_defaults
    if body.dimensions is not None and body.dimensions > info.hidden_size:
        message = f"'dimensions' is {body.dimensions}, and this model's embeddings have {info.hidden_size} numbers."
        raise RequestError(message, "dimensions")
    pooling = PoolingParams(task="embed", pooling=defaults.pooling_for(body.pooling))
    pooled = await pool(request, Inputs(server, body), pooling)
    if pooled is None:
        return None
    normalize = defaults.normalize if body.normalizes is None else body.normalizes
    return (shortened(vector, body.dimensions, normalize=normalize) for vector in pooled.vectors), pooled.usage
