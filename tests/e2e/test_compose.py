"""infra/compose.yaml for real (tests/support/compose.py): its services as plain processes.

One training goes through Postgres, S3, an authenticated MLflow and Prefect, the worker and the predictor:
pytest -m chaos tests/e2e/test_compose.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.settings import Settings
from infra.storage.store import Store
from tests.conftest import ROOT, wait_for, wait_until_responds
from tests.e2e.conftest import COMMAND_TIMEOUT_S, FINAL, LONG, options
from tests.support.compose import Compose, databases, without_settings
from tests.support.postgres import Postgres
from tests.support.prefect_api import ask_at

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

STARTED_S = 120
DATABASE_AWAY_S = 10


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Compose:
    return Compose(tmp_path_factory.mktemp("compose"))


@pytest.fixture(scope="module")
def postgres(made: Compose) -> Iterator[Postgres]:
    """The file's databases."""
    with databases(made) as server:
        yield server


@pytest.fixture(scope="module")
def compose(made: Compose, postgres: Postgres) -> Iterator[Compose]:
    """All services of the file."""
    (made.folder / "s3" / "anneal").mkdir(parents=True)
    (made.folder / "home").mkdir()
    try:
        for name in ("s3", "mlflow", "prefect", "predictor"):
            made.start(name)
        wait_until_responds(f"http://127.0.0.1:{made.ports['mlflow']}/health", STARTED_S)
        wait_until_responds(f"http://127.0.0.1:{made.ports['prefect']}/api/health", STARTED_S)
        wait_until_responds(f"http://127.0.0.1:{made.ports['predictor']}/health/live", STARTED_S)
        done = subprocess.run([sys.executable, "-m", "deployments.cli.main", "deploy"], cwd=ROOT, capture_output=True,
                              text=True, env=made.environment("worker"))
        assert done.returncode == 0, done.stderr
        for name in ("worker", "reconcile"):
            made.start(name)
        yield made
    finally:
        made.stop()


def test_a_training_goes_through_the_whole_of_it(compose: Compose, parameters: dict[str, Any]) -> None:
    deployment = compose.prefect("/deployments/name/finetune/finetune")["id"]
    run = compose.prefect(f"/deployments/{deployment}/create_flow_run", parameters={"training": parameters})["id"]
    wait_for(lambda: compose.prefect(f"/flow_runs/{run}")["state"]["type"] in FINAL, "it does not end",
             COMMAND_TIMEOUT_S)
    state = compose.prefect(f"/flow_runs/{run}")["state"]
    assert state["type"] == "COMPLETED", state

    answer = httpx.post(
        f"http://127.0.0.1:{compose.ports['predictor']}/predictions", timeout=60,
        headers={"Authorization": "Bearer predictor-key"},
        json={"model": "acme/notes", "input": {"prompt": "Once", "max_new_tokens": 4}})
    assert answer.json()["status"] == "succeeded", answer.text
    assert compose.mlflow("registered-models/get", name="acme--notes")["registered_model"]["aliases"] == [
        {"alias": "challenger", "version": "1"}, {"alias": "champion", "version": "1"}]
    assert (compose.folder / "s3" / "anneal" / "mlflow").is_dir(), "MLflow's artifacts lie in the bucket"


def test_prefect_asks_for_the_password(compose: Compose) -> None:
    api = f"http://127.0.0.1:{compose.ports['prefect']}/api"
    assert httpx.get(f"{api}/admin/version").status_code == httpx.codes.UNAUTHORIZED
    assert ask_at(api, None, "/flow_runs/filter", {"limit": 1}).status_code == httpx.codes.UNAUTHORIZED
    forged = httpx.post(f"{api}/flow_runs/filter", json={}, auth=("anneal", "word"))
    assert forged.status_code == httpx.codes.FORBIDDEN and "CSRF" in forged.text


def test_reconcile_looks_after_runs(compose: Compose) -> None:
    beat = compose.folder / "home" / "logs" / "reconcile.beat"
    wait_for(beat.exists, "it has not looked", STARTED_S)
    assert "not looked" not in (compose.folder / "reconcile.log").read_text(encoding="utf-8")


def test_a_run_outlives_a_crash_of_the_database(
    compose: Compose, postgres: Postgres, parameters: dict[str, Any], tmp_path: Path,
) -> None:
    """With the weights that it would have had."""
    deployment = compose.prefect("/deployments/name/finetune/finetune")["id"]
    wanted = {**parameters, **LONG, "destination": "acme/outage", "seed": 2}

    def checkpoints() -> set[Path]:
        return set((compose.folder / "home").glob("**/trainings/*/step-??????"))

    before = checkpoints()
    run = compose.prefect(f"/deployments/{deployment}/create_flow_run", parameters={"training": wanted})["id"]
    wait_for(lambda: checkpoints() - before, "it does not train", COMMAND_TIMEOUT_S)
    postgres.crash()
    time.sleep(DATABASE_AWAY_S)
    postgres.start()

    def state() -> dict[str, Any]:
        with suppress(httpx.HTTPError, AssertionError):  # it may still be about to connect again
            return dict(compose.prefect(f"/flow_runs/{run}")["state"])
        return {"type": "UNKNOWN"}

    wait_for(lambda: state()["type"] in FINAL, "it does not end", COMMAND_TIMEOUT_S)
    assert state()["type"] == "COMPLETED", state()
    (version,) = compose.mlflow("model-versions/search", filter="name='acme--outage'")["model_versions"]
    assert version["version"] == "1"
    (training,) = [tag["value"] for tag in version["tags"] if tag["key"] == "training_id"]
    assert digest_of(compose.folder / "s3" / "anneal" / "store", training) == undisturbed(tmp_path, wanted, training)


def undisturbed(home: Path, parameters: dict[str, Any], training: str) -> str:
    """The digest of the weights that the same training gives in one go, with services and a store of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "deployments.cli.main", "train", *options(parameters)], cwd=ROOT, capture_output=True,
        text=True, timeout=COMMAND_TIMEOUT_S, env={**without_settings(), "ANNEAL_HOME": str(home)})
    assert done.returncode == 0, done.stderr
    return digest_of(home / "store", training)


def digest_of(store: Path, training: str) -> str:
    found = Store(Settings(store=str(store))).find(f"trainings/{training}")
    assert found is not None, f"no training {training} in {store}"
    return str(found.record["digest"])
