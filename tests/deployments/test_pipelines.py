"""Pool and deployment on a real Prefect server: pytest tests/deployments/test_pipelines.py -m slow"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra import stack
from infra.errors import UserError
from infra.settings import Settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

DEPLOYMENT = "finetune/gpu"


def test_without_a_server_it_says_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deployments.pipelines import deploy

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(UserError, match="anneal up"):
        deploy(Settings(home=tmp_path))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A Prefect server of its own."""
    with socket.socket() as probe, pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        settings = Settings(home=tmp_path_factory.mktemp("home"), prefect_port=port)
        stack.up(settings, only=("prefect",))
        yield settings
        stack.down(settings)


@pytest.fixture
def client(settings: Settings) -> Iterator[SyncPrefectClient]:
    """A client of that server."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: settings.prefect_api}), get_client(sync_client=True) as client:
        yield client


@pytest.mark.slow
def test_pool_keeps_the_output_of_runs_off_the_worker(settings: Settings, client: SyncPrefectClient) -> None:
    from deployments.pipelines import deploy

    deploy(settings)
    template = client.read_work_pool("gpu-pool").base_job_template
    assert template["variables"]["properties"]["stream_output"]["default"] is False


@pytest.mark.slow
def test_form_shows_the_fields_of_the_spec(settings: Settings, client: SyncPrefectClient) -> None:
    from deployments.pipelines import deploy

    deploy(settings)
    schema = client.read_deployment_by_name(DEPLOYMENT).parameter_openapi_schema
    assert schema is not None
    assert "train_data" in schema["definitions"]["Parameters"]["properties"]


@pytest.mark.slow
def test_deploying_again_keeps_id_schedules_and_limits(settings: Settings, client: SyncPrefectClient) -> None:
    from uuid import UUID

    from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolUpdate
    from prefect.client.schemas.schedules import CronSchedule

    from deployments.pipelines import deploy

    deployment_id = deploy(settings)
    schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * 1"), active=False)
    client.create_deployment_schedules(UUID(deployment_id), [schedule])
    client.update_work_pool("gpu-pool", WorkPoolUpdate(concurrency_limit=2))
    assert deploy(settings) == deployment_id
    assert len(client.read_deployment_by_name(DEPLOYMENT).schedules) == 1
    assert client.read_work_pool("gpu-pool").concurrency_limit == 2
