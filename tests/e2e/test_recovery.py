"""Runs whose processes die go on by themselves: pytest -m chaos tests/e2e/test_recovery.py

A test kills what it names and then only waits; the worker, the keeper and deployments/reconcile.py do the rest.
All train the same, so that their weights have to be those of the training that nobody killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from infra.engine import RUN
from infra.stack import local as running
from infra.storage.store import Store
from tests.conftest import ROOT, S3Server, ranks_in, torchruns_in, training_processes, wait_for
from tests.e2e.conftest import LONG, Stack, options

if TYPE_CHECKING:
    pass

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

ORPHAN_S = 5
RECOVERY_S = 400
"""At the worst silence of a sign and a half twice, a minute until the next look, and a training on a busy machine."""
STORE_AWAY_S = 20


def flow_process(run: str) -> list[psutil.Process]:
    """The process that executes a flow run, known by what its worker gave it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(RUN) == run and "infra.engine" in process.cmdline():
                found.append(process)
    return found


KNOBS = {**LONG, "checkpoint_steps": 2, "seed": 11}


@dataclass(frozen=True)
class Undisturbed:
    """The training that nobody killed."""

    training: str
    weights: str


@pytest.fixture(scope="module")
def undisturbed(stack: Stack, parameters: dict[str, Any]) -> Undisturbed:
    """Made by a command."""
    done = stack.anneal("train", "--json", *options({**parameters, **KNOBS, "destination": "acme/undisturbed"}))
    assert done.returncode == 0, done.stderr
    training = json.loads(done.stdout)["training_id"]
    return Undisturbed(training, weights_of(stack, training))


@pytest.fixture(autouse=True)
def trained_anew(stack: Stack, undisturbed: Undisturbed) -> None:
    """Forget it, or there would be nothing to train."""
    wait_for(lambda: training_processes(stack.settings.home_path) == [], "an earlier training does not end", RECOVERY_S)
    Store(stack.settings).remove(f"trainings/{undisturbed.training}")
    shutil.rmtree(stack.settings.home_path / "trainings" / undisturbed.training, ignore_errors=True)


def weights_of(stack: Stack, training: str) -> str:
    """The digest of what was trained."""
    found = Store(stack.settings).find(f"trainings/{training}")
    assert found is not None
    return str(found.record["digest"])


def started(stack: Stack, parameters: dict[str, Any], name: str, undisturbed: Undisturbed) -> str:
    """A run of the deployment, on its way with a checkpoint."""
    home = stack.settings.home_path
    run = stack.start_run({**parameters, **KNOBS, "destination": f"acme/{name}"})
    wait_for(lambda: training_processes(home) and list(home.glob(f"trainings/{undisturbed.training}/step-??????")),
             f"{run} does not train")
    return run


def killed(processes: list[psutil.Process]) -> None:
    """SIGKILL; asserts that there was something to kill, and that it is gone."""
    assert processes
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert psutil.wait_procs(processes, timeout=ORPHAN_S)[1] == []


def finished(
    stack: Stack, run: str, name: str, undisturbed: Undisturbed, *, attempts: int = 1, resumes: bool | None = True,
) -> None:
    """Completed by itself, in so many attempts, with one version of the undisturbed training's weights. `resumes`: None
    where ranks may have been started again or not."""
    wait_for(lambda: state_of(stack, run)["type"] in ("COMPLETED", "FAILED", "CANCELLED"),
             "it did not go on", RECOVERY_S)
    found = stack.prefect(f"/flow_runs/{run}")
    assert found["state"]["type"] == "COMPLETED", found["state"]
    assert found["run_count"] == attempts
    assert training_processes(stack.settings.home_path) == []
    (version,) = stack.versions(f"acme/{name}")
    assert version.tags["training_id"] == undisturbed.training
    assert weights_of(stack, undisturbed.training) == undisturbed.weights
    folder = Store(stack.settings).fetch(f"trainings/{undisturbed.training}")
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    resumed = [event["step"] for event in events if event["event"] == "resume"]
    assert resumes in (None, bool(resumed)) and all(step >= 2 for step in resumed), resumed


def torchrun_and_ranks(stack: Stack) -> tuple[psutil.Process, list[psutil.Process]]:
    """Of the training that runs."""
    (torchrun,) = torchruns_in(stack.settings.home_path)
    return torchrun, ranks_in(stack.settings.home_path)


def state_of(stack: Stack, run: str) -> dict[str, Any]:
    return dict(stack.prefect(f"/flow_runs/{run}")["state"])


def test_a_killed_run_goes_on(stack: Stack, parameters: dict[str, Any], undisturbed: Undisturbed) -> None:
    run = started(stack, parameters, "killed-run", undisturbed)
    ranks = training_processes(stack.settings.home_path)
    killed(flow_process(run))
    assert psutil.wait_procs(ranks, timeout=ORPHAN_S)[1] == []
    finished(stack, run, "killed-run", undisturbed, attempts=2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT], ids=lambda number: number.name)
def test_a_run_outlives_a_rank(
    stack: Stack, parameters: dict[str, Any], undisturbed: Undisturbed, number: signal.Signals,
) -> None:
    name = f"rank-{number.name.lower()}"
    run = started(stack, parameters, name, undisturbed)
    rank = torchrun_and_ranks(stack)[1][-1]
    rank.send_signal(number)
    assert psutil.wait_procs([rank], timeout=ORPHAN_S)[1] == []
    finished(stack, run, name, undisturbed)
    logs = stack.prefect("/logs/filter", logs={"flow_run_id": {"any_": [run]}}, limit=200)
    assert any(number.name in line["message"] for line in logs), "what ended the rank is not said"


