"""The gateway as a team's set-ups start it: compose.yaml's service as a plain process, the files of the others."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import yaml

from tests.conftest import ROOT, wait_until_responds
from tests.support.compose import Compose, databases

STARTED_S = 120


@pytest.mark.slow
def test_composes_gateway_starts_on_its_postgres_and_asks_for_a_key(tmp_path: Path) -> None:
    made = Compose(tmp_path)
    (tmp_path / "home").mkdir()
    url = f"http://127.0.0.1:{made.ports['gateway']}"
    with databases(made) as server:
        try:
            made.start("gateway")
            wait_until_responds(f"{url}/health/ready", STARTED_S)
            assert httpx.get(f"{url}/v1/account").status_code == 401
            mine = httpx.get(f"{url}/v1/account", headers={"Authorization": "Bearer predictor-key"})
            assert mine.json()["type"] == "user"
            server.psql("--command", r"\connect gateway", "--command", "SELECT id FROM training")
        finally:
            made.stop()


def test_kubernetes_has_a_gateway_with_probes_that_other_outages_leave_alone() -> None:
    parts = list(yaml.safe_load_all((ROOT / "infra" / "kubernetes" / "anneal.yaml").read_text(encoding="utf-8")))
    ours = {one["kind"]: one for one in parts if one["metadata"]["name"] == "anneal-gateway"}
    deployment = ours["Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["python", "-m", "deployments.gateway"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/health/live", "port": 5002}
    assert container["readinessProbe"]["httpGet"] == {"path": "/health/ready", "port": 5002}
    assert ours["Service"]["spec"]["ports"] == [{"port": 5002}]


def test_systemd_starts_the_gateway() -> None:
    unit = (ROOT / "infra" / "systemd" / "anneal-gateway.service").read_text(encoding="utf-8")
    assert "-m deployments.gateway" in unit and "Restart=always" in unit
