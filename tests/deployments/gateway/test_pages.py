"""deployments/gateway/pages: what a browser without script gets, and who gets it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deployments.gateway.keys import create_key
from deployments.gateway.pages import new
from deployments.gateway.pages.models import changes
from deployments.gateway.tables import ApiKey, Delivery, Training
from tests.support.gateway import LINEAGE, ROWS, Running, browser

HOSTILE = "<script>alert(1)</script>"
PATHS = ("/", "/new", "/models", "/files", "/keys", "/webhooks")


@pytest.fixture
def visit(gateway: Running) -> Iterator[httpx.Client]:
    """A browser that is signed in with the stack's own key."""
    with browser(gateway, "the-key") as found:
        yield found


def started(gateway: Running, **inputs: Any) -> str:
    body = {"destination": "acme/notes", "input": {"train_data": "https://data.example/x", **inputs}}
    return str(gateway.http.post(gateway.base(), json=body).json()["id"])


def test_nobody_sees_a_page_without_a_key(gateway: Running) -> None:
    identity = started(gateway)
    for path in (*PATHS, f"/trainings/{identity}", "/models/acme/notes", f"/trainings/{identity}/live"):
        answer = httpx.get(gateway.url + path, headers={"Accept": "text/html"}, trust_env=False)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/sign-in?next={path}")
    for path in ("/new", "/keys", f"/trainings/{identity}/cancel", "/webhooks/rotate"):
        assert httpx.post(gateway.url + path, trust_env=False).headers["location"].startswith("/sign-in")
    wrong = httpx.post(f"{gateway.url}/sign-in", data={"key": "an_wrong"}, trust_env=False)
    assert wrong.status_code == 401 and "not known here" in wrong.text


def test_the_cookie_holds_no_key_and_ends_with_it(gateway: Running) -> None:
    key = create_key(gateway.here.database, "acme", ["read", "train"])
    with browser(gateway, key) as tenant:
        (cookie,) = tenant.cookies.jar
        assert key not in str(cookie.value) and cookie.has_nonstandard_attr("HttpOnly")
        assert "samesite=strict" in tenant.post("/sign-in", data={"key": key}).headers["set-cookie"].lower()
        assert tenant.get("/files").status_code == 200
        tenant.cookies.set(str(cookie.name), str(cookie.value).replace(".", ".9", 1), domain=cookie.domain)
        assert tenant.get("/files").status_code == 303
    with browser(gateway, key) as tenant:
        with gateway.here.database.session() as session:
            session.query(ApiKey).filter_by(owner="acme").update({"revoked_at": 1.0})
        assert tenant.get("/files").status_code == 303


@pytest.mark.parametrize("path", PATHS)
def test_a_page_runs_our_own_script_alone_and_loads_nothing_from_elsewhere(visit: httpx.Client, path: str) -> None:
    answer = visit.get(path)
    assert answer.status_code == 200, answer.text
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert not re.search(r" on[a-z]+=|style=|<script>|src=.https?:", answer.text)
    for file in re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.text):
        assert visit.get(file).status_code == 200


def test_what_users_name_is_text_and_never_markup(gateway: Running, visit: httpx.Client) -> None:
    identity = started(gateway, validation_prompt=HOSTILE)
    made = gateway.http.post("/v1/models", json={
        "owner": "acme", "name": "hostile", "visibility": "private", "description": HOSTILE})
    assert made.status_code == 201
    bad = gateway.upload(f'{{"prompt": "{HOSTILE}", "{HOSTILE}": 1}}\n', name="x.jsonl")
    with gateway.here.database.session() as session:
        session.get_one(Training, identity).error = HOSTILE
    for path in ("/", f"/trainings/{identity}", "/models", "/models/acme/hostile", f"/files/{bad['id']}"):
        found = visit.get(path)
        assert found.status_code == 200 and HOSTILE not in found.text, path
    assert html.escape(HOSTILE) in visit.get(f"/trainings/{identity}").text
    assert HOSTILE not in visit.post("/new", data={"destination": HOSTILE, "base": HOSTILE}).text


def test_a_foreign_training_is_the_same_404_as_an_unknown_one(gateway: Running) -> None:
    identity = started(gateway)
    with browser(gateway, create_key(gateway.here.database, "other", ["read", "train"])) as stranger:
        foreign, unknown = stranger.get(f"/trainings/{identity}"), stranger.get(f"/trainings/{'a' * 26}")
        assert foreign.status_code == 404 and foreign.text == unknown.text
        assert stranger.post(f"/trainings/{identity}/cancel").status_code == 404
        assert stranger.get("/keys").status_code == 403 and identity not in stranger.get("/").text


