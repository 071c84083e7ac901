"""Text to token ids and back, from a Hugging Face folder or a GGUF file. Owns the rule for BOS: added once at most."""

from __future__ import annotations

import functools
import itertools
import json
import os
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as HFTokenizer
from tokenizers.processors import Sequence as Processors

from engine.errors import ModelError, RequestError
from engine.loading.files import MIB, read_bytes
from engine.loading.gguf_parts import open_parts
from engine.models.config_keys import read_json
from server.chat.chat_template import ChatTemplate
from server.text import fill_in_middle
from server.text.detokenizer import ByteLevelDetokenizer, Detokenizer, TokenBytes, WindowDetokenizer, is_byte_level
from server.text.gguf_tokenizer import read_gguf
from server.text.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from tokenizers import Encoding

    from engine.loading.gguf_file import GGUFFile
    from engine.loading.resolve import ModelSource
    from engine.protocol import Vocabulary

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # texts come one by one: threads have no use

_MAX_SPELLINGS = 512  # words that are remembered with their tokens, since a request asks for them twice
_MAX_TOKENIZER, _MAX_TEMPLATE = 256 * MIB, MIB


class Tokenizer:
    """A model's vocabulary and chat template. Safe to use from several threads.

    Attributes:
        config: what a checkpoint's tokenizer_config.json says of it.
        bos_id, eos_id: the tokens that begin and end a text; None if the model has none.
        fill_in_middle: the tokens of prompts with a suffix; None if the model has none.
        spellings: returns the tokens of a word at the beginning of a text, and behind a space.
    """

    def __init__(
        self,
        tokenizer: HFTokenizer,
        *,
        bos_token: str | None,
        eos_token: str | None,
        add_bos: bool,
        chat_template: str | None,
    ) -> None:
        self._tokenizer = tokenizer
        if not tokenizer.get_vocab():
            raise ValueError("its vocabulary is empty")
        if not isinstance(chat_template, str | None):
            raise TypeError(f"its chat template is {chat_template!r}")
        self.bos_id = tokenizer.token_to_id(bos_token) if bos_token else None
        self._add_bos = add_bos and self.bos_id is not None
        self.eos_id = tokenizer.token_to_id(eos_token) if eos_token else None
        self.fill_in_middle = fill_in_middle.find_tokens(tokenizer.token_to_id)
        self.config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos_token,
            "eos_token": eos_token,
            "add_bos_token": add_bos,
            "chat_template": chat_template,
        }
        self._bytes = TokenBytes(tokenizer) if is_byte_level(tokenizer) else None
        self.spellings = functools.lru_cache(_MAX_SPELLINGS)(self._spellings)
        self.special_tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}
        self.chat_template = ChatTemplate(chat_template, self.special_tokens) if chat_template is not None else None

    @classmethod
    def load(cls, source: ModelSource, chat_template: str | None = None) -> Tokenizer:
        """Read a model's tokenizer; `chat_template` replaces the model's own.

        Raises:
            ModelError: the tokenizer is missing, damaged, or of a kind that is not supported.
        """
        try:
            if source.is_gguf:
                return _from_gguf(open_parts(source.path)[0], chat_template)
            return _from_folder(source.path, chat_template)
        except (TypeError, ValueError, LookupError, AttributeError, OSError) as error:
            raise ModelError(f"the tokenizer in {source.path} is damaged: {error}") from None

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def measure(self) -> None:
        """Find out what is asked of the whole vocabulary, which takes some ten milliseconds, before it is asked."""
        _ = self.vocab_size, self.max_token_bytes

    @functools.cached_property
    def max_token_bytes(self) -> int:
        """The most bytes of text that one token can stand for."""
        return max(len(token.encode()) for token in self._tokenizer.get_vocab())

    def vocabulary(self) -> Vocabulary:
        """Return each token's bytes, for grammars; of 130,000 tokens, in about a tenth of a second."""
        return read_vocabulary(self._tokenizer)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, with the chat template in it."""
        self._tokenizer.save(str(folder / "tokenizer.json"))
        text = json.dumps({name: value for name, value in self.config.items() if value is not None}, indent=2)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return a text's token ids. BOS is put in front if the model wants it and the text does not begin with it."""
        # Unlike `encode`, batches let other threads run: a million characters can take seconds.
        (encoding,) = self._encoded(self._tokenizer.encode_batch_fast, text, add_special_tokens=add_special_tokens)
        return self._with_bos(encoding.ids) if add_special_tokens else encoding.ids

    def encode_with_starts(self, text: str, *, add_special_tokens: bool = True) -> tuple[list[int], list[int]]:
        """Return `encode`'s token ids, and the first character of each: ascending, 0 for BOS that is put in front.

        A token that begins within a character has this character. It takes half as long again as `encode`.
        """
        (encoding,) = self._encoded(self._untrimmed.encode_batch, text, add_special_tokens=add_special_tokens)
        ids = self._with_bos(encoding.ids) if add_special_tokens else encoding.ids
        # What is put behind the text has no place of its own, so that it gets the one of the token before it.
        starts = list(itertools.accumulate((start for start, _ in encoding.offsets), max))
        added = len(ids) - len(starts)
        return ids, [0] * added + starts[max(0, -added) :]

    def _encoded(self, encode: Callable[..., list[Encoding]], text: str, *, add_special_tokens: bool) -> list[Encoding]:
        try:
            return encode([text], add_special_tokens=add_special_tokens)
        except TypeError:  # a lone surrogate, which JSON can carry
            raise RequestError("The prompt is not valid Unicode: it has half a surrogate pair.", "prompt") from None

    def _with_bos(self, ids: list[int]) -> list[int]:
        """Return the ids of a text, which the tokenizer may have put BOS in front of, with BOS once at most."""
        if self._add_bos and ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids]  # type: ignore[list-item]
        if self.bos_id is not None and ids[:2] == [self.bos_id, self.bos_id]:
            return ids[1:]  # the text begins with BOS, and the tokenizer's post-processor added another
        return ids

    def frame(self, *texts: list[int]) -> list[list[int]]:
        """Return the special tokens that stand before, between and behind the tokens of a text, or of a pair of texts.

        With those of one text, these are the ids that `encode` returns.
        """
        head, *others = self._frame if len(texts) == 1 else self._frame_of_pair
        begins = head[-1:] == texts[0][:1] == [self.bos_id]  # the text, with BOS
        return [head[:-1] if begins else head, *others]

    def num_special_tokens(self, num_texts: int) -> int:
        """Return how many tokens `frame` puts around and between so many texts, at most."""
        return sum(map(len, self._frame if num_texts == 1 else self._frame_of_pair))

    @functools.cached_property
    def _frame(self) -> list[list[int]]:
        return self._framed(self._tokenizer.encode("a"), 1)

    @functools.cached_property
    def _frame_of_pair(self) -> list[list[int]]:
        return self._framed(self._tokenizer.encode("a", "a"), 2)

    def _framed(self, encoding: Encoding, num_texts: int) -> list[list[int]]:
        """Return the special tokens before, between and behind texts."""
        frame: list[list[int]] = [[] for _ in range(num_texts + 1)]
        place = 0
        for token_id, text in zip(encoding.ids, encoding.sequence_ids, strict=True):
            if text is None:
                frame[place].append(token_id)
            else:
                place = text + 1
        if self._add_bos and frame[0][:1] != [self.bos_id]:
            frame[0].insert(0, self.bos_id)  # type: ignore[arg-type]
        return frame

    @functools.cached_property
    def _untrimmed(self) -> HFTokenizer:
        """The tokenizer, which from now on counts a token's spaces as its characters; ids do not depend on that."""
        processor = self._tokenizer.post_processor
        parts: Any = processor if isinstance(processor, Processors) else [processor]
        for part in parts:
            if getattr(part, "trim_offsets", False):
                part.trim_offsets = False
        return self._tokenizer

    def _spellings(self, word: str) -> set[tuple[int, ...]]:
        """Return the tokens of a word at the beginning of a text, and behind a space."""
        texts = (word, " " + word.lstrip())
        return {ids for text in texts if (ids := tuple(self.encode(text, add_special_tokens=False)))}

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; bytes that are not valid UTF-8 are U+FFFD."""
        if self._bytes is not None:
            of, skip = self._bytes.of, skip_special_tokens
            return b"".join([of(token_id, skip_special=skip) for token_id in token_ids]).decode(errors="replace")
        detokenizer = self.detokenizer(skip_special_tokens=skip_special_tokens)
        return "".join(map(detokenizer.push, token_ids)) + detokenizer.flush()

    def detokenizer(
        self, *, skip_special_tokens: bool = True, keep: Collection[int] = (), after: Sequence[int] = ()
    ) -> Detokenizer:
        """Return a new incremental decoder, for one sequence.

        Args:
            skip_special_tokens: leave special tokens out of the text.
            keep: special tokens that are not skipped.
            after: the ids that the sequence follows; some tokenizers drop a space at the beginning of a text.
        """
        if self._bytes is not None:
            return ByteLevelDetokenizer(self._bytes, skip_special=skip_special_tokens, keep=keep)
        return WindowDetokenizer(self._tokenizer, skip_special=skip_special_tokens, keep=keep, after=after)

    def special_id(self, text: str) -> int | None:
        """Return the id of a special token by its text; None if the vocabulary has no such special token."""
        return self._special_ids.get(text)

    @property
    def special_texts(self) -> frozenset[str]:
        """The texts of all special tokens."""
        return frozenset(self._special_ids)

    @functools.cached_property
    def _special_ids(self) -> dict[str, int]:
        return {token.content: i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}

    def token_names(self, token_ids: Sequence[int]) -> list[str]:
        """Return tokens as the vocabulary spells them; an id that the vocabulary lacks is an empty name."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids]

    def token_bytes(self, token_id: int) -> bytes:
        """Return one token's bytes, as logprobs report them; a special token's bytes are its name."""
        if self._bytes is not None:
            return self._bytes.of(token_id, skip_special=False)
        return self._all_bytes[token_id] if token_id < len(self._all_bytes) else b""

    @functools.cached_property
    def _all_bytes(self) -> list[bytes]:
        return self.vocabulary().tokens


