"""Two of the same command at once on one home that is new: pytest -m chaos tests/security/test_at_once.py"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.models.registry import Registry
from infra.settings import Settings
from infra.stack import local as running
from infra.stack.processes import left_over
from infra.storage.store import Store
from tests.conftest import free_port
from tests.e2e.conftest import options
from tests.support import faults

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


def test_two_trainings_at_once_make_one_version(shared: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = ["train", "--json", "--no-deploy", *options(faults.training(shared, tmp_path))]
    both = [faults.started(command, ANNEAL_HOME=str(home)) for _ in range(2)]
    done = [faults.ended(one) for one in both]

    well = [one for one in done if one.returncode == 0]
    assert well, [one.stderr[-2000:] for one in done]
    for one in done:
        if one.returncode != 0:
            assert "another process is at it" in faults.sentence(one.returncode, one.stderr)
    settings = Settings(home=home)
    (version,) = Registry(settings).client.search_model_versions("name='acme--faults'")
    assert {json.loads(one.stdout)["id"] for one in well} == {version.tags["version_id"]}
    store = Store(settings)
    for kind in ("datasets", "splits", "packs", "trainings", "evaluations", "versions"):
        assert all(store.find(name) for name in store.names(kind)), kind
    assert len(store.names("trainings")) == len(store.names("versions")) == 1
    assert not list(home.glob("store/.drafts/*"))


def test_two_stacks_at_once_are_one(tmp_path: Path) -> None:
    ports = {f"ANNEAL_{name}_PORT": str(free_port()) for name in ("PREFECT", "MLFLOW", "PREDICTOR", "GATEWAY")}
    settings = Settings(home=tmp_path / "home")
    try:
        both = [faults.started(["up", "--json"], ANNEAL_HOME=str(settings.home_path), **ports) for _ in range(2)]
        done = [faults.ended(one) for one in both]
        assert [one.returncode for one in done] == [0, 0], [one.stderr[-2000:] for one in done]
        first, second = (json.loads(one.stdout)["services"] for one in done)
        assert first == second and set(first) == set(running.NAMES)
        assert set(running.status(settings).values()) == {"running"}
    finally:
        stopped = running.down(settings)
    assert set(stopped) == set(running.NAMES), "no process that stack.json does not know"
    assert left_over(settings.home_path) == set()
