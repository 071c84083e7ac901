"""Settings from flags, environment and file: who wins, and what a mistake is answered with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from engine.config import BatchingSettings, EngineConfig, ModelSettings, flag
from engine.policies import POLICIES
from server import cli
from server.cli import COMMANDS
from server.command_line import parse, unknown_variables
from server.config import ServerConfig

GROUPS = {"model": ModelSettings, "batching and memory": BatchingSettings, "server": ServerConfig}
SETTINGS = {name: field for group in GROUPS.values() for name, field in group.model_fields.items()}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DEEPSEEK_SERVE_")]:
        monkeypatch.delenv(name)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What is said, in one line, when `argv` is refused with exit status 2."""
    with pytest.raises(SystemExit) as caught:
        parse(list(argv))
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"deepseek-serve: error: .*\n", said.err)
    return said.err


def test_no_flags_give_the_defaults() -> None:
    assert parse([]) == (ServerConfig(), EngineConfig())


def test_flags_reach_both_configs() -> None:
    server, engine = parse(["--port", "9000", "--max-batch-size=64", "--kv-cache-memory", "0.5", "--dtype", "float32"])
    assert server == ServerConfig(port=9000)
    assert engine == EngineConfig(max_batch_size=64, kv_cache_memory=0.5, dtype="float32")


def test_the_groups_hold_every_setting_once() -> None:
    names = [name for group in GROUPS.values() for name in group.model_fields]
    assert sorted(names) == sorted([*EngineConfig.model_fields, *ServerConfig.model_fields])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("source", ["flag", "environment", "yaml", "toml"])
def test_every_setting_has_a_flag_an_environment_variable_and_a_file_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, source: str
) -> None:
    """A valid value other than the default reaches its config, and nothing else changes."""
    choices = get_args(SETTINGS[name].annotation) if get_origin(SETTINGS[name].annotation) is Literal else ()
    value = next(str(choice) for choice in (*choices, 4096) if choice != SETTINGS[name].default)
    value = {"cors_origins": "http://a:1", "trusted_proxies": "10.0.0.7", "guard_threshold": "1"}.get(name, value)
    kind = ServerConfig if name in ServerConfig.model_fields else EngineConfig
    argv = []
    if source == "flag":
        argv = [flag(name), value]
    elif source == "environment":
        monkeypatch.setenv(f"DEEPSEEK_SERVE_{name.upper()}", value)
    else:
        path = tmp_path / f"serve.{source}"
        key, literal = name.replace("_", "-"), value if value.isdigit() or source == "yaml" else f'"{value}"'
        path.write_text(f"{key}: {literal}" if source == "yaml" else f"{key} = {literal}")
        argv = ["--config", str(path)]
    parsed = parse(argv)
    assert str(getattr(next(config for config in parsed if type(config) is kind), name)).removesuffix(".0") == value
    for config in parsed:
        defaults = type(config)()
        assert all(
            getattr(config, other) == getattr(defaults, other) for other in type(config).model_fields.keys() - {name}
        )


