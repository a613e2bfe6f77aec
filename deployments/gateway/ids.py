"""Ids, times and pages of lists, as Replicate's clients know them.

Ids are 26 lower-case base-32 characters, times RFC 3339 in UTC with a Z. Lists are the newest first; a page's cursor
names its last row, so that rows that come meanwhile move nothing.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import UUID

from sqlalchemy import Select, and_, or_
from sqlalchemy.orm import Session

from deployments.gateway.errors import Refusal

T = TypeVar("T")


def new_id() -> str:
    """128 random bits."""
    return encoded(secrets.token_bytes(16))


def encoded(value: bytes) -> str:
    """16 bytes as 26 characters."""
    return base64.b32encode(value).decode().lower().rstrip("=")


def id_of_run(flow_run: UUID) -> str:
    """The id of a training that was started elsewhere: the same in every gateway."""
    return encoded(flow_run.bytes)


def moment(seconds: float | None) -> str | None:
    """Seconds since 1970 as text."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def page_of(
    session: Session, query: Select[tuple[T]], table: Any, size: int, cursor: str | None, address: str,
    shown: Callable[[T], dict[str, Any]],
) -> dict[str, Any]:
    """One page of a list: {"next", "previous", "results"}.

    Args:
        query: the rows of the list, in any order.
        table: their class, with `created_at` and `id`.
        cursor: what `next` or `previous` of another page had.
        address: of the list, for these two.
    """
    back, at = _read(cursor) if cursor else (False, None)
    if at is not None:
        before = or_(table.created_at < at[0], and_(table.created_at == at[0], table.id < at[1]))
        after = or_(table.created_at > at[0], and_(table.created_at == at[0], table.id > at[1]))
        query = query.where(after if back else before)
    order = (table.created_at.asc(), table.id.asc()) if back else (table.created_at.desc(), table.id.desc())
    found: Sequence[Any] = session.scalars(query.order_by(*order).limit(size + 1)).all()
    more, found = len(found) > size, found[:size]
    if back:
        found = found[::-1]

    def link(is_back: bool, row: Any) -> str:
        return f"{address}?cursor={quote(_written(is_back, row.created_at, row.id))}"

    has_next, has_previous = (bool(found), more) if back else (more, at is not None and bool(found))
    return {
        "next": link(False, found[-1]) if has_next and found else None,
        "previous": link(True, found[0]) if has_previous and found else None, "results": [shown(row) for row in found]}


def _written(back: bool, created_at: float, row: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([back, created_at, row]).encode()).decode().rstrip("=")


def _read(cursor: str) -> tuple[bool, tuple[float, str]]:
    try:
        back, created_at, row = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return bool(back), (float(created_at), str(row))
    except (ValueError, TypeError):
        raise Refusal(400, "The cursor is none of ours. Take the one of a page's next or previous.") from None
