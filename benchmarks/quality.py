"""The quality of a quantised model on several kinds of text: perplexity, KL divergence and greedy agreement.

python -m benchmarks.quality --model FOLDER int8=FOLDER,quantization=int8 static=FOLDER-STATIC

A variant is NAME=MODEL[,OPTION=VALUE...] with options of EngineConfig. The baseline is --model. All variants run in the
engine, as prompts with logprobs. The kinds of text are those of benchmarks.held_out_text and "chat": answers of the
baseline itself, sampled with fixed seeds. With --text, files take their place.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import held_out_text
from engine.build import load_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.loading.resolve import resolve_model
from engine.protocol import GenerateRequest, SamplingParams, SchedulingParams
from server.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHAT = "chat"
_CHAT_TOKENS = 160  # of one answer
_ROWS = 256  # positions compared at a time


@dataclass
class Outcome:
    """Log-probabilities [tokens, vocab] at every prompt position, in fp16, and greedy continuations."""

    logprobs: torch.Tensor
    greedy: list[list[int]]


def main() -> None:
    """Measure all variants; print a table on stderr and a JSON line for each variant on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="the baseline, as deepseek-serve --model")
    every = ",".join((*held_out_text.KINDS, _CHAT))
    parser.add_argument("--kinds", default=every, help="kinds of text, with commas (default: %(default)s)")
    parser.add_argument("--text", type=Path, action="append", help="a file of held-out text; may be repeated")
    parser.add_argument("--tokens", type=int, default=4096, help="of each kind (default: %(default)s)")
    parser.add_argument("--context", type=int, default=512, help="tokens of one prompt (default: %(default)s)")
    parser.add_argument(
        "--output-len", type=int, default=32, help="greedy tokens after each prompt (default: %(default)s)"
    )
    parser.add_argument("variants", nargs="*", metavar="NAME=MODEL[,OPTION=VALUE...]")
    args = parser.parse_args()
    if unknown := sorted({*args.kinds.split(",")} - {*every.split(",")}):
        parser.error(f"--kinds has {', '.join(unknown)}; valid are {every}")

    prompts = _read_prompts(args)
    baseline = dict(_run({"model": args.model}, prompts, args))
    names = list(prompts)
    sys.stderr.write(f"{'change of perplexity':24}" + "".join(f"{name[:10]:>11}" for name in names))
    sys.stderr.write("       mean       KL   argmax   greedy\n")
    for name, options in [("baseline", {"model": args.model}), *map(_variant, args.variants)]:
        started = time.monotonic()
        outcomes = baseline.items() if name == "baseline" else _run(options, prompts, args)
        kinds = {kind: _compare(outcome, baseline[kind], prompts[kind]) for kind, outcome in outcomes}
        mean = {key: sum(found[key] for found in kinds.values()) / len(kinds) for key in next(iter(kinds.values()))}
        report = {"variant": name, **options, "kinds": kinds, "mean": mean}
        report["seconds"] = round(time.monotonic() - started, 1)
        shown = ("perplexity", ".3f") if name == "baseline" else ("perplexity_change", "+.2%")
        sys.stderr.write(
            f"{name:24}"
            + "".join(f"{found[shown[0]]:{shown[1]}}".rjust(11) for found in [*kinds.values(), mean])
            + f"{mean['mean_kl']:9.5f} {mean['argmax_agreement']:8.1%} {mean['greedy_agreement']:8.1%}\n"
        )
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


def _read_prompts(args: argparse.Namespace) -> dict[str, list[list[int]]]:
    """The prompts of each kind of text that is here."""
    tokenizer = Tokenizer.load(resolve_model(args.model))
    if args.text:
        texts = {path.name: path.read_text(encoding="utf-8") for path in args.text}
    else:
        texts = {kind: held_out_text.read(kind) for kind in args.kinds.split(",") if kind != _CHAT}
    prompts: dict[str, list[list[int]]] = {}
    for kind, text in texts.items():
        if not text:
            sys.stderr.write(f"no text of the kind {kind} on this machine\n")
            continue
        ids = tokenizer.encode(text[: 16 * args.tokens])[: args.tokens]
        parts = [ids[first : first + args.context] for first in range(0, len(ids), args.context)]
        prompts[kind] = [part for part in parts if len(part) > 1]
    if not args.text and _CHAT in args.kinds.split(","):
        prompts[_CHAT] = _chats(tokenizer, args)
    return prompts


