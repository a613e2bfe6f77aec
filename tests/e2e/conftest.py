"""What end-to-end tests do with their stack (tests/support/stack.py), and the trainings that they share.

Every child process of a test gets the stack's environment; at the end nothing of the stack may be left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from infra.security.door import SIGN_IN
from infra.settings import Settings
from tests.conftest import ROOT, is_rank, wait_for
from tests.support import prefect_api

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from selenium.webdriver import Chrome

BUSY_TRIES = 10
COMMAND_TIMEOUT_S = 300
"""When a command counts as hanging: a training takes a minute, and three beside another suite on two cores."""
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
KNOBS: dict[str, Any] = {
    "chunk_size": 512, "pack_sequences": True, "train_batch_size": 2, "max_steps": 4, "num_ranks": 2,
    "max_new_tokens": 16, "num_evaluation_samples": 4, "num_validation_samples": 4, "gate": "off"}
"""A training of seconds. `gate` is off: four answers of a tiny model say nothing about its quality."""

LONG: dict[str, Any] = {"num_train_epochs": 20, "max_steps": 14, "checkpoint_steps": 4}
"""Beside KNOBS: long enough to be killed on the way."""

RANKS_TALK = {"TORCH_CPP_LOG_LEVEL": "INFO"}
"""Each rank of the training that the tests share then says with whom it connects; the run's log must show that."""


