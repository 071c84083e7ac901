"""A sequence's next chunk as plain values. How a sequence ends is in test_dynamic_batcher.py."""

from tests.support.sequences import make_sequence


def test_tokens_before_a_chunk_are_sent_only_where_penalties_need_them():
    plain, penalised = (make_sequence(prompt=[1, 2], output=(3,), presence_penalty=p) for p in (0.0, 1.0))
    plain.num_computed_tokens = penalised.num_computed_tokens = 2
    assert plain.next_chunk(1, []).sample.prompt_token_ids == plain.next_chunk(1, []).sample.output_token_ids == ()
    sample = penalised.next_chunk(1, []).sample
    assert (sample.prompt_token_ids, sample.output_token_ids, sample.num_output_tokens) == ((1, 2), (3,), 1)


def test_a_chunk_has_its_tokens_modalities_and_the_output_that_of_the_prompts_last_token():
    seq = make_sequence(prompt=[1, 2, 3, 4], output=(5, 6), modalities=b"\0\0\1\1")
    assert seq.next_chunk(2, []).modalities == b"", "all are text"
    assert seq.next_chunk(3, []).modalities == b"\0\0\1"
    seq.num_computed_tokens = 3
    assert seq.next_chunk(3, []).modalities == b"\1\1\1"
    seq.num_computed_tokens = 5
    assert seq.next_chunk(1, []).modalities == b"\1"
    assert make_sequence(prompt=[1, 2], output=(5,)).next_chunk(3, []).modalities == b""
