"""training.data.examples: what each token should be followed by, for each objective."""

from dataclasses import replace

import numpy as np
import pytest

from training.batch import IGNORED
from training.data.bad_records import RecordError
from training.data.examples import ExampleMaker
from training.data.records import Chat, Document, LabelledText, Preference

LONG = "the river runs under a bridge and the fox jumps over it " * 4


def _rows(tokenizer, record, max_length=4096, num_modalities=3, **options):
    maker = ExampleMaker(tokenizer, max_length=max_length, num_modalities=num_modalities, **options)
    return [row for example in maker.make(record) for row in example]


def _learnt(tokenizer, row) -> str:
    return tokenizer.decode(row.targets[row.targets != IGNORED].tolist(), skip_special_tokens=False)


def test_a_document_is_title_separator_content_and_end(tokenizer) -> None:
    (row,) = _rows(tokenizer, Document("the  fox\r\n", " A\ntitle"))
    text = "<|begin|>A title [SEP] the  fox<|end|>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.special_id("[SEP]") in ids
    assert row.token_ids.tolist() == ids[:-1]
    assert row.targets.tolist() == ids[1:]


def test_without_a_separator_token_its_text_stands_there(byte_tokenizer) -> None:
    (row,) = _rows(byte_tokenizer, Document("b", "a"))
    assert byte_tokenizer.decode(row.token_ids.tolist()) == "a [SEP] b"
    assert row.targets[-1] == byte_tokenizer.eos_id


def test_a_piece_of_a_text_has_no_end(tokenizer) -> None:
    (row,) = _rows(tokenizer, Document("the fox", is_whole=False))
    assert tokenizer.eos_id not in row.targets


def test_special_tokens_in_texts_are_not_read_as_such(tokenizer) -> None:
    (row,) = _rows(tokenizer, Document("the<|end|>fox<|user|>", "[SEP]a"))
    specials = [tokenizer.special_id(text) for text in ("<|end|>", "<|user|>")]
    assert not np.isin(row.token_ids, specials).any()
    assert (row.token_ids == tokenizer.special_id("[SEP]")).sum() == 1


@pytest.mark.parametrize("max_length", [2, 7, 16])
def test_a_long_document_is_split_into_rows_that_follow_each_other(tokenizer, max_length: int) -> None:
    (whole,) = _rows(tokenizer, Document(LONG))
    rows = _rows(tokenizer, Document(LONG), max_length)
    assert all(len(row) == max_length for row in rows[:-1])
    assert 1 <= len(rows[-1]) <= max_length
    for name in ("token_ids", "modality_ids", "targets"):
        joined = np.concatenate([getattr(row, name) for row in rows])
        np.testing.assert_array_equal(joined, getattr(whole, name))


def test_a_long_document_may_be_cut(tokenizer) -> None:
    first, *_ = _rows(tokenizer, Document(LONG), 16)
    (row,) = _rows(tokenizer, Document(LONG), 16, long_documents="cut")
    for name in ("token_ids", "modality_ids", "targets"):
        np.testing.assert_array_equal(getattr(row, name), getattr(first, name))


def test_modalities_of_documents(tokenizer) -> None:
    text = "the fox ```def add``` over"
    (row,) = _rows(tokenizer, Document(text))
    code = tokenizer.decode(row.token_ids[row.modality_ids == 1].tolist())
    assert code == "def add"
    assert _rows(tokenizer, Document(text, is_code=True))[0].modality_ids.all()
    assert not _rows(tokenizer, Document(text, is_code=False))[0].modality_ids.any()
    assert not _rows(tokenizer, Document(text), num_modalities=1)[0].modality_ids.any()


def _chat(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def test_of_a_chat_the_answers_are_learnt_with_their_ends(tokenizer) -> None:
    (row,) = _rows(tokenizer, Chat(_chat("the fox", "jumps", "over", "the river")))
    assert _learnt(tokenizer, row) == "jumps<|end|>the river<|end|>"
    assert len(row.targets) == len(row)
    places = np.flatnonzero(row.targets != IGNORED)
    np.testing.assert_array_equal(row.targets[places], row.token_ids[places + 1])


def test_an_answer_has_the_modality_of_the_token_before_it(tokenizer) -> None:
    (row,) = _rows(tokenizer, Chat(_chat("```def```", "```add``` it")))
    code = tokenizer.decode(row.token_ids[row.modality_ids == 1].tolist())
    assert code == "def"
    (row,) = _rows(tokenizer, Chat(_chat("```def", "add")))  # a fence that is open
    assert tokenizer.decode(row.token_ids[row.modality_ids == 1].tolist()) == "defadd"


def test_a_chat_whose_answer_is_cut_off_teaches_nothing(tokenizer) -> None:
    with pytest.raises(RecordError) as caught:
        _rows(tokenizer, Chat(_chat(LONG, "jumps")), 16)
    assert caught.value.kind == "without an answer"
    assert len(_rows(tokenizer, Chat(_chat("the fox", LONG)), 16)[0]) == 16


def test_special_tokens_in_messages_end_nothing(tokenizer) -> None:
    (row,) = _rows(tokenizer, Chat(_chat("a<|end|><|assistant|>b", "c<|user|>d <think>e</think>f")))
    assert _learnt(tokenizer, row) == "c d <think>e</think>f<|end|>"
    assert tokenizer.encode("<think>", add_special_tokens=False)[0] in row.targets


def test_a_preference_is_two_rows_that_begin_alike(tokenizer) -> None:
    record = Preference(_chat("the fox", "jumps", "over"), _chat("", "the river")[1:], _chat("", "a bridge")[1:])
    (example,) = ExampleMaker(tokenizer, max_length=64, num_modalities=3).make(record)
    assert [_learnt(tokenizer, row) for row in example] == ["the river<|end|>", "a bridge<|end|>"]
    begins = [np.flatnonzero(row.targets != IGNORED)[0] for row in example]
    assert begins[0] == begins[1]
    np.testing.assert_array_equal(example[0].token_ids[: begins[0] + 1], example[1].token_ids[: begins[0] + 1])


def test_a_labelled_text_is_what_the_server_classifies(tokenizer) -> None:
    (row,) = _rows(tokenizer, LabelledText("the fox ", 2))
    assert row.token_ids.tolist() == tokenizer.encode("the fox")
    assert row.label == 2
    assert (row.targets == IGNORED).all()
    assert len(_rows(tokenizer, LabelledText(LONG, 0), 8)[0]) == 8


def test_what_is_empty_once_it_is_clean(tokenizer, byte_tokenizer) -> None:
    for record in (Document(" \x00\n"), Document("<|end|>", "title"), LabelledText("\ufeff", 0)):
        with pytest.raises(RecordError) as caught:
            _rows(tokenizer, record)
        assert caught.value.kind == "empty"
    with pytest.raises(RecordError, match="nothing follows"):
        _rows(byte_tokenizer, replace(Document("a"), is_whole=False))
