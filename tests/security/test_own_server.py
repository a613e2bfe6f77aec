"""The server that Prefect starts for a training without a stack is closed, too.

Run alone: pytest tests/security/test_own_server.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROGRAM = """
import json, httpx
from deployments.cli.console import set_environment, settings_here, start_own_server
settings = settings_here()
set_environment(settings)
start_own_server(settings)
from prefect.client.orchestration import get_client
from prefect.server.api.server import SubprocessASGIServer
api = SubprocessASGIServer().api_url
found = {
    "without": httpx.get(f"{api}/admin/version").status_code,
    "forged": httpx.post(f"{api}/flow_runs/filter", json={}, headers={"Origin": "http://attack.example"}).status_code,
    "shared with": httpx.get(f"{api}/health", headers={"Origin": "http://attack.example"}).headers.get(
        "access-control-allow-origin")}
with get_client(sync_client=True) as client:
    found["flows"] = len(client.read_flows())
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_trainings_own_server_asks_for_the_secret(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_API", "ANNEAL_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env={**kept, "ANNEAL_HOME": str(tmp_path)}, capture_output=True,
        text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "without": 401, "forged": 403, "shared with": None, "flows": 0}
