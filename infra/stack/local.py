"""The local stack: Prefect, MLflow, predictor, gateway, process worker, reconcile and keeper as detached processes.

In:   Settings (host, ports, home, store)
Out:  running services; <home>/stack.json says where, <home>/logs/<service>.log what they print
Dies half-way: stack.json is written after every start, so `down` or the next `up` finds what runs.
A service that dies or hangs is started again by infra/stack/supervisor.py, which runs beside them.
Run alone: anneal up | anneal status | anneal down
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from infra.errors import Broken, UserError
from infra.files import write_atomic
from infra.process import tail
from infra.run_listener import listener
from infra.settings import Settings
from infra.stack import services
from infra.stack.health import ANSWER_TIMEOUT_S, Condition, State, get_within, readiness
from infra.stack.processes import (
    SILENT_S,
    Service,
    is_stopped,
    kill,
    left_over,
    process_of,
    remains_of,
    silence_s,
    start,
    stop_all,
)
from infra.stack.services import ServicePlan

NAMES = ("prefect", "mlflow", "predictor", "gateway", "worker", "reconcile", "keeper")
START_TIMEOUT_S = 180
POLL_S = 0.2


def up(
    settings: Settings, *, prepare: Callable[[Settings], object] | None = None, only: Collection[str] = NAMES,
) -> dict[str, Service]:
    """Start what does not run yet, wait until all of it answers, return what runs.

    Args:
        prepare: called when the servers answer and before the worker starts (creates the pool and deployments).
        only: names of the services to care for; the others are left as they are.

    Raises:
        UserError: a port is taken by another program.
        Broken: a service died or did not answer. What this call started is stopped again.
    """
    with stack_lock(settings):
        before = _alive(settings)
        for name, service in read_stack(settings).items():
            if name in only and name not in before and name != "worker":  # its runs go on
                kill(remains_of(service, settings.home_path))
        _write(settings, before)
        try:
            plans = [plan for plan in services.servers(settings) if plan.name in only]
            for plan in plans:
                _check_port(settings, plan, before)
            for plan in plans:
                _start(settings, plan)
            for plan in plans:
                with _told(plan.name, plan.name not in before):
                    _wait_until_ready(settings, plan)
            if prepare is not None:
                with _told("deployments", not before):
                    prepare(settings)
            api = settings.prefect_api
            clients = (services.worker(settings, api), services.reconcile(settings, api))
            for group in (clients, (services.keeper(settings),)):
                plans = [plan for plan in group if plan.name in only]
                for plan in plans:
                    _start(settings, plan)
                for plan in plans:
                    with _told(plan.name, plan.name not in before):
                        _wait_until_ready(settings, plan)
            return read_stack(settings)
        except BaseException:
            mine = {name: service for name, service in read_stack(settings).items() if before.get(name) != service}
            stop_all(mine, settings.stop_grace_s)
            _write(settings, before)
            raise


def down(settings: Settings) -> list[str]:
    """Stop what `up` started, and nothing else. Returns the names of the services that were stopped."""
    keeper = {name: service for name, service in _alive(settings).items() if name == "keeper"}
    stopped = stop_all(keeper, 0)  # before the lock, which it may hold, and before it starts the others again
    with stack_lock(settings):
        stopped += stop_all(_alive(settings), settings.stop_grace_s)
        if left := left_over(settings.home_path):
            kill(left)
            stopped.append(f"{len(left)} left-over processes")
        _file(settings).unlink(missing_ok=True)
        return stopped


def status(settings: Settings, *, ask: bool = True) -> dict[str, State]:
    """How each service fares; without `ask` one that runs is not asked whether it answers."""
    return {name: found.state for name, found in conditions(settings, ask=ask).items()}


def conditions(settings: Settings, *, ask: bool = True) -> dict[str, Condition]:
    """The same with the reasons."""
    running = read_stack(settings)
    return {name: _condition(settings, name, running.get(name), ask) for name in NAMES}


def missing(settings: Settings) -> list[str]:
    """Names of the services that `up` starts: those that belong on this machine and do not run."""
    here = {*(plan.name for plan in services.servers(settings)), "worker", "reconcile", "keeper"}
    return [name for name, state in status(settings, ask=False).items() if name in here and state == "stopped"]


def read_stack(settings: Settings) -> dict[str, Service]:
    """What stack.json says; empty without one."""
    try:
        state = json.loads(_file(settings).read_text(encoding="utf-8"))
        return {name: Service(**service) for name, service in state["services"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"not a state file of this release ({error})", where=str(_file(settings)),
            fix="Stop the services by hand (`ps -ef | grep -e prefect -e mlflow`), then delete the file.") from error


def wait_until_responds(
    url: str, timeout_s: float, log: Path, is_alive: Callable[[], bool] = lambda: True,
) -> None:
    """Wait until `url` answers 200. Raises Broken with the end of `log` if it dies or takes too long."""
    _wait_until(lambda: is_answering(url), timeout_s, url, log, is_alive)


def is_answering(url: str) -> bool:
    """Whether `url` answers 200 now; proxies are not asked."""
    return get_within(url, ANSWER_TIMEOUT_S).status == 200


def service_log(settings: Settings, name: str) -> Path:
    """Where a service's output stands."""
    return settings.home_path / "logs" / f"{name}.log"


