"""Predictions through the gateway by the client 1.0.7, answered by a real predictor: rows 27 to 30."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest
from replicate.client import Client
from replicate.exceptions import ReplicateError

from deployments.gateway import predictions as module
from deployments.gateway.intents import begun
from deployments.gateway.tables import Training
from infra.settings import Settings
from tests.deployments.predictor.conftest import PROMPT, Predictor, needs_stories, served, versions
from tests.support.gateway import Running, running

__all__ = ["served", "versions"]  # fixtures
pytestmark = [pytest.mark.slow, needs_stories]
LONG = {"prompt": PROMPT, "seed": 1, "max_new_tokens": 60}


@pytest.fixture(scope="module")
def gateway(served: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """It knows of the version by a training that ended; MLflow is away."""
    settings = Settings(
        home=tmp_path_factory.mktemp("gateway"), api_key="the-key", predictor_url=served.url, bases="",
        prefect_url="http://127.0.0.1:9/api", mlflow_uri="http://127.0.0.1:9")
    with running(settings) as found:
        found.model("acme", "tales")
        row = {**begun(), "id": "a" * 26, "owner": "acme", "model": "m/n", "version": "0" * 64,
               "destination": "acme/tales", "input": {}, "spec": {}, "about": {}, "request_hash": "",
               "idempotency_key": None, "source": "api", "base_url": "", "webhook": "", "webhook_completed": "",
               "webhook_events": [], "status": "succeeded", "completed_at": time.time(),
               "output_version": version_of(served)}
        with found.here.database.session() as session:
            session.add(Training(**row))
        yield found


@pytest.fixture
def client(gateway: Running) -> Client:
    return Client(api_token="the-key", base_url=gateway.url)


@pytest.fixture
def expected(served: Predictor) -> str:
    """What the predictor itself says."""
    return "".join(served.answer(LONG)["output"])


def version_of(served: Predictor) -> str:
    return str(served.http.get("/models").json()["models"]["acme/tales"]["version"])


def test_row_27_a_prediction_that_is_waited_for_is_whole(
    gateway: Running, served: Predictor, expected: str,
) -> None:
    body = {"version": version_of(served), "input": LONG}
    answer = gateway.http.post("/v1/predictions", json=body, headers={"Prefer": "wait"})
    assert answer.status_code == 201 and answer.headers["preference-applied"] == "wait=60"
    found = answer.json()
    assert found["status"] == "succeeded" and "".join(found["output"]) == expected
    assert found["metrics"]["predict_time"] > 0 and found["model"] == "acme/tales"


def test_row_27_at_the_time_limit_it_is_starting_without_output_and_no_piece_is_lost(
    gateway: Running, client: Client, served: Predictor, expected: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R1, R2, R19: the client goes on by polling."""
    monkeypatch.setattr(module, "LEAST_WAIT_S", 0)
    monkeypatch.setattr(module, "WAIT_S", 0)  # over before the first piece
    pieces = list(client.run(f"acme/tales:{version_of(served)}", input=LONG))
    assert "".join(pieces) == expected


def test_row_28_a_model_is_asked_by_its_name(client: Client, served: Predictor, expected: str) -> None:
    found = client.models.predictions.create(("acme", "tales"), LONG)
    found.wait()
    assert found.status == "succeeded" and "".join(found.output or []) == expected
    assert found.version == version_of(served)


def test_row_29_a_stream_replays_and_needs_no_key(
    gateway: Running, client: Client, served: Predictor, expected: str,
) -> None:
    ref = f"acme/tales:{version_of(served)}"
    assert "".join(map(str, client.stream(ref, input=LONG))) == expected
    made = client.predictions.create(version=version_of(served), input=LONG)
    made.wait()
    assert made.urls is not None
    late = httpx.get(made.urls["stream"], trust_env=False)
    assert late.headers["content-type"].startswith("text/event-stream") and "event: done" in late.text
    said = [line[6:] for line in late.text.splitlines() if line.startswith("data: ")]
    assert "".join(map(str, made.stream())) == expected and said[-1] == "{}"
    wrong = httpx.get(f"{gateway.url}/v1/stream/none", trust_env=False)
    assert wrong.status_code == 200 and "event: error" in wrong.text  # R24


def test_row_30_a_prediction_is_canceled(gateway: Running, client: Client, served: Predictor) -> None:
    made = client.predictions.create(version=version_of(served), input={**LONG, "max_new_tokens": 400})
    made.cancel()
    assert made.status == "canceled" and made.completed_at
    again = gateway.http.post(f"/v1/predictions/{made.id}/cancel").json()
    time.sleep(1)
    assert gateway.http.get(f"/v1/predictions/{made.id}").json()["status"] == again["status"] == "canceled"


def test_a_wrong_input_or_version_is_refused_before_anything_is_asked(
    gateway: Running, client: Client, served: Predictor,
) -> None:
    with pytest.raises(ReplicateError, match="top_q"):
        client.predictions.create(version=version_of(served), input={"prompt": "a", "top_q": 1})
    with pytest.raises(ReplicateError, match="Invalid version or not permitted"):
        client.predictions.create(version="0" * 64, input=LONG)


def test_another_gateway_shows_and_streams_the_same(
    gateway: Running, client: Client, served: Predictor, expected: str,
) -> None:
    with running(gateway.settings) as other:
        made = gateway.http.post("/v1/predictions", json={"version": version_of(served), "input": LONG}).json()
        token = made["urls"]["stream"].rpartition("/")[2]
        text = httpx.get(f"{other.url}/v1/stream/{token}", trust_env=False, timeout=60).text
        assert "event: done" in text
        found = other.http.get(f"/v1/predictions/{made['id']}").json()
    assert found["status"] == "succeeded" and "".join(found["output"]) == expected, json.dumps(found)
