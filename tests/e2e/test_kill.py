"""Kill -9 of a rank and of the command: no step is lost, no version is made twice: pytest tests/e2e/test_kill.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.models.base_folders import note_base
from infra.settings import Settings
from infra.storage.store import Store
from tests.e2e.conftest import LONG, Stack, Training, checkpointed, options, ranks_of

pytestmark = pytest.mark.slow

ORPHAN_S = 5
"""A rank whose command is gone has this long to go too."""


def test_killed_rank_is_started_again_by_the_retry_at_the_last_checkpoint(stack: Stack, second: Training) -> None:
    events = events_of(second.version["training_id"])
    assert [event["event"] for event in events if event["event"] in ("start", "resume", "done")] == [
        "start", "resume", "done"]
    assert resumed_at(events) >= LONG["checkpoint_steps"]
    assert len(stack.versions(second.version["destination"])) == 1


@pytest.mark.chaos
def test_killed_command_goes_on_when_it_is_run_again(
    stack: Stack, parameters: dict[str, Any], stories: Path, tmp_path: Path,
) -> None:
    note_base(stack.settings, stories)  # the predictor has another home and trusts its base only if it is told to
    elsewhere = {
        "ANNEAL_HOME": str(tmp_path), "ANNEAL_PREFECT_URL": stack.settings.prefect_api,
        "ANNEAL_MLFLOW_URI": stack.settings.tracking_uri, "ANNEAL_PREDICTOR_URL": stack.settings.predictor,
        "ANNEAL_API_KEY": stack.settings.predictor_key,
        "ANNEAL_GPU_LIMIT": "none"}  # else the second waits for a minute for the slot of the first
    command = ["train", "--json", *options({**parameters, **LONG, "destination": "acme/killed"})]
    process = stack.start(*command, **elsewhere)
    checkpointed(process, tmp_path)
    ranks = ranks_of(process)
    assert len(ranks) == parameters["num_ranks"]
    process.kill()  # Nothing personal.
    process.communicate()
    psutil.wait_procs(ranks, timeout=ORPHAN_S)
    assert [rank for rank in ranks if lives(rank)] == []
    assert stack.versions("acme/killed") == []

    done = stack.anneal(*command, **elsewhere)
    assert done.returncode == 0, done.stderr
    events = events_of(json.loads(done.stdout)["training_id"])
    assert resumed_at(events) >= LONG["checkpoint_steps"]
    assert len(stack.versions("acme/killed")) == 1


def events_of(training: str) -> list[dict[str, Any]]:
    """What the finished training told, from the store."""
    folder = Store(Settings()).fetch(f"trainings/{training}")
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def resumed_at(events: list[dict[str, Any]]) -> int:
    """The step at which the only resumption started."""
    (step,) = [event["step"] for event in events if event["event"] == "resume"]
    return int(step)


def lives(process: psutil.Process) -> bool:
    """False also for a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
