"""deployments/gateway/seed.py, and clients that ask for what is seeded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from replicate.client import Client

from deployments.cli import main as cli
from deployments.gateway.seed import seed
from infra.errors import UserError
from infra.settings import Settings
from tests.conftest import wait_for
from tests.support.gateway import Running, running

HELLO, LIST = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa", "ab" * 32
GIVEN: dict[str, Any] = {
    "models": [{"owner": "replicate", "name": "hello-world", "visibility": "public", "description": "Says hello."}],
    "versions": [
        {"model": "replicate/hello-world", "id": LIST, "output": ["he", "llo"]},
        {"model": "replicate/hello-world", "id": HELLO, "output": "hello python",
         "openapi_schema": {"components": {"schemas": {"Output": {"type": "string"}}}}}],
    "trainings": [
        {"id": "t" * 26, "destination": "replicate/hello-world", "status": "processing"},
        {"id": "u" * 26, "destination": "replicate/hello-world", "status": "succeeded", "output_version": HELLO}],
    "predictions": [{"id": "p" * 26, "model": "replicate/hello-world", "version": HELLO, "status": "failed",
                     "error": "no"}]}


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway with these rows; nothing else is there."""
    settings = Settings(home=tmp_path_factory.mktemp("home"), api_key="the-key", bases="", gateway_fixtures=True,
                        prefect_url="http://127.0.0.1:9/api", mlflow_uri="http://127.0.0.1:9")
    file = settings.home_path / "seed.json"
    file.write_text(json.dumps(GIVEN))
    with running(settings, projecting=False) as found:
        counts = seed(found.here, file)
        assert counts == seed(found.here, file) == {"models": 1, "versions": 2, "trainings": 2, "predictions": 1}
        yield found


@pytest.fixture
def client(seeded: Running) -> Client:
    return Client(api_token="the-key", base_url=seeded.url)


def test_a_seeded_version_answers_with_its_output_whatever_the_inputs_are(client: Client) -> None:
    assert client.run(f"replicate/hello-world:{HELLO}", input={"text": "python"}) == "hello python"
    assert "".join(client.run(f"replicate/hello-world:{LIST}", input={"any": 1})) == "hello"
    pieces = [str(event) for event in client.stream(f"replicate/hello-world:{LIST}", input={})]
    assert "".join(pieces) == "hello"


def test_models_and_versions_have_their_ids(client: Client) -> None:
    model = client.models.get("replicate/hello-world")
    assert model.description == "Says hello." and model.latest_version is not None
    assert [one.id for one in model.versions.list()] == [HELLO, LIST]
    assert model.versions.get(LIST).id == LIST


def test_trainings_and_predictions_have_their_ids_and_states(client: Client) -> None:
    assert client.trainings.get("t" * 26).status == "processing"
    output = client.trainings.get("u" * 26).output
    assert output is not None and output["version"] == f"replicate/hello-world:{HELLO}"
    assert {one.id for one in client.trainings.list()} == {"t" * 26, "u" * 26}
    assert client.predictions.get("p" * 26).error == "no"
    training = client.trainings.get("t" * 26)
    training.cancel()
    assert training.status == "canceled"


def test_row_26_what_use_of_the_client_2_0_asks_for_is_there(seeded: Running) -> None:
    """It asks for the model, its versions and one of them under /v1/v1, polls, and joins what is to be concatenated."""
    get, path = seeded.http.get, "/v1/v1/models/replicate/hello-world"
    assert get(path).json()["latest_version"]["id"] == HELLO
    versions = get(f"{path}/versions").json()["results"]
    assert LIST in [one["id"] for one in versions]
    output = get(f"{path}/versions/{LIST}").json()["openapi_schema"]["components"]["schemas"]["Output"]
    assert output["x-cog-array-display"] == "concatenate"
    made = seeded.http.post("/v1/v1/predictions", json={"version": LIST, "input": {"prompt": "x"}}).json()
    wait_for(lambda: get(f"/v1/v1/predictions/{made['id']}").json()["status"] == "succeeded")
    assert "".join(get(f"/v1/v1/predictions/{made['id']}").json()["output"]) == "hello"


def test_without_the_setting_nothing_is_seeded(settings: Settings, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "seed.json").write_text(json.dumps(GIVEN))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANNEAL_HOME", str(tmp_path))
        assert cli.main(["gateway", "seed", str(tmp_path / "seed.json")]) == 2
        assert "ANNEAL_GATEWAY_FIXTURES" in capsys.readouterr().err
        assert cli.main(["gateway", "seed"]) == 2


@pytest.mark.parametrize(("given", "named"), [
    ([], "the top"), ({"model": []}, "the top"), ({"versions": [{"model": "a/b", "id": "1"}]}, r"versions\[0\]"),
    ({"trainings": [{"id": "x", "destination": "a/b", "status": "done"}]}, "status"), ({"models": [3]}, "missing")])
def test_a_wrong_file_is_named_and_nothing_of_it_is_seeded(
    seeded: Running, tmp_path: Path, given: Any, named: str,
) -> None:
    (tmp_path / "seed.json").write_text(json.dumps(given))
    with pytest.raises(UserError, match=named):
        seed(seeded.here, tmp_path / "seed.json")
