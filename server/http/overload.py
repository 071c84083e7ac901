"""Refuses what a full queue would refuse anyway, and what no engine could take, before its body is read.

Ten times the load is nine parts refusals: what one costs, the answers of admitted requests do not get. A request is
refused here if and only if one of a single prompt with a single token would be. What is larger is admission's to refuse
(server.admission), once the body says how large it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import EngineUnavailableError, OverloadedError
from server.http.errors import count_refusal, refused

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from server.state import ServerState

ADMITTING_PATHS = frozenset(  # whatever is POSTed there takes a place in the queue
    {
        *("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"),
        *("/v1/responses", "/v1/responses/input_tokens", "/v1/embeddings", "/v2/embed"),
        *("/v1/classify", "/classify", "/v1/score", "/score", "/v1/rerank", "/v2/rerank", "/rerank"),
        *("/v1/moderations", "/tokenize", "/detokenize"),
    }
)


class OverloadMiddleware:
    """Pure ASGI: nothing is buffered, and nothing is read of a request that is refused."""

    def __init__(self, app: ASGIApp, server: ServerState) -> None:
        self._app, self._server, self._moderator = app, server, server.moderator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in ADMITTING_PATHS:
            answers = self._moderator if scope["path"] == "/v1/moderations" else self._server
            try:
                if scope["path"] != "/detokenize":  # which needs no engine
                    answers.client.require_info()
                answers.admission.check(1, 1, scope["caller"].tenant)
            except (EngineUnavailableError, OverloadedError) as error:
                count_refusal(self._server.metrics, error)
                await refused(scope["path"], error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
