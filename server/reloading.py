"""The files that are read again when they change: --api-keys, --tls-cert and --tls-key. What they say is their owners'.

Files are looked at a few times a second, since that works wherever they lie: on a network, or in a Kubernetes secret,
whose names lead elsewhere after a change. A change is taken once it has lasted from one look to the next, so that a
file which is being written is not read in halves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import ConfigError
from server.http.api_keys import ApiKeys
from server.http.certificate import Certificate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.config import ServerConfig
    from server.observe.metrics import Metrics, Reloads

logger = logging.getLogger(__name__)

_POLL = 0.25  # seconds
_NO_FILE = ()  # the state of what is there but no file: a pipe, which can be read only once
_State = tuple[tuple[int, ...] | None, ...]


@dataclass
class WatchedFiles:
    """Files that are taken together.

    Attributes:
        name: what metrics call them.
        load: takes what is there now, or raises ConfigError and leaves what was; returns what the log says of it.
    """

    name: str
    paths: Sequence[str]
    load: Callable[[], str]
    _taken: _State = field(init=False)
    _seen: _State = field(init=False)

    def __post_init__(self) -> None:
        self._taken = self._seen = self._state()

    def has_changed(self) -> bool:
        """Whether there is a change that has lasted since the last call."""
        state, before = self._state(), self._seen
        self._seen = state
        if state == self._taken or state != before or _NO_FILE in state:
            return False
        self._taken = state
        return True

    def _state(self) -> _State:
        return tuple(map(_stat, self.paths))


class ReloadedFiles:
    """What the files of one server's settings hold.

    Attributes:
        certificate: None for HTTP.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Read them.

        Raises:
            ConfigError: one is at fault.
        """
        self._config = config
        self._metrics: Metrics | None = None
        self._watched: list[WatchedFiles] = []
        if config.api_keys is not None:
            self._watched.append(WatchedFiles("api-keys", [config.api_keys], self._reload_keys))
        self.keys = self._load_keys()
        self.certificate: Certificate | None = None
        if config.tls_key is not None and config.tls_cert is None:
            raise ConfigError("--tls-key goes with --tls-cert, the certificate")
        if config.tls_cert is not None:
            paths = [config.tls_cert] if config.tls_key is None else [config.tls_cert, config.tls_key]
            self._watched.append(WatchedFiles("tls", paths, self._reload_certificate))
            self.certificate = Certificate(config.tls_cert, config.tls_key)

    async def watch(self, metrics: Metrics) -> None:
        """Take changed files, until cancelled."""
        self._metrics = metrics
        await reload_changed(self._watched, metrics.reloads)

    def _load_keys(self) -> ApiKeys:
        return ApiKeys.load(self._config.api_key, self._config.api_keys, self._config.client_limits)

    def _reload_keys(self) -> str:
        keys = self._load_keys()
        num_added, num_removed = self.keys.take_over(keys)
        if self._metrics is not None:
            for name in keys.names:
                self._metrics.requests.add_key(name)
        return f"{num_added} keys are new, {num_removed} are gone"

    def _reload_certificate(self) -> str:
        assert self.certificate is not None
        self.certificate.reload()
        return "new connections get the new certificate"


async def reload_changed(watched: Sequence[WatchedFiles], reloads: Reloads) -> None:
    """Take changed files, until cancelled."""
    for files in watched:
        reloads.add(files.name)
    while watched:
        await asyncio.sleep(_POLL)
        for files in watched:
            if await asyncio.to_thread(files.has_changed):
                await asyncio.to_thread(reload, files, reloads)  # a large file of keys takes its time


def reload(files: WatchedFiles, reloads: Reloads) -> None:
    """Take files as they are now; a fault leaves what was."""
    try:
        done = files.load()
    except ConfigError as error:
        logger.error("what was before is kept, since a changed file is at fault: %s", error)
        reloads.count(files.name, good=False)
    else:
        logger.info("%s has changed: %s", " and ".join(files.paths), done)
        reloads.count(files.name, good=True)


def _stat(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return _NO_FILE
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
