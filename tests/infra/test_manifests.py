"""Kubernetes manifests, systemd units and Dockerfiles: as far as they can be checked without running them."""

from __future__ import annotations

import re
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import kubernetes_validate
import prefect.settings as prefect_settings
import pytest
import yaml
from prefect.settings.legacy import _get_settings_fields

from infra.settings import Settings
from tests.conftest import ROOT, needed

INFRA = ROOT / "infra"
KUBERNETES = "1.34"
MANIFESTS = [part for part in yaml.safe_load_all((INFRA / "kubernetes" / "anneal.yaml").read_text()) if part]
SERVER, WORKER = (yaml.safe_load((INFRA / "helm" / f"prefect-{name}.yaml").read_text())
                  for name in ("server", "worker"))
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SPARE_S = 15
"""For Prefect and Python to end in."""
UNITS = sorted((INFRA / "systemd").glob("*.service"))
ENV = INFRA / "systemd" / "anneal.env"
PLACES = ["compose.yaml", "systemd", "kubernetes", "helm", "docker", "workpools"]
VARIABLE = r"\b(?:(?:PREFECT|MLFLOW|POSTGRES|AWS|ANNEAL|S3|HF)_[A-Z0-9_]*[A-Z0-9]|PG[A-Z]+|DO_NOT_TRACK|PYTHON[A-Z]+)\b"
OTHERS = ("PREFECT_", "MLFLOW_", "AWS_", "PG", "DO_NOT_TRACK")


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_a_manifest_fits_the_schema_of_kubernetes(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("manifest", [one for one in MANIFESTS if one["kind"] == "Service"],
                         ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_what_a_manifest_selects_is_there(manifest: dict[str, Any]) -> None:
    wanted = manifest["spec"]["selector"]
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in MANIFESTS if one["kind"] == "Deployment"]
    assert wanted.get("matchLabels", wanted) in labels


def test_what_a_team_needs_is_there() -> None:
    replicas = {one["metadata"]["name"]: one["spec"]["replicas"] for one in MANIFESTS if one["kind"] == "Deployment"}
    assert set(replicas) == {"anneal-mlflow", "anneal-reconcile", "anneal-predictor", "anneal-gateway"}
    assert [chart["fullnameOverride"] for chart in (SERVER, WORKER)] == ["anneal-prefect", "anneal-worker"]
    worker = WORKER["worker"]
    assert 0 < worker["podDisruptionBudget"]["minAvailable"] < worker["replicaCount"], "or no node could be drained"


def test_the_charts_server_asks_for_the_password_and_keeps_its_leases() -> None:
    server, worker = SERVER["server"], WORKER["worker"]
    given = {one["name"]: one["value"] for one in server["env"]}
    assert server["basicAuth"] == worker["selfHostedServerApiConfig"]["basicAuth"] and server["basicAuth"]["enabled"]
    assert given["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    assert given["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith("filesystem")
    assert any(given["PREFECT_HOME"].startswith(mount["mountPath"]) for mount in server["extraVolumeMounts"])
    assert "--no-create-pool-if-not-found" in worker["extraArgs"], "a pool of Prefect's own template takes a command"


def test_whoever_stops_a_service_gives_it_the_time_to_save() -> None:
    """A worker waits for its runs, which end their step and write a checkpoint."""
    needs_s = Settings().stop_grace_s + SPARE_S
    for unit in ("anneal-worker", "anneal-join@"):
        found = re.search(r"(?m)^TimeoutStopSec=(\d+)$", (INFRA / "systemd" / f"{unit}.service").read_text())
        assert found and int(found[1]) >= needs_s, unit
    assert int(COMPOSE["services"]["worker"]["stop_grace_period"].removesuffix("s")) >= needs_s


def test_compose_publishes_nothing_but_this_machines_ports() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 4 and all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports), ports


def test_mlflow_keeps_its_tables_in_postgres_its_files_in_s3_and_runs_no_jobs() -> None:
    variables = COMPOSE["services"]["mlflow"]["environment"]
    assert variables["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql://")
    assert variables["MLFLOW_ARTIFACTS_DESTINATION"].startswith("s3://")
    assert variables["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_jobs_run_under_an_account_that_the_manifests_make() -> None:
    from deployments.prefect_setup.pools import Pool

    accounts = {one["metadata"]["name"] for one in MANIFESTS if one["kind"] == "ServiceAccount"}
    properties = Pool("gpu", "kubernetes").template["variables"]["properties"]
    assert properties["service_account_name"]["default"] in accounts
    assert {one["name"]: one["value"] for one in WORKER["worker"]["extraEnvVars"]} == {
        "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES": properties["namespace"]["default"]}
    assert properties["home_claim"]["default"] in [
        one["metadata"]["name"] for one in MANIFESTS if one["kind"] == "PersistentVolumeClaim"]


CHART_RULES: list[dict[str, list[str]]] = [
    {"resources": ["pods", "pods/log", "pods/status"], "verbs": ["get", "watch", "list"]},
    {"resources": ["jobs"], "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"]}]
"""Of the chart prefect-worker, templates/role.yaml."""
CALLED = re.compile(r"\b(create|read|list|patch|replace|delete)_namespaced_(job|pod_log|pod)\b")
VERBS = {"create": "create", "read": "get", "list": "list", "patch": "patch", "replace": "update", "delete": "delete"}
WATCHED = re.compile(r"kopf\.on\.event\(\s*(?:\"batch\",\s*\"v1\",\s*)?\"(\w+)\"")


def test_the_worker_may_do_what_its_code_does() -> None:
    """Prefect's worker and observer for Kubernetes, as installed; secrets they only make where a setting says so."""
    rules = [*CHART_RULES, *WORKER["role"]["extraPermissions"]]
    may = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    code = "".join(Path(str(files("prefect_kubernetes") / name)).read_text() for name in ("worker.py", "observer.py"))
    called = {(f"{thing}s".replace("pod_logs", "pods/log"), VERBS[verb]) for verb, thing in CALLED.findall(code)}
    watched = {(thing, verb) for thing in WATCHED.findall(code) for verb in ("list", "watch")}
    assert ("jobs", "create") in called and ("pods", "watch") in watched
    assert called | watched <= may, (called | watched) - may
    assert "create_secret" not in str(MANIFESTS).lower()


def test_units_are_understood_by_systemd(tmp_path: Path) -> None:
    program = needed("systemd-analyze", "systemd")
    for unit in UNITS:  # systemd looks for the programs, which lie elsewhere here
        text = re.sub(r"/opt/anneal/\.venv/bin/\w+", "/bin/true", unit.read_text())
        (tmp_path / unit.name).write_text(re.sub(r"(?m)^(User|Group)=.*", r"\1=root", text))
    done = subprocess.run([program, "verify", "--man=no", *(str(tmp_path / unit.name) for unit in UNITS)],
                          capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "anneal" in line]
    assert (done.returncode, ours) == (0, [])


def test_a_unit_starts_what_there_is() -> None:
    for unit in UNITS:
        commands = re.findall(r"(?m)^Exec(?:Start|Stop)=(.*)$", unit.read_text())
        assert commands
        for module in re.findall(r"-m ([\w.]+)", " ".join(commands)):
            path = ROOT / module.replace(".", "/")
            assert path.exists() or path.with_suffix(".py").exists(), module


def test_variables_of_the_example_are_ones_that_something_reads() -> None:
    names = re.findall(r"(?m)^(\w+)=", ENV.read_text())
    ours = {f"ANNEAL_{name}".upper() for name in Settings.model_fields}
    assert {name for name in names if not name.startswith(OTHERS)} <= ours
    prefect = set(_get_settings_fields(prefect_settings.Settings))
    assert {name for name in names if name.startswith("PREFECT_")} <= prefect


def test_the_page_for_teams_says_every_variable_and_no_other() -> None:
    found = [file for place in PLACES for file in ([INFRA / place] if "." in place else (INFRA / place).iterdir())]
    used = {name for file in found for name in re.findall(VARIABLE, file.read_text(encoding="utf-8"))}
    page = (INFRA / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| `(\w+)` \|", page)
    assert sorted(used) == sorted(rows), set(rows) ^ used
    assert set(re.findall(VARIABLE, page)) == used


def test_every_file_that_the_page_for_teams_links_exists() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (INFRA / "README.md").read_text(encoding="utf-8"))
    assert links and all((INFRA / link).exists() for link in links)


def test_images_get_the_versions_that_the_project_asks_for() -> None:
    wanted = (ROOT / "pyproject.toml").read_text()
    server = (INFRA / "docker" / "server.Dockerfile").read_text()
    for requirement in re.findall(r'"((?:prefect|fastapi|sqlalchemy|mlflow\[auth\])[<>=][^"]*)"', server):
        assert f'"{requirement}"' in wanted, requirement
    torch = re.search(r"(?m)^torch==([\d.]+)", (ROOT / "constraints.txt").read_text())
    assert torch and f"pytorch:{torch[1]}-" in (INFRA / "docker" / "trainer.Dockerfile").read_text()


def test_servers_and_workers_get_a_slim_image_without_torch() -> None:
    text = (INFRA / "docker" / "server.Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert "FROM python:3.11-slim" in lines
    assert not [line for line in lines if re.search(r"\b(torch|cuda)\b", line)]


def test_images_copy_files_that_exist() -> None:
    for file in (INFRA / "docker").glob("*.Dockerfile"):
        for line in re.findall(r"(?m)^COPY (.*)$", file.read_text()):
            *sources, _ = line.split()
            assert all((ROOT / source).exists() for source in sources), line
