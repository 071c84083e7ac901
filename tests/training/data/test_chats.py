"""training.data.chats: where the assistant's messages stand in a rendered conversation."""

from typing import Any

import pytest

from engine.errors import RequestError
from server.chat.chat_template import ChatTemplate, named_template
from training.data.bad_records import RecordError
from training.data.chats import render
from training.errors import TrainingError

Messages = list[dict[str, Any]]


def _chat(*contents: str) -> Messages:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


class _Tokenizer:
    def __init__(self, source: str | None) -> None:
        self.chat_template = None if source is None else ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})


def _answers(tokenizer, messages: Messages, **options) -> list[str]:
    chat = render(tokenizer, messages, **options)
    return [chat.text[start:stop] for start, stop in chat.answers]


def test_answers_with_the_marks_that_end_them(tokenizer) -> None:
    chat = render(tokenizer, [{"role": "system", "content": "Be kind."}, *_chat("a", "b", "c", "d")])
    assert chat.text == "<|begin|><|system|>Be kind.<|user|>a<|assistant|>b<|end|><|user|>c<|assistant|>d<|end|>"
    assert [chat.text[start:stop] for start, stop in chat.answers] == ["b<|end|>", "d<|end|>"]


def test_reasoning_is_learnt_where_the_template_leaves_it_in(tokenizer) -> None:
    messages = _chat("a", "<think>x</think>b", "c", "<think>y</think>d")
    assert _answers(tokenizer, messages)[-1] == "<think>y</think>d<|end|>"
    assert "x" not in render(tokenizer, messages).text


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3", "deepseek-v3.1"])
def test_templates_of_released_models(name: str) -> None:
    answers = _answers(_Tokenizer(named_template(name)), _chat("Hi", "Hello", "More", "Yes"))
    assert [answer.removeprefix("</think>").split("</s>")[0].strip() for answer in answers] == ["Hello", "Yes"]


def test_the_prompt_of_a_preference_is_not_learnt(tokenizer) -> None:
    assert _answers(tokenizer, _chat("a", "b", "c", "d"), num_prompt=3) == ["d<|end|>"]


def test_answers_far_behind_are_not_looked_for(tokenizer) -> None:
    assert _answers(tokenizer, _chat("a", "b", "c" * 100, "d"), num_searched=50) == ["b<|end|>"]


def test_parts_of_type_code_are_found(tokenizer) -> None:
    parts = [{"type": "text", "text": "See "}, {"type": "code", "text": "a + b"}]
    chat = render(tokenizer, [{"role": "user", "content": parts}, {"role": "assistant", "content": "Yes"}])
    assert [chat.text[start:stop] for start, stop in chat.code] == ["a + b"]


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        ([], "without an answer"),
        (_chat("a"), "without an answer"),
        (_chat("a", ""), "without an answer"),
        ([{"content": "a"}], "malformed"),
        ([{"role": 5, "content": "a"}], "malformed"),
        ([{"role": "assistant", "content": 5}], "malformed"),
        (_chat(*["a"] * 1025), "malformed"),
    ],
)
def test_what_is_no_conversation(tokenizer, messages: Messages, kind: str) -> None:
    with pytest.raises(RecordError) as caught:
        render(tokenizer, messages)
    assert caught.value.kind == kind


def test_a_template_may_refuse_and_must_be_there(tokenizer) -> None:
    with pytest.raises(RequestError, match="the roles are system"):
        render(tokenizer, [{"role": "judge", "content": "a"}, {"role": "assistant", "content": "b"}])
    with pytest.raises(TrainingError, match="no chat template"):
        render(_Tokenizer(None), _chat("a", "b"))
