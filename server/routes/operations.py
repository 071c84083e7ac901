"""GET /health, /livez, /readyz, /startupz and /metrics, for probes and Prometheus."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from server.health import Health
from server.state import State

router = APIRouter()


@router.head("/health", include_in_schema=False)
@router.get("/health")
@router.head("/readyz", include_in_schema=False)
@router.get("/readyz")
async def readyz(server: State) -> Response:
    """200 when requests are taken, else 503; the body says what the server is doing."""
    return _answer(server.health, server.health.is_ready)


@router.head("/livez", include_in_schema=False)
@router.get("/livez")
async def livez(server: State) -> Response:
    """503 when only a restart of this process can help, else 200."""
    return _answer(server.health, server.health.is_live)


@router.head("/startupz", include_in_schema=False)
@router.get("/startupz")
async def startupz(server: State) -> Response:
    """503 until the model was ready for the first time, then 200."""
    return _answer(server.health, server.health.has_started)


@router.get("/metrics")
async def metrics(server: State) -> Response:
    """Prometheus text."""
    return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _answer(health: Health, good: bool) -> Response:
    body = msgspec.json.encode({"status": health.status})
    return Response(body, 200 if good else 503, None if good else {"Retry-After": "1"}, media_type="application/json")
