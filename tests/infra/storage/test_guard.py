"""The guard of downloads: 44 ways to point a download into our own network, by two doors; none makes a connection.

Canaries are real servers on forbidden local addresses; a connection to one is a failure. Only name resolution is
played, at `socket.getaddrinfo`, because no DNS server can be asked; addresses in figures go to the real one.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from infra.errors import DataError, Transient, UserError
from infra.settings import Settings
from infra.storage import host_guard
from infra.storage.store import open_remote
from tasks.ingest import opened

PUBLIC, LOOPBACK = "93.184.216.34", "127.0.0.1"
NOT_PUBLIC, NOT_OPEN, NOT_PARSED = "not a public address", "port 443", "not an address"

NAMES = {
    "public.test": [PUBLIC],
    "metadata.test": ["169.254.169.254"],
    "mixed.test": [PUBLIC, LOOPBACK],
    "mixed6.test": [PUBLIC, "::1"],
    "loop.test": [LOOPBACK],
    "dotted.test.": [LOOPBACK],
    "linklocal.test": ["fe80::1%lo"],
}

# number, what, address (PORT is the canary's), what the refusal says; "" where the address is harmless
CASES = [
    (1, "loopback", "https://127.0.0.1:PORT/d", NOT_PUBLIC),
    (2, "localhost", "https://localhost:PORT/d", NOT_PUBLIC),
    (3, "IPv6 loopback", "https://[::1]:PORT/d", NOT_PUBLIC),
    (4, "any address", "https://0.0.0.0:PORT/d", NOT_PUBLIC),
    (5, "IPv6 any address", "https://[::]:PORT/d", NOT_PUBLIC),
    (6, "decimal", "https://2130706433:PORT/d", NOT_PUBLIC),
    (7, "hexadecimal", "https://0x7f000001:PORT/d", NOT_PUBLIC),
    (8, "octal", "https://0177.0.0.1:PORT/d", NOT_PARSED),
    (8, "octal, in one", "https://017700000001:PORT/d", NOT_PUBLIC),
    (9, "short", "https://127.1:PORT/d", NOT_PUBLIC),
    (10, "IPv4-mapped", "https://[::ffff:127.0.0.1]:PORT/d", NOT_PUBLIC),
    (10, "IPv4-compatible", "https://[::127.0.0.1]:PORT/d", NOT_PUBLIC),
    (11, "metadata", "https://169.254.169.254/latest/meta-data", NOT_PUBLIC),
    (12, "IPv6 metadata", "https://[fd00:ec2::254]/latest", NOT_PUBLIC),
    (13, "metadata by name", "https://metadata.test/latest", NOT_PUBLIC),
    (14, "10/8", "https://10.0.0.1/d", NOT_PUBLIC),
    (15, "172.16/12", "https://172.16.0.1/d", NOT_PUBLIC),
    (16, "192.168/16", "https://192.168.0.1/d", NOT_PUBLIC),
    (17, "100.64/10", "https://100.64.0.1/d", NOT_PUBLIC),
    (18, "NAT64", "https://[64:ff9b::7f00:1]:PORT/d", NOT_PUBLIC),
    (19, "6to4", "https://[2002:7f00:1::]:PORT/d", NOT_PUBLIC),
    (20, "Teredo", "https://[2001::80ff:fffe]:PORT/d", NOT_PUBLIC),
    (21, "link-local with a zone", "https://[fe80::1%25lo]:PORT/d", "the host is"),
    (21, "a name for link-local with a zone", "https://linklocal.test:PORT/d", NOT_PUBLIC),
    (22, "fc00::/7", "https://[fc00::1]/d", NOT_PUBLIC),
    (23, "fec0::/10", "https://[fec0::1]/d", NOT_PUBLIC),
    (24, "multicast", "https://224.0.0.1/d", NOT_PUBLIC),
    (25, "IPv6 multicast", "https://[ff0e::1]/d", NOT_PUBLIC),
    (26, "broadcast", "https://255.255.255.255/d", NOT_PUBLIC),
    (27, "198.18/15", "https://198.18.0.1/d", NOT_PUBLIC),
    (28, "240/4", "https://240.0.0.1/d", NOT_PUBLIC),
    (29, "public and private A", "https://mixed.test:PORT/d", NOT_PUBLIC),
    # 30, rebinding: test_the_connection_goes_to_the_checked_address
    (31, "private AAAA, public A", "https://mixed6.test:PORT/d", NOT_PUBLIC),
    (32, "a name for loopback", "https://loop.test:PORT/d", NOT_PUBLIC),  # 302 to loopback: every case's second door
    (33, "file:", "file:///etc/hostname", "https:// or an s3://"),
    # 34, too many redirects: test_redirects_end
    (35, "file:, with a host", "file://localhost/etc/hostname", "https:// or an s3://"),
    (36, "ftp:", "ftp://127.0.0.1:PORT/d", "https:// or an s3://"),
    (36, "gopher:", "gopher://127.0.0.1:PORT/_GET", "https:// or an s3://"),
    (36, "data:", "data:text/plain,%7B%7D", "https:// or an s3://"),
    (37, "user-info", "https://public.test@127.0.0.1:PORT/d", "before its host"),
    (38, "backslash", "https://public.test\\@127.0.0.1:PORT/d", "contains"),
    (38, "backslash as a slash", "https://127.0.0.1:PORT\\@public.test/d", "contains"),
    (39, "trailing dot", "https://dotted.test.:PORT/d", NOT_PUBLIC),
    (40, "full-width digits", "https://１２７.０.０.１:PORT/d", NOT_PARSED),
    (40, "circled letters", "https://ⓛocalhost:PORT/d", NOT_PARSED),
    (41, "our own port by a public name", "https://public.test:5432/d", NOT_OPEN),
    (41, "plain http by a public name", "http://public.test/d", NOT_OPEN),
    (42, "CR LF", "https://127.0.0.1:PORT/d HTTP/1.1\r\nHost: public.test", f"contains|{NOT_PUBLIC}"),
    # 43, proxy variables: test_proxy_variables_change_nothing
    # 44, another endpoint: test_an_s3_address_names_no_endpoint. There is no list of allowed buckets: the keys decide.
    # The webhook is no door: its address comes from the operator, and redirects are not followed (tests/tasks).
]
IDS = [f"{number} {what}" for number, what, _, _ in CASES]


@dataclass
class Canary:
    """Listens on the forbidden addresses, on one port of all, and counts who comes."""

    port: int = 0
    hits: list[str] = field(default_factory=list)

    def listen(self, stack: ExitStack, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = stack.enter_context(socket.create_server((host, self.port), family=family))
        self.port = listener.getsockname()[1]
        listener.settimeout(0.02)
        stop = threading.Event()
        watch = threading.Thread(target=self._watch, args=(listener, stop))
        watch.start()
        stack.callback(watch.join)
        stack.callback(stop.set)

    def _watch(self, listener: socket.socket, stop: threading.Event) -> None:
        while True:
            try:
                listener.accept()[0].close()
                self.hits.append(str(listener.getsockname()))
            except TimeoutError:
                if stop.is_set():  # looked at after the last try, so that nobody in the queue is missed
                    return


class Site(ThreadingHTTPServer):
    """Redirects to whatever `location` is; else sends two bytes."""

    location = ""
    asked = 0


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked += 1
        location = self.server.location
        self.send_response(302 if location else 200)
        self.send_header("Location", location.encode().decode("latin-1"))
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def serving(stack: ExitStack, host: str = LOOPBACK, port: int = 0) -> Site:
    site = stack.enter_context(Site((host, port), Handler))
    thread = threading.Thread(target=site.serve_forever, args=(0.02,))
    thread.start()
    stack.callback(thread.join)
    stack.callback(site.shutdown)
    return site


Door = Callable[[str, Settings, ExitStack], None]


@pytest.fixture
def places() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    """Checks at the end that nobody came. Its port counts as open, so that only the address can be refused."""
    found = Canary()
    with ExitStack() as stack:
        found.listen(stack, LOOPBACK)
        with suppress(OSError):  # without IPv6 on this machine nobody can be reached there
            found.listen(stack, "::1")
        monkeypatch.setattr(host_guard, "OPEN", (*host_guard.OPEN, ("https", found.port)))
        yield found
    assert found.hits == []


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names resolve to; one that begins with rebind answers with its addresses in turn."""
    table, real = {name: list(found) for name, found in NAMES.items()}, socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        found = table.get(host, [host])
        if str(host).startswith("rebind"):
            found = [found.pop(0) if len(found) > 1 else found[0]]
        flags = 0 if host == "localhost" else socket.AI_NUMERICHOST
        return [entry for ip in found for entry in real(ip, port, type=socket.SOCK_STREAM, flags=flags)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return table


def by_train_data(address: str, settings: Settings, stack: ExitStack) -> None:
    with opened(settings, address) as body:
        body.read()


def by_redirect(address: str, settings: Settings, stack: ExitStack) -> None:
    site = serving(stack)
    site.location = address
    allowed = settings.model_copy(update={"allowed_hosts": f"{LOOPBACK}:{site.server_port}"})
    try:
        by_train_data(f"http://{LOOPBACK}:{site.server_port}/d", allowed, stack)
    finally:
        assert site.asked == 1


@pytest.mark.parametrize("door", [by_train_data, by_redirect])
@pytest.mark.parametrize(("address", "words"), [case[2:] for case in CASES], ids=IDS)
def test_no_address_leads_into_our_own_network(
    settings: Settings, canary: Canary, places: ExitStack, door: Door, address: str, words: str,
) -> None:
    with pytest.raises(DataError, match=words):
        door(address.replace("PORT", str(canary.port)), settings, places)


def test_the_canary_counts_whoever_comes(settings: Settings, places: ExitStack) -> None:
    canary = Canary()
    canary.listen(places, LOOPBACK)
    allowed = settings.model_copy(update={"allowed_hosts": LOOPBACK})
    with pytest.raises(Transient):
        by_train_data(f"http://{LOOPBACK}:{canary.port}/d", allowed, places)
    places.close()
    assert len(canary.hits) == 1


@pytest.mark.parametrize("answers", [["127.0.0.2", LOOPBACK], [LOOPBACK, "127.0.0.2"]])
def test_the_connection_goes_to_the_checked_address(
    settings: Settings, canary: Canary, places: ExitStack, names: dict[str, list[str]], answers: list[str],
) -> None:
    """Case 30. The network 127.0.0.2/32 stands for the public one, in which no test may have a server."""
    site = serving(places, "127.0.0.2", canary.port)
    allowed = settings.model_copy(update={"allowed_hosts": "127.0.0.2/32"})
    names["rebind.test"] = list(answers)
    refused = answers[0] == LOOPBACK
    with pytest.raises(DataError, match="port 443") if refused else nullcontext():
        by_train_data(f"http://rebind.test:{canary.port}/d", allowed, places)
    assert site.asked == (0 if refused else 1) and names["rebind.test"] == answers[1:]


def test_every_redirect_is_judged_anew(
    settings: Settings, canary: Canary, places: ExitStack, names: dict[str, list[str]],
) -> None:
    site = serving(places, "127.0.0.2", canary.port)
    site.location = "/again"
    allowed = settings.model_copy(update={"allowed_hosts": "127.0.0.2/32"})
    names["rebind.test"] = ["127.0.0.2", "127.0.0.2", LOOPBACK]
    with pytest.raises(DataError, match="port 443"):
        by_train_data(f"http://rebind.test:{canary.port}/d", allowed, places)
    assert site.asked == 2


def test_redirects_end(settings: Settings, places: ExitStack) -> None:
    """Case 34."""
    site = serving(places)
    site.location = "/again"
    allowed = settings.model_copy(update={"allowed_hosts": LOOPBACK})
    with pytest.raises(DataError, match="more than 5 redirects"):
        by_train_data(f"http://{LOOPBACK}:{site.server_port}/d", allowed, places)
    assert site.asked == 6


def test_proxy_variables_change_nothing(
    settings: Settings, canary: Canary, places: ExitStack, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Case 43."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://{LOOPBACK}:{canary.port}")
    site = serving(places, "127.0.0.2")
    by_train_data(f"http://127.0.0.2:{site.server_port}/d", settings.model_copy(
        update={"allowed_hosts": "127.0.0.2"}), places)
    assert site.asked == 1


@pytest.mark.parametrize("bucket", [
    "127.0.0.1:PORT", "anneal@127.0.0.1:PORT", "key:secret@127.0.0.1:PORT", "[::1]:PORT",
    "127.0.0.1:PORT?endpoint_url=", "arn:aws:s3:us-east-1:123456789012:accesspoint:other", "http:",
    "anneal?endpoint_url=http:"])
def test_an_s3_address_names_no_endpoint(canary: Canary, settings: Settings, bucket: str) -> None:
    """Case 44."""
    known = settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.2:9"})
    with pytest.raises(UserError, match="the bucket's name is") as error:
        open_remote(f"s3://{bucket.replace('PORT', str(canary.port))}/anneal/d.jsonl", known)
    assert "secret" not in str(error.value)


def test_all_hosts_of_our_own_can_be_allowed(settings: Settings, places: ExitStack) -> None:
    site = serving(places)
    by_train_data(f"http://{LOOPBACK}:{site.server_port}/d", settings.model_copy(
        update={"allow_private_hosts": True}), places)
    assert site.asked == 1
