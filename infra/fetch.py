"""Read a file from the web, without letting its address reach into our own network.

Only https, no redirects to follow blindly, and only hosts whose every address is public, unless
ANNEAL_ALLOW_PRIVATE_HOSTS is set (a data server in the same building, or a test).
"""

from __future__ import annotations

import io
import ipaddress
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

import httpx

from infra.errors import DataError, Transient, shown
from infra.settings import Settings

TIMEOUT_S = 30.0
REDIRECTS = 5


def without_secrets(address: str) -> str:
    """An address that may be shown: no user, password, query or fragment. In a key of S3 ? and # are letters."""
    if "://" not in address:
        return address
    if address.startswith("s3://"):
        return re.sub(r"^s3://[^/]*@", "s3://", address)
    try:
        parts = urlsplit(address)
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise DataError(f"it is not an address ({error})", where=shown(address), fix="Check its spelling.") from error
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


@contextmanager
def open_https(address: str, settings: Settings) -> Iterator[BinaryIO]:
    """The body of a web address as a stream.

    Raises:
        DataError: the address is not allowed, or the server says it is wrong (4xx).
        Transient: the server does not answer, or says it is its own fault (5xx, 429).
    """
    with _answered("GET", address, settings) as response:
        yield io.BufferedReader(_Body(response))


def headers_of(address: str, settings: Settings) -> httpx.Headers:
    """What the server says of the file, without the file (HEAD). Raises as `open_https` does."""
    with _answered("HEAD", address, settings) as response:
        return response.headers


@contextmanager
def _answered(method: str, address: str, settings: Settings) -> Iterator[httpx.Response]:
    """The server's answer, whose body is not read yet. Every address on the way to it is checked."""
    where = without_secrets(address)
    try:
        with httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False) as client:
            for _ in range(REDIRECTS + 1):
                check_address(address, settings)
                with client.stream(method, address, headers={"Accept-Encoding": "identity"}) as response:
                    if response.has_redirect_location:
                        address = urljoin(address, response.headers["location"])
                        continue
                    _check_status(response, where)
                    yield response
                    return
            raise DataError(f"more than {REDIRECTS} redirects", where=where, fix="Give the final address.")
    except httpx.TransportError as error:
        raise Transient(f"the server does not answer ({type(error).__name__}: {error})", where=where) from error


def check_address(address: str, settings: Settings) -> None:
    """Raise DataError unless the address is https on a public host."""
    parts, where = urlsplit(address), without_secrets(address)
    if settings.allow_private_hosts:
        return
    if parts.scheme != "https":
        raise DataError(f"the address is {parts.scheme}://", where=where, allowed="https://")
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except OSError as error:
        raise DataError(f"the host name is not known ({error})", where=where, fix="Check its spelling.") from error
    for entry in found:
        ip = ipaddress.ip_address(entry[4][0])
        if not ip.is_global or ip.is_multicast:
            raise DataError(f"the host is {ip}, which is not a public address", where=where,
                            fix="Set ANNEAL_ALLOW_PRIVATE_HOSTS=1 if the server is yours.")


def _check_status(response: httpx.Response, where: str) -> None:
    status = response.status_code
    if status == 429 or status >= 500:
        raise Transient(f"the server answers {status} {response.reason_phrase}", where=where)
    if status != 200:
        raise DataError(f"the server answers {status} {response.reason_phrase}", where=where,
                        fix="Check the address and that it needs no login.")


class _Body(io.RawIOBase):
    """A response body as a raw stream."""

    def __init__(self, response: httpx.Response) -> None:
        self._chunks, self._rest = response.iter_raw(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size
