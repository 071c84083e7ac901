"""What a template gets of a request: the text is transformers', and templates that know no tools are told in words."""

import asyncio
import json

import pytest
from transformers import PreTrainedTokenizerFast

from engine.errors import RequestError
from server.chat.chat_template import ChatTemplate, named_template
from server.chat.prompt import render
from server.chat.tools.use import ToolUse
from server.protocol import ChatCompletionRequest

BOS, EOS = "<bos>", "<eos>"
FUNCTION = {
    "name": "get_weather",
    "description": "The weather of a city, in °C.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS = [{"type": "function", "function": FUNCTION}]
ARGUMENTS = {"city": "Zürich", "days": 2}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": json.dumps(ARGUMENTS)}}
SECOND = {"id": "call_2", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How warm is it?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL, SECOND]},
    {"role": "tool", "tool_call_id": "call_1", "content": "7"},
    {"role": "tool", "tool_call_id": "call_2", "content": "8"},
]
HERMES = """
{%- if tools %}
    {{- '<|im_start|>system\\n' + messages[0].content + '\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools> <tool_call></tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages[1:] %}
    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
    {%- for tool_call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n{"name": "' + tool_call.function.name + '", "arguments": ' }}
        {{- tool_call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
"""
LLAMA = """
{{- bos_token }}<|start_header_id|>system{{ tools | tojson(indent=4) if tools is not none }} {"parameters": {}}
{%- for message in messages %}
    {%- if message.tool_calls %}{{- message.tool_calls[0].function.arguments | tojson }}
    {%- elif message.role == 'tool' %}{{- {'output': message.content} | tojson }}
    {%- else %}{{- message.content | trim }}{%- endif %}
{%- endfor %}
"""
PLAIN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def prompt(source, messages=TALK, tools=TOOLS, parser="auto", **fields):
    body = ChatCompletionRequest.model_validate({"messages": messages, "tools": tools, **fields})
    template = ChatTemplate(source, {"bos_token": BOS, "eos_token": EOS})
    return asyncio.run(render(template, body, ToolUse(body, template, parser)))


@pytest.fixture(scope="module")
def reference(tiny_llama):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_llama)
    tokenizer.add_special_tokens({"bos_token": BOS, "eos_token": EOS})
    return tokenizer


