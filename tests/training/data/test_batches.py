"""training.data.batches: padding, epochs, shares of ranks, and going on at the very batch."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from training.batch import IGNORED, Batch
from training.data import BatchStream, batches, chunks
from training.errors import TrainingError


@pytest.fixture
def corpus(write, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two files of 40 documents in all, each with a number of its own; chunks and windows are small."""
    monkeypatch.setattr(batches, "_WINDOW_ROWS", 12)
    monkeypatch.setattr(chunks.Chunks.__init__, "__defaults__", (200,))
    draw = random.Random(0)
    texts = [f"{number:02}" + "x" * draw.randrange(40) for number in range(40)]
    return [
        write("a.jsonl", [{"text": text} for text in texts[:25]]),
        write("b.jsonl", [{"text": text} for text in texts[25:]]),
    ]


@pytest.fixture
def make(byte_tokenizer):
    def make_stream(files: list[Path], **options: Any) -> BatchStream:
        return BatchStream(files, byte_tokenizer, **{"max_length": 64, "micro_batch_size": 3, **options})

    return make_stream


def _rows(batch: Batch) -> list[tuple[int, ...]]:
    lengths = batch.tokens.lengths_B.tolist()
    return [tuple(row[:length]) for row, length in zip(batch.tokens.token_ids_BT.tolist(), lengths, strict=True)]


def _equal(one: Batch, other: Batch) -> bool:
    parts = [(b.tokens.token_ids_BT, b.tokens.modality_ids_BT, b.tokens.lengths_B, b.targets_BT) for b in (one, other)]
    return all(map(torch.equal, *parts))


def test_a_batch(make, write, byte_tokenizer) -> None:
    path = write("a.jsonl", [{"text": "abc"}, {"text": "d```e"}])
    batch = next(make([path], micro_batch_size=2, shuffle=False))
    assert batch.tokens.lengths_B.tolist() == [3, 5]
    assert batch.tokens.token_ids_BT.shape == batch.targets_BT.shape == (2, 5)
    assert all(tensor.dtype == torch.int64 for tensor in (batch.tokens.token_ids_BT, batch.targets_BT))
    ids = byte_tokenizer.encode("abc")
    assert batch.targets_BT[0].tolist() == [*ids[1:], byte_tokenizer.eos_id, IGNORED, IGNORED]
    assert batch.tokens.modality_ids_BT[1].tolist() == [0, 0, 0, 0, 1]
    assert batch.labels_B is None
    assert next(make([path], micro_batch_size=2, pad_to="max_length")).targets_BT.shape == (2, 64)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 7, 100])
def test_an_epoch_has_each_record_once(make, corpus, micro_batch_size: int) -> None:
    stream = make(corpus, micro_batch_size=micro_batch_size, epochs=1)
    read = list(stream)
    assert all(size == micro_batch_size for size in sorted(len(_rows(batch)) for batch in read)[1:])
    counts = Counter(row for batch in read for row in _rows(batch))
    assert len(counts) == 40
    assert set(counts.values()) == {1}
    assert list(stream) == []


def test_epochs_follow_each_other_without_a_smaller_batch(make, corpus) -> None:
    stream = make(corpus)
    counts: Counter[tuple[int, ...]] = Counter()
    epochs = []
    for _ in range(40):  # three rows each: three epochs
        batch = next(stream)
        assert len(_rows(batch)) == 3
        counts.update(_rows(batch))
        epochs.append(stream.epoch)
    assert set(counts.values()) == {3}
    assert epochs == sorted(epochs)
    assert set(epochs) == {0, 1, 2}


def test_fewer_records_than_a_batch_are_taken_again(make, write) -> None:
    stream = make([write("a.jsonl", [{"text": "abc"}, {"text": "de"}])], micro_batch_size=5)
    assert Counter(map(len, _rows(next(stream)))) in ({3: 2, 2: 3}, {3: 3, 2: 2})


def test_the_order_depends_on_seed_and_epoch(make, corpus) -> None:
    def order(seed: int, epoch: int) -> list[Any]:
        stream = make(corpus, seed=seed, micro_batch_size=4)
        return [[_rows(next(stream)) for _ in range(10)] for _ in range(epoch + 1)][epoch]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)


