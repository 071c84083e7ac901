"""The error tree. Each layer raises from here; server.http.errors alone maps it to HTTP, server.cli to statuses."""


class DeepseekServeError(Exception):
    """Base of every error that this project raises on purpose; its text is meant for users.

    Attributes:
        param: the request field at fault, where there is one.
        code: OpenAI's machine-readable code, where there is one.
    """

    param: str | None = None
    code: str | None = None


class ConfigError(DeepseekServeError, ValueError):
    """A setting has a bad value; the text names the setting and what is valid."""


class ModelError(DeepseekServeError):
    """A model cannot be found, read or served; the text says which file or tensor and what was expected."""


class RequestError(DeepseekServeError, ValueError):
    """A request asks for something invalid."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContentFilterError(RequestError):
    """The guard has flagged what a request says (server.guard)."""

    def __init__(self, message: str, param: str | None = None, code: str | None = "content_filter") -> None:
        super().__init__(message, param, code)


class NotFoundError(RequestError):
    """A request names what is not there: a file, a batch, a response."""


class UnknownModelError(NotFoundError):
    """A request names a model that is not served here."""


class EngineUnavailableError(DeepseekServeError):
    """The engine is starting, stopping or gone; the request may be tried again."""

    code = "server_is_overloaded"


class DrainingError(EngineUnavailableError):
    """The server is about to end and takes no more requests."""


class BrokenOffError(EngineUnavailableError):
    """A running request was ended early, by the end of the engine or of the server; it may be tried again."""


class OverloadedError(DeepseekServeError):
    """Too much waits already; `retry_after` says in how many seconds that should be over."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimitError(OverloadedError):
    """One client has used up what it may use; the text says of what, and `retry_after` when there is more."""


class QueueTimeoutError(OverloadedError):
    """A request waited longer than --queue-timeout and was not started."""


class DeadlineError(DeepseekServeError):
    """A request's time was over before it was finished."""

    param, code = "timeout", "request_timeout"


class GenerationError(DeepseekServeError):
    """The engine ended one sequence: it could not take the request in, or the logits were not finite."""


class StorageError(DeepseekServeError):
    """The database of files, batches and responses cannot be used now; the text says why."""

    code = "storage_unavailable"
