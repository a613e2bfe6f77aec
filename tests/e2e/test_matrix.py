"""A kill at any named point of the pipeline loses no training and makes nothing twice: pytest tests/e2e/test_matrix.py

make chaos runs all of tests/e2e/matrix.py, make test a row of each kind. Whatever the fault: the same command again
succeeds, the weights are those of the training that nobody killed, MLflow has one version with its aliases, the
predictor answers with it, and neither a process nor a half-made file is left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from infra.files import sha256_of
from infra.models.base_folders import note_base
from infra.models.registry import Registry
from infra.settings import Settings
from infra.stack.local import is_answering
from infra.storage.store import Store
from tests.conftest import ROOT, free_port, wait_for, wait_until_responds
from tests.e2e.conftest import COMMAND_TIMEOUT_S, KNOBS, Stack
from tests.e2e.forked import Command, Commands
from tests.e2e.matrix import (
    CASES,
    Case,
    Clean,
    Respawned,
    copied,
    digests,
    forget,
    left_on_disk,
    none_left,
    trained,
)
from tests.tasks.runs.test_webhooks import SECRET, Receiver

pytestmark = pytest.mark.slow
Run = Callable[..., tuple[int, Command]]

ROW = {("ingest.half_written", "SIGKILL", False), ("register.after_create_version", "SIGTERM", False)}
"""What make test runs of it."""
IN_PREDICTOR = ("deploy.after_load", "deploy.after_record")
LINE_BYTES = 40_000
"""Of each line of the data, filled up with spaces: a file has to be longer than what is read at once."""
NOTIFY = """
from prefect.client.orchestration import get_client
from infra.settings import Settings
from infra.storage.store import Store
from tasks.runs.webhooks import notify
with get_client(sync_client=True) as client:
    print(sum(1 for _ in notify(Settings(), client, Store(Settings()))))
