"""A model's chat template, which makes prompt text from messages. Jinja's sandbox renders it."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.sandbox

from engine.errors import ConfigError, ModelError, RequestError

_TEMPLATES = Path(__file__).parent / "chat_templates"

_MARK = "\ue000<end of the message>\ue000"  # of the private use area: in no text
# What an expression in a template can raise; the sandbox does not catch these.
_TEMPLATE_FAILURES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class ChatTemplate:
    """A compiled template. The environment matches transformers' (same extensions, filters and globals).

    Attributes:
        source: the template's text.
        variables: the names that it reads.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """Compile.

        Raises:
            ModelError: the template is not valid Jinja.
        """
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols], autoescape=False
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens = special_tokens
        self.source = source
        try:
            self._template = environment.from_string(source)
            self.variables = frozenset(jinja2.meta.find_undeclared_variables(environment.parse(source)))
        except (jinja2.TemplateError, SyntaxError) as error:
            raise ModelError(f"the model's chat template is not valid: {error}") from None

    def render(
        self,
        messages: list[dict[str, Any]],
        /,
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """Return the prompt's text; the template can also read `variables`.

        With `continue_final_message` the text ends with the last message's content, so that the model goes on with it.

        Raises:
            RequestError: the template refuses these messages (an unknown role, for example), or fails on them.
        """
        if continue_final_message:
            if add_generation_prompt:
                message = "continue_final_message goes on with the last message: set add_generation_prompt to false."
                raise RequestError(message, "continue_final_message")
            return self._continue(messages, variables)
        fixed = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render({**self._special_tokens, **variables, **fixed})
        except (jinja2.TemplateError, *_TEMPLATE_FAILURES) as error:
            raise RequestError(f"The model's chat template refuses these messages: {error}", "messages") from None

    def _continue(self, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
        """Render with a mark at the end of the last message, and cut there."""
        content = messages[-1].get("content") if messages else None
        if not isinstance(content, str):
            message = "continue_final_message needs a last message whose content is text."
            raise RequestError(message, "continue_final_message")
        marked = [*messages[:-1], {**messages[-1], "content": f"{content.rstrip()}{_MARK}"}]
        text, mark, _ = self.render(marked, add_generation_prompt=False, **variables).rpartition(_MARK)
        if not mark:
            message = "The model's chat template leaves the last message out, so that it cannot be continued."
            raise RequestError(message, "continue_final_message")
        return text + content[len(content.rstrip()) :]


def named_template(choice: str) -> str:
    """Return the source of a template: one that comes with this server, by its name, or a file.

    Raises:
        ConfigError: there is no such name or file; the text lists the names.
    """
    known = {path.stem: path for path in _TEMPLATES.glob("*.jinja")}
    path = known.get(choice, Path(choice))
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        names = ", ".join(sorted(known))
        raise ConfigError(f"--chat-template {choice} is no readable file and not one of {names}") from None


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **kwargs: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **kwargs)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now(tz=datetime.UTC).astimezone().strftime(form)
