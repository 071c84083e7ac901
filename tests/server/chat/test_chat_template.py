"""Chat templates come with models and are not trusted: what they can say, and what they cannot reach."""

import re

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from engine.errors import ConfigError, ModelError, RequestError
from server.chat.chat_template import ChatTemplate, named_template
from server.chat.reasoning import starts_inside

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def render(source, messages=MESSAGES, **kwargs):
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
def test_hostile_templates_are_refused(source):
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
def test_private_attributes_are_as_good_as_absent(source):
    assert render(source) == ""


def test_messages_are_not_changed_by_a_template():
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(RequestError):
        render("{% set _ = messages.pop() %}", messages)
    assert messages == [{"role": "user", "content": "hi"}]


def test_raise_exception_refuses_the_request_with_its_message():
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.param == "messages"


@pytest.mark.parametrize("source", ["{% for %}", "{{ a", "{% break %}", "{{ x | no_such_filter }}"])
def test_a_template_that_is_not_jinja_is_a_model_error(source):
    with pytest.raises(ModelError, match="chat template is not valid"):
        ChatTemplate(source, {})


def test_tojson_keeps_unicode_and_html_as_they_are():
    assert render("{{ x | tojson }}", x={"é": "<b>&'"}) == '{"é": "<b>&\'"}'
    assert render("{{ x | tojson(indent=1) }}", x=[1]) == "[\n 1\n]"


def test_text_is_not_escaped():
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "<b>&amp;"}]) == "<b>&amp;"


def test_break_and_continue_work():
    skip_users = "{% if m.role == 'user' %}{% continue %}{% endif %}"
    source = "{% for m in messages %}" + skip_users + "{{ m.content }}{% break %}{% endfor %}"
    assert render(source, MESSAGES * 2) == "ho"


def test_block_lines_leave_no_white_space():
    assert render(
        "{% for m in messages %}\n    {%- if m %}\n  {% set a = 1 %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}"
    ) == ("user\nassistant\n")


def test_special_tokens_the_generation_prompt_and_variables_are_there():
    source = "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ enable_thinking }}{{ missing is defined }}"
    assert render(source, enable_thinking=False) == "<s></s>TrueFalseFalse"


def test_strftime_now_gives_the_date():
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", render("{{ strftime_now('%Y-%m-%d') }}"))


def test_generation_blocks_are_plain_text():
    source = "{% for m in messages %}{% generation %}\n{{ m.content }}!{% endgeneration %}{% endfor %}"
    assert render(source) == "hi!ho!"


def test_dict_and_namespace_are_there_without_pythons_own_names():
    source = (
        "{% set ns = namespace(self=1) %}{% set ns.a = dict(b=2) %}{{ ns.self }}{{ ns.a.b }}{{ dict.fromkeys('x') }}"
    )
    assert render(source) == "12{'x': None}"
    for hostile in ("{% set ns = namespace(__class__=1) %}", "{% set ns = namespace() %}{% set ns._x = 1 %}"):
        with pytest.raises(RequestError, match="a namespace cannot have the name"):
            render(hostile)


def test_developers_are_the_system_to_a_template_that_does_not_know_them():
    messages = [{"role": "developer", "content": "be"}, *MESSAGES]
    source = "{% for m in messages %}[{{ m.role }}]{% endfor %}"
    assert render(source, messages) == "[system][user][assistant]"
    assert render(source + "{# developer #}", messages) == "[developer][user][assistant]"


def test_what_a_template_reads_is_known():
    source = "{% set a = 1 %}{% if not thinking is defined %}{% set thinking = a %}{% endif %}{{ effort or thinking }}"
    template = ChatTemplate(source, {})
    assert template.variables == {"thinking", "effort"}
    assert template.thinks
    assert not ChatTemplate("{{ messages }}", {}).thinks


def test_a_constant_is_not_computed_before_a_text_is_wanted():
    ChatTemplate("{{ 'a' * 10 ** 12 }}{{ 10 ** 10 ** 10 }}", {})


CONTINUED = [
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>{% endfor %}",
    "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}<end>{% endfor %}",
]


@pytest.mark.parametrize("source", CONTINUED)
@pytest.mark.parametrize("content", ["Once", " Once upon ", "a\n", "a", "[user]hi", "<end>", "é漢 \t"])
def test_a_continued_message_ends_the_prompt_as_transformers_ends_it(source, content):
    messages = [{"role": "user", "content": "hi " + content}, {"role": "assistant", "content": content}]
    template = ChatTemplate(source, {})
    rendered = template.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert [rendered] == render_jinja_template([messages], chat_template=source, continue_final_message=True)[0]
    assert rendered.rstrip().endswith(content.strip())


def test_a_message_that_the_template_writes_twice_is_continued_at_its_end():
    source = "{% for m in messages %}{{ m.content }},{% endfor %}{{ messages[-1].content }}."
    template = ChatTemplate(source, {})
    assert template.render(MESSAGES, add_generation_prompt=False, continue_final_message=True) == "hi,ho,ho"


