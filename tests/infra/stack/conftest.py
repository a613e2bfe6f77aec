"""A home for a stack of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.settings import Settings
from infra.stack import local as stack
from infra.stack import processes
from tests.conftest import free_port


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A home and ports of its own; whatever a test starts is gone afterwards."""
    for name in ("PREFECT_API_URL", "ANNEAL_PREFECT_URL", "ANNEAL_MLFLOW_URI", "ANNEAL_PREDICTOR_URL"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings(home=tmp_path, prefect_port=free_port(), mlflow_port=free_port(), predictor_port=free_port(),
                        gateway_port=free_port(), stop_grace_s=1)
    yield settings
    stack.down(settings)
    assert processes.left_over(settings.home_path) == set()
