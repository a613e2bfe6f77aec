"""Processes of the local stack: started detached, known again later, stopped with all they started.

In:   a Plan                       Out: a `Service` (pid and creation time), which goes into stack.json
A process is ours only if pid and creation time match: a reused pid is never stopped. What a dead
service left behind is known by a mark in its environment.
Dies half-way: a service that was started but not yet noted is found by its mark.
Run alone: python -m infra.stack.processes PID   (ends the runs of a worker, as systemd does before it stops the worker)
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.process import spawn
from infra.settings import Settings
from infra.stack.services import MARK, ServicePlan

STOP_ORDER = ("keeper", "reconcile", "gateway", "worker", "predictor", "mlflow", "prefect")
TERM_GRACE_S = 5
KILL_WAIT_S = 5
POLL_S = 0.2
CLOCK_S = 60  # creation times move with the system clock; no pid comes round within this time

SILENT_S = 900
"""Longer than between two beats of a service that works: one look of the keeper may start all services again, which
takes minutes each."""

# Popen objects of services that outlive this process on purpose; kept so that Python does not complain.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, kw_only=True)
class Service:
    """A process of the stack, as it stands in stack.json."""

    url: str
    pid: int
    started: float
    """Creation time of the process, seconds since 1970."""
    health: str = ""
    """Answers 200 when the service works; empty for one that listens nowhere."""
    beat: str = ""
    """A file that the service touches again and again; empty for one without."""
    ticks: int = 0
    """Creation time of the process in clock ticks since the machine's start, which a change of the clock does not
    move; 0 in a stack.json of an earlier release."""


def start(plan: ServicePlan, log: Path) -> Service:
    """Start a process that outlives this one; the log of its predecessor becomes <service>.log.1."""
    with suppress(FileNotFoundError):
        log.replace(log.with_suffix(".log.1"))
    child = spawn(plan.command, log=log, env=plan.env, tied=False)
    _children[child.pid] = child
    return Service(
        url=plan.url, pid=child.pid, started=psutil.Process(child.pid).create_time(), health=plan.health,
        beat=plan.beat, ticks=_ticks(child.pid))


def reap() -> None:
    """Wait for those of our children that died, so that no zombie stays."""
    for child in _children.values():
        child.poll()


def process_of(service: Service) -> psutil.Process | None:
    """The service's process if it lives and is the one that was started."""
    try:
        process = psutil.Process(service.pid)
        if service.ticks:
            is_ours = _ticks(service.pid) == service.ticks
        else:
            is_ours = abs(process.create_time() - service.started) < CLOCK_S
        return process if is_ours and lives(process) else None
    except (psutil.NoSuchProcess, OSError):
        return None


def silence_s(service: Service) -> float:
    """Since the service's last beat, or its start; 0 for one without."""
    try:
        return time.time() - max(Path(service.beat).stat().st_mtime, service.started) if service.beat else 0.0
    except FileNotFoundError:
        return 0.0


def stop_all(running: Mapping[str, Service], grace_s: float) -> list[str]:
    """Stop services, the Prefect server last, so that runs can still report. Returns their names.

    Args:
        grace_s: time that trainings have to save a checkpoint and the predictor to end its answers.
    """
    names = [name for name in STOP_ORDER if name in running]
    for name in names:
        process = process_of(running[name])
        if process and name == "worker":
            with suppress(psutil.NoSuchProcess):
                end_runs(process, grace_s)
        if process:
            _stop(process, TERM_GRACE_S + (grace_s if name == "predictor" else 0), alone=name == "keeper")
        if child := _children.pop(running[name].pid, None):
            child.poll()
    return names


def left_over(home: Path) -> set[psutil.Process]:
    """Processes of the stack whose service died before them, such as the runs of a killed worker."""
    ourselves = {psutil.Process(), *psutil.Process().parents()}
    found = set()
    for process in set(psutil.process_iter()) - ourselves:
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(home):
                found.add(process)
    return found


def remains_of(service: Service, home: Path) -> set[psutil.Process]:
    """Processes of the stack in the session of a service whose first process died: they hold its port."""
    found = set()
    for process in left_over(home):
        with suppress(ProcessLookupError):
            if os.getsid(process.pid) == service.pid:
                found.add(process)
    return found


def kill(processes: set[psutil.Process]) -> None:
    """SIGKILL, and wait until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=KILL_WAIT_S)


def end_runs(worker: psutil.Process, grace_s: float) -> None:
    """SIGTERM to the worker's runs, so that they save a checkpoint and tell the server how they ended.

    A worker that is told to stop kills its runs at once, and the server shows them as running for ever.
    """
    told: set[psutil.Process] = set()
    deadline = time.monotonic() + grace_s + TERM_GRACE_S
    while (runs := {run for run in worker.children() if lives(run)}) and time.monotonic() < deadline:
        for run in runs - told:
            with suppress(psutil.NoSuchProcess):
                run.terminate()
        told |= runs
        time.sleep(POLL_S)


def _stop(process: psutil.Process, grace_s: float, *, alone: bool) -> None:
    """SIGTERM to the process, SIGKILL to what is left of its tree; `alone`: its children are services themselves."""
    tree = {process}
    with suppress(psutil.NoSuchProcess):
        tree |= set() if alone else set(process.children(recursive=True))
        process.terminate()
    psutil.wait_procs([process], timeout=grace_s)
    kill(tree)


def lives(process: psutil.Process) -> bool:
    """False also for a zombie, which nobody has waited for yet."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_stopped(process: psutil.Process) -> bool:
    """Whether SIGSTOP or the like holds it; a debugger is no such thing."""
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def _ticks(pid: int) -> int:
    """Field 22 of /proc/PID/stat (proc(5)); the name before it may hold spaces and brackets. Raises OSError."""
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19])


def main(pid: int) -> None:
    """End the runs of the worker that is this process."""
    with suppress(psutil.NoSuchProcess):
        end_runs(psutil.Process(pid), Settings().stop_grace_s)


if __name__ == "__main__":
    main(int(sys.argv[1]))