@pytest.mark.parametrize("source", ["{{ messages[0].content }}", "{{ messages[-1].content.split('>')[-1] }}"])
def test_a_message_that_the_template_does_not_keep_cannot_be_continued(source):
    messages = [*MESSAGES[:1], {"role": "assistant", "content": "<think>a</think>b"}]
    with pytest.raises(RequestError, match="leaves out some of the last message") as caught:
        ChatTemplate(source, {}).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize(
    "source",
    [
        *CONTINUED,
        "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ messages | tojson(separators=(',', ':')) }}",
        "{{ messages | tojson(ensure_ascii=True, sort_keys=True) }}{{ strftime_now('%Y') }}",
        "{%- for m in messages %}\n  {%- if loop.last %}{% break %}{% endif %}\n{{- m.content -}}\n{% endfor %}\n",
        "{% generation %}{{ messages[0].content | upper }}{% endgeneration %}{{ missing }}{{ messages[0].missing }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% macro f(x) %}<{{ x }}>{% endmacro %}{% for m in messages %}{{ f(m.content) }}{% endfor %}",
        "{{ messages[0].content.startswith('h') }}{{ messages | map(attribute='role') | list }}",
    ],
)
def test_texts_are_those_of_transformers(source):
    messages = [{"role": "user", "content": "h<i>&'\" é漢\n"}, {"role": "assistant", "content": "ho"}]
    assert [render(source, messages)] == render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=True
    )[0]


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3", "deepseek-r1", "deepseek-v3.1"])
def test_our_templates_texts_are_those_of_transformers(name):
    variables = {"bos_token": BOS, "eos_token": EOS}
    expected = render_jinja_template(
        [TALK], chat_template=named_template(name), add_generation_prompt=True, **variables
    )[0]
    assert [render_named(name)] == expected


USER, ASSISTANT, BOS, EOS = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<bos>", "<eos>"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "<think>\neasy\n</think>\n\nTwo."},
    {"role": "user", "content": "And 2+2?"},
]


def render_named(name, messages=TALK, *, add_generation_prompt=True, **variables):
    template = ChatTemplate(named_template(name), {"bos_token": BOS, "eos_token": EOS})
    return template.render(messages, add_generation_prompt=add_generation_prompt, **variables)


def test_v2():
    talk = [*TALK[:2], {"role": "assistant", "content": "Two."}, TALK[3]]
    assert render_named("deepseek-v2", talk) == (
        f"{BOS}Be brief.\n\nUser: 1+1?\n\nAssistant: Two.{EOS}User: And 2+2?\n\nAssistant:"
    )


def test_v3():
    talk = [*TALK[:2], {"role": "assistant", "content": "Two."}, TALK[3]]
    assert render_named("deepseek-v3", talk) == (
        f"{BOS}Be brief.{USER}1+1?{ASSISTANT}Two.{EOS}{USER}And 2+2?{ASSISTANT}"
    )


def test_r1_history_drops_the_thinking_and_the_answer_begins_in_it():
    prompt = render_named("deepseek-r1")
    assert prompt == f"{BOS}Be brief.{USER}1+1?{ASSISTANT}\n\nTwo.{EOS}{USER}And 2+2?{ASSISTANT}<think>\n"
    assert starts_inside(prompt)


def test_v3_1_thinks_when_asked_to():
    history = f"{BOS}Be brief.{USER}1+1?{ASSISTANT}</think>\n\nTwo.{EOS}{USER}And 2+2?"
    assert render_named("deepseek-v3.1") == f"{history}{ASSISTANT}</think>"
    assert render_named("deepseek-v3.1", thinking=True) == f"{history}{ASSISTANT}<think>"
    assert not starts_inside(render_named("deepseek-v3.1"))


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3", "deepseek-r1", "deepseek-v3.1"])
def test_without_a_generation_prompt_the_text_ends_with_the_last_message(name):
    assert render_named(name, TALK[:2], add_generation_prompt=False).rstrip().endswith("1+1?")


def test_a_file_will_do_and_anything_else_is_refused(tmp_path):
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}!", encoding="utf-8")
    assert render_named(str(tmp_path / "own.jinja")) == "Be brief.!"
    with pytest.raises(ConfigError, match=r"not one of deepseek-r1, deepseek-v2, deepseek-v3, deepseek-v3\.1"):
        named_template("deepseek-v9")


def test_a_template_too_large_to_compile_is_refused_in_words(tmp_path):
    words = "the chat template has more than 65536 characters"
    with pytest.raises(ModelError, match=words):
        render("{{ 1 }}" * 9363)
    assert len(render("{{ 1 }}" * 100 + " " * 64000)) > 64000
    (tmp_path / "own.jinja").write_text("a" * 70000, encoding="utf-8")
    with pytest.raises(ModelError, match=words):
        render_named(str(tmp_path / "own.jinja"))
    assert len(named_template("/dev/zero")) == 65537
