"""Requests of many kinds, each made up anew: what they ask for, and what their answers must have."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Kind = Callable[[random.Random], tuple[str, Json]]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def whole(rng: random.Random) -> tuple[str, Json]:
    """Completions of prompts of any length, some with several choices."""
    prompt = [rng.randrange(256) for _ in range(rng.choice((1, 16, 40, 200, 700)))]
    body = {"prompt": prompt, "max_tokens": rng.randint(0, 40) or None, "n": rng.choice((1, 1, 3))}
    return COMPLETIONS, body | {"ignore_eos": True, "temperature": rng.choice((0, 1, 1.5))}


def chat(rng: random.Random) -> tuple[str, Json]:
    """Chats, some of which want JSON."""
    form = {"response_format": {"type": "json_object"}} if rng.random() < 0.2 else {}
    return CHAT, _said(rng, max_tokens=16, **form)


def schemas(rng: random.Random) -> tuple[str, Json]:
    """Schemas that nobody has asked for before."""
    names = [f"p{rng.getrandbits(40)}" for _ in range(rng.randint(1, 40))]
    fields = {name: {"type": "string", "pattern": f"^[a-z]{{1,{rng.randint(1, 200)}}}$"} for name in names}
    schema = {"type": "object", "properties": fields, "required": names[:2]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return CHAT, _said(rng, max_tokens=8, response_format=form)


def patterns(rng: random.Random) -> tuple[str, Json]:
    """Regular expressions, some of which explode."""
    pattern = rng.choice(("(a+)+b", "[a-z]{1,9}", "(x|y|z)*w", "((a|b)?c){1,30}")) * rng.randint(1, 20)
    return COMPLETIONS, {
        "prompt": "a",
        "max_tokens": 8,
        "structured_outputs": {"regex": f"{rng.getrandbits(20)}{pattern}"},
    }


def tools(rng: random.Random) -> tuple[str, Json]:
    """Calls of functions that must be made."""
    parameters = {"type": "object", "properties": {f"a{rng.getrandbits(20)}": {"type": "integer"}}}
    named = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": parameters}} for i in range(rng.randint(1, 8))
    ]
    return CHAT, _said(rng, max_tokens=16, tools=named, tool_choice="required")


def responses(rng: random.Random) -> tuple[str, Json]:
    """OpenAI's Responses, kept or not."""
    return "/v1/responses", {"input": "a" * rng.randint(1, 200), "max_output_tokens": 16, "store": rng.random() < 0.5}


def messages(rng: random.Random) -> tuple[str, Json]:
    """Anthropic's Messages."""
    return "/v1/messages", _said(rng, max_tokens=16)


def embeddings(rng: random.Random) -> tuple[str, Json]:
    """Embeddings of a few texts or many."""
    return "/v1/embeddings", {"input": ["a" * rng.randint(1, 50) for _ in range(rng.choice((1, 5, 100)))]}


def prompt_logprobs(rng: random.Random) -> tuple[str, Json]:
    """Logprobs of whole prompts."""
    return COMPLETIONS, {"prompt": "a" * rng.randint(1, 600), "max_tokens": 1, "echo": True, "logprobs": 5}


def best_of(rng: random.Random) -> tuple[str, Json]:
    """The best of several choices."""
    return COMPLETIONS, {"prompt": "a" * rng.randint(1, 99), "max_tokens": 12, "n": 2, "best_of": rng.randint(2, 8)}


def tokenize(rng: random.Random) -> tuple[str, Json]:
    """Texts that are only tokenised."""
    return "/tokenize", {"prompt": "abc " * rng.choice((1, 100, 20_000))}


def detokenize(rng: random.Random) -> tuple[str, Json]:
    """The way back."""
    return "/detokenize", {"tokens": [rng.randrange(256)] * rng.choice((1, 100, 20_000))}


KINDS: tuple[Kind, ...] = (
    *(whole, chat, schemas, patterns, tools, responses, messages, embeddings, prompt_logprobs, best_of),
    *(tokenize, detokenize),
)


def _said(rng: random.Random, **fields: Any) -> Json:
    return {"messages": [{"role": "user", "content": "a" * rng.randint(1, 300)}], **fields}
