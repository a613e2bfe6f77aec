"""Runs that wait for another machine or for the server, or make way: pytest -m chaos tests/e2e/test_held.py"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from infra import stack as running
from infra.processes import lives
from tests.conftest import ROOT, training_processes, wait_for
from tests.e2e.conftest import Stack
from tests.e2e.test_recovery import (
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

__all__ = ["trained_anew", "undisturbed"]

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

AWAY_S = 60
"""After the training's end; clients of runs wait longer altogether (infra/services.py)."""
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


def test_runs_save_a_checkpoint_before_their_worker_is_stopped(
    stack: Stack, parameters: dict[str, Any], undisturbed: Undisturbed,
) -> None:
    """By the command that systemd starts first."""
    run = started(stack, parameters, "told-to-stop", undisturbed)
    (process,), folder = flow_process(run), stack.settings.home_path / "trainings" / undisturbed.training
    worker = running.read(stack.settings)["worker"].pid
    subprocess.run([sys.executable, "-m", "infra.processes", str(worker)], env={**os.environ, **stack.environment},
                   cwd=ROOT, check=True, timeout=60)
    assert not lives(process) and "preempted" in (folder / "events.jsonl").read_text()
    finished(stack, run, "told-to-stop", undisturbed, attempts=2)


def test_a_run_outlives_a_prefect_server_that_is_away_for_minutes(
    stack: Stack, parameters: dict[str, Any], undisturbed: Undisturbed,
) -> None:
    """The training ends meanwhile; its process waits for the server."""
    run = started(stack, parameters, "far-away", undisturbed)
    services = running.read(stack.settings)
    killed([psutil.Process(services[name].pid) for name in ("keeper", "prefect")])
    try:
        wait_for(lambda: training_processes(stack.settings.home_path) == [], "it does not train without the server")
        time.sleep(AWAY_S)
    finally:
        assert stack.anneal("up").returncode == 0
    finished(stack, run, "far-away", undisturbed, resumes=False)
