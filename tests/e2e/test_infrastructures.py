"""Pools of any name and type, deployments for each, and what earlier releases called otherwise, on the stack's server.

Run alone: pytest tests/e2e/test_infrastructures.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.errors import UserError
from tests.conftest import ROOT
from tests.e2e.conftest import Stack

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.slow

TRIGGER = "anneal: retrain when a dataset was updated"
MADE = ("gpu-docker", "cpu-docker", "team", "others")


@pytest.fixture(autouse=True)
def swept(client: SyncPrefectClient) -> Iterator[None]:
    """Pools that a test made go, and their deployments and triggers; secrets too."""
    from prefect.exceptions import ObjectNotFound

    yield
    for one in client.read_deployments():
        if one.work_pool_name in MADE:
            client.delete_deployment(one.id)
    for name in MADE:
        with suppress(ObjectNotFound):
            client.delete_work_pool(name)
    with suppress(ObjectNotFound):
        client.delete_block_document(client.read_block_document_by_name("anneal-run", "secret").id)


def pools_of(client: SyncPrefectClient) -> dict[str, str | None]:
    """The pool of each deployment."""
    return {one.name: one.work_pool_name for one in client.read_deployments()}


def test_each_infrastructure_has_deployments_of_its_own(stack: Stack, client: SyncPrefectClient) -> None:
    from deployments.prefect_setup.apply import deploy, find

    before = pools_of(client)
    done = deploy(stack.settings, "docker", cpu_pool=True)
    assert {"finetune/finetune-docker", "retrain/retrain-docker", "predict/predict-docker"} <= set(done.deployments)
    after = pools_of(client)
    assert {name: after[name] for name in before} == before, "those of the other one stay where they are"
    assert (after["finetune-docker"], after["prepare-docker"]) == ("gpu-docker", "cpu-docker")
    prepare = client.read_deployment_by_name("finetune/prepare-docker")
    assert prepare.parameters == {"hand_over_to": "finetune/finetune-docker"}
    (second,) = client.read_automations_by_name(f"{TRIGGER} (docker)")
    assert not second.enabled and client.read_automations_by_name(TRIGGER)[0].enabled, "an event starts one retraining"
    assert deploy(stack.settings, "docker", cpu_pool=True).differs == []
    assert find(client, "finetune/finetune").name == "finetune"


def test_a_pool_may_have_any_name_and_type(stack: Stack, client: SyncPrefectClient) -> None:
    done = stack.anneal("deploy", "--pool", "team", "--type", "ecs", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pools"] == ["team"] and "finetune/finetune-team" in found["deployments"]
    pool = client.read_work_pool("team")
    assert pool.type == "ecs" and "command" not in pool.base_job_template["variables"]["properties"]
    assert json.loads(stack.anneal("deploy", "--pool", "team", "--json").stdout)["differs"] == [], "its type is known"
    wrong = stack.anneal("deploy", "--pool", "team", "--type", "docker")
    assert wrong.returncode == 2 and "its type is ecs, not docker" in wrong.stderr


def test_a_pool_that_others_made_keeps_its_template(stack: Stack, client: SyncPrefectClient) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate

    from deployments.prefect_setup.apply import deploy
    from deployments.prefect_setup.pools import Pool

    theirs = Pool("gpu", "docker").stock_template
    client.create_work_pool(WorkPoolCreate(name="others", type="docker", base_job_template=theirs))
    differs = deploy(stack.settings, "docker", "others").differs
    assert any("is not ours (kept)" in line for line in differs)
    assert any("lets whoever starts a run name a command" in line for line in differs)
    assert client.read_work_pool("others").base_job_template == theirs


def test_prefects_own_command_makes_a_pool_of_an_exported_template(
    stack: Stack, client: SyncPrefectClient, tmp_path: Path,
) -> None:
    from deployments.prefect_setup.pools import Pool

    done = stack.anneal("deploy", "--export", str(tmp_path / "templates"), "--json")
    assert done.returncode == 0 and len(json.loads(done.stdout)["written"]) == 6
    subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "work-pool", "create", "others", "--type", "kubernetes",
         "--base-job-template", str(tmp_path / "templates" / "gpu-kubernetes.json")],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
        env={**os.environ, **stack.environment, "PREFECT_API_URL": stack.settings.prefect_api})
    assert client.read_work_pool("others").base_job_template == Pool("gpu", "kubernetes").template


def test_a_run_gets_its_keys_from_a_block(stack: Stack, client: SyncPrefectClient) -> None:
    from deployments.prefect_setup.secrets import ensure_secrets
    from tasks.runs.blocks import adopt_secrets

    settings = stack.settings.model_copy(update={"secrets_block": "secret/anneal-run"})
    with pytest.raises(UserError, match="there is no block secret/anneal-run"):
        adopt_secrets(settings, {})
    assert ensure_secrets(client, {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "word"}) == []
    environment = {"AWS_ACCESS_KEY_ID": "of this machine"}
    adopt_secrets(settings, environment)
    assert environment == {"AWS_ACCESS_KEY_ID": "of this machine", "AWS_SECRET_ACCESS_KEY": "word"}


def test_several_stand_ins_are_named(stack: Stack, client: SyncPrefectClient) -> None:
    from deployments.prefect_setup.apply import deploy, find

    deploy(stack.settings, "docker")
    deploy(stack.settings, "ecs", "team")
    ours = client.read_deployment_by_name("predict/predict")
    client.delete_deployment(ours.id)
    try:
        with pytest.raises(UserError, match=r"predict/predict, but predict/predict-docker, predict/predict-team"):
            find(client, "predict/predict")
        client.delete_deployment(find(client, "predict/predict-team").id)
        assert find(client, "predict/predict").name == "predict-docker"
    finally:
        deploy(stack.settings)


def test_what_an_earlier_release_called_otherwise_is_moved_and_gone(stack: Stack, client: SyncPrefectClient) -> None:
    from prefect import flow
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule

    from deployments.prefect_setup.apply import deploy

    @flow(name="reconcile")
    def gone() -> None:
        """flows/reconcile.py of that release."""

    retrain = client.read_deployment_by_name("retrain/retrain")
    schedule = DeploymentScheduleCreate(
        schedule=CronSchedule(cron="1 2 3 4 5", timezone="UTC"), active=False, slug="mine")
    client.create_deployment(retrain.flow_id, "weekly", entrypoint="flows/retrain.py:retrain", schedules=[schedule],
                             work_pool_name="gpu-pool")
    minute = client.create_deployment(
        client.create_flow(gone), "every-minute", entrypoint="flows/reconcile.py:reconcile", work_pool_name="gpu-pool")
    client.create_flow_run_from_deployment(minute)
    differs = deploy(stack.settings).differs
    assert any(line.startswith("deployment retrain/weekly is called retrain/retrain now") for line in differs)
    assert any(line.startswith("deployment reconcile/every-minute is gone") for line in differs)
    assert {"weekly", "every-minute", "machine"} & set(pools_of(client)) == set()
    assert stack.prefect("/flow_runs/filter", flows={"name": {"any_": ["reconcile"]}}) == []
    moved = client.read_deployment_by_name("retrain/retrain")
    (mine,) = [one for one in moved.schedules if one.slug == "mine"]
    client.delete_deployment_schedule(moved.id, mine.id)
    assert deploy(stack.settings).differs == []