def test_chunks_of_all_files_are_mixed(make, corpus, byte_tokenizer) -> None:
    first = _rows(next(make(corpus, micro_batch_size=20)))
    numbers = [int(byte_tokenizer.decode(list(row[:2]))) for row in first]
    assert min(numbers) < 25 <= max(numbers)


def test_sorting_leaves_little_padding(make, write) -> None:
    draw = random.Random(1)
    path = write("a.jsonl", [{"text": "x" * draw.randrange(1, 60)} for _ in range(1000)])
    stream = make([path], micro_batch_size=8, epochs=1)
    read = list(stream)
    padded = sum(batch.tokens.token_ids_BT.numel() for batch in read)
    tokens = sum(batch.tokens.num_tokens for batch in read)
    assert stream.padding_share == pytest.approx(1 - tokens / padded)
    assert stream.padding_share < 0.03
    widths = [batch.tokens.token_ids_BT.shape[1] for batch in read]
    assert widths != sorted(widths)  # batches are shuffled


def test_long_documents_are_split_across_batches(make, write) -> None:
    path = write("a.jsonl", [{"text": "y" * 1000}, {"text": "z" * 5}])
    rows = [row for batch in make([path], max_length=10, epochs=1) for row in _rows(batch)]
    assert sorted(map(len, rows)) == [5] + [10] * 100
    cut = [row for batch in make([path], max_length=10, epochs=1, long_documents="cut") for row in _rows(batch)]
    assert sorted(map(len, cut)) == [5, 10]


@pytest.mark.parametrize("options", [{}, {"max_length": 9, "micro_batch_size": 2}, {"micro_batch_size": 50}])
def test_it_goes_on_at_the_very_batch(make, corpus, options) -> None:
    stream = make(corpus, **options)
    states, read = [], []
    for _ in range(45):
        states.append(json.loads(json.dumps(stream.state())))
        read.append(next(stream))
    for place in range(0, 40, 3):
        again = make(corpus, **options)
        again.restore(states[place])
        assert again.state()["skipped"] == states[place]["skipped"]
        for batch in read[place : place + 5]:
            assert _equal(next(again), batch)


def test_going_on_in_a_long_document(make, write) -> None:
    files = [write("a.jsonl", [{"text": f"{number:03}" * 700} for number in range(3)])]
    stream = make(files, max_length=10, micro_batch_size=5)
    for _ in range(70):
        next(stream)
    again = make(files, max_length=10, micro_batch_size=5)
    again.restore(stream.state())
    for _ in range(80):
        assert _equal(next(again), next(stream))


@pytest.mark.parametrize("num_ranks", [2, 3, 16])
def test_ranks_take_turns(make, corpus, num_ranks: int) -> None:
    whole = make(corpus)
    ranks = [make(corpus, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    for _ in range(4):
        for rank in ranks:
            assert _equal(next(rank), next(whole))
    other_number = make(corpus, rank=1, num_ranks=5)  # any rank's state serves any number of ranks
    other_number.restore(json.loads(json.dumps(ranks[-1].state())))
    next(whole)
    assert _equal(next(other_number), next(whole))


def test_bad_records_are_counted_once(make, write) -> None:
    lines = [{"text": "abc"}, b"{", {"text": ""}, {"text": 5}, b"", b"  ", {"text": "de"}, b"\xff"]
    files = [write("bad.jsonl", lines)]
    stream = make(files, micro_batch_size=1)
    next(stream)
    again = make(files, micro_batch_size=1)
    again.restore(stream.state())
    for _ in range(6):  # three epochs
        next(again)
    assert again.bad.counts == {"not JSON": 1, "empty": 1, "malformed": 1, "not UTF-8": 1}
    assert str(again.bad) == "1 empty, 1 malformed, 1 not JSON, 1 not UTF-8"
    assert [name.split(": ")[0].rpartition(":")[2] for name in again.bad.named] == ["2", "3", "4", "8"]


def test_of_each_kind_a_few_are_named(make, write, caplog: pytest.LogCaptureFixture) -> None:
    stream = make([write("bad.jsonl", [*[b"{"] * 100, {"text": "abc"}])], micro_batch_size=1)
    next(stream)
    assert stream.bad.counts == {"not JSON": 100}
    assert len(stream.bad.named) == 5
    assert len(caplog.messages) == 6
    assert "bad.jsonl:1: not JSON" in caplog.messages[0]


def test_one_rank_tells_of_bad_records(make, write, caplog: pytest.LogCaptureFixture) -> None:
    stream = make([write("bad.jsonl", [b"{", {"text": "abc"}])], micro_batch_size=1, tells=False)
    next(stream)
    assert stream.bad.counts == {"not JSON": 1}
    assert not caplog.messages


def test_data_without_a_usable_record_is_an_error(make, write) -> None:
    for options in ({}, {"epochs": 3}):
        stream = make([write("bad.jsonl", [b"{", {"text": " "}, {"text": 1}])], **options)
        with pytest.raises(TrainingError, match=r"no record.*1 empty, 1 malformed, 1 not JSON; .*bad.jsonl:1"):
            next(stream)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batch_size": 4}, "micro_batch_size changed since the checkpoint was written: 3 then, 4 now"),
        ({"max_length": 10}, "max_length changed"),
        ({"seed": 1}, "seed changed"),
    ],
)
def test_other_settings_than_the_checkpoint_s_are_an_error(make, corpus, change, message) -> None:
    state = make(corpus).state()
    with pytest.raises(TrainingError, match=message):
        make(corpus, **change).restore(state)


