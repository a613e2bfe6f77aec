"""Work pools, their queues and base job templates.

In:   a type of pool       Out: the pool in Prefect, with its queues: those of machines first, background last
A template is Prefect's own default for the kind with infra/workpools/<kind>.json merged into it (RFC 7396), so that
ours holds only what trainings need: GPUs, shared memory, secrets by reference (for containers:
deployments/prefect_setup/secrets.py); on Kubernetes also a grace period for the checkpoint. For a pool without GPUs
<kind>-cpu.json is merged on top. No run may name its command: whoever may start a training may not start another
program. Dies half-way: run it again. Limits and defaults of job variables that were set in the UI stay.
`export` writes the templates for whoever makes pools by other means (Prefect's own command, Terraform).
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound

from infra.errors import UserError, shown
from infra.files import write_atomic
from infra.process import ROOT

Role = Literal["gpu", "cpu"]

OURS = ("process", "docker", "kubernetes")
"""Types of pools that have a patch in infra/workpools. Any other that Prefect knows takes its own default template,
without the variable `command`."""
IMAGE_CODE = "/opt/anneal"
"""Where the code lies in the image (infra/docker/trainer.Dockerfile)."""
QUEUES = {"nodes": 1, "trainings": 2, "background": 3}
"""Priorities; 1 is served first. The worker of a machine that leads trainings leaves `nodes` to other machines'."""
ABOUT: dict[Role, str] = {
    "gpu": "Trainings on GPUs, made by `anneal deploy` for workers of type {}.",
    "cpu": "Data made ready without GPUs, by workers of type {}.",
}
DEFAULTS = ("prefect.server.api.collections_data.views", "aggregate-worker-metadata.json")
ENGINE = shlex.join([sys.executable, "-m", "infra.engine"])
"""What workers of pools of processes start for a run: the environment has the same path on their machines, as CODE. It
stands in the template, not among its variables: no run may name another."""
NO_COMMAND = {
    "variables": {"properties": {"command": None}, "propertyNames": {"not": {"enum": ["command"]}}}}


@dataclass(frozen=True, slots=True)
class Pool:
    """A work pool: what it is for, who runs it, and its name, if that is not ours."""

    role: Role
    kind: str
    called: str = ""

    @property
    def name(self) -> str:
        """Its name in Prefect; infra/stack/services.py starts the worker of gpu-pool."""
        return self.called or f"{self.role}-{'pool' if self.kind == 'process' else self.kind}"

    @property
    def suffix(self) -> str:
        """What the names of its deployments end with: nothing for this machine's own, else the infrastructure."""
        return f"-{self.called}" if self.called else "" if self.kind == "process" else f"-{self.kind}"

    @property
    def about(self) -> str:
        """Its description in Prefect, by which it is known as ours."""
        return ABOUT[self.role].format(self.kind)

    @property
    def code(self) -> str:
        """Where the code lies for its runs: here, or in the image."""
        return str(ROOT) if self.kind == "process" else IMAGE_CODE

    @property
    def stock_template(self) -> dict[str, Any]:
        """Prefect's own for the type: what a worker makes the pool with that comes before `anneal deploy`.

        Raises UserError for a type that Prefect does not know.
        """
        package, file = DEFAULTS
        packages = json.loads(resources.files(package).joinpath(file).read_text(encoding="utf-8"))
        known = {kind: about for kinds in packages.values() for kind, about in kinds.items()}
        if self.kind not in known:
            raise UserError(f"Prefect has no work pools of type {shown(self.kind)}", where="--type",
                            allowed=", ".join(sorted(known)))
        return dict(known[self.kind]["default_base_job_configuration"])

    @property
    def template(self) -> dict[str, Any]:
        """Its base job template."""
        if self.kind not in OURS:
            return dict(merge(without_command(self.stock_template), NO_COMMAND))
        merged = self.stock_template
        for name in (self.kind, f"{self.kind}-cpu") if self.role == "cpu" else (self.kind,):
            patch = ROOT / "infra" / "workpools" / f"{name}.json"
            merged = merge(merged, json.loads(patch.read_text(encoding="utf-8")) if patch.exists() else {})
        if self.kind == "process":
            merged = merge(merged, {"job_configuration": {"command": ENGINE}})
        return dict(merged)


def ensure_pool(client: SyncPrefectClient, pool: Pool) -> list[str]:
    """Create or update the pool and its queues; returns what Prefect holds otherwise than it was told.

    A pool that somebody else made keeps its template. Raises UserError for one of another type.
    """
    name, template, differs = pool.name, pool.template, list[str]()
    try:
        known = client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(
            name=name, type=pool.kind, base_job_template=template, description=pool.about))
    else:
        if known.type != pool.kind:
            raise UserError(f"its type is {known.type}, not {pool.kind}", where=f"work pool {name}",
                            fix=f"Use --type {known.type}, or another name.")
        if pool.called and known.description != pool.about:
            template = known.base_job_template
            differs = kept_template(name, template)
        else:
            differs = keep_defaults(template, known.base_job_template, pool.stock_template, name)
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=template, description=pool.about))
    if client.read_work_pool(name).base_job_template != template:
        differs.append(f"pool {name}: another base job template")
    for queue, priority in QUEUES.items():
        try:
            found = client.read_work_queue_by_name(queue, work_pool_name=name)
        except ObjectNotFound:
            found = client.create_work_queue(queue, work_pool_name=name, priority=priority)
        if found.priority != priority:
            differs.append(f"queue {name}/{queue}: priority is {found.priority}, not {priority}")
    return differs


def kept_template(pool: str, template: dict[str, Any]) -> list[str]:
    """What to say of a template that is not ours."""
    said = [f"pool {pool}: its base job template is not ours (kept); `anneal deploy --export FOLDER` writes ours"]
    if "command" in template.get("variables", {}).get("properties", {}):
        said.append(f"pool {pool}: its base job template lets whoever starts a run name a command")
    return said


def export(folder: Path) -> list[Path]:
    """Write our base job templates, for `prefect work-pool create NAME --type TYPE --base-job-template FILE`."""
    pools = [Pool(role, kind) for kind in OURS for role in ("gpu", "cpu")]
    folder.mkdir(parents=True, exist_ok=True)
    files = {folder / f"{pool.name}.json": pool for pool in pools}
    for file, pool in files.items():
        write_atomic(file, json.dumps(pool.template, indent=2) + "\n")
    return list(files)


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


def without_command(value: Any) -> Any:
    """The template without every key that takes the variable `command`; workers then start Prefect's own."""
    if isinstance(value, dict):
        return {key: without_command(one) for key, one in value.items() if one != "{{ command }}"}
    return [without_command(one) for one in value] if isinstance(value, list) else value


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
