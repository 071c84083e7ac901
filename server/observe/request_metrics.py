"""Metrics of requests to the engine: how long they take, and how many of them and of their tokens there are.

server.observe.request_timer takes the times, as clients see them. Requests as HTTP has them are
server.observe.http_metrics'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from server.http.request_record import current

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

    from server.observe.families import Families

FAST = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1, 2.5, 5, 10,
)  # fmt: skip  # seconds of a step
_SLOW = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
ApiTask = Literal["generate", "embed", "classify"]  # what an API request can ask the engine for
_ENDS = ("stop", "length", "content_filter", "abort", "error", "timeout")
REFUSALS = (
    *("queue_full", "queue_timeout", "rate_limited", "draining", "unavailable", "unauthorized", "untrusted_host"),
    *("invalid", "content_filter", "too_large"),
)
LIMITS = ("running", "requests", "tokens")  # of a client (server.rate_limits)


class RequestTimes:
    """Histograms of times and sizes."""

    def __init__(self, make: Families) -> None:
        def seconds(name: str, text: str, buckets: tuple[float, ...] = _SLOW) -> Histogram:
            return make.histogram(f"{name}_seconds", text, buckets)

        self.time_to_first_token = seconds("time_to_first_token", "From arrival to the first token.")
        text = "Between a token and the one before it in its sequence: the latency per token."
        self.inter_token_latency = seconds("inter_token_latency", text, FAST)
        self.e2e_latency = seconds("e2e_request_latency", "From arrival to the end of the request.")
        self.queue_time = seconds("request_queue_time", "From arrival to the sequence's first step.")
        self.prefill_time = seconds("request_prefill_time", "A sequence's first step to its first token.")
        self.decode_time = seconds("request_decode_time", "A sequence's first token to its last.")
        self.inference_time = seconds("request_inference_time", "A sequence's first step to its last token.")
        text = "The same, for each token after the first."
        self.time_per_output_token = seconds("request_time_per_output_token", text, FAST)
        self.prompt_tokens = make.histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        text = "Tokens generated for a request."
        self.generation_tokens = make.histogram("request_generation_tokens", text, TOKENS)


class RequestCounts:
    """Counters of tokens, of ends and of refusals; those of API keys too.

    Attributes:
        num_generated: the counter of generated tokens as a number.
    """

    def __init__(self, make: Families) -> None:
        self.num_generated = 0
        self._prompt_tokens = make.counter("prompt_tokens", "Prompt tokens of all requests.")
        self._generation_tokens = make.counter("generation_tokens", "Tokens generated for all requests.")
        reasons = "stop, length, content_filter, abort (nobody waits any more), timeout, error"
        text = f"Sequences that ended, by reason: {reasons}."
        self._finished = make.counters("sequences_finished", text, "finished_reason", values=_ENDS)
        text = "Requests that were answered with an error and never started, by reason."
        self._refused = make.counters("requests_refused", text, "reason", values=REFUSALS)
        text = "Requests that were given to the engine, by task."
        self._tasks = make.counters("task_requests", text, "task", values=get_args(ApiTask))
        by_key = "by the name of the API key; none without keys."
        self._key_prompt_tokens = make.counters("key_prompt_tokens", f"Prompt tokens {by_key}", "key")
        self._key_generation_tokens = make.counters("key_generation_tokens", f"Tokens generated, {by_key}", "key")
        text = "Requests refused by a limit of their client: running, requests or tokens (a minute)."
        self._key_limited = make.counters("key_limited", text, "key", "limit")

    def add_key(self, key_name: str) -> None:
        """Have the series of a key from 0 on: rates leave out the first value of a series."""
        self._key_prompt_tokens(key_name)
        self._key_generation_tokens(key_name)
        for limit in LIMITS:
            self._key_limited(key_name, limit)

    def count_begun(self, task: ApiTask, key_name: str, num_prompt_tokens: int) -> None:
        """Count a request that is given to the engine."""
        self._tasks(task).inc()
        self._prompt_tokens.inc(num_prompt_tokens)
        self._key_prompt_tokens(key_name).inc(num_prompt_tokens)

    def generated_of(self, key_name: str) -> Counter:
        """The counter of one key's generated tokens, for `count_generated`: it is looked up once a request."""
        return self._key_generation_tokens(key_name)

    def count_generated(self, num_tokens: int, of_key: Counter) -> None:
        """Count tokens of one key's request."""
        self.num_generated += num_tokens
        self._generation_tokens.inc(num_tokens)
        of_key.inc(num_tokens)

    def count_finished(self, reason: str) -> None:
        """Count the end of a sequence."""
        if (record := current()) is not None:
            record.finish_reasons.add(reason)
        self._finished(reason).inc()

    def count_refused(self, reason: str) -> None:
        """Count a request that is refused, for one of `REFUSALS`."""
        self._refused(reason).inc()

    def count_limited(self, key_name: str, limit: str) -> None:
        """Count a request that one of `LIMITS` of its client refuses; `count_refused` counts it too."""
        self._key_limited(key_name, limit).inc()
