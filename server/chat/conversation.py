"""A chat request's conversation: the template and the tools that the model has for it, and the prompt that it becomes.

It knows nothing of an answer, so that counting tokens needs no call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import RequestError
from server.chat import prompt
from server.chat.switches import template_variables
from server.chat.tools.use import ToolUse
from server.inputs.code_parts import CodeParts
from server.large import in_thread

if TYPE_CHECKING:
    from server.inputs import Prompt
    from server.protocol import ChatCompletionRequest
    from server.state import ServerState


class Conversation:
    """One request's.

    Attributes:
        template: the model's chat template.
        tools: what the request and the model make of its tools.
        text: the conversation as the template has rendered it, once `render` has run.
    """

    def __init__(self, server: ServerState, body: ChatCompletionRequest) -> None:
        """Find out what the template and the model's tools make of the request.

        Raises:
            RequestError: the conversation cannot become a prompt.
        """
        template = server.tokenizer.chat_template
        if template is None:
            message = "This model has no chat template: start the server with --chat-template, or use /v1/completions."
            raise RequestError(message, "messages")
        template_variables(body, template)
        self.template, self.tools = template, ToolUse(body, template, server.config.tool_parser)
        self.text = ""
        self._server, self._body = server, body

    async def render(self) -> Prompt:
        """Return the prompt, with the places of its parts that are code if the model reads code otherwise than text.

        Raises:
            RequestError: the template refuses these messages.
        """
        self.text = await prompt.render(self.template, self._body, self.tools)
        knows_code = "code" in self._server.client.require_info().modalities
        if not knows_code or not any(message.num_code_parts for message in self._body.messages):
            return self.text
        code = CodeParts()
        marked = await prompt.render(self.template, self._body, self.tools, code.marked)
        return await in_thread(code.find, self.text, marked)
