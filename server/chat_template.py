"""A model's chat template, which makes prompt text from messages. Jinja's sandbox renders it."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

from engine.errors import ConfigError, ModelError, RequestError

_TEMPLATES = Path(__file__).parent / "chat_templates"

# What an expression in a template can raise; the sandbox does not catch these.
_TEMPLATE_FAILURES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class ChatTemplate:
    """A compiled template. The environment matches transformers' (same extensions, filters and globals)."""

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
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, SyntaxError) as error:
            raise ModelError(f"the model's chat template is not valid: {error}") from None

    def render(self, messages: list[dict[str, Any]], /, *, add_generation_prompt: bool, **variables: Any) -> str:
        """Return the prompt's text; the template can also read `variables`.

        Raises:
            RequestError: the template refuses these messages (an unknown role, for example), or fails on them.
        """
        fixed = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render({**self._special_tokens, **variables, **fixed})
        except (jinja2.TemplateError, *_TEMPLATE_FAILURES) as error:
            raise RequestError(f"The model's chat template refuses these messages: {error}", "messages") from None


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
