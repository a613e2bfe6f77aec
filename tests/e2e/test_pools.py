"""The work pools' job templates, rendered as their workers do it: pytest tests/e2e/test_pools.py

Kubernetes and Docker cannot run here; what their workers would send them is rendered by the real integrations and
held against Kubernetes' own schema.

Tests tasks/runs/start.py too.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import MagicMock
from uuid import UUID, uuid4

import kubernetes_validate
import pytest

from tests.e2e.conftest import Stack

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.slow

KUBERNETES = "1.34"


def rendered(
    kind: Literal["process", "docker", "kubernetes"], role: Literal["gpu", "cpu"] = "gpu", **values: Any,
) -> Any:
    """The job configuration of a run with these job variables."""
    from prefect.client.schemas.objects import FlowRun
    from prefect.workers.process import ProcessJobConfiguration
    from prefect_docker.worker import DockerWorkerJobConfiguration
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    from deployments.prefect_setup.pools import Pool

    kinds: dict[str, Any] = {"process": ProcessJobConfiguration, "docker": DockerWorkerJobConfiguration,
                             "kubernetes": KubernetesWorkerJobConfiguration}
    configuration = asyncio.run(kinds[kind].from_template_and_values(Pool(role, kind).template, values))
    configuration.prepare_for_flow_run(FlowRun(id=uuid4(), name="a-run", flow_id=uuid4()))
    return configuration


def test_a_process_is_our_engine_with_the_runs_own_variables(client: SyncPrefectClient) -> None:
    job = rendered("process", env={"ANNEAL_NUM_GPUS": "2"}, command="id", working_dir="/srv")
    assert shlex.split(job.command) == [sys.executable, "-m", "infra.engine"]
    assert (job.stream_output, job.working_dir) == (False, None)
    assert job.env["ANNEAL_NUM_GPUS"] == "2" and UUID(job.env["PREFECT__FLOW_RUN_ID"])


def test_a_kubernetes_job_asks_for_gpus_shared_memory_and_time_to_save(client: SyncPrefectClient) -> None:
    job = rendered("kubernetes", gpu_count=4, node_selector={"nvidia.com/gpu.product": "H100"}).job_manifest
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert container["envFrom"] == [{"secretRef": {"name": "anneal-run"}}]
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


def test_the_jobs_of_other_machines_go_with_the_pod_that_leads(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tasks.runs.start import owned

    assert owned() is None
    monkeypatch.setenv("ANNEAL_POD_NAME", "leader-x7k2p")
    monkeypatch.setenv("ANNEAL_POD_UID", "8d1f6d4c-0000-4000-8000-000000000001")
    job = rendered("kubernetes", **(owned() or {})).job_manifest
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Pod", "leader-x7k2p")
    named = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"]
             for one in job["spec"]["template"]["spec"]["containers"][0]["env"] if "valueFrom" in one}
    assert named == {"ANNEAL_POD_NAME": "metadata.name", "ANNEAL_POD_UID": "metadata.uid"}
    for misplaced in ("parallelism", "completions"):
        del job["spec"]["template"]["spec"][misplaced]
    kubernetes_validate.validate(job, KUBERNETES, strict=True)


def sent(**values: Any) -> Any:
    """What docker-py would send to the engine; what it refuses fails here."""
    from docker.models.containers import _create_container_args
    from prefect_docker.worker import DockerWorker

    configuration = rendered("docker", **values)
    settings = DockerWorker(work_pool_name="gpu-docker")._build_container_settings(MagicMock(), configuration)
    return _create_container_args({**settings, "version": "1.47"})


@pytest.fixture
def secrets(client: SyncPrefectClient) -> Iterator[None]:
    """The block that `anneal deploy --pool docker` makes, filled."""
    from deployments.prefect_setup.secrets import BLOCK, ensure_secrets

    assert ensure_secrets(client, {"HF_TOKEN": "hf-word", "AWS_ACCESS_KEY_ID": "key"}) == []
    yield
    client.delete_block_document(client.read_block_document_by_name(BLOCK, "secret").id)


@pytest.mark.usefixtures("secrets")
def test_a_container_sees_the_gpus_and_the_locks() -> None:
    made = sent()
    host = made["host_config"]
    assert host["DeviceRequests"] == [
        {"Driver": "nvidia", "Count": -1, "DeviceIDs": [], "Capabilities": [["gpu"]], "Options": {}}]
    assert host["ShmSize"] == 16 * 2**30
    assert host["Binds"] == ["anneal-home:/var/lib/anneal"]
    assert (host["Init"], made["stop_signal"]) == (True, "SIGTERM")
    assert made["image"] == "anneal-trainer:latest"
    assert made["environment"]["ANNEAL_GPU_LOCKS"] == "/var/lib/anneal/gpus"


@pytest.mark.usefixtures("secrets")
def test_a_small_deployment_asks_docker_for_no_gpu() -> None:
    from deployments.prefect_setup.apply import wanted
    from deployments.prefect_setup.declared import declared
    from deployments.prefect_setup.pools import Pool

    found = {one.full_name: wanted(one, Pool("gpu", "docker"))["job_variables"] for one in declared()}
    counts = {name: sent(**values)["host_config"]["DeviceRequests"][0]["Count"] for name, values in found.items()}
    assert counts["predict/predict"] == 0
    assert counts["finetune/finetune"] == counts["retrain/watch"] == -1


@pytest.mark.usefixtures("secrets")
def test_a_container_gets_secrets_that_the_template_only_names() -> None:
    from deployments.prefect_setup.pools import Pool
    from tasks.runs.blocks import NAMES

    assert "hf-word" not in str(Pool("gpu", "docker").template)
    environment = sent(env={"ANNEAL_STORE": "s3://anneal/store"})["environment"]
    assert set(NAMES) <= set(environment)
    assert (environment["HF_TOKEN"], environment["AWS_ACCESS_KEY_ID"], environment["ANNEAL_API_KEY"]) == (
        "hf-word", "key", "")
    assert environment["ANNEAL_STORE"] == "s3://anneal/store"
    assert environment["ANNEAL_HOME"] == "/var/lib/anneal"


@pytest.mark.usefixtures("secrets")
def test_a_secret_that_people_set_is_kept_and_an_empty_one_filled(client: SyncPrefectClient) -> None:
    from deployments.prefect_setup.secrets import ensure_secrets

    assert ensure_secrets(client, {"HF_TOKEN": "another", "ANNEAL_API_KEY": "late"}) == [
        "secret anneal-run: HF_TOKEN has another value than here (kept)"]
    environment = sent()["environment"]
    assert (environment["HF_TOKEN"], environment["ANNEAL_API_KEY"]) == ("hf-word", "late")


@pytest.mark.usefixtures("secrets")
def test_a_block_of_plain_text_is_refused_and_kept(client: SyncPrefectClient) -> None:
    from prefect.blocks.system import Secret

    from deployments.prefect_setup.secrets import BLOCK, ensure_secrets
    from infra.errors import UserError

    Secret(value="a word").save(BLOCK, overwrite=True)
    with pytest.raises(UserError, match="plain text"):
        ensure_secrets(client, {"HF_TOKEN": "another"})
    assert client.read_block_document_by_name(BLOCK, "secret").data == {"value": "a word"}


def test_docker_py_still_takes_no_grace_period() -> None:
    """Once it does, the pool gets a grace period as on Kubernetes, and DECISIONS.md its correction."""
    from docker.models.containers import _create_container_args

    with pytest.raises(TypeError, match="stop_timeout"):
        _create_container_args({"image": "anneal-trainer", "version": "1.47", "stop_timeout": 60})


def test_a_default_that_people_set_is_kept_and_said(client: SyncPrefectClient) -> None:
    from prefect.client.schemas.actions import WorkPoolUpdate

    from deployments.prefect_setup.pools import Pool, ensure_pool

    ensure_pool(client, Pool("gpu", "kubernetes"))
    template = client.read_work_pool("gpu-kubernetes").base_job_template
    template["variables"]["properties"]["image"]["default"] = "registry.example/anneal:3"
    template["job_configuration"]["job_manifest"]["spec"]["backoffLimit"] = 7
    client.update_work_pool("gpu-kubernetes", WorkPoolUpdate(base_job_template=template))
    try:
        assert ensure_pool(client, Pool("gpu", "kubernetes")) == [
            "pool gpu-kubernetes: image is 'registry.example/anneal:3' (kept)"]
        manifest = client.read_work_pool("gpu-kubernetes").base_job_template["job_configuration"]["job_manifest"]
        assert manifest["spec"]["backoffLimit"] == 0
    finally:
        client.delete_work_pool("gpu-kubernetes")


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_pool_that_its_worker_made_first_gets_our_defaults(
    client: SyncPrefectClient, kind: Literal["docker", "kubernetes"],
) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect_docker.worker import DockerWorker
    from prefect_kubernetes.worker import KubernetesWorker

    from deployments.prefect_setup.pools import Pool, ensure_pool

    pool = Pool("cpu", kind)
    worker: Any = {"docker": DockerWorker, "kubernetes": KubernetesWorker}[kind]
    client.create_work_pool(WorkPoolCreate(
        name=pool.name, type=kind, base_job_template=worker.get_default_base_job_template()))
    try:
        assert ensure_pool(client, pool) == []
        assert client.read_work_pool(pool.name).base_job_template == pool.template
        assert ensure_pool(client, pool) == []
    finally:
        client.delete_work_pool(pool.name)


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
@pytest.mark.parametrize("role", ["gpu", "cpu"])
def test_pools_for_other_machines_can_be_made_without_their_workers(
    client: SyncPrefectClient, role: Literal["gpu", "cpu"], kind: Literal["docker", "kubernetes"],
) -> None:
    from deployments.prefect_setup.pools import Pool, ensure_pool

    pool = Pool(role, kind)
    assert ensure_pool(client, pool) == []
    assert ensure_pool(client, pool) == []
    assert client.read_work_pool(pool.name).type == kind
    client.delete_work_pool(pool.name)


def test_a_pool_without_gpus_asks_for_none(client: SyncPrefectClient) -> None:
    pod = rendered("kubernetes", "cpu").job_manifest["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 0}
    assert "tolerations" not in pod or pod["tolerations"] == []


@pytest.mark.usefixtures("secrets")
def test_a_docker_pool_without_gpus_needs_no_nvidia_driver() -> None:
    kwargs = rendered("docker", "cpu").container_create_kwargs
    assert "device_requests" not in kwargs and kwargs["init"] is True


def test_what_waits_is_served_in_the_order_of_the_queues(client: SyncPrefectClient, stack: Stack) -> None:
    """As Prefect's server answers a worker that asks for work; this pool has none that would take it."""
    from prefect.client.schemas.objects import FlowRun

    from deployments.prefect_setup.pools import QUEUES, Pool, ensure_pool

    pool = Pool("cpu", "docker")
    flow = UUID(stack.prefect("/deployments/name/predict/predict")["flow_id"])
    first_come = ["background", "trainings", "nodes", "trainings"]
    runs, deployments = dict[UUID, str](), list[UUID]()
    try:
        assert ensure_pool(client, pool) == []
        for number, queue in enumerate(first_come):
            name = f"{queue}-{number}"
            deployments.append(client.create_deployment(
                flow, name, work_pool_name=pool.name, work_queue_name=queue, entrypoint="nowhere.py:nothing"))
            run: FlowRun = client.create_flow_run_from_deployment(deployments[-1])
            runs[run.id] = name
        served = client.get_scheduled_flow_runs_for_work_pool(pool.name, scheduled_before=datetime.now(UTC))
        assert [runs[one.flow_run.id] for one in served] == [
            "nodes-2", "trainings-1", "trainings-3", "background-0"]
        assert sorted(QUEUES, key=QUEUES.__getitem__) == ["nodes", "trainings", "background"]
    finally:
        for deployment in deployments:
            client.delete_deployment(deployment)
        client.delete_work_pool(pool.name)
