"""HTTPS: handshakes by all kinds of clients, certificates that change, and the limits of connections beneath it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
import weakref
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trustme
import uvicorn

from engine.errors import ConfigError
from server.config import ServerConfig
from server.http.certificate import Certificate
from server.http.connections import LimitedProtocol
from server.http.tls import TlsProtocol
from server.reloading import ReloadedFiles
from tests.server.http.test_connections import GET, Server, answer, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CA = trustme.CA()


def write(folder: Path, name: str, *, key_of: trustme.LeafCert | None = None) -> Certificate:
    leaf = CA.issue_cert(name)
    leaf.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    (key_of or leaf).private_key_pem.write_to_path(folder / "key.pem")
    return leaf  # type: ignore[return-value]


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    write(tmp_path, "first.example")
    return Certificate(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))


class TlsServer(Server):
    @contextlib.asynccontextmanager
    async def serving(self, certificate: Certificate) -> AsyncIterator[TlsServer]:
        config = uvicorn.Config(self.app, interface="asgi3", log_config=None, ws="none", lifespan="off")
        config.load()
        state = uvicorn.server.ServerState()
        make = partial(LimitedProtocol, config, state, {}, connections=self.connections)
        loop = asyncio.get_running_loop()
        self.protocols: weakref.WeakSet[TlsProtocol] = weakref.WeakSet()

        def accept() -> TlsProtocol:
            protocol = TlsProtocol(make, self.connections, certificate)
            self.protocols.add(protocol)
            return protocol

        server = await loop.create_server(accept, "127.0.0.1", 0)
        self.port, self.clients = server.sockets[0].getsockname()[1], []
        try:
            yield self
        finally:
            self.disconnected.set()
            for writer in self.clients:
                writer.transport.abort()
            server.close()
            await until(lambda: self.connections.num_open == 0)
            assert not self.connections.abortable
            assert not self.connections.num_of

    async def secure(self, name: str = "first.example", **versions: ssl.TLSVersion) -> tuple:
        context = ssl.create_default_context()
        CA.configure_trust(context)
        for attribute, version in versions.items():
            setattr(context, attribute, version)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname=name)
        self.clients.append(writer)
        return reader, writer


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_requests_are_answered(certificate: Certificate, version: ssl.TLSVersion) -> None:
    async with TlsServer().serving(certificate) as server:
        reader, writer = await server.secure(minimum_version=version, maximum_version=version)
        for _ in range(3):
            writer.write(GET)
            assert await answer(reader) == (200, b"0")
        body = b"x" * 900
        writer.write(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert await answer(reader) == (200, b"900")
        assert server.connections.num_open == 1


async def test_what_comes_with_the_end_of_the_handshake_is_not_lost(certificate: Certificate) -> None:
    """Of TLS 1.3, a client's last handshake message and its first request may be one packet."""
    async with TlsServer().serving(certificate) as server:
        context, incoming, outgoing = ssl.create_default_context(), ssl.MemoryBIO(), ssl.MemoryBIO()
        CA.configure_trust(context)
        client = context.wrap_bio(incoming, outgoing, server_hostname="first.example")
        reader, writer = await server.connect()
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
                break
            writer.write(outgoing.read())
            incoming.write(await reader.read(65536))
        client.write(GET)
        writer.write(outgoing.read())
        received = b""
        while b"\r\n0\r\n" not in received:
            incoming.write(await asyncio.wait_for(reader.read(65536), 10))
            with contextlib.suppress(ssl.SSLWantReadError):
                while True:
                    received += client.read(65536)
        assert received.startswith(b"HTTP/1.1 200 ")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_versions_are_refused(certificate: Certificate) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    async with TlsServer().serving(certificate) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
        await server.secure()


async def test_clients_that_speak_no_tls_or_nothing_are_cut(certificate: Certificate) -> None:
    async with TlsServer(header_timeout=0.05).serving(certificate) as server:
        for said in (b"", GET, b"\x16\x03\x01", b"\x00" * 1000):
            reader, _ = await server.connect(said)
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(10):
                    assert not (await reader.read()).startswith(b"HTTP")
        await until(lambda: server.connections.num_open == 0)


