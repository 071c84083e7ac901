"""What `deepseek-serve bench` measures: an engine in this process, or a server at a URL, under the same closed loop."""

from __future__ import annotations

import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.build import load_engine
from engine.protocol import GenerateRequest, SamplingParams, SchedulingParams
from server.commands.remote import RemoteServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.config import EngineConfig

_WORDS = "the of and to in is that it for was on are as with they at be this from have or by one had not but what all"


@dataclass(frozen=True)
class Load:
    """A closed loop."""

    concurrency: int
    requests: int
    input_len: int
    output_len: int
    seed: int


@dataclass
class Answer:
    """When one request was sent, and when its first and last tokens came; time.perf_counter's seconds."""

    sent: float
    first: float = 0.0
    last: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0

    def take(self, num_tokens: int) -> None:
        """Count tokens that come now."""
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.output_tokens += num_tokens


class LocalTarget:
    """An engine alone, without HTTP and without text."""

    def __init__(self, config: EngineConfig) -> None:
        self._engine = load_engine(config)
        self.name = str(config.model or "smollm2-135m-instruct")

    def run(self, load: Load, on_end: Callable[[], object]) -> tuple[list[Answer], float]:
        """Send the load; the answers, and the seconds of all of it.

        Raises:
            RequestError: the context is too short for it.
        """
        rng, engine = random.Random(load.seed), self._engine  # noqa: S311  # no secret
        params = SamplingParams(max_tokens=load.output_len, temperature=0.0, ignore_eos=True)
        prompts = [rng.choices(range(engine.info.vocab_size), k=load.input_len) for _ in range(load.requests)]
        engine.info.check(prompts[0], params)
        answers: dict[str, Answer] = {}
        started = time.perf_counter()

        def send() -> None:
            answers[request_id := f"{len(answers)}"] = Answer(time.perf_counter(), prompt_tokens=load.input_len)
            prompt = prompts[len(answers) - 1]
            engine.add(GenerateRequest(request_id, prompt, params, 1, SchedulingParams(time.monotonic())))

        for _ in range(min(load.concurrency, load.requests)):
            send()
        while engine.has_work:
            for output in engine.step().outputs:
                answers[output.request_id].take(len(output.token_ids))
                if output.finish_reason is not None:
                    on_end()
                    if len(answers) < load.requests:
                        send()
        return list(answers.values()), time.perf_counter() - started


class RemoteTarget:
    """A server that speaks OpenAI's protocol; one thread for each request under way."""

    def __init__(self, url: str, api_key: str | None, model: str | None) -> None:
        self._server = RemoteServer(url, api_key)
        self.name = model or self._server.first_model()

    def run(self, load: Load, on_end: Callable[[], object]) -> tuple[list[Answer], float]:
        """Send the load; the answers, and the seconds of all of it.

        Raises:
            RequestError, EngineUnavailableError: the server refuses a request, or breaks off.
        """
        rng = random.Random(load.seed)  # noqa: S311  # no secret
        prompts = [" ".join(rng.choices(_WORDS.split(), k=load.input_len)) for _ in range(load.requests)]
        started = time.perf_counter()

        def ask(prompt: str) -> Answer:
            answer = self._ask(prompt, load.output_len)
            on_end()
            return answer

        with ThreadPoolExecutor(load.concurrency) as pool:
            try:
                answers = list(pool.map(ask, prompts))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return answers, time.perf_counter() - started

    def _ask(self, prompt: str, max_tokens: int) -> Answer:
        answer = Answer(time.perf_counter())
        body = {"model": self.name, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        for chunk in self._server.stream("/v1/completions", body):
            if any(choice.get("text") or choice.get("finish_reason") for choice in chunk.get("choices", ())):
                answer.take(1)
            if usage := chunk.get("usage"):
                answer.prompt_tokens, answer.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        return answer


def summarise(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """Return rates over the whole time, and percentiles of the latencies in milliseconds; None where there are none."""
    ttft = [1e3 * (answer.first - answer.sent) for answer in answers if answer.first]
    many = [answer for answer in answers if answer.output_tokens > 1]
    tpot = [1e3 * (answer.last - answer.first) / (answer.output_tokens - 1) for answer in many]
    return {
        "completed": len(answers),
        "seconds": seconds,
        "prompt_tokens_per_second": sum(answer.prompt_tokens for answer in answers) / seconds,
        "output_tokens_per_second": sum(answer.output_tokens for answer in answers) / seconds,
        **{f"ttft_ms_{name}": value for name, value in _percentiles(ttft).items()},
        **{f"tpot_ms_{name}": value for name, value in _percentiles(tpot).items()},
    }


def _percentiles(values: list[float]) -> dict[str, float | None]:
    if not values:
        return {"p50": None, "p99": None}
    return {"p50": statistics.median(values), "p99": sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]}
