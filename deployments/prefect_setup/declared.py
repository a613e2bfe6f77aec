"""What deployments/prefect_setup/prefect.yaml declares, read strictly: a misspelt key is an error that names it.

In:   prefect.yaml      Out: `Declared` deployments in Prefect's own words
Prefect ignores keys that it does not know; pydantic models without room for them do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.errors import Broken

FILE = Path(__file__).with_name("prefect.yaml")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Schedule(_Strict):
    """When runs are made; `slug` is its name within the deployment."""

    slug: str
    cron: str
    timezone: str
    active: bool


class WorkPool(_Strict):
    """Where the deployment's runs go."""

    name: Literal["gpu-pool", "cpu-pool"]
    """As pools of processes are called; deployments/prefect_setup/pools.py knows the other kinds' names."""
    work_queue_name: str
    job_variables: dict[str, Any] = Field(default_factory=dict)
    """Taken over where the pool's template has them."""

    @property
    def role(self) -> Literal["gpu", "cpu"]:
        """What the pool has that the runs need."""
        return "gpu" if self.name == "gpu-pool" else "cpu"


class Concurrency(_Strict):
    """How many runs at a time, and what becomes of one more."""

    limit: int
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"]


class Trigger(_Strict):
    """An event that starts a run, and its parameters."""

    name: str
    enabled: bool
    match: dict[str, str]
    match_related: dict[str, str | list[str]] = Field(default_factory=dict)
    expect: list[str]
    parameters: dict[str, Any] = Field(default_factory=dict)

    def of(self, deployment: Any) -> DeploymentEventTrigger:
        """As Prefect's trigger of that deployment."""
        trigger = DeploymentEventTrigger.model_validate(self.model_dump())
        trigger.set_deployment_id(deployment)
        return trigger


class Declared(_Strict):
    """One deployment."""

    name: str
    description: str
    entrypoint: str
    tags: list[str]
    form: Literal["all", "short"] = "all"
    """Which fields of a training its form shows; deployments/prefect_setup/form.py."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    work_pool: WorkPool
    concurrency_limit: Concurrency | None = None
    schedules: list[Schedule] = Field(default_factory=list)
    triggers: list[Trigger] = Field(default_factory=list)

    @property
    def full_name(self) -> str:
        """flow/deployment; a flow has the name of its function."""
        return f"{self.entrypoint.rsplit(':', 1)[1]}/{self.name}"


class _File(_Strict):
    prefect_version: str = Field(alias="prefect-version")
    name: str
    deployments: list[Declared]


def declared(file: Path = FILE) -> list[Declared]:
    """The deployments of prefect.yaml. Raises Broken, naming the key, for a file that is not right."""
    try:
        return _File.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))).deployments
    except ValidationError as error:
        first = error.errors()[0]
        raise Broken(f"{first['msg']} ({'.'.join(map(str, first['loc']))})", where=str(file),
                     fix="Correct the key, or add it to deployments/prefect_setup/declared.py.") from error
