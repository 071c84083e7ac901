"""The times and token counts of one request to the engine, told to the metrics, the access log and the trace."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.http.request_record import current

if TYPE_CHECKING:
    from server.observe.metrics import Metrics
    from server.observe.request_metrics import ApiTask


class RequestTimer:
    """Reports one request's times and token counts as they happen; of what runs in the background, its tokens only."""

    def __init__(
        self,
        metrics: Metrics,
        arrival_time: float,
        num_prompt_tokens: int,
        key_name: str = "none",
        *,
        is_background: bool = False,
        task: ApiTask = "generate",
    ) -> None:
        self._task, self._times, self._counts = task, metrics.times, metrics.requests
        self._arrival_time, self._is_background = arrival_time, is_background
        self._choices: dict[int, ChoiceTimes] = {}
        self._num_tokens, self._num_prompt_tokens = 0, num_prompt_tokens
        self._submitted = time.monotonic()
        self._counts.count_begun(task, key_name, num_prompt_tokens)
        self._generated_of_key = self._counts.generated_of(key_name)
        if (record := current()) is not None:
            record.prompt_tokens += num_prompt_tokens

    def tokens(self, choice: int, num_tokens: int, queue_time: float | None) -> None:
        """Record a step's new tokens of one choice."""
        if not self._is_background:
            self._observe(choice, num_tokens, queue_time)
        self._num_tokens += num_tokens
        self._counts.count_generated(num_tokens, self._generated_of_key)

    def _observe(self, choice: int, num_tokens: int, queue_time: float | None) -> None:
        if (times := self._choices.get(choice)) is None:
            times = self._choices[choice] = ChoiceTimes()
        if queue_time is not None:
            times.started = self._arrival_time + queue_time
            self._times.queue_time.observe(queue_time)
        if num_tokens == 0:
            return
        now, num_gaps = time.monotonic(), num_tokens
        if times.num_tokens == 0:
            times.first = times.last = now
            self._first_token(times)
            num_gaps -= 1
        for _ in range(num_gaps):
            self._times.inter_token_latency.observe((now - times.last) / num_tokens)
        times.last = now
        times.num_tokens += num_tokens

    def _first_token(self, times: ChoiceTimes) -> None:
        ttft = times.first - self._arrival_time
        self._times.time_to_first_token.observe(ttft)
        if times.started is not None:
            self._times.prefill_time.observe(max(0.0, times.first - times.started))
        if (record := current()) is not None and record.ttft is None:
            record.ttft = ttft

    def end(self) -> None:
        """Record the end of the request, whatever ended it."""
        if self._is_background:
            return
        now = time.monotonic()
        self._times.e2e_latency.observe(now - self._arrival_time)
        self._times.prompt_tokens.observe(self._num_prompt_tokens)
        if self._task == "generate":
            self._times.generation_tokens.observe(self._num_tokens)
        for times in self._choices.values():
            if times.num_tokens and times.started is not None:
                self._times.inference_time.observe(times.last - times.started)
            if times.num_tokens > 1:
                self._times.decode_time.observe(times.last - times.first)
                self._times.time_per_output_token.observe((times.last - times.first) / (times.num_tokens - 1))
        if (record := current()) is not None:
            record.output_tokens += self._num_tokens
            if record.trace is not None:
                record.trace.add_times(self._arrival_time, self._submitted, now, self._choices.values())


@dataclass(slots=True)
class ChoiceTimes:
    """When one choice's first step began, and when its first token and its latest came."""

    started: float | None = None
    first: float = 0.0
    last: float = 0.0
    num_tokens: int = 0
