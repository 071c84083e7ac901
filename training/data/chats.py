"""A conversation as its chat template writes it, and where in this text the assistant's messages stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.inputs import MarkedText
from server.inputs.conversation import conversation_prompt
from training.data.bad_records import RecordError
from training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from server.inputs.fences import Span
    from server.text.tokenizer import Tokenizer
    from training.data.records import Message

_MOST_MESSAGES = 1024  # each of the assistant's has the conversation rendered twice more


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A conversation's text.

    Attributes:
        answers: where the assistant's messages stand, with the mark that ends each.
        code: where parts of type code stand.
    """

    text: str
    answers: tuple[Span, ...]
    code: tuple[Span, ...]


def render(
    tokenizer: Tokenizer, messages: Sequence[Message], *, num_prompt: int = 0, num_searched: int = 1 << 20
) -> RenderedChat:
    """Return the text of a conversation, as the server makes prompts.

    A message that the template writes otherwise once others follow it (without its reasoning, for example) is learnt
    only if it is the last.

    Args:
        tokenizer: with a chat template.
        messages: of the conversation.
        num_prompt: messages at the beginning that are not learnt, whoever wrote them.
        num_searched: characters behind whose place answers are not looked for.

    Raises:
        RecordError: the messages are not those of a conversation that ends with an answer.
        RequestError: the template refuses them.
        TrainingError: the tokenizer has no chat template.
    """
    _check(messages, num_prompt)
    whole = _prompt(tokenizer, messages)
    text, code = (whole, ()) if isinstance(whole, str) else (whole.text, whole.code)
    answers = tuple(_answers(tokenizer, messages, text, num_prompt, num_searched))
    return RenderedChat(text, answers, code)


def _check(messages: Sequence[Message], num_prompt: int) -> None:
    if len(messages) > _MOST_MESSAGES:
        raise RecordError("malformed", f"it has {len(messages)} messages; expected at most {_MOST_MESSAGES}")
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str | list | None):
            raise RecordError("malformed", "a message lacks its 'role', or its 'content' is no text")
    if not any(message["role"] == "assistant" and message.get("content") for message in messages[num_prompt:]):
        raise RecordError("without an answer", "no message is the assistant's")


def _answers(
    tokenizer: Tokenizer, messages: Sequence[Message], text: str, num_prompt: int, num_searched: int
) -> Iterator[Span]:
    behind = 0
    for number in range(num_prompt, len(messages)):
        if messages[number]["role"] != "assistant":
            continue
        before = _text(tokenizer, messages[:number], add_generation_prompt=True)
        start = max(behind, _num_equal(before, text))
        if start > num_searched:
            return
        stop = _num_equal(_text(tokenizer, messages[: number + 1]), text)
        if start < stop:
            yield start, stop
            behind = stop


def _text(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
    prompt = _prompt(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    return prompt if isinstance(prompt, str) else prompt.text


def _prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False
) -> str | MarkedText:
    template = tokenizer.chat_template
    if template is None:
        raise TrainingError("the tokenizer has no chat template (chat_template.jinja), which chats are written by")
    prompt = conversation_prompt(
        messages, lambda rendered: template.render(rendered, add_generation_prompt=add_generation_prompt)
    )
    assert not isinstance(prompt, list)  # token ids come from clients alone
    return prompt


def _num_equal(one: str, other: str) -> int:
    """Return how many characters two texts begin with that are the same."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
