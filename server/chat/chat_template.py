"""A model's chat template, which makes prompt text from messages. Jinja's sandbox renders it.

The environment is transformers': the same extensions, filters and globals. A template comes with a model and is not
trusted: in a server, server.chat.template_process renders it where it can be stopped.
"""

from __future__ import annotations

import datetime
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

from engine.errors import ConfigError, ModelError, RequestError

if TYPE_CHECKING:
    from jinja2.parser import Parser

    from server.chat.template_process import TemplateProcess

_TEMPLATES = Path(__file__).parent / "templates"
_MARK = "\ue000the end of the message\ue000 "  # of the private use area, so that no text has it
_MAX_CHARS = 1 << 25  # of a prompt; no context has as many
_MAX_SOURCE = 1 << 16  # characters of a template, which take a second or three to compile; real ones have up to 2^15

# What an expression in a template can raise; the sandbox does not catch these.
_TEMPLATE_FAILURES = (
    *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError, NameError),
    NotImplementedError,
)


class ChatTemplate:
    """A compiled template.

    Attributes:
        source: the template's text.
        timeout: seconds that a text may take in the template's process.
        variables: names that it reads, beside those it sets for itself.
        thinks: whether it says anything of thinking.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """Compile.

        Raises:
            ModelError: the template is too large, or not valid Jinja.
        """
        if len(source) > _MAX_SOURCE:
            raise ModelError(
                f"the chat template has more than {_MAX_SOURCE} characters, which would take long to compile"
            )
        self.source, self.special_tokens, self.timeout = source, special_tokens, 5.0
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self.variables = _find_variables(environment, source)
        except (jinja2.TemplateError, SyntaxError, RecursionError) as error:
            raise ModelError(f"the model's chat template is not valid: {error}") from None
        self.thinks = "think" in source
        self._knows_developers = "developer" in source

    @functools.cached_property
    def process(self) -> TemplateProcess:
        """A process that renders this template; it starts with the first text."""
        from server.chat.template_process import TemplateProcess

        return TemplateProcess(self.source, self.special_tokens)

    async def render_apart(self, messages: list[dict[str, Any]], /, **options: Any) -> str:
        """Return what `render` does, from a process that is stopped if it takes too long.

        Raises:
            RequestError: the template refuses these messages, fails on them, or takes too long.
        """
        return await self.process.render(self.timeout, messages, **options)

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

        A message of the role developer is one of the role system to a template that does not know developers. With
        `continue_final_message` the text ends where the last message's content does.

        Raises:
            RequestError: the template refuses these messages (an unknown role, for example), or fails on them.
        """
        if not self._knows_developers:
            messages = [{**m, "role": "system"} if m.get("role") == "developer" else m for m in messages]
        if not continue_final_message:
            return self._render(messages, add_generation_prompt, variables)
        if add_generation_prompt:
            message = "'continue_final_message' does not go with 'add_generation_prompt': true"
            raise RequestError(message, "continue_final_message")
        return self._continue(messages, variables)

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool, variables: dict[str, Any]) -> str:
        fixed = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        pieces, length = [], 0
        try:
            for piece in self._template.generate({**self.special_tokens, **variables, **fixed}):
                pieces.append(piece)
                if (length := length + len(piece)) > _MAX_CHARS:
                    raise ValueError(f"the text has more than {_MAX_CHARS} characters")
        except (jinja2.TemplateError, *_TEMPLATE_FAILURES) as error:
            reason = str(error) or type(error).__name__
            raise RequestError(f"The model's chat template refuses these messages: {reason}", "messages") from None
        return "".join(pieces)

    def _continue(self, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
        """Render with a mark behind the last message's content, and cut there."""
        content = messages[-1].get("content") if messages else None
        if not isinstance(content, str) or not content:
            raise RequestError("The last message has no text to continue.", "continue_final_message")
        marked = [*messages[:-1], {**messages[-1], "content": content + _MARK}]
        text = self._render(marked, False, variables)
        before, mark, after = text.rpartition(_MARK.strip())
        if not mark or content.strip() not in before:
            message = "The model's chat template leaves out some of the last message, so that it cannot be continued."
            raise RequestError(message, "continue_final_message")
        before = before.replace(_MARK, "")  # of a template that writes the message twice
        return before if after.startswith(" ") else before.rstrip()  # as trimmed as the message is there


def named_template(choice: str) -> str:
    """Return the source of a template: one that comes with this server, by its name, or a file's beginning.

    Of a file, no more is read than shows that it is too large.

    Raises:
        ConfigError: there is no such name or file; the text lists the names.
    """
    known = {path.stem: path for path in _TEMPLATES.glob("*.jinja")}
    path = known.get(choice, Path(choice))
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_MAX_SOURCE + 1)
    except (OSError, UnicodeDecodeError):
        names = ", ".join(sorted(known))
        raise ConfigError(f"--chat-template {choice} is no readable file and not one of {names}") from None


class _GenerationBlocks(jinja2.ext.Extension):
    """{% generation %}: trainers learn from what is in these blocks, and here they are plain text."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's way

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Any) -> str:
        return str(caller())


class _Dict:
    """`dict(...)` and `dict.fromkeys(...)` and nothing else of Python's class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace(...)` without names that Python gives a meaning to; `self` may be one of its names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have the name {name!r}")


def _find_variables(environment: jinja2.Environment, source: str) -> frozenset[str]:
    """Do what jinja2.meta.find_undeclared_variables does, without its optimizer."""
    generator = jinja2.meta.TrackingCodeGenerator(environment)
    generator.optimizer = None
    generator.visit(environment.parse(source))
    return frozenset(generator.undeclared_identifiers)


@jinja2.pass_context
def _as_it_is(_: jinja2.runtime.Context, value: Any) -> Any:
    return value


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlocks, jinja2.ext.loopcontrols],
        autoescape=False,
        optimized=False,  # this and `finalize` keep Jinja from computing constants, however large, while it compiles
        finalize=_as_it_is,
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now(tz=datetime.UTC).astimezone().strftime(form)
