"""Who looks at a page: signed in by a key, remembered in a cookie that holds no key.

    GET, POST /sign-in      POST /sign-out
Cookies go to every port of a machine, so that this one holds the id of a key, a time and a signature, and is of no use
elsewhere. It is HttpOnly and SameSite=Strict; beyond that the door refuses forms of other origins. A revoked key ends
its sessions at once; where no key is asked for (keys.py), nobody has to sign in, and the first key ends what was open.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import select

from deployments.gateway.context import Gateway, Here
from deployments.gateway.errors import Refusal
from deployments.gateway.keys import Caller, caller_of, hash_of
from deployments.gateway.pages.render import Page, SignIn, form_of, page, see_other
from deployments.gateway.tables import ApiKey
from deployments.gateway.webhooks import secrets_of

router = APIRouter(route_class=Page, include_in_schema=False)
COOKIE = "anneal_session"
SESSION_S = 7 * 24 * 3600
OWN = "own"
"""The key of whoever runs the stack."""


@router.get("/sign-in")
def ask(next: str = "/") -> HTMLResponse:
    """The form for the key."""
    return page("sign_in", None, next=_local(next), wrong=False)


@router.post("/sign-in")
async def sign_in(request: Request, here: Here) -> Response:
    """Take the key, and remember its id."""
    form = await form_of(request)
    return await run_in_threadpool(_sign_in, request, here, form.get("key", "").strip(), _local(form.get("next", "/")))


@router.post("/sign-out")
def sign_out() -> Response:
    """Forget it."""
    answer = see_other("/sign-in")
    answer.delete_cookie(COOKIE)
    return answer


def visitor(request: Request) -> Caller:
    """Who looks, with a key that may read. Raises SignIn, Refusal 403 and 429, and Away."""
    caller = signed_in(request)
    request.app.state.limits.take(caller.owner, "other")
    return caller


def signed_in(request: Request) -> Caller:
    """Who looks now; a page that stays open asks again. Raises SignIn, Refusal 403, and Away."""
    here: Gateway = request.app.state.gateway
    caller = remembered(here, request.cookies.get(COOKIE, ""))
    if caller is None:
        try:
            caller = caller_of(here.settings, here.database, "")
        except Refusal:
            raise SignIn from None
    check_scope(caller, "read")
    return caller


Visitor = Annotated[Caller, Depends(visitor)]


def check_scope(caller: Caller, scope: str) -> None:
    """Raise Refusal 403 unless the caller has it."""
    if scope not in caller.scopes and not caller.is_admin:
        raise Refusal(403, f"Your key has no scope {scope}. Ask for a key with it.")


def _sign_in(request: Request, here: Gateway, key: str, goal: str) -> Response:
    try:
        caller_of(here.settings, here.database, f"Bearer {key}")
    except Refusal:
        return page("sign_in", None, 401, next=goal, wrong=True)
    own = here.settings.predictor_key
    with here.database.session() as session:
        row = session.scalar(select(ApiKey.id).where(ApiKey.hash == hash_of(key)))
    name = OWN if own and hmac.compare_digest(hash_of(key), hash_of(own)) else row or OWN
    until = str(int(time.time()) + SESSION_S)
    answer = see_other(goal)
    answer.set_cookie(COOKIE, f"{name}.{until}.{_signature(here, name, until)}", max_age=SESSION_S, httponly=True,
                      samesite="strict", secure=request.url.scheme == "https")
    return answer


def remembered(here: Gateway, cookie: str) -> Caller | None:
    """Who signed in, with the scopes that the key has now; None once the key would not be taken any more."""
    name, _, rest = cookie.partition(".")
    until, _, signature = rest.partition(".")
    if not cookie.isascii() or not hmac.compare_digest(signature, _signature(here, name, until)):
        return None
    if int(until) < time.time():
        return None
    if name == OWN:
        try:
            return caller_of(here.settings, here.database, f"Bearer {here.settings.predictor_key}")
        except Refusal:  # it was made while no key was asked for
            return None
    with here.database.session() as session:
        row = session.get(ApiKey, name)
    return Caller(row.owner, frozenset(row.scopes)) if row is not None and row.revoked_at is None else None


def _signature(here: Gateway, name: str, until: str) -> str:
    """By a secret of the database, which all gateways share; of the own key's sessions also by that key."""
    with here.database.session() as session:
        secret = secrets_of(session, "")[-1]
    own = here.settings.predictor_key if name == OWN else ""
    return hmac.new(secret.encode(), f"{name}.{until}.{own}".encode(), hashlib.sha256).hexdigest()


def _local(path: str) -> str:
    """A path of this service; / for anything else."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() else "/"
