"""Data that is watched: `anneal watch`, runs on the worker that look and train: pytest tests/e2e/test_watch.py"""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra.storage.store import Store, filesystem
from tests.conftest import BUCKET, wait_for
from tests.e2e.conftest import KNOBS, LONG, Stack, options

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.slow

DESTINATION = "acme/watched"


@pytest.fixture
def watched(stack: Stack, shared: Path, stories: Path) -> dict[str, Any]:
    """A training whose data is one shard in S3."""
    with (shared / "data" / "mts_dialog" / "train.jsonl").open() as file:
        put(stack, "day=1/a.jsonl", "".join(islice(file, 40)))
    return {"train_data": f"s3://{BUCKET}/chats/day=*/*.jsonl", "base_model": str(stories),
            "destination": DESTINATION, **KNOBS}


def test_new_data_is_seen_and_learned(
    stack: Stack, shared: Path, watched: dict[str, Any], client: SyncPrefectClient,
) -> None:
    from tasks.runs.recover import forget_looks

    first, state = look(stack, watched)
    assert state["name"] == "Completed", state
    (name,) = Store(stack.settings).names("watched")
    noted = json.loads(Store(stack.settings).read(name) or "")
    assert (noted["destination"], noted["files"], noted["version"], noted["run"]) == (DESTINATION, 1, 1, first)

    again, state = look(stack, watched)
    assert state["name"] == "Unchanged" and "has not changed since version 1 (1 file," in state["message"], state
    assert stack.steps(again) == {}
    assert len(stack.versions(DESTINATION)) == 1

    with (shared / "data" / "mts_dialog" / "train.jsonl").open() as file:
        put(stack, "day=2/b.jsonl", "".join(islice(file, 40, 60)))
    second, state = look(stack, watched)
    assert state["name"] == "Completed", state
    assert "2 shards, 1 new and 0 gone since version 1" in stack.artifacts(second)["news"]
    assert len(stack.versions(DESTINATION)) == 2

    forget_looks(client, timedelta(0))
    assert stack.runs(f"retrain {DESTINATION}") == [first, second]


def test_a_long_reading_is_shown_as_a_progress_bar(stack: Stack, client: SyncPrefectClient) -> None:
    from prefect import flow, runtime

    from tasks.data.streams import ReadProgress
    from tasks.ui.progress import ReadingShown

    @flow(persist_result=False)
    def reads() -> tuple[str, Any]:
        with ReadingShown("training-data") as shown:
            shown.see(ReadProgress(lines=5, bytes=30, total_bytes=120, seconds=5.0, file=1, files=2))
            half_way = stack.shown(runtime.flow_run.id)["training-data-progress"]
        return runtime.flow_run.id, half_way

    run, half_way = reads()
    assert (half_way["data"], stack.artifacts(run)["training-data-progress"]) == (25.0, 100.0)
    assert half_way["description"] == "5 lines, 0 MB read (25%), 0.0 MB/s, 15 s left, file 1 of 2"


