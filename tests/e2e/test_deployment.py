"""Pool and deployment on the stack's Prefect server: pytest tests/e2e/test_deployment.py"""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import Stack

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.slow

DEPLOYMENT = "finetune/gpu"


def test_pool_keeps_the_output_of_runs_off_the_worker(stack: Stack, client: SyncPrefectClient) -> None:
    from deployments.pipelines import deploy

    deploy(stack.settings)
    template = client.read_work_pool("gpu-pool").base_job_template
    assert template["variables"]["properties"]["stream_output"]["default"] is False


def test_a_worker_starts_the_engine_of_the_environment_that_deployed_last(
    stack: Stack, client: SyncPrefectClient,
) -> None:
    from prefect.client.schemas.actions import WorkPoolUpdate

    from deployments.pipelines import deploy

    def command() -> Any:
        return client.read_work_pool("gpu-pool").base_job_template["variables"]["properties"]["command"]

    template = client.read_work_pool("gpu-pool").base_job_template
    template["variables"]["properties"]["command"]["default"] = "/moved/bin/python -m infra.engine"
    client.update_work_pool("gpu-pool", WorkPoolUpdate(base_job_template=template))
    assert "pool gpu-pool: command was '/moved/bin/python -m infra.engine' (replaced)" in deploy(stack.settings).differs
    assert deploy(stack.settings).differs == []
    assert shlex.split(command()["default"]) == [sys.executable, "-m", "infra.engine"]


def test_form_shows_the_fields_of_the_spec(stack: Stack, client: SyncPrefectClient) -> None:
    from deployments.pipelines import deploy

    deploy(stack.settings)
    schema = client.read_deployment_by_name(DEPLOYMENT).parameter_openapi_schema
    assert schema is not None
    assert "train_data" in schema["definitions"]["Parameters"]["properties"]


def test_deploying_again_keeps_id_schedules_and_limits(stack: Stack, client: SyncPrefectClient) -> None:
    from uuid import UUID

    from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolUpdate
    from prefect.client.schemas.schedules import CronSchedule

    from deployments.pipelines import deploy

    deployment_id = deploy(stack.settings).deployments[DEPLOYMENT]
    schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * 1"), active=False)
    client.create_deployment_schedules(UUID(deployment_id), [schedule])
    client.update_work_pool("gpu-pool", WorkPoolUpdate(concurrency_limit=2))
    assert deploy(stack.settings).deployments[DEPLOYMENT] == deployment_id
    assert len(client.read_deployment_by_name(DEPLOYMENT).schedules) == 1
    assert client.read_work_pool("gpu-pool").concurrency_limit == 2
