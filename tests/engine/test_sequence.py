"""A sequence's next chunk as plain values. How a sequence ends is in test_dynamic_batcher.py."""

from tests.support.sequences import make_sequence


def test_tokens_before_a_chunk_are_sent_only_where_penalties_need_them():
    plain, penalised = (make_sequence(prompt=[1, 2], output=(3,), presence_penalty=p) for p in (0.0, 1.0))
    plain.num_computed_tokens = penalised.num_computed_tokens = 2
    assert plain.next_chunk(1, [0]).sample.prompt_token_ids == plain.next_chunk(1, [0]).sample.output_token_ids == ()
    sample = penalised.next_chunk(1, [0]).sample
    assert (sample.prompt_token_ids, sample.output_token_ids, sample.num_output_tokens) == ((1, 2), (3,), 1)