def test_what_ingest_reads_is_shown_as_a_progress_bar(
    stack: Stack, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    from prefect import flow, runtime

    from tasks.ingest import ingest_task

    (tmp_path / "rows.jsonl").write_text('{"text": "read for so long that it is told"}\n')
    monkeypatch.setenv("ANNEAL_HOME", str(stack.settings.home_path))
    monkeypatch.setattr("tasks.data.streams.TELL_EVERY_S", 0.0)

    @flow(persist_result=False)
    def brings() -> str:
        ingest_task(str(tmp_path / "rows.jsonl"), "training data")
        return str(runtime.flow_run.id)

    shown = stack.shown(brings())["training-data-progress"]
    assert (shown["data"], shown["description"]) == (100.0, "Read")


def test_what_s3_has_unchanged_is_not_read_twice_and_is_shown_as_cached(
    stack: Stack, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect import flow, runtime

    from tasks.ingest import ingest_task

    monkeypatch.setenv("ANNEAL_HOME", str(stack.settings.home_path))
    monkeypatch.setenv("ANNEAL_S3_ENDPOINT_URL", stack.settings.s3_endpoint_url)

    @flow(persist_result=False)
    def brings() -> str:
        ingest_task(f"s3://{BUCKET}/chats/known.jsonl", "training data")
        return str(runtime.flow_run.id)

    states = []
    for text in ('{"text": "a"}\n', "", '{"text": "b"}\n'):
        if text:
            put(stack, "known.jsonl", text)
        states.append(stack.steps(brings())["ingest"])
    filesystem("s3://", stack.settings).rm(f"s3://{BUCKET}/chats/known.jsonl")
    assert states == ["Completed", "Cached", "Completed"]


def test_nothing_is_trained_while_another_retraining_of_it_is_under_way(
    stack: Stack, watched: dict[str, Any], client: SyncPrefectClient,
) -> None:
    from uuid import UUID

    from prefect.states import Cancelled, Running

    deployment = UUID(stack.prefect("/deployments/name/retrain/retrain")["id"])
    training = {**watched, "destination": "acme/postponed"}
    run = client.create_flow_run_from_deployment(
        deployment, parameters={"training": training}, name="the other one", state=Running())  # no process has it
    try:
        _, postponed = look(stack, training)
    finally:
        client.set_flow_run_state(run.id, Cancelled(), force=True)
    assert postponed["name"] == "Postponed" and "'the other one' is under way" in postponed["message"], postponed
    assert stack.versions("acme/postponed") == []


def test_a_retraining_beside_another_one_is_cancelled_and_says_why(
    stack: Stack, watched: dict[str, Any], client: SyncPrefectClient,
) -> None:
    from prefect.client.schemas.objects import StateType

    from tasks.runs.queries import REFUSED, runs_in

    def begin(destination: str) -> str:
        wanted = {**watched, **LONG, "max_steps": 200, "destination": destination}
        path = f"/deployments/{deployment}/create_flow_run"
        return str(stack.prefect(path, parameters={"training": wanted})["id"])

    def state(run: str) -> str:
        return str(stack.prefect(f"/flow_runs/{run}")["state"]["type"])

    wait_for(lambda: not runs_in(client, ("retrain",), StateType.RUNNING, StateType.PENDING),
             "an earlier retraining does not end")
    deployment = stack.prefect("/deployments/name/retrain/retrain")["id"]
    first = begin("acme/one")
    try:
        wait_for(lambda: state(first) == "RUNNING", "the first does not start")
        second = begin("acme/two")
        refused = stack.wait_until_over(second)
        assert state(first) == "RUNNING"  # still: it was there all the time
    finally:
        stack.prefect(f"/flow_runs/{first}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
    assert stack.wait_until_over(first)["type"] == "CANCELLED"
    assert (refused["type"], refused["message"]) == ("CANCELLED", REFUSED)
    assert stack.prefect(f"/flow_runs/{second}")["run_count"] == 0


def test_what_an_earlier_release_watched_goes_on(stack: Stack, client: SyncPrefectClient) -> None:
    from prefect import flow
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.exceptions import ObjectNotFound

    from deployments.prefect_setup.apply import deploy

    @flow(name="watch")
    def gone() -> None:
        """flows/watch.py of that release."""

    training = {"train_data": "s3://b/d.jsonl", "base_model": "m", "destination": "acme/earlier"}
    old = client.create_deployment(client.create_flow(gone), name="data", entrypoint="flows/watch.py:watch", schedules=[
        DeploymentScheduleCreate(schedule=CronSchedule(cron="7 3 1 1 *", timezone="UTC"), active=False,
                                 slug="acme--earlier", parameters={"training": training})])
    assert deploy(stack.settings).differs == [
        "deployment watch/data is called retrain/watch now; it has its schedules (1)"]
    with pytest.raises(ObjectNotFound):
        client.read_deployment(old)
    stored = client.read_deployment_by_name("retrain/watch")
    (schedule,) = stored.schedules
    client.delete_deployment_schedule(stored.id, schedule.id)
    assert (schedule.slug, schedule.active, getattr(schedule.schedule, "cron", "")) == (
        "acme--earlier", False, "7 3 1 1 *")
    assert schedule.parameters == {"training": training}
    assert deploy(stack.settings).differs == []


def test_watching_is_one_schedule_a_destination_which_deploying_keeps(
    stack: Stack, watched: dict[str, Any], client: SyncPrefectClient,
) -> None:
    command = ["watch", "--json", *options({**watched, "destination": "acme/scheduled"})]
    done = stack.anneal(*command, "--every", "1d")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == "created"
    done = stack.anneal(*command, "--cron", "7 3 1 1 *")
    assert json.loads(done.stdout)["done"] == "updated", done.stderr
    assert stack.anneal("deploy").returncode == 0
    (schedule,) = [one for one in client.read_deployment_by_name("retrain/watch").schedules
                   if one.slug == "acme--scheduled"]
    assert getattr(schedule.schedule, "cron", "") == "7 3 1 1 *" and schedule.active
    training = schedule.parameters["training"]
    assert (training["train_data"], training["max_steps"]) == (watched["train_data"], KNOBS["max_steps"])
    wait_for(lambda: client.get_scheduled_flow_runs_for_deployments(
        [client.read_deployment_by_name("retrain/watch").id]), "nothing is scheduled")

    done = stack.anneal("watch", "--off", "--destination", "acme/scheduled")
    assert (done.returncode, "is not watched any more" in done.stdout) == (0, True), done.stderr
    assert client.read_deployment_by_name("retrain/watch").schedules == []
    again = stack.anneal("watch", "--off", "--destination", "acme/scheduled")
    assert (again.returncode, "was not watched" in again.stdout) == (0, True), again.stderr


def put(stack: Stack, name: str, text: str) -> None:
    """A shard."""
    filesystem("s3://", stack.settings).pipe_file(f"s3://{BUCKET}/chats/{name}", text.encode())


def look(stack: Stack, training: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A run of retrain/watch on the worker, and its final state."""
    deployment = stack.prefect("/deployments/name/retrain/watch")["id"]
    run = str(stack.prefect(f"/deployments/{deployment}/create_flow_run", parameters={"training": training})["id"])
    state = stack.wait_until_over(run)
    assert state["type"] == "COMPLETED", state
    return run, state
