"""The FastAPI app: routes and error handlers around one ServerState."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import Depends, FastAPI
from starlette.routing import Route

from engine.errors import ConfigError
from server.admission import Admission
from server.batches.runner import BatchRunner
from server.config import ServerConfig
from server.generation_config import read_defaults
from server.grammar.checker import GrammarChecker
from server.guard.guard import Guard
from server.guard.metrics import GuardMetrics
from server.guard.model import safety_of
from server.heads.defaults import read_embedding_defaults
from server.health import Health
from server.http import errors
from server.http.access import Access, AccessLog, AccessMiddleware
from server.http.api_keys import ApiKeys
from server.http.client_limits import ClientLimitsMiddleware
from server.http.cors import OtherSitesMiddleware, allow_origins, parse_origins
from server.http.gate import OPEN_PATHS, GateMiddleware
from server.http.hosts import TrustedHosts
from server.http.openapi import finish, operation_id
from server.http.overload import OverloadMiddleware
from server.http.proxies import ProxyMiddleware, TrustedProxies
from server.http.query import refuse_unknown
from server.large import LargeRequests
from server.observe.families import Families
from server.observe.load import Load
from server.observe.metrics import Metrics
from server.routes import (
    batches,
    chat,
    classes,
    completions,
    debug,
    embeddings,
    files,
    messages,
    models,
    moderations,
    operations,
    page,
    responses,
    scores,
    tokens,
)
from server.state import ServerState
from server.storage import Storage

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import ASGIApp

    from server.engine_client import EngineClient
    from server.guard.model import GuardModel
    from server.observe.tracing import Tracing
    from server.text.tokenizer import Tokenizer

_HEADS = (embeddings, classes, moderations, scores)
_API = (completions, chat, responses, messages, *_HEADS, tokens, files, batches, models)
_OTHERS = (operations, debug, page)  # probes and browsers may add to a query what is not meant for us

# FastAPI's own, of late, which has bodies in it, and so prompts; ours is server.observe.tracing.
_NO_TELEMETRY: Any = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)


class _App(FastAPI):
    """FastAPI with what is added around it: answers to other origins, also after a fault, and keys in the document."""

    def __init__(self, origins: list[str], *, needs_key: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self._origins, self._needs_key = origins, needs_key
        self._lock, self._document = threading.Lock(), b""

    def build_middleware_stack(self) -> ASGIApp:
        """Called by Starlette, once."""
        stack = super().build_middleware_stack()
        return allow_origins(stack, self._origins) if self._origins else stack

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, made once."""
        if self.openapi_schema is None:
            finish(super().openapi(), OPEN_PATHS, needs_key=self._needs_key)
        return super().openapi()

    def document(self) -> bytes:
        """Return the document as JSON. The first call takes a third of a second, so it is for a thread."""
        with self._lock:
            self._document = self._document or msgspec.json.encode(self.openapi())
        return self._document


def create_app(
    client: EngineClient,
    tokenizer: Tokenizer,
    model_name: str,
    model_root: Path,
    config: ServerConfig | None = None,
    keys: ApiKeys | None = None,
    health: Health | None = None,
    tracing: Tracing | None = None,
    guard: GuardModel | None = None,
) -> FastAPI:
    """Return an app that serves one model with these settings and keys. The caller runs the client, and the guard's.

    Raises:
        ConfigError, ModelError: --generation-config, or a file of the model that has defaults, is at fault.
    """
    config = config or ServerConfig()
    if config.guard is not None and guard is None:
        raise ConfigError("--guard is set, and nobody runs the guard's engine here")
    keys = keys or ApiKeys(limits=config.client_limits)
    app = _new_app(config, needs_key=keys.are_set)
    if tokenizer.chat_template is not None:
        tokenizer.chat_template.timeout = config.chat_template_timeout
    metrics = Metrics(model_name, client, config.metrics_compat)
    for name in keys.names:
        metrics.requests.add_key(name)
    app.state.large = LargeRequests(int(config.max_bodies_size * (1 << 20)))
    app.state.server = ServerState(
        client,
        health or Health(client, *([guard.client] if guard is not None else [])),
        tokenizer,
        metrics,
        model_name,
        model_root,
        config,
        Admission(config.max_queued_requests, config.max_queued_tokens),
        Storage(config),
        GrammarChecker(tokenizer, client, config.max_grammar_size, config.grammar_timeout),
        Load(client, metrics),
        tuple(name for name in config.model_names if name != model_name),
        sampling_defaults=read_defaults(config.generation_config, model_root),
        embedding_defaults=read_embedding_defaults(config.pooling, model_root),
        guard=None if guard is None else _guard(guard, config, metrics),
    )
    app.state.trimming = app.state.server.trimming
    app.state.routes = _include_routes(app)
    access = app.state.access = _access(app, config, tracing)
    app.state.batches = BatchRunner(app.state.server, lambda: _for_lines(app, metrics))
    _add_middleware(app, config, keys, access)
    errors.install(app, metrics)
    return app


