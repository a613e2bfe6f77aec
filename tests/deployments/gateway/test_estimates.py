"""deployments/gateway/estimates.py and places in the queue, without Prefect."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from deployments.gateway import estimates as module
from tests.conftest import wait_for
from tests.support.gateway import Running


def estimated(gateway: Running, train_data: str, **inputs: object) -> httpx.Response:
    body = {"destination": "acme/notes", "input": {"train_data": train_data, **inputs}}
    return gateway.http.post(f"{gateway.base()}/estimate", json=body, timeout=120)


@pytest.mark.slow
def test_time_price_and_memory_are_known_before_a_training_starts(gateway: Running) -> None:
    file = gateway.upload()["urls"]["get"]
    answer = estimated(gateway, file, max_steps=5)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["steps"] == 5 and found["memory_gib"] > 0 and found["device"]
    assert found["seconds"]["low"] <= found["seconds"]["likely"] <= found["seconds"]["high"]
    assert {"steps", "time", "price"} <= set(found["lines"])
    assert gateway.http.get("/v1/trainings").json()["results"] == []


def test_an_estimate_refuses_what_a_training_would(gateway: Running) -> None:
    file = gateway.upload()["urls"]["get"]
    assert "did you mean max_steps" in estimated(gateway, file, max_step=5).json()["detail"]
    bad = gateway.upload('{"prompt": 3}\n{"prompt": "a", "completion": "b"}\nx\n')
    assert len(bad["report"]["problems"]) == 2 and "line 1" in bad["report"]["problems"][0]
    assert "line 1" in estimated(gateway, bad["urls"]["get"]).json()["detail"]
    missing = gateway.http.post(f"{gateway.base()}/estimate", json={"destination": "acme/x", "input": {}})
    assert missing.status_code == 404


def test_an_estimate_does_not_wait_long_for_another(gateway: Running) -> None:
    file = gateway.upload()["urls"]["get"]
    with module._one_at_a_time:
        busy = estimated(gateway, file, max_steps=5)
    assert busy.status_code == 503 and busy.headers["retry-after"] == "5"
    assert "Another estimate is being made" in busy.json()["detail"]


@pytest.mark.slow
def test_estimates_that_wait_leave_threads_for_others(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gateway.upload()["urls"]["get"]
    monkeypatch.setattr(module, "WAIT_S", 5.0)
    with ThreadPoolExecutor(60) as pool, module._one_at_a_time:
        asked = [pool.submit(estimated, gateway, file) for _ in range(60)]
        wait_for(lambda: gateway.here.slow.statistics().tasks_waiting > 40)
        assert gateway.http.get("/v1/account").status_code == 200
        assert not all(one.done() for one in asked)
        monkeypatch.setattr(module, "WAIT_S", 0.0)
        assert {one.result().status_code for one in asked} == {503}


def test_who_waits_knows_his_place_and_for_what(gateway: Running) -> None:
    inputs = {"train_data": "https://data.example/x"}
    made = [gateway.http.post(gateway.base(), json={"destination": "acme/notes", "input": inputs}).json()
            for _ in range(2)]
    assert [one["queue"]["position"] for one in made] == [1, 2]
    gateway.http.post(f"/v1/trainings/{made[0]['id']}/cancel")
    second = gateway.http.get(f"/v1/trainings/{made[1]['id']}").json()
    assert second["queue"]["position"] == 1 and second["queue"]["waits_for"]
    assert second["logs"].startswith("Place 1 in the queue.")
    assert gateway.http.get(f"/v1/trainings/{made[0]['id']}").json()["queue"] is None
