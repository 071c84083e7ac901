"""From logits to token ids and logprobs, a whole step at once.

Greedy is argmax, exact. A random choice needs one uniform number a token, made from (seed, number of output tokens) by
a hash: it depends on nothing else in the batch, and a preempted sequence draws the same numbers again.

Order, as in vLLM: logprobs come from the model's own logits; then logit_bias, penalties, the mask (of a grammar, or of
allowed_token_ids), bad_words, min_tokens, temperature, top_k, top_p, min_p. Cost: O(rows * vocab), with a partial sort
only for the rows that ask for top_k, top_p or min_p.

Shapes: R rows (one for each sequence that samples), V vocab, K candidates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch

from engine.protocol import TokenLogprobs
from engine.step import Sample, SampledToken
from kernels.draw.torch_ops import draw as torch_draw
from kernels.draw.torch_ops import inverse_cdf

T = TypeVar("T")
Draw = Callable[[torch.Tensor, list[float], list[float]], list[int]]

_CANDIDATES = 1024  # likeliest tokens that top_p and min_p look among before falling back to all
_EXCLUDED = -1e30  # the logit of what a mask excludes: finite, as draw wants it; float16 has its lowest instead
_GREEDY_TEMPERATURE = 1e-5  # below this, division would overflow and argmax is what it tends to


def sample(logits_RV: torch.Tensor, samples: list[Sample], draw: Draw = torch_draw) -> list[SampledToken]:
    """Choose each sequence's next token, one a row; token_id is None where the row's logits are not finite.

    The logits of rows that have a mask are changed. `draw` is kernels.draw, for the rows that ask for nothing but a
    temperature.
    """
    plain = [i for i, sample in enumerate(samples) if _is_plain(sample)]
    if len(plain) == len(samples):
        return _draw_plain(logits_RV, samples, draw)
    result: list[SampledToken] = [SampledToken(None)] * len(samples)
    others = sorted(set(range(len(samples))).difference(plain))
    for rows, choose in ((plain, functools.partial(_draw_plain, draw=draw)), (others, _sample_adjusted)):
        if rows:
            _put(result, rows, choose(logits_RV[rows], [samples[i] for i in rows]))
    return result


def _put(result: list[T], rows: list[int], values: Iterable[T]) -> None:
    for i, value in zip(rows, values, strict=True):
        result[i] = value


def _is_plain(sample: Sample) -> bool:
    """Whether a sequence's token follows from its logits, a mask and a temperature, without a report."""
    params = sample.params
    return not (
        params.logprobs is not None
        or params.logit_bias
        or params.reads_tokens
        or _filters(sample)
        or sample.num_output_tokens < params.min_tokens
    )


def _draw_plain(logits_RV: torch.Tensor, samples: list[Sample], draw: Draw) -> list[SampledToken]:
    temperatures = [sample.params.temperature for sample in samples]
    temperatures = [value if value >= _GREEDY_TEMPERATURE else 0.0 for value in temperatures]
    uniforms = [uniform(sample.seed, sample.num_output_tokens) for sample in samples]
    lowest = max(_EXCLUDED, torch.finfo(logits_RV.dtype).min)
    tokens = draw(_masked(logits_RV, samples, lowest), temperatures, uniforms)
    return [SampledToken(token if token >= 0 else None) for token in tokens]


def _masked(logits_RV: torch.Tensor, samples: list[Sample], excluded: float) -> torch.Tensor:
    """The logits, in place, with `excluded` for tokens that a mask does not allow."""
    rows = [i for i, sample in enumerate(samples) if sample.mask is not None]
    if not rows:
        return logits_RV
    allowed = np.empty((len(rows), logits_RV.shape[1]), np.uint8)
    for allowed_V, i in zip(allowed, rows, strict=True):
        bits = np.frombuffer(samples[i].mask or b"", np.uint8)
        allowed_V[:] = np.unpackbits(bits, count=len(allowed_V), bitorder="little")
    # Arithmetic on whole rows takes a fifth of masked_fill's time: from 1 and 0 to -excluded and excluded.
    limits = torch.from_numpy(allowed).to(logits_RV.device, logits_RV.dtype).mul_(2).sub_(1).mul_(-excluded)
    for i, limits_V in zip(rows, limits, strict=True):
        torch.minimum(logits_RV[i], limits_V, out=logits_RV[i])
    return logits_RV


def _sample_adjusted(logits_RV: torch.Tensor, samples: list[Sample]) -> list[SampledToken]:
    logits_RV = logits_RV.float()  # a copy: the rows were picked out
    finite = logits_RV.sum(-1).isfinite().tolist()
    reported = [i for i, sample in enumerate(samples) if sample.params.logprobs is not None and finite[i]]
    logprobs_RV = logits_RV[reported].log_softmax(-1) if reported else None

    for row_V, sample in zip(logits_RV, samples, strict=True):
        _adjust(row_V, sample)
    logits_RV = _masked(logits_RV, samples, float("-inf"))
    for row_V, sample in zip(logits_RV, samples, strict=True):
        _bar(row_V, sample)
    finite = [good and top for good, top in zip(finite, logits_RV.amax(-1).isfinite().tolist(), strict=True)]
    chosen = logits_RV.argmax(-1).tolist()
    drawn = [i for i, sample in enumerate(samples) if sample.params.temperature >= _GREEDY_TEMPERATURE and finite[i]]
    if drawn:
        _put(chosen, drawn, _draw(logits_RV[drawn], [samples[i] for i in drawn]))

    result = [SampledToken(token_id if finite[i] else None) for i, token_id in enumerate(chosen)]
    if logprobs_RV is not None:
        counts = [samples[i].params.logprobs or 0 for i in reported]
        for i, report in zip(reported, top_logprobs(logprobs_RV, [chosen[i] for i in reported], counts), strict=True):
            result[i] = SampledToken(chosen[i], report)
    return result


