"""From settings to a running server: the port first, then the model, the engine process, the app.

SIGTERM or ctrl-C before the app is served ends the start: nothing is left, and the status is 0. After that, the end is
server.http.drain's, and the engine ends last.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from engine.errors import ConfigError
from engine.loading.phases import FINDING
from engine.loading.resolve import resolve_model
from engine.memory import give_back_freed_memory
from engine.names import name_thread
from server.chat.chat_template import named_template
from server.engine_process import EngineProcess
from server.generation_config import describe, read_defaults
from server.guard.model import GuardModel, find_guard, guard_name, guard_settings
from server.health import Health
from server.http.drain import BACKLOG, SIGNALS, Server
from server.http.early import EarlyAnswers
from server.observe.tracing import start_tracing
from server.reloading import ReloadedFiles
from server.startup import Startup
from server.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.config import EngineConfig
    from engine.engine_info import Task
    from engine.loading.resolve import ModelSource
    from server.batches.runner import BatchRunner
    from server.config import ServerConfig
    from server.observe.tracing import Tracing
    from server.state import ServerState

logger = logging.getLogger(__name__)

_MAX_DIGITS = 640  # of a number in JSON, the least that Python takes: to read longer ones takes the square of the time
_SWITCH_INTERVAL = 0.001  # seconds that the event loop waits for a thread that computes, instead of 5 ms
_STARTED = time.monotonic()
_BREAK_OFF_TIMEOUT = 2.0  # seconds that a download may take to clean up


def serve(server_config: ServerConfig, engine_config: EngineConfig) -> int:
    """Serve until a signal; the exit status.

    Raises:
        ConfigError, ModelError: the settings or the model are at fault.
    """
    give_back_freed_memory()
    sys.set_int_max_str_digits(_MAX_DIGITS)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    template = named_template(server_config.chat_template) if server_config.chat_template else None
    files, startup = ReloadedFiles(server_config), Startup(_STARTED)
    tracing = start_tracing() if server_config.traces == "otlp" else None
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(_listen(server_config))]
        if server_config.admin_port is not None:
            listeners.append(stack.enter_context(_listen(server_config, is_admin=True)))
            server_config = server_config.model_copy(update={"admin_port": listeners[1].getsockname()[1]})  # not 0
        with EarlyAnswers(listeners, startup, None if files.certificate is None else files.certificate.context):
            source = _find_model(engine_config, startup)
            guard = find_guard(server_config, startup.tell)
        defaults = read_defaults(server_config.generation_config, source.path)
        if defaults:
            settled = describe(defaults)
            logger.info("sampling defaults of the model: %s (--generation-config none leaves them out)", settled)
        try:
            asyncio.run(
                _serve(server_config, engine_config, source, guard, startup, template, files, listeners, tracing)
            )
        except asyncio.CancelledError:  # by a signal
            logger.info("stopped before the server was ready")
    return 0


def _load_tokenizer(source: ModelSource, template: str | None) -> Tokenizer:
    tokenizer = Tokenizer.load(source, template)
    tokenizer.measure()
    return tokenizer


async def _serve(
    server_config: ServerConfig,
    engine_config: EngineConfig,
    source: ModelSource,
    guard_source: ModelSource | None,
    startup: Startup,
    template: str | None,
    files: ReloadedFiles,
    listeners: list[socket.socket],
    tracing: Tracing | None,
) -> None:
    _cancel_on_signal()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(None, "worker", name_thread, ("worker",)))
    client = _engine(server_config, engine_config)
    client.startup = startup
    engines = [asyncio.create_task(client.run())]
    guard: GuardModel | None = None
    async with contextlib.AsyncExitStack() as ending:  # in the other order
        ending.push_async_callback(_end, engines)
        if tracing is not None:
            ending.push_async_callback(tracing.close)
        if guard_source is not None:
            guard_client = _engine(server_config, guard_settings(server_config, engine_config), "guard")
            guard_client.startup = Startup(what="guard")
            engines.append(asyncio.create_task(guard_client.run()))
        tokenizer = await asyncio.to_thread(_load_tokenizer, source, template)
        if tokenizer.chat_template is not None:
            tokenizer.chat_template.process.start()
            ending.callback(tokenizer.chat_template.process.stop)
        if guard_source is not None:
            guard_tokenizer = await asyncio.to_thread(Tokenizer.load, guard_source)
            served = server_config.model_names or (source.name,)
            guard = GuardModel(guard_client, guard_tokenizer, guard_name(guard_source.name, served))
        from server.app import create_app  # the web stack, imported while the engine's process imports torch

        health = Health(client, *([guard.client] if guard is not None else []))
        name = (*server_config.model_names, source.name)[0]
        app = create_app(client, tokenizer, name, source.path, server_config, files.keys, health, tracing, guard)
        gc.freeze()  # what is loaded stays: the collector would walk through it for a tenth of a second
        gc.enable()
        state: ServerState = app.state.server
        batches: BatchRunner = app.state.batches
        server = Server(app, server_config, client, health, files.certificate, on_drain=batches.stop)
        ending.callback(asyncio.create_task(files.watch(state.metrics)).cancel)
        ending.push_async_callback(state.storage.close)
        ending.push_async_callback(_end, [asyncio.create_task(batches.run(on_imported=gc.freeze))])
        serving = asyncio.create_task(server.serve(sockets=listeners))
        url = _url(listeners[0], is_https=files.certificate is not None)
        if len(listeners) > 1:
            logger.info("for administrators: %s/metrics", _url(listeners[1]))
        telling = asyncio.create_task(_tell(state, server.is_serving, url, has_keys=files.keys.are_set))
        ending.callback(telling.cancel)
        await asyncio.wait({*engines, serving}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
    for engine in engines:
        with contextlib.suppress(asyncio.CancelledError):
            engine.result()


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _engine(config: ServerConfig, engine_config: EngineConfig, name: str = "engine") -> EngineProcess:
    timeouts = config.engine_timeout, config.startup_timeout
    return EngineProcess(engine_config, config.log_level, *timeouts, config.log_format, name)


def _first_request(tasks: Sequence[Task], *, chats: bool) -> tuple[str, str]:
    """Return path and body of a request that a model answers which can do these tasks."""
    if "classify" in tasks and "generate" not in tasks:
        return "/v1/classify", '{"input": "Three rivers meet here."}'
    if chats:
        return "/v1/chat/completions", '{"messages": [{"role": "user", "content": "Name three rivers."}]}'
    return "/v1/completions", '{"prompt": "The longest river is", "max_tokens": 16}'


async def _tell(state: ServerState, is_serving: asyncio.Event, url: str, *, has_keys: bool) -> None:
    """Say where to ask while the model is loading, how to ask once it is ready, and then how busy it is."""
    logger.info("starting; %s/health says when it is ready", url)
    await state.client.started.wait()
    if state.guard is not None:
        await state.guard.client.started.wait()
        logger.info("guard: %s reads prompts and answers", state.guard.model.name)
    await is_serving.wait()
    if state.health.is_draining:
        return
    key = " -H 'Authorization: Bearer YOUR_KEY'" if has_keys else ""
    tasks = state.client.info.tasks if state.client.info is not None else ()
    path, body = _first_request(tasks, chats=state.tokenizer.chat_template is not None)
    logger.info(
        "ready in %.1f s: %s\n  API   %s/v1\n  page  %s/\n"
        "  try   curl %s%s -H 'Content-Type: application/json'%s -d '%s'",
        time.monotonic() - _STARTED,
        ", ".join(state.model_names),
        *(url, url, url, path, key, body),
    )
    await state.load.watch(state.config.stats_interval)


def _url(listener: socket.socket, *, is_https: bool = False) -> str:
    """Where a client on this machine finds the listener."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if is_https else "http"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # nosec B104  # not bound here
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _find_model(config: EngineConfig, startup: Startup) -> ModelSource:
    """Find or download the model; one that cannot be served, or not so long, is refused before a process is started.

    A signal breaks a download off and ends the program, after 2 s at most. The default model's download removes its
    temporary files; a hub download continues from its partial files at the next start.
    """

    def stop(*_: object) -> None:
        limit = threading.Timer(_BREAK_OFF_TIMEOUT, os._exit, [0])
        limit.daemon = True
        limit.start()
        sys.exit(0)

    for number in SIGNALS:
        signal.signal(number, stop)
    startup.tell(FINDING)
    source = resolve_model(config.model, startup.tell)
    source.read_config().resolve_max_seq_len(config.max_seq_len)
    return source


def _cancel_on_signal() -> None:
    """Have the first signal cancel this task, until the server takes the signals over."""
    loop, task, signalled = asyncio.get_running_loop(), asyncio.current_task(), False

    def cancel() -> None:
        nonlocal signalled
        if not signalled and task is not None:  # a second one would cancel the cleaning up
            signalled = task.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, cancel)


def _listen(config: ServerConfig, *, is_admin: bool = False) -> socket.socket:
    """Bind the port at once, so that a port in use is known before a model is loaded."""
    host, port, prefix = (
        (config.admin_host, config.admin_port, "admin-") if is_admin else (config.host, config.port, "")
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it, a body waits 40 ms for its headers' ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)  # with SO_REUSEADDR it is only now that a second server is refused
    except OSError as error:
        listener.close()
        message = f"cannot listen on --{prefix}host {host} --{prefix}port {port}: {error.strerror}"
        raise ConfigError(message) from None
    listener.set_inheritable(True)
    return listener
