"""The record of what a model answers with, in memory and on disk.

On disk: <home>/predictor/<owner>--<name>.json. It is written whole or not at all; a destination
holds no double dash, so that the file's name is unambiguous.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UserError, from_os_error
from infra.files import write_atomic
from infra.records import Record


class NotServed(UserError):
    """No such model or version here (HTTP 404)."""


class Conflict(UserError):
    """The same version id for different files (HTTP 409)."""


@dataclass(frozen=True, kw_only=True)
class Order(Record):
    """A version to serve, as the deploy step names it."""

    version: str
    folder: str
    base_path: str | None = None
    base_digest: str | None = None
    smoke_prompt: str = ""
    number: int = 0
    """MLflow's number of the version; 0: not told, as by an earlier release."""


@dataclass(frozen=True, kw_only=True)
class Served(Record):
    """What a model answers with; this is the record on disk."""

    model: str
    current: Order
    previous: Order | None = None
    smoke: str = ""
    deployed_at: str = ""

    @property
    def ids(self) -> set[str]:
        """Versions that the model keeps in memory."""
        return {order.version for order in self.orders}

    @property
    def orders(self) -> list[Order]:
        """The current version, and the previous one if there is one."""
        return [order for order in (self.current, self.previous) if order is not None]

    @property
    def numbered(self) -> list[tuple[int, str]]:
        """(number, id) of both."""
        return [(order.number, order.version) for order in self.orders]

    @property
    def aliases(self) -> dict[str, str]:
        """Ids by the registry's names for both."""
        return dict(zip(("champion", "previous"), (order.version for order in self.orders), strict=False))

    def write(self, records: Path) -> None:
        """Put the record on disk, whole or not at all."""
        path = path_of(records, self.model)
        try:
            write_atomic(path, json.dumps(self.to_json(), indent=1))
        except OSError as error:
            raise from_os_error(error, str(path)) from error

    @classmethod
    def read(cls, path: Path) -> Served:
        """A record from disk. Raises UserError for a file that is not one."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            before = Order.of(raw["previous"]) if raw.get("previous") else None
            return cls.of({**raw, "current": Order.of(raw["current"]), "previous": before})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"not a deployment record ({error!r})", where=str(path), fix="Deploy again.") from error


def path_of(records: Path, model: str) -> Path:
    """Where a model's record stands."""
    return records / f"{model.replace('/', '--')}.json"
