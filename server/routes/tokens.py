"""vLLM's POST /tokenize and /detokenize, and GET /tokenizer_info: the model's tokenizer from afar.

The work is done in threads, and counts as waiting while it lasts: many long texts at once are refused with 429.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, ClassVar

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, PlainValidator

from engine.errors import RequestError
from server.admission import estimate_tokens
from server.chat.text_or_chat import TextOrChatRequest
from server.chat.tokens import prompt_tokens
from server.http.json_body import JsonRoute
from server.http.openapi import ERRORS, answer, example
from server.large import apart, in_thread
from server.protocol import Strict
from server.protocol.fields import TokenId, are_token_ids
from server.state import ServerState, State
from server.text.long_texts import num_bytes

router = APIRouter(route_class=JsonRoute, responses=ERRORS, tags=["Tokens"])


class TokenizeRequest(TextOrChatRequest):
    """POST /tokenize."""

    text_field: ClassVar[str] = "prompt"
    of_chats: ClassVar[tuple[str, ...]] = (*TextOrChatRequest.of_chats, "tools")

    model: Annotated[str, Field(max_length=1024)] | None = None
    prompt: str | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=512)
    return_token_strs: bool = False


def _token_ids(value: Any) -> list[int]:
    """Return token ids; pydantic would take ten times as long to look at each."""
    if not are_token_ids(value):
        raise ValueError("it must be a list of token ids, which are whole numbers from 0")
    ids: list[int] = value
    return ids


class DetokenizeRequest(Strict):
    """POST /detokenize: token ids."""

    model: Annotated[str, Field(max_length=1024)] | None = None
    tokens: Annotated[list[int], PlainValidator(_token_ids, json_schema_input_type=list[TokenId])]


class Tokens(BaseModel):
    """The token ids of a text, and if asked for their names in the vocabulary."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(BaseModel):
    """The text of token ids, special tokens included."""

    prompt: str


class TokenizerInfo(BaseModel):
    """The tokenizer's configuration, as in a checkpoint's tokenizer_config.json."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    add_bos_token: bool
    chat_template: str | None
    vocab_size: int
    model_max_length: int | None


@router.post("/tokenize", responses=answer(Tokens), openapi_extra=example({"prompt": "three rivers"}))
async def tokenize(request: Request, body: TokenizeRequest, server: State) -> Response:
    """Return the token ids of a text or of a conversation's prompt."""
    server.check_model(body.model)
    tenant, special = request.scope["caller"].tenant, body.add_special_tokens
    try:
        if body.prompt is not None:
            ids = await _encode(server, body.prompt, tenant, add_special_tokens=special is not False)
        else:
            chat = await apart(body.to_chat)
            ids = await prompt_tokens(server, chat, tenant, add_special_tokens=special is True)
    except RequestError as error:
        raise body.reworded(error) from None
    names = await in_thread(server.tokenizer.token_names, ids) if body.return_token_strs else None
    max_model_len = server.client.require_info().max_seq_len
    return _as_json({"count": len(ids), "max_model_len": max_model_len, "tokens": ids, "token_strs": names})


@router.post("/detokenize", responses=answer(Detokenized), openapi_extra=example({"tokens": [1, 2, 3]}))
async def detokenize(request: Request, body: DetokenizeRequest, server: State) -> Response:
    """Return the text of token ids, special tokens included."""
    server.check_model(body.model)
    vocab_size = server.tokenizer.vocab_size
    if (largest := max(body.tokens, default=0)) >= vocab_size:
        raise RequestError(f"'tokens' has {largest}, and the largest token id is {vocab_size - 1}.", "tokens")
    with server.admission.admit(1, len(body.tokens), request.scope["caller"].tenant):
        text = await in_thread(functools.partial(server.tokenizer.decode, body.tokens, skip_special_tokens=False))
    return _as_json({"prompt": text})


@router.get("/tokenizer_info", responses=answer(TokenizerInfo))
async def tokenizer_info(server: State) -> dict[str, Any]:
    """Return the tokenizer's configuration."""
    info = server.client.info
    return {
        **server.tokenizer.config,
        "vocab_size": server.tokenizer.vocab_size,
        "model_max_length": info.max_seq_len if info is not None else None,
    }


async def _encode(server: ServerState, text: str, tenant: bytes, *, add_special_tokens: bool) -> list[int]:
    with server.admission.admit(1, estimate_tokens(text), tenant):
        await server.check_text(text, any_length=True)
        encode = functools.partial(server.tokenizer.encode, text, add_special_tokens=add_special_tokens)
        return await server.texts.run(num_bytes(text), encode)


def _as_json(answer: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