# --- how it fares ------------------------------------------------------------


def _condition(settings: Settings, name: str, service: Service | None, ask: bool) -> Condition:
    process = process_of(service) if service else None
    if service is None or process is None:
        return Condition("stopped", f"its process ended; see {service_log(settings, name)}" if service else "")
    if not ask or (service.health and is_answering(service.health)):
        return readiness(service.url) if ask and name == "predictor" else Condition("running")
    if is_stopped(process):
        return Condition("not answering", f"process {service.pid} is stopped by a signal; "
                                          f"`kill -CONT {service.pid}` lets it go on")
    if service.health:
        found = get_within(service.health, ANSWER_TIMEOUT_S).status
        said = f"answers {found}" if found else f"does not answer within {ANSWER_TIMEOUT_S} s"
        return Condition("not answering", f"{service.health} {said}; see {service_log(settings, name)}")
    if (silence := silence_s(service)) > SILENT_S:
        return Condition("not answering", f"it has not looked for {silence / 60:.0f} minutes; "
                                          "run `anneal down` and `anneal up`")
    return Condition("running")


# --- start -------------------------------------------------------------------


def _check_port(settings: Settings, plan: ServicePlan, running: Mapping[str, Service]) -> None:
    if plan.name in running:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, plan.port))
        except OSError as error:
            raise UserError(
                f"cannot listen on {settings.host} port {plan.port} ({error.strerror})", where=plan.name,
                allowed="a port that no other program uses",
                fix=f"Stop that program (`anneal down`, if an earlier stack left it), "
                    f"or set {plan.port_variable} to a free port.") from error


def _start(settings: Settings, plan: ServicePlan) -> None:
    """Start a service unless it runs, and note it in stack.json."""
    running = read_stack(settings)
    if plan.name in running:
        return
    _write(settings, {**running, plan.name: start(plan, service_log(settings, plan.name))})


@contextmanager
def _told(name: str, is_news: bool) -> Iterator[None]:
    """Let the terminal hear of it, if it is news."""
    if is_news:
        listener().step_begins(name)
    yield
    if is_news:
        listener().step_ends(name, None, was_done=False)


def _wait_until_ready(settings: Settings, plan: ServicePlan) -> None:
    service, log = read_stack(settings)[plan.name], service_log(settings, plan.name)

    def is_ready() -> bool:
        if service.health:
            return is_answering(service.health)
        return plan.ready_line in log.read_text(encoding="utf-8", errors="replace")

    _wait_until(is_ready, START_TIMEOUT_S, plan.name, log, lambda: process_of(service) is not None)


def _wait_until(
    is_ready: Callable[[], bool], timeout_s: float, what: str, log: Path, is_alive: Callable[[], bool],
) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_ready():
        found = "" if is_alive() else "the process ended before it answered"
        if time.monotonic() > deadline:
            found = f"no answer within {timeout_s:.0f} s"
        if found:
            raise Broken(found, where=what, fix=f"Its log ({log}) ends with:\n{tail(log)}")
        time.sleep(POLL_S)


# --- state -------------------------------------------------------------------


def _alive(settings: Settings) -> dict[str, Service]:
    return {name: service for name, service in read_stack(settings).items() if process_of(service)}


def _write(settings: Settings, running: Mapping[str, Service]) -> None:
    if not running:
        _file(settings).unlink(missing_ok=True)
        return
    state = {"services": {name: dataclasses.asdict(service) for name, service in running.items()}}
    write_atomic(_file(settings), json.dumps(state, indent=1))


def _file(settings: Settings) -> Path:
    return settings.home_path / "stack.json"


@contextmanager
def stack_lock(settings: Settings) -> Iterator[None]:
    """While nobody else starts or stops services of this home; the lock goes with the process."""
    with (settings.home_path / "stack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
