"""Canaries in every input of a real stack, and none in what it keeps or shows: pytest tests/security/test_secrets.py

One stack is started with a random text in every variable that holds a secret. A training runs on its worker while all
processes are watched; then come commands that fail with a secret in what they are told. At the end the stack is down,
and every file of its home is searched for every canary: as it is, percent-encoded, and in base64 wherever it begins.
Allowed are <home>/secret and the output of `anneal up` and `anneal env`.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from infra.redaction import redacted
from infra.settings import Settings
from tests.conftest import ROOT, free_port
from tests.e2e.conftest import KNOBS, options
from tests.support import prefect_api

pytestmark = pytest.mark.slow

VARIABLES = {
    "AWS_SECRET_ACCESS_KEY": "{}", "AWS_SESSION_TOKEN": "{}", "HF_TOKEN": "hf_{}", "ANNEAL_API_KEY": "{}",
    "ANNEAL_WEBHOOK_URL": "http://hook:{}@127.0.0.1:9/hook", "MLFLOW_TRACKING_PASSWORD": "{}",
    "PREFECT_API_AUTH_STRING": "anneal:{}", "HTTPS_PROXY": "http://me:{}@127.0.0.1:9",
    "DATABASE_URL": "postgresql+asyncpg://anneal:{}@127.0.0.1:9/prefect", "DATA_URL": "https://h/d?X-Amz-Signature={}"}
"""A canary for each of them."""
CHILDREN = ("tasks.distributed.train", "tasks.distributed.generate",
            "tasks.distributed.encode", "tasks.data.quality", "tasks.distributed.torchrun")
"""Modules of processes that read and write files alone."""
COMMAND_TIMEOUT_S = 600
WITH_SECRETS = (
    "https://me:{password}@data.example/d.jsonl", "s3://key:{password}@bucket/d.jsonl",
    "https://me:{password}/x@data.example/d.jsonl", "https://data.example/d.jsonl?X-Amz-Signature={signature}",
    "csv:https://data.example/d.csv?raw=1&token={signature}")
FINETUNE = """
import json, sys
from flows.finetune import finetune
from flows.predict import predict
from infra.errors import UserError
def refused(call, *arguments):
    try:
        call(*arguments)
    except UserError as error:
        print("refused:", error)
for parameters in json.loads(sys.argv[1]):
    refused(finetune, parameters)
    refused(finetune.with_options(name="another"), parameters)
    refused(predict, "acme/canary", parameters["train_data"])
"""


@dataclass
class World:
    """The stack's environment, the canaries in it, and all that was shown."""

    home: Path
    environment: dict[str, str]
    canaries: dict[str, str]
    parameters: dict[str, Any]
    shown: dict[str, str] = field(default_factory=dict)
    """{where: what was seen there}"""
    seen: set[str] = field(default_factory=set)
    """Of CHILDREN, those that ran."""

    def run(self, name: str, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a Python module or -c program, and keep what it prints."""
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env={**self.environment, **more},
                              capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
        self.shown[name] = done.stdout + done.stderr
        return done

    def anneal(self, name: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """An `anneal` command."""
        return self.run(name, "-m", "deployments.cli.main", *arguments, **more)

    def address(self, form: str) -> str:
        """One of WITH_SECRETS, with canaries."""
        return form.format(password=self.canaries["password of an address"],
                           signature=self.canaries["signature of an address"])

    @property
    def settings(self) -> Settings:
        """As the stack's processes have them; reads stack.json now."""
        return Settings(home=self.home, api_key=self.environment["ANNEAL_API_KEY"])

    def runs(self) -> int:
        """How many flow runs of finetune Prefect knows."""
        body = {"flows": {"name": {"any_": ["finetune"]}}}
        return int(prefect_api.ask(self.settings, "/flow_runs/count", body).json())


@cache
def spellings(canary: str) -> set[bytes]:
    """The text as it is, percent-encoded, and the middle of its base64 wherever it begins in what was encoded."""
    raw, found = canary.encode(), {canary.encode(), quote(canary, safe="").encode()}
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + raw)
        found.add(encoded[4 if before else 0:len(encoded) - 4])
    return found | {one.replace(b"+", b"-").replace(b"/", b"_") for one in found}


def canaries_in(content: bytes, canaries: dict[str, str]) -> list[str]:
    """Names of the canaries in it."""
    return [name for name, canary in canaries.items() if any(one in content for one in spellings(canary))]


