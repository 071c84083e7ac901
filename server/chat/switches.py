"""reasoning_effort and verbosity: what a chat template can do with them decides what they mean.

A template that reads the variable gets it. A template that only switches thinking on and off (`thinking`,
`enable_thinking`) gets that. Where neither is read, OpenAI's default, "medium", asks for nothing, and neither does the
effort "none" of a model that does not think; all else is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import RequestError

if TYPE_CHECKING:
    from server.chat_template import ChatTemplate
    from server.protocol import ChatCompletionRequest

_DEFAULT = "medium"
_SWITCHES = ("thinking", "enable_thinking")


def template_variables(body: ChatCompletionRequest, template: ChatTemplate) -> dict[str, Any]:
    """Return the variables that a request gives to the template; chat_template_kwargs wins over the others.

    Raises:
        RequestError: the template cannot do what is asked.
    """
    variables: dict[str, Any] = {}
    for name in ("reasoning_effort", "verbosity"):
        value = getattr(body, name)
        if value is None:
            continue
        switches = [switch for switch in _SWITCHES if switch in template.variables and name == "reasoning_effort"]
        if name in template.variables:
            variables[name] = value
        elif switches:
            variables |= dict.fromkeys(switches, value != "none")
        elif value != _DEFAULT and not (value == "none" and not template.thinks):
            message = f"'{name}' is '{value}', which this model's chat template does not know; leave it out."
            raise RequestError(message, name)
    return variables | body.chat_template_kwargs
