"""infra/compose.yaml for real: its services as plain processes, with its commands and variables.

Host names become 127.0.0.1 with a free port, volumes become folders; nothing else is changed. One training goes through
Postgres, S3, MLflow, an authenticated Prefect server, its worker and the predictor:
pytest -m chaos tests/e2e/test_compose.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.conftest import ROOT, free_port, needed, wait_for, wait_until_responds
from tests.e2e.conftest import COMMAND_TIMEOUT_S, FINAL, LONG

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

FILE = ROOT / "infra" / "compose.yaml"
SECRETS = {"POSTGRES_PASSWORD": "pg-word", "S3_KEY": "s3-key", "S3_SECRET": "s3-secret", "PREFECT_AUTH": "anneal:word",
           "ANNEAL_API_KEY": "predictor-key"}
PORTS = {"postgres": 5432, "s3": 9000, "mlflow": 5000, "prefect": 4200, "predictor": 5001}
STARTED_S = 120
DATABASE_AWAY_S = 10


@dataclass
class Compose:
    """The services that run."""

    folder: Path
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in PORTS})
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    pg_ctl: Callable[..., object] = print
    """Starts and stops the database, once there is one."""

    def service(self, name: str) -> dict[str, Any]:
        """A service of the file, for this machine."""
        text = FILE.read_text(encoding="utf-8").replace("/var/lib/anneal", str(self.folder / "home"))
        text = text.replace('"/data"', f'"{self.folder / "s3"}"').replace("0.0.0.0", "127.0.0.1")
        for other, port in PORTS.items():
            mine = str(self.ports[other])
            text = text.replace(f"{other}:{port}", f"127.0.0.1:{mine}").replace(f'"{port}"', f'"{mine}"')
            text = text.replace(f'":{port}"', f'"127.0.0.1:{mine}"')
        text = re.sub(r"\$\{(\w+):(\?|-)\}", lambda found: SECRETS.get(found[1], ""), text)
        return dict(yaml.safe_load(text)["services"][name])

    def environment(self, name: str) -> dict[str, str]:
        """What the container would have, on top of what a process needs at all."""
        given = {key: str(value) for key, value in self.service(name)["environment"].items()}
        clean = {key: value for key, value in os.environ.items()
                 if not key.startswith(("ANNEAL_", "AWS_", "MLFLOW_", "PREFECT_"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**clean, "PATH": path, "PYTHONPATH": str(ROOT), **given}

    def start(self, name: str) -> None:
        """The service's command."""
        environment = self.environment(name) if "environment" in self.service(name) else dict(os.environ)
        program, *rest = self.service(name)["command"]
        if name == "s3":  # the image's entry point is rclone itself
            program, rest = "rclone", [program, *rest]
        found = shutil.which(program, path=str(Path(sys.executable).parent)) or program
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [found, *rest], cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True)

    def prefect(self, path: str, **body: Any) -> Any:
        """What the Prefect server answers, with the password."""
        answer = httpx.request(
            "POST" if body else "GET", f"http://127.0.0.1:{self.ports['prefect']}/api{path}", json=body or None,
            auth=("anneal", "word"), timeout=30)
        assert answer.is_success, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """The compose file's databases, on a real Postgres."""
    needed("initdb", "postgresql")
    compose = Compose(tmp_path_factory.mktemp("compose"))
    environment = compose.service("postgres")["environment"]
    place = Path(tempfile.mkdtemp(prefix="anneal-postgres-"))  # pytest's own folders are closed to other users
    place.chmod(0o755)
    data = place / "data"
    user = "postgres" if os.geteuid() == 0 else ""
    data.mkdir()
    if user:
        shutil.chown(data, user)
    options = {"cwd": "/", "check": True, "capture_output": True, "text": True, **({"user": user} if user else {})}
    password = place / "password"
    password.write_text(environment["POSTGRES_PASSWORD"])
    password.chmod(0o644)
    run: Any = subprocess.run
    run(["initdb", "--pgdata", data, "--username", environment["POSTGRES_USER"], "--pwfile", password,
         "--auth", "scram-sha-256"], **options)
    port, log = compose.ports["postgres"], data / "log"

    def pg_ctl(command: str, *more: str) -> None:
        run(["pg_ctl", command, "--pgdata", data, "--wait", *more], **options)

    running = ("--log", log, "-o", f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data}")
    pg_ctl("start", *running)
    compose.pg_ctl = lambda command: pg_ctl(command, *(running if command == "start" else ("--mode", "immediate")))
    try:
        where = {**os.environ, "PGPASSWORD": environment["POSTGRES_PASSWORD"]}
        psql = ["psql", "--host", "127.0.0.1", "--port", str(port), "--username", environment["POSTGRES_USER"],
                "--dbname", "postgres", "--set", "ON_ERROR_STOP=1"]
        run([*psql, "--command", f"CREATE DATABASE {environment['POSTGRES_DB']}"], check=True, env=where)
        run([*psql, "--file", str(ROOT / "infra" / "docker" / "databases.sql")], check=True, env=where)
        yield compose
    finally:
        compose.pg_ctl("stop")
        shutil.rmtree(place)


