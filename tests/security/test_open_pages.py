"""A training's page: how long and how often it is followed, and the code that it gives to copy."""

from __future__ import annotations

import ast
import html
import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from deployments.gateway import limits
from deployments.gateway.intents import begun
from deployments.gateway.keys import create_key
from deployments.gateway.pages import training as training_pages
from deployments.gateway.tables import ApiKey, Training
from infra.settings import Settings
from tests.conftest import wait_for
from tests.support.gateway import Running, browser, running

TRAINING = "c" * 26


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """It has a training of acme."""
    settings = Settings(home=tmp_path_factory.mktemp("home"), api_key="the-key", bases="",
                        prefect_url="http://127.0.0.1:9/api", mlflow_uri="http://127.0.0.1:9")
    with running(settings, projecting=False) as found:
        with found.here.database.session() as session:
            session.add(training_row(owner="acme", input={}))
        yield found


def training_row(**values: Any) -> Training:
    return Training(**{
        **begun(), "id": TRAINING, "model": "m/n", "version": "0" * 64, "destination": "acme/open", "spec": {},
        "about": {}, "request_hash": "", "base_url": "", "idempotency_key": None, "source": "api", "webhook": "",
        "webhook_completed": "", "webhook_events": [], "status": "succeeded", "completed_at": 3.0, **values})


def test_a_page_that_stays_open_ends_with_its_key(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_pages, "OPEN", ("starting", "processing", "succeeded"))
    monkeypatch.setattr(training_pages, "LOOK_EVERY_S", 0.05)
    key = create_key(gateway.here.database, "acme", ["read"], name="open-page")
    with browser(gateway, key) as client, client.stream("GET", f"/trainings/{TRAINING}/live") as answer:
        pieces = answer.iter_raw()
        assert next(pieces).startswith(b"data: ")
        with gateway.here.database.session() as session:
            session.query(ApiKey).filter_by(name="open-page").update({"revoked_at": 1.0})
        assert b"event: done" not in b"".join(pieces)  # it ends, and the page signs in again


def test_an_owner_may_follow_so_many_trainings_and_closing_one_makes_room(
    gateway: Running, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training_pages, "OPEN", ("starting", "processing", "succeeded"))
    monkeypatch.setattr(training_pages, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(training_pages, "COMMENT_S", 0.05)
    monkeypatch.setattr(limits, "WATCHES", 1)
    path = f"/trainings/{TRAINING}/live"
    with browser(gateway, create_key(gateway.here.database, "acme", ["read"])) as client:
        with client.stream("GET", path) as first:
            pieces = first.iter_raw()  # closes the stream when it is forgotten
            assert next(pieces)
            refused = client.get(path)
            assert refused.status_code == 429 and "Close one of them" in refused.text
            assert refused.headers["retry-after"] == "10"
        other = create_key(gateway.here.database, "acme", ["read"])
        with browser(gateway, other) as again:
            def opens() -> bool:
                with again.stream("GET", path) as answer:
                    return answer.status_code == 200

            wait_for(opens, "the closed page still counts", 60)


def test_the_code_to_copy_says_what_was_asked_for(gateway: Running) -> None:
    asked = {"train_data": "https://data.example/it's", "validation_prompt": 'a "b" \\ $(touch x) `id` \n é & <i>'}
    with gateway.here.database.session() as session:
        session.add(training_row(id="f" * 26, owner="acme", input=asked))
    with browser(gateway, "the-key") as client:
        blocks = [html.unescape(one) for one in re.findall(r"<pre>(.*?)</pre>", client.get(
            f"/trainings/{'f' * 26}").text, re.DOTALL)]
    curl, replicate, openai = blocks[-3:]
    told = subprocess.run(["bash", "-c", "curl() { printf '%s\\0' \"$@\"; }\n" + curl], capture_output=True, text=True,
                          check=True, env={"REPLICATE_API_TOKEN": "t"}).stdout.split("\0")
    assert json.loads(told[told.index("-d") + 1])["input"] == asked
    assert ast.parse(replicate) and ast.parse(openai)