"""


def cases(wanted: Callable[[Case], bool]) -> pytest.MarkDecorator:
    """A parametrization."""
    return pytest.mark.parametrize("case", [
        pytest.param(case, id=case.name,
                     marks=() if (case.point, case.signal, case.second) in ROW else pytest.mark.chaos)
        for case in CASES if wanted(case)])


@pytest.fixture(scope="module")
def commands(stack: Stack) -> Iterator[Commands]:
    """Where commands are forked from."""
    made = Commands({**stack.environment, "PREFECT_API_URL": stack.settings.prefect_api})
    yield made
    made.close()


@pytest.fixture(scope="module")
def lora(commands: Commands, shared: Path, stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """A LoRA training that nobody kills."""
    folder = tmp_path_factory.mktemp("matrix")
    for name, rows in (("train", 40), ("validation", 30)):
        with (shared / "data" / "mts_dialog" / f"{name}.jsonl").open() as file:
            (folder / f"{name}.jsonl").write_text("".join(
                line.rstrip("\n").ljust(LINE_BYTES) + "\n" for line in islice(file, 5, 5 + rows)))
    return trained(commands, folder, {
        "train_data": str(folder / "train.jsonl"), "validation_data": str(folder / "validation.jsonl"),
        "base_model": str(stories), "destination": "matrix/lora", **KNOBS, "checkpoint_steps": 1, "seed": 21})


@pytest.fixture(scope="module")
def full(commands: Commands, lora: Clean, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """The same as a full fine-tuning."""
    wanted = {**lora.parameters, "destination": "matrix/full", "peft_method": "full"}
    return trained(commands, tmp_path_factory.mktemp("full"), wanted)


@pytest.fixture
def run(stack: Stack, commands: Commands, stories: Path, tmp_path: Path) -> Run:
    """Runs a command to its end with a home and a folder for temporary files of its own, on the shared stack."""
    (tmp_path / "tmp").mkdir()
    note_base(stack.settings, stories)  # the predictor has another home and trusts its base only if it is told to
    alone = {
        "ANNEAL_HOME": str(tmp_path / "home"), "ANNEAL_PREFECT_URL": stack.settings.prefect_api,
        "ANNEAL_MLFLOW_URI": stack.settings.tracking_uri, "ANNEAL_PREDICTOR_URL": stack.settings.predictor,
        "ANNEAL_API_KEY": stack.settings.predictor_key, "TMPDIR": str(tmp_path / "tmp"),
        "ANNEAL_GPU_LIMIT": "none"}  # else the second waits for a minute for the slot of the first

    def to_its_end(command: list[str], look: Callable[[], object] = lambda: None, **more: str) -> tuple[int, Command]:
        started = commands.start(command, tmp_path, **{**alone, **more})
        return started.wait(COMMAND_TIMEOUT_S, look), started

    return to_its_end


def well(done: tuple[int, Command]) -> dict[str, Any]:
    """What a command that succeeded printed."""
    code, command = done
    assert code == 0, command.stderr
    answer: dict[str, Any] = json.loads(command.stdout)
    return answer


@cases(lambda case: case.step not in ("merge", "notify") and case.point not in IN_PREDICTOR)
def test_a_killed_command_or_child_of_it(
    case: Case, stack: Stack, lora: Clean, run: Run, tmp_path: Path, request: pytest.FixtureRequest,
) -> None:
    clean, destination, store, more = lora, f"matrix/{case.name}", Store(Settings()), {}
    if case.step == "train" and case.second:
        clean = request.getfixturevalue("full")
    if case.twist == "a store in a local folder":
        local = Settings(home=tmp_path / "home", store=str(tmp_path / "store"))
        copied(store, clean, local)
        store, more = Store(local), {"ANNEAL_STORE": local.store}
    earlier = case.second and case.step in ("register", "deploy")
    if earlier:
        well(run(request.getfixturevalue("full").command(destination)))
    forget(store, clean, case.step)

    command = clean.command(destination, *(["--no-deploy"] if more else []))
    code, done = run(command, **more, **case.wish(tmp_path))
    assert (tmp_path / "fired").exists(), done.stderr
    none_left(tmp_path / "home")
    if not case.is_in_child:
        assert code == -signal.Signals[case.signal], done.stderr
        code, done = run(command, **more)
    version = well((code, done))

    none_left(tmp_path / "home")
    assert left_on_disk(tmp_path / "home", tmp_path / "tmp") == []
    assert digests(store, clean.folders) == clean.digests
    manifest = store.find(f"trainings/{clean.training}")
    assert manifest is not None and manifest.record["digest"] == clean.weights
    registered(stack, destination, version, clean, earlier=earlier, deployed=not more)


@cases(lambda case: case.point in IN_PREDICTOR)
def test_a_killed_predictor(
    case: Case, stack: Stack, lora: Clean, run: Run, tmp_path: Path, request: pytest.FixtureRequest,
) -> None:
    port, destination = free_port(), f"matrix/{case.name}"
    own = f"http://127.0.0.1:{port}"
    predictor = Respawned({
        **os.environ, **stack.environment, "ANNEAL_HOME": str(tmp_path / "predictor"),
        "ANNEAL_PREDICTOR_PORT": str(port), "ANNEAL_API_KEY": stack.settings.predictor_key,
        "ANNEAL_BASE_FOLDERS": str(lora.parameters["base_model"]),
        **case.wish(tmp_path)}, tmp_path / "predictor.log")
    try:
        wait_until_responds(own, 120)
        if case.second:
            well(run(request.getfixturevalue("full").command(destination), ANNEAL_PREDICTOR_URL=own))
        version = well(run(lora.command(destination), predictor.look, ANNEAL_PREDICTOR_URL=own))
        assert (tmp_path / "fired").exists()
        wait_for(lambda: predictor.look() == 1, "it did not die")
        wait_for(lambda: is_answering(f"{own}/health/ready"), "it is not ready")
        asked = {"predictor_url": own, "api_key": stack.settings.predictor_key}
        at_own = Stack(stack.settings.model_copy(update=asked), stack.environment)
        registered(at_own, destination, version, lora, earlier=case.second, deployed=True)
    finally:
        predictor.process.kill()
        predictor.process.wait()


@cases(lambda case: case.step == "merge")
def test_a_killed_merge(case: Case, lora: Clean, run: Run, tmp_path: Path) -> None:
    clean, folder = tmp_path / "clean", tmp_path / "merged"
    command = ["export", "--format", "merged", "matrix/lora", "--json", "--dtype", "bf16" if case.second else "fp32",
               "--base-model", str(lora.parameters["base_model"])]
    well(run([*command, str(clean)]))
    code, done = run([*command, str(folder)], **case.wish(tmp_path))
    assert (tmp_path / "fired").exists() and code == 1, done.stderr
    assert not folder.exists()
    none_left(tmp_path / "home")
    well(run([*command, str(folder)]))
    assert {path.name: sha256_of(path) for path in folder.iterdir()} == {
        path.name: sha256_of(path) for path in clean.iterdir()}
    assert left_on_disk(tmp_path / "home", tmp_path / "tmp") == []
    assert sorted(path.name for path in tmp_path.glob("merged*")) == ["merged"]


@cases(lambda case: case.step == "notify")
def test_a_killed_notifier(case: Case, stack: Stack, lora: Clean, full: Clean, tmp_path: Path) -> None:
    receiver = Receiver(500, 200) if case.second else Receiver(200)
    environment = {
        **os.environ, **stack.environment, "PREFECT_API_URL": stack.settings.prefect_api,
        "ANNEAL_HOME": str(tmp_path / "home"), "ANNEAL_STORE": f"{Settings().store}-{case.name}",
        "ANNEAL_WEBHOOK_URL": receiver.url, "ANNEAL_WEBHOOK_SECRET": SECRET}

    def once(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", NOTIFY], cwd=ROOT, env={**environment, **more}, timeout=120,
                              stdout=subprocess.PIPE, text=True, check=not more)

    try:
        assert once(**case.wish(tmp_path)).returncode == -signal.Signals[case.signal]
        assert (tmp_path / "fired").exists() and len(receiver.got) == 1
        while once().stdout != "0\n":  # a round ends after 20 s, whatever is left
            pass
        told = len(receiver.got)
        assert once().stdout == "0\n"
        assert len(receiver.got) == told >= 2, "what was delivered is not sent again"
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
    times = Counter(headers["webhook-id"] for headers, _ in receiver.got)
    repeated = 1 if case.point == "notify.after_send" else 0
    assert sorted(times.values(), reverse=True)[:2] == [1 + repeated, 1]
    assert len({(headers["webhook-id"], body) for headers, body in receiver.got}) == len(times)


def registered(
    stack: Stack, destination: str, version: dict[str, Any], clean: Clean, *, earlier: bool, deployed: bool,
) -> None:
    """One version of the training, with its aliases; the predictor answers with it."""
    number, registry = 1 + earlier, Registry(stack.settings)
    assert version["training_id"] == clean.training
    found = stack.versions(destination)
    assert sorted(int(one.version) for one in found) == list(range(1, number + 1))
    (ours,) = [one for one in found if one.tags["training_id"] == clean.training]
    assert (int(ours.version), ours.tags["version_id"]) == (number, version["id"]) == (version["number"], version["id"])
    assert registry.number_at("challenger", destination) == number
    assert registry.client.get_run(ours.run_id).info.status == "FINISHED"
    if deployed:
        assert registry.number_at("champion", destination) == number
        assert registry.number_at("previous", destination) == (1 if earlier else None)
        assert stack.ask(destination)["version"] == version["id"]


@pytest.mark.chaos
def test_at_the_end_nothing_says_that_it_runs(stack: Stack, lora: Clean) -> None:
    """Killed commands cannot tell; deployments/reconcile.py finds their runs, and the next try MLflow's."""
    names = {"name": {"like_": "finetune matrix/"}, "state": {"type": {"any_": ["RUNNING", "PENDING"]}}}
    wait_for(lambda: stack.prefect("/flow_runs/filter", flow_runs=names) == [], "runs are shown as running", 280)
    client = Registry(stack.settings).client
    experiment = client.get_experiment_by_name("anneal")
    assert experiment is not None
    ids = [experiment.experiment_id]
    assert [run.info.run_id for run in client.search_runs(ids, "attributes.status = 'RUNNING'")] == []
    assert [model.model_id for model in client.search_logged_models(ids) if str(model.status) == "PENDING"] == []
