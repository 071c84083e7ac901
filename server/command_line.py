"""Settings from flags, environment and configuration file. What is done with them is server.cli's.

pydantic-settings merges the sources. Its own parsers of flags and files do not fit: help without groups and with types
for values, no nearest flag, no keys with dashes, and YAML's `on` is refused as a boolean.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from engine.config import BatchingSettings, EngineConfig, ModelSettings, Settings, flag, setting
from engine.errors import ConfigError
from engine.logs import printable
from server.arguments import Parser
from server.config import ServerConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_DESCRIPTION = """Serve a language model over an OpenAI-compatible HTTP API.

Without a model it serves SmolLM2-135M-Instruct (98 MB, fetched once) on http://127.0.0.1:8000.

commands (each has its own --help):
{commands}"""

_EPILOG = """Each flag is also an environment variable (--max-batch-size is
DEEPSEEK_SERVE_MAX_BATCH_SIZE) and a key of the YAML or TOML file that --config
names (max-batch-size: 64). Flags win over the environment, the environment over
the file.

examples:
  deepseek-serve
  deepseek-serve /models/deepseek-llm-7b-chat --port 9000 --max-batch-size 64
  deepseek-serve HuggingFaceTB/SmolLM2-360M-Instruct --dtype float32
  deepseek-serve chat
  deepseek-serve --config serve.yaml"""

_WIDTH = 74  # columns for a flag and its value; choices that need more are listed in the text
_FAULTS = "DEEPSEEK_SERVE_FAULTS"  # engine.faults, which warns of it itself
_PREFIX = "DEEPSEEK_SERVE_"  # of environment variables
_GROUPS: tuple[type[Settings], ...] = (ModelSettings, BatchingSettings, ServerConfig)


class CommandLine(ServerConfig, EngineConfig, BaseSettings):
    """All settings, from flags (given by name), else the environment, else the file that `config` names."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX)

    config: str | None = setting(None, "YAML or TOML file with any of the flags below", metavar="FILE")

    @classmethod
    def settings_customise_sources(  # type: ignore[override]  # sources that are not used have no name here
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        **_: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Called by pydantic-settings: the sources, the one that wins first."""
        path = (env_settings() | init_settings()).get("config")
        return init_settings, env_settings, InitSettingsSource(settings_cls, _read_file(path) if path else {})


def parse(argv: list[str], commands: Mapping[str, str] | None = None) -> tuple[ServerConfig, EngineConfig]:
    """Settings from flags, environment and file; a mistake ends the program with status 2 and says what is valid.

    `commands` are the subcommands that help lists, with what each does.
    """
    try:
        values = CommandLine(**_flags(argv, commands or {})).model_dump()
    except ConfigError as error:
        sys.exit(complain(error))
    server, engine = ({name: values[name] for name in kind.model_fields} for kind in (ServerConfig, EngineConfig))
    return ServerConfig(**server), EngineConfig(**engine)


def unknown_variables(environment: Iterable[str]) -> Iterator[str]:
    """Yield a warning for each variable with our prefix that is no setting.

    It is no error: Kubernetes sets DEEPSEEK_SERVE_SERVICE_HOST and the like beside a service called deepseek-serve.
    """
    known = [f"{_PREFIX}{name.upper()}" for name in CommandLine.model_fields]
    for name in environment:
        if name.upper().startswith(_PREFIX) and name.upper() not in known and name != _FAULTS:
            nearest = difflib.get_close_matches(name.upper(), known, 1, 0)[0]
            yield f"{name} is ignored: no setting has this environment variable; the nearest is {nearest}"


def complain(error: Exception) -> int:
    """Say what is wrong on standard error; the exit status."""
    sys.stderr.write(f"deepseek-serve: error: {printable(str(error))}\n")
    return 2


def _flags(argv: list[str], commands: Mapping[str, str]) -> dict[str, Any]:
    """The values of the flags that are given.

    Raises:
        ConfigError: two of them contradict each other.
    """
    values = vars(_parser(commands).parse_args(argv))
    model = values.pop("MODEL", None)
    if model is not None and values.setdefault("model", model) != model:
        raise ConfigError(f"the model is {model} and --model is {values['model']}; give one of them")
    names = values.get("served_model_name", [])
    if model is None and "model" not in values and any(Path(name).exists() for name in names[1:]):
        raise ConfigError(f"--served-model-name is {' '.join(names)}; name the model first: deepseek-serve MODEL ...")
    return {**values, "served_model_name": ",".join(names)} if names else values


def _parser(commands: Mapping[str, str]) -> argparse.ArgumentParser:
    """A parser of flags only. Values stay text: `CommandLine` checks them, as it checks those of other sources."""
    listed = "\n".join(f"  {name:17} {text}" for name, text in commands.items())
    parser = Parser("deepseek-serve", _DESCRIPTION.format(commands=listed), _EPILOG)
    parser.argument_default = argparse.SUPPRESS
    parser.usage = "deepseek-serve [COMMAND] [MODEL] [--FLAG VALUE ...]"
    parser.add_argument("MODEL", nargs="?", help="the same as --model", default=argparse.SUPPRESS)
    _add_flag(parser, "config", CommandLine)
    parser.add_argument("--version", action="version", version=f"deepseek-serve {version('deepseek-serve')}")
    for group in _GROUPS:
        section = parser.add_argument_group(group.model_config["title"])
        for name in group.__annotations__:
            _add_flag(section, name, group)
    return parser


def _add_flag(section: argparse._ActionsContainer, name: str, group: type[Settings]) -> None:
    field = group.model_fields[name]
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    default = "" if field.default is None else f" (default: {field.default})"
    metavar, help_text = f"{{{','.join(choices)}}}" if choices else field.title, field.description
    if choices and len(flag(name)) + len(str(metavar)) > _WIDTH:
        metavar, help_text = "NAME", f"{help_text}; NAME is {', '.join(choices)}"
    section.add_argument(
        flag(name),
        dest=name,
        nargs="+" if name == "served_model_name" else None,
        metavar=metavar,
        help=f"{help_text}{default}".replace("%", "%%"),
    )


def _read_file(path: str) -> dict[str, Any]:
    """A flat YAML or TOML file, told apart by its ending.

    Raises:
        ConfigError: it cannot be read, or has what is not a setting.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            values = tomllib.loads(file.read()) if path.endswith(".toml") else yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or any(isinstance(value, dict | list) for value in values.values()):
        raise ConfigError(f"--config {path} must hold flags and plain values: max-batch-size: 64")
    settings = {str(key).replace("-", "_"): value for key, value in values.items() if value is not None}
    if unknown := settings.keys() - ServerConfig.model_fields.keys() - EngineConfig.model_fields.keys():
        names = ", ".join(sorted(unknown)).replace("_", "-")
        raise ConfigError(f"--config {path} has unknown keys: {names}; deepseek-serve --help lists what is valid")
    words = {True: "on", False: "off"}  # YAML reads these words as booleans
    return {name: words[value] if isinstance(value, bool) else value for name, value in settings.items()}
