"""What is light stays light: the API process never imports torch, the command not even the web stack."""

from __future__ import annotations

import subprocess
import sys

import pytest


def imported(module: str) -> set[str]:
    """What a fresh interpreter has imported after importing a module."""
    code = f"import sys, {module}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", ["server.app", "server.serve", "server.engine_client"])
def test_the_api_process_imports_no_torch(module: str) -> None:
    assert not {"torch", "transformers"} & imported(module)


def test_the_engine_process_can_be_started_before_the_web_stack_is_imported() -> None:
    assert "fastapi" not in imported("server.serve")


def test_the_command_reads_its_settings_before_anything_heavy_is_imported() -> None:
    assert not {"torch", "numpy", "fastapi", "uvicorn", "msgspec", "yaml", "zmq"} & imported("server.command_line")


def test_without_traces_their_sdk_is_not_imported() -> None:
    """FastAPI imports OpenTelemetry's interface itself, where it is installed."""
    assert not [name for name in imported("server.app, server.serve") if name.startswith("opentelemetry.sdk")]