def parsed(messages):
    """Arguments as objects, which is how transformers' templates expect them."""
    return [
        {
            **message,
            "tool_calls": [
                {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
                for call in message["tool_calls"]
            ],
        }
        if "tool_calls" in message
        else message
        for message in messages
    ]


@pytest.mark.parametrize("source", [HERMES, LLAMA, named_template("deepseek-v3.2")], ids=["hermes", "llama", "v3.2"])
def test_prompts_with_tools_are_transformers(reference, source):
    expected = reference.apply_chat_template(
        parsed(TALK), tools=TOOLS, chat_template=source, tokenize=False, add_generation_prompt=True
    )
    assert prompt(source) == expected
    assert '"city": "Zürich"' in expected or "Zürich</" in expected
    assert "The weather of a city" in expected


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-r1", "deepseek-v3.1"])
def test_templates_that_want_arguments_as_text_get_text(reference, name):
    source = named_template(name)
    expected = reference.apply_chat_template(TALK, chat_template=source, tokenize=False, add_generation_prompt=True)
    assert prompt(source, tools=[]) == expected
    assert json.dumps(ARGUMENTS) in expected


def test_content_is_none_or_empty_as_a_template_wants_it():
    calls = "{{ m.tool_calls[0].function.arguments | tojson if m.tool_calls }}"
    assert "None" not in prompt("{% for m in messages %}" + calls + "{{ m.content | trim }}{% endfor %}")
    none = "{{ '<none>' if m.content is none else m.content | trim }}"
    with_none = prompt("{% for m in messages %}" + calls + none + "{% endfor %}")
    assert "<none>" in with_none


def test_arguments_that_are_no_json_reach_the_template_as_text():
    broken = {**CALL, "function": {"name": "get_weather", "arguments": '{"city": '}}
    talk = [*TALK[:2], {"role": "assistant", "tool_calls": [broken]}, {**TALK[3]}]
    assert json.dumps('{"city": ') in prompt(HERMES, talk)


B, E = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"


def test_v3_tells_of_tools_in_the_system_message_and_writes_calls_and_results():
    text = prompt(named_template("deepseek-v3"))
    assert text.startswith(f"{BOS}Be brief.\n\n# Tools\n")
    assert json.dumps(FUNCTION, ensure_ascii=False) in text
    assert text.endswith(
        "<｜User｜>How warm is it?<｜Assistant｜><｜tool▁calls▁begin｜>"
        f"{B}function<｜tool▁sep｜>get_weather\n```json\n{CALL['function']['arguments']}\n```{E}\n"
        f"{B}function<｜tool▁sep｜>get_weather\n```json\n{{}}\n```{E}<｜tool▁calls▁end｜>{EOS}"
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>7<｜tool▁output▁end｜>\n"
        "<｜tool▁output▁begin｜>8<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
    )
    answered = prompt(named_template("deepseek-v3"), [*TALK, {"role": "assistant", "content": "Warm."}, TALK[1]])
    assert answered.endswith(f"<｜tool▁outputs▁end｜>Warm.{EOS}<｜User｜>How warm is it?<｜Assistant｜>")


def test_v3_1_writes_calls_and_results():
    text = prompt(named_template("deepseek-v3.1"))
    assert text.startswith(f"{BOS}Be brief.\n\n## Tools\nYou have access to the following tools:\n\n### get_weather\n")
    assert text.endswith(
        f"<｜Assistant｜></think><｜tool▁calls▁begin｜>{B}get_weather<｜tool▁sep｜>{CALL['function']['arguments']}{E}"
        f"{B}get_weather<｜tool▁sep｜>{{}}{E}<｜tool▁calls▁end｜>{EOS}"
        "<｜tool▁output▁begin｜>7<｜tool▁output▁end｜><｜tool▁output▁begin｜>8<｜tool▁output▁end｜>"
    )


D = "｜DSML｜"
V3_2_CALLS = (
    f'\n\n<{D}function_calls>\n<{D}invoke name="get_weather">\n'
    f'<{D}parameter name="city" string="true">Zürich</{D}parameter>\n'
    f'<{D}parameter name="days" string="false">2</{D}parameter>\n</{D}invoke>\n'
    f'<{D}invoke name="get_weather">\n\n</{D}invoke>\n</{D}function_calls>{EOS}'
    "\n\n<function_results>\n<result>7</result>\n<result>8</result>\n</function_results>\n\n"
)


def test_v3_2_is_encoded_as_its_release_encodes_it():
    text = prompt(named_template("deepseek-v3.2"))
    schema = json.dumps(FUNCTION, ensure_ascii=False)
    assert text.startswith(f"{BOS}Be brief.\n\n## Tools\nYou have access to a set of tools")
    assert f"<functions>\n{schema}\n</functions>\n<｜User｜>" in text
    assert text.endswith(f"<｜User｜>How warm is it?<｜Assistant｜></think>{V3_2_CALLS}</think>")


def test_v3_2_keeps_reasoning_behind_the_last_user_alone():
    thought = {**TALK[2], "reasoning_content": "hm"}
    talk = [TALK[1], {"role": "assistant", "content": "7.", "reasoning": "old"}, TALK[1], thought, *TALK[3:]]
    text = prompt(named_template("deepseek-v3.2"), talk, tools=[], thinking={"type": "enabled"})
    assert text == (
        f"{BOS}<｜User｜>How warm is it?<｜Assistant｜></think>7.{EOS}"
        f"<｜User｜>How warm is it?<｜Assistant｜><think>hm</think>{V3_2_CALLS}<think>"
    )


def test_a_template_without_tools_is_told_in_words():
    text = prompt(PLAIN)
    assert text.startswith("[system]Be brief.\n\n# Tools\n")
    assert json.dumps(FUNCTION, ensure_ascii=False) in text
    assert text.endswith(
        f'[assistant]<tool_call>\n{{"name": "get_weather", "arguments": {json.dumps(ARGUMENTS)}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'
        "[user]<tool_response>\n7\n</tool_response>\n<tool_response>\n8\n</tool_response>[assistant]"
    )
    assert prompt(PLAIN, TALK[1:2]).startswith("[system]# Tools\n")


def test_a_template_without_system_messages_gets_them_in_the_first_user_message():
    source = PLAIN.replace(
        "{% for m in messages %}",
        "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no') }}{% endif %}",
    )
    assert prompt(source, TALK[1:2]).startswith("[user]# Tools\n")
    assert prompt(source, TALK[1:2]).endswith("How warm is it?[assistant]")


def test_ids_of_calls_are_as_long_as_a_template_wants_them():
    source = (
        "[TOOL_CALLS]{% for m in messages %}{{ m.tool_calls[0].id if m.tool_calls }} {{ m.tool_call_id }}{% endfor %}"
    )
    calls = [{**CALL, "id": "call_123456789"}]
    talk = [*TALK[:2], {"role": "assistant", "tool_calls": calls}, {**TALK[3], "tool_call_id": "call_123456789"}]
    assert prompt(source, talk, tools=[]).split() == ["[TOOL_CALLS]", "123456789", "123456789"]


def test_tools_are_left_out_where_none_may_be_called():
    assert prompt(PLAIN, tool_choice="none") == prompt(PLAIN, tools=[])
    assert prompt(HERMES, tool_choice="none") == prompt(HERMES, tools=[])


def test_allowed_tools_alone_are_told_of():
    other = {"type": "function", "function": {"name": "other"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [other]}}
    text = prompt(PLAIN, TALK[1:2], [*TOOLS, other], tool_choice=choice)
    assert "other" in text
    assert "get_weather" not in text


def test_the_older_fields_are_the_newer_ones_under_other_names():
    older = [
        *TALK[:2],
        {"role": "assistant", "function_call": CALL["function"]},
        {"role": "function", "name": "get_weather", "content": "7"},
    ]
    body = {"messages": older, "functions": [FUNCTION]}
    newer = [*TALK[:2], {"role": "assistant", "tool_calls": [CALL]}, TALK[3]]
    template = ChatTemplate(PLAIN, {})
    request = ChatCompletionRequest.model_validate(body)
    assert asyncio.run(render(template, request, ToolUse(request, template, "auto"))) == prompt(PLAIN, newer)


def test_a_parser_that_is_named_says_how_calls_are_written():
    assert "<｜tool▁call▁begin｜>" in prompt(PLAIN, TALK[:2], parser="deepseek-v3.1")
    with pytest.raises(RequestError, match="--tool-parser none") as caught:
        prompt(PLAIN, TALK[:2], parser="none")
    assert caught.value.param == "tools"
