"""What clients send reaches Prefect only as values that TrainingSpec has checked."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.gateway.tables import Training
from tests.support.gateway import Running

KINDS: list[dict[str, Any]] = [
    {"__prefect_kind": "json", "value": "[1]"}, {"__prefect_kind": "jinja", "template": "{{ 7 * 7 }}"},
    {"__prefect_kind": "workspace_variable", "variable_name": "secret"}, {"__prefect_kind": "none", "value": 3}]
"""Prefect evaluates such objects wherever they stand in a run's parameters."""
FINE = {"train_data": "https://data.example/rows.jsonl"}


def ask(gateway: Running, given: Any, **more: Any) -> Any:
    return gateway.http.post(gateway.base(), json={"destination": "acme/notes", "input": given, **more})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["__prefect_kind"])
@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: [x], lambda x: {"a": {"b": [x]}}], ids=["bare", "list", "deep"])
def test_what_prefect_would_evaluate_is_refused_in_every_input(gateway: Running, kind: Any, wrap: Any) -> None:
    for name in ("train_data", "validation_data", "validation_prompt", "learning_rate", "seed", "deploy", "gate"):
        answer = ask(gateway, {**FINE, name: wrap(kind)})
        assert answer.status_code == 422 and name in answer.json()["detail"], answer.text
    assert ask(gateway, wrap(kind)).status_code == 422
    assert ask(gateway, {**FINE, "x": wrap(kind)}).status_code == 422
    assert ask(gateway, FINE, destination=wrap(kind)).status_code == 422


def test_a_text_that_looks_like_such_an_object_stays_a_text(gateway: Running) -> None:
    prompt = '{"__prefect_kind": "jinja", "template": "{{ 7 * 7 }}"}'
    made = ask(gateway, {**FINE, "validation_prompt": prompt}).json()
    with gateway.here.database.session() as session:
        assert session.get_one(Training, made["id"]).spec["validation_prompt"] == prompt


def test_base_model_and_destination_are_no_inputs(gateway: Running) -> None:
    for name in ("base_model", "destination"):
        assert ask(gateway, {**FINE, name: "/etc"}).status_code == 422


@pytest.mark.parametrize("address", ["/etc/passwd", "s3://bucket/x", "store://datasets/a/b", "csv:/etc/passwd", "."])
def test_a_tenants_key_reads_no_file_of_the_service(gateway: Running, address: str) -> None:
    from deployments.gateway.keys import create_key

    with gateway.client(create_key(gateway.here.database, "acme", ["read", "train"])) as tenant:
        answer = tenant.post(gateway_path(tenant), json={"destination": "acme/notes", "input": {"train_data": address}})
    assert answer.status_code == 422 and "your key may not read" in answer.json()["detail"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "https://10.0.0.1/x", "https://169.254.169.254/x", "ftp://a/b"])
def test_a_webhook_to_a_private_address_is_refused(gateway: Running, url: str) -> None:
    assert ask(gateway, FINE, webhook=url).status_code == 422
    assert ask(gateway, FINE, webhook_completed=url).status_code == 422


@pytest.mark.parametrize("body", [b"[" * 100_000, b"[]", b"{", b'{"a": NaN}', b"1" * 5000])
def test_a_json_bomb_is_one_sentence(gateway: Running, body: bytes) -> None:
    answer = gateway.http.post("/v1/models", content=body)
    assert answer.status_code in (400, 422) and set(answer.json()) == {"detail", "status"}


def test_bad_rows_are_told_with_their_line_before_anything_is_accepted(gateway: Running) -> None:
    made = gateway.upload('{"prompt": "a", "completion": "b"}\n{"prompt": 3}\n')
    answer = ask(gateway, {"train_data": made["urls"]["get"]})
    assert answer.status_code == 422 and "line 2" in answer.json()["detail"] and "line 2" in made["report"]["error"]


def test_a_file_over_the_limit_is_refused_and_nothing_is_kept(gateway: Running) -> None:
    here = gateway.here
    before = len(gateway.http.get("/v1/files").json()["results"])
    limited = here.settings.model_copy(update={"max_upload_bytes": 2_000_000})
    here.settings = limited
    try:
        answer = gateway.http.post("/v1/files", files={"content": ("big", b"x" * 4_000_000)})
    finally:
        here.settings = gateway.settings
    assert (answer.status_code, answer.json()["detail"]) == (413, "Files must be less than 2MB in size")
    assert len(gateway.http.get("/v1/files").json()["results"]) == before


def gateway_path(client: Any) -> str:
    found = client.get("/v1/models/anneal/demo-base/versions").json()["results"][0]["id"]
    return f"/v1/models/anneal/demo-base/versions/{found}/trainings"
