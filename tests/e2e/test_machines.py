"""Two machines of one training by runs of Prefect deployments: pytest -m chaos tests/e2e/test_machines.py

Two network namespaces: the stack and its worker in the first, a worker for the queue `nodes` in the second. Nobody
tells the second one where the first waits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.engine import RUN
from infra.secret import USER, secret_of
from infra.settings import Settings
from infra.stack import local as running
from infra.stack.processes import left_over, lives
from infra.storage.store import Store
from tests.conftest import ROOT, Cable, free_port, ranks_in, torchruns_in, training_processes, wait_for
from tests.e2e.conftest import KNOBS, LONG, options

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(900)]

WAIT_S = 400


@pytest.fixture(scope="module")
def stack() -> None:
    """Not the one that the other tests share."""


@pytest.fixture(autouse=True)
def environment(clean_environment: None) -> None:
    """None of its variables either."""


@dataclass(frozen=True)
class Pair:
    """The two machines."""

    cable: Cable
    home: Path
    variables: dict[str, Any]

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A Python module on the first machine, run to its end."""
        process = self.cable.start(0, *command, **self.variables)
        stdout, stderr = process.communicate(timeout=WAIT_S)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def prefect(self, path: str, **body: Any) -> Any:
        """What the server answers, asked from its own namespace."""
        program = ("import json, sys; from infra.settings import Settings; from tests.support.prefect_api import ask; "
                   "print(ask(Settings(), sys.argv[1], json.loads(sys.argv[2])).text)")
        done = subprocess.run(["ip", "netns", "exec", self.cable.names[0], sys.executable, "-c", program, path,
                               json.dumps(body)], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT,
                              env={**os.environ, **{name: str(value) for name, value in self.variables.items()}})
        return json.loads(done.stdout)

    def joined(self) -> list[dict[str, Any]]:
        """The runs of the second machine."""
        return list(self.prefect("/flow_runs/filter", flows={"name": {"any_": ["join"]}}, sort="START_TIME_ASC"))


@pytest.fixture
def pair(cable: Cable, tmp_path: Path) -> Iterator[Pair]:
    """Both machines' services, which are gone at the end."""
    home = tmp_path / "home"
    ports = {f"ANNEAL_{name}_PORT": str(free_port()) for name in ("PREFECT", "MLFLOW", "PREDICTOR", "GATEWAY")}
    host = f"{cable.network}.1"
    leads = {"ANNEAL_HOME": str(home), "ANNEAL_HOST": host, "ANNEAL_API_KEY": "key", "ANNEAL_RENDEZVOUS": "",
             "ANNEAL_NODE_DEPLOYMENT": "join/machine", "ANNEAL_STOP_GRACE_S": "10", "ANNEAL_STALL_TIMEOUT_S": "90",
             "ANNEAL_STEP_TIMEOUT_S": "15", **ports}
    api = f"http://{host}:{ports['ANNEAL_PREFECT_PORT']}/api"
    pair = Pair(cable, home, {**leads, "PREFECT_API_URL": ""})
    started = pair.inside("deployments.cli.main", "up")
    try:
        assert started.returncode == 0, started.stderr
        pair = Pair(cable, home, {**leads, "PREFECT_API_URL": api})
        worker = cable.start(
            1, "prefect", "--no-prompt", "worker", "start", "--pool", "gpu-pool", "--work-queue", "nodes",
            PREFECT_API_URL=api, PREFECT_API_AUTH_STRING=f"{USER}:{secret_of(home)}",
            PREFECT_HOME=tmp_path / "second", ANNEAL_HOME=home, ANNEAL_GPU_LIMIT="gpu-second",
            PREFECT_WORKER_QUERY_SECONDS=3)
        try:
            yield pair
        finally:
            worker.terminate()
            worker.communicate(timeout=60)
    finally:
        stopped = pair.inside("deployments.cli.main", "down")
    assert stopped.returncode == 0, stopped.stderr
    assert left_over(home) == set()


