"""The whole job on the built-in data: what `make demo` runs.

In:   nothing; the dialogue set and the tiny base ship with the project
Out:  a ROUGE table, a summary asked over HTTP, <home>/demo/summary.json
Starts its own Prefect server, MLflow and predictor on free ports, with a home of its own, and
stops them at the end. Dies half-way: `make demo` goes on where it stopped.
Run alone: python -m deployments.examples.demo
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from deployments.examples import dialogues
from infra.errors import AnnealError, UserError
from infra.files import write_atomic
from infra.records import METRICS, Evaluation, Version
from infra.settings import Settings
from infra.stack import local as stack
from infra.stack import services

if TYPE_CHECKING:
    from uuid import UUID

BASE = Path(__file__).resolve().parent / "base"
DESTINATION = "demo/summarizer"
SERVERS = ("prefect", "mlflow", "predictor")
ASKED_ROW = 0
"""The held-out conversation that the predictor is asked about at the end."""
KNOBS: dict[str, Any] = {
    "num_train_epochs": 2, "train_batch_size": 8, "learning_rate": 5e-3, "lora_rank": 32, "lora_alpha": 64,
    "lora_dropout": 0.0, "chunk_size": 512, "num_validation_samples": 60, "num_evaluation_samples": 60,
    "max_new_tokens": 48, "validation_batch_size": 20, "num_ranks": min(2, len(os.sched_getaffinity(0)))}


def main() -> int:
    """Run the demo; returns the exit code."""
    began = time.monotonic()
    os.environ["ANNEAL_HOME"] = str(Settings().home_path / "demo")
    take_free_ports()
    settings = Settings()
    try:
        print("Starting Prefect, MLflow and the predictor ...", flush=True)
        stack.up(settings, only=SERVERS)
        os.environ.update({**services.for_runs(settings), "PREFECT_API_URL": settings.prefect_api})
        summary = run(settings)
    except AnnealError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    finally:
        stack.down(settings)
    summary["seconds"]["total"] = round(time.monotonic() - began, 1)
    write_atomic(settings.home_path / "summary.json", json.dumps(summary, indent=1))
    print("seconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in summary["seconds"].items()))
    print(f"summary: {settings.home_path / 'summary.json'}")
    print(f"pages: `ANNEAL_HOME={settings.home_path} anneal up` starts all of it again and prints the gateway's link")
    return 0


def run(settings: Settings) -> dict[str, Any]:
    """Train, evaluate, register, deploy, ask."""
    from flows.finetune import finetune
    from flows.parameters import Parameters

    train, test = dialogues.write(settings.home_path / "data")
    parameters = Parameters.model_validate({
        "train_data": str(train), "validation_data": str(test), "base_model": str(BASE), "destination": DESTINATION,
        **KNOBS})
    state = finetune(parameters, return_state=True)
    version: Version = state.result()
    evaluation = evaluation_of(settings, version)
    print_table(evaluation)
    prediction = ask(settings, version, json.loads(test.read_text(encoding="utf-8").splitlines()[ASKED_ROW]))
    flow_run = state.state_details.flow_run_id
    return {
        "rouge": evaluation.rouge, "loss": evaluation.loss, "version": version.to_json(), "prediction": prediction,
        "seconds": seconds_of(flow_run) if flow_run else {}}


def evaluation_of(settings: Settings, version: Version) -> Evaluation:
    """The evaluation as it is registered: the version's own training.json."""
    from infra.storage.store import Store

    lineage = json.loads((Store(settings).fetch(version.folder) / "training.json").read_text(encoding="utf-8"))
    metrics = lineage["metrics"]
    return Evaluation(
        folder="", samples=lineage["rows"]["validation"], rouge=metrics["rouge"], loss=metrics["loss"], passed=True,
        verdict="")


def print_table(evaluation: Evaluation) -> None:
    """ROUGE F-measures with their 95 % intervals."""
    print(f"\n{'':8}" + "".join(f"{metric:>25}" for metric in METRICS))
    for model in ("tuned", "base", "lead3"):
        scores = (evaluation.rouge[model][metric] for metric in METRICS)
        cells = (f"{mean:.3f} ({low:.3f} to {high:.3f})" for low, mean, high in scores)
        print(f"{model:8}" + "".join(f"{cell:>25}" for cell in cells))


def ask(settings: Settings, version: Version, row: dict[str, str]) -> dict[str, str]:
    """Ask the predictor for the summary of a held-out conversation, over HTTP."""
    body = {"version": version.id, "input": {"prompt": row["prompt"], "temperature": 0, "max_new_tokens": 96}}
    answer = httpx.post(f"{settings.predictor}/predictions", json=body, timeout=120, headers=settings.predictor_headers)
    answer.raise_for_status()
    text = "".join(answer.json()["output"]).strip()
    conversation = row["prompt"].split("\n\n")[1]
    reference = row["completion"].strip()
    print(f"\n{conversation}\n\nsummary by the predictor: {text}\nsummary by the author:    {reference}\n")
    return {"conversation": conversation, "output": text, "reference": reference}


def seconds_of(flow_run: UUID) -> dict[str, float]:
    """Run time of each step, as Prefect measured it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])))
    started = {run.start_time: run for run in runs if run.start_time}
    return {run.name.split(" demo/")[0]: round(run.total_run_time.total_seconds(), 1)
            for _, run in sorted(started.items())}


def take_free_ports() -> None:
    """Set ports that nobody uses, so that a running stack is not disturbed."""
    probes = {name: socket.create_server(("127.0.0.1", 0)) for name in SERVERS}
    for name, probe in probes.items():
        os.environ[f"ANNEAL_{name.upper()}_PORT"] = str(probe.getsockname()[1])
        probe.close()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # prefect's threads may go on asking the server that was just stopped, seen for 150 s
