"""Bodies that are made to hold up the server, or to fill its memory: name -> path and JSON.

Each is within the limits of a body, or just beyond: what is refused must be refused in no time too.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

COMPLETIONS, CHAT, MESSAGES, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"
EMBEDDINGS, RERANK, SCORE, CLASSIFY = "/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/classify"
TOKENIZE, DETOKENIZE, COUNT = "/tokenize", "/detokenize", "/v1/messages/count_tokens"
_TEXT = {"type": "text", "text": "a"}
_ITEM = {"role": "user", "content": "a"}
Body = tuple[str, bytes]
BODIES: dict[str, Callable[[], Body]] = {}


def _add(name: str, path: str, make: Callable[[], Any]) -> None:
    """Add an attack; `make` returns what becomes JSON, or the text of it."""

    def body() -> Body:
        value = make()
        return path, (value if isinstance(value, str) else json.dumps(value)).encode()

    BODIES[name] = body


def _completion(name: str, **fields: Any) -> None:
    _add(name, COMPLETIONS, lambda: {"prompt": "a", "max_tokens": 1, **fields})


def _chat(name: str, content: Any = "a", **fields: Any) -> None:
    _add(name, CHAT, lambda: {"max_tokens": 1, "messages": [{"role": "user", "content": content}], **fields})


def _raw(name: str, path: str, text: Callable[[], str]) -> None:
    _add(name, path, text)


def _schema(num_properties: int, num_values: int) -> dict[str, Any]:
    values = [f"e{i}" for i in range(num_values)]
    properties = {f"p{i}": {"type": "string", "enum": values} for i in range(num_properties)}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": properties}}}


def _tools(number: int, num_arguments: int, text: str = "") -> list[dict[str, Any]]:
    arguments = {f"a{i}": {"type": "string", "description": text} for i in range(num_arguments)}
    parameters = {"type": "object", "properties": arguments}
    return [{"type": "function", "function": {"name": f"f{i}", "parameters": parameters}} for i in range(number)]


# Keys, values, depth, and how they are written.
_completion("keys", **{f"a{i}": 1 for i in range(24_000)})
_completion("keys within the limit", **{f"a{i}": 1 for i in range(4_900)})
_completion("keys of 4 MB", **{f"a{i}": 1 for i in range(300_000)})
_raw("a small body of lists", COMPLETIONS, lambda: '{"prompt": ' + json.dumps([[]] * 8_000) + "}")
_raw("a small body of objects", CHAT, lambda: '{"messages": ' + json.dumps([{}] * 8_000) + "}")
_completion("a small body of keys", **{f"a{i}": 1 for i in range(500)})
_add("keys of a message", CHAT, lambda: {"messages": [{**_ITEM, **{f"k{i}": i for i in range(4_900)}}]})
_add("keys of many messages", CHAT, lambda: {"messages": [{**_ITEM, **{f"k{i}": i for i in range(19)}}] * 900})
_completion("keys of metadata", metadata={f"k{i}": "v" for i in range(19_000)})
_chat("keys of the template", chat_template_kwargs={f"k{i}": i for i in range(19_000)})
_chat("deep variables of the template", chat_template_kwargs={"a": [[[[1] * 50] * 50] * 50]})
_raw("depth of lists", COMPLETIONS, lambda: '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}")
_raw("depth of objects", COMPLETIONS, lambda: '{"prompt": ' + '{"a":' * 19_000 + "1" + "}" * 19_000 + "}")
_raw("depth below the limit", CHAT, lambda: '{"messages": [], "tools": ' + '[{"a":' * 450 + "1" + "}]" * 450 + "}")
_raw("width and depth", COMPLETIONS, lambda: '{"prompt": ' + json.dumps([[[[1] * 40] * 40] * 40] * 4) + "}")
_raw("numbers of many digits", COMPLETIONS, lambda: '{"prompt": [' + ",".join(["1" * 4200] * 900) + "]}")
_raw("a number of 3 MB", COMPLETIONS, lambda: '{"prompt": "a", "temperature": 0.' + "1" * 3_000_000 + "}")
_raw(
    "fractions of many digits", COMPLETIONS, lambda: '{"prompt": [' + ",".join(["0.12345678901234567"] * 180_000) + "]}"
)
_raw("escapes", COMPLETIONS, lambda: '{"prompt": "' + "\\u0041" * 690_000 + '"}')
_raw("escapes in a small body", COMPLETIONS, lambda: '{"prompt": "' + "\\u4e2d" * 5_000 + '"}')
_raw("surrogate pairs", COMPLETIONS, lambda: '{"prompt": "' + "\\ud83d\\ude00" * 340_000 + '"}')
# Lists.
_completion("token ids", prompt=[1] * 310_000)
_completion("token ids of a context", prompt=[1] * 8_000)
_completion("prompts of ids", prompt=[[1, 2]] * 100_000)
_completion("prompts of texts", prompt=["a"] * 300_000)
_completion("prompts, as many as may be", prompt=["a"] * 2048)
_completion("logit_bias, bad keys", logit_bias={f"x{i}": 1 for i in range(19_000)})
_completion("logit_bias, too many", logit_bias={str(i): 1 for i in range(19_000)})
_completion("logit_bias, as many as may be", logit_bias={str(i): 1 for i in range(1024)})
_completion("stop strings", stop=[f"a{i}" for i in range(300_000)])
_completion("stop strings that nearly fit", stop=["a" * 1023 + str(i) for i in range(10)], max_tokens=16)
_completion("allowed tokens", allowed_token_ids=list(range(8192)))
_completion("bad words", bad_words=["".join(random.Random(i).choices("abcdefgh ", k=1024)) for i in range(128)])
_completion("bad words in a small body", bad_words=["xyz" * 80 + str(i) for i in range(120)])
_chat("text parts", [_TEXT] * 24_000)
_chat("text parts within the limit", [_TEXT] * 9_000)
_chat("code parts", [{"type": "code", "code": "```a```"}] * 4_000)
_chat("parts of other kinds", [{"type": "image_url", "image_url": {"url": "a"}}] * 6_000)
_add("messages", CHAT, lambda: {"max_tokens": 1, "messages": [_ITEM] * 9_000})
_add("messages, as many as may be", CHAT, lambda: {"max_tokens": 1, "messages": [_ITEM] * 4_096})
_chat("tools", tools=_tools(120, 10))
_chat("tools of 3 MB", tools=_tools(50, 60, "a" * 1000))
_chat("a schema", response_format=_schema(900, 20))
_chat("a schema of many properties", response_format=_schema(4_000, 1))
_chat("a grammar of 3 MB", structured_outputs={"regex": "a" * 3_000_000})
_chat("choices", structured_outputs={"choice": [f"c{i}" for i in range(200_000)]})
# Texts that are slow to tokenise.
for _name, _unit in (("words", "hello world "), ("two letters", "a b "), ("one letter", "a"), ("spaces", " "),
                     ("line ends", "\n"), ("digits", "0"), ("emoji", "\U0001f600"), ("fences", "```a\n")):  # fmt: skip
    _completion(f"100 kB of {_name}", prompt=_unit * (100_000 // len(_unit.encode())))
    _completion(f"1 MB of {_name}", prompt=_unit * (1_000_000 // len(_unit.encode())))
    _add(f"count 1 MB of {_name}", TOKENIZE, lambda unit=_unit: {"prompt": unit * (1_000_000 // len(unit.encode()))})
_completion("a text of the context", prompt="hello world " * 2_500)
_completion("4 kB of one letter", prompt="a" * 4_000)
_completion("a text that is cut", prompt="hello world " * 300_000, truncate_prompt_tokens=16)
_add("tokenise 4 MB", TOKENIZE, lambda: {"prompt": "hello world " * 340_000})
_add("tokenise with names", TOKENIZE, lambda: {"prompt": "hello world " * 80_000, "return_token_strs": True})
_add("count messages", COUNT, lambda: {"messages": [_ITEM] * 4_096})
_add("detokenise", DETOKENIZE, lambda: {"tokens": [5] * 310_000})
_add("detokenise less", DETOKENIZE, lambda: {"tokens": [5] * 30_000})
# Other APIs.
_add("blocks", MESSAGES, lambda: {"max_tokens": 1, "messages": [{"role": "user", "content": [_TEXT] * 9_000}]})
_long_and_many = [{"type": "text", "text": "a" * 3_000_000}, *[_TEXT] * 9_000]
_add("a long block and many", COUNT, lambda: {"messages": [{"role": "user", "content": _long_and_many}]})
_add("items", RESPONSES, lambda: {"max_output_tokens": 16, "input": [_ITEM] * 4_096, "store": False})
_add("items that are cut", RESPONSES,
     lambda: {"max_output_tokens": 16, "input": [_ITEM] * 4_096, "truncation": "auto", "store": False})  # fmt: skip
_parts = [{"type": "input_text", "text": "a"}] * 9_000
_add("parts of items", RESPONSES, lambda: {"max_output_tokens": 16, "input": [{"role": "user", "content": _parts}]})
_add("texts to embed", EMBEDDINGS, lambda: {"input": ["hello"] * 2_000})
_add("documents", RERANK, lambda: {"query": "a", "documents": [{"text": "b"}] * 19_000})
_add("pairs", SCORE, lambda: {"text_1": ["a"] * 20_000, "text_2": ["b"] * 20_000})
_add("texts to classify", CLASSIFY, lambda: {"input": ["hello"] * 200_000})
# Answers.
_completion("an echo with logprobs", prompt="hello " * 1_500, echo=True, logprobs=20)
_completion("logprobs of a prompt", prompt="hello " * 1_500, prompt_logprobs=20)
_completion("many choices", prompt=["a"] * 8, n=4, logprobs=20, stream=True, max_tokens=4)
