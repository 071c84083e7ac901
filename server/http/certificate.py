"""--tls-cert and --tls-key: what a handshake shows, as it was read last."""

from __future__ import annotations

import ssl

from engine.errors import ConfigError


class Certificate:
    """The server's certificate.

    Attributes:
        context: for the handshakes that begin now.
    """

    def __init__(self, cert: str, key: str | None) -> None:
        """Read PEM files; without a `key`, the certificate's file has it.

        Raises:
            ConfigError: they cannot be read, or do not go together.
        """
        self._cert, self._key = cert, key
        self.context = self._load()

    def reload(self) -> None:
        """Use the files as they are now, from the next connection on. Raises ConfigError as `__init__` does."""
        self.context = self._load()

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        flags = f"--tls-cert {self._cert}" + (f" --tls-key {self._key}" if self._key is not None else "")
        for path in filter(None, (self._cert, self._key)):  # ssl's error does not say which file it could not read
            try:
                open(path, "rb").close()
            except OSError as error:
                raise ConfigError(f"{flags}: {path} cannot be read: {error.strerror}") from None
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_passphrase)
        except ssl.SSLError as error:
            is_other = error.reason == "KEY_VALUES_MISMATCH"
            reason = "the key is not that of the certificate" if is_other else "expected a certificate and a key in PEM"
            raise ConfigError(f"{flags}: {reason}") from None
        except OSError as error:  # it was there a moment ago
            raise ConfigError(f"{flags}: they cannot be read: {error.strerror}") from None
        return context


def _no_passphrase() -> str:
    """Called by ssl for an encrypted key, instead of asking on the terminal."""
    raise ConfigError("--tls-key is encrypted; the server asks for no passphrase: openssl pkey writes it without one")
