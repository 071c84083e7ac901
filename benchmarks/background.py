"""What batches cost live requests and what they get, on a simulated clock: python -m benchmarks.background.

Live requests arrive at random (lognormal lengths); 48 lines of a batch are always in flight. Steps take `base`, so much
for each decode and for each prompt token: a machine that computes (a CPU with SmolLM2) and one that waits for its
memory (a GPU with a large model), on which more decodes cost next to nothing.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field

from engine.dynamic_batcher import DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.protocol import SamplingParams, SchedulingParams, SequenceOutput
from engine.sequence import Sequence
from engine.step import SampledToken, StepResult

MACHINES = {"compute": (0.012, 0.0006, 0.0012), "memory": (0.020, 0.00005, 0.00002)}  # seconds
LINES_IN_FLIGHT, LINE_TOKENS = 48, 100


@dataclass
class Load:
    """One run: live requests at a rate, and lines beneath them or none."""

    rate: float
    costs: tuple[float, float, float]
    share: float
    has_lines: bool
    seconds: float
    now: float = 0.0
    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    num_line_tokens: int = 0

    def run(self) -> Load:
        """Play the load to its end."""
        self._random, self._noise = random.Random(1), random.Random(2)  # the live load is the same in each run
        self._latest = dict[str, tuple[float, bool]]()
        self._batcher = DynamicBatcher(KVCacheManager(8000, 16), 32, 512, background_share=self.share)
        self._num_added, arrival = 0, self._random.expovariate(self.rate)
        for _ in range(LINES_IN_FLIGHT * self.has_lines):
            self._add("line", LINE_TOKENS, LINE_TOKENS)
        while self.now < self.seconds:
            while arrival <= self.now:
                self._latest[self._add("live", self._length(), self._length(), arrival)] = arrival, False
                arrival += self._random.expovariate(self.rate)
            if self._batcher.has_work:
                self._step()
            else:
                self.now = arrival
        return self

    def _length(self) -> int:
        return min(2000, int(self._random.lognormvariate(4.6, 0.6)) + 1)

    def _add(self, kind: str, num_prompt_tokens: int, max_tokens: int, arrival: float | None = None) -> str:
        name = f"{kind}-{self._num_added}"
        self._num_added += 1
        prompt = [self._noise.randrange(1000) for _ in range(num_prompt_tokens)]
        scheduling = SchedulingParams(self.now if arrival is None else arrival, background=kind == "line")
        sampling = SamplingParams(max_tokens=max_tokens)
        self._batcher.add(Sequence(name, prompt, len(prompt), sampling, scheduling))
        return name

    def _step(self) -> None:
        plan = self._batcher.schedule(self.now)
        base, per_decode, per_token = self.costs
        seconds = base + per_decode * plan.num_decodes + per_token * plan.num_prompt_tokens
        seconds *= max(0.5, self._noise.gauss(1, 0.05))
        self.now += seconds
        self._batcher.observe(plan, seconds)
        sampled = [SampledToken(5) for item in plan.scheduled if item.sample is not None]
        for output in self._batcher.update(plan, StepResult(sampled)):
            self._take(output)

    def _take(self, output: SequenceOutput) -> None:
        if output.request_id not in self._latest:
            self.num_line_tokens += 1
            if output.finish_reason is not None:
                self._add("line", LINE_TOKENS, LINE_TOKENS)
            return
        before, has_begun = self._latest[output.request_id]
        (self.itl if has_begun else self.ttft).append(self.now - before)
        self._latest[output.request_id] = self.now, True


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="of simulated time, for each row")
    seconds = parser.parse_args().seconds
    print("machine  rate  share  TTFT p50  p99 (ms)  ITL mean   p99 (ms)  line tokens/s")
    for machine, costs in MACHINES.items():
        for rate in (0.1, 1.0, 3.0):
            for share, has_lines in ((0.1, False), (0.0, True), (0.1, True), (0.3, True)):
                load = Load(rate, costs, share, has_lines, seconds).run()
                ttft, itl = sorted(load.ttft), sorted(load.itl)
                times = (
                    ttft[len(ttft) // 2],
                    ttft[len(ttft) * 99 // 100],
                    sum(itl) / len(itl),
                    itl[len(itl) * 99 // 100],
                )
                figures = "  ".join(f"{1000 * value:8.1f}" for value in times)
                name = f"{share:5.1f}" if has_lines else "none "
                print(f"{machine:7}  {rate:4.1f}  {name}  {figures}  {load.num_line_tokens / load.seconds:13.0f}")


if __name__ == "__main__":
    main()
