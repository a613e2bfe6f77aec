"""A gateway that Prefect and MLflow do not answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.settings import Settings
from tests.support.gateway import Running, running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Without Prefect; it has a model of acme."""
    settings = Settings(home=tmp_path_factory.mktemp("home"), api_key="the-key", bases="",
                        prefect_url="http://127.0.0.1:9/api", mlflow_uri="http://127.0.0.1:9")
    with running(settings, projecting=False) as found:
        found.model()
        yield found
