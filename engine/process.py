"""The engine's process: `python -m engine.process ENDPOINT SETTINGS`, started and watched by server.engine_process.

Messages (engine.protocol) come and go over one ZeroMQ socket, a unix socket in a folder that only this user may
enter. Standard input is the line to the parent: it never carries anything, and its end means that the parent is gone.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import zmq

from engine.errors import ConfigError, ModelError
from engine.loading.phases import STARTING, Phases
from engine.logs import configure
from engine.names import name_process, name_thread
from engine.protocol import MAX_UNREAD, EngineFailed, decode_to_engine, encode

if TYPE_CHECKING:
    from engine.protocol import FromEngine, Loading, ToEngine

logger = logging.getLogger(__name__)

FAULTS = "DEEPSEEK_SERVE_FAULTS"  # the environment variable of engine.faults, for tests alone


class ZmqTransport:
    """The engine's end of the socket."""

    def __init__(self, endpoint: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        self._socket.setsockopt(zmq.RCVHWM, 0)  # the server bounds what is in flight, and never waits
        self._socket.setsockopt(zmq.SNDHWM, MAX_UNREAD)
        self._socket.connect(endpoint)

    def receive(self, *, wait: bool) -> ToEngine | None:
        while self._socket.poll(None if wait else 0):
            try:
                message: ToEngine = decode_to_engine(self._socket.recv())
            except msgspec.DecodeError:  # nobody to answer: what it asked for is not known
                logger.exception("a message that cannot be decoded was dropped")
            else:
                return message
        return None

    def send(self, message: FromEngine) -> None:
        """Send; waits where the server has much to read. It reads whatever else happens, or ends, and so do we."""
        self._socket.send(encode(message))

    def tell(self, message: Loading) -> None:
        """Say how far loading is; beside `send`, where tests plant faults."""
        self._socket.send(encode(message))

    def close(self, linger: int) -> None:
        """Close; what was sent may still go out for so many milliseconds."""
        self._socket.close(linger)


def main() -> int:
    """Load, say so, then serve until told to stop."""
    endpoint, settings = sys.argv[1], json.loads(sys.argv[2])
    configure(settings["name"], settings["log_level"], settings["log_format"])
    name_process(settings["name"])
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent says when to stop
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, args=[endpoint], name="parent-watch", daemon=True).start()
    transport = ZmqTransport(endpoint)
    phases = Phases(transport.tell)
    phases.begin(STARTING)
    gc.disable()  # no garbage in what is imported: looking for it takes a sixth of the time
    from engine.build import load_engine  # imports torch
    from engine.config import EngineConfig

    gc.freeze()
    gc.enable()
    try:
        if faults := os.environ.get(FAULTS):
            from engine.faults import plant

            plant(Path(faults), transport)
        engine = load_engine(EngineConfig(**settings["engine"]), progress=sys.stderr.isatty(), phases=phases)
    except (ConfigError, ModelError) as error:
        transport.send(EngineFailed(str(error)))
        transport.close(linger=1000)
        return 2
    gc.freeze()  # what is loaded stays: no step has to wait while the collector walks through it
    transport.send(engine.info)
    engine.serve(transport)
    transport.close(linger=0)
    return 0


def _die_with_parent(endpoint: str) -> None:
    """Wait for the end of standard input, then end this process, even in the middle of a step; leave no socket."""
    name_thread("parent-watch")
    os.read(0, 1)  # not sys.stdin: a thread that holds its lock would make an orderly end impossible
    path = Path(endpoint.removeprefix("ipc://"))
    with contextlib.suppress(OSError):  # the parent has removed both, if it could
        path.unlink()
        path.parent.rmdir()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