@pytest.fixture(scope="module")
def compose(postgres: Compose) -> Iterator[Compose]:
    """All services of the file."""
    (postgres.folder / "s3" / "anneal").mkdir(parents=True)
    (postgres.folder / "home").mkdir()
    try:
        for name in ("s3", "mlflow", "prefect", "predictor"):
            postgres.start(name)
        wait_until_responds(f"http://127.0.0.1:{postgres.ports['mlflow']}/health", STARTED_S)
        wait_until_responds(f"http://127.0.0.1:{postgres.ports['prefect']}/api/health", STARTED_S)
        wait_until_responds(f"http://127.0.0.1:{postgres.ports['predictor']}/health/live", STARTED_S)
        done = subprocess.run([sys.executable, "-m", "deployments.cli", "deploy"], cwd=ROOT, capture_output=True,
                              text=True, env=postgres.environment("worker"))
        assert done.returncode == 0, done.stderr
        postgres.start("worker")
        yield postgres
    finally:
        for process in postgres.processes.values():
            tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for one in tree:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()


def test_a_training_goes_through_the_whole_of_it(compose: Compose, parameters: dict[str, Any]) -> None:
    deployment = compose.prefect("/deployments/name/finetune/gpu")["id"]
    run = compose.prefect(f"/deployments/{deployment}/create_flow_run", parameters={"training": parameters})["id"]
    wait_for(lambda: compose.prefect(f"/flow_runs/{run}")["state"]["type"] in FINAL, "it does not end",
             COMMAND_TIMEOUT_S)
    state = compose.prefect(f"/flow_runs/{run}")["state"]
    assert state["type"] == "COMPLETED", state

    answer = httpx.post(
        f"http://127.0.0.1:{compose.ports['predictor']}/predictions", timeout=60,
        headers={"Authorization": "Bearer predictor-key"},
        json={"model": "acme/notes", "input": {"prompt": "Once", "max_new_tokens": 4}})
    assert answer.json()["status"] == "succeeded", answer.text
    found = httpx.get(f"http://127.0.0.1:{compose.ports['mlflow']}/api/2.0/mlflow/registered-models/get",
                      params={"name": "acme--notes"}).json()
    assert found["registered_model"]["aliases"] == [
        {"alias": "challenger", "version": "1"}, {"alias": "champion", "version": "1"}]
    assert (compose.folder / "s3" / "anneal" / "mlflow").is_dir(), "MLflow's artifacts lie in the bucket"


def test_prefect_asks_for_the_password(compose: Compose) -> None:
    answer = httpx.post(f"http://127.0.0.1:{compose.ports['prefect']}/api/flow_runs/filter", json={})
    assert answer.status_code == httpx.codes.UNAUTHORIZED


def test_scheduled_runs_are_made_on_postgres(compose: Compose) -> None:
    deadline = time.monotonic() + STARTED_S
    while not compose.prefect("/flow_runs/filter", flows={"name": {"any_": ["reconcile"]}}):
        assert time.monotonic() < deadline, "no run of reconcile/every-minute"
        time.sleep(1)


def test_a_run_outlives_a_crash_of_the_database(compose: Compose, parameters: dict[str, Any]) -> None:
    deployment = compose.prefect("/deployments/name/finetune/gpu")["id"]
    wanted = {**parameters, **LONG, "destination": "acme/outage", "seed": 2}
    run = compose.prefect(f"/deployments/{deployment}/create_flow_run", parameters={"training": wanted})["id"]
    checkpoints = (compose.folder / "home").glob
    wait_for(lambda: list(checkpoints("**/trainings/*/step-??????")), "it does not train", COMMAND_TIMEOUT_S)
    compose.pg_ctl("stop")
    time.sleep(DATABASE_AWAY_S)
    compose.pg_ctl("start")

    def state() -> dict[str, Any]:
        with suppress(httpx.HTTPError, AssertionError):  # it may still be about to connect again
            return dict(compose.prefect(f"/flow_runs/{run}")["state"])
        return {"type": "UNKNOWN"}

    wait_for(lambda: state()["type"] in FINAL, "it does not end", COMMAND_TIMEOUT_S)
    assert state()["type"] == "COMPLETED", state()
    found = httpx.get(f"http://127.0.0.1:{compose.ports['mlflow']}/api/2.0/mlflow/model-versions/search",
                      params={"filter": "name='acme--outage'"})
    assert [version["version"] for version in found.json()["model_versions"]] == ["1"]
