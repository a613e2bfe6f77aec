"""Hole 7 of issue 20: a service that hangs is killed and started again, and status says what is wrong.

Run: pytest tests/infra/stack/test_supervisor.py

The services are small servers in real processes under the real keeper, whose patience is cut from a minute to seconds;
the last test (chaos) has the real predictor and the real minute.

Tests infra/stack/health.py, infra/stack/processes.py too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployments.cli import main as cli
from deployments.predictor.app import MOST_ORDERS
from infra.settings import Settings
from infra.stack import health, processes, services, supervisor
from infra.stack import local as stack
from infra.stack.processes import Service
from infra.stack.services import MARK, ServicePlan
from tests.conftest import free_port, wait_for
from tests.deployments.predictor.conftest import Predictor, needs_stories, predictor, versions

__all__ = ["predictor", "versions"]  # fixtures

SERVER = '''
import os, signal, socket, sys, threading, time
mode = sys.argv[2] if len(sys.argv) > 2 else "well"
def change(*_):
    global mode
    mode = os.environ["MODE"]
signal.signal(signal.SIGUSR1, change)
head = b"HTTP/1.1 200 OK\\r\\nContent-Length: 4\\r\\n\\r\\n"
def answer(connection):
    connection.recv(65536)
    if mode == "well": connection.sendall(head + b"true")
    if mode == "busy": connection.sendall(head.replace(b"200 OK", b"503 Busy") + b"true")
    if mode == "broken": connection.sendall(head.replace(b"200 OK", b"500 Error") + b"true")
    if mode == "body": connection.sendall(head)
    if mode == "trickle":
        for letter in head + b"true":
            connection.sendall(bytes([letter])); time.sleep(0.3)
    if mode in ("body", "silent"): time.sleep(600)
    connection.close()
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=answer, args=[connection], daemon=True).start()
'''
WORKER = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); " \
         "print('started!', flush=True); time.sleep(600)"
IDLE = "import time; print('looking', flush=True); time.sleep(600)"
KEEPER = '''
import sys
from infra.stack import services, supervisor
from infra.stack.services import MARK, ServicePlan
from infra.settings import Settings
env = {{MARK: {home!r}, "MODE": {mode!r}}}
url = "http://127.0.0.1:{port}"
plan = ServicePlan(name="mlflow", command=(sys.executable, "-c", {server!r}, "{port}"), env=env, url=url, health=url,
            port={port}, port_variable="ANNEAL_MLFLOW_PORT")
services.servers = lambda _: [plan]
services.worker = lambda *_: ServicePlan(name="worker", command=(sys.executable, "-c", {worker!r}), env=env,
                                  ready_line="started!")
services.reconcile = lambda *_: ServicePlan(name="reconcile", command=(sys.executable, "-c", {idle!r}), env=env,
                                     ready_line="looking")
supervisor.ASK_EVERY_S, supervisor.ANSWER_TIMEOUT_S, supervisor.MISSES, supervisor.FIRST_MISSES = 0.3, 1.0, 3, 60
print("keeping", flush=True)
supervisor.keep(Settings(home={home!r}, mlflow_port={port}))
'''


@pytest.fixture(autouse=True)
def commands_see_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same home and ports for `anneal status`."""
    for name in ("home", "prefect_port", "mlflow_port", "predictor_port", "gateway_port"):
        monkeypatch.setenv(f"ANNEAL_{name.upper()}", str(getattr(settings, name)))


def started(settings: Settings, monkeypatch: pytest.MonkeyPatch, mode: str = "silent") -> dict[str, Service]:
    """A server that answers well until SIGUSR1, a worker with a run, and the keeper."""
    port, home = settings.mlflow_port, str(settings.home_path)
    env, url = {MARK: home, "MODE": mode}, f"http://127.0.0.1:{settings.mlflow_port}"
    code = KEEPER.format(port=port, server=SERVER, worker=WORKER, idle=IDLE, home=home, mode=mode)
    monkeypatch.setattr(services, "servers", lambda _: [ServicePlan(
        name="mlflow", command=(sys.executable, "-c", SERVER, str(port)), env=env, url=url, health=url, port=port,
        port_variable="ANNEAL_MLFLOW_PORT")])
    monkeypatch.setattr(services, "worker", lambda *_: ServicePlan(
        name="worker", command=(sys.executable, "-c", WORKER), env=env, ready_line="started!"))
    monkeypatch.setattr(services, "reconcile", lambda *_: ServicePlan(
        name="reconcile", command=(sys.executable, "-c", IDLE), env=env, ready_line="looking"))
    monkeypatch.setattr(services, "keeper", lambda _: ServicePlan(
        name="keeper", command=(sys.executable, "-c", code), env=env, ready_line="keeping"))
    return stack.up(settings)


