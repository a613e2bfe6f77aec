"""deployments/reconcile.py without a server; with one: tests/e2e/test_reconciler.py"""

from __future__ import annotations

import subprocess
import sys

import pytest

from deployments import reconcile
from infra.settings import Settings
from tests.conftest import ROOT, free_port


def test_a_server_that_is_away_is_asked_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(reconcile, "RETRIES", 0)
    away = settings.model_copy(update={"prefect_url": f"http://127.0.0.1:{free_port()}/api"})
    assert reconcile.Reconciler(away).look(is_told=True) == reconcile.BUSY_S
    assert "not looked, trying again" in caplog.text


def test_what_is_done_now_and_then_is_done_at_once_and_then_when_it_is_time() -> None:
    clock = [0.0]
    due = reconcile.Due(60, lambda: clock[0])
    found = []
    for clock[0] in (0.0, 1.0, 59.0, 60.0, 61.0, 500.0):
        found.append(due())
    assert found == [True, False, False, True, False, True]


def test_it_stays_small() -> None:
    code = ("import sys, deployments.reconcile; print([name for name in ('torch', 'transformers', 'mlflow', "
            "'matplotlib', 'sqlalchemy', 'fastapi') if name in sys.modules])")
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
