"""tasks/runs/queries.py without a server; with one: tests/e2e/test_watch.py, tests/e2e/test_reconcile.py."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed, Failed

from tasks.runs.queries import REFUSED, only_looked, other_retraining


@pytest.mark.parametrize(("state", "run_count", "watch", "expected"), [
    (Completed(name="Unchanged"), 1, True, True), (Failed(name="Unseen"), 1, True, True),
    (Cancelled(message=REFUSED), 0, True, True), (Cancelled(message=REFUSED), 1, True, False),
    (Cancelled(message=REFUSED), 0, False, False), (Completed(), 1, True, False), (Failed(), 1, True, False),
    (Completed(name="Skipped"), 1, True, False), (None, 0, True, False)])
def test_a_run_that_only_looked_is_told_from_one_that_trained(
    state: State[Any] | None, run_count: int, watch: bool, expected: bool,
) -> None:
    run = FlowRun(flow_id=uuid4(), state=state, run_count=run_count, parameters={"watch": watch})
    assert only_looked(run) is expected


def test_another_retraining_of_the_same_destination_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    run = FlowRun(flow_id=uuid4(), deployment_id=uuid4(), name="it", parameters={"training": {"destination": "a/b"}})
    alone = run.model_copy(update={"deployment_id": None})
    client: Any = None
    for runs, destination, own, expected in (
        ([run], "a/b", "another", "it"), ([run], "a/c", "another", ""), ([run], "a/b", str(run.id), ""),
        ([alone], "a/b", "another", ""), ([], "a/b", "another", "")):
        monkeypatch.setattr("tasks.runs.queries.runs_in", lambda *_, found=runs: found)
        assert other_retraining(client, destination, own) == expected
