"""What `make image-test` runs inside the container, with the image's own Python: `python inside.py CHECK`."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

_URL = "http://127.0.0.1:8000"
_START_TIMEOUT = 180  # seconds
_ISAS = ("amx", "avx512_bf16", "avx512", "avx2")
_SBOM = Path("/usr/share/sbom/deepseek-serve.cdx.json")


def ask() -> dict[str, Any]:
    """Wait until the server takes requests, and complete one."""
    started = time.monotonic()
    while not _is_ready():
        assert time.monotonic() < started + _START_TIMEOUT, "not ready in time"
        time.sleep(0.02)  # between polls, of what has no signal to wait for
    ready_at = time.time()
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    body |= {"max_tokens": 24, "temperature": 0}
    request = urllib.request.Request(f"{_URL}/v1/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as response:
        answer = json.load(response)
    assert answer["usage"]["completion_tokens"] > 0, answer
    return {"ready_at": ready_at, "text": answer["choices"][0]["message"]["content"]}


def confined() -> dict[str, Any]:
    """This user is 10001, can write to /tmp alone, has no network, and leaves no zombies to a server that is PID 1."""
    assert os.getuid() == 10001, os.getuid()
    for folder in ("/", "/cache", "/venv", "/home", "/var/tmp", "/models"):
        with contextlib.suppress(OSError):
            Path(folder, "written").touch()
            raise AssertionError(f"{folder} can be written to")
    Path("/tmp/written").touch()
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    assert Path("/proc/1/comm").read_text() == "tini\n"
    orphan = subprocess.run(["sh", "-c", "sleep 0 >/dev/null & echo $!"], capture_output=True, check=True).stdout
    deadline = time.monotonic() + 10
    while Path("/proc", orphan.decode().strip()).exists():
        assert time.monotonic() < deadline, "an orphan is not reaped"
        time.sleep(0.02)  # init gives no sign when it has reaped
    return {"uid": os.getuid()}


def imports() -> dict[str, Any]:
    """Every module of the packages can be imported, with no compiler and nothing pruned that is missed."""
    names = []
    for package in map(importlib.import_module, ("server", "engine", "kernels")):
        names += [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    modules = [importlib.import_module(name) for name in names]
    assert len(modules) > 100, names
    return {"modules": len(modules)}


def kernels() -> dict[str, Any]:
    """There is a module for every instruction set, each can be loaded, and the best that this CPU has is taken."""
    from kernels import native

    assert tuple(native.ISAS) == _ISAS
    runnable = [isa for isa in _ISAS if importlib.import_module(f"kernels.native._kernels_{isa}").is_supported]
    assert next(iter(runnable), None) == native.ISA, (native.ISA, runnable)
    return {"built": _ISAS, "this CPU runs": runnable}


def sbom() -> dict[str, Any]:
    """The bill of materials lists what is installed, and nothing that was pruned."""
    bill = json.loads(_SBOM.read_text())
    names = {component["name"] for component in bill["components"]}
    assert {"deepseek-serve", "torch", "numpy", "fastapi", "python", "libc6", "tini"} <= names, names
    assert not {"sympy", "pip", "setuptools", "g++"} & names, names
    return {"components": len(names)}


def _is_ready() -> bool:
    try:
        with urllib.request.urlopen(f"{_URL}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


if __name__ == "__main__":
    checks = {check.__name__: check for check in (ask, confined, imports, kernels, sbom)}
    sys.stdout.write(json.dumps(checks[sys.argv[1]]()))