def _new_app(config: ServerConfig, *, needs_key: bool) -> _App:
    """Without routes and state."""
    return _App(
        parse_origins(config.cors_origins),
        needs_key=needs_key,
        title="deepseek-serve",
        description="An OpenAI-compatible inference server.",
        openapi_url=None,  # server.routes.page has it, and the next
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=operation_id,
        redirect_slashes=False,  # a redirect would go to where the header Host says
        telemetry=_NO_TELEMETRY,
    )


def _guard(model: GuardModel, config: ServerConfig, metrics: Metrics) -> Guard:
    admission = Admission(config.max_queued_requests, config.max_queued_tokens)
    counts = GuardMetrics(Families(metrics.registry, model.name), model.client)
    return Guard(model, safety_of(config), config.guard_window, admission, counts)


def _access(app: FastAPI, config: ServerConfig, tracing: Tracing | None) -> Access:
    """What counts and logs the requests of the app's routes."""
    state: ServerState = app.state.server
    if tracing is not None:
        tracing.model_name = state.model_name
    access_log = AccessLog(is_on=config.access_log == "on")
    return Access(state.metrics.http, access_log, (route.path for route in app.state.routes), tracing)


def _add_middleware(app: FastAPI, config: ServerConfig, keys: ApiKeys, access: Access) -> None:
    """Put the layers around the routes, from the innermost to the outermost."""
    metrics, origins = app.state.server.metrics, parse_origins(config.cors_origins)
    app.add_middleware(OverloadMiddleware, server=app.state.server)
    app.add_middleware(ClientLimitsMiddleware, metrics=metrics, max_connections=config.max_client_connections)
    app.add_middleware(
        GateMiddleware,
        keys=keys,
        metrics=metrics,
        hosts=TrustedHosts.resolve(config.trusted_hosts, config.host, has_keys=keys.are_set),
        admin_hosts=TrustedHosts.resolve(config.trusted_hosts, config.admin_host, has_keys=False),
        admin_port=config.admin_port,
    )
    if "*" not in origins:
        app.add_middleware(OtherSitesMiddleware, origins=origins, metrics=metrics)
    app.add_middleware(AccessMiddleware, access=access)  # which sees what the others refuse
    if proxies := TrustedProxies.parse(config.trusted_proxies):
        app.add_middleware(ProxyMiddleware, proxies=proxies)


def _include_routes(app: FastAPI) -> list[Route]:
    """Give the app all routes, and return them."""
    for module in _API:
        app.include_router(module.router, dependencies=[Depends(refuse_unknown)])
    for module in _OTHERS:
        app.include_router(module.router)
    routers = [module.router for module in (*_API, *_OTHERS)]
    return [route for router in routers for route in router.routes if isinstance(route, Route)]


def _for_lines(app: FastAPI, metrics: Metrics) -> FastAPI:
    """The same app for the lines of batches, which bring no key and leave no line in the access log."""
    inner = FastAPI(openapi_url=None, redirect_slashes=False, telemetry=_NO_TELEMETRY)
    inner.router, inner.state = app.router, app.state
    errors.install(inner, metrics)
    return inner