def test_the_policies_to_choose_from_are_those_there_are() -> None:
    assert get_args(SETTINGS["policy"].annotation) == tuple(POLICIES)


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
        ("serve.yaml", "max-batch-sise: 7\nmodle: x\n", "unknown keys: max-batch-sise, modle; deepseek-serve --help"),
        ("serve.toml", "max-batch-sise = 7\n", "unknown keys: max-batch-sise; deepseek-serve --help"),
        ("serve.yaml", "port: many\n", "--port is 'many'; it must be a valid integer"),
        ("serve.yaml", "config: other.yaml\n", "unknown keys: config;"),
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
    ("argv", "message"),
    [
        (["--dtype", "int3"], "--dtype is 'int3'; valid are auto, bfloat16, float16, float32"),
        (["--quantization", "int2"], "--quantization is 'int2'; valid are auto, none, int8, int4"),
        (["--device", "tpu"], "--device is 'tpu'; valid are auto, cpu, cuda"),
        (["--kernels", "magic"], "--kernels is 'magic'; valid are auto, native, torch, flash-attn, reference"),
        (["--policy", "luck"], "--policy is 'luck'; valid are length, fcfs, priority, fair"),
        (["--kv-cache-dtype", "int3"], "--kv-cache-dtype is 'int3'; valid are auto, int8"),
        (["--prefix-caching", "true"], "--prefix-caching is 'true'; valid are on, off"),
        (["--reasoning", "x"], "--reasoning is 'x'; valid are auto, none"),
        (["--log-level", "loud"], "--log-level is 'loud'; valid are debug, info, warning, error"),
        (["--port", "abc"], "--port is 'abc'; it must be a valid integer"),
        (["--port", "-1"], "--port is -1; it must be at least 0"),
        (["--port", "65536"], "--port is 65536; it must be at most 65535"),
        (["--threads", "0"], "--threads is 0; it must be at least 1"),
        (["--threads", "65537"], "--threads is 65537; it must be at most 65536"),
        (["--max-batch-size", "0"], "--max-batch-size is 0; it must be at least 1"),
        (["--max-batch-size", "1048577"], "--max-batch-size is 1048577; it must be at most 1048576"),
        (["--max-seq-len", "-5"], "--max-seq-len is -5; it must be at least 1"),
        (["--max-batched-tokens", "0"], "--max-batched-tokens is 0; it must be at least 1"),
        (["--max-batched-tokens", "8"], "--max-batched-tokens is 8; it must be at least --max-batch-size (32)"),
        (["--target-itl", "0"], "--target-itl is 0; it must be more than 0"),
        (["--prefill-share", "0"], "--prefill-share is 0; it must be more than 0"),
        (["--prefill-share", "nan"], "--prefill-share is nan; it must be more than 0"),
        (["--block-size", "0"], "--block-size is 0; it must be at least 1"),
        (["--block-size", "65537"], "--block-size is 65537; it must be at most 65536"),
        (["--num-kv-blocks", "0"], "--num-kv-blocks is 0; it must be at least 1"),
        (["--seed", "-1"], "--seed is -1; it must be at least 0"),
        (["--kv-cache-memory", "0"], "--kv-cache-memory is 0; it must be more than 0"),
        (["--kv-cache-memory", "nan"], "--kv-cache-memory is nan; it must be a finite number"),
        (["--kv-cache-memory", "inf"], "--kv-cache-memory is inf; it must be a finite number"),
        (["--kv-cache-memory", "1", "--num-kv-blocks", "1"], "--kv-cache-memory and --num-kv-blocks both size the KV"),
        (["--host", ""], "--host is empty; 127.0.0.1 is this machine"),
        (["--api-key", ""], "--api-key is empty or has a space in it"),
        (["--max-body-size", "0"], "--max-body-size is 0; it must be more than 0"),
        (["--max-queued-requests", "0"], "--max-queued-requests is 0; it must be at least 1"),
        (["--max-queued-tokens", "0"], "--max-queued-tokens is 0; it must be at least 1"),
        (["--request-timeout", "0"], "--request-timeout is 0; it must be more than 0"),
        (["--queue-timeout", "0"], "--queue-timeout is 0; it must be more than 0"),
        (["--drain-timeout", "-1"], "--drain-timeout is -1; it must be at least 0"),
        (["--drain-timeout", "inf"], "--drain-timeout is inf; it must be a finite number"),
        (["--max-batch-sise", "3"], "there is no flag --max-batch-sise; did you mean --max-batch-size?; deepseek"),
        (["--max-batch", "3"], "there is no flag --max-batch; did you mean --"),  # no abbreviations
        (["--ouput=1"], "there is no flag --ouput; did you mean --port?"),
        (["--zzz", "1"], "there is no flag --zzz; deepseek-serve --help"),
        (["a", "b"], "unrecognized arguments: b; deepseek-serve --help"),
        (["a", "--model", "b"], "the model is a and --model is b; give one of them"),
        (["--served-model-name", "a", "/tmp"], "--served-model-name is a /tmp; name the model first"),
        (["--served-model-name", ","], "--served-model-name is empty"),
        (["--model"], "argument --model: expected one argument; deepseek-serve --help"),
    ],
    ids=str,
)
def test_a_mistake_is_named_with_what_is_valid(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert refused(capsys, *argv).startswith(f"deepseek-serve: error: {message}")


def test_a_bad_environment_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEEPSEEK_SERVE_DTYPE", "int3")
    assert "float32" in refused(capsys)


def test_an_unknown_environment_variable_is_named_with_the_nearest_known_one() -> None:
    names = ["DEEPSEEK_SERVE_MAX_BATCH_SISE", "DEEPSEEK_SERVE_PORT", "deepseek_serve_host", "PATH", "DEEPSEEK_SERVE_X"]
    warnings = list(unknown_variables(names))
    assert len(warnings) == 2
    assert warnings[0].startswith("DEEPSEEK_SERVE_MAX_BATCH_SISE is ignored")
    assert warnings[0].endswith("the nearest is DEEPSEEK_SERVE_MAX_BATCH_SIZE")


def run(*argv: str, script: bool = True) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("deepseek-serve")] if script else [sys.executable, "-m", "server.cli"]
    return subprocess.run([*command, *argv], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("script", [True, False])
def test_help_lists_every_setting_in_its_group_with_its_default(script: bool) -> None:
    outcome = run("--help", script=script)
    assert outcome.returncode == 0
    sections = dict(re.findall(r"^(\w[\w ]*):\n((?:  .*\n)+)", outcome.stdout, re.MULTILINE))
    assert [title for title in sections if title in GROUPS] == list(GROUPS)
    for title, group in GROUPS.items():
        listed = re.split(r"^  (?=--)", sections[title], flags=re.MULTILINE)[1:]
        assert [entry.split()[0] for entry in listed] == [flag(name) for name in group.__annotations__]
        for entry, name in zip(listed, group.__annotations__, strict=True):
            text, default = " ".join(entry.split()), group.model_fields[name].default
            assert (default is None) == ("(default:" not in text)
            assert default is None or f"(default: {default})" in text
            assert all(
                str(choice) in text for choice in get_args(group.model_fields[name].annotation) if default == "auto"
            )
    assert "%(" not in outcome.stdout
    assert "%%" not in outcome.stdout
    assert "DEEPSEEK_SERVE_MAX_BATCH_SIZE" in outcome.stdout
    assert "--config FILE" in sections["options"]
    assert "deepseek-serve --config serve.yaml" in sections["examples"]


def test_version_is_the_distributions() -> None:
    outcome = run("--version")
    assert outcome.returncode == 0
    assert outcome.stdout.startswith("deepseek-serve 0.")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns_and_imports_nothing_heavy(command: str) -> None:
    argv = [*command.split(), "--help"]
    code = (
        f"import sys, runpy; sys.argv[1:] = {argv!r}\ntry: runpy.run_module('server.cli', run_name='__main__')\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    environment = {**os.environ, "COLUMNS": "80"}
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    title = f"usage: deepseek-serve {'[COMMAND] [MODEL]' if command in ('', 'serve') else command} "
    assert outcome.stdout.startswith(title)
    assert max(map(len, outcome.stdout.splitlines())) <= 80
    assert not {"torch", "numpy", "fastapi", "uvicorn", "zmq", "huggingface_hub"} & set(outcome.stderr.split())


def test_help_lists_every_command_and_every_command_exists() -> None:
    listed = run("--help").stdout.partition("commands (")[2].partition("\n\n")[0]
    for name, text in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", listed, re.MULTILINE)
        assert name == "serve" or callable(import_module(f"server.commands.{name.replace('-', '_')}").main)


@pytest.mark.parametrize("argv", [["m"], ["--model", "m"], ["m", "--model", "m"]])
def test_the_model_may_stand_alone(argv: list[str]) -> None:
    assert parse(argv)[1].model == "m"


@pytest.mark.parametrize("argv", [["--served-model-name", "a", "b"], ["--served-model-name", "a, b"]])
def test_several_names_may_be_given(argv: list[str]) -> None:
    assert parse(argv)[0].model_names == ("a", "b")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], ("serve", [])),
        (["serve", "m", "--port", "1"], ("serve", ["m", "--port", "1"])),
        (["org/model", "--port", "1"], ("serve", ["org/model", "--port", "1"])),
        (["--port", "1"], ("serve", ["--port", "1"])),
        (["help"], ("serve", ["--help"])),
        (["chat", "m"], ("chat", ["m"])),
    ],
)
def test_a_word_is_a_command_or_a_model(argv: list[str], expected: tuple[str, list[str]]) -> None:
    assert cli._command(argv) == expected


@pytest.mark.parametrize(
    ("word", "nearest"), [("quantise", "quantize"), ("chatt", "chat"), ("make_checkpoint", "make-checkpoint")]
)
def test_a_misspelt_command_is_told_from_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str, nearest: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli._command([word])
    assert f"did you mean {nearest!r}?" in capsys.readouterr().err
    (tmp_path / word).mkdir()
    assert cli._command([word]) == ("serve", [word])


@pytest.mark.parametrize("script", [True, False])
def test_the_command_answers_a_bad_value_with_status_2_and_one_line(script: bool) -> None:
    outcome = run("--dtype", "int3", script=script)
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr == "deepseek-serve: error: --dtype is 'int3'; valid are auto, bfloat16, float16, float32\n"