def test_a_training_is_started_once_from_the_form_and_its_page_leads_on(gateway: Running, visit: httpx.Client) -> None:
    sent = visit.post("/files", files={"content": ("d.jsonl", ROWS)})
    assert sent.status_code == 303 and sent.headers["location"].startswith("/new?file=")
    file = sent.headers["location"].partition("=")[2]
    assert f'<option value="{file}" selected>' in visit.get(sent.headers["location"]).text
    base = gateway.here.catalogue.bases[0]
    form = {"base": f"{base.model}:{base.version}", "train_data": file, "destination": "acme/from-a-form",
            "max_steps": "7", "num_train_epochs": "1", "once": "a", "action": "start"}
    first, again = visit.post("/new", data=form), visit.post("/new", data=form)
    assert first.status_code == 303 and first.headers["location"] == again.headers["location"]
    with gateway.here.database.session() as session:
        row = session.get_one(Training, first.headers["location"].rpartition("/")[2])
    assert row.spec["max_steps"] == 7 and set(row.input) == {"train_data", "max_steps"}
    page = visit.get(first.headers["location"]).text
    assert "waiting" in page and "in the queue" in page and f"ftjob-{row.id}" in page
    assert 'value="7"' in visit.get(f"/new?like={row.id}").text
    for action, word in (("pause", "paused"), ("resume", "waiting"), ("cancel", "canceled")):
        assert visit.post(f"/trainings/{row.id}/{action}").status_code == 303
        assert word in visit.get(f"/trainings/{row.id}").text


def test_a_training_is_finished_from_its_first_step_on(gateway: Running, visit: httpx.Client) -> None:
    identity, run = started(gateway), "11111111-2222-4333-8444-555555555555"
    folder = gateway.settings.home_path / "trainings" / ("f" * 26)

    def refused(why: str) -> None:
        answer = gateway.http.post(f"/v1/trainings/{identity}/finish")
        assert answer.status_code == 422 and why in answer.json()["detail"]

    def tell(event: str, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "events.jsonl").open("a") as file:
            file.write(json.dumps({"event": event, "step": step, "total": 9, "time": 1.0, "loss": 2.0, "eta_s": 1.0,
                                   "tokens_per_s": 1.0}) + "\n")

    refused("The training is starting; only one that is at its steps can be finished.")
    with gateway.here.database.session() as session:
        row = session.get_one(Training, identity)
        row.status, row.flow_run_id, row.content_id = "processing", run, folder.name
    tell("start", 0)
    refused("has not done its first step")
    tell("step", 1)
    assert "Finish now" in visit.get(f"/trainings/{identity}").text
    assert visit.post(f"/trainings/{identity}/finish").status_code == 303
    page = visit.get(f"/trainings/{identity}").text
    assert "It finishes within seconds" in page and "Finish now" not in page
    assert gateway.http.post(f"/v1/trainings/{identity}/finish").json()["status"] == "processing"
    assert gateway.here.store.read(f"runs/{run}.finish") == "asked"
    tell("step", 9)
    with gateway.here.database.session() as session:
        session.get_one(Training, identity).finish_requested = False
    refused("done its last step already")
    assert gateway.http.post(f"/v1/trainings/{identity}/pause").status_code == 200
    refused("The training is pausing")


