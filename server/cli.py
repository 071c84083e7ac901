"""The command `deepseek-serve`: settings from the command line, then serve.

Exit status: 0 after a stop by signal, 2 when a setting or the model is at fault, 1 when the program is.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module


def main() -> None:
    """Entry point of the console script."""
    if sys.argv[1:2] in (["fetch"], ["make-checkpoint"], ["quantize"]):
        command = import_module(f"server.{sys.argv[1].replace('-', '_')}")
        sys.exit(command.main(sys.argv[2:]))
    for number in (signal.SIGINT, signal.SIGTERM):  # before the slow imports; later steps have handlers of their own
        signal.signal(number, lambda *_: os._exit(0))  # there is nothing to clean up yet
    from server.command_line import complain, parse, unknown_variables

    server_config, engine_config = parse(sys.argv[1:])
    import logging

    from engine.errors import ConfigError, EngineUnavailableError, ModelError
    from server.config import LOG_FORMAT
    from server.request_record import RequestIdFilter

    logging.basicConfig(level=server_config.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    logging.getLogger().handlers[0].addFilter(RequestIdFilter())
    for warning in unknown_variables(os.environ):
        logging.getLogger(__name__).warning(warning)
    from server.serve import serve  # after the flags are known to be good: it imports uvicorn

    try:
        sys.exit(serve(server_config, engine_config))
    except (ConfigError, ModelError) as error:
        sys.exit(complain(error))
    except EngineUnavailableError as error:
        complain(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