async def test_silent_connections_make_room_and_count_before_their_handshake(certificate: Certificate) -> None:
    async with TlsServer(max_connections=4).serving(certificate) as server:
        for _ in range(20):
            await server.connect()
        await until(lambda: server.connections.num_open <= 4)
        reader, writer = await server.secure()
        writer.write(GET)
        assert await answer(reader) == (200, b"0")


async def test_a_connection_holds_a_small_buffer(certificate: Certificate) -> None:
    async with TlsServer().serving(certificate) as server:
        await server.secure()
        await until(lambda: isinstance(next(iter(server.connections.abortable), None), LimitedProtocol))
        [connection] = server.connections.abortable
        assert len(connection.transport._ssl_protocol._ssl_buffer) <= 8 << 10


@pytest.mark.parametrize("said", [b"", b"garbage", b"\x16\x03\x01"])
async def test_a_failed_handshake_leaves_nothing_to_the_garbage_collector(
    certificate: Certificate, said: bytes
) -> None:
    async with TlsServer(header_timeout=0.02).serving(certificate) as server:
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                await server.connect(said)
            await until(lambda: server.connections.num_open == 0)
            await until(lambda: not server.protocols)
        finally:
            gc.enable()


async def test_an_address_has_so_many_connections(certificate: Certificate) -> None:
    async with TlsServer(max_client_connections=2).serving(certificate) as server:
        pairs = [await server.secure() for _ in range(2)]
        reader, _ = await server.connect()
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        for reader, writer in pairs:
            writer.write(GET)
            assert await answer(reader) == (200, b"0")


async def test_a_reader_that_stops_is_cut(certificate: Certificate) -> None:
    async with TlsServer(write_timeout=0.1).serving(certificate) as server:
        _, writer = await server.secure()
        writer.transport.pause_reading()
        writer.write(GET.replace(b"/x", b"/endless"))
        async with asyncio.timeout(20):
            await server.disconnected.wait()


async def test_new_connections_get_a_changed_certificate_and_a_broken_one_changes_nothing(
    certificate: Certificate, tmp_path: Path
) -> None:
    async with TlsServer().serving(certificate) as server:
        reader, writer = await server.secure()
        write(tmp_path, "second.example")
        certificate.reload()
        await server.secure("second.example")
        with pytest.raises(ssl.SSLCertVerificationError):
            await server.secure("first.example")
        writer.write(GET)
        assert await answer(reader) == (200, b"0")
        write(tmp_path, "third.example", key_of=CA.issue_cert("other.example"))
        with pytest.raises(ConfigError, match="the key is not that of the certificate"):
            certificate.reload()
        await server.secure("second.example")


def test_a_certificate_may_have_its_key_beside_it(tmp_path: Path) -> None:
    leaf = CA.issue_cert("a.example")
    leaf.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    assert ReloadedFiles(ServerConfig(tls_cert=str(tmp_path / "both.pem"))).certificate is not None


@pytest.mark.parametrize("fault", ["no certificate", "no key", "not PEM", "only a certificate", "encrypted", "alone"])
def test_what_cannot_be_used_is_said_at_the_start(tmp_path: Path, fault: str) -> None:
    write(tmp_path, "a.example")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    flags: dict[str, str] = {"tls_cert": str(cert), "tls_key": str(key)}
    expected = {
        "no certificate": r"cert.pem cannot be read: No such file",
        "no key": r"key.pem cannot be read: No such file",
        "not PEM": r"expected a certificate and a key in PEM",
        "only a certificate": r"expected a certificate and a key in PEM",
        "encrypted": r"--tls-key is encrypted",
        "alone": r"--tls-key goes with --tls-cert",
    }[fault]
    if fault == "no certificate":
        cert.unlink()
    elif fault == "no key":
        key.unlink()
    elif fault == "not PEM":
        cert.write_text("certificate")
    elif fault == "only a certificate":
        del flags["tls_key"]
    elif fault == "encrypted":
        key.write_bytes(encrypted(key.read_bytes()))
    else:
        del flags["tls_cert"]
    with pytest.raises(ConfigError, match=expected):
        ReloadedFiles(ServerConfig(**flags))


def encrypted(key: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization as forms

    loaded = forms.load_pem_private_key(key, None)
    return loaded.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.BestAvailableEncryption(b"secret"))
