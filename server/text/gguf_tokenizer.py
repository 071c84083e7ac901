"""A GGUF file's tokenizer as one of the `tokenizers` package, from `tokenizer.ggml.*` (ggml's docs/gguf.md).

Two kinds are read: "gpt2", which is byte-level BPE, and "llama", which is SentencePiece's BPE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from engine.models.config_keys import Keys

if TYPE_CHECKING:
    from engine.loading.gguf_file import GGUFFile

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # token types: the latter two are matched whole in the text
_SPACE = "\u2581"
_WORDS = {str: "texts", int: "whole numbers", float: "finite numbers"}
_LONGEST_PIECE = 256  # characters; SentencePiece trains pieces of up to 16, and the longest known have some 50


@dataclass(frozen=True)
class GGUFVocabulary:
    """A tokenizer and the tokens around a text; a token is None if the file names none."""

    tokenizer: Tokenizer
    bos_token: str | None
    eos_token: str | None
    add_bos: bool


def read_gguf(file: GGUFFile) -> GGUFVocabulary:
    """Build the tokenizer that the file describes.

    Raises:
        ModelError: something is missing, of the wrong type or length, or of a kind that is not read.
    """
    keys = Keys(file.metadata, str(file.path), "tokenizer.ggml.")
    tokens = _list(keys, "tokens", str)
    types = _list(keys, "token_type", int, len(tokens))
    model = keys.get("model")
    add_bos = keys.flag("add_bos_token", model == "llama")
    if model == "llama":
        scores, unknown = _list(keys, "scores", float, len(tokens)), _named(keys, "unknown", 0, tokens)
        has_prefix = keys.flag("add_space_prefix", True)
        tokenizer = _sentence_piece(tokens, scores, types, unknown, has_prefix=has_prefix)
        return GGUFVocabulary(tokenizer, _named(keys, "bos", 1, tokens), _named(keys, "eos", 2, tokens), add_bos)
    if model != "gpt2":
        keys.refuse("model", model, "'gpt2' (byte-level BPE) or 'llama' (SentencePiece)")
    kind = keys.choice("pre", "default", tuple(sorted(_PRE_TOKENIZERS)))
    tokenizer = _byte_level_bpe(tokens, types, _list(keys, "merges", str), _PRE_TOKENIZERS[kind])
    return GGUFVocabulary(tokenizer, _named(keys, "bos", None, tokens), _named(keys, "eos", None, tokens), add_bos)


def _list(keys: Keys, name: str, kind: type, count: int | None = None) -> list[Any]:
    """A list of values of one type, all finite; with `count`, of one for each token."""
    values, words = keys.get(name), _WORDS[kind]
    expected = f"a list of {words}" if count is None else f"{count} {words}, one for each token"
    if not isinstance(values, list) or (count is not None and len(values) != count):
        keys.refuse(name, values, expected)
    for value in values:
        if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
            keys.refuse(name, value, expected)
    return values


def _named(keys: Keys, name: str, default: int | None, tokens: list[str]) -> str | None:
    """The text of the token that begins or ends a text, or that stands for what no token has."""
    if (token_id := keys.get(f"{name}_token_id", default)) is None:
        return None
    if type(token_id) is not int or not 0 <= token_id < len(tokens):
        keys.refuse(f"{name}_token_id", token_id, f"one of {len(tokens)} tokens, from 0")
    return tokens[token_id]


def _sentence_piece(
    tokens: list[str], scores: list[float], types: list[int], unknown: str | None, *, has_prefix: bool
) -> Tokenizer:
    """SentencePiece's BPE: of all neighbours that together are a piece, those of the highest score merge first.

    A text begins with a space (`has_prefix`), also behind a token that is matched whole, as in llama.cpp. A character
    that no piece has is spelled in bytes.
    """
    vocab = {token: i for i, token in enumerate(tokens)}
    model = models.BPE(
        vocab=vocab, merges=_merges(tokens, scores, types), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    prefix = [normalizers.Prepend(_SPACE)] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_whole_tokens(tokenizer, tokens, types)
    return tokenizer


def _merges(tokens: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, the highest score first, and of one piece's pairs the longest left half.

    SentencePiece merges the leftmost of equal pairs, so that what is left over of a run stands at its right end.
    """
    rows = zip(tokens, scores, types, strict=True)
    pieces = {token: score for token, score, kind in rows if kind in (_NORMAL, _USER_DEFINED)}
    if (longest := max(map(len, pieces), default=0)) > _LONGEST_PIECE:
        raise ValueError(f"a piece has {longest} characters; expected up to {_LONGEST_PIECE}")
    found = [
        (-score, -cut, piece[:cut], piece[cut:])
        for piece, score in pieces.items()
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    found.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in found]


def _add_whole_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    tokenizer.add_tokens(  # at once: each call goes through all that were added before
        [
            AddedToken(token, normalized=False, special=kind == _CONTROL)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )


def _byte_level_bpe(tokens: list[str], token_types: list[int], merges: list[str], splits: list[Any]) -> Tokenizer:
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    for left, right in pairs:  # the Rust side panics
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise ValueError(f"the merge of {left!r:.100} and {right!r:.100} is not of tokens, or makes none")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    _add_whole_tokens(tokenizer, tokens, token_types)
    return tokenizer


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# tokenizer.ggml.pre -> how text is split before merging (names and patterns: llama.cpp, src/llama-vocab.cpp)
_PRE_TOKENIZERS: dict[str, list[Any]] = {
    "default": [_GPT2],
    "gpt-2": [_GPT2],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), _GPT2],
    "deepseek-llm": [  # LLM 7B, MoE-16B, V2
        _split(r"[\r\n]"),
        _split(r"\s?[\p{Lu}\p{Ll}\p{Lt}]+"),
        _split(r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"),
        _split(r"\s+$"),
        _split(_DEEPSEEK_CJK),
        pre_tokenizers.Digits(individual_digits=True),
        _BYTES,
    ],
    "deepseek-coder": [
        *map(_split, (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")),
        _BYTES,
    ],
    "deepseek-v3": [
        _split(r"\p{N}{1,3}"),
        _split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
        _split(_DEEPSEEK_V3),
        _BYTES,
    ],
    "llama-bpe": [_split(_LLAMA3), _BYTES],
    "qwen2": [_split(_LLAMA3.replace("{1,3}", "")), _BYTES],
}
