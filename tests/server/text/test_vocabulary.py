"""The bytes of a whole vocabulary are those that the detokenizer gives, token by token."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from engine.loading.resolve import ModelSource, resolve_model
from server.text import tokenizer as tokenizers_of_models
from server.text.vocabulary import read_vocabulary


def sentence_piece():
    vocab = {f"<0x{i:02X}>": i for i in range(256)} | {"▁": 256, "▁the": 257, "é": 258, "x": 259, "▁▁▁": 260}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_tokens([AddedToken("</s>", special=True), AddedToken("<tool>", special=False)])
    return tokenizer


def test_sentence_pieces_have_spaces_and_bytes():
    vocabulary = read_vocabulary(sentence_piece())
    assert vocabulary.tokens[:256] == [bytes([i]) for i in range(256)]
    assert vocabulary.tokens[256:] == [b" ", b" the", "é".encode(), b"x", b"   ", b"</s>", b"<tool>"]
    assert vocabulary.special_token_ids == [261]


def test_metaspace_is_a_space_too():
    tokenizer = sentence_piece()
    tokenizer.decoder = decoders.Metaspace()
    assert read_vocabulary(tokenizer).tokens[257] == b" the"


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_byte_level_tokens_are_what_the_detokenizer_makes_of_them(name, request):
    source = ModelSource(request.getfixturevalue("tiny_llama"), "tiny") if name == "tiny" else resolve_model(None)
    tokenizer = tokenizers_of_models.Tokenizer.load(source)
    vocabulary = tokenizer.vocabulary()
    assert len(vocabulary.tokens) == tokenizer.vocab_size
    assert vocabulary.tokens == [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    assert tokenizer.eos_id in vocabulary.special_token_ids
