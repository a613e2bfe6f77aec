"""Pool and deployment on the stack's Prefect server: pytest tests/e2e/test_deployment.py"""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.e2e.conftest import Stack

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.slow

DEPLOYMENT = "finetune/finetune"
TRIGGER = "anneal: retrain when a dataset was updated"


def test_pool_keeps_the_output_of_runs_off_the_worker(stack: Stack, client: SyncPrefectClient) -> None:
    from deployments.prefect_setup.apply import deploy

    deploy(stack.settings)
    template = client.read_work_pool("gpu-pool").base_job_template
    assert template["variables"]["properties"]["stream_output"]["default"] is False


def test_a_worker_starts_the_engine_of_the_environment_that_deployed_last(
    stack: Stack, client: SyncPrefectClient,
) -> None:
    from prefect.client.schemas.actions import WorkPoolUpdate

    from deployments.prefect_setup.apply import deploy

    template = client.read_work_pool("gpu-pool").base_job_template
    template["job_configuration"]["command"] = "{{ command }}"  # as earlier releases had it
    template["variables"]["properties"]["command"] = {"type": "string", "default": "/moved/bin/python -m infra.engine"}
    client.update_work_pool("gpu-pool", WorkPoolUpdate(base_job_template=template))
    assert deploy(stack.settings).differs == []
    template = client.read_work_pool("gpu-pool").base_job_template
    assert shlex.split(template["job_configuration"]["command"]) == [sys.executable, "-m", "infra.engine"]
    assert "command" not in template["variables"]["properties"]


def test_form_shows_the_fields_of_the_spec(stack: Stack, client: SyncPrefectClient) -> None:
    from deployments.prefect_setup.apply import deploy

    deploy(stack.settings)
    schema = client.read_deployment_by_name(DEPLOYMENT).parameter_openapi_schema
    assert schema is not None
    assert "train_data" in schema["definitions"]["Parameters"]["properties"]
    assert "^chunk_size$" in schema["definitions"]["Parameters"]["patternProperties"]


def test_every_parameter_of_every_deployment_is_described(stack: Stack, client: SyncPrefectClient) -> None:
    from deployments.prefect_setup.apply import deploy

    deployed = deploy(stack.settings).deployments
    assert {"finetune/finetune", "retrain/retrain", "predict/predict"} <= set(deployed)
    fields = set[str]()
    for name, identity in deployed.items():
        schema = client.read_deployment(UUID(identity)).parameter_openapi_schema
        assert schema is not None
        for part in (schema, *schema.get("definitions", {}).values()):
            for field, about in part.get("properties", {}).items():
                fields.add(field)
                is_group = "$ref" in about or "allOf" in about  # its own fields are looked at
                assert is_group or len(about.get("description", "")) > 10, f"{name}: {field}"
    assert {"train_data", "hand_over_to", "prompts", "temperature"} <= fields


def differences(stack: Stack) -> list[str]:
    """What `anneal deploy` says that differs."""
    done = stack.anneal("deploy")
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("differs: ") for line in done.stdout.splitlines() if line.startswith("differs: ")]


def test_priorities_triggers_and_slots_that_people_changed_are_kept(stack: Stack, client: SyncPrefectClient) -> None:
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

    from tasks.launcher.gpu_slots import limit_of, slots

    limit = limit_of(stack.settings)
    assert differences(stack) == []
    assert client.read_global_concurrency_limit_by_name(limit).limit == slots()
    queue = client.read_work_queue_by_name("trainings", work_pool_name="gpu-pool")
    (automation,) = client.read_automations_by_name(TRIGGER)
    try:
        client.update_work_queue(queue.id, priority=9)
        client.update_global_concurrency_limit(limit, GlobalConcurrencyLimitUpdate(limit=5))
        client.pause_automation(automation.id)
        assert differences(stack) == [
            "queue gpu-pool/trainings: priority is 9, not 2",
            f"deployment retrain/retrain: trigger '{TRIGGER}' is off (kept)"]
        assert client.read_global_concurrency_limit_by_name(limit).limit == 5
        assert client.read_work_queue(queue.id).priority == 9
        assert not client.read_automations_by_name(TRIGGER)[0].enabled
    finally:
        client.update_work_queue(queue.id, priority=queue.priority)
        client.update_global_concurrency_limit(limit, GlobalConcurrencyLimitUpdate(limit=slots()))
        client.resume_automation(automation.id)
    assert differences(stack) == []


def test_deploying_again_keeps_id_schedules_and_limits(stack: Stack, client: SyncPrefectClient) -> None:
    from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolUpdate
    from prefect.client.schemas.schedules import CronSchedule

    from deployments.prefect_setup.apply import deploy

    deployment_id = deploy(stack.settings).deployments[DEPLOYMENT]
    schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * 1"), active=False)
    client.create_deployment_schedules(UUID(deployment_id), [schedule])
    client.update_work_pool("gpu-pool", WorkPoolUpdate(concurrency_limit=2))
    assert deploy(stack.settings).deployments[DEPLOYMENT] == deployment_id
    assert len(client.read_deployment_by_name(DEPLOYMENT).schedules) == 1
    assert client.read_work_pool("gpu-pool").concurrency_limit == 2
