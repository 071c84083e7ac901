"""What constrained streams cost their neighbours: the time between tokens of free streams beside them.

python -m benchmarks.grammar --free 8 --constrained 8

Steps of the engine alone, without HTTP, random prompts, greedy. The same batch is run by turns with and without a JSON
schema on some of its streams; a step's time is what every stream waits for its next token.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from engine.build import load_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.loading.resolve import resolve_model
from engine.protocol import GenerateRequest, SamplingParams, SchedulingParams
from server.commands.output import report
from server.grammar.lark import grammar_of, schema_expression
from server.text.tokenizer import Tokenizer

_ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "kind": {"enum": ["city", "river", "mountain"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
        "founded": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 4},
    },
    "required": ["name", "kind", "size", "founded", "tags"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": _ITEM, "minItems": 1000}  # so long that no stream ends by itself


def main() -> None:
    """Run by turns; print a summary on a terminal, and one JSON line into a pipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="as of deepseek-serve")
    parser.add_argument("--free", type=int, default=8, help="streams without a grammar (default: %(default)s)")
    parser.add_argument("--constrained", type=int, default=8, help="streams with one (default: %(default)s)")
    parser.add_argument("--output-len", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each kind")
    parser.add_argument("--json", action="store_true", help="print JSON on a terminal too")
    args = parser.parse_args()
    as_json = vars(args).pop("json")

    config = EngineConfig(model=args.model, max_batch_size=args.free + args.constrained)
    engine = load_engine(config)
    engine.grammars.learn(Tokenizer.load(resolve_model(args.model)).vocabulary())
    grammar = grammar_of(schema_expression(SCHEMA))
    started = time.monotonic()
    engine.grammars.check(grammar)
    compile_ms = (time.monotonic() - started) * 1000
    times: dict[str | None, list[float]] = {None: [], grammar: []}
    for seed in range(args.repeats):
        for kind in times:
            times[kind] += decode_steps(engine, args.free, args.constrained, kind, args.output_len, seed)
    free, guided = ([quantile * 1000 for quantile in statistics.quantiles(times[kind], n=10)] for kind in times)
    figures = {"free_ms": free[4], "constrained_ms": guided[4], "free_p10_ms": free[0], "constrained_p10_ms": guided[0]}
    result = {**vars(args), **figures, "first_ms": compile_ms}
    text = (
        f"{free[4]:.2f} ms between tokens without grammars, {guided[4]:.2f} ms with them on {args.constrained} of "
        f"{args.free + args.constrained} streams: {guided[4] / free[4]:.3f} times at the median, "
        f"{guided[0] / free[0]:.3f} in the fastest tenth, which other processes disturb least; "
        f"{compile_ms:.0f} ms to be ready for the first grammar\n"
    )
    report(text, result, as_json=as_json)


def decode_steps(
    engine: Engine, num_free: int, num_constrained: int, grammar: str | None, output_len: int, seed: int
) -> list[float]:
    """Run a batch; the seconds of its steps in which every stream got a token."""
    rng = random.Random(seed)
    for i in range(num_free + num_constrained):
        prompt = [rng.randrange(engine.info.vocab_size) for _ in range(32)]
        params = SamplingParams(
            max_tokens=output_len, temperature=0.0, ignore_eos=True, grammar=grammar if i < num_constrained else None
        )
        engine.add(GenerateRequest(f"{i}", prompt, params, 1, SchedulingParams(time.monotonic())))
    seconds = []
    while engine.has_work:
        started = time.monotonic()
        if len(engine.step().outputs) == num_free + num_constrained:
            seconds.append(time.monotonic() - started)
    return seconds


if __name__ == "__main__":
    main()
