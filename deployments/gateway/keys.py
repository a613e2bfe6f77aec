"""Who asks, and what he may do.

In:   Authorization: Bearer or Token      Out: a Caller with an owner and scopes
The home's secret (or ANNEAL_API_KEY) is the key of whoever runs the stack: it may do everything, and needs no database.
Other keys are made by `anneal key create` and kept as hashes. Where ANNEAL_REQUIRE_SECRET is off, there is no key and
only this machine can ask, everybody is that caller.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from fastapi import Depends, Request
from sqlalchemy import select

from deployments.gateway.database import Database
from deployments.gateway.errors import Refusal
from deployments.gateway.ids import new_id
from deployments.gateway.tables import ApiKey
from infra.errors import UserError, shown
from infra.security.door import credential_of, is_loopback
from infra.settings import Settings

Scope = Literal["read", "train", "predict", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "an_"


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request."""

    owner: str
    scopes: frozenset[str]

    @property
    def is_admin(self) -> bool:
        """Sees and changes what every owner has."""
        return "admin" in self.scopes

    def sees(self, owner: str) -> bool:
        """Whether this owner's things are there for the caller."""
        return self.is_admin or owner == self.owner


def create_key(database: Database, owner: str, scopes: list[str], name: str = "") -> str:
    """A new key, which is shown once. Raises UserError for a scope or owner that is none."""
    for scope in scopes:
        if scope not in SCOPES:
            raise UserError(f"the scope is {shown(scope)}", allowed="one of " + ", ".join(SCOPES))
    if not owner or not owner.replace("-", "").replace("_", "").isalnum() or owner != owner.lower():
        raise UserError(f"the owner is {shown(owner)}", allowed="lower-case letters, digits, - and _",
                        fix="It is the first part of owner/name of the models that the key may train.")
    key = PREFIX + secrets.token_urlsafe(32)
    with database.session() as session:
        session.add(ApiKey(id=new_id(), hash=hash_of(key), owner=owner, name=name, scopes=sorted(set(scopes)),
                           created_at=time.time(), revoked_at=None))
    return key


def has_keys(database: Database) -> bool:
    """Whether there is a key that is not revoked."""
    with database.session() as session:
        return session.scalar(select(ApiKey.id).where(ApiKey.revoked_at.is_(None)).limit(1)) is not None


def caller_of(settings: Settings, database: Database, authorization: str) -> Caller:
    """Whose key a header has. Raises Refusal 401, and Away while it cannot be known."""
    everything = Caller(settings.account, frozenset(SCOPES))
    given, own = credential_of(authorization), settings.predictor_key
    if own and given and hmac.compare_digest(hash_of(given), hash_of(own)):
        return everything
    if given.startswith(PREFIX):
        with database.session() as session:
            found = session.scalar(select(ApiKey).where(ApiKey.hash == hash_of(given), ApiKey.revoked_at.is_(None)))
        if found is not None:
            return Caller(found.owner, frozenset(found.scopes))
    elif not own and is_loopback(settings.host) and not has_keys(database):
        return everything
    raise Refusal(401, "You did not pass a valid authentication token", title="Unauthenticated",
                  headers={"WWW-Authenticate": 'Bearer realm="Anneal"'})


def may(scope: Scope) -> Callable[[Request], Caller]:
    """A dependency: the caller, who has that scope. Raises Refusal 401, 403 and 429."""

    def depend(request: Request) -> Caller:
        state = request.app.state
        caller = caller_of(state.settings, state.database, request.headers.get("authorization", ""))
        creates = scope == "predict" and request.url.path.endswith(("/predictions", "/completions"))
        state.limits.take(caller.owner, "predict" if creates else "other")
        if scope not in caller.scopes and not caller.is_admin:
            raise Refusal(403, f"Your key has no scope {scope}. Ask for a key with it.")
        return caller

    return depend


Reader = Annotated[Caller, Depends(may("read"))]
Trainer = Annotated[Caller, Depends(may("train"))]
Asker = Annotated[Caller, Depends(may("predict"))]


def hash_of(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