@pytest.fixture(scope="module")
def world(shared: Path, stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The stack, up, with a canary in every variable; the home's secret is one more."""
    folder = tmp_path_factory.mktemp("canaries")
    with (shared / "data" / "mts_dialog" / "train.jsonl").open() as file:
        (folder / "train.jsonl").write_text("".join(islice(file, 40)))
    canaries = {name: secrets.token_hex(16) for name in VARIABLES}
    key = base64.b64encode(secrets.token_bytes(24)).decode()
    canaries |= {"ANNEAL_WEBHOOK_SECRET": key, **{name: secrets.token_hex(16) for name in (
        "password of an address", "signature of an address", "wrong password", "password of an endpoint")}}
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("ANNEAL_", "AWS_", "MLFLOW_"))}
    environment = {
        **mine, "ANNEAL_HOME": str(folder / "home"), "ANNEAL_WEBHOOK_SECRET": f"whsec_{key}",
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "PYTHONPATH": str(ROOT),
        **{f"ANNEAL_{name}_PORT": str(free_port()) for name in ("PREFECT", "MLFLOW", "PREDICTOR", "GATEWAY")},
        **{name: form.format(canaries[name]) for name, form in VARIABLES.items()}}
    environment["PREFECT_SERVER_API_AUTH_STRING"] = environment["PREFECT_API_AUTH_STRING"]
    parameters = {**KNOBS, "train_data": str(folder / "train.jsonl"), "base_model": str(stories),
                  "destination": "acme/canary", "max_steps": 2}
    made = World(folder / "home", environment, canaries, parameters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_AUTH_STRING", environment["PREFECT_API_AUTH_STRING"])
        try:
            done = made.anneal("up", "up")
            assert done.returncode == 0, done.stderr
            canaries["<home>/secret"] = (made.home / "secret").read_text().strip()
            yield made
        finally:
            made.anneal("down", "down")


class Watched(threading.Thread):
    """Looks at all processes of the machine until it is told to stop."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self._world, self.over = world, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.2):
            for process in psutil.process_iter():
                with suppress(psutil.Error, OSError):
                    self._look(process.pid)

    def _look(self, pid: int) -> None:
        world, place = self._world, Path("/proc", str(pid))
        command = (place / "cmdline").read_bytes()
        if found := canaries_in(command, world.canaries):
            world.shown[f"command line of {pid}: {command!r}"] = str(found)
        modules = [name for name in CHILDREN if name.encode() in command]
        if modules and str(world.home).encode() in command:
            environ = (place / "environ").read_bytes()
            world.seen |= set(modules)
            if found := canaries_in(environ, world.canaries):
                world.shown[f"environment of {modules}"] = world.canaries[found[0]]


@pytest.fixture(scope="module")
def trained(world: World) -> World:
    """A training on the worker, watched, and a question to the predictor."""
    watched = Watched(world)
    watched.start()
    done = world.anneal("train --remote", "train", "--remote", "--json", *options(world.parameters))
    watched.over.set()
    watched.join()
    assert done.returncode == 0, done.stderr
    url = f"http://127.0.0.1:{world.environment['ANNEAL_PREDICTOR_PORT']}"
    body = {"model": "acme/canary", "input": {"prompt": "Once", "max_new_tokens": 4}}
    for key in (world.environment["ANNEAL_API_KEY"], "another"):
        headers = {"Authorization": f"Bearer {key}"}
        for answer in (httpx.post(f"{url}/predictions", json=body, headers=headers, timeout=60),
                       httpx.get(f"{url}/health/ready", headers=headers), httpx.get(f"{url}/", headers=headers)):
            world.shown[f"{answer.request.url} {answer.status_code}"] = f"{answer.headers}{answer.text}"
    return world


def test_the_children_of_a_training_have_no_secret(trained: World) -> None:
    assert trained.seen >= {"tasks.distributed.generate", "tasks.distributed.encode"}
    assert "tasks.distributed.train" in trained.seen
    assert not [name for name in trained.shown if name.startswith(("environment", "command line"))]


@pytest.mark.parametrize("form", WITH_SECRETS)
@pytest.mark.parametrize("name", ["train_data", "base_model"])
def test_an_address_with_a_secret_is_refused_before_it_is_stored(trained: World, form: str, name: str) -> None:
    wrong, before = {**trained.parameters, name: trained.address(form)}, trained.runs()
    done = trained.anneal(f"train {form}", "train", "--json", *options(wrong))
    assert done.returncode == 2 and f"error: {name}: the address has " in done.stderr
    assert "Traceback" not in done.stderr and json.loads(done.stdout)["type"] == "UserError"
    deployment = prefect_api.ask(trained.settings, "/deployments/name/finetune/finetune").json()["id"]
    answer = prefect_api.ask(
        trained.settings, f"/deployments/{deployment}/create_flow_run", {"parameters": {"training": wrong}})
    assert answer.status_code == httpx.codes.CONFLICT
    assert trained.runs() == before


def test_so_it_is_when_a_program_calls_the_flow(trained: World) -> None:
    before = trained.runs()
    wrong = [{**trained.parameters, "train_data": trained.address(form)} for form in WITH_SECRETS]
    wrong.append({**trained.parameters, "train": wrong[0]["train_data"], "train_data": wrong[0]["train_data"]})
    done = trained.run("finetune()", "-c", FINETUNE, json.dumps(wrong))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused: ") == done.stdout.count(": the address has ") == 3 * len(wrong)
    assert trained.runs() == before


class Refusing(BaseHTTPRequestHandler):
    """Says no with the whole address in its reason; gives a file below /good."""

    def do_GET(self) -> None:
        body = b'{"prompt": "a", "completion": "b"}\n' * 8
        self.send_response(200 if self.path.startswith("/good") else 403, f"not to be had: {self.path}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("path", "code"), [("/good/d.jsonl", 0), ("/d.jsonl", 2)])
def test_upload_takes_a_signed_address_and_does_not_show_it(trained: World, path: str, code: int) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}{path}"
        signed = f"{address}?X-Amz-Signature={trained.canaries['signature of an address']}"
        done = trained.anneal(f"upload {path}", "upload", signed, ANNEAL_ALLOW_PRIVATE_HOSTS="true")
        server.shutdown()
    assert done.returncode == code, done.stderr
    assert (address in done.stderr and "X-Amz-Signature=***" in done.stderr) if code else "store://" in done.stdout


def test_a_wrong_password_for_mlflow_is_not_shown(trained: World) -> None:
    port, wrong = trained.environment["ANNEAL_MLFLOW_PORT"], trained.canaries["wrong password"]
    for name, password, code in (("right", trained.canaries["<home>/secret"], 0), ("wrong", wrong, 2)):
        done = trained.anneal(f"train, {name} password for MLflow", "train", "--json", *options(trained.parameters),
                              ANNEAL_MLFLOW_URI=f"http://anneal:{password}@127.0.0.1:{port}")
        assert done.returncode == code, done.stderr
    assert "MLflow refuses the user or the password" in done.stderr


def test_a_service_that_is_away_is_named_without_its_password(trained: World) -> None:
    wrong, ask = trained.canaries["wrong password"], "from infra.settings import Settings; " \
        "from infra.models.registry import Registry; Registry(Settings()).newest('acme/canary')"
    done = trained.run("MLflow away", "-c", f"from infra.redaction import redact_logs; redact_logs(); {ask}",
                       ANNEAL_MLFLOW_URI=f"http://anneal:{wrong}@127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert "Transient: 127.0.0.1:9: MLflow does not do it" in done.stderr, done.stderr
    endpoint = f"http://key:{trained.canaries['password of an endpoint']}@127.0.0.1:9"
    done = trained.anneal("S3 away", "upload", "s3://bucket/d.jsonl", ANNEAL_S3_ENDPOINT_URL=endpoint)
    assert done.returncode == 2 and "ANNEAL_S3_ENDPOINT_URL" in done.stderr, done.stderr


def test_no_canary_is_left_in_what_was_kept_or_shown(trained: World) -> None:
    time.sleep(3)  # Prefect's clients and server write logs and events in batches
    env = trained.anneal("env", "env")
    assert trained.canaries["ANNEAL_API_KEY"] in env.stdout, "which is what `anneal env` is for"
    assert trained.anneal("down", "down").returncode == 0
    found = {where: names for where, text in trained.shown.items()
             if where not in ("up", "env") and (names := canaries_in(text.encode(), trained.canaries))}
    secret = trained.home / "secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    files = {path: path.read_bytes() for path in trained.home.rglob("*") if path.is_file() and not path.is_symlink()}
    for path, content in files.items():
        if content.startswith(b"SQLite format 3"):  # a long value is scattered over pages
            with closing(sqlite3.connect(path)) as database:
                content += "\n".join(database.iterdump()).encode()
        if path != secret and (names := canaries_in(content, trained.canaries)):
            found[str(path)] = names
    assert {path.name for path in files} >= {"prefect.db", "mlflow.db", "predictor.log", "worker.log", "events.jsonl"}
    assert not found, redacted(str(found))
