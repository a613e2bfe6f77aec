"""infra/compose.yaml for tests: its services as plain processes, with its commands and variables.

Host names become 127.0.0.1 with a free port, volumes become folders; nothing else is changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.conftest import ROOT, free_port
from tests.support.postgres import Postgres, running
from tests.support.prefect_api import ask_at

FILE = ROOT / "infra" / "compose.yaml"
SECRETS = {"POSTGRES_PASSWORD": "pg-word", "S3_KEY": "s3-key", "S3_SECRET": "s3-secret", "PREFECT_AUTH": "anneal:word",
           "MLFLOW_PASSWORD": "mlflow-pass-word", "MLFLOW_SECRET_KEY": "flask-secret",
           "ANNEAL_API_KEY": "predictor-key"}
MLFLOW_USER = ("anneal", SECRETS["MLFLOW_PASSWORD"])
PORTS = {"postgres": 5432, "s3": 9000, "mlflow": 5000, "prefect": 4200, "predictor": 5001, "gateway": 5002}


def without_settings() -> dict[str, str]:
    """Our own environment but for what says where services and data are."""
    return {key: value for key, value in os.environ.items()
            if not key.startswith(("ANNEAL_", "AWS_", "MLFLOW_", "PREFECT_", "PG"))}


@dataclass
class Compose:
    """The services that run."""

    folder: Path
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in PORTS})
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def service(self, name: str) -> dict[str, Any]:
        """A service of the file, for this machine."""
        text = FILE.read_text(encoding="utf-8").replace("/var/lib/anneal", str(self.folder / "home"))
        text = text.replace('"/data"', f'"{self.folder / "s3"}"').replace("0.0.0.0", "127.0.0.1")
        text = text.replace("/opt/anneal", str(ROOT)).replace("PGHOST: postgres", "PGHOST: 127.0.0.1")
        for other, port in PORTS.items():
            mine = str(self.ports[other])
            text = text.replace(f"{other}:{port}", f"127.0.0.1:{mine}").replace(f'"{port}"', f'"{mine}"')
            text = text.replace(f'":{port}"', f'"127.0.0.1:{mine}"')
        text = re.sub(r"\$\{(\w+):(\?|-)\}", lambda found: SECRETS.get(found[1], ""), text)
        return dict(yaml.safe_load(text)["services"][name])

    def environment(self, name: str) -> dict[str, str]:
        """What the container would have, on top of what a process needs at all."""
        given = {key: "" if value is None else str(value) for key, value in self.service(name)["environment"].items()}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**without_settings(), "PATH": path, "PYTHONPATH": str(ROOT), **given}

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

    def stop(self) -> None:
        """Kill what runs, and what it started."""
        for process in self.processes.values():
            tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for one in tree:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()

    def prefect(self, path: str, **body: Any) -> Any:
        """What the Prefect server answers, with the password."""
        answer = ask_at(f"http://127.0.0.1:{self.ports['prefect']}/api", httpx.BasicAuth("anneal", "word"), path, body)
        assert answer.is_success, answer.text
        return answer.json()

    def mlflow(self, path: str, **parameters: str) -> Any:
        """What MLflow answers, with the password."""
        answer = httpx.get(f"{self.mlflow_url}/{path}", params=parameters, timeout=30, auth=MLFLOW_USER)
        assert answer.is_success, answer.text
        return answer.json()

    @property
    def mlflow_url(self) -> str:
        """Where MLflow's API is."""
        return f"http://127.0.0.1:{self.ports['mlflow']}/api/2.0/mlflow"


@contextmanager
def databases(compose: Compose) -> Iterator[Postgres]:
    """The file's databases, on a real Postgres."""
    environment = compose.service("postgres")["environment"]
    with running(environment["POSTGRES_USER"], environment["POSTGRES_PASSWORD"],
                 port=compose.ports["postgres"]) as server:
        server.psql("--command", f"CREATE DATABASE {environment['POSTGRES_DB']}")
        server.psql("--file", str(ROOT / "infra" / "docker" / "databases.sql"))
        yield server
