import math
from collections import Counter

import msgspec
import pytest
import torch

from engine import sampler
from engine.sampler import sample, uniform
from engine.step import Sample
from tests.support.sequences import make_sample

PROBS = [0.4, 0.3, 0.2, 0.1]


def draw(logits: torch.Tensor, num: int, **sampling) -> list[int]:
    """The choices of `num` sequences that differ in their seeds only, on one row of logits."""
    seqs = [make_sample(seed=seed * 7919, **sampling) for seed in range(num)]
    return [choice.token_id for choice in sample(logits.repeat(num, 1), seqs)]


def chi_square(tokens: list[int], probs: torch.Tensor) -> float:
    counts, expected = Counter(tokens), probs * len(tokens)
    return sum((counts[i] - float(mean)) ** 2 / float(mean) for i, mean in enumerate(expected))


def adjusted(logits: list[float], wanted: Sample) -> list[float]:
    """What logit_bias, min_tokens and penalties make of a row."""
    row = torch.tensor(logits)
    sampler._adjust(row, wanted)
    return row.tolist()


def test_greedy_is_argmax():
    logits = torch.randn(50, 997, generator=torch.Generator().manual_seed(0))
    chosen = sample(logits.clone(), [make_sample(seed=i, temperature=0.0) for i in range(50)])
    assert [choice.token_id for choice in chosen] == logits.argmax(-1).tolist()


def test_a_vanishing_temperature_is_greedy_and_does_not_overflow():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    for temperature in (1e-300, 1e-6, 1e-4):
        assert sample(logits.clone(), [make_sample(temperature=temperature)])[0].token_id == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_a_temperature(temperature):
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -3.0])
    tokens = draw(logits, 4000, temperature=temperature)
    assert chi_square(tokens, (logits / temperature).softmax(-1)) < 24.3  # 7 degrees of freedom, p = 0.001


def test_the_draws_of_one_sequence_follow_the_distribution_too():
    logits = torch.tensor(PROBS).log()
    seqs = [make_sample(seed=11, output=(0,) * n) for n in range(3000)]
    tokens = [choice.token_id for choice in sample(logits.repeat(3000, 1), seqs)]
    assert chi_square(tokens, torch.tensor(PROBS)) < 16.3  # 3 degrees of freedom, p = 0.001
    pairs = [4 * first + second for first, second in zip(tokens[::2], tokens[1::2], strict=True)]
    assert chi_square(pairs, torch.outer(torch.tensor(PROBS), torch.tensor(PROBS)).flatten()) < 37.7  # 15, p = 0.001


def test_uniform_numbers_lie_in_their_range_and_fill_it():
    numbers = [uniform(seed, index) for seed in (0, 1, 2**63, 2**70 + 5) for index in range(500)]
    assert all(0 <= number < 1 for number in numbers)
    assert chi_square([int(number * 10) for number in numbers], torch.full((10,), 0.1)) < 27.9  # 9, p = 0.001
    assert len(set(numbers)) == len(numbers)


def test_a_seed_gives_the_same_token_again_and_another_seed_another():
    logits = torch.zeros(1, 1000)
    first, again, other = (sample(logits.clone(), [make_sample(seed=seed)])[0].token_id for seed in (1, 1, 2))
    assert first == again != other


def test_a_draw_does_not_depend_on_batch_mates():
    logits = torch.randn(6, 2000, generator=torch.Generator().manual_seed(1))
    seqs = [
        make_sample(seed=5),
        make_sample(seed=6, top_p=0.5),
        make_sample(seed=7, top_k=3),
        make_sample(seed=8, min_p=0.1, temperature=3.0),
        make_sample(seed=9, temperature=0.0, logprobs=2),
        make_sample(seed=10, repetition_penalty=2.0, temperature=50.0, top_p=0.99),
    ]
    together = [choice.token_id for choice in sample(logits.clone(), seqs)]
    alone = [sample(logits[i : i + 1].clone(), [seq])[0].token_id for i, seq in enumerate(seqs)]
    backwards = [choice.token_id for choice in sample(logits.flip(0), seqs[::-1])][::-1]
    assert together == alone == backwards