def test_a_run_outlives_torchrun_and_its_ranks_go_with_it(
    stack: Stack, parameters: dict[str, Any], undisturbed: Undisturbed,
) -> None:
    run = started(stack, parameters, "torchrun", undisturbed)
    torchrun, ranks = torchrun_and_ranks(stack)
    killed([torchrun])
    assert psutil.wait_procs(ranks, timeout=ORPHAN_S)[1] == []
    finished(stack, run, "torchrun", undisturbed)


def test_a_run_killed_with_its_worker_goes_on(
    stack: Stack, parameters: dict[str, Any], undisturbed: Undisturbed,
) -> None:
    run = started(stack, parameters, "killed-both", undisturbed)
    worker = psutil.Process(running.read_stack(stack.settings)["worker"].pid)
    killed([worker, *flow_process(run)])
    finished(stack, run, "killed-both", undisturbed, attempts=2)
    assert running.status(stack.settings)["worker"] == "running"


def test_everything_killed_goes_on_once_the_stack_is_up_again(
    stack: Stack, parameters: dict[str, Any], undisturbed: Undisturbed,
) -> None:
    run = started(stack, parameters, "power-cut", undisturbed)
    services = [psutil.Process(running.read_stack(stack.settings)["keeper"].pid),
                *(psutil.Process(service.pid) for service in running.read_stack(stack.settings).values())]
    killed([*services, *flow_process(run), *training_processes(stack.settings.home_path)])
    done = stack.anneal("up")
    assert done.returncode == 0, done.stderr
    finished(stack, run, "power-cut", undisturbed, attempts=2)


def test_a_run_goes_on_on_another_machine_from_the_store(
    stack: Stack, parameters: dict[str, Any], undisturbed: Undisturbed, tmp_path: Path,
) -> None:
    run = started(stack, parameters, "elsewhere", undisturbed)
    wait_for(lambda: Store(stack.settings).names(f"checkpoints/{undisturbed.training}"), "no checkpoint in the store")
    killed([psutil.Process(running.read_stack(stack.settings)[name].pid) for name in ("keeper", "worker")])
    killed(flow_process(run))
    other = subprocess.Popen(
        [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--pool", "gpu-pool"], cwd=ROOT,
        env={**os.environ, **stack.environment, "PREFECT_API_URL": stack.settings.prefect_api,
             "ANNEAL_HOME": str(tmp_path), "ANNEAL_GPU_LIMIT": "gpu-other", "PREFECT_WORKER_QUERY_SECONDS": "3",
             "ANNEAL_MLFLOW_URI": stack.settings.tracking_uri, "ANNEAL_API_KEY": stack.settings.predictor_key,
             "ANNEAL_PREDICTOR_URL": stack.settings.predictor},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        finished(stack, run, "elsewhere", undisturbed, attempts=2)
    finally:
        other.terminate()
        other.wait(60)
        assert stack.anneal("up").returncode == 0


def test_a_run_outlives_its_worker(stack: Stack, parameters: dict[str, Any], undisturbed: Undisturbed) -> None:
    run = started(stack, parameters, "killed-worker", undisturbed)
    killed([psutil.Process(running.read_stack(stack.settings)["worker"].pid)])
    finished(stack, run, "killed-worker", undisturbed, resumes=False)


def test_a_run_outlives_the_server(stack: Stack, parameters: dict[str, Any], undisturbed: Undisturbed) -> None:
    run = started(stack, parameters, "killed-server", undisturbed)
    killed([psutil.Process(running.read_stack(stack.settings)["prefect"].pid)])
    wait_for(lambda: running.status(stack.settings)["prefect"] == "running", "the keeper did not start it", 120)
    finished(stack, run, "killed-server", undisturbed, resumes=False)


def test_a_run_outlives_an_outage_of_the_store(
    stack: Stack, parameters: dict[str, Any], s3_server: S3Server, undisturbed: Undisturbed,
) -> None:
    run = started(stack, parameters, "store-away", undisturbed)
    s3_server.kill()
    try:
        time.sleep(STORE_AWAY_S)
        assert state_of(stack, run)["type"] == "RUNNING"
    finally:
        s3_server.start()
    # A training that ends meanwhile is tried again where it could not be stored.
    finished(stack, run, "store-away", undisturbed, resumes=None)
    (version,) = stack.versions("acme/store-away")
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
        killed([psutil.Process(registry := running.read_stack(stack.settings)["mlflow"].pid)])
        stopped.resume()
        _, stderr = process.communicate(timeout=RECOVERY_S)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    assert len(stack.versions("acme/registry-away")) == 1
    wait_for(lambda: running.status(stack.settings)["mlflow"] == "running", "the keeper does not start it again", 120)
    assert running.read_stack(stack.settings)["mlflow"].pid != registry


def test_a_frozen_run_is_taken_over_and_its_process_goes(
    stack: Stack, parameters: dict[str, Any], undisturbed: Undisturbed,
) -> None:
    run = started(stack, parameters, "frozen", undisturbed)
    frozen = flow_process(run)
    ranks = training_processes(stack.settings.home_path)
    for process in [*frozen, *ranks]:
        process.suspend()
    finished(stack, run, "frozen", undisturbed, attempts=2)
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
