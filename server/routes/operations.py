"""GET /health and GET /metrics, for probes and Prometheus."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from server.state import State

router = APIRouter()


@router.get("/health")
async def health(server: State) -> Response:
    """200 when requests are taken, else 503; the body says what the engine is doing."""
    ready = server.client.info is not None
    body = msgspec.json.encode({"status": server.client.state})
    return Response(body, 200 if ready else 503, None if ready else {"Retry-After": "1"}, media_type="application/json")


@router.get("/metrics")
async def metrics(server: State) -> Response:
    """Prometheus text."""
    return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)
