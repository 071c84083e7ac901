"""GGUF tokenizers of the kind "llama", against the package sentencepiece on a vocabulary that it trained."""

import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
from gguf import GGUFValueType, GGUFWriter

from engine.errors import ModelError
from engine.loading.resolve import ModelSource
from server.text import gguf_tokenizer
from server.text.tokenizer import Tokenizer

DOCS = Path(__file__).parents[3] / "docs"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
HARD = [
    "",
    " ",
    "  ",
    "   leading and trailing   ",
    "hello world",
    "Hello,  world!\n\nNew\tline\r\n",
    "a" * 17,
    *(" " * n + "x" for n in range(1, 20)),
    *("-" * n for n in range(1, 20)),
    "émile 漢字 \U0001f44b\U0001f3fd é",
    "<0x0A> < s> is no token </s2>",
    "\u2581 \u2581\u2581x",
    "\0\x01\x7f",
    "1234567890 3.14",
    "def f(x):\n    return x  # ok\n",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A SentencePiece model of BPE, as Llama's: bytes for what is rare, spaces kept, nothing normalised."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))
    text += "\n" + "\n".join(" " * n + "code" + "-" * n for n in range(1, 17)) * 20
    (folder / "text.txt").write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "model"),
        model_type="bpe",
        vocab_size=1200,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<|user|>"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "model.model"))


def kind_of(model, i):
    if model.is_unknown(i):
        return UNKNOWN
    if model.is_control(i):
        return CONTROL
    return BYTE if model.is_byte(i) else USER_DEFINED if model.id_to_piece(i) == "<|user|>" else NORMAL


