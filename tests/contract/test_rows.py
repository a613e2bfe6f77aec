"""The acceptance list of Replicate's dialect, row by row, as far as it needs no training: pytest tests/contract

Prefect, MLflow and the predictor are away here: what is accepted and shown does not depend on them.
"""

from __future__ import annotations

import base64
import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from replicate.client import Client
from replicate.exceptions import ReplicateError

from deployments.gateway.keys import create_key
from tests.support.gateway import ROWS, Running

pytestmark = pytest.mark.slow
WRONG = {"title": "Unauthenticated", "detail": "You did not pass a valid authentication token", "status": 401}


@pytest.fixture
def client(alone: Running) -> Client:
    """The client 1.0.7."""
    return Client(api_token="the-key", base_url=alone.url)


def train(alone: Running, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    """A request for a training of the demo's base."""
    inputs = {"train_data": "https://data.example/rows.jsonl", **more.pop("input", {})}
    body = {"destination": "acme/notes", "input": inputs, **more}
    return alone.http.post(alone.base(), json=body, headers=headers or {})


def test_row_1_bearer_and_token_are_taken_and_a_wrong_key_gets_the_recorded_body(alone: Running) -> None:
    for scheme in ("Bearer", "Token"):
        found = httpx.get(f"{alone.url}/v1/account", headers={"Authorization": f"{scheme} the-key"}, trust_env=False)
        assert found.status_code == 200
    for header in ({"Authorization": "Bearer wrong"}, {"Authorization": "Bearer an_wrong"}, {}):
        found = httpx.get(f"{alone.url}/v1/account", headers=header, trust_env=False)
        assert (found.status_code, found.json()) == (401, WRONG)
        assert found.headers["content-type"] == "application/problem+json"


def test_row_2_a_model_is_made(client: Client) -> None:
    made = client.models.create("acme", "row-2", visibility="private", hardware="cpu")
    assert (made.owner, made.name, made.visibility, made.run_count) == ("acme", "row-2", "private", 0)
    assert made.latest_version is None and made.url.endswith("/acme/row-2")


def test_row_3_unknown_and_foreign_models_are_the_same_404(alone: Running) -> None:
    alone.model("other", "secret")
    key = create_key(alone.here.database, "acme", ["read", "train"])
    with alone.client(key) as tenant:
        assert tenant.get("/v1/models/acme/notes").status_code == 200
        foreign, unknown = tenant.get("/v1/models/other/secret"), tenant.get("/v1/models/other/none")
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.json() == unknown.json() == {
        "detail": "The requested resource could not be found.", "status": 404}


def test_row_4_hardware_and_account(client: Client) -> None:
    assert all(one.sku and one.name for one in client.hardware.list())
    account = client.accounts.current()
    assert (account.type, account.username) == ("user", "anneal")


def test_row_5_a_file_is_uploaded_by_1_x(client: Client, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(ROWS)
    made = client.files.create(tmp_path / "data.jsonl", metadata={"who": "me"})
    assert (made.name, made.size, made.metadata) == ("data.jsonl", len(ROWS), {"who": "me"})
    assert len(made.checksums["sha256"]) == 64 and made.etag and made.urls["get"].endswith(made.id)
    assert client.files.get(made.id).checksums == made.checksums
    assert made.id in [one.id for one in client.files.list()]


def test_row_6_metadata_as_a_file_part_as_javascript_sends_it(alone: Running) -> None:
    parts = {"content": ("a.jsonl", ROWS, "application/octet-stream"),
             "metadata": ("blob", json.dumps({"who": "js"}), "application/json")}
    assert alone.http.post("/v1/files", files=parts).json()["metadata"] == {"who": "js"}


def test_row_7_metadata_in_brackets_as_2_0_sends_it(alone: Running) -> None:
    fields = {"metadata[who]": "beta", "filename": "named.jsonl", "type": "application/jsonl"}
    made = alone.http.post("/v1/files", data=fields, files={"content": ("upload", ROWS)}).json()
    assert (made["metadata"], made["name"], made["content_type"]) == (
        {"who": "beta"}, "named.jsonl", "application/jsonl")


def test_row_8_rows_are_recognised_whatever_the_file_is_called(alone: Running) -> None:
    made = alone.upload(ROWS, "upload")
    assert made["report"]["rows"] == 20 and made["report"]["kind"] == "prompt"


def test_row_9_the_guides_upload_in_two_requests(alone: Running) -> None:
    two = alone.http.post("/v1/upload/data.jsonl").json()
    assert httpx.put(two["upload_url"], content=ROWS, trust_env=False).status_code == 200
    assert httpx.put(two["upload_url"], content=ROWS, trust_env=False).status_code == 404  # once
    assert train(alone, input={"train_data": two["serving_url"]}).status_code == 201


def test_row_10_own_files_and_data_uris_are_read_and_foreign_ones_404(alone: Running) -> None:
    made = alone.upload()
    assert train(alone, input={"train_data": made["urls"]["get"]}).status_code == 201
    inline = "data:application/jsonl;base64," + base64.b64encode(ROWS.encode()).decode()
    assert train(alone, input={"train_data": inline}).status_code == 201
    foreign = train(alone, input={"train_data": f"{alone.url}/v1/files/{'a' * 26}"})
    assert foreign.status_code == 404


def test_row_11_a_deleted_file_leaves_its_training_alone(alone: Running, client: Client) -> None:
    made = alone.upload()
    queued = train(alone, input={"train_data": made["urls"]["get"]}).json()
    assert client.files.delete(made["id"]) is True
    assert alone.http.get(made["urls"]["get"]).status_code == 404
    found = alone.http.get(f"/v1/trainings/{queued['id']}").json()
    assert found["status"] == "starting"
    with alone.here.database.session() as session:
        from deployments.gateway.tables import Training

        address = session.get_one(Training, queued["id"]).spec["train_data"]
    assert alone.here.store.find(address.removeprefix("store://").rsplit("/", 1)[0]) is not None


def test_row_12_a_training_is_accepted_within_5_s_while_prefect_is_away(client: Client) -> None:
    began = time.monotonic()
    version = client.models.get("anneal/demo-base").latest_version
    assert version is not None
    made = client.trainings.create(version=f"anneal/demo-base:{version.id}", destination="acme/notes",
                                   input={"train_data": "https://data.example/rows.jsonl"})
    assert time.monotonic() - began < 5
    assert re.fullmatch("[a-z2-7]{26}", made.id) and made.status == "starting"
    assert made.urls is not None and made.urls["cancel"] == f"{made.urls['get']}/cancel"


def test_row_13_a_missing_destination_gets_the_recorded_404(alone: Running) -> None:
    answer = train(alone, destination="acme/none")
    assert (answer.status_code, answer.json()) == (
        404, {"detail": "The specified training destination does not exist", "status": 404})


def test_row_14_an_unknown_or_mistyped_input_is_named_with_the_nearest_one(alone: Running) -> None:
    unknown = train(alone, input={"num_train_epoch": 3})
    assert unknown.status_code == 422 and "did you mean num_train_epochs?" in unknown.json()["detail"]
    mistyped = train(alone, input={"num_train_epochs": "three"})
    assert mistyped.status_code == 422 and "num_train_epochs" in mistyped.json()["detail"]


def test_row_15_a_version_that_was_left_out_is_a_plain_error(client: Client) -> None:
    with pytest.raises(ReplicateError, match="The version is missing"):
        client.trainings.create("anneal/demo-base", {"train_data": "https://data.example/x"}, "acme/notes")


def test_row_16_a_retry_is_the_same_training(alone: Running) -> None:
    first = train(alone, input={"seed": 16}, headers={"x-stainless-retry-count": "0"}).json()
    again = train(alone, input={"seed": 16}, headers={"x-stainless-retry-count": "1"})
    assert (again.status_code, again.json()["id"]) == (201, first["id"])
    assert train(alone, input={"seed": 16}).json()["id"] != first["id"]
    key = {"Idempotency-Key": "k-16"}
    assert train(alone, headers=key).json()["id"] == train(alone, headers=key).json()["id"]
    assert train(alone, headers=key, input={"seed": 17}).status_code == 422


def test_row_17_and_18_a_training_is_read_also_as_a_prediction(alone: Running) -> None:
    made = train(alone).json()
    found = alone.http.get(f"/v1/trainings/{made['id']}").json()
    assert {**found, "logs": "", "stale_since": ""} == {**made, "stale_since": ""}
    assert alone.http.get(f"/v1/predictions/{made['id']}").json()["id"] == made["id"]


def test_row_19_lists_are_stable_under_inserts(alone: Running, client: Client) -> None:
    from deployments.gateway import trainings

    made = [train(alone).json()["id"] for _ in range(5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "PAGE", 2)
        page = client.trainings.list()
        found = [one.id for one in page]
        train(alone)
        while page.next and len(found) < 5:
            page = client.trainings.list(page.next)
            found += [one.id for one in page]
    assert found[:5] == made[::-1] and page.previous


def test_row_20_a_cancel_is_terminal_at_once_and_again_the_same(alone: Running) -> None:
    made = train(alone).json()
    first = alone.http.post(f"/v1/trainings/{made['id']}/cancel")
    assert first.status_code == 200 and first.json()["status"] == "canceled" and first.json()["completed_at"]
    assert alone.http.post(f"/v1/trainings/{made['id']}/cancel").json() == first.json()


def test_row_24_the_signing_secret_has_one_underscore(client: Client) -> None:
    key = client.webhooks.default.secret().key
    assert key.startswith("whsec_") and key.count("_") == 1


def test_row_25_a_versions_schema_says_that_its_output_comes_in_pieces(client: Client) -> None:
    (version,) = client.models.get("anneal/demo-base").versions.list()
    output = version.openapi_schema["components"]["schemas"]["Output"]
    assert output["x-cog-array-type"] == "iterator" and output["x-cog-array-display"] == "concatenate"
    assert tuple(map(int, version.cog_version.split("."))) >= (0, 3, 9)


def test_row_31_too_many_requests_get_429_with_whole_seconds(alone: Running) -> None:
    from deployments.gateway import limits

    key = create_key(alone.here.database, "busy", ["read"])
    with pytest.MonkeyPatch.context() as patch, alone.client(key) as busy:
        patch.setitem(limits.A_MINUTE, "other", 3)
        answers = [busy.get("/v1/account") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[3].headers["retry-after"].isdigit() and "throttled" in answers[3].json()["detail"]


def test_row_32_the_doubled_prefix_is_the_same(alone: Running) -> None:
    assert alone.http.get("/v1/v1/account").json() == alone.http.get("/v1/account").json()


def test_row_33_no_aborted_and_no_null_address(alone: Running) -> None:
    for one in alone.http.get("/v1/trainings").json()["results"]:
        assert one["status"] in ("starting", "processing", "succeeded", "failed", "canceled")
        assert all(isinstance(url, str) for url in one["urls"].values())
