"""The gateway's database: SQLite in the home, or PostgreSQL by its address.

In:   Settings      Out: sessions; the tables are made and brought up to date by Alembic when a gateway starts
On disk: <home>/gateway.db. Several gateways may start at once: one migrates, the others wait. A database that is away
is `Away` here and 503 at the door, never 401 or 404.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from deployments.gateway.tables import Lease
from infra.errors import Transient, UserError
from infra.settings import Settings

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_NUMBER = 7_264_331
"""PostgreSQL's advisory lock while tables are changed."""
BUSY_S = 15
POOL, MORE = 10, 30
CONNECT_S = 5


class Away(Transient):
    """The gateway's own database does not answer."""


class Database:
    """A pool of connections."""

    def __init__(self, settings: Settings) -> None:
        """Raises UserError for an address that is none."""
        self._lock = settings.home_path / "gateway.db.lock"
        address = settings.gateway_database or f"sqlite:///{settings.home_path / 'gateway.db'}"
        self.is_sqlite = address.startswith("sqlite")
        if not self.is_sqlite and not address.startswith("postgresql://"):
            raise UserError("the address does not begin with postgresql://", where="ANNEAL_GATEWAY_DATABASE",
                            fix="Give postgresql://user:password@host/database, or leave it empty.")
        self.engine = _sqlite(address) if self.is_sqlite else create_engine(
            address, pool_size=POOL, max_overflow=MORE, pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_S})

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction: committed at the end, rolled back on an error. Raises Away."""
        try:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                yield session
        except (OperationalError, InterfaceError) as error:
            raise away(error) from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise away(error) from error
            raise

    def migrate(self) -> None:
        """Make the tables, or bring them up to date. Raises Away."""
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        try:
            with self._alone() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except (OperationalError, InterfaceError) as error:
            raise away(error) from error

    def lease(self, name: str, holder: str, seconds: float) -> bool:
        """Take or keep a lease; whether it is ours. Raises Away."""
        now = time.time()
        mine = (Lease.holder == holder) | (Lease.until < now)
        with self.session() as session:
            change = update(Lease).where(Lease.name == name, mine).values(holder=holder, until=now + seconds)
            if session.execute(change).rowcount:  # type: ignore[attr-defined]
                return True
            if session.get(Lease, name) is not None:
                return False
        try:
            with self.session() as session:
                session.add(Lease(name=name, holder=holder, until=now + seconds, seen_at=0.0))
        except IntegrityError:
            return False
        return True

    def ping(self) -> None:
        """Raise Away unless it answers."""
        with self.session() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """End all connections."""
        self.engine.dispose()

    @contextmanager
    def _alone(self) -> Iterator[Connection]:
        """A connection while no other gateway changes the tables."""
        if self.is_sqlite:
            with self._lock.open("w") as lock, self.engine.begin() as connection:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield connection
            return
        with self.engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": LOCK_NUMBER})
            yield connection


def away(error: DBAPIError) -> Away:
    """A database's failure in a sentence."""
    reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error).__name__
    return Away(f"the gateway's database does not answer ({reason})", fix="Try again in a few seconds.")


def _sqlite(address: str) -> Engine:
    engine = create_engine(address, pool_size=POOL, max_overflow=MORE, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def prepare(connection: object, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        cursor.execute("PRAGMA journal_mode=WAL")  # readers do not wait for the writer
        cursor.execute("PRAGMA synchronous=FULL")  # what was answered with 201 outlives a loss of power
        cursor.close()

    return engine