def write(path, model, **flags):
    ids = range(model.get_piece_size())
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(i) for i in ids])
    writer.add_token_scores([model.get_score(i) for i in ids])
    writer.add_token_types([kind_of(model, i) for i in ids])
    for name, value in flags.items():
        (writer.add_bool if isinstance(value, bool) else writer.add_int32)(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return Tokenizer.load(ModelSource(path, "llama"))


def write_vocabulary(path, **keys):
    writer = GGUFWriter(path, "llama")
    for key, value in keys.items():
        kind = GGUFValueType.ARRAY if isinstance(value, list) else GGUFValueType.get_type(value)
        writer.add_key_value(f"tokenizer.ggml.{key}", value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tokenizer(trained, tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "model.gguf", trained)


@pytest.mark.parametrize("text", HARD, ids=ascii)
def test_hard_texts_are_split_as_sentencepiece_does_and_come_back(trained, tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == trained.encode(text)
    assert tokenizer.decode(ids) == text.replace("\u2581", " ")


@pytest.mark.parametrize("seed", range(8))
def test_random_texts_are_split_as_sentencepiece_does(trained, tokenizer, seed):
    draw = random.Random(seed)
    pieces = [trained.id_to_piece(i).replace("\u2581", " ") for i in range(300, trained.get_piece_size())]
    for _ in range(100):
        text = "".join(draw.choices([*pieces, "é", "漢", "\U0001f600", " ", "  ", "\n"], k=draw.randrange(1, 40)))
        assert tokenizer.encode(text, add_special_tokens=False) == trained.encode(text), ascii(text)


def test_bos_stands_in_front_unless_the_file_says_otherwise(trained, tokenizer, tmp_path):
    assert tokenizer.encode("hi") == [trained.bos_id(), *trained.encode("hi")]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    without = write(tmp_path / "model.gguf", trained, add_bos_token=False, add_space_prefix=False)
    assert without.encode("hi there")[0] != without.bos_id
    assert without.decode(without.encode(" hi there")) == " hi there"
    assert without.encode(" hi there") == trained.encode("hi there")


def test_tokens_that_are_matched_whole(trained, tokenizer):
    [user] = [i for i in range(trained.get_piece_size()) if trained.id_to_piece(i) == "<|user|>"]
    ids = tokenizer.encode("<s>hi<|user|>ho</s>", add_special_tokens=False)
    assert (ids[0], ids[-1]) == (1, 2)
    assert ids == [1, *trained.encode("hi"), user, *trained.encode("ho"), 2]
    assert tokenizer.decode(ids) == "hi<|user|> ho"


def test_an_output_keeps_its_first_space_behind_a_prompt(trained, tokenizer):
    prompt, output = trained.encode("Prompts are"), trained.encode("computed once")
    detokenizer = tokenizer.detokenizer(after=prompt)
    assert "".join(map(detokenizer.push, output)) + detokenizer.flush() == " computed once"


def test_tokens_are_their_bytes(trained, tokenizer):
    texts = [tokenizer.token_bytes(i) for i in trained.encode(" a é漢")]
    assert b"".join(texts) == "  a é漢".encode()


def test_tokens_that_are_matched_whole_are_added_in_one_call_which_takes_no_time_for_many():
    calls = []
    gguf_tokenizer._add_whole_tokens(
        SimpleNamespace(add_tokens=calls.append), ["a", "b", "c"], [NORMAL, CONTROL, USER_DEFINED]
    )
    assert [[token.content for token in call] for call in calls] == [["b", "c"]]


def test_a_piece_of_a_length_that_would_take_long_to_split_is_refused(tmp_path):
    tokens = ["a" * (i + 1) for i in range(257)]
    for count in (256, 257):
        path, few = tmp_path / f"{count}.gguf", tokens[:count]
        write_vocabulary(path, model="llama", tokens=few, token_type=[NORMAL] * count, scores=[0.0] * count)
    assert Tokenizer.load(ModelSource(tmp_path / "256.gguf", "llama")).encode("a" * 256)
    with pytest.raises(ModelError, match="a piece has 257 characters; expected up to 256"):
        Tokenizer.load(ModelSource(tmp_path / "257.gguf", "llama"))


@pytest.mark.parametrize("token_id", [-1, 1200])
def test_a_special_token_that_the_vocabulary_lacks_is_refused(trained, tmp_path, token_id):
    with pytest.raises(ModelError, match=rf"bos_token_id in .* is {token_id}; expected one of 1200 tokens"):
        write(tmp_path / "model.gguf", trained, bos_token_id=token_id)


@pytest.mark.parametrize(
    ("tokens", "merges", "message"),
    [
        (["a", "b", "ab"], ["a qqq"], "the merge of 'a' and 'qqq' is not of tokens"),
        (["a", "b"], ["a b"], "the merge of 'a' and 'b' is not of tokens"),
        (["a", "a", "a"], ["a b"], "the merge of 'a' and 'b' is not of tokens"),
        ([1, 2, 3], ["a b"], "tokens in .* is 1; expected a list of texts"),
        ("abc", ["a b"], "tokens in .* is 'abc'; expected a list of texts"),
        (["a", "b", "ab"], [7], "merges in .* is 7; expected a list of texts"),
        (["a", "b", "ab"], ["ab"], "the merge of 'ab' and '' is not of tokens"),
    ],
    ids=[
        "unknown part",
        "unknown whole",
        "one token thrice",
        "numbers",
        "one text",
        "merges of numbers",
        "merge of one",
    ],
)
def test_tokens_that_contradict_merges_are_refused(tmp_path, tokens, merges, message):
    path = tmp_path / "model.gguf"
    write_vocabulary(path, model="gpt2", tokens=tokens, token_type=[NORMAL] * len(tokens), merges=merges)
    with pytest.raises(ModelError, match=message):
        Tokenizer.load(ModelSource(path, "llama"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("token_type", 3, "token_type in .* is 3; expected 3 whole numbers, one for each token"),
        ("token_type", "abc", "token_type in .* is 'abc'; expected 3 whole numbers, one for each token"),
        ("token_type", ["1", "1", "1"], "token_type in .* is '1'; expected 3 whole numbers, one for each token"),
        ("token_type", [1, 1], r"token_type in .* is \[1, 1\]; expected 3 whole numbers, one for each token"),
        ("scores", [0.0, math.nan, 0.0], "scores in .* is nan; expected 3 finite numbers, one for each token"),
        ("scores", ["a", "b", "c"], "scores in .* is 'a'; expected 3 finite numbers, one for each token"),
        ("scores", [0.0] * 4, "scores in .*; expected 3 finite numbers, one for each token"),
        ("bos_token_id", "x", "bos_token_id in .* is 'x'; expected one of 3 tokens"),
        ("eos_token_id", [1, 2], r"eos_token_id in .* is \[1, 2\]; expected one of 3 tokens"),
        ("add_bos_token", 7, "add_bos_token in .* is 7; expected true or false"),
        ("add_space_prefix", "no", "add_space_prefix in .* is 'no'; expected true or false"),
        ("model", ["llama"], r"model in .* is \['llama'\]; expected 'gpt2' .* or 'llama'"),
    ],
)
def test_a_damaged_key_is_named_with_what_is_expected(tmp_path, key, value, message):
    path = tmp_path / "model.gguf"
    sound = {"model": "llama", "tokens": ["a", "b", "ab"], "token_type": [NORMAL] * 3, "scores": [0.0] * 3}
    write_vocabulary(path, **sound | {key: value})
    with pytest.raises(ModelError, match=message):
        Tokenizer.load(ModelSource(path, "llama"))


def test_a_kind_of_splitting_that_is_not_known_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    write_vocabulary(path, model="gpt2", pre="tekken", tokens=["a"], token_type=[NORMAL], merges=["a b"])
    with pytest.raises(ModelError, match=r"pre in .* is 'tekken'; expected one of deepseek-coder"):
        Tokenizer.load(ModelSource(path, "llama"))
