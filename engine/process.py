"""The engine's process: `python -m engine.process ENDPOINT SETTINGS`, started and watched by server.engine_client.

Messages (engine.protocol) come and go over one ZeroMQ socket, a unix socket in a folder that only this user may
enter. Standard input is the line to the parent: it never carries anything, and its end means that the parent is gone.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import zmq

from engine.config import EngineConfig
from engine.errors import ConfigError, ModelError
from engine.protocol import (
    AbortRequest,
    EngineFailed,
    FromEngine,
    GenerateRequest,
    Shutdown,
    StepOutput,
    decode_to_engine,
    encode,
)

if TYPE_CHECKING:
    from engine.engine import Engine

logger = logging.getLogger(__name__)


def main() -> int:
    """Load, say so, then serve until told to stop."""
    endpoint, settings = sys.argv[1], json.loads(sys.argv[2])
    logging.basicConfig(level=settings["log_level"].upper(), format=settings["log_format"], stream=sys.stderr)
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent says when to stop
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    socket.set_hwm(0)  # the server bounds what is in flight; a dropped message would lose tokens
    socket.connect(endpoint)

    def send(message: FromEngine) -> None:
        socket.send(encode(message))

    gc.disable()  # no garbage in what is imported: looking for it takes a sixth of the time
    from engine.engine import Engine  # imports torch

    gc.freeze()
    gc.enable()
    try:
        engine = Engine.load(EngineConfig(**settings["engine"]), progress=sys.stderr.isatty())
    except (ConfigError, ModelError) as error:
        send(EngineFailed(str(error)))
        socket.close(linger=1000)
        return 2
    gc.freeze()  # what is loaded stays: no step has to wait while the collector walks through it
    send(engine.info)
    while _take_messages(engine, socket):
        send(engine.step() if engine.has_work else StepOutput([], engine.stats()))
    socket.close(linger=0)
    return 0


def _take_messages(engine: Engine, socket: zmq.Socket[bytes]) -> bool:
    """Act on all messages that wait; with no work, wait for one. False when the server says stop."""
    if not engine.has_work:
        while not socket.poll(0) and engine.prepare():
            pass
        socket.poll()
    while socket.poll(0):
        match decode_to_engine(socket.recv()):
            case GenerateRequest() as request:
                engine.add(request)
            case AbortRequest() as request:
                engine.abort(request)
            case Shutdown():
                return False
    return True


def _die_with_parent() -> None:
    """Wait for the end of standard input, then end this process, even in the middle of a step."""
    os.read(0, 1)  # not sys.stdin: a thread that holds its lock would make an orderly end impossible
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
