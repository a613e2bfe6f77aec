"""A gateway with a database of its own beside the stack of the end-to-end tests, and whoever receives its webhooks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deployments.gateway.catalogue import DEMO_FOLDER
from infra.settings import Settings
from tests.conftest import ROOT
from tests.support.gateway import Receiver, Running, running

if TYPE_CHECKING:
    from tests.e2e.conftest import Stack

LLAMA = "4841472f9a9d279cf03ba0a8f633b13eccd0e0a033d3af0c9b58830982d33132"
"""The version that the guide's answer shows."""


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    """Takes every webhook."""
    found = Receiver()
    yield found
    found.close()


@pytest.fixture(scope="session")
def gateway(stack: Stack, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Over the stack's Prefect, MLflow, predictor and S3; it knows the guide's base model."""
    settings = stack.settings.model_copy(update={
        "gateway_database": f"sqlite:///{tmp_path_factory.mktemp('gateway') / 'gateway.db'}",
        "allowed_hosts": "127.0.0.1", "bases": f"meta/llama-2-7b:{LLAMA}={DEMO_FOLDER}"})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.environment.items():
            patch.setenv(name, value)
        with running(settings) as found:
            yield found


@pytest.fixture
def environment(clean_environment: None, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack's environment, which the tests' own `clean_environment` took away."""
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def alone(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway whose Prefect, MLflow and predictor are away; it has a model acme/notes."""
    settings = Settings(
        home=tmp_path_factory.mktemp("alone"), allowed_hosts="127.0.0.1", store="", mlflow_uri="http://127.0.0.1:9",
        prefect_url="http://127.0.0.1:9/api", api_key="the-key", public_url="", bases="", gateway_database="")
    with running(settings) as found:
        found.model()
        yield found


def script(gateway: Running, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a client's script, as its author wrote it: only two environment variables say where it goes."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("ANNEAL_", "PREFECT_"))},
        "REPLICATE_BASE_URL": gateway.url, "REPLICATE_API_TOKEN": gateway.settings.predictor_key,
        "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=400, check=False)
