"""Anthropic's Messages API: POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from engine.errors import RequestError
from server.chat.tokens import prompt_tokens
from server.http.json_body import JsonRoute
from server.http.openapi import answer, example
from server.messages.call import MessagesCall
from server.messages.protocol import CountRequest, MessagesRequest
from server.messages.schema import ERRORS, MessageObject, TokenCount
from server.pipeline import respond
from server.state import State

router = APIRouter(route_class=JsonRoute, responses=ERRORS, tags=["Messages"])

_PROMPT = {"messages": [{"role": "user", "content": "Name three rivers."}]}
_EXAMPLE = example({**_PROMPT, "max_tokens": 50})
_EVENTS = "Anthropic's events, from message_start to message_stop; after a fault, an error event is the last"


@router.post("/v1/messages", responses=answer(MessageObject, chunk=_EVENTS), openapi_extra=_EXAMPLE)
async def create_message(request: Request, body: MessagesRequest, server: State) -> Response:
    """Answer a conversation."""
    body.check_thread()
    return await respond(MessagesCall(server, body), request)


@router.post("/v1/messages/count_tokens", responses=answer(TokenCount), openapi_extra=example(_PROMPT))
async def count_tokens(request: Request, body: CountRequest, server: State) -> dict[str, int]:
    """Return how many tokens the prompt of a conversation has, without answering it."""
    try:
        tokens = await prompt_tokens(server, body.to_chat(), request.scope["caller"].tenant)
    except RequestError as error:
        raise body.reworded(error) from None
    return {"input_tokens": len(tokens)}
