"""Tokenizers read from folders and GGUF files: what is split, matched whole, put in front, refused."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.processors import TemplateProcessing

from engine.errors import ModelError
from engine.loading.resolve import ModelSource
from server.tokenizer import Tokenizer
from tests.support.tiny import BOS, CHAT_TEMPLATE, EOS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BOS_ID, EOS_ID = 256, 257
TEXT = "naïve 漢字 👩‍🚀\n\tdef f(x): return x+1  "


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's tokenizer files, to be changed."""
    for path in tiny_llama.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path)
    return tmp_path


def load(path: Path) -> Tokenizer:
    return Tokenizer.load(ModelSource(path, path.name))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add_bos_by_post_processor(folder: Path) -> None:
    path = str(folder / "tokenizer.json")
    tokenizer = HFTokenizer.from_file(path)
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    tokenizer.save(path)


def test_a_folders_tokenizer_goes_round(folder: Path) -> None:
    tokenizer = load(folder)
    ids = tokenizer.encode(TEXT)
    assert len(ids) == len(TEXT.encode())
    assert tokenizer.decode(ids) == TEXT
    assert b"".join(map(tokenizer.token_bytes, ids)) == TEXT.encode()


def test_special_tokens_are_matched_whole_and_skipped_on_request(folder: Path) -> None:
    tokenizer = load(folder)
    ids = tokenizer.encode(f"a{EOS}b")
    assert len(ids) == 3
    assert ids[1] == EOS_ID
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"a{EOS}b"
    assert tokenizer.token_bytes(EOS_ID) == EOS.encode()


def test_bos_is_left_out_where_the_model_does_not_ask_for_it(folder: Path) -> None:
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
def test_bos_is_added_once_and_never_doubled(folder: Path, arrange: Callable[[Path], Any], text: str) -> None:
    arrange(folder)
    tokenizer = load(folder)
    assert tokenizer.encode(text) == [BOS_ID, *tokenizer.encode("a", add_special_tokens=False)]
    assert tokenizer.encode(text, add_special_tokens=False).count(BOS_ID) == text.count(BOS)


def test_bos_may_be_written_as_an_object(folder: Path) -> None:
    edit_config(folder, add_bos_token=True, bos_token={"content": BOS, "special": True})
    assert load(folder).encode("a")[0] == BOS_ID


def test_truncation_and_padding_saved_in_the_file_are_off(folder: Path) -> None:
    path = str(folder / "tokenizer.json")
    tokenizer = HFTokenizer.from_file(path)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(path)
    loaded = load(folder)
    assert len(loaded.encode("abcdefghijkl")) == 12
    assert len(loaded.encode("a")) == 1


def test_the_chat_template_comes_from_its_file(folder: Path) -> None:
    template = load(folder).chat_template
    assert template is not None
    assert (
        template.render([{"role": "user", "content": "hi"}], add_generation_prompt=True) == f"{BOS}[user]hi[assistant]"
    )


@pytest.mark.parametrize(
    "written", [CHAT_TEMPLATE, [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHAT_TEMPLATE}]]
)
def test_the_chat_template_may_stand_in_the_config(folder: Path, written: Any) -> None:
    (folder / "chat_template.jinja").unlink()
    edit_config(folder, chat_template=written)
    template = load(folder).chat_template
    assert template is not None
    assert template.render([{"role": "user", "content": "hi"}], add_generation_prompt=False) == f"{BOS}[user]hi"


def test_a_model_may_have_no_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert load(folder).chat_template is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": "1.0"}', "\x00" * 100])
def test_a_damaged_tokenizer_is_a_model_error_that_names_the_file(folder: Path, damage: str) -> None:
    (folder / "tokenizer.json").write_text(damage)
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        load(folder)


def test_a_missing_tokenizer_is_a_model_error_that_names_the_file(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        load(folder)


@pytest.mark.parametrize("damage", ["{", "[]", "\x00"])
def test_a_damaged_tokenizer_config_is_a_model_error_that_names_the_file(folder: Path, damage: str) -> None:
    (folder / "tokenizer_config.json").write_text(damage)
    with pytest.raises(ModelError, match=r"tokenizer_config\.json"):
        load(folder)


def test_a_chat_template_that_is_not_jinja_is_a_model_error(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelError, match="chat template is not valid"):
        load(folder)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return load(smollm2)


@pytest.mark.smollm2
class TestGGUF:
    def test_digits_are_split(self, tokenizer: Tokenizer) -> None:
        assert [tokenizer.token_bytes(i) for i in tokenizer.encode("12345")] == [b"1", b"2", b"3", b"4", b"5"]

    def test_words_are_merged(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode("The capital of France is")
        assert [tokenizer.token_bytes(i) for i in ids] == [b"The", b" capital", b" of", b" France", b" is"]

    def test_special_tokens_are_matched_whole(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.encode("<|im_start|>user") == [1, *tokenizer.encode("user")]
        assert tokenizer.decode([1, *tokenizer.encode("user"), 2]) == "user"

    @pytest.mark.parametrize(
        "text", [TEXT, "", " ", "\r\n\r\n", "3.14159e-10", "don't", "\u200b\u0301\U0001f1eb\U0001f1f7"]
    )
    def test_texts_go_round(self, tokenizer: Tokenizer, text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_the_chat_template_writes_its_turns(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.chat_template is not None
        text = tokenizer.chat_template.render([{"role": "user", "content": "hi"}], add_generation_prompt=True)
        assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", "llama", "only 'gpt2'"),
        ("tokenizer.ggml.pre", "no-such-split", "known are"),
        ("tokenizer.ggml.merges", None, r"lacks tokenizer\.ggml\.merges"),
        ("tokenizer.ggml.tokens", None, r"lacks tokenizer\.ggml\.tokens"),
    ],
)
def test_a_gguf_tokenizer_of_another_kind_is_a_model_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, value: Any, message: str
) -> None:
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

    class File:
        def __init__(self, path: Path) -> None:
            self.path, self.metadata = path, metadata

    monkeypatch.setattr("server.tokenizer.GGUFFile", File)
    path = tmp_path / "model.gguf"
    path.touch()
    with pytest.raises(ModelError, match=message):
        load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"bos_token": 5},
        {"bos_token": {"content": 5}},
        {"eos_token": ["a"]},
        {"chat_template": 5},
        {"chat_template": [5]},
    ],
    ids=str,
)
def test_settings_of_a_wrong_kind_are_model_errors(folder: Path, changes: dict[str, Any]) -> None:
    if "chat_template" in changes:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit_config(folder, **changes)
    with pytest.raises(ModelError, match="is damaged"):
        load(folder)


def test_a_chat_template_that_is_not_text_is_a_model_error(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="is damaged"):
        load(folder)
