"""For whoever runs the server: GET /health, /livez, /readyz, /startupz, /ping, /metrics, /load and /version."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel

from server.health import Health
from server.http.openapi import ANY_ERRORS, RETRY_AFTER, Error, Responses, media
from server.state import State

router = APIRouter(responses=ANY_ERRORS, tags=["Operations"])


class Status(BaseModel):
    """What the server is doing: starting, ready, restarting, stopped or draining."""

    status: str


class ProbeReport(Status):
    """The same, and what is at fault, if anything is."""

    problem: str | None = None


class StartupReport(Status):
    """How far the start is. `share` is of the phase, from 0 to 1, or null; seconds are of the phase, and in all."""

    phase: str
    share: float | None
    phase_seconds: float
    seconds: float


class LoadReport(Status):
    """How busy the server is; rates are of the last ten seconds at most."""

    model: str
    running: int
    waiting: int
    max_batch_size: int | None
    max_model_len: int | None
    kv_cache_usage: float
    prompt_tokens_per_second: float
    generation_tokens_per_second: float
    prefix_cache_hit_rate: float | None


class Version(BaseModel):
    """The version of this server."""

    version: str


_PROBE: Responses = {
    200: {"model": ProbeReport, "description": "Yes"},
    503: {"model": ProbeReport | Error, "description": "Not now", "headers": RETRY_AFTER},
}
_STARTUP_PROBE: Responses = {
    200: {"model": StartupReport, "description": "Yes"},
    503: {"model": StartupReport | Error, "description": "Not now", "headers": RETRY_AFTER},
}
_VERSION = version("deepseek-serve")


@router.post("/ping", responses=_PROBE, name="post_ping")
@router.head("/ping", include_in_schema=False)
@router.get("/ping", responses=_PROBE, name="ping")
@router.head("/health", include_in_schema=False)
@router.get("/health", responses=_PROBE, name="health")
@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses=_PROBE)
async def readyz(request: Request, server: State) -> Response:
    """200 when requests are taken, else 503; the body says what the server is doing, and what else is at fault."""
    problem = server.health.problem or request.app.state.batches.problem
    return _answer(server.health, server.health.is_ready, **({"problem": problem} if problem else {}))


@router.head("/livez", include_in_schema=False)
@router.get("/livez", responses=_PROBE)
async def livez(server: State) -> Response:
    """503 when only a restart of this process can help, else 200."""
    return _answer(server.health, server.health.is_live)


@router.head("/startupz", include_in_schema=False)
@router.get("/startupz", responses=_STARTUP_PROBE)
async def startupz(server: State) -> Response:
    """503 until the model was ready for the first time, then 200; the body says how far the start is."""
    return _answer(server.health, server.health.has_started, **server.health.startup.report())


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", responses=media("text/plain", "application/openmetrics-text"), response_class=Response)
async def metrics(request: Request, server: State) -> Response:
    """Prometheus text, or OpenMetrics where the header Accept asks for it."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    text = await server.metrics.write(encode, content_type)
    return Response(text, headers={"Content-Type": content_type})


@router.head("/load", include_in_schema=False)
@router.get("/load")
async def load(server: State) -> LoadReport:
    """What runs and waits, how full the KV cache is, and tokens per second of the last ten seconds."""
    return LoadReport(status=server.health.status, model=server.model_name, **server.load.snapshot())


@router.head("/version", include_in_schema=False)
@router.get("/version")
async def show_version() -> Version:
    """The version of this server."""
    return Version(version=_VERSION)


def _answer(health: Health, good: bool, **more: Any) -> Response:
    body = msgspec.json.encode({"status": health.status, **more})
    return Response(body, 200 if good else 503, None if good else {"Retry-After": "1"}, media_type="application/json")
