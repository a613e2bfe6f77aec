"""One real stack for all end-to-end tests: Prefect server, MLflow, predictor, gateway and worker over a real S3 server.

Those of tests/e2e and of tests/contract share it. At the end nothing of it may be left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from infra.settings import Settings
from infra.stack.processes import left_over

if TYPE_CHECKING:
    from tests.e2e.conftest import Stack

TUNNEL = "gpu.example"
"""A name under which browsers reach the stack, too."""


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, s3_endpoint: str) -> Iterator[Stack]:
    """All services, with the deployments; down at the end, and no process left."""
    from deployments.prefect_setup import apply
    from infra.stack import local as running
    from infra.stack import services
    from tests.conftest import BUCKET, S3_KEY, S3_SECRET, free_port
    from tests.e2e.conftest import Stack

    environment = {
        "ANNEAL_HOME": str(tmp_path_factory.mktemp("stack")), "ANNEAL_STORE": f"s3://{BUCKET}/e2e",
        "ANNEAL_S3_ENDPOINT_URL": s3_endpoint, "AWS_ACCESS_KEY_ID": S3_KEY, "AWS_SECRET_ACCESS_KEY": S3_SECRET,
        "AWS_DEFAULT_REGION": "us-east-1", "ANNEAL_HOST_NAMES": TUNNEL,
        **{f"ANNEAL_{name}_PORT": str(free_port()) for name in ("PREFECT", "MLFLOW", "PREDICTOR", "GATEWAY")}}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("ANNEAL_", "AWS_", "MLFLOW_", "PREFECT_API"))]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        settings = Settings()
        try:
            running.up(settings, prepare=apply.deploy)
            yield Stack(settings, {**environment, **services.for_runs(settings)})
        finally:
            stopped = running.down(settings)
    assert set(stopped) == set(running.NAMES)
    assert left_over(settings.home_path) == set()
