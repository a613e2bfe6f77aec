"""The local stack with real processes: pytest tests/infra/stack/test_local.py -m slow

`real` needs half a minute; the other tests replace the services by small servers.

Tests infra/stack/services.py too.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from infra.errors import Broken, UserError
from infra.settings import Settings
from infra.stack import local as stack
from infra.stack import processes, services
from infra.stack.services import MARK, ServicePlan
from tests.conftest import wait_for

SERVER = "import http.server, sys; http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]))"
PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); " \
         "print('started!', flush=True); time.sleep(600)"
IDLE = "import time; print('looking', flush=True); time.sleep(600)"

KEEPER = """
import sys
from infra.stack import services, supervisor
from infra.stack.services import MARK, ServicePlan
from infra.settings import Settings
url = "http://127.0.0.1:{port}"
plan = ServicePlan(name="mlflow", command=(sys.executable, "-c", {server!r}, "{port}"), env={{MARK: {home!r}}}, url=url,
            health=url, port={port}, port_variable="ANNEAL_MLFLOW_PORT")
services.servers = lambda _: [plan]
print("keeping", flush=True)
supervisor.keep(Settings(home={home!r}, mlflow_port={port}))
"""


def of_stack(settings: Settings) -> list[psutil.Process]:
    """Every process that carries the stack's mark."""
    found = []
    for process in psutil.process_iter():
        try:
            found += [process] if process.environ().get(MARK) == str(settings.home_path) else []
        except (psutil.Error, OSError):
            continue
    return found


def kill(service: processes.Service) -> None:
    """SIGKILL to one service, not to its children."""
    process = psutil.Process(service.pid)
    process.kill()
    process.wait(5)


def fake(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, server: str = SERVER, worker: str = PARENT,
    keeper: str = "import time; print('keeping', flush=True); time.sleep(600)",
) -> None:
    """Put one small server in the place of MLflow and a process with a child in the place of the worker."""
    port = settings.mlflow_port
    url = f"http://127.0.0.1:{port}"
    env = {MARK: str(settings.home_path)}
    mlflow = ServicePlan(name="mlflow", command=(sys.executable, "-c", server, str(port)), env=env, url=url,
                  health=url, port=port, port_variable="ANNEAL_MLFLOW_PORT")
    monkeypatch.setattr(services, "servers", lambda _: [mlflow])
    monkeypatch.setattr(services, "worker", lambda *_: ServicePlan(
        name="worker", command=(sys.executable, "-c", worker), env=env, ready_line="started!"))
    monkeypatch.setattr(services, "reconcile", lambda *_: ServicePlan(
        name="reconcile", command=(sys.executable, "-c", IDLE), env=env, ready_line="looking"))
    monkeypatch.setattr(services, "keeper", lambda _: ServicePlan(
        name="keeper", command=(sys.executable, "-c", keeper), env=env, ready_line="keeping"))


