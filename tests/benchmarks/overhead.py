"""`make bench-overhead`: what Prefect costs a training, and what the stack costs a machine that does nothing.

The seven steps as a flow with a running server, against the same functions called one after the other in a plain
script; each a process of its own that does everything anew (another seed each time, the same data and tiny model).
Beside it: seconds from a trigger to the first optimizer step of the worker's run, milliseconds of a task that does
nothing; and of the idle stack its memory (proportional set size, so that shared pages count once) and its share of a
core over IDLE_S. `--idle`: only these two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from infra.settings import Settings
from infra.stack import local as stack
from infra.stack import services
from infra.stack.processes import process_of
from tests.benchmarks.data import STORIES, needs_shared
from tests.benchmarks.report import finish, interleaved, medians, say
from tests.conftest import ROOT, SHARED, free_port
from tests.support.prefect_api import ask

ROUNDS = 3
TRIGGERS = 3
TASKS = 200
GOAL_S = 5.0
SETTLE_S, IDLE_S = 60, 180
IDLE_GOAL_PCT, IDLE_GOAL_MIB = 10, 1100
"""1.1 GiB."""
WAIT_S = 300
KNOBS = {"chunk_size": 512, "pack_sequences": True, "train_batch_size": 2, "max_steps": 20, "num_ranks": 1,
         "max_new_tokens": 16, "num_evaluation_samples": 8, "num_validation_samples": 8, "gate": "off"}
PLAIN = """
import json, sys
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from infra.models.base_models import find_base
from tasks.deploy import deploy
from tasks.evaluate import evaluate
from tasks.launcher.placement import place
from tasks.ingest import ingest
from tasks.pack import pack
from tasks.register import register
from tasks.train import train
from tasks.validate import validate
settings, spec = Settings(), TrainingSpec(**json.loads(sys.argv[1]))
store = Store(settings)
split = validate(store, ingest(settings, store, spec.train_data), None, spec.num_validation_samples)
base = find_base(settings, spec.base_model)
packed = pack(settings, store, split, base, spec)
placement = place(settings, spec, packed, base)
trained = train(settings, store, placement, packed, base, lambda event: None)
evaluation = evaluate(settings, store, placement, trained, split, packed, base)
version = register(settings, store, placement.spec, trained, evaluation, split, packed, base)
deploy(settings, spec, version, evaluation, base)
"""
FLOW = """
import json, sys
from flows.finetune import finetune
finetune(json.loads(sys.argv[1]))
"""
EMPTY = """
import sys, time, flows
from prefect import flow, task
@task
def nothing(): pass
@flow
def many(number):
    began = time.perf_counter()
    for _ in range(number): nothing()
    return time.perf_counter() - began
number = int(sys.argv[1])
print(many(number) / number)
"""


def main() -> None:
    """Start a stack, measure, print, judge."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--idle", action="store_true", help="only the idle stack")
    only_idle = options.parse_args().idle
    needs_shared()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        os.environ.update({"ANNEAL_HOME": str(home / "home"), "PREFECT_LOGGING_LEVEL": "WARNING", **{
            f"ANNEAL_{name}_PORT": str(free_port()) for name in ("PREFECT", "MLFLOW", "PREDICTOR", "GATEWAY")}})
        settings = Settings()
        os.environ.update(services.for_runs(settings))
        from deployments.prefect_setup.apply import deploy

        stack.up(settings, prepare=deploy)
        os.environ.update(services.for_runs(settings))  # with what the services ask for
        try:
            figures = idle(settings)
            if not only_idle:
                figures |= measure(settings, home)
        finally:
            stack.down(settings)
    goals = {f"the idle stack takes at most {IDLE_GOAL_PCT} % of a core (is {figures['idle_pct']:.1f})":
             figures["idle_pct"] <= IDLE_GOAL_PCT,
             f"and at most {IDLE_GOAL_MIB} MiB (is {figures['idle_mib']:.0f})": figures["idle_mib"] <= IDLE_GOAL_MIB}
    if only_idle:
        finish(figures, goals, ("prefect", "mlflow"))
        return
    extra = figures["flow_s"] - figures["plain_s"]
    goal = f"a training in Prefect takes at most {GOAL_S:.0f} s longer (is {extra:.1f} s)"
    finish({**figures, "overhead_s": extra, "ratio_plain": figures["flow_s"] / figures["plain_s"]},
           {goal: extra <= GOAL_S, **goals}, ("prefect", "mlflow"))


