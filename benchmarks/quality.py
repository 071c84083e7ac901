"""The quality of a quantised model: perplexity, KL divergence and greedy agreement with the unquantised model.

python -m benchmarks.quality --model FOLDER int8=FOLDER,quantization=int8 static=FOLDER-STATIC

A variant is NAME=MODEL[,OPTION=VALUE...] with options of EngineConfig. The baseline is --model. All variants run in the
engine, as prompts with logprobs. The text is Python's own help (pydoc_data); `deepseek-serve quantize` calibrates on
other topics of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.build import load_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.loading.resolve import resolve_model
from engine.protocol import GenerateRequest, SamplingParams, SchedulingParams
from engine.quantization.calibration_text import builtin_text
from server.text.tokenizer import Tokenizer


@dataclass
class Outcome:
    """Log-probabilities [tokens, vocab] at every prompt position, and greedy continuations."""

    logprobs: torch.Tensor
    greedy: list[list[int]]


def main() -> None:
    """Measure all variants; print a table on stderr and a JSON line for each variant on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="the baseline, as deepseek-serve --model")
    parser.add_argument("--text", type=Path, help="held-out text instead of the built-in one")
    parser.add_argument("--tokens", type=int, default=4096, help="length of the text in tokens (default: %(default)s)")
    parser.add_argument("--context", type=int, default=512, help="tokens of one prompt (default: %(default)s)")
    parser.add_argument(
        "--output-len", type=int, default=32, help="greedy tokens after each prompt (default: %(default)s)"
    )
    parser.add_argument("variants", nargs="*", metavar="NAME=MODEL[,OPTION=VALUE...]")
    args = parser.parse_args()

    text = args.text.read_text(encoding="utf-8") if args.text else builtin_text(held_out=True)
    ids = Tokenizer.load(resolve_model(args.model)).encode(text)[: args.tokens]
    prompts = [ids[first : first + args.context] for first in range(0, len(ids), args.context)]
    prompts = [prompt for prompt in prompts if len(prompt) > 1]
    baseline = None
    sys.stderr.write("variant                perplexity   change   mean KL   argmax   greedy   tokens\n")
    for name, options in [("baseline", {"model": args.model}), *map(_variant, args.variants)]:
        started = time.monotonic()
        outcome = _run(options, prompts, args.output_len)
        baseline = baseline or outcome
        report = {"variant": name, **options, **_compare(outcome, baseline, prompts)}
        report["seconds"] = round(time.monotonic() - started, 1)
        sys.stderr.write(
            f"{name:20} {report['perplexity']:12.3f} {report['perplexity_change']:+8.2%} {report['mean_kl']:9.5f} "
            f"{report['argmax_agreement']:8.1%} {report['greedy_agreement']:8.1%} {report['tokens']:8}\n"
        )
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


def _variant(text: str) -> tuple[str, dict[str, Any]]:
    name, _, rest = text.partition("=")
    model, *options = rest.split(",")
    return name, {"model": model or None, **dict(option.split("=", 1) for option in options)}


def _run(options: dict[str, Any], prompts: list[list[int]], output_len: int) -> Outcome:
    gc.collect()
    longest = max(map(len, prompts)) + output_len + 1
    engine = load_engine(
        EngineConfig(**{"prefix_caching": "off", "max_seq_len": longest, "max_batch_size": 8, **options})
    )
    recorded = _record_logprobs(engine)
    # One prompt at a time, so that positions are in order.
    for number, prompt in enumerate(prompts):
        engine.add(_request(f"score {number}", prompt, 1, prompt_logprobs=0))
        while engine.has_work:
            engine.step()
        recorded.pop()  # the position after the prompt
    logprobs = torch.cat(recorded)
    recorded.clear()
    greedy: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        engine.add(_request(f"continue {number}", prompt, output_len))
    while engine.has_work:
        for output in engine.step().outputs:
            greedy.setdefault(output.request_id, []).extend(output.token_ids)
        recorded.clear()
    return Outcome(logprobs, [greedy[f"continue {number}"] for number in range(len(prompts))])


def _request(name: str, prompt: list[int], max_tokens: int, **sampling: Any) -> GenerateRequest:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **sampling)
    return GenerateRequest(name, prompt, params, 1, SchedulingParams(time.monotonic()))


def _record_logprobs(engine: Engine) -> list[torch.Tensor]:
    """A list that gets the log-probabilities [rows, vocab] of every later call of Decoder.logits."""
    decoder, recorded = engine.executor.runner.model, []
    compute = decoder.logits

    def logits(hidden_RH: torch.Tensor) -> torch.Tensor:
        computed = compute(hidden_RH)
        recorded.append(computed.log_softmax(-1))
        return computed

    decoder.logits = logits  # type: ignore[method-assign]
    return recorded


def _compare(outcome: Outcome, baseline: Outcome, prompts: list[list[int]]) -> dict[str, Any]:
    following = torch.tensor([token for prompt in prompts for token in prompt[1:]])
    losses = [run.logprobs.gather(1, following[:, None]).mean().neg().item() for run in (outcome, baseline)]
    divergence = 0.0
    for mine, theirs in zip(outcome.logprobs.split(256), baseline.logprobs.split(256), strict=True):
        divergence += (theirs.exp() * (theirs - mine)).sum().item()
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


def _common(mine: list[int], theirs: list[int]) -> int:
    """Number of equal tokens at the start."""
    return next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), len(theirs))


if __name__ == "__main__":
    main()
