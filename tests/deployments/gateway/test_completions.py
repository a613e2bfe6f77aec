"""deployments/gateway/completions.py with the official client, before an upstream that speaks as the predictor does."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from deployments.gateway.keys import create_key
from infra.settings import Settings
from tests.conftest import wait_for
from tests.support.gateway import Running, running

CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
WHOLE = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [
    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "caf\u00e9"}}]}


class Upstream:
    """A server with the predictor's two routes; it keeps what it was sent."""

    def __init__(self) -> None:
        self.got: list[tuple[str, bytes, dict[str, str]]] = []
        self.left = threading.Event()
        app = FastAPI()
        app.add_api_route("/v1/{rest:path}", self._answer, methods=["POST"])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread.start()
        wait_for(lambda: self.server.started)

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        self.got.append((request.url.path, body, dict(request.headers)))
        asked = json.loads(body)
        if asked.get("user") == "full":
            return JSONResponse({"detail": "At capacity."}, 503, {"Retry-After": "7"})
        if asked.get("user") == "keyless":
            error = {"message": "key", "type": "authentication_error", "param": None, "code": "invalid_api_key"}
            return JSONResponse({"error": error}, 401)
        if asked.get("user") == "wrong":
            error = {"message": "no such", "type": "invalid_request_error", "param": "n", "code": None}
            return JSONResponse({"error": error}, 400)
        if asked.get("user") == "thinking":
            while not await request.is_disconnected():
                await asyncio.sleep(0.05)
            self.left.set()
        if asked.get("stream"):
            return StreamingResponse(self._stream(endless=asked.get("user") == "endless"), 200,
                                     media_type="text/event-stream")
        return JSONResponse(WHOLE)

    async def _stream(self, *, endless: bool) -> AsyncIterator[str]:
        try:
            for piece in ("ca", "f\u00e9"):
                delta = {**CHUNK, "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
                yield f"data: {json.dumps(delta)}\n\n"
            while endless:
                yield ": still there\n\n"
                await asyncio.sleep(0.05)
            yield "data: [DONE]\n\n"
        finally:
            self.left.set()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.listener.close()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    found = Upstream()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway before the upstream."""
    settings = Settings(home=tmp_path_factory.mktemp("home"), api_key="the-key", bases="", predictor_url=upstream.url,
                        prefect_url="http://127.0.0.1:9/api", mlflow_uri="http://127.0.0.1:9")
    with running(settings, projecting=False) as found:
        found.model()
        yield found


@pytest.fixture
def client(gateway: Running) -> openai.OpenAI:
    return openai.OpenAI(api_key="the-key", base_url=f"{gateway.url}/openai/v1", max_retries=0)


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(
        model="anneal/demo-base", messages=[{"role": "user", "content": "Tea?"}], **more)


def test_an_answer_comes_back_as_the_predictor_gave_it(client: openai.OpenAI, upstream: Upstream) -> None:
    assert ask(client, temperature=0).choices[0].message.content == "caf\u00e9"
    path, body, headers = upstream.got[-1]
    assert path == "/v1/chat/completions" and json.loads(body)["temperature"] == 0
    assert headers["authorization"] == "Bearer the-key"


def test_the_body_is_passed_on_byte_by_byte(gateway: Running, upstream: Upstream) -> None:
    body = b'{ "model":"anneal/demo-base",  "prompt":"caf\\u00e9", "x": 1.0 }'
    assert gateway.http.post("/openai/v1/completions", content=body).json() == WHOLE
    assert upstream.got[-1][:2] == ("/v1/completions", body)


def test_a_stream_comes_in_its_pieces(client: openai.OpenAI) -> None:
    assert [chunk.choices[0].delta.content for chunk in ask(client, stream=True)] == ["ca", "f\u00e9"]


def test_a_client_that_leaves_ends_the_predictors_answer(client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.left.clear()
    stream = ask(client, stream=True, user="endless")
    next(iter(stream))
    assert not upstream.left.is_set()
    stream.close()
    assert upstream.left.wait(10)


def test_a_client_that_leaves_a_whole_answer_ends_it_too(gateway: Running, upstream: Upstream) -> None:
    upstream.left.clear()
    with pytest.raises(httpx.ReadTimeout):
        gateway.http.post("/openai/v1/chat/completions", timeout=1, json={
            "model": "acme/notes", "messages": [], "user": "thinking"})
    assert upstream.left.wait(30), "the predictor still answers"


def test_errors_have_openais_shape_whoever_made_them(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="At capacity") as full:
        ask(client, user="full")
    assert full.value.response.headers["retry-after"] == "7" and full.value.type == "server_error"
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(client, user="wrong")
    assert wrong.value.param == "n"
    with pytest.raises(openai.InternalServerError, match="does not take the gateway's key") as keyless:
        ask(client, user="keyless")
    assert keyless.value.status_code == 503


def test_a_key_asks_its_owners_models_and_no_others(gateway: Running, upstream: Upstream) -> None:
    tenant = create_key(gateway.here.database, "other", ["read", "predict"])
    client, asked = openai.OpenAI(api_key=tenant, base_url=f"{gateway.url}/openai/v1"), len(upstream.got)
    for model in ("acme/notes", "acme/none", "x"):
        with pytest.raises(openai.NotFoundError, match="does not exist or you do not have access") as error:
            client.chat.completions.create(model=model, messages=[])
        assert error.value.param == "model"
    reader = openai.OpenAI(api_key=create_key(gateway.here.database, "other", ["read"]), base_url=client.base_url)
    with pytest.raises(openai.PermissionDeniedError, match="scope predict"):
        ask(reader)
    assert len(upstream.got) == asked


def test_a_predictor_that_is_away_is_503(gateway: Running) -> None:
    here = gateway.here
    before = here.settings
    try:
        for address in ("", "http://127.0.0.1:9"):
            here.settings = before.model_copy(update={"predictor_url": address})
            answer = gateway.http.post("/openai/v1/completions", json={"model": "anneal/demo-base", "prompt": ""})
            assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
            assert "No predictor answers" in answer.json()["error"]["message"]
    finally:
        here.settings = before


@pytest.mark.slow
def test_events_and_checkpoints_are_pages_of_what_the_trainer_tells(client: openai.OpenAI, gateway: Running) -> None:
    from deployments.gateway.tables import Training

    file = client.files.create(file=("c.jsonl", b'{"prompt": "a", "completion": "b"}\n' * 12), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="anneal/demo-base", training_file=file.id)
    folder = Path(gateway.settings.home_path / "trainings" / ("c" * 26))
    folder.mkdir(parents=True)
    told: list[dict[str, Any]] = [{"event": "start", "step": 0, "total": 500, "ranks": 1, "parallelism": "ddp"}]
    for step in range(1, 501):
        told.append({"event": "step", "step": step, "total": 500, "loss": 2.0, "tokens_per_s": 1.0, "eta_s": 1.0})
        if step % 250 == 0:
            told += [{"event": "validation", "step": step, "loss": 1.5}, {"event": "checkpoint", "step": step}]
    (folder / "events.jsonl").write_text("".join(json.dumps({**one, "time": time.time()}) + "\n" for one in told))
    with gateway.here.database.session() as session:
        row = session.get_one(Training, job.id.removeprefix("ftjob-"))
        row.content_id = "c" * 26
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=50))
    assert len(events) > 350 and len({one.id for one in events}) == len(events)
    assert events[0].type == "message" and events[2].data == {"step": 500, "total_steps": 500, "train_loss": 2.0}
    found = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [one.step_number for one in found] == [500, 250]
    assert (found[0].metrics.valid_loss, found[0].metrics.train_loss) == (1.5, 2.0)


def test_a_job_is_paused_and_resumed(client: openai.OpenAI) -> None:
    file = client.files.create(file=("c.jsonl", b'{"prompt": "a", "completion": "b"}\n' * 12), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="anneal/demo-base", training_file=file.id)
    assert str(client.fine_tuning.jobs.pause(job.id).status) == "paused"
    assert str(client.fine_tuning.jobs.pause(job.id).status) == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="only one under way"):
        client.fine_tuning.jobs.resume(job.id)


@pytest.mark.slow
def test_a_model_without_versions_is_deleted_and_a_base_model_is_not(client: openai.OpenAI, gateway: Running) -> None:
    gateway.model("acme", "short")
    assert client.models.delete("acme/short").deleted
    with pytest.raises(openai.NotFoundError):
        client.models.delete("acme/short")
    with pytest.raises(openai.PermissionDeniedError, match="base model"):
        client.models.delete("anneal/demo-base:" + "0" * 64)
    assert httpx.get(f"{gateway.url}/health/live", trust_env=False).status_code == 200
