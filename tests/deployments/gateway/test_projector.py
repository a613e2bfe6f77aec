"""deployments/gateway/projector.py: what a run's end becomes for clients."""

from __future__ import annotations

from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import CrashedRun
from prefect.states import Crashed, Failed, exception_to_failed_state
from prefect.utilities.asyncutils import run_coro_as_sync

from deployments.gateway.projector import error_of
from infra.errors import DataError


def run_with(**values: object) -> FlowRun:
    return FlowRun.model_validate({"flow_id": uuid4(), **values})


@pytest.mark.parametrize(("error", "said"), [
    (DataError("2 of 22 lines cannot be used", where="bad.jsonl"), "bad.jsonl: 2 of 22 lines cannot be used"),
    (KeyError("steps"), "KeyError: 'steps'"), (CrashedRun("it is gone"), "CrashedRun: it is gone")])
def test_a_failed_runs_error_is_its_sentence_without_prefects_words(error: Exception, said: str) -> None:
    state = run_coro_as_sync(exception_to_failed_state(error, message="Flow run encountered an exception:"))
    assert state is not None and error_of(run_with(state=state)).startswith(said)


def test_a_run_that_says_nothing_has_a_sentence_all_the_same() -> None:
    assert "its page in Prefect may tell" in error_of(run_with(state=Failed()))
    assert error_of(run_with(state=Crashed(message="gone"))) == "The run made no version: gone"
