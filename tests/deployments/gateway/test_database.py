"""deployments/gateway/database.py on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select

from deployments.gateway.database import Away, Database
from deployments.gateway.keys import caller_of, create_key
from deployments.gateway.tables import ApiKey, Table
from infra.errors import UserError
from infra.settings import Settings
from tests.support.gateway import running
from tests.support.postgres import Postgres
from tests.support.postgres import running as postgres_running


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """An SQLite database in the home."""
    found = Database(settings)
    found.migrate()
    yield found
    found.close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server with an empty database."""
    with postgres_running("anneal", "pg-word") as server:
        server.psql("--command", "CREATE DATABASE gateway")
        yield server


def on_postgres(settings: Settings, server: Postgres) -> Settings:
    address = f"postgresql://anneal:pg-word@127.0.0.1:{server.port}/gateway"
    return settings.model_copy(update={"gateway_database": address})


def differences(database: Database) -> list[object]:
    with database.engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), Table.metadata))


def test_migrations_make_the_tables_that_the_code_has(database: Database) -> None:
    assert differences(database) == []


def test_only_one_has_a_lease_until_it_ends(database: Database) -> None:
    assert database.lease("projector", "a", 0.2) and database.lease("projector", "a", 0.2)
    assert not database.lease("projector", "b", 0.2)
    time.sleep(0.25)
    assert database.lease("projector", "b", 5)


def test_an_address_of_another_kind_is_refused(settings: Settings) -> None:
    with pytest.raises(UserError, match="postgresql://"):
        Database(settings.model_copy(update={"gateway_database": "mysql://host/x"}))


def test_a_key_is_kept_as_its_hash_alone(database: Database, settings: Settings) -> None:
    key = create_key(database, "acme", ["read"])
    with database.session() as session:
        (row,) = session.scalars(select(ApiKey)).all()
    assert key not in str(vars(row)) and row.hash not in key
    assert caller_of(settings, database, f"Bearer {key}").owner == "acme"
    with pytest.raises(UserError, match="scope"):
        create_key(database, "acme", ["everything"])


@pytest.mark.slow
def test_several_gateways_start_at_once_on_postgres(settings: Settings, postgres: Postgres) -> None:
    databases = [Database(on_postgres(settings, postgres)) for _ in range(4)]
    threads = [threading.Thread(target=database.migrate) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differences(databases[0]) == []
    assert [database.lease("one", str(n), 5) for n, database in enumerate(databases)] == [True, False, False, False]
    for database in databases:
        database.close()


@pytest.mark.slow
def test_an_outage_of_postgres_is_503_and_never_401_or_404(settings: Settings, postgres: Postgres) -> None:
    there = on_postgres(settings, postgres).model_copy(update={"prefect_url": "http://127.0.0.1:9/api"})
    with running(there, projecting=False) as gateway:
        gateway.model("acme", "outage")
        key = create_key(gateway.here.database, "acme", ["read"])
        with gateway.client(key) as tenant:
            assert tenant.get("/v1/models/acme/outage").status_code == 200
            postgres.crash()
            for path in ("/v1/models/acme/outage", "/v1/trainings/x", "/v1/account"):
                answer = tenant.get(path)
                assert answer.status_code == 503 and answer.headers["retry-after"].isdigit(), answer.text
            assert tenant.get("/health/live").status_code == 200
            assert tenant.get("/health/ready").status_code == 503
            postgres.start()
            assert tenant.get("/v1/models/acme/outage").status_code == 200


@pytest.mark.slow
def test_a_session_without_a_server_is_away(settings: Settings) -> None:
    database = Database(settings.model_copy(update={"gateway_database": "postgresql://a:b@127.0.0.1:9/x"}))
    with pytest.raises(Away, match="does not answer"):
        database.migrate()
