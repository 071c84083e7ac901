"""The command with --guard: two engines, of which the second reads what the first gets and says."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import httpx
import openai
import psutil
import pytest
from tokenizers import Tokenizer
from transformers import LlamaForSequenceClassification

from tests.e2e.server_process import COMMAND, ServerProcess
from tests.support.checkpoints import edit_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LABELS = {"id2label": {0: "safe", 1: "shouting"}, "label2id": {"safe": 0, "shouting": 1}}


@pytest.fixture(scope="module")
def mark(long_llama: Path) -> int:
    """The token of an exclamation mark, of both models."""
    token_id: int = Tokenizer.from_file(str(long_llama / "tokenizer.json")).token_to_id("!")
    return token_id


@pytest.fixture(scope="module")
def sentry(make_llama: Callable[..., Path], mark: int) -> Path:
    """A guard that flags, from the threshold 0.999999 on, what ends with an exclamation mark."""
    folder = make_llama(kind=LlamaForSequenceClassification, pad_token_id=255, seed=3, **LABELS)

    def edit(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensor.zero_()  # the last hidden state is the last token's embedding
        tensors["model.norm.weight"].fill_(1)
        embedding = tensors["model.embed_tokens.weight"][mark]
        tensors["score.weight"].zero_()
        tensors["score.weight"][1] = 0.3 * embedding / embedding.square().mean().sqrt()

    edit_weights(folder, edit)
    return folder


def guard_of(server: ServerProcess) -> psutil.Process:
    """The guard's process."""
    children = psutil.Process(server.process.pid).children()
    [guard] = [child for child in children if any(word.startswith("deepseek-serve: guard") for word in child.cmdline())]
    return guard


def test_a_life_with_a_guard(flags: tuple[str, ...], sentry: Path, mark: int, tmp_path: Path) -> None:
    flags = (*flags, "--guard", str(sentry), "--guard-threshold", "0.999999", "--guard-window", "4")
    with ServerProcess(tmp_path, *flags) as server:
        assert "guard: " in server.log
        assert server.complete("hi", max_tokens=8, ignore_eos=True)["finish_reason"] in ("length", "content_filter")
        response = server.http.post("/v1/completions", json={"prompt": "hi!"})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "content_filter")
        says = {"logit_bias": {mark: 100}, "max_tokens": 2000, "ignore_eos": True}
        choice = server.complete("hi", **says)
        assert (choice["text"], choice["finish_reason"]) == ("", "content_filter")
        with (
            httpx.Client(trust_env=False) as http,
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=http) as client,
        ):
            body: dict[str, Any] = {
                "model": "tiny",
                "messages": [{"role": "user", "content": "hi"}],
                "max_tokens": 2000,
            }
            stream = client.chat.completions.create(**body, logit_bias={str(mark): 100}, stream=True)
            choices = [choice for chunk in stream for choice in chunk.choices]
            assert choices[-1].finish_reason == "content_filter"
            assert not any(choice.delta.content for choice in choices)
            moderation = client.moderations.create(input=["hi!", "hi"])
            assert [result.flagged for result in moderation.results] == [True, False]
        guard = guard_of(server)
        guard.send_signal(signal.SIGKILL)
        guard.wait(10)
        server.until(lambda: not server.is_healthy())
        assert server.http.post("/v1/completions", json={"prompt": "hi"}).status_code == 503
        server.until(server.is_healthy, timeout=60)
        assert server.metric("guard_restarts_total") == 1
        assert server.metric("engine_restarts_total") == 0
        assert server.http.post("/v1/completions", json={"prompt": "hi!"}).status_code == 400
        left = [guard_of(server), server.engine]
        assert server.stop(signal.SIGTERM)[0] == 0
        assert not any(process.is_running() for process in left)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ((), "--guard {model} has no classification head"),
        (("--guard-threshold", "2"), "--guard-threshold is 2"),
        (("--guard", "/nowhere"), "/nowhere"),
    ],
)
def test_a_guard_that_cannot_be_is_refused_at_the_start(
    flags: tuple[str, ...], more: tuple[str, ...], text: str
) -> None:
    model = flags[flags.index("--model") + 1]
    command = [str(COMMAND), *flags, "--port", "0", "--guard", model, *more]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSEEK_SERVE_")}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert ended.returncode == 2
    assert text.format(model=model) in ended.stderr
