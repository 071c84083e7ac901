"""The server's own settings, beside the engine's (engine.config)."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import check_options, option
from engine.errors import ConfigError

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where and how the API is served."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 is all of them", metavar="ADDRESS")
    port: int = option(8000, "port to listen on; 0 takes a free one and logs it", at_least=0)
    served_model_name: str | None = option(
        None, "what the API calls the model; default: the hub id, or the folder's or file's name", metavar="NAME"
    )
    chat_template: str | None = option(
        None,
        "a Jinja file, or deepseek-v2, deepseek-v3, deepseek-r1 or deepseek-v3.1, instead of the model's own",
        metavar="NAME|FILE",
    )
    reasoning: str = option(
        "auto",
        "what happens to R1-style <think> text in chat answers: auto gives it apart, as reasoning_content; "
        "none leaves it in the content",
        choices=("auto", "none"),
    )
    shutdown_timeout: float = option(
        3.0, "seconds that running requests may take to finish after SIGTERM or ctrl-C", at_least=0, metavar="SECONDS"
    )
    log_level: str = option("info", "how much to log", choices=("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        check_options(self)
        if self.port > 65535:
            raise ConfigError(f"--port is {self.port}; ports end at 65535")
