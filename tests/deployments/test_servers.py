"""Prefect's and MLflow's servers behind our door: as their own commands start them."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from infra.settings import Settings
from infra.stack import services


def test_mlflows_server_is_told_all_that_its_own_command_tells_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new release of MLflow may tell it more; then infra/stack/services.py has to."""
    from mlflow import server

    told: dict[str, Any] = {}

    def started(command: list[str], extra_env: dict[str, str], **_: Any) -> SimpleNamespace:
        told.update(extra_env)
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(server, "_exec_cmd", started)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    database = settings.mlflow_database
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    try:
        server._run_server(
            file_store_path=database, registry_store_uri=database, default_artifact_root=services.ARTIFACT_ROOT,
            serve_artifacts=True, artifacts_only=False, host="127.0.0.1", port=5000, workers=1,
            artifacts_destination=services.of_mlflow_server(settings)["_MLFLOW_SERVER_ARTIFACT_DESTINATION"])
    finally:  # MLflow's would outlive its server
        for number, handler in handlers.items():
            signal.signal(number, handler)
    ours = services.of_mlflow_server(settings)
    assert len(ours["_MLFLOW_SERVER_BOOT_ID"]) == len(told.pop("_MLFLOW_SERVER_BOOT_ID"))
    assert {name: ours.get(name) for name in told} == told
