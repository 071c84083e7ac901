"""Settings from flags, environment and file: who wins, and what a mistake is answered with."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config import EngineConfig
from server.cli import parse
from server.config import ServerConfig

COMMAND = Path(sys.executable).with_name("deepseek-serve")
FIELDS = [field.name for config in (EngineConfig, ServerConfig) for field in dataclasses.fields(config)]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DEEPSEEK_SERVE_")]:
        monkeypatch.delenv(name)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What is said when `argv` is refused, with exit status 2."""
    with pytest.raises(SystemExit) as caught:
        parse(list(argv))
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_no_flags_give_the_defaults() -> None:
    assert parse([]) == (ServerConfig(), EngineConfig())


def test_flags_reach_both_configs() -> None:
    server, engine = parse(["--port", "9000", "--max-batch-size=64", "--kv-cache-memory", "0.5", "--dtype", "float32"])
    assert server == ServerConfig(port=9000)
    assert engine == EngineConfig(max_batch_size=64, kv_cache_memory=0.5, dtype="float32")


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_an_environment_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    config = next(c for c in (EngineConfig, ServerConfig) if name in c.__dataclass_fields__)
    field = config.__dataclass_fields__[name]
    choices = field.metadata["choices"]
    monkeypatch.setenv(f"DEEPSEEK_SERVE_{name.upper()}", choices[-1] if choices else "4096")
    value = getattr(next(c for c in parse([]) if isinstance(c, config)), name)
    assert str(value).removesuffix(".0") == (choices[-1] if choices else "4096")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("serve.yaml", "max-batch-size: 7\nport: 7007\nmodel: /models/a\nthreads: null\n"),
        ("serve.yml", "max_batch_size: 7\nport: '7007'\nmodel: /models/a\n"),
        ("serve.toml", 'max-batch-size = 7\nport = 7007\nmodel = "/models/a"\n'),
    ],
)
def test_a_file_gives_settings(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / file
    path.write_text(text)
    server, engine = parse(["--config", str(path)])
    assert server == ServerConfig(port=7007)
    assert engine == EngineConfig(max_batch_size=7, model="/models/a")


def test_flags_win_over_the_environment_and_that_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("port: 1\nmax-batch-size: 1\nblock-size: 1\n")
    monkeypatch.setenv("DEEPSEEK_SERVE_PORT", "2")
    monkeypatch.setenv("DEEPSEEK_SERVE_MAX_BATCH_SIZE", "2")
    server, engine = parse(["--port", "3", "--config", str(path)])
    assert (server.port, engine.max_batch_size, engine.block_size) == (3, 2, 1)


def test_the_environment_may_name_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("port: 7007\n")
    monkeypatch.setenv("DEEPSEEK_SERVE_CONFIG", str(path))
    server, _ = parse([])
    assert server.port == 7007


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("serve.yaml", "max-batch-sise: 7\n", "max-batch-sise"),
        ("serve.toml", "max-batch-sise = 7\n", "max-batch-sise"),
        ("serve.yaml", "port: many\n", "invalid int value: 'many'"),
        ("serve.yaml", "dtype: int3\n", "float32"),
        ("serve.yaml", "max-batch-size: 0\n", "--max-batch-size is 0; it must be at least 1"),
        ("serve.yaml", "port: [1, 2]\n", "plain values"),
        ("serve.yaml", "- port\n", "plain values"),
        ("serve.yaml", "port: {a\n", "cannot be read"),
        ("serve.toml", "port 1\n", "cannot be read"),
        ("serve.yaml", "", "plain values"),
    ],
)
def test_a_mistake_in_the_file_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, file: str, text: str, message: str
) -> None:
    path = tmp_path / file
    path.write_text(text)
    assert message in refused(capsys, "--config", str(path))


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "none.yaml" in refused(capsys, "--config", str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("argv", "messages"),
    [
        (["--dtype", "int3"], ["--dtype", "auto", "bfloat16", "float16", "float32"]),
        (["--device", "tpu"], ["--device", "auto", "cpu", "cuda"]),
        (["--log-level", "loud"], ["--log-level", "debug", "info", "warning", "error"]),
        (["--kernels", "magic"], ["--kernels", "auto", "reference"]),
        (["--port", "abc"], ["--port", "'abc'"]),
        (["--port", "-1"], ["--port is -1", "at least 0"]),
        (["--port", "65536"], ["--port is 65536", "65535"]),
        (["--max-batch-size", "0"], ["--max-batch-size is 0", "at least 1"]),
        (["--max-seq-len", "-5"], ["--max-seq-len is -5", "at least 1"]),
        (["--block-size", "0"], ["--block-size is 0", "at least 1"]),
        (["--threads", "0"], ["--threads is 0", "at least 1"]),
        (["--num-kv-blocks", "0"], ["--num-kv-blocks is 0", "at least 1"]),
        (["--seed", "-1"], ["--seed is -1", "at least 0"]),
        (["--shutdown-timeout", "-1"], ["--shutdown-timeout is -1", "at least 0"]),
        (["--shutdown-timeout", "nan"], ["--shutdown-timeout is nan"]),
        (["--shutdown-timeout", "inf"], ["--shutdown-timeout is inf"]),
        (["--kv-cache-memory", "0"], ["--kv-cache-memory is 0", "more than 0"]),
        (["--kv-cache-memory", "nan"], ["--kv-cache-memory is nan", "more than 0"]),
        (["--kv-cache-memory", "inf"], ["--kv-cache-memory is inf"]),
        (["--kv-cache-memory", "1", "--num-kv-blocks", "1"], ["--kv-cache-memory", "--num-kv-blocks", "one of them"]),
        (["--max-batched-tokens", "8"], ["--max-batched-tokens is 8", "--max-batch-size (32)"]),
        (["--max-batch"], ["--max-batch"]),  # no abbreviations
        (["--no-such-flag", "1"], ["--no-such-flag"]),
        (["serve"], ["serve"]),
    ],
    ids=" ".join,
)
def test_a_bad_flag_is_named_with_what_is_valid(
    capsys: pytest.CaptureFixture[str], argv: list[str], messages: list[str]
) -> None:
    error = refused(capsys, *argv)
    assert [message for message in messages if message not in error] == []


def test_a_bad_environment_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEEPSEEK_SERVE_DTYPE", "int3")
    assert "float32" in refused(capsys)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *argv], capture_output=True, text=True, timeout=60, check=False)


def test_help_lists_every_setting() -> None:
    outcome = run("--help")
    assert outcome.returncode == 0
    missing = [name for name in FIELDS if f"--{name.replace('_', '-')} " not in outcome.stdout]
    assert missing == []
    assert "%(" not in outcome.stdout
    assert "%%" not in outcome.stdout
    assert "DEEPSEEK_SERVE_MAX_BATCH_SIZE" in outcome.stdout


def test_version_is_the_distributions() -> None:
    outcome = run("--version")
    assert outcome.returncode == 0
    assert outcome.stdout.startswith("deepseek-serve 0.")


def test_the_command_answers_a_bad_value_with_status_2_and_no_traceback() -> None:
    outcome = run("--dtype", "int3")
    assert outcome.returncode == 2
    assert "float32" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert outcome.stdout == ""
