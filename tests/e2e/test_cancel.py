"""A run cancelled in the Prefect UI: its ranks are gone, its last checkpoint stays: pytest tests/e2e/test_cancel.py"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.crashpoints import AT, FIRED
from infra.engine import RUN
from tests.conftest import ranks_in, training_processes, wait_for
from tests.e2e.conftest import COMMAND_TIMEOUT_S, LONG, Stack, options

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

CANCEL_S = 10


def test_a_command_stops_when_its_run_is_cancelled_in_prefect(stack: Stack, parameters: dict[str, Any]) -> None:
    home = stack.settings.home_path
    wanted = {**parameters, **LONG, "num_train_epochs": 500, "max_steps": 0, "destination": "acme/stopped", "seed": 8}
    known = checkpoints(home)
    process = stack.start("train", *options(wanted))
    try:
        wait_for(lambda: len(ranks_in(home)) == parameters["num_ranks"] and checkpoints(home) - known,
                 "it does not train", COMMAND_TIMEOUT_S)
        ranks = training_processes(home)
        (run,) = stack.runs("finetune acme/stopped")
        cancelled = time.monotonic()
        stack.prefect(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
        _, alive = psutil.wait_procs(ranks, timeout=CANCEL_S - (time.monotonic() - cancelled))
        assert alive == []
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2, stderr
    assert "the run was cancelled in Prefect" in stderr
    assert stack.wait_until_over(run)["type"] == "CANCELLED"
    assert training_processes(home) == []
    assert stack.versions("acme/stopped") == []


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
def test_a_cancelled_run_leaves_no_rank_and_keeps_its_checkpoint(
    stack: Stack, parameters: dict[str, Any], frozen: bool,
) -> None:
    """With the settings as shipped; also where ranks cannot come to the end of their step."""
    home = stack.settings.home_path
    assert stack.settings.stop_grace_s > CANCEL_S
    wanted = {**parameters, **LONG, "num_train_epochs": 500, "max_steps": 0, "destination": "acme/cancelled",
              "seed": 70 + frozen}
    known = checkpoints(home)
    run = stack.start_run(wanted)
    wait_for(lambda: len(ranks_in(home)) == parameters["num_ranks"]
             and checkpoints(home) - known, f"flow run {run} does not train", COMMAND_TIMEOUT_S)
    ranks = training_processes(home)
    assert len(ranks) == parameters["num_ranks"] + 2, "the ranks, their torchrun, and what that is forked from"
    (folder,) = {path.parent for path in checkpoints(home) - known}

    if frozen:
        ranks_in(home)[0].suspend()
    cancelled = time.monotonic()
    stack.prefect(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
    _, alive = psutil.wait_procs(ranks, timeout=CANCEL_S - (time.monotonic() - cancelled))
    assert alive == []
    state = stack.wait_until_over(run)
    assert state["type"] == "CANCELLED", state
    assert training_processes(home) == []
    assert list(folder.glob("step-??????"))
    assert stack.versions("acme/cancelled") == []


def checkpoints(home: Path) -> set[Path]:
    """Of all trainings on this machine."""
    return set(home.glob("trainings/*/step-??????"))


@pytest.mark.parametrize("point", [
    "ingest.half_written", "validate.mid_file", "pack.before_commit", "train.mid_step", "evaluate.mid_generation",
    "evaluate.before_commit", "register.after_create_version", "deploy.before_champion"])
def test_a_run_ends_wherever_it_is_cancelled(
    stack: Stack, parameters: dict[str, Any], tmp_path: Path, point: str,
) -> None:
    name = point.replace(".", "-").replace("_", "-")
    wanted = {**parameters, "destination": f"cancel/{name}", "seed": sum(map(ord, point))}
    if point.split(".")[0] in ("ingest", "validate", "pack"):  # or these are done already
        wanted["train_data"] = str(tmp_path / "train.jsonl")
        (tmp_path / "train.jsonl").write_text(f'{{"text": "{point}"}}\n' * 60)
        wanted["validation_data"] = ""
    fired = tmp_path / "fired"
    run = stack.start_run(wanted, {AT: f"{point}:SIGSTOP:1", FIRED: str(fired)})
    wait_for(fired.exists, f"flow run {run} does not come to {point}", COMMAND_TIMEOUT_S)
    wait_for(lambda: standing_still(run), "nothing stands still", CANCEL_S)

    began = time.monotonic()
    stack.prefect(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
    for process in standing_still(run):
        process.resume()
    _, alive = psutil.wait_procs(of_run(run), timeout=CANCEL_S - (time.monotonic() - began))
    assert alive == []
    assert stack.wait_until_over(run)["type"] == "CANCELLED"
    home = stack.settings.home_path
    assert [*home.glob("drafts/*"), *home.glob("work/*")] == []
    made = len(stack.versions(f"cancel/{name}"))
    assert made == (point.split(".")[0] in ("register", "deploy")), "one that stands is found by the next try"


def of_run(run: str) -> list[psutil.Process]:
    """Every process that executes the flow run or was started by one that does."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(RUN) == run:
                found.append(process)
    return found


def standing_still(run: str) -> list[psutil.Process]:
    """Those that were stopped."""
    found = []
    for process in of_run(run):
        with suppress(psutil.Error):
            if process.status() == psutil.STATUS_STOPPED:
                found.append(process)
    return found
