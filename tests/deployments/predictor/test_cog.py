"""Cog's dialect: deployments/predictor/cog_routes.py, live.py, openapi.py."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.predictor import engine as engines
from deployments.predictor.live import LivePredictions
from tests.deployments.predictor.conftest import (
    GREEDY,
    PROMPT,
    SSE,
    Predictor,
    needs_stories,
    settings_of,
    text_of,
)

pytestmark = needs_stories
ASYNC = {"Prefer": "respond-async"}
LONG = {"prompt": PROMPT, "max_new_tokens": 300, "temperature": 1.5, "seed": 1}


def ended(served: Predictor, identity: str) -> dict[str, Any]:
    """The object of a prediction that has ended."""
    deadline = time.monotonic() + 60
    while (found := served.http.get(f"/predictions/{identity}").json())["status"] == "processing":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return dict(found)


def events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_programs_are_told_the_addresses_and_browsers_the_page(served: Predictor) -> None:
    found = served.http.get("/").json()
    assert served.http.get(found["healthcheck_url"]).json()["status"] == "READY"
    assert served.http.get(found["openapi_url"]).status_code == 200
    assert found["predictions_cancel_url"] == "/predictions/{prediction_id}/cancel"
    assert "<html" in served.http.get("/", headers={"Accept": "text/html"}).text


def test_the_openapi_document_has_inputs_in_order_and_no_dead_reference(served: Predictor) -> None:
    text = served.http.get("/openapi.json").text
    schemas = json.loads(text)["components"]["schemas"]
    order = {name: one["x-order"] for name, one in schemas["Input"]["properties"].items()}
    assert min(order, key=order.__getitem__) == "prompt" and schemas["Output"]["x-cog-array-type"] == "iterator"
    parts = text.split('"$ref":"')[1:]
    assert parts and {part.partition('"')[0].removeprefix("#/components/schemas/") for part in parts} <= set(schemas)


def test_health_check_needs_no_key_and_says_how_far_it_is(tmp_path: Path, versions: Path) -> None:
    predictor = Predictor(settings_of(tmp_path, api_key="secret-key"), versions)
    go, restore = threading.Event(), predictor.app.state.shelf.restore
    predictor.app.state.shelf.restore = lambda: (go.wait(30), restore())
    predictor.thread.start()
    try:
        assert predictor.http.get("/health-check").json() == {
            "status": "STARTING", "setup": {"status": "starting", "logs": ""}}
        predictor.app.state.shelf.failed["a/b"] = "lost"
        go.set()
        deadline = time.monotonic() + 20
        while predictor.http.get("/health-check").json()["status"] != "SETUP_FAILED":
            assert time.monotonic() < deadline
    finally:
        go.set()
        predictor.stop()


def test_respond_async_answers_at_once_and_the_end_can_be_asked_for(
    served: Predictor, expected: dict[str, str],
) -> None:
    begun = served.http.post("/predictions", json={"input": GREEDY}, headers=ASYNC)
    assert begun.status_code == 202 and begun.json()["status"] == "starting"
    found = ended(served, begun.json()["id"])
    assert found["status"] == "succeeded" and text_of(found) == expected[served.put("a")]
    assert served.http.get("/predictions/none").status_code == 404


def test_put_is_answered_once_however_often_it_is_sent(served: Predictor, expected: dict[str, str]) -> None:
    loaded = served.app.state.shelf.versions()[0]
    before = loaded.engine.call(lambda: 0).result(10)
    first = served.http.put("/predictions/once-1", json={"input": GREEDY})
    again = served.http.put("/predictions/once-1", json={"input": GREEDY})
    assert before == 0 and first.status_code == again.status_code == 200 and first.json() == again.json()
    assert first.json()["id"] == "once-1" and text_of(first.json()) == expected[served.put("a")]


def test_put_of_what_is_under_way_is_202_or_joins_its_stream(served: Predictor) -> None:
    assert served.http.put("/predictions/join-1", json={"input": LONG}, headers=ASYNC).status_code == 202
    assert served.http.put("/predictions/join-1", json={"input": LONG}).status_code == 202
    with served.http.stream("PUT", "/predictions/join-1", json={"input": LONG}, headers=SSE) as response:
        said = list(events(response))
    assert [name for name, _ in said] == ["start", *["output"] * (len(said) - 2), "completed"]
    assert [data["chunk"] for _, data in said[1:-1]] == said[-1][1]["output"] == ended(served, "join-1")["output"]


def test_an_id_with_another_input_is_409_and_one_that_is_not_the_address_422(served: Predictor) -> None:
    assert served.http.put("/predictions/taken", json={"input": GREEDY}).status_code == 200
    for method, path, body in (("PUT", "/predictions/taken", {"input": LONG}),
                               ("POST", "/predictions", {"id": "taken", "input": GREEDY})):
        answer = served.http.request(method, path, json=body)
        assert answer.status_code == 409 and answer.json()["status"] == "failed" and "taken" in answer.json()["error"]
    for other in ({"version": "0" * 64}, {"model": "acme/other"}):
        answer = served.http.put("/predictions/taken", json={"input": GREEDY, **other})
        assert answer.status_code == 409, "the same prompt to another model is another prediction"
    answer = served.http.put("/predictions/one", json={"id": "other", "input": GREEDY})
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body", "id"]


@pytest.mark.parametrize(("body", "loc"), [
    ({"input": {"prompt": "x", "temperature": 9}}, ["body", "input", "temperature"]),
    ({"input": {}}, ["body", "input", "prompt"]), ({"input": {"prompt": "x", "zzz": 1}}, ["body", "input", "zzz"]),
    ({"id": "a b", "input": {"prompt": "x"}}, ["body", "id"]),
    ({"input": {"prompt": "w " * 600}}, ["body", "input", "prompt"]),
    ({"input": {"prompt": "x"}, "webhook": "https://x"}, ["body", "webhook"])])
def test_a_wrong_input_is_422_with_its_place(served: Predictor, body: dict[str, Any], loc: list[str]) -> None:
    answer = served.http.post("/predictions", json=body)
    [wrong] = answer.json()["detail"]
    assert answer.status_code == 422 and wrong["loc"] == loc and wrong["msg"] and wrong["type"]


def test_cancel_ends_a_prediction_once(served: Predictor) -> None:
    served.http.put("/predictions/stop-1", json={"input": LONG}, headers=ASYNC)
    assert (answer := served.http.post("/predictions/stop-1/cancel")).status_code == 200 and answer.json() == {}
    found = ended(served, "stop-1")
    assert found["status"] == "canceled" and found["metrics"]["output_token_count"] < 300
    for identity in ("stop-1", "none"):
        assert (answer := served.http.post(f"/predictions/{identity}/cancel")).status_code == 404
        assert answer.json() == {}


def test_a_stream_always_ends_in_completed(served: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(**given: Any) -> None:
        raise RuntimeError("no memory")

    loaded = served.app.state.shelf.versions()[0]
    with monkeypatch.context() as patch:
        patch.setattr(loaded.engine.model, "forward", overflow)
        with served.http.stream("POST", "/predictions", json={"input": GREEDY}, headers=SSE) as response:
            said = list(events(response))
    assert [name for name, _ in said] == ["start", "completed"]
    assert said[-1][1]["status"] == "failed" and said[-1][1]["error"]


def test_what_one_client_leaves_goes_on_for_another(served: Predictor) -> None:
    with served.http.stream("PUT", "/predictions/two-1", json={"input": LONG}, headers=SSE) as one:
        said = events(one)
        next(said)
        with httpx.Client(base_url=served.url, trust_env=False, timeout=60) as client, client.stream(
                "PUT", "/predictions/two-1", json={"input": LONG}, headers=SSE) as other:
            next(iter(events(other)))
        rest = list(said)
    assert rest[-1][0] == "completed" and rest[-1][1]["status"] == "succeeded"


def test_a_full_queue_is_busy_and_503_with_retry_after(served: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "MAX_WAITING", 0)
    monkeypatch.setattr("deployments.predictor.versions.MAX_WAITING", 0)
    answer = served.ask()
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
    assert served.http.get("/health-check").json()["status"] == "BUSY"


def test_ended_predictions_are_few_and_hold_no_version(
    served: Predictor, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deployments.predictor.live.KEPT", 3)
    for number in range(5):
        served.http.put(f"/predictions/kept-{number}", json={"input": {**GREEDY, "max_new_tokens": 1}})
    lives: LivePredictions = served.app.state.lives
    assert [served.http.get(f"/predictions/kept-{n}").status_code for n in range(5)] == [404, 404, 200, 200, 200]
    assert all(live._prediction is None for live, _ in lives._ended.values()) and not lives._live


def test_two_requests_with_one_id_make_one_prediction() -> None:
    async def both() -> int:
        lives, made = LivePredictions(), list[int]()

        async def one() -> None:
            async with lives.lock("x"):
                if not made:
                    await asyncio.sleep(0)
                    made.append(1)

        await asyncio.gather(one(), one(), one())
        return len(made)

    assert asyncio.run(both()) == 1
