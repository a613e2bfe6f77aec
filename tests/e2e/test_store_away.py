"""The store goes away while a step has something to put there or to fetch: pytest -m chaos tests/e2e/test_store_away.py

While it trains: test_recovery.py.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.crashpoints import AT, FIRED
from infra.storage.store import Store
from tests.conftest import S3Server, wait_for
from tests.e2e.conftest import COMMAND_TIMEOUT_S, Stack, options

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

MET_S = 120
"""The libraries try again by themselves first."""
POINTS = ["ingest.before_commit", "validate.before_commit", "pack.before_commit", "evaluate.before_commit",
          "register.after_alias"]
"""After the last one it is the predictor that misses the store."""


@pytest.fixture
def fresh(shared: Path, parameters: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The short training, on rows that no step has seen."""
    first = 100 * (1 + POINTS.index(request.getfixturevalue("point")))
    with (shared / "data" / "mts_dialog" / "train.jsonl").open(encoding="utf-8") as file:
        (tmp_path / "train.jsonl").write_text("".join(islice(file, first, first + 60)), encoding="utf-8")
    return {**parameters, "train_data": str(tmp_path / "train.jsonl")}


@pytest.mark.parametrize("point", POINTS)
def test_a_step_waits_for_the_store(
    stack: Stack, fresh: dict[str, Any], s3_server: S3Server, tmp_path: Path, point: str,
) -> None:
    destination, fired = f"acme/away-{point.partition('.')[0]}", tmp_path / "fired"
    process = stack.start("train", "--json", *options({**fresh, "destination": destination}),
                          **{AT: f"{point}:SIGSTOP:1", FIRED: str(fired)})
    try:
        stopped = psutil.Process(process.pid)
        wait_for(lambda: fired.exists() and stopped.status() == psutil.STATUS_STOPPED, f"it does not reach {point}")
        s3_server.kill()
        try:
            stopped.resume()
            (run,) = stack.runs(f"finetune {destination}")
            wait_for(lambda: {"AwaitingRetry", "Retrying"} & set(stack.steps(run).values()), "no step waits", MET_S)
            assert process.poll() is None, "it ended without the store"
        finally:
            s3_server.start()
        stdout, stderr = process.communicate(timeout=COMMAND_TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    logged = [entry["message"] for entry in stack.prefect("/logs/filter", logs={"flow_run_id": {"any_": [run]}})]
    assert [line for line in logged if re.search(r"Retry \d+/\d+ will start [\d.]+ second", line)], [
        line for line in logged if "etry" in line]
    done = json.loads(stdout)
    (version,) = stack.versions(destination)
    assert version.tags["training_id"] == done["training_id"]
    assert Store(stack.settings).find(f"versions/{version.tags['version_id']}") is not None
    assert stack.ask(destination)["version"] == version.tags["version_id"]
