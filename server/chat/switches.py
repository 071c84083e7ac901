"""reasoning_effort, verbosity and thinking: what a chat template can do with them decides what they mean.

A template that reads the variable gets it. A template that switches thinking on and off (`thinking`, `enable_thinking`)
gets that, by whichever of the names it reads. Where neither is read, OpenAI's default, "medium", asks for nothing, and
neither do efforts up to it of a model that does not think and "enabled" of one that always does; all else is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import RequestError

if TYPE_CHECKING:
    from server.chat.chat_template import ChatTemplate
    from server.protocol import ChatCompletionRequest

_NO_EFFORTS = ("none", "minimal")
_ASKS_NOTHING = ("medium",)  # OpenAI's default
_SMALL_EFFORTS = (*_NO_EFFORTS, "low", "medium")  # which a model that does not think never exceeds
_SWITCHES = ("thinking", "enable_thinking")


def template_variables(body: ChatCompletionRequest, template: ChatTemplate) -> dict[str, Any]:
    """Return the variables that a request gives to the template; chat_template_kwargs wins over the others.

    Raises:
        RequestError: the template cannot do what is asked.
    """
    switches = [switch for switch in _SWITCHES if switch in template.variables]
    variables: dict[str, Any] = {}
    small_efforts = _ASKS_NOTHING if template.thinks else _SMALL_EFFORTS
    for name, asks_nothing in (("reasoning_effort", small_efforts), ("verbosity", _ASKS_NOTHING)):
        value = getattr(body, name)
        if value is None:
            continue
        if name in template.variables:
            variables[name] = value
        if switches and name == "reasoning_effort":
            variables |= dict.fromkeys(switches, value not in _NO_EFFORTS)
        elif name not in variables and value not in asks_nothing:
            message = f"'{name}' is '{value}', which this model's chat template does not know; leave it out."
            raise RequestError(message, name)
    if body.thinking is not None:
        thinks = body.thinking.type == "enabled"
        if not switches and thinks != template.thinks:
            message = "'thinking' cannot be switched: this model's chat template has no switch; leave it out."
            raise RequestError(message, "thinking")
        variables |= dict.fromkeys(switches, thinks)
    given = body.chat_template_kwargs
    for name in _SWITCHES:  # a client knows one name, the template perhaps the other
        if name in given:
            variables |= dict.fromkeys(switches, given[name])
    return variables | given
