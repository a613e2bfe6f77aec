"""Deployments, triggers and the remote command on the stack's server: pytest tests/e2e/test_operations.py"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from deployments.cli.gc import KINDS
from deployments.cli.main import EXIT_FAULT, EXIT_USER_ERROR
from infra.security.sign_in import sign_in_link
from infra.stack import local as running
from infra.storage.store import Store
from tests.conftest import ROOT, wait_for
from tests.e2e.conftest import Stack, Training, options

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.slow

AS_BROWSER = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate"}
ADDED = ("pull_steps", "job_variables", "parameter_openapi_schema")
"""Where `anneal deploy` differs from Prefect's own command: the project's folder, and only variables of the pool."""


def test_deploying_again_finds_nothing_to_say(stack: Stack) -> None:
    done = stack.anneal("deploy", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["differs"] == []
    assert set(found["deployments"]) == {
        "finetune/finetune", "finetune/finetune-advanced", "retrain/retrain", "retrain/retrain-advanced",
        "predict/predict", "retrain/watch"}


def test_prefects_own_deploy_makes_the_same(stack: Stack, client: SyncPrefectClient) -> None:
    from deployments.prefect_setup.apply import deploy, differences, wanted
    from deployments.prefect_setup.declared import declared
    from deployments.prefect_setup.pools import Pool

    deploy(stack.settings, cpu_pool=True)
    subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file",
         "deployments/prefect_setup/prefect.yaml"],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
        env={**os.environ, **stack.environment, "PREFECT_API_URL": stack.settings.prefect_api})
    before = client.read_deployment_by_name("retrain/retrain")
    for one in declared():
        found = client.read_deployment_by_name(one.full_name)
        values = wanted(one, Pool(one.work_pool.role, "process"))
        expected = {name: value for name, value in values.items() if name not in ADDED}
        assert differences(found, expected) == [], one.full_name
    assert deploy(stack.settings, cpu_pool=True).differs == []
    after = client.read_deployment_by_name("retrain/retrain")
    assert after.id == before.id
    assert [schedule.slug for schedule in after.schedules] == ["weekly"]
    assert len(client.read_automations_by_name("anneal: retrain when a dataset was updated")) == 1


def test_what_people_changed_is_kept_and_said(stack: Stack, client: SyncPrefectClient) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    from deployments.prefect_setup.apply import deploy

    stored = client.read_deployment_by_name("retrain/retrain")
    (weekly,) = stored.schedules
    client.update_deployment_schedule(
        stored.id, weekly.id, schedule=CronSchedule(cron="30 4 * * 2", timezone="UTC"), active=False)
    (said,) = deploy(stack.settings).differs
    assert "weekly" in said and "30 4 * * 2" in said and "0 3 * * 1" in said and "kept" in said
    client.update_deployment_schedule(stored.id, weekly.id, schedule=weekly.schedule)
    assert deploy(stack.settings).differs == []


def test_an_event_starts_a_retraining_which_sees_that_nothing_is_new(
    stack: Stack, client: SyncPrefectClient, first: Training,
) -> None:
    from prefect.events import emit_event

    known = {run["id"] for run in runs_of(stack, "retrain")}
    emit_event("dataset.updated", resource={"prefect.resource.id": "anneal.dataset.notes"},
               payload={"training": first.parameters})
    wait_for(lambda: {run["id"] for run in runs_of(stack, "retrain")} - known, "no run was started", 60)
    (run,) = [run for run in runs_of(stack, "retrain") if run["id"] not in known]
    assert run["created_by"]["type"] == "AUTOMATION"
    assert run["parameters"]["training"] == first.parameters
    state = stack.wait_until_over(run["id"])
    assert (state["type"], state["name"]) == ("COMPLETED", "Skipped"), state
    assert "Nothing is new" in state["message"]
    assert "learned from the same 60 rows" in stack.artifacts(run["id"])["skipped"]
    assert len(stack.versions(first.parameters["destination"])) == 1


def test_up_on_a_running_stack_starts_nothing_and_says_where_it_is(stack: Stack) -> None:
    before = running.read_stack(stack.settings)
    done = stack.anneal("up")
    assert done.returncode == 0 and "Starting" not in done.stderr, done.stderr
    page = sign_in_link(stack.settings.prefect_api.removesuffix("/api"), stack.settings.prefect_auth)
    assert f"prefect    {page}" in done.stdout.splitlines()
    assert running.read_stack(stack.settings) == before


def test_a_remote_training_runs_on_the_worker(stack: Stack, first: Training) -> None:
    done = stack.anneal("train", "--remote", "--json", *options(first.parameters))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["version"] == "acme/notes version 1"
    run = stack.prefect(f"/flow_runs/{found['run']}")
    assert run["deployment_id"] and run["state"]["type"] == "COMPLETED"
    assert "Finished in state Cached" in done.stderr
    page = found["links"]["run"]
    assert page.endswith(f"/v2/runs/flow-run/{found['run']}") and httpx.get(page, headers=AS_BROWSER).text == httpx.get(
        f"{page.partition('/v2')[0]}/v2/", headers=AS_BROWSER).text, "the UI that the start page leads to"


def test_a_cpu_pool_makes_the_data_ready_and_hands_over_through_the_store(
    stack: Stack, first: Training, tmp_path: Path,
) -> None:
    assert stack.anneal("deploy", "--cpu-pool").returncode == 0
    data = Path(first.parameters["train_data"])
    moved = tmp_path / data.name
    moved.write_bytes(data.read_bytes())
    deployment = stack.prefect("/deployments/name/finetune/prepare")["id"]
    wanted = {**first.parameters, "train_data": str(moved)}
    run = stack.prefect(f"/deployments/{deployment}/create_flow_run", parameters={
        "training": wanted})["id"]  # hand_over_to is the deployment's own
    worker = subprocess.Popen(
        [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--pool", "cpu-pool"], cwd=ROOT,
        env={**os.environ, **stack.environment, "PREFECT_API_URL": stack.settings.prefect_api},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        state = stack.wait_until_over(run)
    finally:
        worker.terminate()
        with suppress(subprocess.TimeoutExpired):  # how a worker ends is not what this is about
            worker.wait(30)
        worker.kill()
    moved.unlink()
    assert (state["type"], state["name"]) == ("COMPLETED", "HandedOver"), state
    assert set(stack.steps(run)) == {"ingest", "validate", "base", "pack", "hand"}
    (other,) = [found for found in runs_of(stack, "finetune")
                if str(found["idempotency_key"]).startswith("handed over")]
    assert other["parameters"]["training"]["train_data"].startswith("store://datasets/")
    assert stack.wait_until_over(other["id"])["type"] == "COMPLETED"
    assert stack.steps(other["id"])["pack"] == "Cached"
    assert [version.run_id for version in stack.versions("acme/notes")] == [stack.versions("acme/notes")[0].run_id]


def test_a_remote_training_with_nonsense_is_refused_before_it_starts(stack: Stack, first: Training) -> None:
    known = len(runs_of(stack, "finetune"))
    done = stack.anneal("train", "--remote", *options({**first.parameters, "lora_rank": 0}))
    assert done.returncode == 2
    assert "lora_rank" in done.stderr
    assert len(runs_of(stack, "finetune")) == known


def test_a_remote_training_that_fails_says_why_and_shows_no_traceback(
    stack: Stack, parameters: dict[str, Any], tmp_path: Path,
) -> None:
    (data := tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": 17}\n')
    done = stack.anneal("train", "--remote", *options({**parameters, "train_data": str(data)}))
    assert done.returncode == EXIT_FAULT
    sentence = 'bad.jsonl line 1: "completion" is a number (17); expected a string. Quote it'
    assert sentence in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_collected_while_a_run_could_be_using_it(stack: Stack, first: Training) -> None:
    store = Store(stack.settings)
    before = {kind: store.names(kind) for kind in KINDS}
    deployment = stack.prefect("/deployments/name/finetune/finetune")["id"]
    run = stack.prefect(f"/deployments/{deployment}/create_flow_run", state={"type": "RUNNING"},
                        parameters={"training": first.parameters})
    try:
        done = stack.anneal("gc", "--days", "0")
        assert done.returncode == EXIT_USER_ERROR
        assert "on their way" in done.stderr
        assert stack.anneal("gc", "--days", "0", "--dry-run").returncode == 0
    finally:
        stack.prefect(f"/flow_runs/{run['id']}/set_state", state={"type": "CANCELLED"}, force=True)
    assert {kind: store.names(kind) for kind in KINDS} == before


def test_a_file_of_prompts_is_answered_once(stack: Stack, first: Training, tmp_path: Path) -> None:
    prompts = [{"prompt": f"Once upon a time number {n}", "id": n} for n in range(40)]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in prompts))
    deployment = stack.prefect("/deployments/name/predict/predict")["id"]
    wanted = {"model": "acme/notes", "prompts": str(file), "max_new_tokens": 4}
    answers = []
    for _ in range(2):
        run = stack.prefect(f"/deployments/{deployment}/create_flow_run", parameters=wanted)["id"]
        state = stack.wait_until_over(run)
        assert state["type"] == "COMPLETED", state
        answers.append(stack.steps(run)["answer"])
    assert answers == ["Completed", "Cached"]
    (folder,) = Store(stack.settings).names("predictions")
    lines = (Store(stack.settings).fetch(folder) / "answers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [{"prompt": row["prompt"], "id": row["id"]} for row in rows] == prompts
    alone = stack.ask("acme/notes", str(prompts[7]["prompt"]), max_new_tokens=4)
    assert rows[7]["output"] == "".join(alone["output"])


def runs_of(stack: Stack, flow: str) -> list[dict[str, Any]]:
    """All runs of a flow."""
    return list(stack.prefect("/flow_runs/filter", flows={"name": {"any_": [flow]}}, limit=200))
