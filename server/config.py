"""The server's own settings, beside the engine's (engine.config)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, model_validator

from engine.config import Settings, setting
from engine.errors import ConfigError
from server.http.cors import parse_origins
from server.http.hosts import TrustedHosts
from server.http.proxies import TrustedProxies
from server.rate_limits import RateLimits


class ServerConfig(Settings):
    """Where and how the API is served."""

    model_config = ConfigDict(title="server")

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 is all of them", metavar="ADDRESS")
    port: int = setting(8000, "port to listen on; 0 takes a free one and logs it", ge=0, le=65535)
    served_model_name: str | None = setting(
        None,
        "what the API calls the model: one name or several, with commas between them; "
        "default: the hub id, or the folder's or file's name",
        metavar="NAME[,NAME]",
    )
    model_root: str | None = setting(
        None,
        "what /v1/models says as `root`, which clients may read as the tokenizer's name; default: the hub id, or "
        "the model's name",
        metavar="TEXT",
    )
    chat_template: str | None = setting(
        None,
        "a Jinja file, or deepseek-v2, deepseek-v3, deepseek-r1, deepseek-v3.1 or deepseek-v3.2; default: the model's",
        metavar="NAME|FILE",
    )
    chat_template_timeout: float = setting(
        5.0, "seconds that a chat template may take for one conversation, else 400", metavar="SECONDS", gt=0
    )
    generation_config: str = setting(
        "auto",
        "where sampling defaults come from: auto is the model's generation_config.json, none is no file, all else is a "
        "folder that has one; what a request sets wins",
        metavar="auto|none|FOLDER",
    )
    pooling: Literal["auto", "last", "mean"] = setting(
        "auto",
        "how embeddings are made of a text's tokens: last is the last token's hidden state, mean is the mean of all; "
        "auto reads the model's 1_Pooling/config.json, and is last without it",
    )
    max_inputs: int = setting(
        2048, "texts, or pairs of texts, of one request for embeddings, classes or scores; more is refused", ge=1
    )
    reasoning: Literal["auto", "none"] = setting(
        "auto",
        "what happens to R1-style <think> text in chat answers: auto gives it apart, as reasoning_content; "
        "none leaves it in the content",
    )
    tool_parser: Literal[
        "auto", "none", "deepseek-v3", "deepseek-v3.1", "deepseek-v3.2", "hermes", "llama3", "mistral"
    ] = setting(
        "auto",
        "the format in which the model writes tool calls; auto takes it from the chat template, none refuses tools",
    )
    guard: str | None = setting(
        None,
        "a second model, with a classification head, that reads prompts before they are answered and answers before "
        "they are sent: what it flags is refused, or ends with finish_reason content_filter; without it, nothing is "
        "answered (503)",
        metavar="FOLDER|HUB_ID",
    )
    guard_safe_label: str | None = setting(
        None,
        "labels that mean a text is safe, of the guard and at /v1/moderations, with commas between them; default: the "
        "one called safe",
        metavar="LABEL[,LABEL]",
    )
    guard_threshold: float = setting(
        0.5, "score from which the other labels flag a text: of one, or of all that exclude the safe one", gt=0, le=1
    )
    guard_window: int = setting(
        32, "tokens of an answer that are held back until the guard has read them: fewer are sent sooner", ge=1
    )
    guard_memory: float = setting(0.25, "memory for the guard's KV cache", metavar="GiB", gt=0)
    api_key: str | None = setting(None, "let in only requests with this key (Authorization: Bearer KEY)", metavar="KEY")
    api_keys: str | None = setting(
        None,
        "a file of keys to let in, a line for each: KEY [WEIGHT] [NAME] [LIMIT=N ...], with a share other than 1 (see "
        "--policy fair), what metrics call the key, and limits of its own: requests, requests-per-minute and "
        "tokens-per-minute; it is read again when it changes",
        metavar="FILE",
    )
    cors_origins: str | None = setting(
        None,
        "let in pages of these sites (SCHEME://HOST[:PORT], between commas, or * for all), which browsers ask about; "
        "the server's own page at / needs none",
        metavar="ORIGIN,...",
    )
    trusted_hosts: str | None = setting(
        None,
        "names that the header Host may have (api.example.com, *.example.com; * for any); default: any, but without "
        "keys on a loopback --host only names and addresses that no site of the internet can have",
        metavar="NAME,...",
    )
    trusted_proxies: str | None = setting(
        None,
        "proxies (addresses or networks, as in 10.1.0.0/16) whose X-Forwarded-For says who the client is",
        metavar="ADDRESS,...",
    )
    tls_cert: str | None = setting(
        None,
        "serve HTTPS with this certificate, and those that lead to its root, in PEM; it is read again when it changes",
        metavar="FILE",
    )
    tls_key: str | None = setting(
        None, "its private key, in PEM, without a passphrase; default: it is in --tls-cert", metavar="FILE"
    )
    admin_port: int | None = setting(
        None,
        "serve /metrics, /load and /debug/state on this port alone, over HTTP and without a key, and the probes too",
        ge=0,
        le=65535,
    )
    admin_host: str = setting("127.0.0.1", "address of --admin-port", metavar="ADDRESS")
    max_client_requests: int | None = setting(
        None, "requests of each API key (of each address, without keys) under way at a time; more get 429", ge=1
    )
    client_requests_per_minute: int | None = setting(
        None, "requests of each key or address in a minute; more get 429", ge=1, le=10**12
    )
    client_tokens_per_minute: int | None = setting(
        None, "tokens of prompts and answers of each in a minute; more get 429", ge=1, le=10**12
    )
    max_client_connections: int | None = setting(
        None,
        "connections of each address at a time, and behind trusted proxies its requests under way; more get 429",
        ge=1,
    )
    max_connections: int = setting(
        2500, "connections at a time; beyond it, one that has sent no whole request makes room for a new one", ge=1
    )
    max_body_size: float = setting(4.0, "MiB of a request's body; more is refused with 413", metavar="MiB", gt=0)
    max_bodies_size: float = setting(
        64.0, "MiB of all bodies that are arriving; more is refused with 503", metavar="MiB", gt=0
    )
    header_timeout: float = setting(
        10.0, "seconds in which a request's headers must arrive, else 408", metavar="SECONDS", gt=0
    )
    body_timeout: float = setting(
        60.0, "seconds in which a request's body must arrive, else 408", metavar="SECONDS", gt=0
    )
    write_timeout: float = setting(
        30.0,
        "seconds in which a client with an answer to read reads nothing before its request is ended",
        metavar="SECONDS",
        gt=0,
    )
    max_queued_requests: int = setting(
        1024, "prompts that may wait for their first token; more are refused with 429", ge=1
    )
    max_queued_tokens: int = setting(1_000_000, "tokens of those prompts, likewise", ge=1)
    request_timeout: float | None = setting(
        None,
        "seconds after which a request is ended with 408; a request's own `timeout` may be shorter",
        metavar="SECONDS",
        gt=0,
    )
    queue_timeout: float | None = setting(
        None, "seconds that a request may wait to start before it is refused with 429", metavar="SECONDS", gt=0
    )
    engine_timeout: float = setting(
        50.0,
        "seconds without a sign of life (more than the longest step) after which the engine is started again",
        metavar="SECONDS",
        gt=0,
    )
    startup_timeout: float = setting(
        300.0,
        "seconds without progress while the model is being loaded after which the engine is ended: at the first start "
        "the server ends with status 1, later the engine is started again",
        metavar="SECONDS",
        gt=0,
    )
    max_grammar_size: int = setting(
        262_144, "characters of a request's JSON schema, or other grammar of its output, at most", ge=1
    )
    grammar_timeout: float = setting(
        5.0, "seconds that such a grammar may take to compile, else 400", metavar="SECONDS", gt=0
    )
    drain_delay: float = setting(
        0.0,
        "seconds after SIGTERM (not ctrl-C) in which /readyz fails and new requests are still taken",
        ge=0,
        metavar="SECONDS",
    )
    drain_timeout: float = setting(
        3.0, "seconds that running requests may then take to finish", ge=0, metavar="SECONDS"
    )
    data_dir: str | None = setting(
        None,
        "where files, batches and stored responses are kept, opened when first needed; memory keeps them until the "
        "server ends, off refuses them; default: $XDG_STATE_HOME/deepseek-serve, or ~/.local/state/deepseek-serve",
        metavar="FOLDER|memory|off",
    )
    database_url: str | None = setting(
        None,
        "keep them in this database instead, by SQLAlchemy's URL (postgresql+psycopg://...); several servers may share "
        "one",
        metavar="URL",
    )
    max_file_size: float = setting(
        200.0, "MiB of a file that is uploaded to /v1/files; more is refused with 413", metavar="MiB", gt=0
    )
    max_files: int = setting(10_000, "files kept at most, those that batches write among them", ge=1)
    max_files_size: float = setting(
        8192.0, "MiB of them, likewise; beyond it nothing is uploaded and no batch is taken", metavar="MiB", gt=0
    )
    max_batches: int = setting(10_000, "batches remembered at most, for 30 days", ge=1)
    max_batch_lines: int = setting(100_000, "requests of one batch at most", ge=1)
    max_stored_responses: int = setting(10_000, "responses kept at most; the oldest make room", ge=0)
    max_stored_responses_size: float = setting(256.0, "MiB of them, likewise", metavar="MiB", ge=0)
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "how much to log")
    log_format: Literal["text", "json"] = setting(
        "text", "json: an object a line, of every process, with the ids of requests and traces"
    )
    access_log: Literal["on", "off"] = setting(
        "on", "a line for each request: who, what, status, tokens, times; never its text"
    )
    stats_interval: float = setting(
        10.0, "seconds between lines about the load, while there is load; 0 is none", metavar="SECONDS", ge=0
    )
    traces: Literal["off", "otlp"] = setting(
        "off",
        "otlp: a trace of each request goes to an OpenTelemetry collector, as the OTEL_* variables say "
        "(OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, ...); never its text",
    )
    metrics_compat: Literal["none", "vllm"] = setting(
        "none", "vllm: /metrics has vLLM's names too, for dashboards made for it"
    )

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names in --served-model-name; empty if it is not set."""
        return tuple(name.strip() for name in (self.served_model_name or "").split(",") if name.strip())

    @property
    def safe_labels(self) -> tuple[str, ...]:
        """The labels in --guard-safe-label; empty if it is not set."""
        return tuple(name.strip() for name in (self.guard_safe_label or "").split(",") if name.strip())

    @property
    def client_limits(self) -> RateLimits:
        """The limits of a client of which nothing else is said."""
        return RateLimits(self.max_client_requests, self.client_requests_per_minute, self.client_tokens_per_minute)

    @model_validator(mode="after")
    def _check_server(self) -> Self:
        if self.api_key is not None and (not self.api_key.strip() or " " in self.api_key):
            raise ConfigError("--api-key is empty or has a space in it")
        if self.served_model_name is not None and not self.model_names:
            raise ConfigError("--served-model-name is empty; leave it out to call the model as its folder is called")
        if self.guard_safe_label is not None and not self.safe_labels:
            raise ConfigError("--guard-safe-label is empty; leave it out if the guard has a label called safe")
        parse_origins(self.cors_origins)
        TrustedProxies.parse(self.trusted_proxies)
        TrustedHosts.resolve(self.trusted_hosts, self.host, has_keys=False)
        if self.admin_port == self.port != 0:
            raise ConfigError(f"--admin-port and --port are both {self.port}; they must differ")
        for name, host in (("--host", self.host), ("--admin-host", self.admin_host)):
            if not host:
                raise ConfigError(f"{name} is empty; 127.0.0.1 is this machine, 0.0.0.0 all of its addresses")
        return self