@pytest.mark.slow
def test_up_starts_what_answers_and_down_leaves_no_process(
    settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake(settings, monkeypatch)
    running = stack.up(settings)
    assert stack.is_answering(running["mlflow"].url)
    assert stack.status(settings) == {
        "prefect": "stopped", "mlflow": "running", "predictor": "stopped", "gateway": "stopped", "worker": "running",
        "reconcile": "running", "keeper": "running"}
    assert len(of_stack(settings)) == 5
    assert stack.down(settings) == ["keeper", "reconcile", "worker", "mlflow"]
    assert not of_stack(settings)
    assert not (settings.home_path / "stack.json").exists()


@pytest.mark.slow
def test_second_up_leaves_running_services_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(settings, monkeypatch)
    assert stack.up(settings) == stack.up(settings)


@pytest.mark.slow
def test_up_starts_again_what_was_killed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(settings, monkeypatch)
    before = stack.up(settings)
    kill(before["mlflow"])
    after = stack.up(settings)
    assert after["mlflow"] != before["mlflow"]
    assert after["worker"] == before["worker"]


@pytest.mark.slow
def test_a_child_that_holds_the_port_of_a_killed_service_goes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with MLflow, whose server is a child; the child of a worker is a run, and stays."""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SERVER!r}, sys.argv[1]])"
    fake(settings, monkeypatch, server=parent)
    before = stack.up(settings)
    (run,) = psutil.Process(before["worker"].pid).children()
    kill(before["mlflow"])
    kill(before["worker"])
    after = stack.up(settings)
    assert after["mlflow"].pid != before["mlflow"].pid and stack.is_answering(after["mlflow"].url)
    assert run.is_running()
    assert stack.down(settings)[-1] == "1 left-over processes"


@pytest.mark.slow
def test_the_keeper_starts_what_died_and_its_end_leaves_that_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = KEEPER.format(port=settings.mlflow_port, server=SERVER, home=str(settings.home_path))
    fake(settings, monkeypatch, keeper=code)
    before = stack.up(settings)
    kill(before["mlflow"])
    wait_for(lambda: stack.status(settings)["mlflow"] == "running", "it was not started again", 30)
    after = stack.read_stack(settings)["mlflow"]
    assert psutil.Process(after.pid).ppid() == before["keeper"].pid
    psutil.Process(after.pid).kill()
    wait_for(lambda: not psutil.pid_exists(after.pid), "it stays as a zombie", 10)
    wait_for(lambda: stack.status(settings)["mlflow"] == "running", "it was not started again", 30)
    after = stack.read_stack(settings)["mlflow"]
    assert processes.stop_all({"keeper": before["keeper"]}, 0) == ["keeper"]
    assert processes.process_of(after) is not None
    assert stack.down(settings) == ["reconcile", "worker", "mlflow"]


@pytest.mark.slow
def test_down_finds_what_a_killed_service_left_behind(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(settings, monkeypatch)
    running = stack.up(settings)
    kill(running["worker"])
    assert stack.down(settings) == ["keeper", "reconcile", "mlflow", "1 left-over processes"]
    assert not of_stack(settings)


@pytest.mark.slow
def test_settings_find_the_running_stack(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(settings, monkeypatch)
    stack.up(settings)
    assert settings.tracking_uri == f"http://127.0.0.1:{settings.mlflow_port}"


def test_port_taken_names_port_and_variable(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(settings, monkeypatch)
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.mlflow_port))
        other.listen()
        with pytest.raises(UserError, match=f"port {settings.mlflow_port} .*ANNEAL_MLFLOW_PORT"):
            stack.up(settings)
    assert not of_stack(settings)


@pytest.mark.slow
def test_service_that_dies_at_start_is_reported_with_its_log(
    settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake(settings, monkeypatch, worker="print('no such pool'); raise SystemExit(1)")
    with pytest.raises(Broken, match=r"(?s)worker: the process ended.*no such pool"):
        stack.up(settings)
    assert not of_stack(settings)
    assert stack.read_stack(settings) == {}


@pytest.mark.slow
def test_silent_service_is_reported_after_the_timeout(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "START_TIMEOUT_S", 1)
    fake(settings, monkeypatch, server="import time; time.sleep(600)")
    with pytest.raises(Broken, match="mlflow: no answer within 1 s"):
        stack.up(settings)


def test_reused_pid_is_never_stopped(settings: Settings) -> None:
    other = {"url": "", "pid": os.getpid(), "started": 1.0}
    (settings.home_path / "stack.json").write_text(json.dumps({"services": {"prefect": other}}))
    assert stack.down(settings) == []


def test_service_that_runs_elsewhere_is_not_started(settings: Settings) -> None:
    elsewhere = settings.model_copy(update={"mlflow_uri": "http://team.example:5000"})
    assert [plan.name for plan in services.servers(elsewhere)] == ["prefect", "predictor", "gateway"]


def test_own_address_in_the_environment_is_not_elsewhere(
    settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{settings.prefect_port}/api")
    assert "prefect" in [plan.name for plan in services.servers(settings)]


def test_unreadable_state_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text('{"services": {"prefect": {"port": 1}}}')
    with pytest.raises(UserError, match="delete the file"):
        stack.read_stack(Settings(home=tmp_path))


def test_what_starts_others_is_stopped_first_and_prefect_last() -> None:
    assert processes.STOP_ORDER == ("keeper", "reconcile", "gateway", "worker", "predictor", "mlflow", "prefect")


@pytest.mark.chaos  # the end-to-end tests start, use and stop the same stack
def test_real_servers_and_worker_start_run_and_stop(settings: Settings) -> None:
    only = ("prefect", "mlflow", "worker", "reconcile")
    running = stack.up(settings, only=only)
    assert set(running) == set(only)
    assert stack.is_answering(running["prefect"].url + "/version")
    assert stack.up(settings, only=only) == running
    assert stack.down(settings) == ["reconcile", "worker", "mlflow", "prefect"]
    assert not of_stack(settings)


@pytest.mark.slow
def test_what_prefect_answers_without_its_database_is_tried_again(settings: Settings) -> None:
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            code, body = (500, b"{}") if len(asked) == 1 else (200, b"[]")
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ask = ("from prefect.client.orchestration import get_client\n"
           "with get_client(sync_client=True) as client: print(client.read_flow_runs())")
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {**os.environ, **services.for_runs(settings), "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "0",
                       "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "0",
                       "PREFECT_API_URL": f"http://127.0.0.1:{server.server_port}/api"}
        done = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, timeout=60,
                              check=False)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert asked == ["/api/flow_runs/filter"] * 2 and done.stdout.strip() == "[]"
