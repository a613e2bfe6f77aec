"""`anneal deploy` and recovery on a Prefect server over Postgres."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from deployments.prefect_setup import apply
from infra.settings import Settings
from infra.stack.services import LEASES, OFFLINE
from infra.storage.store import Store
from tasks.runs import recover
from tests.conftest import free_port, wait_for, wait_until_responds
from tests.support.postgres import running

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.slow

STARTED_S = 150
SCHEDULED_S = 60


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server whose database is Postgres."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    with running("anneal", "pg-word") as database, (home / "log").open("wb") as log:
        database.psql("--command", "CREATE DATABASE prefect")
        url = f"postgresql+asyncpg://anneal:pg-word@127.0.0.1:{database.port}/prefect"
        # Flows that a test before imported left their home's password in the environment.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "--no-prompt", "server", "start", "--port", str(port)], cwd=home,
            stdout=log, stderr=log, start_new_session=True,
            env={**inherited, **OFFLINE, **LEASES, "PREFECT_HOME": str(home),
                 "PREFECT_SERVER_DATABASE_CONNECTION_URL": url})
        try:
            wait_until_responds(f"http://127.0.0.1:{port}/api/health", STARTED_S)
            yield f"http://127.0.0.1:{port}/api"
        finally:
            server.terminate()
            server.wait(timeout=60)


@pytest.fixture
def settings(api: str, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, prefect_url=api)


@pytest.fixture
def client(api: str) -> Iterator[SyncPrefectClient]:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        yield client


def test_postgres_takes_the_deployments_and_schedules_their_runs(settings: Settings, client: SyncPrefectClient) -> None:
    for _ in range(2):
        done = apply.deploy(settings)
        assert done.differs == []
    retrain = UUID(done.deployments["retrain/retrain"])
    (weekly,) = client.read_deployment(retrain).schedules
    client.update_deployment_schedule(retrain, weekly.id, active=True)
    wait_for(lambda: client.get_scheduled_flow_runs_for_deployments([retrain]), "nothing is scheduled", SCHEDULED_S)


def test_a_dead_run_is_found_and_scheduled_again_on_postgres(
    settings: Settings, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.states import Running

    monkeypatch.setattr(recover, "SILENT_S", 0)
    monkeypatch.setattr(recover, "SETTLE_S", 1)
    deployment = UUID(apply.deploy(settings).deployments["predict/predict"])
    parameters = {"model": "acme/nobody", "prompts": "/nowhere.jsonl"}
    run = client.create_flow_run_from_deployment(deployment, parameters=parameters, name="dead")
    client.set_flow_run_state(run.id, Running(), force=True)  # no process ever has it
    time.sleep(0.5)
    done = recover.recover(settings, client, Store(settings), ("predict",), sleep=lambda _: time.sleep(1.5))
    assert (done.crashed, done.again) == (["dead"], ["dead"])
    assert client.read_flow_run(run.id).state_name == "AwaitingRetry"
