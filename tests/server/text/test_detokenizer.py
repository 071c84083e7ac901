"""Streamed pieces must join to what the tokenizer itself makes of all the ids at once."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from engine.loading.resolve import ModelSource
from server.text.detokenizer import ByteLevelDetokenizer, TokenBytes, WindowDetokenizer, is_byte_level
from server.text.tokenizer import Tokenizer as ServerTokenizer

TEXT = "naïve 漢字 👩‍🚀 e\u0301 \U0001f1eb\U0001f1f7 ok"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's stand-in for a space


def stream(detokenizer, ids):
    """Every piece; the last is what `flush` gives."""
    return [*map(detokenizer.push, ids), detokenizer.flush()]


def byte_level(tokenizer, *, skip_special=True):
    return ByteLevelDetokenizer(TokenBytes(tokenizer), skip_special=skip_special)


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2):
    return ServerTokenizer.load(ModelSource(smollm2, "smollm2"))._tokenizer


@pytest.mark.parametrize("skip_special", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_random_bytes_join_to_the_full_decode(reference_tokenizer, seed, skip_special):
    ids = random.Random(seed).choices(range(reference_tokenizer.get_vocab_size()), k=400)
    pieces = stream(byte_level(reference_tokenizer, skip_special=skip_special), ids)
    assert "".join(pieces) == reference_tokenizer.decode(ids, skip_special_tokens=skip_special)
    assert ("<|eos|>" in "".join(pieces)) == (not skip_special and 257 in ids)


@pytest.mark.smollm2
@pytest.mark.parametrize("skip_special", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_random_tokens_of_a_real_vocabulary_join_to_the_full_decode(smollm2_tokenizer, seed, skip_special):
    rng = random.Random(seed)
    ids = [
        rng.randrange(smollm2_tokenizer.get_vocab_size()) if rng.random() < 0.9 else rng.randrange(20)
        for _ in range(400)
    ]
    pieces = stream(byte_level(smollm2_tokenizer, skip_special=skip_special), ids)
    assert "".join(pieces) == smollm2_tokenizer.decode(ids, skip_special_tokens=skip_special)


def test_a_character_comes_out_whole_with_its_last_byte(reference_tokenizer):
    ids = reference_tokenizer.encode("a漢b").ids
    assert len(ids) == 5
    assert stream(byte_level(reference_tokenizer, skip_special=True), ids) == ["a", "", "", "漢", "b", ""]


def test_special_tokens_that_are_kept_stay_in_the_text(reference_tokenizer, sentencepiece):
    ids = [257, *reference_tokenizer.encode("ab").ids, 256]
    kept = ByteLevelDetokenizer(TokenBytes(reference_tokenizer), skip_special=True, keep={257})
    assert "".join(stream(kept, ids)) == "<|eos|>ab"
    special = next(i for i, token in sentencepiece.get_added_tokens_decoder().items() if token.special)
    kept = WindowDetokenizer(sentencepiece, skip_special=True, keep={special})
    skipped = WindowDetokenizer(sentencepiece, skip_special=True)
    assert sentencepiece.id_to_token(special) in "".join(stream(kept, [special]))
    assert "".join(stream(skipped, [special])) == ""


def test_a_cut_character_becomes_one_replacement_at_the_end(reference_tokenizer):
    ids = reference_tokenizer.encode("a漢").ids[:-1]
    assert stream(byte_level(reference_tokenizer, skip_special=True), ids) == ["a", "", "", "\N{REPLACEMENT CHARACTER}"]


def test_ids_beyond_the_vocabulary_have_no_text(reference_tokenizer):
    assert stream(
        byte_level(reference_tokenizer, skip_special=False), [5000, *reference_tokenizer.encode("x").ids]
    ) == ["", "x", ""]


@pytest.fixture(scope="module")
def sentencepiece():
    """Built like Llama 2's: spaces as a letter, bytes for what the vocabulary lacks, the first space stripped."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [SPACE, *"abcdefghijklmnopqrstuvwxyz", "é"]
    merges = [(SPACE, "t"), ("h", "e"), (SPACE + "t", "he"), (SPACE, SPACE), ("o", "k")]
    vocab = {word: i for i, word in enumerate([*words, *letters, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    return tokenizer


def test_sentencepiece_texts_join_to_themselves(sentencepiece):
    assert not is_byte_level(sentencepiece)
    for text in (
        TEXT,
        "the  end",
        " the",
        "   ",
        "漢",
        "ok\N{REPLACEMENT CHARACTER}ok",
        "end \N{REPLACEMENT CHARACTER}",
    ):
        ids = sentencepiece.encode(text).ids
        pieces = stream(WindowDetokenizer(sentencepiece, skip_special=True), ids)
        assert "".join(pieces) == sentencepiece.decode(ids) == text


@pytest.mark.parametrize("skip_special", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_sentencepiece_tokens_join_to_the_full_decode(sentencepiece, seed, skip_special):
    """Words, special tokens, whole characters in bytes and stray bytes, each run of bytes between other tokens.

    (Within one run of bytes, this kind of decoder replaces even whole characters once a broken one follows. A stream
    has given the whole ones out by then.)
    """
    rng = random.Random(seed)
    whole = [[3 + byte for byte in char.encode()] for char in "漢👩ß"]
    ids = []
    for _ in range(60):
        ids += rng.choice([*whole, [3 + 0xFF], [3 + 0xE6, 3 + 0xBC]])
        ids += rng.choices(range(259, sentencepiece.get_vocab_size()), k=rng.randint(1, 3))
        ids += rng.choices([1, 2], k=rng.randint(0, 2))
        ids += rng.choices(range(259, sentencepiece.get_vocab_size()), k=1)
    pieces = stream(WindowDetokenizer(sentencepiece, skip_special=skip_special), ids)
    assert "".join(pieces) == sentencepiece.decode(ids, skip_special_tokens=skip_special)


def test_sentencepiece_holds_back_a_character_until_it_is_whole(sentencepiece):
    pieces = stream(WindowDetokenizer(sentencepiece, skip_special=True), sentencepiece.encode("ok漢 the").ids)
    assert "漢" in pieces
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_sentencepiece_gives_out_a_cut_character_at_the_end(sentencepiece):
    ids = sentencepiece.encode("ok漢").ids[:-1]
    pieces = stream(WindowDetokenizer(sentencepiece, skip_special=True), ids)
    assert "".join(pieces) == sentencepiece.decode(ids)
    assert pieces[-1] == "\N{REPLACEMENT CHARACTER}" * 2


def test_stray_bytes_after_whole_characters_end_no_stream(sentencepiece):
    """The full decode replaces the whole character too, which the stream has given out by then."""
    detokenizer = WindowDetokenizer(sentencepiece, skip_special=True)
    ids = [*(3 + byte for byte in "漢".encode()), 3 + 0xFF, *sentencepiece.encode("ok").ids]
    pieces = stream(detokenizer, ids)
    assert pieces[:3] == ["", "", "漢"]
    assert "".join(pieces).endswith("ok")