def _from_folder(folder: Path, chat_template: str | None) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise ModelError(f"{path} is missing; other tokenizer formats (tokenizer.model) are not read")
    try:
        tokenizer = HFTokenizer.from_buffer(read_bytes(path, _MAX_TOKENIZER))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - for damage, the Rust side raises bare Exception, or panics
        raise ModelError(f"{path} cannot be read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path) if config_path.exists() else {}
    template_path = folder / "chat_template.jinja"
    template = read_bytes(template_path, _MAX_TEMPLATE).decode() if template_path.exists() else _named_template(config)
    return Tokenizer(
        tokenizer,
        bos_token=_content(config.get("bos_token")),
        eos_token=_content(config.get("eos_token")),
        add_bos=bool(config.get("add_bos_token")),
        chat_template=chat_template or template,
    )


def _named_template(config: dict[str, Any]) -> str | None:
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name, in older checkpoints
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str | None):
        raise TypeError(f"a special token is {token!r}")
    return content


def _from_gguf(file: GGUFFile, chat_template: str | None) -> Tokenizer:
    vocabulary = read_gguf(file)
    return Tokenizer(
        vocabulary.tokenizer,
        bos_token=vocabulary.bos_token,
        eos_token=vocabulary.eos_token,
        add_bos=vocabulary.add_bos,
        chat_template=chat_template or file.metadata.get("tokenizer.chat_template"),
    )
