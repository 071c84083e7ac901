"""Schemathesis' requests, valid and not, by the OpenAPI document: no fault, and every answer is one that it has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = os.environ.get("SCHEMA_EXAMPLES", "100")  # requests for each route
COMMAND = Path(sys.executable).with_name("st")
CONFIG = Path(__file__).with_name("schemathesis.toml")
PARTS = {
    "completions": r"^/v1/(completions|chat/completions)$",
    "responses": r"^/v1/responses",
    "messages": r"^/v1/messages",
    "heads": r"^/(v1/|v2/)?(embeddings|classify|score|rerank)$",
    "tokens": r"^/(tokenize|detokenize|tokenizer_info)$",
    "files": r"^/v1/(files|batches)",
    "others": r"^/(v1/models|health|readyz|livez|startupz|ping|metrics|load|version)",
}


def run(server, folder, *which):
    command = [COMMAND, "--config-file", CONFIG, "run", f"{server.url}/openapi.json", *which]
    asked = ("--checks", "all", "--mode", "all", "--max-examples", EXAMPLES, "--request-timeout", "120", "--no-color")
    ended = subprocess.run([*command, *asked, "--continue-on-failure"], cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert server.is_healthy()


@pytest.mark.parametrize("paths", PARTS.values(), ids=PARTS)
def test_what_is_sent_is_what_the_document_says(server, tmp_path, paths):
    run(server, tmp_path, "--phases", "examples,coverage,fuzzing", "--include-path-regex", paths)


def test_what_was_made_can_be_asked_for_until_it_is_deleted(server, tmp_path):
    run(server, tmp_path, "--phases", "stateful")
