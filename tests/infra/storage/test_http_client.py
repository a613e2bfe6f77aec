"""TLS as it should be, and which endpoint is connected to. Breaks and stalls are in test_fetch.py.

Tests infra/storage/timeouts.py too.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from infra.errors import DataError, Interrupted
from infra.storage.host_guard import Endpoint, parsed
from infra.storage.http_client import request
from infra.storage.timeouts import Patience
from tests.conftest import free_port

NAME = "data.test"


def certificate(folder: Path, name: str) -> Path:
    """A file with a key and a certificate that it signs itself."""
    key, today = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(today - timedelta(days=1)).not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256()))
    file = folder / f"{name}.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return file


class Server:
    """Answers one request over TLS, and keeps what it was asked."""

    def __init__(self, file: Path) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.names: list[str | None] = []
        self.request = b""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(file)
        self._context.sni_callback = lambda _, name, __: self.names.append(name)

    def answer(self) -> None:
        with suppress(OSError):  # the client hangs up where it does not believe the certificate
            plain, _ = self.listener.accept()
            with plain, self._context.wrap_socket(plain, server_side=True) as connection:
                while b"\r\n\r\n" not in self.request:
                    self.request += connection.recv(9999)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(certificate(tmp_path, NAME))
    thread = threading.Thread(target=made.answer)
    thread.start()
    yield made
    made.listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    made.listener.close()


def get(name: str, *endpoints: tuple[str, int]) -> bytes:
    found = [Endpoint(socket.AF_INET, endpoint) for endpoint in endpoints]
    answer = request("GET", parsed(f"https://{name}:8443/d?x=1", ""), found, {}, "", Patience(stall_s=5))
    try:
        return answer.read()
    finally:
        answer.close()


def test_the_name_stays_while_the_address_is_chosen(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / f"{NAME}.pem"))
    assert get(NAME, ("127.0.0.1", server.port)) == b"{}"
    assert server.names == [NAME]
    assert server.request.startswith(b"GET /d?x=1 HTTP/1.1\r\nHost: data.test:8443\r\n")


def test_the_next_address_is_tried_when_one_is_silent(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / f"{NAME}.pem"))
    assert get(NAME, ("127.0.0.1", free_port()), ("127.0.0.1", server.port)) == b"{}"


def test_where_nobody_answers_all_addresses_are_named() -> None:
    with pytest.raises(Interrupted, match=r'"127.0.0.1": .*refused; "127.0.0.2": .*refused'):
        get(NAME, ("127.0.0.1", free_port()), ("127.0.0.2", free_port()))


@pytest.mark.parametrize(("known", "name", "words"), [
    (False, NAME, "self-signed"), (True, "other.test", "not valid for 'other.test'")])
def test_a_certificate_that_proves_nothing_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool, name: str, words: str,
) -> None:
    if known:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / f"{NAME}.pem"))
    with pytest.raises(DataError, match=words):
        get(name, ("127.0.0.1", server.port))
    assert server.request == b""