def idle(settings: Settings) -> dict[str, Any]:
    """What the services take of a core and of memory while nothing runs."""
    running = {name: service for name, service in stack.read_stack(settings).items() if process_of(service)}
    time.sleep(SETTLE_S)
    before, began = {name: cpu_s(service.pid) for name, service in running.items()}, time.monotonic()
    time.sleep(IDLE_S)
    span_s = time.monotonic() - began
    shares = {name: round(100 * (cpu_s(service.pid) - before[name]) / span_s, 2) for name, service in running.items()}
    memory = {name: memory_mib(service.pid) for name, service in running.items()}
    say(f"idle stack: {sum(shares.values()):.1f} % of a core {shares}, {sum(memory.values()):.0f} MiB {memory}")
    return {"idle_pct": sum(shares.values()), "idle_pct_of": shares, "idle_mib": sum(memory.values()),
            "idle_mib_of": memory}


def measure(settings: Settings, home: Path) -> dict[str, Any]:
    """All figures, medians."""
    rows = home / "rows.jsonl"
    with (SHARED / "data" / "mts_dialog" / "train.jsonl").open(encoding="utf-8") as file:
        lines = list(islice(file, 200))
    numbers = count()

    def parameters() -> dict[str, Any]:
        number = next(numbers)  # other rows each time, or packing would be found done
        rows.write_text("".join(lines[number:] + lines[:number]), encoding="utf-8")
        return {"train_data": str(rows), "base_model": str(STORIES), "destination": "bench/overhead", "seed": number,
                **KNOBS}

    def run(code: str) -> Callable[[], float]:
        def measured() -> float:
            wanted, began = json.dumps(parameters()), time.perf_counter()
            python(code, wanted, PREFECT_API_URL=settings.prefect_api)
            return time.perf_counter() - began
        return measured

    run(PLAIN)()  # what is read for the first time
    found = interleaved({"plain": run(PLAIN), "flow": run(FLOW)}, ROUNDS)
    firsts = [first_step(settings, parameters()) for _ in range(TRIGGERS)]
    task_s = [float(python(EMPTY, str(TASKS), PREFECT_API_URL=settings.prefect_api).split()[-1]) for _ in range(3)]
    return {
        "plain_s": medians(found)["plain"], "flow_s": medians(found)["flow"], "rounds": found,
        "trigger_to_first_step_s": median(firsts), "task_ms": 1000 * median(task_s)}


def python(code: str, *arguments: str, **environment: str) -> str:
    """What a script prints. Raises CalledProcessError, with its errors on our stderr."""
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, check=True, text=True,
                          stdout=subprocess.PIPE, env={**os.environ, **environment}).stdout


def first_step(settings: Settings, parameters: dict[str, Any]) -> float:
    """Seconds from the request to the first optimizer step, as the trainer's events tell it."""
    deployment = ask(settings, "/deployments/name/finetune/finetune").json()["id"]
    before = set(settings.home_path.glob("trainings/*/events.jsonl"))
    began = time.time()
    wanted = {"parameters": {"training": parameters}}
    run = ask(settings, f"/deployments/{deployment}/create_flow_run", wanted).json()["id"]
    deadline, told = time.time() + WAIT_S, 0.0
    while time.time() < deadline:
        for file in set(settings.home_path.glob("trainings/*/events.jsonl")) - before:
            for line in file.read_text().splitlines() if file.exists() else []:
                event = json.loads(line) if line.endswith("}") else {}
                if event.get("event") == "step" and not told:
                    told = float(event["time"])
        if told and ask(settings, f"/flow_runs/{run}").json()["state"]["type"] == "COMPLETED":
            say(f"  trigger to first step {told - began:.1f} s")
            return told - began
        time.sleep(0.02 if not told else 0.5)
    raise TimeoutError(f"flow run {run} did not get there")


def cpu_s(pid: int) -> float:
    """Seconds of a core that a process and its children have taken, those that ended too."""
    tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return float(sum(sum(process.cpu_times()[:4]) for process in tree))


def memory_mib(pid: int) -> float:
    """Proportional set size of a process and its children, in MiB."""
    tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return float(round(sum(process.memory_full_info().pss for process in tree) / 2**20, 1))


if __name__ == "__main__":
    main()
