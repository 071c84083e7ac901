"""The chat formats of DeepSeek's models, as the templates that come with the server write them."""

import pytest

from engine.errors import ConfigError
from server.chat_template import ChatTemplate, named_template
from server.reasoning import starts_inside

USER, ASSISTANT, BOS, EOS = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<bos>", "<eos>"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "<think>\neasy\n</think>\n\nTwo."},
    {"role": "user", "content": "And 2+2?"},
]


def render(name, messages=TALK, *, add_generation_prompt=True, **variables):
    template = ChatTemplate(named_template(name), {"bos_token": BOS, "eos_token": EOS})
    return template.render(messages, add_generation_prompt=add_generation_prompt, **variables)


def test_v2():
    talk = [*TALK[:2], {"role": "assistant", "content": "Two."}, TALK[3]]
    assert render("deepseek-v2", talk) == (
        f"{BOS}Be brief.\n\nUser: 1+1?\n\nAssistant: Two.{EOS}User: And 2+2?\n\nAssistant:"
    )


def test_v3():
    talk = [*TALK[:2], {"role": "assistant", "content": "Two."}, TALK[3]]
    assert render("deepseek-v3", talk) == (f"{BOS}Be brief.{USER}1+1?{ASSISTANT}Two.{EOS}{USER}And 2+2?{ASSISTANT}")


def test_r1_history_drops_the_thinking_and_the_answer_begins_in_it():
    prompt = render("deepseek-r1")
    assert prompt == f"{BOS}Be brief.{USER}1+1?{ASSISTANT}\n\nTwo.{EOS}{USER}And 2+2?{ASSISTANT}<think>\n"
    assert starts_inside(prompt)


def test_v3_1_thinks_when_asked_to():
    history = f"{BOS}Be brief.{USER}1+1?{ASSISTANT}</think>\n\nTwo.{EOS}{USER}And 2+2?"
    assert render("deepseek-v3.1") == f"{history}{ASSISTANT}</think>"
    assert render("deepseek-v3.1", thinking=True) == f"{history}{ASSISTANT}<think>"
    assert not starts_inside(render("deepseek-v3.1"))


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3", "deepseek-r1", "deepseek-v3.1"])
def test_without_a_generation_prompt_the_text_ends_with_the_last_message(name):
    assert render(name, TALK[:2], add_generation_prompt=False).rstrip().endswith("1+1?")


def test_a_file_will_do_and_anything_else_is_refused(tmp_path):
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}!", encoding="utf-8")
    assert render(str(tmp_path / "own.jinja")) == "Be brief.!"
    with pytest.raises(ConfigError, match=r"not one of deepseek-r1, deepseek-v2, deepseek-v3, deepseek-v3\.1"):
        named_template("deepseek-v9")
