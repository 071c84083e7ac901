"""Tokens and their modalities, with tokenizers of several kinds."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from engine.errors import RequestError
from server.inputs import MarkedText, ModelInput, preprocess
from server.text.tokenizer import Tokenizer

KNOWN = ("text", "code", "image")
TEXT = "Sum it:  ```py\n  x = sum(é)  # 🤖🦊\n``` and  more 🦊🤖\n"
TRAINED_ON = [TEXT.replace("🦊", ""), "```py\n  x = sum(x) ```", "  and more   and  more", "🤖🤖 é é"] * 3


def byte_level(trim_offsets):
    tokenizer = HFTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TRAINED_ON, trainers.BpeTrainer(vocab_size=330, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>"]))  # fmt: skip
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=trim_offsets),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    return tokenizer


def sentence_piece():
    tokenizer = HFTokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.train_from_iterator(TRAINED_ON, trainers.BpeTrainer(vocab_size=45, show_progress=False,
        special_tokens=["<s>", "<unk>"]))  # fmt: skip
    return tokenizer


def loaded(tokenizer, add_bos=True):
    return Tokenizer(tokenizer, bos_token="<s>", eos_token=None, add_bos=add_bos, chat_template=None)


KINDS = {
    "byte-level, trimmed": lambda: loaded(byte_level(trim_offsets=True)),
    "byte-level": lambda: loaded(byte_level(trim_offsets=False)),
    "sentence-piece": lambda: loaded(sentence_piece()),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


def modality_by_spelling(tokenizer, token_ids, code):
    """The modality of each token by where the tokens before it end, counted in bytes of the text they spell."""
    text = TEXT.encode()
    is_code = bytearray(len(text))
    for start, stop in code:
        first, last = (len(TEXT[:i].encode()) for i in (start, stop))
        is_code[first:last] = b"\1" * (last - first)
    begin, modalities = 0, []
    for token_id in token_ids:
        modalities.append(is_code[begin] if begin < len(is_code) else 0)
        begin += len(tokenizer.token_bytes(token_id)) if token_id else 0
    assert begin == len(text)
    return bytes(modalities)


CODE = TEXT.index("py"), TEXT.rindex("```")


@pytest.mark.parametrize("special", [True, False])
def test_byte_level_tokens_have_the_modality_of_their_first_character(special):
    for kind in ("byte-level", "byte-level, trimmed"):
        tokenizer = KINDS[kind]()
        found = preprocess(tokenizer, TEXT, KNOWN, add_special_tokens=special)
        assert found.token_ids == tokenizer.encode(TEXT, add_special_tokens=special)
        assert found.modalities == modality_by_spelling(tokenizer, found.token_ids, [CODE])
        assert {"Ġsum", "Ġand", "¦"} < set(tokenizer.token_names(found.token_ids)), "spaces, parts of a character"


@given(st.integers(0, len(TEXT)), st.integers(0, len(TEXT)))
def test_wherever_code_begins_and_ends_tokens_begin_in_it_or_not(begin, end):
    tokenizer, code = _kept("byte-level, trimmed"), (min(begin, end), max(begin, end))
    marked = MarkedText(TEXT, (code,) if begin != end else ())
    found = preprocess(tokenizer, marked, KNOWN, modality="text", add_special_tokens=True)
    expected = modality_by_spelling(tokenizer, found.token_ids, [code])
    assert found.modalities == (expected if any(expected) else b"")


def _kept(kind, kept={}):  # noqa: B006 - kept on purpose
    if kind not in kept:
        kept[kind] = KINDS[kind]()
    return kept[kind]


def test_sentence_pieces_have_the_modality_of_their_first_character():
    tokenizer, text = KINDS["sentence-piece"](), TEXT.replace("🦊", "")
    found = preprocess(tokenizer, text, KNOWN, add_special_tokens=True)
    names = tokenizer.token_names(found.token_ids)
    code = [name for name, modality in zip(names, found.modalities, strict=True) if modality]
    assert "".join(names) == "<s>▁" + text.replace(" ", "▁")
    assert "".join(code) == text.replace(" ", "▁").split("```")[1]


def test_a_text_without_code_is_tokenised_as_ever(tokenizer):
    for special in (True, False):
        plain = ModelInput(tokenizer.encode("and more `x`", add_special_tokens=special))
        for modality in (None, "text"):
            assert preprocess(tokenizer, "and more `x`", KNOWN, modality=modality, add_special_tokens=special) == plain
    assert preprocess(tokenizer, TEXT, KNOWN, modality="text", add_special_tokens=True).modalities == b""


def test_the_ids_are_those_of_encode_whatever_is_code(tokenizer):
    for special in (True, False):
        found = preprocess(tokenizer, TEXT, KNOWN, add_special_tokens=special)
        assert found.token_ids == tokenizer.encode(TEXT, add_special_tokens=special)
        assert len(found.modalities) == len(found.token_ids)
        assert set(found.modalities) == {0, 1}


def test_a_whole_prompt_is_code_bos_included(tokenizer):
    found = preprocess(tokenizer, "x = 1", KNOWN, modality="code", add_special_tokens=True)
    assert found.token_ids[0] == tokenizer.bos_id
    assert found.modalities == b"\1" * len(found)


def test_marked_code_is_code_beside_what_modality_says(tokenizer):
    marked = MarkedText("a b c", ((0, 1),))
    as_text = preprocess(tokenizer, marked, KNOWN, modality="text", add_special_tokens=False)
    assert as_text.modalities[0] == 1
    assert not any(as_text.modalities[-1:])
    as_code = preprocess(tokenizer, marked, KNOWN, modality="code", add_special_tokens=False)
    assert set(as_code.modalities) == {1}


def test_token_ids_are_text_unless_something_is_said(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert preprocess(tokenizer, ids, KNOWN, add_special_tokens=True) == ModelInput(ids)
    as_code = preprocess(tokenizer, ids, KNOWN, modality="code", add_special_tokens=True)
    assert as_code == ModelInput(ids, b"\1" * len(ids))


@dataclass
class _NoStarts:
    """A tokenizer of which nothing but ids may be asked."""

    def encode(self, text, *, add_special_tokens):
        return [7] * len(text)


def test_for_a_model_of_text_alone_nothing_is_looked_for():
    for prompt in (TEXT, MarkedText(TEXT, ((0, 5),))):
        assert preprocess(_NoStarts(), prompt, ("text",), add_special_tokens=False) == ModelInput([7] * len(TEXT))


def test_a_text_that_follows_an_open_fence_begins_as_code(tokenizer):
    found = preprocess(tokenizer, "x```y", KNOWN, preceding="see ```", add_special_tokens=False)
    assert found.modalities[0] == 1
    assert found.modalities[-1] == 0


@pytest.mark.parametrize(
    ("modality", "known", "valid"),
    [
        ("image", KNOWN, "'text', 'code'"),
        ("audio", KNOWN, "'text', 'code'"),
        ("Code", KNOWN, "'text', 'code'"),
        ("", KNOWN, "'text', 'code'"),
        ("code", ("text",), "'text'"),
        ("image", ("text",), "'text'"),
    ],
)
def test_other_modalities_are_refused_with_the_valid_ones(modality, known, valid):
    with pytest.raises(RequestError, match=f"valid here: {valid}$") as refusal:
        preprocess(_NoStarts(), "x", known, modality=modality, add_special_tokens=True)
    assert refusal.value.param == "modality"
    assert f"'{modality}'" in str(refusal.value)


def test_prompts_are_joined_and_cut_with_their_modalities():
    text, code = ModelInput([1, 2]), ModelInput([3, 4], b"\1\1")
    assert text + text == ModelInput([1, 2, 1, 2])
    assert text + code == ModelInput([1, 2, 3, 4], b"\0\0\1\1")
    assert (code + text)[1:3] == ModelInput([4, 1], b"\1\0")
    assert text[1:] == ModelInput([2])
    assert (text + code).with_output([5]) == ModelInput([1, 2, 3, 4, 5], b"\0\0\1\1\1")
    assert (code + text).with_output([5]).modalities == b"\1\1\0\0\0"
    assert text.with_output([5]) == ModelInput([1, 2, 5])
