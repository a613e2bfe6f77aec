"""The work pools' job templates, rendered as their workers do it: pytest tests/e2e/test_pools.py

Kubernetes and Docker cannot run here; what their workers would send them is rendered by the real integrations and
held against Kubernetes' own schema.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import kubernetes_validate
import pytest

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.slow

KUBERNETES = "1.34"


def rendered(kind: str, **values: Any) -> Any:
    """The job configuration of a run with these job variables."""
    from prefect.client.schemas.objects import FlowRun
    from prefect_docker.worker import DockerWorkerJobConfiguration
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    from deployments.pools import template_of

    kinds = {"docker": DockerWorkerJobConfiguration, "kubernetes": KubernetesWorkerJobConfiguration}
    template = template_of("docker" if kind == "docker" else "kubernetes")
    configuration = asyncio.run(kinds[kind].from_template_and_values(template, values))
    configuration.prepare_for_flow_run(FlowRun(id=uuid4(), name="a-run", flow_id=uuid4()))
    return configuration


def test_a_kubernetes_job_asks_for_gpus_shared_memory_and_time_to_save(client: SyncPrefectClient) -> None:
    job = rendered("kubernetes", gpu_count=4, node_selector={"nvidia.com/gpu.product": "H100"}).job_manifest
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert container["envFrom"] == [{"secretRef": {"name": "anneal"}}]
    assert {"name": "ANNEAL_GPU_LIMIT", "value": "none"} in container["env"]
    assert pod["volumes"][0] == {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}
    assert pod["terminationGracePeriodSeconds"] == 60
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "H100"}
    assert job["spec"]["backoffLimit"] == 0  # then Prefect itself schedules an evicted pod's run again


def test_a_kubernetes_job_fits_the_schema_of_kubernetes(client: SyncPrefectClient) -> None:
    job = rendered("kubernetes", gpu_count=1, cpu_request="8", memory_limit="64Gi").job_manifest
    for misplaced in ("parallelism", "completions"):  # Prefect insists on them in the pod, where Kubernetes drops them
        del job["spec"]["template"]["spec"][misplaced]
    kubernetes_validate.validate(job, KUBERNETES, strict=True)


def test_a_container_gets_its_gpus_and_time_to_save(client: SyncPrefectClient) -> None:
    configuration = rendered("docker", gpu_count=2)
    extra = configuration.container_create_kwargs
    assert extra["device_requests"] == [{"Driver": "nvidia", "Count": 2, "Capabilities": [["gpu"]]}]
    assert (extra["shm_size"], extra["stop_timeout"]) == ("16g", 60)
    assert configuration.image == "anneal-trainer:latest"
    assert configuration.volumes == ["anneal-home:/var/lib/anneal"]


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_pools_for_other_machines_can_be_made_without_their_workers(client: SyncPrefectClient, kind: str) -> None:
    from deployments.pools import NAMES, ensure_pool

    known: Any = kind
    assert ensure_pool(client, known) == []
    assert ensure_pool(client, known) == []
    assert client.read_work_pool(NAMES[known]).type == kind
    client.delete_work_pool(NAMES[known])
