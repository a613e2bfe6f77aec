"""Work pools, their queues and base job templates.

In:   a kind of pool       Out: the pool in Prefect, with its queues: control before all, background behind all
A template is Prefect's own default for the kind with infra/workpools/<kind>.json merged into it (RFC 7396), so that
ours holds only what trainings need: GPUs, shared memory, secrets by reference (for containers:
deployments/prefect_setup/secrets.py); on Kubernetes also a grace period for the checkpoint. For a pool without GPUs
<kind>-cpu.json is merged on top. No run may name its command: whoever may start a training may not start another
program. Dies half-way: run it again. Limits and defaults of job variables that were set in the UI stay.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound

from infra.process import ROOT

Kind = Literal["process", "docker", "kubernetes"]
Role = Literal["gpu", "cpu"]

CODE: dict[Kind, str] = {"process": str(ROOT), "docker": "/opt/anneal", "kubernetes": "/opt/anneal"}
"""Where the code lies for the kind's runs: here, or in the image (infra/docker/trainer.Dockerfile)."""
QUEUES = {"control": 1, "nodes": 2, "trainings": 3, "background": 4}
"""Priorities; 1 is served first. The worker of a machine that leads trainings leaves `nodes` to other machines'."""
ABOUT: dict[tuple[Role, Kind], str] = {
    ("gpu", "process"): "Trainings on this machine's GPUs (or its CPU).",
    ("gpu", "docker"): "Trainings in containers with NVIDIA GPUs.",
    ("gpu", "kubernetes"): "Trainings as Kubernetes jobs with NVIDIA GPUs.",
    ("cpu", "process"): "Data made ready on machines without GPUs.",
    ("cpu", "docker"): "Data made ready in containers without GPUs.",
    ("cpu", "kubernetes"): "Data made ready in Kubernetes jobs without GPUs.",
}
DEFAULTS = ("prefect.server.api.collections_data.views", "aggregate-worker-metadata.json")
ENGINE = shlex.join([sys.executable, "-m", "infra.engine"])
"""What workers of pools of processes start for a run: the environment has the same path on their machines, as CODE. It
stands in the template, not among its variables: no run may name another."""
PACKAGES: dict[Kind, str] = {"process": "prefect", "docker": "prefect-docker", "kubernetes": "prefect-kubernetes"}


@dataclass(frozen=True, slots=True)
class Pool:
    """A work pool: what it is for, and who runs it."""

    role: Role
    kind: Kind

    @property
    def name(self) -> str:
        """Its name in Prefect; infra/stack/services.py starts the worker of gpu-pool."""
        return f"{self.role}-{'pool' if self.kind == 'process' else self.kind}"

    @property
    def stock_template(self) -> dict[str, Any]:
        """Prefect's own for the kind: what a worker makes the pool with that comes before `anneal deploy`."""
        package, file = DEFAULTS
        known = json.loads(resources.files(package).joinpath(file).read_text(encoding="utf-8"))
        return dict(known[PACKAGES[self.kind]][self.kind]["default_base_job_configuration"])

    @property
    def template(self) -> dict[str, Any]:
        """Its base job template."""
        merged = self.stock_template
        for name in (self.kind, f"{self.kind}-cpu") if self.role == "cpu" else (self.kind,):
            patch = ROOT / "infra" / "workpools" / f"{name}.json"
            merged = merge(merged, json.loads(patch.read_text(encoding="utf-8")) if patch.exists() else {})
        if self.kind == "process":
            merged = merge(merged, {"job_configuration": {"command": ENGINE}})
        return dict(merged)


def ensure_pool(client: SyncPrefectClient, pool: Pool) -> list[str]:
    """Create or update the pool and its queues; returns what Prefect holds otherwise than it was told."""
    name, template, kind = pool.name, pool.template, pool.kind
    differs = []
    try:
        known = client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(
            name=name, type=kind, base_job_template=template, description=ABOUT[pool.role, kind]))
    else:
        differs = keep_defaults(template, known.base_job_template, pool.stock_template, name)
        client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
    stored = client.read_work_pool(name)
    if stored.type != kind:
        differs.append(f"pool {name}: type is {stored.type}, not {kind}")
    if stored.base_job_template != template:
        differs.append(f"pool {name}: another base job template")
    for queue, priority in QUEUES.items():
        try:
            found = client.read_work_queue_by_name(queue, work_pool_name=name)
        except ObjectNotFound:
            found = client.create_work_queue(queue, work_pool_name=name, priority=priority)
        if found.priority != priority:
            differs.append(f"queue {name}/{queue}: priority is {found.priority}, not {priority}")
    return differs


def keep_defaults(
    template: dict[str, Any], stored: dict[str, Any], stock: dict[str, Any], pool: str,
) -> list[str]:
    """Put the defaults that people set into the template; returns which differ. Those of the stock template nobody
    set.

    Runs never write to the worker's console, whatever they say: a worker's death would crash them.
    """
    differs = []
    for name, variable in template["variables"]["properties"].items():
        found, stocked = (one.get("variables", {}).get("properties", {}).get(name, {}) for one in (stored, stock))
        if name == "stream_output" or "default" not in found or found["default"] == stocked.get("default"):
            continue
        if found["default"] != variable.get("default"):
            differs.append(f"pool {pool}: {name} is {found['default']!r} (kept)")
            variable["default"] = found["default"]
    return differs


def merge(value: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7396): null removes a key, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(value) if isinstance(value, dict) else {}
    for key, new in patch.items():
        if new is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), new)
    return merged