@dataclass(frozen=True)
class Stack:
    """The running stack, and what a test wants of it."""

    settings: Settings
    environment: dict[str, str]

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """An `anneal` command in a process of its own."""
        command = [sys.executable, "-m", "deployments.cli.main", *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **self.environment, **environment})

    def anneal(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """An `anneal` command, run to its end."""
        process = self.start(*arguments, **environment)
        try:
            stdout, stderr = process.communicate(timeout=COMMAND_TIMEOUT_S)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def prefect(self, path: str, **body: Any) -> Any:
        """What the Prefect server answers: POST with a body, GET without.

        503 is its word for a locked SQLite database; Prefect's own client asks again too.
        """
        for _ in range(BUSY_TRIES):
            try:
                answer = prefect_api.ask(self.settings, path, body)
            except httpx.ReadTimeout:  # the same lock, held for longer
                continue
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                assert answer.is_success, answer.text
                return answer.json()
            time.sleep(1)
        raise AssertionError(f"{path} is busy")

    def start_run(self, parameters: dict[str, Any], environment: dict[str, str] | None = None) -> str:
        """A run of the deployment, as the UI's form starts it, with variables of its own; returns its id."""
        deployment = self.prefect("/deployments/name/finetune/finetune")["id"]
        path = f"/deployments/{deployment}/create_flow_run"
        more = {"job_variables": {"env": environment}} if environment else {}
        return str(self.prefect(path, parameters={"training": parameters}, **more)["id"])

    def wait_until_over(self, run: str, timeout_s: float = COMMAND_TIMEOUT_S) -> dict[str, Any]:
        """A flow run's final state."""
        deadline = time.monotonic() + timeout_s
        while (state := self.prefect(f"/flow_runs/{run}")["state"])["type"] not in FINAL:
            assert time.monotonic() < deadline, state
            time.sleep(0.2)
        return dict(state)

    def runs(self, name: str) -> list[str]:
        """Ids of the flow runs of that name, the oldest first."""
        found = self.prefect("/flow_runs/filter", flow_runs={"name": {"any_": [name]}}, sort="START_TIME_ASC")
        return [run["id"] for run in found]

    def steps(self, run: str) -> dict[str, str]:
        """The state of each step of a flow run, by the first word of its name."""
        found = self.prefect("/task_runs/filter", flow_runs={"id": {"any_": [run]}})
        return {task["name"].split()[0]: task["state"]["name"] for task in found}

    def shown(self, run: str) -> dict[str, dict[str, Any]]:
        """The artifacts of a flow run, by key; the newest of each."""
        found = self.prefect("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}}, sort="UPDATED_DESC")
        return {artifact["key"]: artifact for artifact in reversed(found)}

    def artifacts(self, run: str) -> dict[str, Any]:
        """What they show."""
        return {key: artifact["data"] for key, artifact in self.shown(run).items()}

    def versions(self, destination: str) -> list[Any]:
        """All versions that MLflow has of a model."""
        from mlflow import MlflowClient

        return list(MlflowClient(self.settings.tracking_uri).search_model_versions(
            f"name='{destination.replace('/', '--')}'"))

    def ask(self, destination: str, prompt: str = "Once upon a time", max_new_tokens: int = 8) -> dict[str, Any]:
        """The predictor's answer."""
        inputs = {"prompt": prompt, "temperature": 0, "max_new_tokens": max_new_tokens}
        body = {"model": destination, "input": inputs}
        answer = httpx.post(f"{self.settings.predictor}/predictions", json=body, timeout=60,
                            headers=self.settings.predictor_headers)
        assert answer.is_success, answer.text
        return dict(answer.json())


@dataclass(frozen=True)
class Training:
    """A finished command and the parameters it was started with."""

    parameters: dict[str, Any]
    version: dict[str, Any]
    run: str = ""
    """Its flow run, where it was alone in the making."""


@pytest.fixture(autouse=True)
def environment(clean_environment: None, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack's environment, which the tests' own `clean_environment` took away."""
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def chromium(chromium: Chrome, stack: Stack) -> Chrome:
    """A browser that has followed the links of `anneal up`."""
    from deployments.cli.console import links_of, signed_in

    for address in signed_in(stack.settings, links_of(stack.settings)).values():
        chromium.get(address)
        wait_for(lambda: not any(one in chromium.current_url for one in (SIGN_IN, "#key")), "it signs nobody in")
    return chromium


@pytest.fixture
def client(stack: Stack) -> Iterator[SyncPrefectClient]:
    """A client of the stack's server, which is also where events go."""
    from tasks.runs.start import client_of

    with client_of(stack.settings) as client:
        yield client


@pytest.fixture(scope="session")
def parameters(shared: Path, stories: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A short training on real doctor-patient dialogues, and a blank line at the end of each file."""
    folder = tmp_path_factory.mktemp("data")
    for name, rows in (("train", 60), ("validation", 6)):
        with (shared / "data" / "mts_dialog" / f"{name}.jsonl").open() as file:
            (folder / f"{name}.jsonl").write_text("".join(islice(file, rows)) + "\n")
    return {
        "train_data": str(folder / "train.jsonl"), "validation_data": str(folder / "validation.jsonl"),
        "base_model": str(stories), "destination": "acme/notes", **KNOBS}


@pytest.fixture(scope="session")
def first(stack: Stack, parameters: dict[str, Any]) -> Training:
    """One LoRA training, by the command line."""
    before = set(stack.runs("finetune acme/notes"))  # tests that fail on purpose may have been first
    done = stack.anneal("train", "--json", *options(parameters), **RANKS_TALK)
    assert done.returncode == 0, done.stderr
    new = set(stack.runs("finetune acme/notes")) - before
    (run,) = (one for one in new if stack.prefect(f"/flow_runs/{one}")["deployment_id"] is None)
    return Training(parameters, json.loads(done.stdout), run)


@pytest.fixture(scope="session")
def second(stack: Stack, parameters: dict[str, Any]) -> Training:
    """A full fine-tuning, one rank of which is killed after the first checkpoint."""
    wanted = {**parameters, **LONG, "destination": "acme/whole", "peft_method": "full"}
    process = stack.start("train", "--json", *options(wanted))
    try:
        checkpointed(process, stack.settings.home_path)
        ranks_of(process)[-1].kill()
        stdout, stderr = process.communicate(timeout=COMMAND_TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    return Training(wanted, json.loads(stdout))


def options(parameters: dict[str, Any]) -> list[str]:
    """Parameters as command-line options."""
    found = []
    for name, value in parameters.items():
        flag = name.replace("_", "-")
        found += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return found


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Those below a command."""
    return [child for child in psutil.Process(process.pid).children(recursive=True) if is_rank(child)]


def checkpointed(process: subprocess.Popen[str], home: Path) -> None:
    """Wait for a training's first checkpoint."""
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    while not list(home.glob("trainings/*/step-??????")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.05)
