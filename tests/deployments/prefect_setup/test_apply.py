"""deployments/prefect_setup/apply.py without a server; with one: tests/e2e/test_deployment.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import UserError
from infra.settings import Settings


def test_without_a_server_it_says_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deployments.prefect_setup.apply import deploy

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(UserError, match="anneal up"):
        deploy(Settings(home=tmp_path))