def test_the_same_again_has_the_same_files_and_says_what_it_cannot_show(
    gateway: Running, visit: httpx.Client, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(new, "SHOWN_FILES", 1)
    rows, held_out = gateway.upload(), gateway.upload(ROWS + ROWS)
    gateway.upload("".join(f"{json.dumps({'text': str(number)})}\n" for number in range(30)))
    identity = started(gateway, train_data=rows["urls"]["get"], validation_data=held_out["urls"]["get"])
    said = visit.get(f"/new?like={identity}").text
    for name, file in (("train_data", rows), ("validation_data", held_out)):
        field = said.partition(f'name="{name}"')[2].partition("</select>")[0]
        assert f'<option value="{file["id"]}" selected>' in field
    assert 'role="alert"' not in said
    elsewhere = visit.get(f"/new?like={started(gateway)}").text
    assert "train_data of that training is https://data.example/x, which this form cannot choose" in elsewhere
    visit.post(f"/files/{held_out['id']}/delete")
    assert "The file of validation_data is not here any more." in visit.get(f"/new?like={identity}").text


def test_a_trainings_page_names_what_is_not_at_its_default(gateway: Running, visit: httpx.Client) -> None:
    said = visit.get(f"/trainings/{started(gateway, max_steps=7, seed=42, validation_prompt='')}").text
    assert "<th>max_steps</th>" in said and "<th>seed</th>" not in said and "<th>validation_prompt</th>" not in said


def test_a_wrong_form_comes_back_with_its_values_and_a_sentence(gateway: Running, visit: httpx.Client) -> None:
    base = gateway.here.catalogue.bases[0]
    form = {"base": f"{base.model}:{base.version}", "train_data": gateway.upload()["id"],
            "destination": "acme/notes", "learning_rate": "fast", "once": "b", "action": "start"}
    answer = visit.post("/new", data=form)
    assert answer.status_code == 422 and "learning_rate" in answer.text and 'value="fast"' in answer.text
    assert "Choose a file" in visit.post("/new", data={**form, "train_data": ""}).text


def test_bad_rows_are_shown_each_kind_with_its_line(visit: httpx.Client) -> None:
    rows = '{"prompt": 3}\n{"prompt": "a", "completion": "b"}\nx\n'
    sent = visit.post("/files", files={"content": ("bad.jsonl", rows)})
    page = visit.get(sent.headers["location"]).text
    assert "line 1" in page and "line 3" in page and "Nothing was started" in page


def test_a_key_is_made_shown_once_and_revoked(gateway: Running, visit: httpx.Client) -> None:
    made = visit.post("/keys", data={"owner": "shop", "name": "till", "read": "1"})
    key = re.search(r"an_[\w-]{40,}", made.text)
    assert key and key[0] not in visit.get("/keys").text
    with gateway.client(key[0]) as client:
        assert client.get("/v1/account").json()["username"] == "shop"
        with gateway.here.database.session() as session:
            identity = session.query(ApiKey).filter_by(owner="shop").one().id
        assert visit.post(f"/keys/{identity}/revoke").status_code == 303
        assert client.get("/v1/account").status_code == 401
    assert "owner is" in visit.post("/keys", data={"owner": "Not Good"}).text


def test_a_delivery_is_shown_and_sent_again(gateway: Running, visit: httpx.Client) -> None:
    with gateway.here.database.session() as session:
        session.add(Delivery(id="msg_a", owner="acme", subject="a" * 26, event="completed", url="https://x.example/h",
                             body=b'{"id":"<b>"}', due=0.0, tries=3, answer="not delivered (HTTP 500)",
                             created_at=1.0, done_at=2.0))
    page = visit.get("/webhooks").text
    assert "not delivered (HTTP 500)" in page and "&lt;b&gt;" in page
    assert visit.post("/webhooks/msg_a/redeliver").status_code == 303
    with gateway.here.database.session() as session:
        assert session.get_one(Delivery, "msg_a").done_at is None
    visit.post("/webhooks/rotate")
    assert visit.get("/webhooks").text.count("whsec_") == 2


def test_a_form_of_another_origin_is_refused(visit: httpx.Client) -> None:
    answer = visit.post("/webhooks/rotate", headers={"Origin": "https://attack.example"})
    assert answer.status_code == 403


def test_programs_get_the_addresses_at_the_root(gateway: Running) -> None:
    assert httpx.get(gateway.url, trust_env=False).json()["openai"] == "/openai/v1"


def test_a_finished_trainings_page_shows_its_scores_beside_the_base(gateway: Running, visit: httpx.Client) -> None:
    identity, version = started(gateway), "cd" * 32
    with gateway.here.database.session() as session:
        row = session.get_one(Training, identity)
        row.status, row.output_version, row.completed_at = "succeeded", version, row.created_at + 60
    shown = visit.get(f"/trainings/{identity}")
    assert shown.status_code == 200 and "Scores on held-out rows" not in shown.text, "its files are not to be had"
    gateway.here.store.write(f"versions/{version}/training.json", json.dumps(LINEAGE))
    text = html.unescape(visit.get(f"/trainings/{identity}").text)
    assert "Better than the base: ROUGE-L 0.512 against 0.301 (difference 0.211, 95 % interval 0.150 to 0.270" in text
    for said in ("ROUGE-L", "held-out loss", "0.512 (0.400 to 0.600)", "0.301 (0.200 to 0.400)", "1.2500", "2.5000"):
        assert said in text
    gateway.here.store.write(f"versions/{version}/training.json", '{"metrics": 3}')
    assert visit.get(f"/trainings/{identity}").status_code == 200


def test_versions_differ_in_what_was_given_and_in_no_default() -> None:
    before, after = {"lora_rank": 8, "seed": 1}, {"lora_rank": 16, "train_data": "x", "num_train_epochs": 1}
    assert changes(before, after) == [("lora_rank", 8, 16), ("seed", 1, 42)]
    assert changes({}, {"lora_rank": 8, "seed": 42}) == []
