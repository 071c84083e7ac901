"""From settings to a running server, and to its end: the port first, then the model, the engine process, the app.

SIGTERM or ctrl-C: no new connections; running requests may finish for --shutdown-timeout seconds, then they end with
an error that says why; then the engine ends. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn

from engine.errors import ConfigError
from engine.loading.resolve import resolve_model
from server.api_keys import ApiKeys
from server.chat_template import named_template
from server.engine_client import EngineProcess
from server.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from fastapi import FastAPI

    from engine.config import EngineConfig
    from server.config import ServerConfig
    from server.engine_client import EngineClient

logger = logging.getLogger(__name__)


async def serve(server_config: ServerConfig, engine_config: EngineConfig) -> int:
    """Serve until a signal; the exit status.

    Raises:
        ConfigError, ModelError: the settings or the model are at fault.
    """
    template = named_template(server_config.chat_template) if server_config.chat_template else None
    keys = ApiKeys.load(server_config.api_key, server_config.api_keys)
    with _listen(server_config) as listener:
        source = await asyncio.to_thread(resolve_model, engine_config.model)
        # A model that cannot be served, or not so long, is refused here, before a process is started for it.
        source.read_config().resolve_max_seq_len(engine_config.max_seq_len)
        client = EngineProcess(engine_config, server_config.log_level)
        engine = asyncio.create_task(client.run())
        try:
            tokenizer = await asyncio.to_thread(Tokenizer.load, source, template)
            from server.app import create_app  # the web stack, imported while the engine's process imports torch

            app = create_app(
                client,
                tokenizer,
                server_config.served_model_name or source.name,
                source.path,
                server_config,
                keys,
            )
            server = _Server(app, server_config, client)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            host, port = listener.getsockname()[:2]
            logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
            await asyncio.wait({engine, serving}, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            await serving
        finally:
            engine.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await engine
    return 0


_BACKLOG = 2048  # connections that may wait to be accepted, as uvicorn's own default


def _listen(config: ServerConfig) -> socket.socket:
    """Bind the port at once, so that a port in use is known before a model is loaded."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it, a body waits 40 ms for its headers' ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen(_BACKLOG)  # with SO_REUSEADDR it is only now that a second server is refused
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on --host {config.host} --port {config.port}: {error.strerror}") from None
    listener.set_inheritable(True)
    return listener


class _Server(uvicorn.Server):
    """uvicorn, with an end to the patience for running requests."""

    def __init__(self, app: FastAPI, config: ServerConfig, client: EngineClient) -> None:
        from server.connections import limited_protocol  # as late as the app

        super().__init__(
            uvicorn.Config(
                app,
                http=limited_protocol(config),  # type: ignore[arg-type]  # called as a class
                log_config=None,
                access_log=config.log_level == "debug",
                timeout_keep_alive=65,
                timeout_graceful_shutdown=int(config.shutdown_timeout) + 1,
                ws="none",
                lifespan="off",
            )
        )
        self._patience, self._client = config.shutdown_timeout, client

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Called by uvicorn; unlike its own, this does not raise the signal again, so that our end is orderly."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for sig in signals:
            loop.add_signal_handler(sig, self.handle_exit, sig, None)
        try:
            yield
        finally:
            for sig in signals:
                loop.remove_signal_handler(sig)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn on SIGTERM and ctrl-C; a second one, of either kind, ends it at once."""
        if self.should_exit:
            self.force_exit = True
        else:
            asyncio.get_running_loop().call_later(self._patience, self._client.fail_all, "The server is shutting down.")
        super().handle_exit(sig, frame)
