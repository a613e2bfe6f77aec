"""A wire between a client and a real server, which a test can cut."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Relay:
    """Passes bytes on to the server at `url`; cuts the first `cuts` connections that have brought more than `after`, or
    with `stalls` lets them be and brings no more."""

    def __init__(self, url: str, after: int, cuts: int, *, stalls: bool = False) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname, parts.port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.after, self.cuts, self._stalls = after, cuts, stalls
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections, and let those that stall end."""
        self._is_over.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._server)
                threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
        self._hang_up(client, server)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            passed, is_cut = 0, False
            while data := server.recv(1 << 16):
                passed += len(data)
                with self._lock:
                    if self.cuts and passed > self.after:
                        self.cuts -= 1
                        is_cut = True
                if is_cut:
                    if self._stalls:
                        self._is_over.wait()
                    break
                client.sendall(data)
        self._hang_up(client, server)

    def _hang_up(self, *ends: socket.socket) -> None:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def relay(url: str, after: int, cuts: int, *, stalls: bool = False) -> Iterator[Relay]:
    """One before the server at `url`."""
    wire = Relay(url, after, cuts, stalls=stalls)
    try:
        yield wire
    finally:
        wire.close()
