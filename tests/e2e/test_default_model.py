"""The plain command serves a real model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.server_process import ServerProcess

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.smollm2
def test_the_plain_command_knows_the_capital_of_france(smollm2: Path, tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        [model] = server.http.get("/v1/models").json()["data"]
        assert (model["id"], model["root"]) == ("smollm2-135m-instruct", "smollm2-135m-instruct")
        choice = server.complete("The capital of France is", temperature=0, max_tokens=1)
        assert choice["text"] == " Paris"
        body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
        chat = server.http.post("/v1/chat/completions", json=body | {"max_tokens": 32}).json()
        assert "Paris" in chat["choices"][0]["message"]["content"]
