"""The two models that `deepseek-serve chat` talks to: one in this process, one behind a URL."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError
from engine.protocol import SamplingParams
from server.chat.reasoning import ReasoningSplitter, starts_inside
from server.commands.chat import Messages, Piece
from server.commands.remote import RemoteServer

if TYPE_CHECKING:
    from collections.abc import Iterator


class LocalModel:
    """A model loaded into this process."""

    def __init__(self, model: str | None, template: str | None, options: dict[str, Any]) -> None:
        """Load it; `template` is --chat-template.

        Raises:
            ConfigError, ModelError: it cannot be loaded, or has no chat template.
        """
        from server.llm import LLM  # imports torch

        logging.basicConfig(level=logging.WARNING)
        self.name = model or "smollm2-135m-instruct"
        sys.stderr.write(f"loading {self.name} ...\n")
        self._llm, self._options = LLM(model), options
        if template is None and self._llm.tokenizer.chat_template is None:
            raise ConfigError(f"{self.name} has no chat template; name one with --chat-template")
        self._template = self._llm.chat_template(template)

    def answer(self, messages: Messages) -> Iterator[Piece]:
        """Yield an answer as it grows."""
        tokenizer = self._llm.tokenizer
        prompt = self._template.render(list(messages), add_generation_prompt=True)
        token_ids = tokenizer.encode(prompt, add_special_tokens=False)
        room = self._llm.engine.info.max_seq_len - len(token_ids)
        options = {**self._options, "max_tokens": min(self._options["max_tokens"] or room, max(1, room))}
        splitter = ReasoningSplitter(inside=starts_inside(prompt))
        for delta in self._llm.stream(prompt, SamplingParams(**options), add_special_tokens=False):
            reasoning, text = splitter.push(delta.text, final=delta.finish_reason is not None)
            if reasoning:
                yield Piece(reasoning, is_reasoning=True)
            yield Piece(text, num_tokens=len(delta.token_ids))


class RemoteModel:
    """A model behind a URL."""

    def __init__(self, url: str, api_key: str | None, model: str | None, options: dict[str, Any]) -> None:
        """Find out the model's name, if it is not given.

        Raises:
            ConfigError, RequestError, EngineUnavailableError: the URL is none, or the server does not answer.
        """
        self._server = RemoteServer(url, api_key)
        self.name = model or self._server.first_model()
        self._options = {name: value for name, value in options.items() if value is not None}

    def answer(self, messages: Messages) -> Iterator[Piece]:
        """Yield an answer as it grows; each chunk of text counts as a token."""
        body = {"model": self.name, "messages": messages, **self._options}
        for chunk in self._server.stream("/v1/chat/completions", body):
            for choice in chunk.get("choices", ()):
                delta = choice.get("delta") or {}
                if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
                    yield Piece(reasoning, is_reasoning=True, num_tokens=1)
                if text := delta.get("content"):
                    yield Piece(text, num_tokens=1)
