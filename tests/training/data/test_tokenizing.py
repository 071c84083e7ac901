"""training.data.tokenizing: tokens and modalities are those of the server's prompts, however long the text."""

import numpy as np
import pytest

from server.inputs import preprocess
from training.data import tokenizing
from training.data.tokenizing import encode, modalities

TEXTS = [
    "",
    "the river\n\n  def add(a, b):\n\treturn  a\n",
    "The fox ```def add``` over ````a ``` b```` and ```open",
    "123 ä€😀 <think>the</think> [SEP] <|end|>",
    "<|begin|>the fox",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("modality", [None, "code", "text"])
def test_a_text_is_read_as_the_server_reads_a_prompt(tokenizer, byte_tokenizer, text: str, modality) -> None:
    for one in (tokenizer, byte_tokenizer):
        known = ("text", "code", "image")
        expected = preprocess(one, text, known, add_special_tokens=True, modality=modality)
        tokens = encode(one, text)
        assert tokens.ids.tolist() == expected.token_ids
        is_code = None if modality is None else modality == "code"
        kinds = modalities(tokens, text, len(known), is_code=is_code)
        assert kinds.tolist() == list(expected.modalities or bytes(len(expected)))


def test_a_model_of_one_modality_knows_no_code(tokenizer) -> None:
    text = "```def```"
    assert not modalities(encode(tokenizer, text), text, 1, is_code=True).any()


def test_code_may_be_known_without_fences(tokenizer) -> None:
    text = "the def fox"
    kinds = modalities(encode(tokenizer, text), text, 3, code=[(4, 7)])
    starts = encode(tokenizer, text).starts
    assert kinds.tolist() == [int(4 <= start < 7) for start in starts]


@pytest.mark.parametrize("size", [5, 40, 61])
def test_pieces_change_no_token(tokenizer, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    text = "the river runs under a bridge\nand the fox\n\n    def add(a, b):\n        return a + b\n" * 5
    whole = encode(tokenizer, text)
    monkeypatch.setattr(tokenizing, "_PIECE", size)
    pieces = encode(tokenizer, text)
    assert len(list(tokenizing._pieces(text))) > 5
    if size > 12:  # room for a word and a place to cut
        np.testing.assert_array_equal(pieces.ids, whole.ids)
        np.testing.assert_array_equal(pieces.starts, whole.starts)
    assert tokenizer.decode(pieces.ids.tolist()) == text


def test_no_more_is_encoded_than_is_wanted(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_PIECE", 20)
    text = "the fox and the river " * 100
    whole, part = encode(tokenizer, text), encode(tokenizer, text, at_most=9)
    np.testing.assert_array_equal(part.ids, whole.ids[:9])
    assert len(part) == len(part.starts) == 9


def test_a_text_without_places_to_cut_is_cut_anywhere(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_PIECE", 8)
    for text in ("x" * 30, " " * 30, "\n" * 30, "😀" * 30):
        assert tokenizer.decode(encode(tokenizer, text).ids.tolist()) == text