@pytest.mark.parametrize(("number", "chosen"), [(0.0, 1), (1 - 2**-53, 3)], ids=["least", "greatest"])
@pytest.mark.parametrize("filters", [{}, {"top_k": 2}], ids=str)
def test_the_extreme_random_numbers_choose_no_token_of_probability_zero(monkeypatch, number, chosen, filters):
    monkeypatch.setattr(sampler, "uniform", lambda seed, index: number)
    seq = make_sample(stop_token_ids=(0, 4), min_tokens=1, **filters)
    assert sample(torch.tensor([[9.0, 2.0, -200.0, 1.0, 9.0]]), [seq])[0].token_id == chosen


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 100}, {0, 1, 2, 3}),
        ({"top_k": 0}, {0, 1, 2, 3}),
        ({"top_p": 0.0}, {0}),
        ({"top_p": 0.39}, {0}),
        ({"top_p": 0.41}, {0, 1}),
        ({"top_p": 0.69}, {0, 1}),
        ({"top_p": 0.71}, {0, 1, 2}),
        ({"top_p": 0.999}, {0, 1, 2, 3}),
        ({"min_p": 1.0}, {0}),
        ({"min_p": 0.74}, {0, 1}),
        ({"min_p": 0.49}, {0, 1, 2}),
        ({"min_p": 0.2}, {0, 1, 2, 3}),
        ({"top_k": 2, "top_p": 0.5}, {0}),  # of the mass that top_k leaves, 0.57 is the first's
        ({"top_k": 2, "top_p": 0.6}, {0, 1}),
        ({"top_k": 3, "min_p": 0.6}, {0, 1}),
        ({"top_p": 0.65, "min_p": 0.1}, {0, 1}),
        ({"top_p": 0.5, "temperature": 100.0}, {0, 1}),
    ],
    ids=str,
)
def test_filters_keep_exactly_the_right_tokens_and_their_proportions(sampling, kept):
    order = [2, 0, 3, 1]  # the likeliest token is not the first of the vocabulary
    logits = torch.empty(4)
    logits[order] = torch.tensor(PROBS).log()
    tokens = [order.index(token) for token in draw(logits, 2000, **sampling)]
    assert set(tokens) == kept
    weights = torch.tensor([PROBS[i] if i in kept else 0.0 for i in range(4)]) ** (1 / sampling.get("temperature", 1))
    if len(kept) > 1:
        assert chi_square(tokens, (weights / weights.sum())[: len(kept)]) < 16.3


@pytest.mark.parametrize(
    ("sampling", "num_kept"),
    [
        ({"top_p": 0.5}, 2500),
        ({"top_p": 0.9}, 4500),
        ({"min_p": 0.99}, 2011),
        ({"top_k": 2000}, 2000),
        ({"top_k": 2000, "top_p": 0.75}, 1500),
        ({"top_k": 4000, "top_p": 0.1}, 400),
    ],
    ids=str,
)
def test_filters_look_beyond_the_first_candidates_on_a_flat_distribution(sampling, num_kept):
    logits = -5e-6 * torch.arange(5000.0)  # nearly flat: token i is the i-th likeliest
    tokens = draw(logits, 1000, **sampling)
    assert num_kept * 0.98 < max(tokens) < num_kept * 1.02
    assert sum(token < max(tokens) / 2 for token in tokens) / 1000 == pytest.approx(0.5, abs=0.05)


def test_top_p_is_of_the_mass_that_a_large_top_k_leaves():
    probs = torch.cat([torch.full((10,), 0.85 / 10), torch.full((990,), 0.05 / 990), torch.full((4000,), 0.1 / 4000)])
    tokens = draw(probs.log(), 2000, top_k=1500, top_p=0.9)  # 0.9125 is left, and 0.9 of that is 0.82
    assert set(tokens) == set(range(10))


def test_a_flat_row_and_a_peaked_row_are_filtered_together():
    flat, peaked = torch.zeros(5000), torch.zeros(5000)
    peaked[123] = 50.0
    seqs = [make_sample(seed=seed, top_p=0.9) for seed in range(400)]
    tokens = [choice.token_id for choice in sample(torch.stack([flat, peaked]).repeat(200, 1), seqs)]
    assert set(tokens[1::2]) == {123}
    assert len(set(tokens[::2])) > 150


def test_presence_and_frequency_penalties_count_the_output_only():
    seq = make_sample(prompt=[0, 1, 1], output=(1, 2, 2, 2), presence_penalty=0.5, frequency_penalty=0.25)
    assert adjusted([1.0, 1.0, 1.0, 1.0], seq) == [1.0, 1 - 0.5 - 0.25, 1 - 0.5 - 0.75, 1.0]


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_prompt_and_output():
    seq = make_sample(prompt=[0, 1, 1], output=(2,), repetition_penalty=2.0)
    assert adjusted([3.0, -3.0, 0.5, 4.0, -4.0], seq) == [1.5, -6.0, 0.25, 4.0, -4.0]


