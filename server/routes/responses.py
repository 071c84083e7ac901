"""OpenAI's Responses API: POST /v1/responses, and what is stored of responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from engine.errors import RequestError
from server.chat.tokens import prompt_tokens
from server.http.json_body import JsonRoute
from server.http.openapi import ERRORS, answer, example, links
from server.http.query import QueryModel
from server.large import apart
from server.pipeline import respond
from server.responses.call import ResponsesCall
from server.responses.history import History
from server.responses.protocol import InputTokensRequest, ResponseRequest
from server.responses.schema import DeletedResponse, InputItemList, InputTokens, ResponseObject
from server.state import State

router = APIRouter(route_class=JsonRoute, responses=ERRORS, tags=["Responses"])


_PROMPT = {"input": "Name three rivers."}
_EXAMPLE = example({**_PROMPT, "max_output_tokens": 50})
_EVENTS = "OpenAI's events, from response.created to response.completed, .incomplete or .failed"
_NEXT = links("response_id", "retrieve_response", "list_input_items", "cancel_response", "delete_response")


class ResponseQuery(QueryModel):
    """The query of GET /v1/responses/{response_id}."""

    stream: Literal["false"] = "false"


class InputItemsQuery(QueryModel):
    """The query of GET /v1/responses/{response_id}/input_items."""

    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = Field(None, description="the id behind which the list begins")


@router.post("/v1/responses", responses=answer(ResponseObject, chunk=_EVENTS, links=_NEXT), openapi_extra=_EXAMPLE)
async def create_response(request: Request, body: ResponseRequest, server: State) -> Response:
    """Answer a conversation, given as items; earlier responses can be gone on with."""
    history = _history(request, server)
    items = await history.conversation(body.previous_response_id, body.items)
    return await respond(await apart(ResponsesCall, server, body, items, history), request)


@router.post("/v1/responses/input_tokens", responses=answer(InputTokens), openapi_extra=example(_PROMPT))
async def count_input_tokens(request: Request, body: InputTokensRequest, server: State) -> dict[str, Any]:
    """Return how many tokens the prompt of a conversation has, all of it, without answering it."""
    tenant = request.scope["caller"].tenant
    items = await _history(request, server).conversation(body.previous_response_id, body.items)
    try:
        tokens = await prompt_tokens(server, await apart(body.to_chat, items), tenant)
    except RequestError as error:
        raise body.reworded(error) from None
    return {"object": "response.input_tokens", "input_tokens": len(tokens)}


@router.get("/v1/responses/{response_id}", responses=answer(ResponseObject))
async def retrieve_response(
    request: Request,
    response_id: str,
    query: Annotated[ResponseQuery, Query()],  # noqa: ARG001 - it is checked, and asks for nothing
    server: State,
) -> dict[str, Any]:
    """Return a stored response. It cannot be streamed again."""
    return (await _history(request, server).find(response_id)).response


@router.delete("/v1/responses/{response_id}", responses=answer(DeletedResponse))
async def delete_response(request: Request, response_id: str, server: State) -> dict[str, Any]:
    """Forget a stored response. Later responses that went on with it are not changed."""
    await _history(request, server).delete(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/v1/responses/{response_id}/cancel", status_code=400)
async def cancel_response(request: Request, response_id: str, server: State) -> Response:
    """Refuse: only responses that run in the background can be cancelled, and this server runs none."""
    await _history(request, server).find(response_id)
    raise RequestError("Only a response that was created with 'background': true can be cancelled.", "response_id")


@router.get("/v1/responses/{response_id}/input_items", responses=answer(InputItemList))
async def list_input_items(
    request: Request,
    response_id: str,
    query: Annotated[InputItemsQuery, Query()],
    server: State,
) -> dict[str, Any]:
    """Return the items that a stored response answers: those of its request, and of the responses before it."""
    items = (await _history(request, server).find(response_id)).input
    if query.order == "desc":
        items = items[::-1]
    if query.after is not None:
        ids = [item["id"] for item in items]
        if query.after not in ids:
            raise RequestError(f"There is no item with the id '{query.after}' in this list.", "after")
        items = items[ids.index(query.after) + 1 :]
    page = items[: query.limit]
    ends = {"first_id": page[0]["id"] if page else "", "last_id": page[-1]["id"] if page else ""}
    return {"object": "list", "data": page, **ends, "has_more": len(items) > query.limit}


def _history(request: Request, server: State) -> History:
    return History(server.storage, request.scope["caller"].tenant)