def _chats(tokenizer: Tokenizer, args: argparse.Namespace) -> list[list[int]]:
    """Questions with the baseline's answers."""
    prompts = []
    for question in held_out_text.questions(-(-args.tokens // _CHAT_TOKENS)):
        text = f"Question: {question}\nAnswer:"
        if tokenizer.chat_template is not None:
            messages = [{"role": "user", "content": question}]
            text = tokenizer.chat_template.render(messages, add_generation_prompt=True)
        prompts.append(tokenizer.encode(text))
    engine = _load({"model": args.model}, max(map(len, prompts)) + _CHAT_TOKENS)
    sampling = [SamplingParams(max_tokens=_CHAT_TOKENS, temperature=0.8, seed=seed) for seed in range(len(prompts))]
    answers = _generate(engine, prompts, sampling)
    return [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]


def _variant(text: str) -> tuple[str, dict[str, Any]]:
    name, _, rest = text.partition("=")
    model, *options = rest.split(",")
    return name, {"model": model or None, **dict(option.split("=", 1) for option in options)}


def _run(
    options: dict[str, Any], prompts: dict[str, list[list[int]]], args: argparse.Namespace
) -> Iterator[tuple[str, Outcome]]:
    """The outcome of each kind of text, one after another: 100 KB a token with a vocabulary of 49,152."""
    longest = max(len(prompt) for parts in prompts.values() for prompt in parts)
    engine = _load(options, longest + args.output_len)
    sampling = SamplingParams(max_tokens=args.output_len, temperature=0.0, ignore_eos=True)
    for kind, parts in prompts.items():
        yield kind, Outcome(_score(engine, parts), _generate(engine, parts, [sampling] * len(parts)))


def _load(options: dict[str, Any], longest: int) -> Engine:
    gc.collect()
    return load_engine(
        EngineConfig(**{"prefix_caching": "off", "max_seq_len": longest + 1, "max_batch_size": 8, **options})
    )


def _score(engine: Engine, prompts: list[list[int]]) -> torch.Tensor:
    """Log-probabilities of the tokens after the first of each prompt, one prompt at a time."""
    scored: list[torch.Tensor] = []
    with _recorded_logprobs(engine) as recorded:
        for number, prompt in enumerate(prompts):
            engine.add(_request(f"score {number}", prompt, SamplingParams(max_tokens=1, prompt_logprobs=0)))
            while engine.has_work:
                engine.step()
            recorded.pop()  # the position after the prompt
            scored.append(torch.cat(recorded).half())
            recorded.clear()
    return torch.cat(scored)


def _generate(engine: Engine, prompts: list[list[int]], sampling: list[SamplingParams]) -> list[list[int]]:
    for number, (prompt, params) in enumerate(zip(prompts, sampling, strict=True)):
        engine.add(_request(f"{number}", prompt, params))
    found: dict[str, list[int]] = {}
    while engine.has_work:
        for output in engine.step().outputs:
            found.setdefault(output.request_id, []).extend(output.token_ids)
    return [found[f"{number}"] for number in range(len(prompts))]


def _request(name: str, prompt: list[int], params: SamplingParams) -> GenerateRequest:
    return GenerateRequest(name, prompt, params, 1, SchedulingParams(time.monotonic()))


@contextlib.contextmanager
def _recorded_logprobs(engine: Engine) -> Iterator[list[torch.Tensor]]:
    """A list that gets the log-probabilities [rows, vocab] of every call of Decoder.logits meanwhile."""
    decoder, recorded = engine.executor.runner.model, list[torch.Tensor]()
    compute = decoder.logits

    def logits(hidden_RH: torch.Tensor) -> torch.Tensor:
        computed = compute(hidden_RH)
        recorded.append(computed.log_softmax(-1))
        return computed

    decoder.logits = logits  # type: ignore[method-assign]
    try:
        yield recorded
    finally:
        decoder.logits = compute  # type: ignore[method-assign]


def _compare(outcome: Outcome, baseline: Outcome, prompts: list[list[int]]) -> dict[str, float]:
    following = torch.tensor([token for prompt in prompts for token in prompt[1:]])
    losses = [_mean_loss(run.logprobs, following) for run in (outcome, baseline)]
    divergence = 0.0
    for mine, theirs in zip(outcome.logprobs.split(_ROWS), baseline.logprobs.split(_ROWS), strict=True):
        divergence += (theirs.float().exp() * (theirs.float() - mine.float())).sum().item()
    agree = (outcome.logprobs.argmax(-1) == baseline.logprobs.argmax(-1)).float().mean().item()
    same = [_common(mine, theirs) / len(theirs) for mine, theirs in zip(outcome.greedy, baseline.greedy, strict=True)]
    return {
        "perplexity": math.exp(losses[0]),
        "perplexity_change": math.exp(losses[0] - losses[1]) - 1,
        "mean_kl": divergence / len(following),
        "argmax_agreement": agree,
        "greedy_agreement": sum(same) / len(same),
        "tokens": len(following),
    }


def _mean_loss(logprobs: torch.Tensor, following: torch.Tensor) -> float:
    return -logprobs.gather(1, following[:, None]).double().mean().item()


def _common(mine: list[int], theirs: list[int]) -> int:
    """Number of equal tokens at the start."""
    return next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), len(theirs))


if __name__ == "__main__":
    main()
