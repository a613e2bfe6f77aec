"""deployments/predictor/metrics.py, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.deployments.predictor.conftest import PROMPT, Predictor, needs_stories, tokens_of

pytestmark = needs_stories


def values(served: Predictor) -> dict[str, float]:
    """Samples of acme/tales' version, and those without one, by their names."""
    answer = served.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    labels = {"model": "acme/tales", "version": served.put("a")[:12]}
    return {sample.name + sample.labels.get("finished_reason", ""): sample.value
            for family in text_string_to_metric_families(answer.text) for sample in family.samples
            if "le" not in sample.labels and (not sample.labels or labels.items() <= sample.labels.items())}


def test_requests_tokens_and_times_are_counted_by_version(served: Predictor) -> None:
    before = values(served)
    assert before["anneal_num_requests_waiting"] == before["anneal_num_requests_running"] == 0
    for _ in range(3):
        served.answer()
    served.http.post("/v1/completions", json={"model": "acme/tales", "prompt": PROMPT, "n": 2, "max_tokens": 1})
    now = values(served)

    def more(name: str) -> float:
        return now[name] - before.get(name, 0)

    assert more("anneal_requests_totallength") == 5 and more("anneal_generation_tokens_total") == 3 * 16 + 2
    assert more("anneal_prompt_tokens_total") == 5 * tokens_of(PROMPT)
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        assert more(f"anneal_{name}_seconds_count") == 5 and more(f"anneal_{name}_seconds_sum") >= 0
    assert more("anneal_inter_token_latency_seconds_count") == 3
    assert more("anneal_e2e_request_latency_seconds_sum") >= more("anneal_time_to_first_token_seconds_sum") > 0


def test_what_was_not_answered_is_not_counted(served: Predictor) -> None:
    before = values(served)
    assert served.ask({"prompt": "w " * 600}).status_code == 422
    assert served.ask(model="acme/none").status_code == 404
    assert {name: value for name, value in values(served).items() if "requests" in name} == {
        name: value for name, value in before.items() if "requests" in name}
