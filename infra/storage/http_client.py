"""One GET, HEAD or POST over HTTP/1.1, on a connection to a judged address (infra/storage/host_guard.py).

In:   an Address, the endpoints of its host     Out: an Answer: status, headers, and the body piece by piece
A small client of its own on h11: it connects to the endpoints it is given, one after the other, while SNI, Host and
certificate check keep the name; and it sees bytes that follow the announced end, which httpx drops. No proxies, no
cookies, no content coding asked for. On disk: nothing.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress

import h11
import httpx

from infra.errors import DataError, Interrupted, Transient, shown
from infra.storage.host_guard import Address, Endpoint
from infra.storage.timeouts import MinimumRate, Patience

RECEIVED_BYTES = 1 << 16


class Answer:
    """What the server answers. The body is read with `read`; `close` when done, whatever happened."""

    def __init__(self, connection: socket.socket, method: str, address: Address, headers: dict[str, str], where: str,
                 patience: Patience, body: bytes = b"") -> None:
        self._socket, self._where, self._patience = connection, where, patience
        self._pace = MinimumRate(patience, where)
        self._http = h11.Connection(h11.CLIENT)
        fields = {"Host": address.netloc, "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close",
                  "User-Agent": "anneal", **headers}
        if body:
            fields["Content-Length"] = str(len(body))
        events = [h11.Request(method=method, target=address.target, headers=list(fields.items())),
                  *([h11.Data(body)] if body else []), h11.EndOfMessage()]
        try:
            connection.sendall(b"".join(self._http.send(event) or b"" for event in events))
        except OSError as error:
            raise self._interrupted(error) from error
        event = self._next()
        while isinstance(event, h11.InformationalResponse):
            event = self._next()
        assert isinstance(event, h11.Response)
        self.status, self.reason = event.status_code, bytes(event.reason).decode(errors="replace")
        self._is_over = False
        self.headers = {name.decode(): value.decode(errors="replace") for name, value in event.headers}

    def read(self) -> bytes:
        """The next piece of the body, at most 64 KiB; empty at its end, however often it is asked for.

        Raises:
            Interrupted: the body broke off before the length that the server announced, or came too slowly. A body
                that has neither a length nor chunks ends where the connection ends: nobody can tell that from a break.
            Transient: there is more than the server announced.
        """
        if self._is_over:
            return b""
        event = self._next()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        assert isinstance(event, h11.EndOfMessage)
        self._refuse_surplus()
        self._is_over = True
        return b""

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _next(self) -> h11.Event:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(self._received())
        except h11.RemoteProtocolError as error:
            raise Interrupted(f"the server broke off ({error})", where=self._where) from error
        if not isinstance(event, h11.Event):
            raise Interrupted("the server hung up", where=self._where)
        return event

    def _received(self) -> bytes:
        self._socket.settimeout(self._patience.stall_s)
        began = self._patience.clock()
        try:
            found = self._socket.recv(RECEIVED_BYTES)
        except OSError as error:
            raise self._interrupted(error) from error
        self._pace.count(self._patience.clock() - began, len(found))
        return found

    def _refuse_surplus(self) -> None:
        surplus, ended = self._http.trailing_data
        if not surplus and not ended:
            self._socket.settimeout(self._patience.end_s)
            with suppress(OSError):  # the body is whole; how the connection ends does not matter
                surplus = self._socket.recv(1)
        if surplus:
            raise Transient("the server sends more than it announced", where=self._where,
                            fix="Its Content-Length is wrong; the file cannot be trusted to be whole.")

    def _interrupted(self, error: OSError) -> Interrupted:
        if isinstance(error, TimeoutError):
            return Interrupted(f"the server sent nothing for {self._patience.stall_s:g} s", where=self._where)
        return Interrupted(f"the connection broke ({error.strerror or error})", where=self._where)


def request(method: str, address: Address, endpoints: Sequence[Endpoint], headers: dict[str, str], where: str,
            patience: Patience, body: bytes = b"") -> Answer:
    """Ask for an address at one of the endpoints. Raises Interrupted, DataError for a certificate that is not valid."""
    connection = _connected(address, endpoints, where, patience)
    try:
        return Answer(connection, method, address, headers, where, patience, body)
    except BaseException:
        connection.close()
        raise


def _connected(address: Address, endpoints: Sequence[Endpoint], where: str, patience: Patience) -> socket.socket:
    errors = []
    for endpoint in endpoints:
        plain = socket.socket(endpoint.family, socket.SOCK_STREAM)
        try:
            plain.settimeout(patience.stall_s)
            plain.connect(endpoint.sockaddr)
            return trusted().wrap_socket(plain, server_hostname=address.host) if address.scheme == "https" else plain
        except ssl.SSLCertVerificationError as error:
            raise DataError(
                f"the certificate of {address.host} is not valid ({error.verify_message})", where=where,
                fix="Set SSL_CERT_FILE if an authority of your own has signed it.") from error
        except OSError as error:
            plain.close()
            errors.append(f"{shown(endpoint.sockaddr[0])}: {error.strerror or error}")
    raise Interrupted(f"the server does not answer ({'; '.join(errors)})", where=where)


def trusted() -> ssl.SSLContext:
    """Whose certificates are believed: certifi's list, and the system's or that of SSL_CERT_FILE."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


def number_in(header: str) -> int | None:
    """The whole number that a header holds; None for anything else, and for more than 18 digits."""
    return int(header) if header.isascii() and header.isdigit() and len(header) <= 18 else None
