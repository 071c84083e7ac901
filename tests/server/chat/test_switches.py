"""reasoning_effort and verbosity reach templates that read them, and are refused where nothing could come of them."""

import pytest

from engine.errors import RequestError
from server.chat.chat_template import ChatTemplate, named_template
from server.chat.switches import template_variables
from server.protocol import ChatCompletionRequest

BODY = {"messages": [{"role": "user", "content": "hi"}]}
PLAIN, READS = "{{ messages }}", "{{ reasoning_effort }}{{ verbosity }}"
SWITCH, OTHER_SWITCH = "{% if thinking %}<think>{% endif %}", "{% if enable_thinking is false %}</think>{% endif %}"
ALWAYS = "{{ messages }}<think>"


def variables(source, **fields):
    return template_variables(ChatCompletionRequest.model_validate(BODY | fields), ChatTemplate(source, {}))


@pytest.mark.parametrize(
    ("source", "fields", "expected"),
    [
        (PLAIN, {}, {}),
        (READS, {"reasoning_effort": "xhigh", "verbosity": "low"}, {"reasoning_effort": "xhigh", "verbosity": "low"}),
        (READS + SWITCH, {"reasoning_effort": "none"}, {"reasoning_effort": "none", "thinking": False}),
        (SWITCH, {"reasoning_effort": "none"}, {"thinking": False}),
        (SWITCH, {"reasoning_effort": "minimal"}, {"thinking": False}),
        (OTHER_SWITCH, {"reasoning_effort": "medium"}, {"enable_thinking": True}),
        (OTHER_SWITCH, {"reasoning_effort": "none"}, {"enable_thinking": False}),
        (SWITCH, {"reasoning_effort": "high", "chat_template_kwargs": {"thinking": False}}, {"thinking": False}),
        (SWITCH, {"reasoning_effort": "low", "thinking": {"type": "disabled"}}, {"thinking": False}),
        (OTHER_SWITCH, {"thinking": {"type": "enabled"}}, {"enable_thinking": True}),
        (SWITCH, {"thinking": {"type": "enabled"}, "chat_template_kwargs": {"thinking": False}}, {"thinking": False}),
        (
            SWITCH,
            {"chat_template_kwargs": {"enable_thinking": True}},
            {"thinking": True, "enable_thinking": True},
        ),
        (ALWAYS, {"thinking": {"type": "enabled"}}, {}),
        (PLAIN, {"thinking": {"type": "disabled"}}, {}),
        (PLAIN, {"reasoning_effort": "none"}, {}),
        (PLAIN, {"reasoning_effort": "low"}, {}),
        (PLAIN, {"reasoning_effort": "medium", "verbosity": "medium"}, {}),
        (ALWAYS, {"reasoning_effort": "medium"}, {}),
    ],
)
def test_a_template_gets_what_it_reads(source, fields, expected):
    assert variables(source, **fields) == expected


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        (PLAIN, {"reasoning_effort": "high"}),
        (PLAIN, {"verbosity": "low"}),
        (ALWAYS, {"reasoning_effort": "low"}),
        (ALWAYS, {"reasoning_effort": "none"}),
        (PLAIN, {"thinking": {"type": "enabled"}}),
        (ALWAYS, {"thinking": {"type": "disabled"}}),
        (SWITCH, {"verbosity": "high"}),
    ],
)
def test_what_no_template_can_do_is_refused_by_name(source, fields):
    with pytest.raises(RequestError, match=next(iter(fields))) as caught:
        variables(source, **fields)
    assert caught.value.param == next(iter(fields))


def test_v3_1_is_switched():
    template = named_template("deepseek-v3.1")
    assert variables(template, reasoning_effort="low") == {"thinking": True}
