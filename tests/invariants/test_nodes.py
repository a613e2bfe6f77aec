"""Two nodes for real: two network namespaces, joined by a cable, with two ranks each under torchrun."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.distributed.job import TrainJob
from tests.conftest import Cable
from tests.distributed.conftest import MakeJob, events_of
from tests.invariants.conftest import trajectory
from tests.invariants.test_trajectory import check, recorded

pytestmark = pytest.mark.slow
RANKS = 2
WAIT_S = 200
CRASH = "train.after_backward:SIGKILL:5:3"
"""The last rank of the second node, in its fifth step."""


class Run:
    """A training on both nodes."""

    def __init__(self, cable: Cable, jobs: tuple[TrainJob, TrainJob], **environment: Any) -> None:
        self.nodes = []
        for number, job in enumerate(jobs):
            path = Path(job.out).with_name(f"node{number}.json")
            path.write_text(json.dumps(dataclasses.asdict(job)))
            command = ["tests.invariants.node", str(path), str(RANKS)]
            self.nodes.append(cable.start(number, *command, ANNEAL_HOME=Path(job.out).parent, **environment))

    def wait(self) -> list[tuple[int, str]]:
        """(exit code, what it said) of both."""
        try:
            said = [node.communicate(timeout=WAIT_S)[1] for node in self.nodes]
        finally:
            for node in self.nodes:
                node.kill()
        return [(node.returncode, text) for node, text in zip(self.nodes, said, strict=True)]


@pytest.mark.parametrize(("method", "parallelism"), [
    ("lora", "hsdp"),
    pytest.param("full", "ddp", marks=pytest.mark.chaos),
    pytest.param("full", "hsdp", marks=pytest.mark.chaos)])
def test_two_nodes_give_the_recorded_trajectory(
    cable: Cable, make_job: MakeJob, method: str, parallelism: str,
) -> None:
    job = make_job("run", peft_method=method, parallelism=parallelism)
    assert Run(cable, (job, job)).wait() == [(0, ""), (0, "")]
    check(trajectory(job), recorded(method))
    assert events_of(job, "start")[0]["ranks"] == 2 * RANKS


@pytest.mark.chaos
def test_a_killed_rank_ends_both_nodes_and_the_same_again_goes_on(
    cable: Cable, make_job: MakeJob, tmp_path: Path,
) -> None:
    job = make_job("run", checkpoint_steps=2)
    fired = tmp_path / "fired"
    ends = Run(cable, (job, job), ANNEAL_CRASH_AT=CRASH, ANNEAL_CRASH_FIRED=fired).wait()
    assert fired.exists() and [code for code, _ in ends] == [1, 1]
    assert all(said.startswith("Transient: ") for _, said in ends), ends
    assert Run(cable, (job, job)).wait() == [(0, ""), (0, "")]
    assert events_of(job, "resume")[0]["step"] >= 2  # the one after four steps was being written
    check(trajectory(job), recorded("lora"))


@pytest.mark.chaos
def test_a_cut_cable_ends_both_nodes_and_the_same_again_goes_on(cable: Cable, make_job: MakeJob) -> None:
    job = make_job("run", checkpoint_steps=2)
    run = Run(cable, (job, job), ANNEAL_STALL_TIMEOUT_S=60, ANNEAL_STOP_GRACE_S=2)
    deadline = time.monotonic() + WAIT_S
    while not events_of(job, "checkpoint"):
        assert time.monotonic() < deadline and all(node.poll() is None for node in run.nodes)
        time.sleep(0.01)
    cable.plugged(False)
    ends = run.wait()
    cable.plugged(True)
    assert all(code == 1 and said.startswith("Transient: ") for code, said in ends), ends
    assert Run(cable, (job, job)).wait() == [(0, ""), (0, "")]
    assert events_of(job, "resume")[0]["step"] >= 2
    check(trajectory(job), recorded("lora"))


@pytest.mark.chaos
def test_the_whole_command_on_two_nodes_gives_one_version(
    cable: Cable, shared: Path, stories: Path, tmp_path: Path,
) -> None:
    data = shared / "data" / "mts_dialog" / "validation.jsonl"
    command = ["deployments.cli", "train", "--json", "--train-data", str(data), "--base-model", str(stories),
               "--destination", "acme/notes", "--max-steps", "6", "--pack-sequences", "--chunk-size", "512",
               "--num-ranks", str(RANKS), "--num-evaluation-samples", "2", "--max-new-tokens", "4", "--gate", "off",
               "--no-deploy", "--num-validation-samples", "5"]
    nodes = [cable.start(number, *command, ANNEAL_HOME=tmp_path / "home", PREFECT_HOME=tmp_path / f"prefect{number}")
             for number in range(2)]
    said = [node.communicate(timeout=2 * WAIT_S) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    version, part = (json.loads(stdout) for stdout, _ in said)
    assert version["number"] == 1 and version["training_id"] == part["training_id"]
    assert part["ranks"] == 2 * RANKS and part["steps"] == 6
    assert [path.name for path in (tmp_path / "home" / "trainings").iterdir() if path.is_dir()] == []


@pytest.mark.chaos
def test_nodes_without_a_shared_folder_are_told_so(cable: Cable, make_job: MakeJob) -> None:
    ends = Run(cable, (make_job("here"), make_job("there"))).wait()
    assert [code for code, _ in ends] == [1, 1]
    assert all("UserError: " in said and "2 of 4 ranks do not see" in said for _, said in ends), ends
