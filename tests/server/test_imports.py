"""The API process stays light: it never imports torch."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["server", "server.app", "server.cli", "server.serve", "server.engine_client"])
def test_the_api_process_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'numpy'}} & sys.modules.keys()))"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "torch" not in outcome.stdout
    assert "transformers" not in outcome.stdout
