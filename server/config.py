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
    api_key: str | None = option(None, "let in only requests with this key (Authorization: Bearer KEY)", metavar="KEY")
    api_keys: str | None = option(
        None,
        "a file of keys to let in, one a line, each with a weight of its share if it is not 1 (see --policy fair)",
        metavar="FILE",
    )
    max_body_size: float = option(32.0, "MiB of a request's body; more is refused with 413", metavar="MiB")
    max_queued_requests: int = option(
        1024, "prompts that may wait for their first token; more are refused with 429", at_least=1
    )
    max_queued_tokens: int = option(1_000_000, "tokens of those prompts, likewise", at_least=1)
    request_timeout: float | None = option(
        None,
        "seconds after which a request is ended with 408; a request's own `timeout` may be shorter",
        metavar="SECONDS",
    )
    queue_timeout: float | None = option(
        None, "seconds that a request may wait to start before it is refused with 429", metavar="SECONDS"
    )
    shutdown_timeout: float = option(
        3.0, "seconds that running requests may take to finish after SIGTERM or ctrl-C", at_least=0, metavar="SECONDS"
    )
    log_level: str = option("info", "how much to log", choices=("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        check_options(self)
        for flag, seconds in (("request", self.request_timeout), ("queue", self.queue_timeout)):
            if seconds is not None and not seconds > 0:
                raise ConfigError(f"--{flag}-timeout is {seconds}; it must be more than 0 (seconds)")
        if self.api_key is not None and (not self.api_key.strip() or " " in self.api_key):
            raise ConfigError("--api-key is empty or has a space in it")
        if not self.max_body_size > 0:
            raise ConfigError(f"--max-body-size is {self.max_body_size}; it must be more than 0 (MiB)")
        if not self.host:
            raise ConfigError("--host is empty; 127.0.0.1 is this machine, 0.0.0.0 all of its addresses")
        if self.port > 65535:
            raise ConfigError(f"--port is {self.port}; ports end at 65535")
