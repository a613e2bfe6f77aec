"""Every route without a key, with another tenant's key, and with hostile names."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from deployments.gateway.keys import create_key
from infra.settings import Settings
from tests.support.gateway import Running

OPEN = {"/", "/health/live", "/health/ready", "/openapi.json"}
WITHOUT_KEY = {("PUT", "/upload/"), ("GET", "/stream/")}
"""Their addresses are the secret."""
HOSTILE = ("..%2f..%2fetc%2fpasswd", "%00", "a" * 3000, "%F0%9F%92%A9", "'; DROP TABLE model; --", "{}", "%0d%0aX: y")


@pytest.fixture(scope="module")
def stranger(gateway: Running) -> Iterator[httpx.Client]:
    """Another tenant, who may do everything with what is his."""
    with gateway.client(create_key(gateway.here.database, "other", ["read", "train", "predict"])) as client:
        yield client


def routes(gateway: Running) -> list[tuple[str, str]]:
    """Methods and paths of all of them, as the schema has them."""
    paths = gateway.http.get("/openapi.json").json()["paths"]
    found = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert len(found) > 35
    return [(method, path) for method, path in found if path not in OPEN]


def test_no_route_answers_without_a_key(gateway: Running) -> None:
    for method, path in routes(gateway):
        if not any(method == one and part in path for one, part in WITHOUT_KEY):
            answer = httpx.request(method, gateway.url + re.sub(r"{[^}]*}", "x", path), trust_env=False)
            assert answer.status_code == 401, (method, path, answer.text)


def test_what_is_anothers_is_the_same_404_as_what_is_not_there(gateway: Running, stranger: httpx.Client) -> None:
    file = gateway.upload()["id"]
    inputs = {"train_data": "https://data.example/x"}
    training = gateway.http.post(gateway.base(), json={"destination": "acme/notes", "input": inputs}).json()["id"]
    mine = {
        "/v1/models/acme/notes": ("GET", "PATCH", "DELETE"), "/v1/models/acme/notes/versions": ("GET",),
        f"/v1/files/{file}": ("GET", "DELETE"), f"/v1/files/{file}/download": ("GET",),
        f"/v1/trainings/{training}": ("GET",), f"/v1/trainings/{training}/cancel": ("POST",),
        f"/v1/trainings/{training}/weights.zip": ("GET",), f"/v1/predictions/{training}": ("GET",),
        f"/openai/v1/files/file-{file}": ("GET", "DELETE"), "/openai/v1/models/acme/notes": ("GET",),
        f"/openai/v1/fine_tuning/jobs/ftjob-{training}": ("GET",),
        f"/openai/v1/fine_tuning/jobs/ftjob-{training}/events": ("GET",)}
    for path, methods in mine.items():
        for method in methods:
            answer = stranger.request(method, path, json={} if method in ("PATCH", "POST") else None)
            unknown = stranger.request(method, re.sub(r"(?<=[/-])(acme/notes|[a-z2-7]{26})", "b/c", path),
                                       json={} if method in ("PATCH", "POST") else None)
            assert (answer.status_code, answer.json()) == (unknown.status_code, unknown.json()), (method, path)
            assert answer.status_code == 404
    assert stranger.get("/v1/trainings").json()["results"] == stranger.get("/v1/files").json()["results"] == []
    assert gateway.http.get(f"/v1/trainings/{training}").json()["status"] == "starting"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_an_error_in_a_sentence(gateway: Running, stranger: httpx.Client, name: str) -> None:
    for method, path in routes(gateway):
        answer = stranger.request(method, re.sub(r"{[^}]*}", lambda _: name, path))
        assert answer.status_code < 500, (method, path, answer.text)
        assert "Traceback" not in answer.text and "X" not in answer.headers


def test_a_key_does_what_its_scopes_say_and_no_more(gateway: Running) -> None:
    with gateway.client(create_key(gateway.here.database, "acme", ["read"])) as reader:
        assert reader.get("/v1/models/acme/notes").status_code == 200
        answer = reader.post("/v1/models", json={"owner": "acme", "name": "x", "visibility": "private"})
    assert answer.status_code == 403 and "scope train" in answer.json()["detail"]


def test_a_count_of_retries_that_is_no_number_is_none(gateway: Running) -> None:
    body = {"destination": "acme/notes", "input": {"train_data": "https://data.example/x"}}
    for count in ("9" * 5000, "-1", "x"):
        answer = gateway.http.post(gateway.base(), json=body, headers={"x-stainless-retry-count": count})
        assert answer.status_code == 201, answer.text


@pytest.mark.parametrize("header", [{"Host": "attack.example"}, {"Origin": "https://attack.example"}])
def test_pages_and_names_of_others_are_refused(gateway: Running, header: dict[str, str]) -> None:
    assert gateway.http.get("/v1/account", headers=header).status_code == 403


def test_beyond_loopback_it_does_not_start_without_a_key() -> None:
    from deployments.gateway.app import check_exposure
    from infra.errors import UserError

    with pytest.raises(UserError, match="ANNEAL_API_KEY"):
        check_exposure(Settings(host="0.0.0.0", require_secret=False))
    check_exposure(Settings(host="127.0.0.1", require_secret=False))
