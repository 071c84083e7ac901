"""For administrators, on --admin-port alone (server.http.gate): GET /debug/state."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response

from server.http.openapi import ANY_ERRORS, media
from server.observe.debug_state import MAX_SEQUENCES, as_text, debug_state
from server.state import State

router = APIRouter(responses=ANY_ERRORS, tags=["Operations"])
_Limit = Annotated[int, Query(ge=0, le=MAX_SEQUENCES)]


@router.get("/debug/state", responses=media("text/plain", "application/json"), response_class=Response)
async def show_state(request: Request, server: State, limit: _Limit = 100) -> Response:
    """Who runs and waits in the engine, and why; as text, or as JSON where the header Accept asks for it.

    `limit` is how many sequences of a kind are listed.
    """
    state: dict[str, Any] = await debug_state(server, request.app.state.batches, limit)
    if "application/json" in request.headers.get("accept", ""):
        return Response(msgspec.json.encode(state), media_type="application/json")
    return Response(as_text(state), media_type="text/plain")
