"""A conversation's tokens without an answer: what is counted or shown is what would be computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.chat.call import ChatCall
from server.large import apart

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from server.generation import Generation
    from server.inputs import Prompt
    from server.protocol import ChatCompletionRequest
    from server.state import ServerState


class PromptCall(ChatCall):
    """A call that nothing is generated for."""

    def chunks(self, generation: Generation) -> AsyncGenerator[dict[str, Any], None]:
        raise NotImplementedError

    async def answer(self, generation: Generation) -> dict[str, Any]:
        raise NotImplementedError


async def rendered(server: ServerState, body: ChatCompletionRequest) -> Prompt:
    """Return a conversation's prompt.

    Raises:
        RequestError: the request is refused, in chat completions' words.
    """
    call = PromptCall(server, body)
    await apart(call.prepare)
    [prompt] = await call.prompts()
    return prompt


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
