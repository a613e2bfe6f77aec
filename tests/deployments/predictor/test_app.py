"""pytest tests/deployments/predictor/test_app.py"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.predictor.__main__ import check_exposure, main
from deployments.predictor.engine import Row
from infra.errors import UserError
from tests.deployments.predictor.conftest import (
    GREEDY,
    PROMPT,
    SSE,
    Predictor,
    needs_stories,
    running,
    settings_of,
    text_of,
    tokens_of,
)

UNKNOWN = "0" * 64
pytestmark = needs_stories


# ---- answers ---------------------------------------------------------------------------------

def test_served_answer_is_the_one_evaluation_scores(served: Predictor, expected: dict[str, str]) -> None:
    found, a = served.answer(), served.put("a")

    assert text_of(found) == expected[a]
    assert (found["model"], found["version"], found["input"]) == ("acme/tales", a, GREEDY)
    assert len(found["output"]) > 1 and found["error"] is None and found["completed_at"] >= found["started_at"]
    metrics = found["metrics"]
    assert metrics["output_token_count"] == 16 and metrics["input_token_count"] == tokens_of(PROMPT)
    assert metrics["predict_time"] > 0 and metrics["time_to_first_token"] > 0 and metrics["tokens_per_second"] > 0


def test_stream_has_start_outputs_and_the_finished_object(served: Predictor, expected: dict[str, str]) -> None:
    with served.http.stream("POST", "/predictions", json={"input": GREEDY}, headers=SSE) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]

    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert names == ["start", *["output"] * (len(names) - 2), "completed"]
    assert data[0]["status"] == "processing" and data[-1]["status"] == "succeeded"
    assert [event["index"] for event in data[1:-1]] == list(range(len(data) - 2))
    assert [event["chunk"] for event in data[1:-1]] == data[-1]["output"]
    assert text_of(data[-1]) == expected[served.put("a")]


def test_same_seed_same_answer_also_among_others(served: Predictor) -> None:
    given = {"prompt": PROMPT, "temperature": 1.0, "max_new_tokens": 16, "seed": 7}
    alone = text_of(served.answer(given))

    with ThreadPoolExecutor(8) as pool:
        mixed = list(pool.map(lambda seed: text_of(served.answer({**given, "seed": seed})), [7, 1, 2, 7, 3, 4, 7, 5]))

    assert [mixed[i] for i in (0, 3, 6)] == [alone] * 3
    assert len(set(mixed)) == 6


def test_fresh_seed_is_logged_and_gives_the_answer_again(served: Predictor) -> None:
    first = served.answer({"prompt": PROMPT, "max_new_tokens": 16})
    seed = int(first["logs"].split("seed: ")[1].split()[0])
    assert served.answer({"prompt": PROMPT, "max_new_tokens": 16, "seed": seed})["output"] == first["output"]


@pytest.mark.parametrize("as_list", [True, False])
def test_stop_sequence_ends_the_answer_and_is_not_shown(
    served: Predictor, expected: dict[str, str], as_list: bool,
) -> None:
    whole = expected[served.put("a")]
    stop = whole[9:14]
    assert "," not in stop
    found = served.answer({**GREEDY, "stop_sequences": ["@@", stop] if as_list else f"@@,{stop}"})
    assert text_of(found) == whole[: whole.index(stop)]
    assert "finished: stop" in found["logs"]


def test_prompt_template_is_filled_in_one_pass(served: Predictor) -> None:
    whole = served.answer({**GREEDY, "prompt": "The {system_prompt} cat {x}"})
    parts = served.answer({**GREEDY, "prompt": "{system_prompt}", "system_prompt": "{x}",
                           "prompt_template": "The {prompt} cat {system_prompt}"})
    unused = served.answer({**GREEDY, "system_prompt": "unused"})
    assert whole["output"] == parts["output"] and "not used" not in parts["logs"]
    assert "system_prompt: not used" in unused["logs"]


def test_answer_is_cut_to_what_the_context_leaves(served: Predictor) -> None:
    prompt = "a" * 500
    left = 512 - tokens_of(prompt)
    found = served.answer({**GREEDY, "prompt": prompt, "max_new_tokens": 500})
    assert 0 < left < 500 and found["metrics"]["output_token_count"] <= left
    assert f"max_new_tokens: {left} instead of 500" in found["logs"]


# ---- bad requests ----------------------------------------------------------------------------

@pytest.mark.parametrize(("body", "said"), [
    ({"input": {"prompt": "x", "temprature": 1}}, "input.temprature is not a known field"),
    ({"input": {"prompt": "x"}, "stream": True}, "stream is not a known field"),
    ({"input": {}}, "input.prompt is missing"),
    ({}, "input is missing"),
    ({"input": {"prompt": 3}}, "input.prompt is 3"),
    ({"input": {"prompt": "x", "max_new_tokens": 0}}, "input.max_new_tokens is 0"),
    ({"input": {"prompt": "x", "max_new_tokens": "9"}}, "input.max_new_tokens is"),
    ({"input": {"prompt": "x", "temperature": 5.1}}, "input.temperature is 5.1"),
    ({"input": {"prompt": "x", "temperature": -0.1}}, "input.temperature is -0.1"),
    ({"input": {"prompt": "x", "top_p": 1.01}}, "input.top_p is 1.01"),
    ({"input": {"prompt": "x", "top_k": -2}}, "input.top_k is -2"),
    ({"input": {"prompt": "x", "seed": -1}}, "input.seed is -1"),
    ({"input": {"prompt": "x", "stop_sequences": ["s"] * 17}}, "input.stop_sequences is"),
    ({"input": {"prompt": "x", "prompt_template": "no place"}}, "does not contain {prompt}"),
    ({"input": {"prompt": "\ud800"}}, "input.prompt is"),
    ({"input": {"prompt": "x " * 600}}, "at most 511 tokens"),
    ({"version": "short", "input": {"prompt": "x"}}, "version is"),
    ([1], "the request's body is [1]"),
])
def test_bad_request_names_the_field(served: Predictor, body: Any, said: str) -> None:
    response = served.http.post(
        "/predictions", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    [wrong] = response.json()["detail"]
    assert list(response.json()) == ["detail"] and said in wrong["msg"] and wrong["loc"][0] == "body"


@pytest.mark.parametrize("body", ["{", "NaN", '{"input": {"prompt": "x", "temperature": NaN}}', "\xff"])
def test_body_that_is_not_json_is_refused(served: Predictor, body: str) -> None:
    response = served.http.post(
        "/predictions", content=body.encode("latin-1"), headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422) and isinstance(response.json()["detail"][0]["msg"], str)


def test_too_long_prompt_tells_both_numbers(served: Predictor) -> None:
    detail = served.ask({"prompt": "word " * 600}).json()["detail"][0]["msg"]
    assert f"{tokens_of('word ' * 600)} tokens" in detail and "512" in detail


def test_body_above_one_mebibyte_is_refused(served: Predictor) -> None:
    shell = len(json.dumps({"input": {"prompt": ""}}).encode())
    headers = {"Content-Type": "application/json"}
    for size, status in (((1 << 20) - shell, 422), ((1 << 20) - shell + 1, 413)):
        body = json.dumps({"input": {"prompt": "a" * size}})
        assert served.http.post("/predictions", content=body, headers=headers).status_code == status


@pytest.mark.parametrize(("which", "status"), [
    ({"version": UNKNOWN}, 404), ({"model": "acme/none"}, 404), ({"model": "acme/tales", "version": UNKNOWN}, 404),
    ({"version": "a"}, 200), ({"model": "acme/tales"}, 200), ({"model": "acme/tales", "version": "a"}, 200), ({}, 200)])
def test_version_and_model_must_be_served(served: Predictor, which: dict[str, str], status: int) -> None:
    named: dict[str, Any] = {key: served.put("a") if value == "a" else value for key, value in which.items()}
    assert served.ask(**named).status_code == status


# ---- keys, health, faults -- -------------------------------------------------------------------

def test_key_is_asked_for_everywhere_but_health(tmp_path: Path, versions: Path) -> None:
    with running(tmp_path, versions, api_key="secret-key") as predictor:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret-key"},
                      {"Authorization": "secret-key"}):
            for method, path in (("GET", "/models"), ("POST", "/predictions"), ("PUT", "/deployments/a/b"),
                                 ("DELETE", "/deployments/a/b"), ("GET", "/openapi.json"), ("GET", "/none")):
                response = predictor.http.request(method, path, headers=given)
                assert response.status_code == 401 and "Bearer" in response.json()["detail"]
        for scheme in ("Bearer", "Token", "bearer"):
            headers = {"Authorization": f"{scheme} secret-key"}
            assert predictor.http.get("/models", headers=headers).status_code == 200
        assert "secret-key" not in predictor.http.get("/health/ready").text
        assert predictor.http.get("/health/live").status_code == 200


def test_not_ready_until_restored(tmp_path: Path, versions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(settings_of(tmp_path), versions)
    go, restore = threading.Event(), predictor.app.state.shelf.restore
    monkeypatch.setattr(predictor.app.state.shelf, "restore", lambda: (go.wait(30), restore()))
    predictor.thread.start()
    try:
        assert predictor.http.get("/health/live").status_code == 200
        assert predictor.http.get("/health/ready").status_code == 503
        assert predictor.ask().status_code == 503 and predictor.ask().headers["retry-after"]
        go.set()
        deadline = time.monotonic() + 10
        while predictor.http.get("/health/ready").status_code != 200:
            assert time.monotonic() < deadline
    finally:
        go.set()
        predictor.stop()


def test_model_is_changed_between_two_steps_not_after_the_batch(served: Predictor) -> None:
    body = {"input": {**GREEDY, "max_new_tokens": 500}}
    loaded = served.app.state.shelf.versions()[0]
    with served.http.stream("POST", "/predictions", json=body, headers=SSE) as response:
        next(line for line in response.iter_lines() if "output" in line)
        assert loaded.engine.call(lambda: loaded.in_flight).result(10) == 1


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
def test_client_that_leaves_cancels_its_row(
    served: Predictor, accept: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = {"input": {"prompt": PROMPT, "max_new_tokens": 500, "temperature": 1.5}}
    loaded = served.app.state.shelf.versions()[0]
    rows, submit = list[Row](), loaded.engine.submit

    def noted(row: Row) -> None:
        rows.append(row)
        submit(row)

    monkeypatch.setattr(loaded.engine, "submit", noted)
    timeout = httpx.Timeout(20, read=20 if accept == "text/event-stream" else 0.5)
    asked = httpx.Client(trust_env=False, timeout=timeout, base_url=served.url)
    with contextlib.suppress(httpx.ReadTimeout), asked as client, client.stream(
            "POST", "/predictions", json=body, headers={"Accept": accept}) as response:
        next(line for line in response.iter_lines() if "output" in line)
    deadline = time.monotonic() + 20
    while loaded.in_flight:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [row.done and row.done.reason for row in rows] == ["cancelled"] and rows[0].tokens < 500


def test_failing_batch_fails_its_rows_and_the_engine_goes_on(
    served: Predictor, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = served.app.state.shelf.versions()[0].engine

    def overflow(**given: Any) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "forward", overflow)
        failed = served.ask().json()

    assert failed["status"] == "failed" and failed["output"] is None and "no memory" not in failed["error"]
    assert text_of(served.answer()) == expected[served.put("a")]


def test_nobody_listens_to_the_network_without_a_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "predictor.example"):
        with pytest.raises(UserError, match="ANNEAL_API_KEY"):
            check_exposure(host, "")
        check_exposure(host, "key")
    for host in ("127.0.0.1", "::1", "localhost"):
        check_exposure(host, "")
    monkeypatch.setenv("ANNEAL_HOST", "0.0.0.0")
    monkeypatch.setenv("ANNEAL_HOME", str(tmp_path))
    monkeypatch.setenv("ANNEAL_REQUIRE_SECRET", "false")  # else it asks for the home's secret
    monkeypatch.delenv("ANNEAL_API_KEY", raising=False)
    assert main() == 2 and "ANNEAL_API_KEY" in capsys.readouterr().err
