"""A real server of a tiny model for schemathesis. `make schema-test` runs these; `make test` passes them by."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

collect_ignore_glob = [] if ".venv-schema" in sys.prefix else ["test_*.py"]


class Server(ServerProcess):
    """The command as a module: the virtual environment of these tests has no script of its own."""

    command = (sys.executable, "-m", "server.cli")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("schema")
    subprocess.run([*Server.command, "make-checkpoint", "--like", "v3", "--out", folder / "model"], check=True)
    flags = ("--max-seq-len", "256", "--threads", "1", "--data-dir", "memory", "--access-log", "off")
    with Server(folder, "--model", str(folder / "model"), *flags) as server:
        yield server