def test_other_data_than_the_checkpoint_s_is_an_error(make, corpus) -> None:
    state = make(corpus).state()
    with pytest.raises(TrainingError, match="files changed"):
        make(corpus[:1]).restore(state)
    corpus[0].write_bytes(corpus[0].read_bytes() + b"\n")
    with pytest.raises(TrainingError, match="files changed"):
        make(corpus).restore(state)


def test_a_file_that_is_gone_is_an_error(make, corpus) -> None:
    stream = make(corpus)
    for path in corpus:
        path.unlink()
    with pytest.raises(TrainingError, match=r"jsonl cannot be read any more: No such file"):
        next(stream)


def test_labels(make, write) -> None:
    path = write("a.jsonl", [{"text": "ab", "label": "bad"}, {"text": "abc", "label": 0}, {"text": "a", "label": "?"}])
    stream = make([path], kind="classification", labels=["good", "bad"], micro_batch_size=2, shuffle=False)
    batch = next(stream)
    assert batch.labels_B is not None
    assert batch.labels_B.tolist() == [1, 0]
    assert batch.tokens.lengths_B.tolist() == [2, 3]
    assert (batch.targets_BT == IGNORED).all()
    assert stream.bad.counts in ({"of unknown label": 1}, {})


def test_pairs_stand_together(tokenizer, write) -> None:
    pairs = [{"prompt": "p" * i, "chosen": f"{i}" * 3, "rejected": f"{i}" * 9} for i in range(1, 9)]
    stream = BatchStream([write("a.jsonl", pairs)], tokenizer, kind="dpo", micro_batch_size=4, epochs=1)
    for batch in stream:
        answers = [tokenizer.decode(row[row != IGNORED].tolist()) for row in batch.targets_BT]
        assert len(answers) == 4
        assert all(rejected == chosen * 3 for chosen, rejected in zip(answers[::2], answers[1::2], strict=True))
    with pytest.raises(TrainingError, match="even number"):
        BatchStream([write("a.jsonl", pairs)], tokenizer, kind="dpo", micro_batch_size=3)


def test_plain_text_is_for_language_models(make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert len(_rows(next(make([tmp_path])))) == 3
    with pytest.raises(TrainingError, match="plain text; the objective sft needs records"):
        make([tmp_path], kind="sft")


def test_an_edit_that_keeps_the_size_is_seen_where_the_checkpoint_knows_contents(make, write) -> None:
    def make_again(text: str):
        return make([write("one.jsonl", [{"text": text}])])

    state = make_again("abc").state()
    with pytest.raises(TrainingError, match="data's contents changed"):
        make_again("abd").restore(state)
    del state["settings"]["contents"]
    make_again("abd").restore(state)
