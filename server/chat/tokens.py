"""A conversation's tokens without an answer: what is counted or shown is what would be computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.chat.conversation import Conversation
from server.large import apart

if TYPE_CHECKING:
    from server.inputs import Prompt
    from server.protocol import ChatCompletionRequest
    from server.state import ServerState


async def rendered(server: ServerState, body: ChatCompletionRequest) -> Prompt:
    """Return a conversation's prompt.

    Raises:
        RequestError: the request is refused, in chat completions' words.
    """
    conversation = await apart(Conversation, server, body)
    return await conversation.render()


async def prompt_tokens(
    server: ServerState, body: ChatCompletionRequest, tenant: bytes, *, add_special_tokens: bool = False
) -> list[int]:
    """Return the token ids of a conversation's prompt, however long it is. It counts as waiting while that is done.

    Raises:
        DeepseekServeError: the request is refused, in chat completions' words.
    """
    server.check_model(body.model)
    with server.admission.admit(1, sum(await apart(body.estimate_tokens)), tenant):
        prompt = await rendered(server, body)
        found = await server.encode(prompt, add_special_tokens=add_special_tokens, any_length=True)
        return found.token_ids
