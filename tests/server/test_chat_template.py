"""Chat templates come with models and are not trusted: what they can say, and what they cannot reach."""

from __future__ import annotations

import re
from typing import Any

import pytest

from engine.errors import ModelError, RequestError
from server.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def render(source: str, messages: list[dict[str, Any]] = MESSAGES, **kwargs: Any) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    return template.render(messages, add_generation_prompt=True, **kwargs)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ '{0.__class__.__mro__}'.format('').x.y }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_hostile_templates_are_refused(source: str) -> None:
    with pytest.raises(RequestError, match="The model's chat template refuses these messages") as caught:
        render(source)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{{ strftime_now.__globals__ }}",
        "{{ raise_exception.__code__ }}",
        "{{ cycler.__init__ }}",
    ],
)
def test_private_attributes_are_as_good_as_absent(source: str) -> None:
    assert render(source) == ""


def test_messages_are_not_changed_by_a_template() -> None:
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(RequestError):
        render("{% set _ = messages.pop() %}", messages)
    assert messages == [{"role": "user", "content": "hi"}]


def test_raise_exception_refuses_the_request_with_its_message() -> None:
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.param == "messages"


@pytest.mark.parametrize("source", ["{% for %}", "{{ a", "{% break %}", "{{ x | no_such_filter }}"])
def test_a_template_that_is_not_jinja_is_a_model_error(source: str) -> None:
    with pytest.raises(ModelError, match="chat template is not valid"):
        ChatTemplate(source, {})


def test_tojson_keeps_unicode_and_html_as_they_are() -> None:
    assert render("{{ x | tojson }}", x={"é": "<b>&'"}) == '{"é": "<b>&\'"}'
    assert render("{{ x | tojson(indent=1) }}", x=[1]) == "[\n 1\n]"


def test_text_is_not_escaped() -> None:
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "<b>&amp;"}]) == "<b>&amp;"


def test_break_and_continue_work() -> None:
    skip_users = "{% if m.role == 'user' %}{% continue %}{% endif %}"
    source = "{% for m in messages %}" + skip_users + "{{ m.content }}{% break %}{% endfor %}"
    assert render(source, MESSAGES * 2) == "ho"


def test_block_lines_leave_no_white_space() -> None:
    assert render(
        "{% for m in messages %}\n    {%- if m %}\n  {% set a = 1 %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}"
    ) == ("user\nassistant\n")


def test_special_tokens_the_generation_prompt_and_variables_are_there() -> None:
    source = "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ enable_thinking }}{{ missing is defined }}"
    assert render(source, enable_thinking=False) == "<s></s>TrueFalseFalse"


def test_strftime_now_gives_the_date() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", render("{{ strftime_now('%Y-%m-%d') }}"))
