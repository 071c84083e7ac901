"""Starting: what is said when it cannot be done, and what is served when it can."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import psutil
import pytest

from engine.errors import ConfigError
from server.commands.child_server import free_port
from server.config import ServerConfig
from server.serve import _listen
from tests.e2e.server_process import COMMAND, ServerProcess, is_engine

if TYPE_CHECKING:
    from pathlib import Path


def failed_start(*flags: str, timeout: float = 60) -> str:
    """What is said on standard error when a start fails, as it must: status 2, one message, no traceback."""
    outcome = subprocess.run(
        [COMMAND, "--port", str(free_port()), *flags],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert outcome.returncode == 2, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "Fatal" not in outcome.stderr, outcome.stderr
    assert outcome.stdout == ""
    *_, message = outcome.stderr.strip().splitlines()
    assert message.startswith("deepseek-serve: error: ")
    return message


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be damaged."""
    return shutil.copytree(tiny_llama, tmp_path / "checkpoint")


@pytest.mark.parametrize("model", ["/no/such/folder", "./no-such-model.gguf", "no-such-model"])
def test_a_model_that_is_not_there_is_named(model: str) -> None:
    message = failed_start("--model", model)
    assert model in message
    assert "smollm2-135m-instruct" in message


def test_a_file_that_is_not_a_gguf_file_is_named(tmp_path: Path) -> None:
    for name, said in (("model.bin", "only GGUF is read"), ("model.gguf", "does not begin with 'GGUF'")):
        path = tmp_path / name
        path.write_bytes(b"PK\x03\x04" * 100)
        message = failed_start("--model", str(path))
        assert name in message
        assert said in message


def test_a_bad_flag_value_is_named_with_the_valid_ones() -> None:
    message = failed_start("--dtype", "int3")
    assert all(name in message for name in ("--dtype", "auto", "bfloat16", "float16", "float32"))


def test_a_setting_that_only_the_model_rules_out_is_named(tiny_llama: Path) -> None:
    message = failed_start("--model", str(tiny_llama), "--max-seq-len", "100000")
    assert "--max-seq-len is 100000" in message
    assert "512" in message


def test_the_port_is_taken_from_the_start_on() -> None:
    """Long before uvicorn serves it: the first start may take minutes to fetch a model."""
    with _listen(ServerConfig(port=0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: Address already in use"):
            _listen(ServerConfig(port=port))


def test_a_port_in_use_is_named_before_the_model_is_loaded(tiny_llama: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        message = failed_start("--model", str(tiny_llama), "--port", port)
    assert f"--port {port}" in message
    assert "in use" in message


def test_an_address_that_is_not_ours_is_named(tiny_llama: Path) -> None:
    assert "--host 192.0.2.1" in failed_start("--model", str(tiny_llama), "--host", "192.0.2.1")


def test_a_folder_without_a_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    message = failed_start("--model", str(folder))
    assert str(folder / "tokenizer.json") in message
    assert "missing" in message


def test_a_folder_without_weights_is_named(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    message = failed_start("--model", str(folder))
    assert "no .safetensors files" in message
    assert "pytorch_model.bin is a pickle" in message


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"architectures": ["GPT2LMHeadModel"]}'])
def test_a_config_that_cannot_be_served_is_said_so(folder: Path, damage: str) -> None:
    (folder / "config.json").write_text(damage)
    message = failed_start("--model", str(folder))
    assert "config.json" in message or "architecture" in message


def test_an_engine_that_dies_before_it_is_ready_ends_the_server_with_status_1(
    flags: tuple[str, ...], tmp_path: Path
) -> None:
    with ServerProcess(tmp_path, *flags, wait=False) as server:
        process = psutil.Process(server.process.pid)
        server.until(lambda: any(map(is_engine, process.children())))
        server.engine.kill()
        assert server.process.wait(timeout=30) == 1
        assert "Traceback" not in server.log, server.log
        assert "the engine ended" in server.log


def test_port_0_takes_a_free_one_and_the_log_says_which(tiny_llama: Path, tmp_path: Path) -> None:
    flags = ("--model", str(tiny_llama), "--num-kv-blocks", "64", "--port", "0")
    with ServerProcess(tmp_path, *flags, wait=False) as server:
        server.until(lambda: "ready in" in server.log)
        match = re.search(r"http://127\.0\.0\.1:(\d+)", server.log)
        assert match is not None, server.log
        server.http.base_url = match[0]
        server.until(server.is_healthy)


def test_ready_is_said_last_with_all_that_a_newcomer_needs(tiny_llama: Path, tmp_path: Path) -> None:
    flags = ("--model", str(tiny_llama), "--num-kv-blocks", "64", "--served-model-name", "a,b", "--api-key", "sk-1")
    with ServerProcess(tmp_path, *flags) as server:
        server.until(lambda: "  try   " in server.log)
        *before, ready, api, page, curl = server.log.splitlines()
        assert re.search(r"server\.serve: ready in \d+\.\d s: a, b$", ready)
        assert (api, page) == (f"  API   {server.url}/v1", f"  page  {server.url}/")
        assert not any("ready in" in line or "listening" in line for line in before)
        command = curl.removeprefix("  try   ").replace("YOUR_KEY", "sk-1")
        said = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True).stdout
        assert json.loads(said)["choices"][0]["finish_reason"] in ("stop", "length")
        assert "sk-1" not in server.log


def test_a_configuration_file_serves_a_folder_by_its_name(tiny_llama: Path, tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(f"model: {tiny_llama}\nmax-seq-len: 100\nnum-kv-blocks: 64\n")
    with ServerProcess(tmp_path, "--config", str(config)) as server:
        [model] = server.http.get("/v1/models").json()["data"]
        assert (model["id"], model["root"], model["max_model_len"]) == (tiny_llama.name, tiny_llama.name, 100)