def test_all_penalties_together_are_applied_in_their_order():
    seq = make_sample(
        prompt=[0],
        output=(1, 1),
        repetition_penalty=2.0,
        presence_penalty=1.0,
        frequency_penalty=0.5,
        logit_bias={1: 4.0},
    )
    assert adjusted([2.0, 2.0, 2.0], seq) == [1.0, (2 + 4) / 2 - 1 - 2 * 0.5, 2.0]


def test_penalties_before_any_output_leave_the_row_alone():
    assert adjusted([1.0, 2.0], make_sample(presence_penalty=2.0, frequency_penalty=2.0)) == [1.0, 2.0]


def test_logit_bias_adds_to_its_tokens():
    seq = make_sample(logit_bias={0: -100.0, 2: 2.5}, temperature=0.0)
    assert adjusted([1.0, 1.0, 1.0], seq) == [-99.0, 1.0, 3.5]
    assert set(draw(torch.zeros(5), 200, logit_bias={3: 100.0})) == {3}
    assert 3 not in draw(torch.zeros(5), 500, logit_bias={3: -100.0})


@pytest.mark.parametrize(("num_output", "chosen"), [(0, 2), (1, 2), (2, 1)])
def test_min_tokens_masks_the_stop_tokens_until_reached(num_output, chosen):
    seq = make_sample(output=(0,) * num_output, stop_token_ids=(1, 3), min_tokens=2, temperature=0.0)
    assert sample(torch.tensor([[0.0, 9.0, 5.0, 8.0]]), [seq])[0].token_id == chosen


def test_only_allowed_tokens_are_chosen_by_their_own_odds():
    logits = torch.tensor([9.0, 2.0, 1.0, 0.5])
    tokens = draw(logits, 3000, allowed_token_ids=(1, 2, 3))
    assert chi_square([token - 1 for token in tokens], logits[1:].softmax(-1)) < 13.8  # 2 degrees of freedom, p = 0.001
    assert sample(logits[None], [make_sample(allowed_token_ids=(3, 2), temperature=0.0)])[0].token_id == 2
    many = torch.arange(300.0)[None]  # the mask is shorter than this
    for reported in (None, 1):
        wanted = make_sample(allowed_token_ids=(9, 17), logit_bias={299: 100.0}, logprobs=reported, temperature=0.0)
        assert sample(many, [wanted])[0].token_id == 17


@pytest.mark.parametrize(
    ("output", "words", "chosen"),
    [
        ((), [(1,)], 2),
        ((5,), [(5, 1)], 2),
        ((4,), [(5, 1)], 1),
        ((5, 4), [(5, 1)], 1),
        ((), [(5, 1)], 1),
        ((7, 5, 6), [(5, 6, 1), (6, 2)], 3),
        ((1,), [(1, 1, 1)], 1),
    ],
)
def test_the_last_token_of_a_bad_word_is_barred_behind_the_others(output, words, chosen):
    seq = make_sample(output=output, bad_words=tuple(words), temperature=0.0)
    assert sample(torch.tensor([[0.0, 9.0, 8.0, 7.0]]), [seq])[0].token_id == chosen


@pytest.mark.parametrize("barring", [{"bad_words": ((2,), (3,))}, {"stop_token_ids": (2, 3), "min_tokens": 1}], ids=str)
def test_where_nothing_would_be_left_what_is_allowed_can_be_chosen(barring):
    seq = make_sample(allowed_token_ids=(2, 3), temperature=0.0, **barring)
    assert sample(torch.tensor([[9.0, 9.0, 8.0, 7.0]]), [seq])[0].token_id == 2


def test_ranks_count_from_1():
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    for token_id, rank in ((1, 1), (2, 2), (0, 3), (3, 4)):
        [chosen] = sample(logits, [make_sample(logprobs=1, allowed_token_ids=(token_id,))])
        assert (chosen.token_id, chosen.logprobs.rank, chosen.logprobs.top_ids) == (token_id, rank, [1])