def comes_again(settings: Settings, name: str, before: Service) -> None:
    def is_new() -> bool:
        there = stack.read_stack(settings).get(name)
        return there is not None and there.pid != before.pid and stack.status(settings)[name] == "running"

    wait_for(is_new, f"{name} was not started again", 60)
    assert not psutil.pid_exists(before.pid) or psutil.Process(before.pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["silent", "broken"])  # others: test_an_answer_that_does_not_end_is_none
def test_a_server_that_hangs_is_killed_and_started_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, mode: str,
) -> None:
    before = started(settings, monkeypatch, mode)
    wait_for(lambda: services.beat_of(settings, "keeper").exists())
    threading.Event().wait(3)  # it has answered the keeper
    os.kill(before["mlflow"].pid, signal.SIGUSR1)
    comes_again(settings, "mlflow", before["mlflow"])
    assert stack.read_stack(settings)["worker"] == before["worker"]


@pytest.mark.slow
def test_a_stopped_server_and_a_stopped_worker_come_again_and_its_run_goes_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = started(settings, monkeypatch)
    (run,) = psutil.Process(before["worker"].pid).children()
    threading.Event().wait(3)
    for name in ("mlflow", "worker"):
        os.kill(before[name].pid, signal.SIGSTOP)
        found = stack.conditions(settings)[name]
        assert found.state == "not answering" and f"kill -CONT {before[name].pid}" in found.reason
    for name in ("mlflow", "worker"):
        comes_again(settings, name, before[name])
    assert run.is_running() and run.status() != psutil.STATUS_ZOMBIE
    assert stack.up(settings) == stack.read_stack(settings), "a second up finds all of it running"


@pytest.mark.slow
def test_a_busy_server_and_a_keeper_that_was_held_kill_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = started(settings, monkeypatch, "busy")
    threading.Event().wait(3)
    os.kill(before["mlflow"].pid, signal.SIGUSR1)
    os.kill(before["keeper"].pid, signal.SIGSTOP)
    assert stack.conditions(settings)["keeper"].state == "not answering"
    threading.Event().wait(8)
    os.kill(before["keeper"].pid, signal.SIGCONT)
    threading.Event().wait(8)
    assert stack.read_stack(settings) == before and stack.status(settings)["keeper"] == "running"


@pytest.mark.parametrize("mode", ["silent", "body", "trickle"])
def test_an_answer_that_does_not_end_is_none(mode: str) -> None:
    port = free_port()
    server = psutil.Popen([sys.executable, "-c", SERVER, str(port), mode])
    try:
        wait_for(lambda: any(c.laddr.port == port for c in server.net_connections()), timeout_s=20)
        assert health.get_within(f"http://127.0.0.1:{port}", 0.7) == (0, b"")
    finally:
        server.kill()
        server.wait()


def test_a_change_of_the_clock_makes_nobody_dead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = ServicePlan(name="x", command=(sys.executable, "-c", "input()"), env={})
    service = processes.start(plan, tmp_path / "x.log")
    boot = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 86_400)
    found = processes.process_of(service)
    reused = processes.process_of(Service(url="", pid=service.pid, started=service.started, ticks=service.ticks + 1))
    processes.stop_all({"worker": service}, 0)
    assert reused is None and found is not None


