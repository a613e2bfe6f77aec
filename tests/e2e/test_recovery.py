"""Runs whose processes die go on by themselves: pytest -m chaos tests/e2e/test_recovery.py

A test kills what it names and then only waits; the worker, the keeper and the run of flows/reconcile.py that is due
every minute do the rest.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra import stack as running
from infra.store import Store
from tests.conftest import S3Server, training_processes, wait_for
from tests.e2e.conftest import LONG, Stack, options

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

ORPHAN_S = 5
RECOVERY_S = 400
"""Silence of a heartbeat and a half twice, up to a minute until the next look, and a training on a busy machine."""
STORE_AWAY_S = 20
RUN_MARK = "PREFECT__FLOW_RUN_ID"


def flow_process(run: str) -> list[psutil.Process]:
    """The processes that execute a flow run, known by what they inherited."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(RUN_MARK) == run and "prefect" in " ".join(process.cmdline()):
                found.append(process)
    return found


def started(stack: Stack, parameters: dict[str, Any], name: str, **knobs: Any) -> str:
    """A run of the deployment, on its way with a checkpoint."""
    home = stack.settings.home_path
    wait_for(lambda: training_processes(home) == [], "an earlier training does not end", RECOVERY_S)
    wanted = {**parameters, **LONG, "checkpoint_steps": 2, "destination": f"acme/{name}", **knobs}
    run = stack.start_run(wanted)
    wait_for(lambda: training_processes(home) and list(home.glob("trainings/*/step-??????")), f"{run} does not train")
    return run


def killed(processes: list[psutil.Process]) -> None:
    """SIGKILL; asserts that there was something to kill, and that it is gone."""
    assert processes
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert psutil.wait_procs(processes, timeout=ORPHAN_S)[1] == []


def finished(stack: Stack, run: str, name: str, *, attempts: int) -> None:
    """Completed by itself, in so many attempts, with one version, on the trajectory of its first checkpoint."""
    wait_for(lambda: state_of(stack, run)["type"] in ("COMPLETED", "FAILED", "CANCELLED"),
             "it did not go on", RECOVERY_S)
    found = stack.prefect(f"/flow_runs/{run}")
    assert found["state"]["type"] == "COMPLETED", found["state"]
    assert found["run_count"] == attempts
    assert len(stack.versions(f"acme/{name}")) == 1
    assert training_processes(stack.settings.home_path) == []
    (version,) = stack.versions(f"acme/{name}")
    folder = Store(stack.settings).fetch(f"trainings/{version.tags['training_id']}")
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "resume"][:1] >= [2]


def state_of(stack: Stack, run: str) -> dict[str, Any]:
    return dict(stack.prefect(f"/flow_runs/{run}")["state"])


def test_a_killed_run_goes_on(stack: Stack, parameters: dict[str, Any]) -> None:
    run = started(stack, parameters, "killed-run", seed=11)
    ranks = training_processes(stack.settings.home_path)
    killed(flow_process(run))
    assert psutil.wait_procs(ranks, timeout=ORPHAN_S)[1] == []
    finished(stack, run, "killed-run", attempts=2)


def test_a_run_killed_with_its_worker_goes_on(stack: Stack, parameters: dict[str, Any]) -> None:
    run = started(stack, parameters, "killed-both", seed=12)
    worker = psutil.Process(running.read(stack.settings)["worker"].pid)
    killed([worker, *flow_process(run)])
    finished(stack, run, "killed-both", attempts=2)
    assert running.status(stack.settings)["worker"] == "running"


def test_a_run_outlives_its_worker(stack: Stack, parameters: dict[str, Any]) -> None:
    run = started(stack, parameters, "killed-worker", seed=13)
    killed([psutil.Process(running.read(stack.settings)["worker"].pid)])
    wait_for(lambda: state_of(stack, run)["type"] in ("COMPLETED", "FAILED"), "it did not end", RECOVERY_S)
    assert state_of(stack, run)["type"] == "COMPLETED"
    assert len(stack.versions("acme/killed-worker")) == 1


