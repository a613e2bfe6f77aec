"""What stands in front of everything that listens: Host, Origin, and the secret.

    a browser's page of another site or port  ->  403, whatever it sends   (Origin, Sec-Fetch-Site)
    a name that is not ours (DNS rebinding)    ->  403                      (Host)
    whoever does not know the secret           ->  401                      (Authorization: Basic or Bearer)

In:   an ASGI app          Out: the same app behind the three checks, also for websockets
If an attacker's name resolves to our address, his page is of our origin and may read our answers. So Host must be one
of our names. A page of another origin may send POSTs, forms, beacons and websockets without asking first, and the
browser adds the password that it remembers for us. So Origin must be the name that was called. Programs send no Origin.
Leaves nothing on disk.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.errors import UserError, shown
from infra.settings import Settings

SIGN_IN, SIGNED_IN = "/sign-in", "/signed-in"
"""Both at the root: what a browser remembers of a path counts for all beside it."""
HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(:[0-9]{1,5})?")
PROTECTED = ((b"x-frame-options", b"SAMEORIGIN"), (b"cross-origin-resource-policy", b"same-origin"),
             (b"cross-origin-opener-policy", b"same-origin"), (b"x-content-type-options", b"nosniff"))
"""No page of another origin may frame, embed or hold on to an answer."""
MISSING = ("The key is missing or wrong. Send the header Authorization: Bearer <key> (ANNEAL_API_KEY, or the secret in "
           "<home>/secret). The link that `anneal up` prints signs a browser in.")


class Names:
    """The names that a service answers to."""

    def __init__(self, host: str, more: Collection[str] = ()) -> None:
        """`host`: the address it listens on, or a name of it; `more`: names of tunnels and proxies, or name:port."""
        self._proxied = {name.lower() for name in more}
        self._names = {"localhost", host.lower(), *(name.partition(":")[0] for name in self._proxied)}
        self._is_public = not is_loopback(host)
        if self._is_public:
            self._names.add(socket.gethostname().lower())

    @classmethod
    def of(cls, settings: Settings) -> Names:
        """By the settings. Raises UserError for a name that is none."""
        more = [name.strip() for name in settings.host_names.split(",") if name.strip()]
        for name in more:
            if not NAME.fullmatch(name):
                raise UserError(f"ANNEAL_HOST_NAMES holds {shown(name)}", allowed="names such as gpu.example.com or "
                                "gpu.example.com:8443, without https://", fix="Correct this environment variable.")
        return cls(settings.host, more)

    def include(self, host: str) -> bool:
        """Whether a Host header names us. An address cannot be rebound: any will do where others may come from."""
        found = HOST.fullmatch(host)
        if found is None:
            return False
        name = found["name"].strip("[]").rstrip(".").lower()
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or self._is_public

    def match(self, origin: str, host: str) -> bool:
        """Whether an Origin header is that of the host that was called, or of one of our other names."""
        try:
            parts = urlsplit(origin)
            port = parts.port
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query:
            return False
        usual = {"http": 80, "https": 443}[parts.scheme]
        called = HOST.fullmatch(host)
        same_name = called is not None and called["name"].strip("[]").lower() == parts.hostname.lower()
        if same_name and called is not None:
            return int(called["port"] or usual) == (port or usual)
        # A proxy may call us by another name than the browser called it.
        return parts.hostname.lower() + (f":{port}" if port else "") in self._proxied


class Door:
    """ASGI middleware. Refuses with 403 and 401; what it lets through is as it came."""

    def __init__(
        self, app: ASGIApp, *, names: Names, secret: str = "", open_paths: Collection[str] = (), sign_in: str = "",
        body_of: Callable[[str, int, str], dict[str, Any]] | None = None,
    ) -> None:
        """Put it in front of `app`.

        Args:
            secret: what a request has to bring; empty: nothing.
            open_paths: what answers without it.
            sign_in: the page at SIGN_IN, which does so too; empty: none. It may ask at SIGNED_IN whether it has worked.
            body_of: what is said of (path, status, sentence); None: {"detail": sentence}.
        """
        self.app = app
        self._names, self._open, self._page = names, frozenset(open_paths), sign_in
        self._secret = _digest(secret) if secret else None
        self._body_of = body_of or (lambda path, status, sentence: {"detail": sentence})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if refusal := self._refusal(scope, headers):
            await self._refuse(scope, receive, send, 403, refusal)
        elif self._page and scope["type"] == "http" and scope["path"] == SIGN_IN:
            await HTMLResponse(self._page, headers=page_headers(self._page))(scope, receive, send)
        elif not self._admits(scope, headers):
            # At Basic a browser asks its user, or remembers what our page gave it; no other page shall cause that.
            scheme = "Basic" if self._page and scope["path"] == SIGNED_IN else "Bearer"
            await self._refuse(scope, receive, send, 401, MISSING, scheme)
        elif self._page and scope["path"] == SIGNED_IN:
            await Response(status_code=204)(scope, receive, _protecting(send))
        else:
            await self.app(scope, receive, _protecting(send))

    def _refusal(self, scope: Scope, headers: Headers) -> str:
        """Why a request does not come from where it may, or an empty string."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not self._names.include(hosts[0]):
            return (f"This service is not called {shown(', '.join(hosts))}. Use its address, or put the name into "
                    "ANNEAL_HOST_NAMES.")
        if any(not self._names.match(origin, hosts[0]) for origin in origins):
            return f"Pages of {shown(', '.join(origins))} may not call this service."
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not _is_visit(scope, headers):
            return "Pages of other sites may link here, and nothing else."
        return ""

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, status: int, sentence: str, challenge: str = "",
    ) -> None:
        if scope["type"] == "websocket":  # closed before it is accepted: the client sees 403
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": sentence[:120]})
            return
        more = {"WWW-Authenticate": challenge + ' realm="Anneal"'} if challenge else {}
        # Without a word of its own MLflow's client takes it for a fault that may pass, and asks for a quarter of an
        # hour.
        words = {"error_code": "UNAUTHENTICATED", "message": sentence} if status == 401 else {}
        body = {**self._body_of(scope["path"], status, sentence), **words}
        await JSONResponse(body, status, more)(scope, receive, _protecting(send))

    def _admits(self, scope: Scope, headers: Headers) -> bool:
        if self._secret is None or scope["path"] in self._open:
            return True
        return hmac.compare_digest(_digest(credential_of(headers.get("authorization", ""))), self._secret)


def credential_of(authorization: str) -> str:
    """The key or password of an Authorization header, whose user does not matter; empty: none.

    Bearer is today's word, Token the older one of Replicate's clients, Basic that of browsers and Prefect.
    """
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() in ("bearer", "token"):
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    except ValueError:  # no base64, no UTF-8
        return ""


def page_headers(page: str) -> dict[str, str]:
    """Headers under which a browser runs the page's own script and style and no others (CSP Level 3, section 6.7.3)."""
    def source(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
        return f"{tag}-src " + (" ".join(f"'sha256-{one}'" for one in hashes) or "'none'")

    policy = ["default-src 'none'", source("script"), source("style"), "connect-src 'self'", "base-uri 'none'",
              "form-action 'none'", "frame-ancestors 'none'"]
    return {"Content-Security-Policy": "; ".join(policy), "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_visit(scope: Scope, headers: Headers) -> bool:
    """Somebody followed a link: the page that has it sees nothing of the answer."""
    return (scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
            and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document")


def _protecting(send: Send) -> Send:
    async def protected(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message.get("headers", [])}
            more = [header for header in PROTECTED if header[0] not in there]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return protected


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
