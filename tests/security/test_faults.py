"""Faults of disks and stores on real commands: one sentence, nothing lost, nothing twice.

pytest -m chaos tests/security/test_faults.py
A full disk at each step, a read-only home, a store that is deleted under a running training, records and tables of
another release. What dies: tests/e2e/test_matrix.py and test_killed_for_memory.py; two at once: test_at_once.py.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.files import MANIFEST
from infra.models.registry import Registry
from infra.settings import Settings
from infra.stack import local as running
from infra.stack import services
from infra.storage.store import Store
from tests.conftest import free_port
from tests.e2e.conftest import options
from tests.e2e.forked import Command, Commands
from tests.support import faults
from tests.support.faults import Disk, go_on, sentence, stopped, stops_at

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

FULL_AT = ("ingest.half_written", "validate.mid_file", "pack.mid_file", "train.checkpoint.mid_write",
           "evaluate.mid_generation", "register.after_commit", "register.after_alias", "deploy.before_champion")
"""After register.after_alias it is the deploy step that has something to write, after deploy.before_champion MLflow."""
HOME_MIB = 48


@contextmanager
def one_service(name: str, folder: Path) -> Iterator[Settings]:
    """Of `anneal up`, on a home. It reads its port from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.setenv(f"ANNEAL_{name.upper()}_PORT", str(free_port()))
        settings = Settings(home=folder)
        try:
            running.up(settings, only=(name,))
            yield settings
        finally:
            running.down(settings)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """A home on a disk of its own."""
    with faults.disk(tmp_path_factory.mktemp("disk") / "home", HOME_MIB) as made:
        yield made