def top_logprobs(logprobs_RV: torch.Tensor, token_ids: list[int], counts: list[int]) -> list[TokenLogprobs]:
    """Report, for each row, one token's logprob and the likeliest tokens' (`counts` says how many)."""
    chosen_R1 = logprobs_RV.gather(1, torch.tensor(token_ids, device=logprobs_RV.device)[:, None])
    ranks, chosen = (1 + (logprobs_RV > chosen_R1).sum(-1)).tolist(), chosen_R1[:, 0].tolist()
    top = logprobs_RV.topk(min(max(counts), logprobs_RV.shape[1]), dim=-1)
    values, ids = top.values.tolist(), top.indices.tolist()
    return [
        TokenLogprobs(logprob, ids[i][:count], values[i][:count], ranks[i])
        for i, (logprob, count) in enumerate(zip(chosen, counts, strict=True))
    ]


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1), the index-th of a seed's stream (SplitMix64, Steele et al. 2014)."""
    mask = (1 << 64) - 1
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return float((z ^ (z >> 31)) >> 11) / (1 << 53)


def _adjust(row_V: torch.Tensor, sample: Sample) -> None:
    """Apply all that changes logits to one row, in place; free for a sequence that asks for none."""
    params = sample.params
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=row_V.device)
        row_V[ids] += torch.tensor(list(params.logit_bias.values()), device=row_V.device)
    if not params.has_penalties:
        return
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted({*sample.prompt_token_ids, *sample.output_token_ids}), device=row_V.device)
        values = row_V[seen]
        row_V[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    output = torch.tensor(sample.output_token_ids, dtype=torch.int64, device=row_V.device)
    ids, counts = output.unique(return_counts=True)
    row_V[ids] -= counts * params.frequency_penalty + params.presence_penalty


def _bar(row_V: torch.Tensor, sample: Sample) -> None:
    """Exclude what bad_words and min_tokens bar, in place, unless nothing else is left."""
    if not (barred := _barred(sample)):
        return
    values = row_V[barred]
    row_V[barred] = float("-inf")
    if row_V.amax() == float("-inf"):
        row_V[barred] = values


def _barred(sample: Sample) -> list[int]:
    """The tokens that would end a bad word, or the sequence before min_tokens."""
    params, output = sample.params, sample.output_token_ids
    barred = {word[-1] for word in params.bad_words if output[len(output) - len(word) + 1 :] == word[:-1]}
    if sample.num_output_tokens < params.min_tokens:
        barred |= sample.stop_token_ids
    return list(barred)


def _draw(logits_RV: torch.Tensor, samples: list[Sample]) -> list[int]:
    """One random token a row."""
    temperatures = torch.tensor([sample.params.temperature for sample in samples], device=logits_RV.device)
    tops_R1 = logits_RV.amax(-1, keepdim=True)  # taken off first, so that a small temperature makes no infinity
    probs_RV = ((logits_RV - tops_R1) / temperatures[:, None]).softmax(-1)
    uniforms = [uniform(sample.seed, sample.num_output_tokens) for sample in samples]
    u_R1 = torch.tensor(uniforms, dtype=torch.float64, device=logits_RV.device)[:, None]
    filtered = [i for i, sample in enumerate(samples) if _filters(sample)]
    plain = [i for i in range(len(samples)) if i not in filtered]
    tokens = [0] * len(samples)
    if plain:
        _put(tokens, plain, inverse_cdf(probs_RV[plain], u_R1[plain]).tolist())
    if filtered:
        probs_RK, ids_RK = _candidates(probs_RV[filtered], [samples[i] for i in filtered])
        picks = inverse_cdf(probs_RK, u_R1[filtered])
        _put(tokens, filtered, ids_RK.gather(1, picks[:, None])[:, 0].tolist())
    return tokens


def _filters(sample: Sample) -> bool:
    return sample.params.top_k > 0 or sample.params.top_p < 1 or sample.params.min_p > 0


def _candidates(probs_RV: torch.Tensor, samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tokens' probabilities, sorted, 0 where top_k, top_p or min_p exclude them; and their ids."""
    device, vocab_size = probs_RV.device, probs_RV.shape[1]
    params = [sample.params for sample in samples]
    top_k = torch.tensor([min(p.top_k or vocab_size, vocab_size) for p in params], device=device)[:, None]
    top_p = torch.tensor([max(p.top_p, 1e-9) for p in params], dtype=torch.float64, device=device)[:, None]
    min_p = torch.tensor([p.min_p for p in params], device=device)[:, None]
    for num_candidates in (min(_CANDIDATES, vocab_size), vocab_size):
        probs_RK, ids_RK = probs_RV.topk(num_candidates, dim=-1)
        kept = probs_RK * (torch.arange(num_candidates, device=device) < top_k)
        cumulative = kept.double().cumsum(-1)
        # top_p is of the mass that top_k leaves: all of it is here, or top_k leaves everything, which sums to 1. A row
        # is decided if that mass is known and nothing beyond the candidates can be kept.
        has_all = top_k <= num_candidates
        total = torch.where(has_all, cumulative[:, -1:], 1.0)
        kept = kept * (cumulative - kept < top_p * total) * (probs_RK >= min_p * probs_RK[:, :1])
        if bool((has_all[:, 0] | ((top_k[:, 0] == vocab_size) & (kept[:, -1] == 0))).all()):
            break
    return kept, ids_RK
