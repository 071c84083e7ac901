"""The command `deepseek-serve`: serves a model, or does what a subcommand says.

Exit status: 0 after a stop by signal, 2 when a setting or the model is at fault, 1 when the program is.
"""

from __future__ import annotations

import difflib
import gc
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

COMMANDS = {
    "serve": "serve a model; the same without this word",
    "chat": "talk to a model in the terminal, in this process or at a URL",
    "bench": "tokens per second and latencies, in this process or at a URL",
    "fetch": "download a model of the hub",
    "quantize": "make a checkpoint of a model in 8 or 4 bits",
    "make-checkpoint": "write a small random DeepSeek model to try",
}


def main() -> None:
    """Entry point of the console script."""
    name, argv = _command(sys.argv[1:])
    if name == "serve":
        _serve(argv)
    sys.exit(import_module(f"server.commands.{name.replace('-', '_')}").main(argv))


def _command(argv: list[str]) -> tuple[str, list[str]]:
    """Take the subcommand from the arguments; a word that is none is a model to serve, unless it looks misspelt."""
    word = argv[0] if argv else ""
    if word in COMMANDS:
        return word, argv[1:]
    if word == "help":
        return "serve", ["--help"]
    nearest = difflib.get_close_matches(word, COMMANDS, 1, 0.7)
    if nearest and not Path(word).exists():
        sys.stderr.write(
            f"deepseek-serve: error: there is no command or model {word!r}; did you mean {nearest[0]!r}? "
            "deepseek-serve --help lists what is valid\n"
        )
        sys.exit(2)
    return "serve", argv


def _serve(argv: list[str]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # before the slow imports; later steps have handlers of their own
        signal.signal(number, lambda *_: os._exit(0))  # there is nothing to clean up yet
    gc.disable()  # until server.serve has all: there is no garbage in what is imported
    from server.command_line import complain, parse, unknown_variables

    server_config, engine_config = parse(argv, COMMANDS)
    import logging

    from engine.errors import ConfigError, EngineUnavailableError, ModelError
    from engine.logs import configure
    from engine.names import name_process
    from server.http.request_record import RequestIdFilter

    configure("api", server_config.log_level, server_config.log_format, RequestIdFilter())
    name_process("api", f"{server_config.host}:{server_config.port}")
    for warning in unknown_variables(os.environ):
        logging.getLogger(__name__).warning(warning)
    from server.serve import serve  # after the flags are known to be good: it imports uvicorn

    try:
        sys.exit(serve(server_config, engine_config))
    except (ConfigError, ModelError, EngineUnavailableError) as error:
        if server_config.log_format == "json":
            logging.getLogger(__name__).critical("%s", error)
        else:
            complain(error)
        sys.exit(1 if isinstance(error, EngineUnavailableError) else 2)


if __name__ == "__main__":
    main()
