"""Two nodes for real: two network namespaces, joined by a cable, with two ranks each under torchrun."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.distributed.contract import TrainJob
from tests.conftest import Cable, training_processes, wait_for
from tests.invariants.conftest import trajectory
from tests.invariants.test_trajectory import check, recorded
from tests.tasks.distributed.conftest import MakeJob, events_of

pytestmark = pytest.mark.slow
RANKS = 2
WAIT_S = 200
CRASH = "train.after_backward:{}:{}:3"
"""On the last rank, which is the second node's."""
GONE_S = 15

Nodes = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def nodes(cable: Cable, tmp_path: Path) -> Iterator[Nodes]:
    """Starts `anneal join` on the second node, or the first node's training of a job; all are gone at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(job: TrainJob | None = None, *command: str, **environment: Any) -> subprocess.Popen[str]:
        home = environment.pop("ANNEAL_HOME", tmp_path)
        if job is not None:
            path = tmp_path / "node0.json"
            path.write_text(json.dumps(dataclasses.asdict(job)))
            command = ("tests.invariants.node", str(path), str(RANKS))
        number = 0 if command else 1
        started.append(cable.start(
            number, *(command or ("deployments.cli.main", "join", "1")), ANNEAL_HOME=home, **environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit code, what it said)."""
    _, said = process.communicate(timeout=WAIT_S)
    return process.returncode, said


@pytest.mark.parametrize(("method", "parallelism"), [
    ("lora", "hsdp"),
    pytest.param("full", "ddp", marks=pytest.mark.chaos),
    pytest.param("full", "hsdp", marks=pytest.mark.chaos)])
def test_two_nodes_give_the_recorded_trajectory(
    nodes: Nodes, make_job: MakeJob, tmp_path: Path, method: str, parallelism: str,
) -> None:
    job = make_job("run", peft_method=method, parallelism=parallelism)
    joined = nodes()
    assert end_of(nodes(job)) == (0, "")
    check(trajectory(job), recorded(method))
    assert events_of(job, "start")[0]["ranks"] == 2 * RANKS
    assert joined.poll() is None and list((tmp_path / "launches").iterdir()) == []


@pytest.mark.chaos
def test_a_killed_rank_ends_the_launch_on_both_and_the_next_goes_on(
    nodes: Nodes, make_job: MakeJob, tmp_path: Path,
) -> None:
    job = make_job("run", checkpoint_steps=2)
    fired = tmp_path / "fired"
    nodes(ANNEAL_CRASH_AT=CRASH.format("SIGKILL", 5), ANNEAL_CRASH_FIRED=fired)
    code, said = end_of(nodes(job))
    assert fired.exists() and code == 1 and said.startswith("Transient: "), said
    assert end_of(nodes(job)) == (0, "")
    assert events_of(job, "resume")[0]["step"] >= 2  # the one after four steps was being written
    check(trajectory(job), recorded("lora"))


@pytest.mark.chaos
def test_a_cut_cable_ends_the_launch_and_the_next_goes_on(
    nodes: Nodes, cable: Cable, make_job: MakeJob, tmp_path: Path,
) -> None:
    job = make_job("run", checkpoint_steps=2)
    fired = tmp_path / "fired"
    nodes(ANNEAL_CRASH_AT=CRASH.format("SIGSTOP", 7), ANNEAL_CRASH_FIRED=fired)
    first = nodes(job, ANNEAL_STALL_TIMEOUT_S=60, ANNEAL_STOP_GRACE_S=2)
    wait_for(lambda: fired.exists() or first.poll() is not None)  # the ranks wait for each other: no more is sent
    assert first.poll() is None
    cable.plugged(False)
    for process in training_processes(job.out):
        if process.status() == psutil.STATUS_STOPPED:
            process.resume()
    code, said = end_of(first)
    assert code == 1 and said.startswith("Transient: "), said
    cable.plugged(True)
    assert end_of(nodes(job)) == (0, "")
    assert events_of(job, "resume")[0]["step"] >= 4
    check(trajectory(job), recorded("lora"))


@pytest.mark.chaos
def test_a_first_node_that_is_killed_takes_the_others_ranks_with_it(nodes: Nodes, make_job: MakeJob) -> None:
    job = make_job("run", num_train_epochs=1000)
    nodes()
    first = nodes(job)
    wait_for(lambda: events_of(job) or first.poll() is not None)
    assert first.poll() is None
    assert len(training_processes(job.out)) == 2 * (RANKS + 1), "ranks and torchruns"
    for process in (*psutil.Process(first.pid).children(recursive=True), psutil.Process(first.pid)):
        process.kill()
    wait_for(lambda: not training_processes(job.out), "ranks were left", GONE_S)


@pytest.mark.chaos
def test_the_whole_command_on_two_nodes_gives_one_version_though_a_rank_is_killed(
    nodes: Nodes, shared: Path, stories: Path, tmp_path: Path,
) -> None:
    data, home, fired = shared / "data" / "mts_dialog" / "validation.jsonl", tmp_path / "home", tmp_path / "fired"
    nodes(ANNEAL_HOME=home, ANNEAL_CRASH_AT=CRASH.format("SIGKILL", 4), ANNEAL_CRASH_FIRED=fired)
    first = nodes(
        None, "deployments.cli.main", "train", "--json", "--train-data", str(data), "--base-model", str(stories),
        "--destination", "acme/notes", "--max-steps", "6", "--pack-sequences", "--chunk-size", "512", "--num-ranks",
        str(RANKS), "--num-evaluation-samples", "2", "--max-new-tokens", "4", "--gate", "off", "--no-deploy",
        "--num-validation-samples", "5", ANNEAL_HOME=home, PREFECT_HOME=tmp_path / "prefect")
    stdout, stderr = first.communicate(timeout=2 * WAIT_S)
    assert first.returncode == 0, stderr
    assert fired.exists() and json.loads(stdout)["number"] == 1
    events = [json.loads(line) for line in next(home.glob("store/trainings/*/events.jsonl")).read_text().splitlines()]
    launches = [event for event in events if event["event"] in ("start", "resume")]
    assert len(launches) == 2 and {event["ranks"] for event in launches} == {2 * RANKS}


@pytest.mark.chaos
def test_a_node_that_does_not_come_is_named(nodes: Nodes, make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job("run")
    nodes(ANNEAL_HOME=tmp_path / "elsewhere")
    code, said = end_of(nodes(job, ANNEAL_JOIN_TIMEOUT_S=12))
    assert code == 1 and said.startswith("Transient: training: node 1 of 2 has not joined within 12 s"), said
    assert list((tmp_path / "launches").iterdir()) == []
