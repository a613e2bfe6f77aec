"""`make soak`: one long training through the deployment of a stack that loses something every minute.

    python -m tests.benchmarks.soak --minutes 30 --seed 0

Every EVERY_S seconds one fault of FAULTS strikes, in random order (seeded), each kind once before any comes again
(one whose victim is not there waits for it, and the next one for its minute after that):
SIGKILL to a rank, to the run's process, to the worker, to both, to the Prefect server, MLflow or the predictor, and
SIGSTOP to a rank, which only the watchdog finds (ANNEAL_STEP_TIMEOUT_S = STALL_S). Nobody helps: the keeper, the
worker and deployments/reconcile.py do the rest. When the minutes are over, the training ends undisturbed.

effective_pct = 100 * useful_s / window_s: the share of the time that was spent on useful training, as in A. Grattafiori
et al., "The Llama 3 Herd of Models" (arXiv 2407.21783), section 3.3.4 (more than 90 %, several faults a day), with
    useful_s     time between two steps of one launch, where the later one is done for the first time, without the
                 standstill for checkpoints
    window_s     wall time from the first step to the end of the minutes, or of the last step if that came earlier
quiet_pct is stricter: 100 * kept steps * step_s / window_s. On two cores it also misses what the processes of the stack
take from the ranks while they train, with
    kept steps   optimizer steps done within the window, each number counted once however often it was done
    step_s       median time between two steps of one launch before the first fault
cost_s is, for each fault, the time from its strike to the first step that had not been done before it.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from infra.settings import Settings
from infra.stack import local as stack
from infra.stack import services
from infra.stack.processes import lives
from tests.benchmarks.data import STORIES, needs_shared
from tests.benchmarks.report import finish, say
from tests.benchmarks.steps import Log
from tests.conftest import SHARED, free_port, ranks_in, training_processes, wait_for
from tests.e2e.conftest import Stack
from tests.e2e.test_recovery import flow_process

EVERY_S = 60
STALL_S = 5
"""Steps take a quarter of a second; a rank that is silent for 20 of them is frozen."""
POLL_S = 1.0
GOAL_PCT = 90
GONE_S = 5
CHECKPOINT_S = 5
END_S = 3600
TRIAL_STEPS = 60
ROWS = 200
NAME = "soak/long"
KNOBS = {"chunk_size": 512, "pack_sequences": True, "train_batch_size": 8, "num_ranks": 2, "num_train_epochs": 1000,
         "max_new_tokens": 16, "num_evaluation_samples": 8, "num_validation_samples": 8, "gate": "off",
         "run_validation": False, "learning_rate": 1e-4}
Find = Callable[[Settings, str], list[psutil.Process]]


def service(*names: str) -> Find:
    """The processes of services, as stack.json has them."""
    return lambda settings, run: [psutil.Process(stack.read_stack(settings)[name].pid) for name in names]


def rank(settings: Settings, run: str) -> list[psutil.Process]:
    """One of the processes that train."""
    ranks = ranks_in(settings.home_path)
    return ranks[-1:] if len(ranks) == KNOBS["num_ranks"] else []


def flow(settings: Settings, run: str) -> list[psutil.Process]:
    """The process of the run."""
    return flow_process(run)


def flow_and_worker(settings: Settings, run: str) -> list[psutil.Process]:
    """Both, or nothing where the run has no process now."""
    run_process = flow(settings, run)
    return [*service("worker")(settings, run), *run_process] if run_process else []


FAULTS: dict[str, tuple[Find, signal.Signals]] = {
    "rank killed": (rank, signal.SIGKILL), "rank frozen": (rank, signal.SIGSTOP),
    "run killed": (flow, signal.SIGKILL), "worker killed": (service("worker"), signal.SIGKILL),
    "worker and run killed": (flow_and_worker, signal.SIGKILL),
    "prefect killed": (service("prefect"), signal.SIGKILL), "mlflow killed": (service("mlflow"), signal.SIGKILL),
    "predictor killed": (service("predictor"), signal.SIGKILL)}


@dataclass
class Fault:
    """One that has struck."""

    kind: str
    time: float
    step: int
    """The last one done before it."""
    orphans: int = 0


def main() -> None:
    """Start a stack, disturb, print, judge."""
    needs_shared()
    options = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary) / "home"
        os.environ.update({
            "ANNEAL_HOME": str(home), "ANNEAL_STEP_TIMEOUT_S": str(STALL_S), "PREFECT_LOGGING_LEVEL": "WARNING",
            **{f"ANNEAL_{name}_PORT": str(free_port()) for name in ("PREFECT", "MLFLOW", "PREDICTOR", "GATEWAY")}})
        settings = Settings()
        os.environ.update(services.for_runs(settings))
        from deployments.prefect_setup.apply import deploy

        stack.up(settings, prepare=deploy)
        os.environ.update(services.for_runs(settings))  # with what MLflow asks for
        try:
            figures = soak(Stack(settings, {}), options.minutes * 60, random.Random(options.seed))
        finally:
            stack.down(settings)
    goals = {
        f"at least {GOAL_PCT} % of the time is training that counts (is {figures['effective_pct']} %)":
            figures["effective_pct"] >= GOAL_PCT,
        "no run is lost": figures["lost_runs"] == 0, "no version is made twice": figures["duplicate_versions"] == 0,
        "no process is left": figures["orphans"] == 0}
    told = {"minutes": options.minutes, "seed": options.seed, **figures, "goal": GOAL_PCT}
    finish(told, goals, ("prefect", "mlflow"))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def soak(running: Stack, window_s: float, chance: random.Random) -> dict[str, Any]:
    """A trial to learn how long a step takes, then the long training."""
    home = running.settings.home_path
    with (SHARED / "data" / "mts_dialog" / "train.jsonl").open(encoding="utf-8") as file:
        (home / "rows.jsonl").write_text("".join(islice(file, ROWS)), encoding="utf-8")
    wanted = {"train_data": str(home / "rows.jsonl"), "base_model": str(STORIES), **KNOBS}
    trial = Log(home)
    run = running.start_run({**wanted, "destination": "soak/trial", "max_steps": TRIAL_STEPS})
    follow(running, run, trial)
    step_s = trial.step_s(time.time())
    steps, every = int(GOAL_PCT / 100 * window_s / step_s), max(1, round(CHECKPOINT_S / step_s))
    say(f"a step takes {step_s:.3f} s; {steps} steps, a checkpoint every {every}")

    run = running.start_run({**wanted, "destination": NAME, "max_steps": steps, "checkpoint_steps": every})
    log = Log(home)

    def trains() -> bool:
        log.read()
        return bool(log.steps)

    wait_for(trains, "it does not train", END_S)
    end = log.steps[0].time + window_s
    faults = list(strikes(running, run, log, end, steps, chance))
    follow(running, run, log)
    return judged(running, run, log, faults, min(end, log.steps[-1].time))


def strikes(
    running: Stack, run: str, log: Log, end: float, steps: int, chance: random.Random,
) -> Iterator[Fault]:
    """A fault a minute until the window or the training is over."""
    bag: list[str] = []
    due = log.steps[0].time + EVERY_S
    while True:
        while time.time() < due:
            log.read()
            if time.time() > end or log.last >= steps:
                return
            time.sleep(POLL_S)
        bag = bag or chance.sample(sorted(FAULTS), len(FAULTS))
        if (fault := strike(running, run, bag.pop(), log, end)) is not None:
            yield fault
        due = time.time() + EVERY_S


def strike(running: Stack, run: str, kind: str, log: Log, end: float) -> Fault | None:
    """Let it strike as soon as there is a victim; None if there is none before the end. Asserts that it struck."""
    settings, (find, number) = running.settings, FAULTS[kind]
    while not (victims := alive(find, settings, run)):
        log.read()
        if time.time() > end or over(running, run):
            return None
        time.sleep(POLL_S)
    log.read()
    below = training_processes(settings.home_path) if "run" in kind else []
    fault = Fault(kind, time.time(), log.last)
    for victim in victims:
        victim.send_signal(number)
    if number == signal.SIGSTOP:
        wait_for(lambda: victims[0].status() == psutil.STATUS_STOPPED, f"{kind}: it did not stop", GONE_S)
    else:
        wait_for(lambda: not any(lives(victim) for victim in victims), f"{kind}: it did not die", GONE_S)
    fault.orphans = len(psutil.wait_procs(below, timeout=GONE_S)[1])
    say(f"  {time.strftime('%H:%M:%S')}  step {fault.step:<6} {kind}")
    return fault


def alive(find: Find, settings: Settings, run: str) -> list[psutil.Process]:
    """The victims, all of them alive, or none."""
    try:
        victims = find(settings, run)
        return victims if all(lives(victim) for victim in victims) else []
    except (psutil.Error, KeyError):
        return []


def follow(running: Stack, run: str, log: Log) -> None:
    """Read along until the run has ended."""
    deadline = time.time() + END_S
    while not over(running, run):
        assert time.time() < deadline, "the run does not end"
        log.read()
        time.sleep(POLL_S)
    log.read()


def over(running: Stack, run: str) -> bool:
    """Whether the run has ended for good; a server that is away does not say so."""
    with suppress(Exception):
        return bool(running.prefect(f"/flow_runs/{run}")["state"]["type"] in ("COMPLETED", "FAILED", "CANCELLED"))
    return False


def judged(running: Stack, run: str, log: Log, faults: list[Fault], end: float) -> dict[str, Any]:
    """The figures."""
    first = log.steps[0].time
    step_s = log.step_s(faults[0].time if faults else end)
    within = [step.number for step in log.steps if step.time <= end]
    costs: dict[str, list[float]] = {}
    for fault in faults:
        further = [step.time for step in log.steps if step.number > fault.step and step.time > fault.time]
        costs.setdefault(fault.kind, []).append(round(further[0] - fault.time, 1) if further else -1.0)
    found = running.prefect(f"/flow_runs/{run}")
    return {
        "faults": {kind: len(values) for kind, values in sorted(costs.items())}, "cost_s": costs,
        "window_s": round(end - first, 1), "step_s": round(step_s, 4), "steps_done": len(set(within)),
        "steps_redone": len(within) - len(set(within)), "launches": len(log.launches), "attempts": found["run_count"],
        "effective_pct": round(100 * log.useful_s(end) / (end - first), 1),
        "quiet_pct": round(100 * len(set(within)) * step_s / (end - first), 1),
        "lost_runs": int(found["state"]["type"] != "COMPLETED"),
        "duplicate_versions": len(running.versions(NAME)) - 1,
        "orphans": sum(fault.orphans for fault in faults) + len(training_processes(running.settings.home_path))}


if __name__ == "__main__":
    main()
