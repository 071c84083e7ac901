"""Latency per token of a served model: one request at a time, as a user waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.commands.bench_targets import Load, RemoteTarget, summarise

if TYPE_CHECKING:
    from training.evaluation.served import Served

_REQUESTS, _INPUT, _OUTPUT = 4, 128, 64  # how many, and how long where the context holds it


def measure(served: Served) -> dict[str, Any]:
    """Return median milliseconds from token to token, and to the first token.

    Raises:
        DeepseekServeError: the server refuses a request, or breaks off.
    """
    target = RemoteTarget(served.url, served.api_key, served.model)
    length = served.max_length // 8  # a word may be several tokens
    load = Load(1, _REQUESTS, min(_INPUT, length), min(_OUTPUT, length), seed=0)
    target.run(Load(1, 1, load.input_len, 4, seed=1), lambda: None)  # to be warm
    figures = summarise(*target.run(load, lambda: None))
    return {"milliseconds": figures["tpot_ms_p50"], "ttft_milliseconds": figures["ttft_ms_p50"], "requests": _REQUESTS}