def test_logprobs_are_those_of_the_model_s_own_logits():
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(2)) * 3
    seqs = [
        make_sample(logprobs=5, temperature=0.0),
        make_sample(logprobs=None),
        make_sample(logprobs=0, temperature=0.7),
        make_sample(logprobs=3, temperature=1.5, logit_bias={17: 100.0}, repetition_penalty=1.5, top_k=2),
    ]
    expected = logits.log_softmax(-1)
    choices = sample(logits.clone(), seqs)
    assert choices[1].logprobs is None
    assert choices[3].token_id == 17
    for row, count in ((0, 5), (2, 0), (3, 3)):
        report = choices[row].logprobs
        top = expected[row].topk(count)
        assert report.logprob == pytest.approx(float(expected[row, choices[row].token_id]), abs=1e-5)
        assert report.top_ids == top.indices.tolist()
        assert report.top_logprobs == pytest.approx(top.values.tolist(), abs=1e-5)


def test_more_logprobs_than_tokens_report_them_all():
    (choice,) = sample(torch.zeros(1, 3), [make_sample(logprobs=20)])
    assert sorted(choice.logprobs.top_ids) == [0, 1, 2]
    assert choice.logprobs.top_logprobs == pytest.approx([-math.log(3)] * 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_gives_no_token_and_spoils_no_neighbour(bad, temperature):
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(3))
    logits[1, 7] = bad
    seqs = [make_sample(seed=i, temperature=temperature, logprobs=1, top_p=0.8) for i in range(3)]
    choices = sample(logits.clone(), seqs)
    assert (choices[1].token_id, choices[1].logprobs) == (None, None)
    for row in (0, 2):
        assert choices[row] == sample(logits[row : row + 1].clone(), [seqs[row]])[0]
        assert choices[row].token_id is not None


def test_a_row_that_its_penalties_make_infinite_gives_no_token_and_spoils_no_neighbour():
    broken = make_sample(prompt=[0, 1], temperature=1.0, repetition_penalty=1e-40)
    fine = make_sample(prompt=[0, 1], temperature=1.0)
    tokens = [choice.token_id for choice in sample(torch.full((2, 300), 5.0), [broken, fine])]
    assert tokens[0] is None
    assert tokens[1] is not None


def masked(tokens: list[int], vocab_size: int = 4) -> bytes:
    bits = sum(1 << token for token in tokens)
    return bits.to_bytes(-(-(vocab_size + 1) // 32) * 4, "little")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"logprobs": 2}, {"top_k": 3}, {"frequency_penalty": 0.1}], ids=str)
def test_what_a_mask_excludes_is_never_chosen(dtype, options):
    logits = torch.tensor([[9.0, -60000.0, 50.0, 1.0]]).to(dtype)
    for temperature in (0.0, 0.1, 100.0):
        for seed in range(20):
            wanted = make_sample(seed=seed, temperature=temperature, **options)
            choice = sample(logits.clone(), [msgspec.structs.replace(wanted, mask=masked([0, 3]))])[0]
            assert choice.token_id in ((0,) if temperature < 1 else (0, 3))


def test_a_mask_of_one_low_token_chooses_it_and_its_neighbours_are_free():
    logits = torch.tensor([[9.0, -60000.0, 50.0, 1.0]]).repeat(3, 1)
    wanted = [make_sample(seed=i, temperature=1.0) for i in range(3)]
    wanted[1] = msgspec.structs.replace(wanted[1], mask=masked([1]))
    assert [choice.token_id for choice in sample(logits, wanted)] == [2, 1, 2]


def test_draws_among_what_a_mask_allows_follow_the_softmax():
    logits = torch.tensor(PROBS).log()
    wanted = [make_sample(seed=seed * 7919) for seed in range(4000)]
    seqs = [msgspec.structs.replace(one, mask=masked([0, 2, 3])) for one in wanted]
    tokens = [choice.token_id for choice in sample(logits.repeat(4000, 1), seqs)]
    counts, expected = Counter(tokens), {0: 0.4 / 0.7, 2: 0.2 / 0.7, 3: 0.1 / 0.7}
    assert counts.keys() == expected.keys()
    assert sum((counts[i] - 4000 * p) ** 2 / (4000 * p) for i, p in expected.items()) < 13.8  # 2 degrees, p = 0.001


def test_what_is_barred_is_chosen_where_a_mask_leaves_nothing_else():
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    for barring in ({"min_tokens": 2, "stop_token_ids": (3,), "max_tokens": 5}, {"bad_words": ((3,),)}):
        wanted = make_sample(temperature=0.0, **barring)
        assert sample(logits, [msgspec.structs.replace(wanted, mask=masked([3]))])[0].token_id == 3
        assert sample(logits, [msgspec.structs.replace(wanted, mask=masked([0, 3]))])[0].token_id == 0