def begun(pair: Pair, shared: Path, stories: Path) -> subprocess.Popen[str]:
    """A training on both machines that has a checkpoint."""
    data = shared / "data" / "mts_dialog" / "validation.jsonl"
    wanted = {**KNOBS, **LONG, "checkpoint_steps": 2, "train_data": str(data), "base_model": str(stories),
              "destination": "acme/notes", "num_evaluation_samples": 2, "max_new_tokens": 4, "deploy": False}
    first = pair.cable.start(
        0, "deployments.cli.main", "train", "--remote", "--json", *options(wanted), **pair.variables)
    wait_for(lambda: list(pair.home.glob("trainings/*/step-??????")) or first.poll() is not None,
             "no checkpoint appeared", WAIT_S)
    assert first.poll() is None, first.communicate()
    return first


def steps_in(events: Path) -> int:
    """How many a training has done so far."""
    return events.read_text(encoding="utf-8").count('"event": "step"')


def ended_well(pair: Pair, first: subprocess.Popen[str], launched: tuple[str, ...] = ("start", "resume")) -> None:
    """One version, by so many launches on both machines."""
    try:
        stdout, stderr = first.communicate(timeout=WAIT_S)
    finally:
        first.kill()
    assert first.returncode == 0, stderr
    assert json.loads(stdout)["version"] == "acme/notes version 1"
    assert training_processes(pair.home) == []
    (folder,) = Store(Settings(home=pair.home)).names("trainings")
    events = [json.loads(line) for line in (pair.home / "store" / folder / "events.jsonl").read_text().splitlines()]
    launches = [event for event in events if event["event"] in ("start", "resume")]
    assert tuple(event["event"] for event in launches) == launched
    assert {event["ranks"] for event in launches} == {4} and all(event["step"] >= 2 for event in launches[1:])
    assert list((pair.home / "launches").iterdir()) == []


def test_a_training_calls_its_second_machine_and_once_more_when_that_dies(
    pair: Pair, shared: Path, stories: Path,
) -> None:
    first = begun(pair, shared, stories)
    (run,) = pair.joined()
    killed = [process for process in psutil.process_iter(["environ"])
              if (process.info["environ"] or {}).get(RUN) == run["id"]]
    assert killed
    for process in killed:
        process.kill()
    ended_well(pair, first)
    wait_for(lambda: [run["state"]["type"] for run in pair.joined()] == ["CRASHED", "COMPLETED"],
             "the second machine's runs do not end", 120)
    message = pair.joined()[1]["state"]["message"]
    assert "exit code 0" in message or "has ended the launch" in message, "whichever it sees first"


def test_a_cut_cable_ends_the_launch_and_the_second_machine_is_called_again_once_it_is_back(
    pair: Pair, shared: Path, stories: Path,
) -> None:
    first = begun(pair, shared, stories)
    pair.cable.plugged(False)
    # What ranks are forked from stays for the next launch.
    wait_for(lambda: not ranks_in(pair.home) and not torchruns_in(pair.home), "the launch does not end", WAIT_S)
    assert first.poll() is None
    pair.cable.plugged(True)
    ended_well(pair, first)
    wait_for(lambda: pair.joined()[-1]["state"]["type"] == "COMPLETED", "the last run there does not end", 120)


def test_both_machines_train_on_while_the_server_is_away(pair: Pair, shared: Path, stories: Path) -> None:
    first = begun(pair, shared, stories)
    ranks = ranks_in(pair.home)
    server = psutil.Process(running.read_stack(Settings(home=pair.home))["prefect"].pid)
    (events,) = pair.home.glob("trainings/*/events.jsonl")
    server.kill()
    server.wait(5)
    done = steps_in(events)
    wait_for(lambda: steps_in(events) > done, "no step is made without the server", 30)
    assert len(ranks) == 4 and all(lives(rank) for rank in ranks)
    ended_well(pair, first, ("start",))
    wait_for(lambda: [run["state"]["type"] for run in pair.joined()] == ["COMPLETED"], "its run does not end", 120)
