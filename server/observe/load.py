"""How busy the server is right now: for GET /load, and for the line that is logged while there is work.

Rates are of the last ten seconds at most, from samples that are taken every second and when somebody asks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.protocol import EngineStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.engine_client import EngineClient
    from server.observe.metrics import Metrics

logger = logging.getLogger(__name__)

_WINDOW = 10.0  # seconds
_TICK = 1.0  # seconds between samples that nobody asked for
_SPACING = 0.5  # seconds between samples at least


@dataclass(frozen=True)
class Sample:
    """What was counted until a moment: tokens of prompts that started, those of them that were cached, and outputs."""

    time: float
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int

    def rates_since(self, before: Sample) -> dict[str, float | None]:
        """Tokens per second, and the share of prompt tokens that the prefix cache had; None without prompts."""
        seconds = max(self.time - before.time, 1e-3)
        prompt, cached = self.prompt_tokens - before.prompt_tokens, self.cached_tokens - before.cached_tokens
        return {  # an engine that was started again counts from 0
            "prompt_tokens_per_second": max(0, prompt) / seconds,
            "generation_tokens_per_second": (self.generated_tokens - before.generated_tokens) / seconds,
            "prefix_cache_hit_rate": max(0, cached) / prompt if prompt > 0 else None,
        }


class Load:
    """Reads the engine's latest stats and the server's counters."""

    def __init__(self, client: EngineClient, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._metrics, self._clock = client, metrics, clock
        self._samples: deque[Sample] = deque()

    def sample(self) -> Sample:
        """Count now."""
        stats = self._stats()
        generated = self._metrics.requests.num_generated
        return Sample(self._clock(), stats.num_prompt_tokens, stats.num_cached_tokens, generated)

    def snapshot(self) -> dict[str, Any]:
        """Return the answer to GET /load."""
        now, stats, info = self._remember(), self._stats(), self._client.info
        rates = now.rates_since(self._samples[0])
        return {
            "running": stats.num_running,
            "waiting": stats.num_waiting,
            "max_batch_size": info.max_batch_size if info else None,
            "max_model_len": info.max_seq_len if info else None,
            "kv_cache_usage": round(stats.kv_cache_usage_ratio, 4),
            **{name: None if rate is None else round(rate, 3) for name, rate in rates.items()},
        }

    async def watch(self, interval: float) -> None:
        """Take samples, and log a line every `interval` seconds in which there was work, until cancelled; 0: none."""
        before = self.sample()
        while True:
            await asyncio.sleep(min(interval or _TICK, _TICK))
            now = self._remember()
            if interval and now.time - before.time >= 0.99 * interval:
                if line := self.line(before, now):
                    logger.info(line)
                before = now

    def line(self, before: Sample, now: Sample) -> str | None:
        """Return the line for the time between two samples; None if there was no work."""
        stats, rates = self._stats(), now.rates_since(before)
        is_idle = not stats.num_running and not stats.num_waiting
        if is_idle and (now.prompt_tokens, now.generated_tokens) == (before.prompt_tokens, before.generated_tokens):
            return None
        hit_rate = rates["prefix_cache_hit_rate"]
        hits = "-" if hit_rate is None else f"{hit_rate:.0%}"
        return (
            f"running {stats.num_running}, waiting {stats.num_waiting}; "
            f"tokens/s: {rates['prompt_tokens_per_second']:.0f} in, {rates['generation_tokens_per_second']:.0f} out; "
            f"KV cache {stats.kv_cache_usage_ratio:.1%} in use, prefix cache hits {hits}"
        )

    def _remember(self) -> Sample:
        """Count now, and keep the count for rates."""
        now, samples = self.sample(), self._samples
        if not samples or now.time - samples[-1].time >= _SPACING:
            samples.append(now)
        while len(samples) > 2 and now.time - samples[1].time >= _WINDOW:
            samples.popleft()
        return now

    def _stats(self) -> EngineStats:
        return self._client.stats or EngineStats(0, 0, 0, num_blocks=1)
