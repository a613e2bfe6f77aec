"""MLflow behind compose's password: a version is registered with it, and nothing without.

The database, the bucket and MLflow are those of infra/compose.yaml, as plain processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from infra.errors import UserError
from infra.models.registry import Registry
from infra.settings import Settings
from infra.storage.store import Store
from tasks.register import register
from tests.conftest import wait_until_responds
from tests.support.compose import MLFLOW_USER, Compose, databases
from tests.support.past import Past

pytestmark = pytest.mark.slow

STARTED_S = 120


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Postgres, S3 and MLflow."""
    made = Compose(tmp_path_factory.mktemp("compose"))
    (made.folder / "s3" / "anneal").mkdir(parents=True)
    with databases(made):
        try:
            for name in ("s3", "mlflow"):
                made.start(name)
            wait_until_responds(f"http://127.0.0.1:{made.ports['mlflow']}/health", STARTED_S)
            yield made
        finally:
            made.stop()


@pytest.fixture
def guarded(compose: Compose, settings: Settings) -> Settings:
    """Settings that name this MLflow."""
    return settings.model_copy(update={"mlflow_uri": f"http://127.0.0.1:{compose.ports['mlflow']}"})


def log_in(monkeypatch: pytest.MonkeyPatch, user: str, password: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def do(settings: Settings, store: Store, past: Past) -> Any:
    return register(settings, store, past.spec, past.trained, past.evaluation, past.split, past.pack, past.base)


def test_a_version_is_registered_with_the_password(
    compose: Compose, guarded: Settings, store: Store, past: Past, monkeypatch: pytest.MonkeyPatch,
) -> None:
    log_in(monkeypatch, *MLFLOW_USER)
    version = do(guarded, store, past)
    found = compose.mlflow("registered-models/get", name="acme--summarizer")["registered_model"]
    assert found["aliases"] == [{"alias": "challenger", "version": "1"}]
    assert list((compose.folder / "s3" / "anneal" / "mlflow").rglob("adapter_model.safetensors"))
    experiment, run = Registry(guarded).run_of(version.destination, version.number)
    assert compose.mlflow("runs/get", run_id=run)["run"]["info"]["experiment_id"] == experiment


@pytest.mark.parametrize("password", ["", "another-password"])
def test_nothing_is_registered_without_it(
    guarded: Settings, store: Store, past: Past, monkeypatch: pytest.MonkeyPatch, password: str,
) -> None:
    log_in(monkeypatch, MLFLOW_USER[0], password)
    with pytest.raises(UserError, match="Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        do(guarded, store, past)


@pytest.mark.parametrize("path", [
    "api/2.0/mlflow/registered-models/search", "api/2.0/mlflow-artifacts/artifacts", "ajax-api/2.0/mlflow/users/list",
    ""])
def test_mlflow_asks_for_the_password(compose: Compose, path: str) -> None:
    url = f"http://127.0.0.1:{compose.ports['mlflow']}/{path}"
    assert httpx.get(url).status_code == httpx.codes.UNAUTHORIZED
    assert httpx.get(url, auth=("anneal", "another-word")).status_code == httpx.codes.UNAUTHORIZED
