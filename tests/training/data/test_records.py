"""training.data.records: lines of JSON become records, or errors that say why not."""

import json

import pytest

from training.data.bad_records import RecordError
from training.data.records import Chat, Document, LabelledText, Preference, RecordReader, read_text

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("kind", "line", "record"),
    [
        ("language_model", {"text": "a"}, Document("a")),
        ("language_model", {"title": "T", "content": "a", "url": 5}, Document("a", "T")),
        ("language_model", {"title": None, "text": "a", "modality": "code"}, Document("a", is_code=True)),
        ("language_model", {"text": "a", "modality": "text"}, Document("a", is_code=False)),
        ("sft", {"messages": [USER, ANSWER]}, Chat([USER, ANSWER])),
        (
            "dpo",
            {"prompt": "Hi", "chosen": "Hello", "rejected": [{"role": "assistant", "content": "Go"}]},
            Preference([USER], [ANSWER], [{"role": "assistant", "content": "Go"}]),
        ),
        ("classification", {"text": "a", "label": "bad"}, LabelledText("a", 1)),
        ("classification", {"text": "a", "label": 0}, LabelledText("a", 0)),
        ("reasoning", {"text": "a", "label": True}, LabelledText("a", 1)),
        ("reasoning", {"text": "a", "label": 0}, LabelledText("a", 0)),
    ],
)
def test_records(kind, line, record) -> None:
    assert RecordReader(kind, ["good", "bad"]).read(json.dumps(line).encode()) == record


def test_of_a_key_that_is_there_twice_the_last_counts_and_a_byte_order_mark_is_none() -> None:
    assert RecordReader("language_model").read(b'\xef\xbb\xbf{"text": "a", "text": "b"}') == Document("b")


@pytest.mark.parametrize(
    ("kind", "line", "error"),
    [
        ("language_model", b"{", "not JSON"),
        ("language_model", b'{"text": "a"} {"text": "b"}', "not JSON"),
        ("language_model", b'{"text": NaN}', "not JSON"),
        ("language_model", b'{"text": "a\x00"}', "not JSON"),
        ("language_model", b'{"text": "\\ud800"}', "not JSON"),
        ("language_model", b'{"text": "\\udc00\\ud800"}', "not JSON"),
        ("language_model", b"\x00" * 9, "not JSON"),
        ("language_model", '{"text": "é"}'.encode("latin-1"), "not UTF-8"),
        ("language_model", '{"text": "a"}'.encode("utf-16"), "not UTF-8"),
        ("language_model", b'{"text": "\xed\xa0\x80"}', "not UTF-8"),
        ("language_model", b'{"more": ' + b"[" * 100_000, "not JSON"),
        ("language_model", b"[1]", "malformed"),
        ("language_model", b"{}", "malformed"),
        ("language_model", b'{"text": null}', "malformed"),
        ("language_model", b'{"text": 5}', "malformed"),
        ("language_model", b'{"text": "a", "title": []}', "malformed"),
        ("language_model", b'{"text": "a", "modality": "image"}', "malformed"),
        ("sft", b'{"messages": "Hi"}', "malformed"),
        ("sft", b'{"messages": [5]}', "malformed"),
        ("sft", b"[" * 100_000, "malformed"),
        ("sft", b'{"messages": [' + b"[" * 100_000, "malformed"),
        ("sft", b'{"messages": [{"role": ' + b"[" * 100_000, "not JSON"),
        ("dpo", b'{"prompt": "a", "chosen": "b"}', "malformed"),
        ("dpo", b'{"prompt": "a", "chosen": "b", "rejected": "b"}', "without a preference"),
        ("classification", b'{"text": "a", "label": "worse"}', "of unknown label"),
        ("classification", b'{"text": "a", "label": 2}', "of unknown label"),
        ("classification", b'{"text": "a", "label": -1}', "of unknown label"),
        ("classification", b'{"text": "a", "label": true}', "malformed"),
        ("classification", b'{"text": "a", "label": 1e999}', "malformed"),
        ("reasoning", b'{"text": "a", "label": 2}', "of unknown label"),
        ("reasoning", b'{"text": "a", "label": "yes"}', "malformed"),
    ],
)
def test_what_is_wrong_with_a_line(kind, line, error) -> None:
    with pytest.raises(RecordError) as caught:
        RecordReader(kind, ["good", "bad"]).read(line)
    assert caught.value.kind == error


def test_an_unknown_label_is_told_with_the_known_ones() -> None:
    with pytest.raises(RecordError, match="'worse'; the model's labels are good, bad"):
        RecordReader("classification", ["good", "bad"]).read(b'{"text": "a", "label": "worse"}')


@pytest.mark.parametrize("half", ["\\ud83d", "\\ude00", "\\ud83d\\ud83d\\ude00", "\\ud83d\\u0061"])
def test_half_a_surrogate_pair_is_told(half: str) -> None:
    with pytest.raises(RecordError, match="half a surrogate pair"):
        RecordReader("language_model").read(b'{"text": "' + half.encode() + b'"}')
    with pytest.raises(RecordError, match="truncated"):
        RecordReader("language_model").read(b'{"text": "\\ud83d\\ude00"')


def test_plain_text() -> None:
    assert read_text("\ufeffä\n".encode(), is_whole=False) == Document("ä\n", is_whole=False)
    for content, kind in ((b"\xff\xfea\0", "not text"), ("é".encode("latin-1"), "not UTF-8")):
        with pytest.raises(RecordError) as caught:
            read_text(content, is_whole=True)
        assert caught.value.kind == kind
