"""No page does or shows what its visitor's key may not: pytest tests/security/test_visitors.py"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from sqlalchemy import update

from deployments.gateway.keys import SCOPES, create_key
from deployments.gateway.pages.render import Page
from deployments.gateway.tables import ApiKey, Delivery, Training
from infra.settings import Settings
from tests.support.gateway import Running, browser, running

WITHOUT_KEY = {"/sign-in", "/sign-out", "/static/{name}"}
NEEDS = {"/new": "train", "/keys": "admin", "/keys/{identity}/revoke": "admin"}
"""Beyond read; what is no GET needs train where nothing stands here."""
CANARY = "canary-of-acme"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """It has what acme may see, and a predictor that answers with a model of acme."""

    class Predictor(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served = {"models": {f"acme/{CANARY}": {"number": 1, "version": CANARY}}}
            body = json.dumps(served).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Predictor)
    Thread(target=server.serve_forever, daemon=True).start()
    settings = Settings(home=tmp_path_factory.mktemp("home"), api_key="the-key", bases="",
                        prefect_url="http://127.0.0.1:9/api", mlflow_uri="http://127.0.0.1:9",
                        predictor_url=f"http://127.0.0.1:{server.server_port}")
    with running(settings, projecting=False) as found:
        yield found
    server.shutdown()
    server.server_close()


def pages(gateway: Running) -> list[tuple[str, str]]:
    """Method and path of each registered page."""
    routes = [route for one in gateway.app.routes for route in getattr(one, "original_router", gateway.app).routes]
    return sorted({(method, route.path) for route in routes if isinstance(route, Page)
                   for method in route.methods or () if route.path not in WITHOUT_KEY})


def needed(method: str, path: str) -> set[str]:
    """The scopes without which it refuses."""
    beyond = NEEDS.get(path, "" if method == "GET" else "train")
    return {"read", beyond} - {""}


@pytest.mark.slow
def test_each_page_asks_for_each_scope_that_it_needs(gateway: Running) -> None:
    found = pages(gateway)
    assert len(found) > 20
    for scope in (None, *SCOPES):
        key = create_key(gateway.here.database, "other", [one for one in SCOPES if one not in (scope, "admin")])
        with browser(gateway, key) as visitor:
            for method, path in found:
                answer = visitor.request(method, re.sub(r"{[^}]*}", "x", path))
                lacks = needed(method, path) & {scope, "admin"}
                assert (answer.status_code == 403) == bool(lacks), (scope, method, path, answer.status_code)
                if lacks:
                    assert "no scope" in answer.text


def test_a_key_without_read_sees_no_page(gateway: Running) -> None:
    with browser(gateway, create_key(gateway.here.database, "other", ["train", "predict"])) as visitor:
        for method, path in pages(gateway):
            answer = visitor.request(method, re.sub(r"{[^}]*}", "x", path))
            assert answer.status_code == 403 and "no scope read" in answer.text, (method, path)


def test_a_session_follows_its_key(gateway: Running) -> None:
    with browser(gateway, create_key(gateway.here.database, "loses", ["read", "train"])) as visitor:
        assert visitor.get("/new").status_code == 200
        with gateway.here.database.session() as session:
            session.execute(update(ApiKey).where(ApiKey.owner == "loses").values(scopes=["read"]))
        assert (visitor.get("/new").status_code, visitor.get("/files").status_code) == (403, 200)


def test_a_session_made_without_keys_ends_with_the_first_key(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, bases="", require_secret=False, prefect_url="http://127.0.0.1:9/api",
                        mlflow_uri="http://127.0.0.1:9")
    with running(settings, projecting=False) as open_one, browser(open_one, "") as visitor:
        assert visitor.get("/keys").status_code == 200
        create_key(open_one.here.database, "acme", ["read"])
        answer = visitor.get("/keys")
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=/keys")


@pytest.mark.parametrize("cookie", ["\u00e9.1.x", "own.\u00b2.x", "own." + "9" * 5000 + ".x", "own..", "..", "."])
def test_a_made_up_session_leads_to_the_sign_in(gateway: Running, cookie: str) -> None:
    with httpx.Client(base_url=gateway.url, trust_env=False) as client:
        answer = client.get("/files", headers=[(b"cookie", f"anneal_session={cookie}".encode("latin-1"))])
    assert answer.status_code == 303


@pytest.mark.slow
def test_no_page_shows_what_is_anothers(gateway: Running) -> None:
    version = "c" * 64
    inputs = {"train_data": f"https://data.example/{CANARY}", "validation_prompt": CANARY}
    gateway.upload(name=f"{CANARY}.jsonl")
    for name, visibility in (("open", "public"), (CANARY, "private")):
        made = gateway.http.post("/v1/models", json={"owner": "acme", "name": name, "visibility": visibility})
        assert made.status_code == 201, made.text
    mine = gateway.http.post(gateway.base(), json={"destination": "acme/open", "input": inputs}).json()["id"]
    with gateway.here.database.session() as session:
        row = session.get_one(Training, mine)
        row.owner, row.status, row.output_version, row.error = "acme", "succeeded", version, CANARY
        row.completed_at = time.time()
        session.add(Delivery(id=f"msg_{CANARY}", owner="acme", subject=mine, event="completed", due=0.0,
                             url=f"https://{CANARY}.example", body=CANARY.encode(), created_at=1.0,
                             tries=0, answer=CANARY))
    owner = create_key(gateway.here.database, "acme", ["read", "train"], CANARY)
    with browser(gateway, owner) as visitor:
        assert all(CANARY in visitor.get(path).text for path in ("/", "/models", "/models/acme/open", "/webhooks"))
    with browser(gateway, create_key(gateway.here.database, "other", ["read", "train"])) as stranger:
        ahead, seen = ["/", "/new", "/models", "/files", "/webhooks"], set()
        while ahead:
            path = ahead.pop()
            if path in seen:
                continue
            seen.add(path)
            answer = stranger.get(path)
            assert answer.status_code < 400, path
            assert CANARY not in answer.text and mine not in answer.text, path
            ahead += re.findall(r'(?:href|data-live)="(/[^"#]*)"', answer.text)
        assert "/models/acme/open" in seen
        page = stranger.get("/models/acme/open").text
        assert version in page and "/delete" not in page
        for path in (f"/trainings/{mine}", f"/trainings/{mine}/live", f"/trainings/{mine}/weights",
                     f"/new?like={mine}", f"/models/acme/{CANARY}"):
            assert stranger.get(path).status_code == 404, path
