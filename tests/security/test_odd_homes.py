"""A home on a path that nobody chose well: pytest -m chaos tests/security/test_odd_homes.py"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.models.registry import Registry
from infra.settings import Settings
from infra.storage.store import Store
from tests.e2e.conftest import options
from tests.support import faults

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

ODD = "it's a \"h\u00f6me\" #1 x=%20 100% [*] $HOME;"
"""Without a question mark, which no address of a database can carry."""


def test_a_training_on_an_odd_home_stays_in_it(shared: Path, tmp_path: Path) -> None:
    home, data = tmp_path / ODD / "home", tmp_path / "data"
    data.mkdir()
    command = ["train", "--json", "--no-deploy", *options(faults.training(shared, data))]
    done = [faults.ended(faults.started(command, ANNEAL_HOME=str(home))) for _ in range(2)]
    for one in done:
        assert one.returncode == 0 and "Traceback" not in one.stderr, one.stderr[-3000:]

    first, second = (json.loads(one.stdout) for one in done)
    assert first == second and "(done before)" in done[1].stderr
    settings = Settings(home=home)
    (version,) = Registry(settings).client.search_model_versions("name='acme--faults'")
    assert version.tags["version_id"] == first["id"]
    assert Store(settings).find(first["folder"]) is not None
    assert (home / "mlflow.db").is_file() and list(home.glob("mlflow-artifacts/**/adapter_model.safetensors"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([ODD, data.name])
    assert [path.name for path in (tmp_path / ODD).iterdir()] == ["home"]
