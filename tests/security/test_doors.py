"""Host, Origin and the secret in front of a service, and how long it waits: pytest tests/security/test_doors.py

A browser's side is in tests/e2e/test_doors.py.

Tests infra/security/door.py, infra/security/listen.py, infra/security/sign_in.py too.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from infra.errors import UserError
from infra.security import listen
from infra.security.door import SIGN_IN, SIGNED_IN, Door, Names, credential_of
from infra.security.listen import Patient
from infra.security.sign_in import sign_in_page
from infra.settings import Settings

SECRET = "a secret of the home, long enough"
BASIC = "Basic " + base64.b64encode(f"anneal:{SECRET}".encode()).decode()


async def reached(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"reached with {len(await request.body())}")


async def slow(_: Request) -> PlainTextResponse:
    await asyncio.sleep(1.5)
    return PlainTextResponse("done")


async def talk(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("reached")
    with contextlib.suppress(WebSocketDisconnect):
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """host:port of an app behind the door."""
    routes = [Route("/slow", slow), Route("/{path:path}", reached, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
              WebSocketRoute("/talk", talk)]
    door = Door(Starlette(routes=routes), names=Names("127.0.0.1", ["gpu.example.com"]), secret=SECRET,
                open_paths=("/health",), sign_in=sign_in_page("mlflow"))
    with contextlib.closing(listen.bind("127.0.0.1", 0, "")) as listener:
        server = uvicorn.Server(uvicorn.Config(door, http=Patient, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def status(address: str, method: str = "GET", path: str = "/x", **headers: str) -> int:
    sent = {"authorization": BASIC, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return httpx.request(method, f"http://{address}{path}", headers=sent, trust_env=False).status_code


@pytest.mark.parametrize(("host", "right"), [
    ("127.0.0.1:4200", True), ("127.0.0.1", True), ("localhost:9", True), ("LOCALHOST.", True), ("[::1]:4200", True),
    ("127.8.9.10", True), ("gpu.example.com", True), ("GPU.example.com:443", True),
    ("attack.example", False), ("attack.example:4200", False), ("localhost.attack.example", False),
    ("127.0.0.1.attack.example", False), ("127.0.0.1@attack.example", False), ("attack.example#localhost", False),
    ("10.0.0.5", False), ("192.0.2.1:4200", False), ("gpu.example.com.attack.example", False), ("", False),
    ("[::ffff:10.0.0.5]", False), ("0x7f000001.attack.example", False), ("localhost:4200:5000", False)])
def test_only_our_own_names_are_answered(host: str, right: bool, address: str) -> None:
    assert Names("127.0.0.1", ["gpu.example.com"]).include(host) is right
    assert status(address, host=host) == (200 if right else 403)


def test_where_others_may_come_any_address_will_do_but_no_name() -> None:
    names = Names("0.0.0.0")
    assert names.include("10.0.0.5:4200") and names.include(f"{socket.gethostname()}:4200")
    assert not names.include("attack.example:4200")


def test_a_proxy_on_a_port_of_its_own_is_named_with_it() -> None:
    names = Names("127.0.0.1", ["gpu.example.com:8443"])
    assert names.include("gpu.example.com") and names.match("https://gpu.example.com:8443", "127.0.0.1:4200")
    assert not names.match("https://gpu.example.com", "127.0.0.1:4200")
    assert not names.match("https://gpu.example.com:9443", "127.0.0.1:4200")


def test_two_host_headers_are_refused(address: str) -> None:
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"GET /health HTTP/1.1\r\nHost: {address}\r\nHost: attack.example\r\n\r\n".encode())
        assert raw.recv(100).split()[1] in (b"400", b"403")


@pytest.mark.parametrize(("origin", "right"), [
    ("http://{address}", True), ("null", False), ("http://127.0.0.1:1", False), ("http://127.0.0.1", False),
    ("https://{address}", True), ("http://localhost:1", False), ("http://attack.example", False), ("", False),
    ("http://{address}.attack.example", False), ("http://attack.example/{address}", False), ("file://", False),
    ("https://gpu.example.com", True), ("https://gpu.example.com:8443", False), ("https://gpu.example.com.x", False),
    ("chrome-extension://abc", False), ("http://{address}@attack.example", False)])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_pages_of_other_origins_reach_nothing(origin: str, right: bool, method: str, address: str) -> None:
    found = status(address, method, origin=origin.format(address=address))
    assert found == (405 if method == "OPTIONS" else 200) if right else found == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_may_link_here_and_embed_nothing(site: str, address: str) -> None:
    visit = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert status(address, **visit) == 200
    for other in ({"sec_fetch_dest": "iframe"}, {"sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"},
                  {"sec_fetch_mode": "no-cors", "sec_fetch_dest": "script"}, {"sec_fetch_mode": "cors"}):
        assert status(address, **{**visit, **other}) == 403
    assert status(address, "POST", **visit) == 403


def test_nothing_but_open_paths_is_reached_without_the_secret(address: str) -> None:
    for given in ("", "Basic", f"Basic {SECRET}", "Bearer wrong", "Basic " + base64.b64encode(b"anneal:x").decode(),
                  f"Bearer {SECRET[:-1]}", f"Digest {SECRET}", "Basic \xff"):
        answer = httpx.get(f"http://{address}/x", headers=[(b"authorization", given.encode("latin-1"))],
                           trust_env=False)
        assert answer.status_code == 401 and "secret" in answer.json()["detail"]
        assert answer.headers["www-authenticate"].startswith("Bearer "), "no page shall make a browser ask its user"
    for path in ("/health/", "//health", "/HEALTH", "/health/../x", "/x?/health", "/%2e/health", f"{SIGN_IN}/"):
        assert status(address, path=path, authorization="") == 401, path
    assert status(address, path="/health", authorization="") == 200
    assert status(address, path=SIGN_IN, authorization="") == 200
    assert (status(address, path=SIGNED_IN, authorization=""), status(address, path=SIGNED_IN)) == (401, 204)
    assert status(address, authorization=f"Bearer {SECRET}") == status(address, authorization=BASIC) == 200


def test_an_answer_may_be_framed_and_embedded_by_its_own_origin_alone(address: str) -> None:
    headers = httpx.get(f"http://{address}/health", trust_env=False).headers
    assert headers["x-frame-options"] == "SAMEORIGIN" and headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == headers["cross-origin-opener-policy"] == "same-origin"


@pytest.mark.parametrize(("headers", "refused"), [
    ({"Authorization": BASIC}, None), ({}, 403), ({"Authorization": BASIC, "Origin": "http://attack.example"}, 403),
    ({"Authorization": BASIC, "Origin": "null"}, 403)])
def test_websockets_pass_the_same_checks(headers: dict[str, str], refused: int | None, address: str) -> None:
    if refused is None:
        with connect(f"ws://{address}/talk", additional_headers=headers, proxy=None) as socket:
            assert socket.recv() == "reached"
        return
    with (pytest.raises(InvalidStatus) as caught,
          connect(f"ws://{address}/talk", additional_headers=headers, proxy=None)):
        pass
    assert caught.value.response.status_code == refused


def test_the_secret_is_what_follows_the_first_colon() -> None:
    given = base64.b64encode(b"anneal:a:b").decode()
    assert credential_of(f"Basic {given}") == "a:b" and credential_of("Token x ") == "x" and credential_of("x") == ""


def test_a_name_that_is_none_is_named(tmp_path: Path) -> None:
    for wrong in ("https://gpu.example.com", "gpu.example.com:443:1", "*.example.com", "a b"):
        with pytest.raises(UserError, match="ANNEAL_HOST_NAMES holds"):
            Names.of(Settings(home=tmp_path, host_names=f"fine.example, {wrong}"))


# --- how long it waits -------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "HEAD_S", 0.4)
    monkeypatch.setattr(listen, "BODY_S", 0.4)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("begun", [
    b"", b"G", b"GET /x HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ",
    b"POST /x HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: %s\r\nContent-Length: 9\r\n\r\n12345" % BASIC.encode(),
    b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /hea",
    b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    b"POST /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n1"])
def test_what_a_client_does_not_finish_is_closed(begun: bytes, address: str) -> None:
    host, port = address.split(":")
    many = [socket.create_connection((host, int(port)), timeout=20) for _ in range(50)]
    for one in many:
        one.sendall(begun)
    for one in many:
        with one, contextlib.suppress(ConnectionResetError):
            while one.recv(4096):
                continue
    assert status(address, path="/health") == 200


@pytest.mark.usefixtures("hasty")
def test_a_head_that_trickles_is_closed_all_the_same(address: str) -> None:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        began = time.monotonic()
        with pytest.raises(OSError):
            raw.sendall(b"GET /x HTTP/1.1\r\n")
            while time.monotonic() - began < 15:
                raw.sendall(b"X-More: 1\r\n")
                time.sleep(0.05)


@pytest.mark.usefixtures("hasty")
def test_what_still_comes_after_a_refusal_may_not_trickle_for_ever(address: str) -> None:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(b"POST /x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n")
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 15:
                raw.sendall(b"x")
                time.sleep(0.05)


@pytest.mark.usefixtures("hasty")
def test_a_websocket_and_a_long_answer_are_left_alone(address: str) -> None:
    with connect(f"ws://{address}/talk", additional_headers={"Authorization": BASIC}, proxy=None) as open_one:
        assert open_one.recv() == "reached"
        assert httpx.get(f"http://{address}/slow", headers={"Authorization": BASIC}, trust_env=False).text == "done"
        open_one.send("still there")
        assert open_one.recv() == "still there"
