"""Anthropic's Messages API: POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from engine.errors import RequestError
from server.chat.tokens import prompt_tokens
from server.http.json_body import JsonRoute
from server.http.openapi import answer, example
from server.http.query import QueryModel
from server.large import apart
from server.messages.call import MessagesCall
from server.messages.protocol import CountRequest, MessagesRequest
from server.messages.schema import ERRORS, MessageObject, TokenCount
from server.pipeline import respond
from server.state import State

router = APIRouter(route_class=JsonRoute, responses=ERRORS, tags=["Messages"])

_PROMPT = {"messages": [{"role": "user", "content": "Name three rivers."}]}
_EXAMPLE = example({**_PROMPT, "max_tokens": 50})
_EVENTS = "Anthropic's events, from message_start to message_stop; after a fault, an error event is the last"


class MessagesQuery(QueryModel):
    """The query of both routes. Anthropic's clients set `beta` in their namespace of that name; it asks for nothing."""

    beta: Literal["true"] | None = None


_Checked = Annotated[MessagesQuery, Query()]


@router.post("/v1/messages", responses=answer(MessageObject, chunk=_EVENTS), openapi_extra=_EXAMPLE)
async def create_message(
    request: Request,
    body: MessagesRequest,
    query: _Checked,  # noqa: ARG001
    server: State,
) -> Response:
    """Answer a conversation."""
    body.check_thread()
    return await respond(await apart(MessagesCall, server, body), request)


@router.post("/v1/messages/count_tokens", responses=answer(TokenCount), openapi_extra=example(_PROMPT))
async def count_tokens(
    request: Request,
    body: CountRequest,
    query: _Checked,  # noqa: ARG001
    server: State,
) -> dict[str, int]:
    """Return how many tokens the prompt of a conversation has, without answering it."""
    try:
        tokens = await prompt_tokens(server, await apart(body.to_chat), request.scope["caller"].tenant)
    except RequestError as error:
        raise body.reworded(error) from None
    return {"input_tokens": len(tokens)}