@pytest.fixture(scope="module")
def commands(home: Disk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Where commands are forked from; their Prefect server has another home."""
    with one_service("prefect", tmp_path_factory.mktemp("server")) as other:
        made = Commands({**services.for_runs(other), "ANNEAL_HOME": str(home.folder),
                         "ANNEAL_PREFECT_URL": other.prefect_api, "PREFECT_API_URL": other.prefect_api})
        yield made
        made.close()


@pytest.fixture(scope="module")
def parameters(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a short training."""
    return faults.training(shared, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def predictor(home: Disk) -> Iterator[Settings]:
    """The home's own."""
    with one_service("predictor", home.folder) as settings:
        yield settings


@pytest.fixture
def train(commands: Commands, parameters: dict[str, Any], tmp_path: Path) -> Callable[..., Command]:
    """Starts the training."""
    command = ["train", "--json", *options(parameters)]
    return lambda *more, **environment: commands.start([*command, *more], tmp_path, **environment)


def well(command: Command) -> dict[str, Any]:
    """What a command that succeeded printed."""
    assert command.wait(faults.ENDS_S) == 0, command.stderr[-3000:]
    answer: dict[str, Any] = json.loads(command.stdout)
    return answer


def refused(command: Command) -> str:
    """What one that did not said."""
    return sentence(command.wait(faults.ENDS_S), command.stderr)


@pytest.mark.timeout(900)
def test_a_disk_that_is_full_at_any_step_is_said_and_what_was_finished_is_kept(
    home: Disk, predictor: Settings, train: Callable[..., Command], parameters: dict[str, Any], tmp_path: Path,
) -> None:
    store, said = Store(predictor), dict[str, str]()
    for point in FULL_AT:
        command = train(**stops_at(point, tmp_path))
        found = stopped(command.pid, tmp_path)
        home.fill()
        try:
            go_on(found)
            said[point] = refused(command)
        finally:
            home.free()
        assert not list(home.folder.glob("store/.drafts/*")) and not list(home.folder.glob("work/*")), point
    assert not {point: told for point, told in said.items() if "full" not in told or "Free some space" not in told}

    version = well(train())
    assert [name for name in store.names("versions") if store.find(name)] == [version["folder"]]
    (registered,) = Registry(predictor).client.search_model_versions("name='acme--faults'")
    assert registered.tags["training_id"] == version["training_id"]
    assert Registry(predictor).number_at("champion", "acme/faults") == version["number"] == 1
    served = json.loads((home.folder / "predictor" / "acme--faults.json").read_text())
    assert served["current"]["version"] == version["id"]


def test_a_store_that_is_deleted_while_it_trains_is_said_within_a_minute_and_made_again(
    home: Disk, train: Callable[..., Command], tmp_path: Path,
) -> None:
    more = ("--no-deploy", "--seed", "7", "--destination", "acme/deleted")
    command = train(*more, **stops_at("train.final.before_commit", tmp_path))
    found = stopped(command.pid, tmp_path)
    shutil.rmtree(home.folder / "store")
    go_on(found)
    told = refused(command)
    assert "missing or damaged" in told and "Run the same training again" in told

    version = well(train(*more))
    settings = Settings(home=home.folder)
    (registered,) = Registry(settings).client.search_model_versions("name='acme--deleted'")
    assert registered.tags["training_id"] == version["training_id"]
    assert Store(settings).find(version["folder"]) is not None


def test_records_of_an_older_release_are_made_again_and_those_of_a_newer_one_are_read(
    home: Disk, train: Callable[..., Command],
) -> None:
    more = ("--no-deploy", "--destination", "acme/releases")
    version = well(train(*more))
    for kind in ("datasets", "splits", "packs", "trainings", "evaluations"):
        for path in home.folder.glob(f"store/{kind}/*/{MANIFEST}"):
            manifest = json.loads(path.read_text())
            kept = dict(list(manifest["record"].items())[:2])
            path.write_text(json.dumps({**manifest, "record": {**kept, "of_a_newer_release": 1}, "more": 1}))
    assert well(train(*more)) == version
    for path in home.folder.glob(f"store/*/*/{MANIFEST}"):
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({**manifest, "record": {**manifest["record"], "of_a_newer_release": 1}, "more": 1}))
    again = train(*more)
    assert well(again) == version and "(done before)" in again.stderr


def test_mlflows_tables_of_another_release_are_said(
    home: Disk, train: Callable[..., Command], tmp_path: Path,
) -> None:
    shutil.copy(home.folder / "mlflow.db", tmp_path)
    try:
        with sqlite3.connect(home.folder / "mlflow.db") as tables:
            tables.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        told = refused(train("--no-deploy", "--destination", "acme/releases"))
        assert "another release of MLflow" in told and "mlflow db upgrade" in told
    finally:
        shutil.copy(tmp_path / "mlflow.db", home.folder)


@pytest.mark.parametrize("fault", ["read-only", "full"])
def test_a_home_that_cannot_be_written_is_said_at_once(tmp_path: Path, parameters: dict[str, Any], fault: str) -> None:
    with faults.disk(tmp_path / "home", 2) as made:
        assert Settings(home=made.folder).secret
        if fault == "full":
            made.fill()
        else:
            made.mount("remount,ro,size=2m")
        ports = {f"ANNEAL_{name}_PORT": str(free_port()) for name in ("PREFECT", "MLFLOW", "PREDICTOR", "GATEWAY")}
        commands = [faults.started(arguments, ANNEAL_HOME=str(made.folder), **ports)
                    for arguments in (["train", *options(parameters)], ["up"], ["estimate", *options(parameters)])]
        said = [sentence(done.returncode, done.stderr) for done in (faults.ended(one, 60) for one in commands)]
        for told in said:
            assert ("the disk is full" if fault == "full" else "Read-only file system") in told, said


def test_a_state_file_of_a_newer_release_is_said(tmp_path: Path) -> None:
    mine = psutil.Process()
    service = {"url": "", "pid": mine.pid, "started": mine.create_time(), "of_a_newer_release": True}
    (tmp_path / "stack.json").write_text(json.dumps({"services": {"keeper": service}}))
    for command in ("status", "up", "down"):
        done = faults.ended(faults.started([command], ANNEAL_HOME=str(tmp_path)), 60)
        assert "not a state file of this release" in sentence(done.returncode, done.stderr), command
    assert mine.is_running() and (tmp_path / "stack.json").exists()
