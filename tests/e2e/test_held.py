"""Runs that wait for another machine or for the server, or make way: pytest -m chaos tests/e2e/test_held.py"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psutil
import pytest

from infra.engine import RUN
from infra.stack import local as running
from infra.stack.processes import lives
from infra.storage.store import filesystem
from tests.conftest import ROOT, training_processes, wait_for
from tests.e2e.conftest import Stack
from tests.e2e.test_recovery import (
    KNOBS,
    RECOVERY_S,
    Undisturbed,
    finished,
    flow_process,
    killed,
    started,
    state_of,
    trained_anew,
    undisturbed,
)

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

__all__ = ["trained_anew", "undisturbed"]

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

AWAY_S = 60
"""After the training's end; clients of runs wait longer altogether (infra/stack/services.py)."""
HOLDS = """
import fcntl, sys, time
with open(sys.argv[1], "a+") as lock:
    print("waits", flush=True)
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.truncate(0)
    lock.write("another-machine 1 1")
    lock.flush()
    print("holds", flush=True)
    time.sleep(600)
"""


def test_a_run_whose_lock_another_machine_still_holds_waits_for_it(
    stack: Stack, parameters: dict[str, Any], undisturbed: Undisturbed,
) -> None:
    run = started(stack, parameters, "held", undisturbed)
    lock = stack.settings.home_path / "runs" / f"{run}.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "waits\n"
        killed(flow_process(run))
        assert holder.stdout.readline() == "holds\n"
        wait_for(lambda: "another-machine 1 1 had it before" in str(state_of(stack, run)["message"]),
                 "it does not say who has it", RECOVERY_S)
        assert state_of(stack, run)["name"] == "AwaitingRetry"
    finally:
        holder.kill()
        holder.communicate()
    finished(stack, run, "held", undisturbed, attempts=3)


def test_a_machine_that_wakes_after_another_one_took_its_run_changes_nothing(
    stack: Stack, parameters: dict[str, Any], undisturbed: Undisturbed, client: SyncPrefectClient, tmp_path: Path,
) -> None:
    """A home of its own stands for it: no lock and no slot is shared, only the store and the servers."""
    from prefect.states import Pending

    created = client.create_flow_run_from_deployment(
        UUID(stack.prefect("/deployments/name/finetune/finetune")["id"]), state=Pending(),  # no worker takes it
        parameters={"training": {**parameters, **KNOBS, "destination": "acme/woken"}})
    run = str(created.id)
    flow = psutil.Popen([sys.executable, "-m", "infra.engine"], cwd=ROOT, start_new_session=True, env={
        **os.environ, **stack.environment, "PREFECT_API_URL": stack.settings.prefect_api, RUN: run,
        "ANNEAL_HOME": str(tmp_path), "ANNEAL_GPU_LIMIT": "none"})
    wait_for(lambda: training_processes(tmp_path) and list(tmp_path.glob("trainings/*/step-??????")),
             "it does not train")
    asleep = [*training_processes(tmp_path), flow]
    try:
        for process in asleep:
            process.suspend()
        finished(stack, run, "woken", undisturbed, attempts=2, resumes=None)
        before = seen_outside(stack, run, "woken", undisturbed)
        for process in asleep:
            assert process.status() == psutil.STATUS_STOPPED
            process.resume()
        assert psutil.wait_procs(asleep, timeout=60)[1] == []
    finally:
        for process in asleep:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert seen_outside(stack, run, "woken", undisturbed) == before


def seen_outside(stack: Stack, run: str, name: str, undisturbed: Undisturbed) -> dict[str, Any]:
    """The run, its version and every file of its training in the store, each with its time."""
    from mlflow import MlflowClient

    files = filesystem(stack.settings.store_root, stack.settings)
    files.invalidate_cache()
    found = files.find(f"{stack.settings.store_root}/trainings/{undisturbed.training}", detail=True)
    assert found
    registry = MlflowClient(stack.settings.tracking_uri)
    return {
        "run": {key: stack.prefect(f"/flow_runs/{run}")[key] for key in ("state", "run_count", "tags")},
        "artifacts": sorted(stack.artifacts(run)),
        "files": {path: (about["ETag"], about["LastModified"]) for path, about in found.items()},
        "versions": [(one.version, one.last_updated_timestamp) for one in stack.versions(f"acme/{name}")],
        "aliases": registry.get_registered_model(f"acme--{name}").aliases}


def test_runs_save_a_checkpoint_before_their_worker_is_stopped(
    stack: Stack, parameters: dict[str, Any], undisturbed: Undisturbed,
) -> None:
    """By the command that systemd starts first."""
    run = started(stack, parameters, "told-to-stop", undisturbed)
    (process,), folder = flow_process(run), stack.settings.home_path / "trainings" / undisturbed.training
    worker = running.read_stack(stack.settings)["worker"].pid
    subprocess.run([sys.executable, "-m", "infra.stack.processes", str(worker)], env={**os.environ,
                   **stack.environment}, cwd=ROOT, check=True, timeout=60)
    assert not lives(process) and "preempted" in (folder / "events.jsonl").read_text()
    finished(stack, run, "told-to-stop", undisturbed, attempts=2)


def test_a_run_outlives_a_prefect_server_that_is_away_for_minutes(
    stack: Stack, parameters: dict[str, Any], undisturbed: Undisturbed,
) -> None:
    """The training ends meanwhile; its process waits for the server."""
    run = started(stack, parameters, "far-away", undisturbed)
    services = running.read_stack(stack.settings)
    killed([psutil.Process(services[name].pid) for name in ("keeper", "prefect")])
    try:
        wait_for(lambda: training_processes(stack.settings.home_path) == [], "it does not train without the server")
        time.sleep(AWAY_S)
    finally:
        assert stack.anneal("up").returncode == 0
    finished(stack, run, "far-away", undisturbed, resumes=False)
