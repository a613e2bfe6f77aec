"""What the local stack consists of: command, environment and health check of each service.

In:   Settings                          Out: one `Plan` for each service, in the order of their start
On disk (made by the services themselves, below <home>): prefect/prefect.db, prefect/storage,
      mlflow.db, mlflow-artifacts/, logs/<service>.log
Nothing is started here: infra/stack/local.py does that.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.secret import USER
from infra.settings import Settings

POOL = "gpu-pool"
QUEUES = ("trainings", "background")
"""All but `nodes`: what leads a training cannot also be its second machine."""
MARK = "ANNEAL_STACK"  # stands in the environment of every process of a stack, with the stack's home
WORKER_QUERY_S = 1
CLIENT_RETRIES = 8  # waits of 2, 4, 8, ... 256 s: a run that ends inside an outage of minutes is still recorded
RETRIED_CODES = "500"
"""What Prefect's server answers while its database is away; the client by itself takes that as final."""
EVERYWHERE = ("0.0.0.0", "::")
ARTIFACT_ROOT = "mlflow-artifacts:/"
OWN_SERVER_START_S = 120  # the default of 20 s is too short for a new database on a busy machine
# The default keeps leases in memory, and a restart of the server then leaks GPU slots for good.
LEASES = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}
OFFLINE = {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


@dataclass(frozen=True, kw_only=True)
class ServicePlan:
    """One service that is to run."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    url: str = ""
    """What people and clients open; empty for a service that listens nowhere."""
    health: str = ""
    """Answers 200 when the service works."""
    beat: str = ""
    """A file that it touches again and again; empty for a service that shows otherwise that it works."""
    ready_line: str = ""
    """Stands in the log when the service works; for services without `health`."""
    port: int = 0
    port_variable: str = ""


def servers(settings: Settings) -> list[ServicePlan]:
    """The servers to run here. One that the environment says runs elsewhere is left out."""
    elsewhere = {
        "prefect": settings.prefect_url or os.environ.get("PREFECT_API_URL", ""),
        "mlflow": settings.mlflow_uri, "predictor": settings.predictor_url,
    }
    plans = [_prefect(settings), _mlflow(settings), _predictor(settings), _gateway(settings)]
    return [plan for plan in plans if elsewhere.get(plan.name, "").rstrip("/") in ("", plan.url)]


def worker(settings: Settings, prefect_api: str) -> ServicePlan:
    """The process worker, which runs the trainings that are started from the UI or by a schedule."""
    return ServicePlan(
        name="worker",
        command=(sys.executable, "-m", "prefect", "--no-prompt", "worker", "start",
                 "--pool", POOL, *(f"--work-queue={queue}" for queue in QUEUES), "--type", "process",
                 "--name", "anneal"),
        env={**_common(settings), **for_runs(settings), "PREFECT_API_URL": prefect_api,
             "PREFECT_WORKER_QUERY_SECONDS": str(WORKER_QUERY_S)},
        ready_line="started!")


def reconcile(settings: Settings, prefect_api: str) -> ServicePlan:
    """What lets crashed runs go on, and tells the webhook how runs ended."""
    return ServicePlan(
        name="reconcile", command=(sys.executable, "-m", "deployments.reconcile"),
        env={**_common(settings), **for_runs(settings), "PREFECT_API_URL": prefect_api},
        beat=str(beat_of(settings, "reconcile")), ready_line="looking after runs")


def keeper(settings: Settings) -> ServicePlan:
    """What starts the other services again when they die."""
    return ServicePlan(name="keeper", command=(sys.executable, "-m", "infra.stack.supervisor"), env=_common(settings),
                       beat=str(beat_of(settings, "keeper")), ready_line="keeping")


def beat_of(settings: Settings, name: str) -> Path:
    """The file that a service touches at every look."""
    return settings.home_path / "logs" / f"{name}.beat"


def for_runs(settings: Settings) -> dict[str, str]:
    """What a process that runs flows needs beside PREFECT_API_URL, before it imports prefect."""
    return {
        **OFFLINE, **LEASES, **_no_proxy(settings), **credentials(settings),
        "PREFECT_HOME": str(settings.home_path / "prefect"),
        "PREFECT_CLIENT_MAX_RETRIES": os.environ.get("PREFECT_CLIENT_MAX_RETRIES", str(CLIENT_RETRIES)),
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": os.environ.get("PREFECT_CLIENT_RETRY_EXTRA_CODES", RETRIED_CODES),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(OWN_SERVER_START_S),
    }


def credentials(settings: Settings) -> dict[str, str]:
    """What Prefect's and MLflow's clients have to bring. The home's secret goes to its own services alone, and to the
    server that Prefect starts for a flow where there is no other."""
    found = {}
    if not settings.prefect_api:
        found = {**_closed(settings, "http://127.0.0.1"), "PREFECT_API_AUTH_STRING": settings.own_prefect_auth}
    elif settings.prefect_auth:
        found["PREFECT_API_AUTH_STRING"] = settings.prefect_auth
    if settings.is_own("mlflow", settings.tracking_uri) and settings.secret:
        found |= {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": settings.secret}
    return {name: value for name, value in found.items() if value}


def adopt(settings: Settings) -> None:
    """Make this process use the running stack's Prefect; called before prefect is imported."""
    wanted = {**for_runs(settings), "PREFECT_API_URL": settings.prefect_api}
    for name, value in wanted.items():
        if value:
            os.environ.setdefault(name, value)


def of_prefect_server(settings: Settings) -> dict[str, str]:
    """Variables of Prefect's server. Its pages ask where they came from, by whatever name that was."""
    return {
        **_closed(settings, f"http://{_reachable(settings)}:{settings.prefect_port}"),
        "PREFECT_SERVER_UI_API_URL": "/api", "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_API_URL": f"http://{_reachable(settings)}:{settings.prefect_port}/api", **LEASES}


def of_mlflow_server(settings: Settings) -> dict[str, str]:
    """Variables of MLflow's server: those that `mlflow server` sets (mlflow/server/__init__.py, _run_server)."""
    return {
        "_MLFLOW_SERVER_FILE_STORE": settings.mlflow_database,
        "_MLFLOW_SERVER_REGISTRY_STORE": settings.mlflow_database,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": ARTIFACT_ROOT, "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        # An address: of a path MLflow would read %20 as a space.
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": (settings.home_path / "mlflow-artifacts").as_uri(),
        "_MLFLOW_SERVER_BOOT_ID": uuid.uuid4().hex, "_MLFLOW_IN_JOB_EXECUTOR": "false", "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_ENABLE_WORKSPACES": "false", "GIT_PYTHON_REFRESH": "quiet",
        # Job execution costs 8 processes and 1.4 GB, and has been an unauthenticated way in (CVE-2026-0545).
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # It lets in every port of localhost: infra/security/door.py judges instead.
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true"}


def _closed(settings: Settings, origin: str) -> dict[str, str]:
    """What closes a Prefect server to pages of others: a password, tokens against forged requests, no other origin."""
    secret = settings.own_prefect_auth
    return {**({"PREFECT_SERVER_API_AUTH_STRING": secret} if secret else {}),
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origin}


def _prefect(settings: Settings) -> ServicePlan:
    url = f"http://{_reachable(settings)}:{settings.prefect_port}/api"
    return ServicePlan(
        name="prefect", command=(sys.executable, "-m", "deployments.servers", "prefect"), env=_common(settings),
        url=url, health=f"{url}/health", port=settings.prefect_port, port_variable="ANNEAL_PREFECT_PORT")


def _mlflow(settings: Settings) -> ServicePlan:
    url = f"http://{_reachable(settings)}:{settings.mlflow_port}"
    return ServicePlan(
        name="mlflow", command=(sys.executable, "-m", "deployments.servers", "mlflow"), env=_common(settings),
        url=url, health=f"{url}/health", port=settings.mlflow_port, port_variable="ANNEAL_MLFLOW_PORT")


def _predictor(settings: Settings) -> ServicePlan:
    url = f"http://{_reachable(settings)}:{settings.predictor_port}"
    return ServicePlan(
        name="predictor", command=(sys.executable, "-m", "deployments.predictor"),
        env=_common(settings), url=url, health=f"{url}/health/live",
        port=settings.predictor_port, port_variable="ANNEAL_PREDICTOR_PORT")


def _gateway(settings: Settings) -> ServicePlan:
    url = f"http://{_reachable(settings)}:{settings.gateway_port}"
    return ServicePlan(
        name="gateway", command=(sys.executable, "-m", "deployments.gateway"),
        env=_common(settings), url=url, health=f"{url}/health/live", port=settings.gateway_port,
        port_variable="ANNEAL_GATEWAY_PORT")


def _common(settings: Settings) -> dict[str, str]:
    """Absolute addresses, so that a service and the runs that it starts do not depend on their cwd."""
    return {
        **OFFLINE, **_no_proxy(settings), **settings.variables, MARK: str(settings.home_path),
        "ANNEAL_HOME": str(settings.home_path), "ANNEAL_STORE": settings.store_root,
        "PREFECT_HOME": str(settings.home_path / "prefect"), "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # else `python -m` prefers a folder named flows/ or tasks/ in the user's cwd
    }


def _no_proxy(settings: Settings) -> dict[str, str]:
    """A company's proxy must not be asked for services on this machine."""
    direct = [os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")), "localhost", _reachable(settings)]
    value = ",".join(filter(None, direct))
    return {"NO_PROXY": value, "no_proxy": value}


def _reachable(settings: Settings) -> str:
    """The host name for clients on this machine."""
    return "127.0.0.1" if settings.host in EVERYWHERE else settings.host
