"""The command `deepseek-serve`: flags, environment and configuration file to settings, then serve.

Exit status: 0 after a stop by signal, 2 when a setting or the model is at fault, 1 when the program is.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sys
import tomllib
import types
import typing
from typing import Any

import configargparse
import yaml

from engine.config import EngineConfig
from engine.errors import ConfigError, EngineUnavailableError, ModelError
from server.config import LOG_FORMAT, ServerConfig

_DESCRIPTION = """Serve a language model over an OpenAI-compatible HTTP API.

With no flags it serves SmolLM2-135M-Instruct on http://127.0.0.1:8000 (98 MB, fetched once).

deepseek-serve quantize makes an int8 checkpoint of a model, and deepseek-serve make-checkpoint
writes a small random DeepSeek model to try: each has its own --help."""

_EPILOG = """Each flag is also an environment variable (--max-batch-size is
DEEPSEEK_SERVE_MAX_BATCH_SIZE) and a key of the YAML or TOML file that --config
names (max-batch-size: 64). Flags win over the environment, the environment over
the file.

examples:
  deepseek-serve
  deepseek-serve --model /models/deepseek-llm-7b-chat --port 9000 --max-batch-size 64
  deepseek-serve --model HuggingFaceTB/SmolLM2-360M-Instruct --dtype float32
  deepseek-serve --config serve.yaml"""

_GROUPS: tuple[tuple[str, type, tuple[str, ...]], ...] = (
    ("model", EngineConfig, ("model", "dtype", "quantization", "device", "kernels", "threads")),
    (
        "batching and memory",
        EngineConfig,
        (
            "max_batch_size",
            "max_seq_len",
            "max_batched_tokens",
            "policy",
            "target_itl",
            "prefill_share",
            "block_size",
            "kv_cache_memory",
            "kv_cache_dtype",
            "num_kv_blocks",
            "prefix_caching",
            "seed",
        ),
    ),
    (
        "server",
        ServerConfig,
        (
            "host",
            "port",
            "served_model_name",
            "chat_template",
            "reasoning",
            "api_key",
            "api_keys",
            "max_body_size",
            "max_queued_requests",
            "max_queued_tokens",
            "request_timeout",
            "queue_timeout",
            "shutdown_timeout",
            "log_level",
        ),
    ),
)


def main() -> None:
    """Entry point of the console script."""
    if sys.argv[1:2] == ["make-checkpoint"]:
        from server import make_checkpoint

        sys.exit(make_checkpoint.main(sys.argv[2:]))
    if sys.argv[1:2] == ["quantize"]:
        from server import quantize

        sys.exit(quantize.main(sys.argv[2:]))
    server_config, engine_config = parse(sys.argv[1:])
    logging.basicConfig(level=server_config.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    from server.serve import serve  # after the flags are known to be good: it imports the web stack

    try:
        sys.exit(asyncio.run(serve(server_config, engine_config)))
    except (ConfigError, ModelError) as error:
        sys.exit(_complain(error))
    except EngineUnavailableError as error:
        _complain(error)
        sys.exit(1)
    except KeyboardInterrupt:  # before uvicorn took over the signals
        sys.exit(130)


def parse(argv: list[str]) -> tuple[ServerConfig, EngineConfig]:
    """Settings from flags, environment and file; a bad value ends the program with status 2 and says what is valid."""
    parser = _parser()
    values = vars(parser.parse_args(argv))
    try:
        return tuple(  # type: ignore[return-value]
            config(**{field.name: values[field.name] for field in dataclasses.fields(config)})
            for config in (ServerConfig, EngineConfig)
        )
    except ConfigError as error:
        sys.exit(_complain(error))


def _complain(error: Exception) -> int:
    sys.stderr.write(f"deepseek-serve: error: {error}\n")
    return 2


def _parser() -> Any:
    parser = configargparse.ArgumentParser(
        prog="deepseek-serve",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=configargparse.RawDescriptionHelpFormatter,
        auto_env_var_prefix="DEEPSEEK_SERVE_",
        config_file_parser_class=_ConfigFile,
        add_env_var_help=False,
        add_config_file_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        is_config_file_arg=True,
        env_var="DEEPSEEK_SERVE_CONFIG",
        metavar="FILE",
        help="YAML or TOML file with any of the flags below",
    )
    parser.add_argument("--version", action="version", version=_version())
    for title, config, names in _GROUPS:
        group = parser.add_argument_group(title)
        fields = {field.name: field for field in dataclasses.fields(config)}
        hints = typing.get_type_hints(config)
        for name in names:
            field = fields[name]
            default = "" if field.default is None else " (default: %(default)s)"
            group.add_argument(
                "--" + name.replace("_", "-"),
                dest=name,
                type=_plain_type(hints[name]),
                default=field.default,
                choices=field.metadata["choices"] or None,
                metavar=field.metadata["metavar"] or (None if field.metadata["choices"] else "N"),
                help=field.metadata["help"] + default,
            )
    return parser


class _ConfigFile(configargparse.ConfigFileParser):  # type: ignore[misc]
    """A flat YAML or TOML file, told apart by its ending."""

    def parse(self, stream: Any) -> dict[str, str]:
        try:
            text = stream.read()
            values = tomllib.loads(text) if stream.name.endswith(".toml") else yaml.safe_load(text)
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
            raise configargparse.ConfigFileParserException(f"{stream.name} cannot be read: {error}") from None
        if not isinstance(values, dict) or any(isinstance(value, dict | list) for value in values.values()):
            raise configargparse.ConfigFileParserException(
                f"{stream.name} must hold flags and plain values: max-batch-size: 64"
            )
        words = {True: "on", False: "off"}  # which YAML makes of them unasked
        return {
            str(name).replace("_", "-"): words[value] if isinstance(value, bool) else str(value)
            for name, value in values.items()
            if value is not None
        }


def _plain_type(hint: Any) -> Any:
    """`int | None` -> `int`."""
    if isinstance(hint, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _version() -> str:
    from importlib.metadata import version

    return f"deepseek-serve {version('deepseek-serve')}"
