"""The Ray Serve application: one API, N engine replicas. `serve run deploy.ray.app:build model=... replicas=2`.

The API is server.app, with keys, admission, metrics and errors as on one machine; its engine client speaks to the
replicas (deploy.ray.client). A replica is one engine in a process of its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ray import serve

from deploy.ray.client import RayEngineClient
from deploy.ray.replica import EngineReplica
from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.loading.resolve import resolve_model
from server.app import create_app
from server.chat.chat_template import named_template
from server.command_line import CommandLine
from server.config import ServerConfig
from server.reloading import ReloadedFiles
from server.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

_UNBOUNDED = 1_000_000  # requests that Ray lets through: how many may wait is server.admission's and the batcher's
_RAYS = {  # settings of what is Ray's here: sockets, processes and their end, and lines about the load
    *("host", "port", "max_connections", "max_body_size", "max_bodies_size", "header_timeout", "body_timeout"),
    *("write_timeout", "shutdown_timeout", "drain_timeout", "drain_delay", "config", "stats_interval"),
    *("tls_cert", "tls_key", "admin_port", "admin_host", "max_client_connections"),
    *("guard", "guard_window", "guard_memory"),
}


class Api:
    """The HTTP API in a process of its own, which never imports torch."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, server: ServerConfig, model: str | Path | None, engines: DeploymentHandle
    ) -> None:
        template = named_template(server.chat_template) if server.chat_template else None
        files = ReloadedFiles(server)
        source = await asyncio.to_thread(resolve_model, model)
        tokenizer = await asyncio.to_thread(Tokenizer.load, source, template)
        client = RayEngineClient(engines)
        name = (*server.model_names, source.name)[0]
        self._app = create_app(client, tokenizer, name, source.path, server, files.keys)
        self._running = asyncio.create_task(client.run())
        self._reloading = asyncio.create_task(files.watch(self._app.state.server.metrics))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray once this is made."""
        return self._app

    async def check_health(self) -> None:
        """Called by Ray, which replaces this if it raises."""
        if self._running.done():
            await self._running


def build(args: dict[str, Any]) -> Application:
    """The application, as `serve run` and a Serve config want it: from one argument.

    Args:
        args: the flags of deepseek-serve without their dashes, and `replicas`: N, or MIN-MAX to scale by the queue.

    Raises:
        ConfigError: naming the setting and what is valid.
    """
    return build_with("deploy.ray.router:PrefixRouter", args)


def build_with(router: str, args: dict[str, Any]) -> Application:
    """`build` with the import path of a router.

    Raises:
        ConfigError: naming the setting and what is valid.
    """
    settings = {str(name).replace("-", "_"): value for name, value in args.items()}
    least, most = _parse_replicas(str(settings.pop("replicas", "1-4")))
    if foreign := sorted(_RAYS & settings.keys()):
        raise ConfigError(f"{', '.join(foreign)}: on Ray these are not ours to set; docs/ray.md says what is")
    values = CommandLine(**settings).model_dump()
    values["trusted_hosts"] = values["trusted_hosts"] or "*"  # Ray listens, on whatever address
    server = ServerConfig(**{name: values[name] for name in ServerConfig.model_fields})
    engine = EngineConfig(**{name: values[name] for name in EngineConfig.model_fields})
    logging = {"log_level": server.log_level.upper(), "enable_access_log": server.log_level == "debug"}
    engines = serve.deployment(
        EngineReplica,
        name="Engine",
        max_ongoing_requests=_UNBOUNDED,
        health_check_period_s=2,
        logging_config=logging,
        autoscaling_config={
            "min_replicas": least,
            "max_replicas": most,
            "policy": {"policy_function": "deploy.ray.scaling:desired_replicas"},
        },
        request_router_config={
            "request_router_class": router,
            "request_router_kwargs": {"slack": max(1, engine.max_batch_size // 2)},
        },
    ).bind(engine, server.log_level)
    api = serve.deployment(serve.ingress()(Api), name="Api", max_ongoing_requests=_UNBOUNDED, logging_config=logging)
    return api.bind(server, engine.model, engines)


def _parse_replicas(text: str) -> tuple[int, int]:
    least, _, most = text.partition("-")
    if not (least.isdecimal() and (most or least).isdecimal() and 1 <= int(least) <= int(most or least)):
        raise ConfigError(f"replicas is {text!r}; valid are a number, or MIN-MAX such as 1-8")
    return int(least), int(most or least)