def test_a_run_outlives_the_server(stack: Stack, parameters: dict[str, Any]) -> None:
    run = started(stack, parameters, "killed-server", seed=14)
    killed([psutil.Process(running.read(stack.settings)["prefect"].pid)])
    wait_for(lambda: running.status(stack.settings)["prefect"] == "running", "the keeper did not start it", 120)
    wait_for(lambda: state_of(stack, run)["type"] in ("COMPLETED", "FAILED"), "it did not end", RECOVERY_S)
    assert state_of(stack, run)["type"] == "COMPLETED"
    assert stack.prefect(f"/flow_runs/{run}")["run_count"] == 1
    assert len(stack.versions("acme/killed-server")) == 1


def test_a_run_outlives_an_outage_of_the_store(
    stack: Stack, parameters: dict[str, Any], s3_server: S3Server,
) -> None:
    run = started(stack, parameters, "store-away", seed=17)
    s3_server.kill()
    try:
        time.sleep(STORE_AWAY_S)
        assert state_of(stack, run)["type"] == "RUNNING"
    finally:
        s3_server.start()
    wait_for(lambda: state_of(stack, run)["type"] in ("COMPLETED", "FAILED"), "it did not end", RECOVERY_S)
    assert state_of(stack, run)["type"] == "COMPLETED", state_of(stack, run)
    assert stack.prefect(f"/flow_runs/{run}")["run_count"] == 1
    (version,) = stack.versions("acme/store-away")
    assert Store(stack.settings).find(f"trainings/{version.tags['training_id']}") is not None
    assert stack.ask("acme/store-away")["version"] == version.tags["version_id"]


def test_registering_waits_for_a_registry_that_was_killed(
    stack: Stack, parameters: dict[str, Any], tmp_path: Path,
) -> None:
    fired = tmp_path / "fired"
    process = stack.start("train", *options({**parameters, "destination": "acme/registry-away"}),
                          ANNEAL_CRASH_AT="register.after_commit:SIGSTOP:1", ANNEAL_CRASH_FIRED=str(fired))
    try:
        stopped = psutil.Process(process.pid)
        wait_for(lambda: fired.exists() and stopped.status() == psutil.STATUS_STOPPED, "it does not register")
        killed([psutil.Process(registry := running.read(stack.settings)["mlflow"].pid)])
        stopped.resume()
        _, stderr = process.communicate(timeout=RECOVERY_S)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    assert len(stack.versions("acme/registry-away")) == 1
    wait_for(lambda: running.status(stack.settings)["mlflow"] == "running", "the keeper does not start it again", 120)
    assert running.read(stack.settings)["mlflow"].pid != registry


def test_a_frozen_run_is_taken_over_and_its_process_goes(stack: Stack, parameters: dict[str, Any]) -> None:
    run = started(stack, parameters, "frozen", seed=15)
    frozen = flow_process(run)
    ranks = training_processes(stack.settings.home_path)
    for process in [*frozen, *ranks]:
        process.suspend()
    finished(stack, run, "frozen", attempts=2)
    for process in frozen:
        with suppress(psutil.NoSuchProcess):
            process.resume()
    _, alive = psutil.wait_procs([*frozen, *ranks], timeout=60)
    assert alive == []
    assert state_of(stack, run)["type"] == "COMPLETED"


def test_a_run_that_comes_no_further_is_given_up(stack: Stack, parameters: dict[str, Any]) -> None:
    run = stack.start_run({**parameters, "destination": "acme/doomed", "seed": 16})
    deadline, kills = time.monotonic() + RECOVERY_S, 0
    while state_of(stack, run)["type"] != "FAILED":
        assert time.monotonic() < deadline, state_of(stack, run)
        if state_of(stack, run)["type"] == "RUNNING" and (processes := flow_process(run)):
            killed(processes)
            kills += 1
        time.sleep(0.2)
    assert kills == 3
    assert "3 attempts in a row" in state_of(stack, run)["message"]
    assert stack.versions("acme/doomed") == []
