"""A server that speaks OpenAI's protocol, asked with nothing but Python's own library."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from contextlib import closing
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from engine.errors import ConfigError, EngineUnavailableError, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPResponse

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class RemoteServer:
    """A server's address, with or without /v1, and a key for it."""

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 600.0) -> None:
        """`timeout` is how many seconds the server may be silent.

        Raises:
            ConfigError: the URL is none.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--url is {url!r}; expected http://HOST:PORT or https://HOST")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout
        handlers = [urllib.request.ProxyHandler({})] if parts.hostname in _LOOPBACK else []
        self._opener = urllib.request.build_opener(*handlers)

    def models(self) -> list[dict[str, Any]]:
        """Return what /v1/models lists, at least one. Raises as `stream` does."""
        with closing(self._open("/v1/models", None)) as response:
            try:
                models: list[dict[str, Any]] = json.load(response)["data"]
                models[0]["id"]
            except (ValueError, LookupError, TypeError):
                raise EngineUnavailableError(f"{self.url}/v1/models lists no model") from None
            return models

    def first_model(self) -> str:
        """Return the first name of /v1/models. Raises as `stream` does."""
        name: str = self.models()[0]["id"]
        return name

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post a body; the answer. Raises as `stream` does."""
        with closing(self._open(path, json.dumps(body).encode())) as response:
            try:
                found: dict[str, Any] = json.load(response)
            except (ValueError, OSError, HTTPException) as error:
                raise EngineUnavailableError(f"{self.url} broke off its answer: {error}") from None
            return found

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Post a body and yield the chunks of its stream; closing the iterator ends the request.

        Raises:
            RequestError: the server refuses the request, or ends it with an error.
            EngineUnavailableError: it cannot be reached, or breaks off.
        """
        data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
        with closing(self._open(path, data)) as response:
            try:
                for line in response:
                    text = line.removeprefix(b"data:").strip()
                    if text == b"[DONE]":
                        return
                    if text and line.startswith(b"data:"):
                        chunk = json.loads(text)
                        if error := chunk.get("error"):
                            raise RequestError(str(error.get("message", error)))
                        yield chunk
            except (OSError, json.JSONDecodeError, HTTPException) as error:
                raise EngineUnavailableError(f"{self.url} broke off its answer: {error}") from None
        raise EngineUnavailableError(f"{self.url} ended its answer without [DONE]")

    def _open(self, path: str, data: bytes | None) -> HTTPResponse:
        request = urllib.request.Request(self.url + path, data, self._headers)  # noqa: S310  # http or https
        try:
            response: HTTPResponse = self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise RequestError(f"{self.url} answers with {error.code}: {_message(error.read())}") from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise EngineUnavailableError(f"{self.url} cannot be reached: {reason}") from None
        return response


def _message(body: bytes) -> str:
    """The message of an error in OpenAI's shape, else the beginning of the body."""
    try:
        message: str = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = body[:200].decode(errors="replace")
    return message