def test_a_service_has_time_to_start_and_is_not_lost_by_one_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[bool] = []
    monkeypatch.setattr(supervisor, "ASK_EVERY_S", 0)
    monkeypatch.setattr(supervisor, "works", lambda _: answers.pop(0))
    service, pulses = Service(url="", pid=1, started=1), supervisor.Pulses()

    def asked(*given: bool) -> bool:
        answers[:] = [*given, given[-1]]
        found = {}
        for _ in given:
            found = pulses.hanging({"x": service})
            pulses._threads.submit(lambda: None).result()
            threading.Event().wait(0.01)
        return bool(found)

    assert not asked(*[False] * supervisor.FIRST_MISSES)
    assert not asked(True, True) and not asked(*[False] * (supervisor.MISSES - 1), True, False, False)
    assert asked(*[False] * (supervisor.MISSES + 1))
    assert pulses.hanging({"x": Service(url="", pid=2, started=2)}) == {}, "a new process begins anew"


def test_a_keeper_that_hangs_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    keeping = psutil.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    state, beat = settings.home_path / "stack.json", services.beat_of(settings, "keeper")
    there: dict[str, Any] = {"url": "", "pid": keeping.pid, "started": keeping.create_time(), "beat": str(beat)}
    beat.parent.mkdir()
    beat.touch()
    os.utime(beat, (1, 1))
    try:
        state.write_text(json.dumps({"services": {"keeper": there}}))
        assert stack.status(settings)["keeper"] == "running", "it has just been started"
        there["started"] -= 59
        monkeypatch.setattr(stack, "SILENT_S", 50)
        state.write_text(json.dumps({"services": {"keeper": there}}))
        found = stack.conditions(settings)["keeper"]
        assert found.state == "not answering" and "has not looked" in found.reason
    finally:
        state.unlink()
        keeping.kill()
        keeping.wait()


def test_a_service_that_leaves_no_beat_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (beat := tmp_path / "reconcile.beat").touch()
    process = psutil.Process()
    there = Service(url="", pid=process.pid, started=process.create_time() - 59, beat=str(beat))
    assert supervisor.works(there)
    os.utime(beat, (1, 1))
    monkeypatch.setattr(supervisor, "SILENT_S", 50)
    assert not supervisor.works(there)
    assert supervisor.works(Service(url="", pid=process.pid, started=process.create_time() - 59)), "a worker has none"


@needs_stories
def test_health_answers_while_every_thread_waits_for_a_deployment(predictor: Predictor) -> None:
    a, shelf = predictor.put("a"), predictor.app.state.shelf
    with ThreadPoolExecutor(50) as pool:
        with shelf._deploying:
            waiting = [pool.submit(predictor.deploy, a) for _ in range(50)]
            threading.Event().wait(1)
            for path in ("live", "ready"):
                assert health.get_within(f"{predictor.url}/health/{path}", 2).status == 200
        codes = [one.result().status_code for one in waiting]
        assert set(codes) == {200, 503} and codes.count(200) >= MOST_ORDERS, "the others may try again"


@pytest.mark.slow
def test_status_says_which_version_did_not_load_and_why(
    settings: Settings, capsys: pytest.CaptureFixture[str],
) -> None:
    records = settings.home_path / "predictor"
    records.mkdir()
    (records / "acme--odd.json").write_text("{")
    stack.up(settings, only=("predictor",))
    wait_for(lambda: stack.conditions(settings)["predictor"].reason.startswith("acme/odd did not load"), timeout_s=60)

    assert health.get_within(f"{stack.read_stack(settings)['predictor'].url}/health/ready", 5).status == 503
    assert cli.main(["status"]) == 1  # the others are stopped
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("predictor")]
    assert "not ready" in line and "acme/odd did not load: " in line and "not a deployment record" in line
    assert cli.main(["status", "--json"]) == 1
    said: dict[str, Any] = json.loads(capsys.readouterr().out)["services"]["predictor"]
    assert said["state"] == "not ready" and "acme/odd" in said["reason"]


@pytest.mark.chaos
def test_the_real_predictor_comes_again_within_two_minutes(settings: Settings) -> None:
    before = stack.up(settings, only=("predictor", "keeper"))
    threading.Event().wait(15)
    os.kill(before["predictor"].pid, signal.SIGSTOP)
    wait_for(lambda: stack.read_stack(settings)["predictor"].pid != before["predictor"].pid, timeout_s=110)
    wait_for(lambda: stack.status(settings)["predictor"] == "running", timeout_s=60)
