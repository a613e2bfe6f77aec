"""What a run may say of its job: the variables of the pools' templates."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.schema_tools import ValidationError, validate

from deployments.prefect_setup.pools import Pool, Role, export
from infra.errors import UserError

POOLS: list[tuple[Role, str]] = list(product(("gpu", "cpu"), ("process", "docker", "kubernetes")))


@pytest.mark.parametrize(("role", "kind"), POOLS)
def test_no_pool_lets_a_run_name_its_command(role: Role, kind: str) -> None:
    template = Pool(role, kind).template
    variables = template["variables"]
    assert "command" not in variables["properties"]
    with pytest.raises(ValidationError, match="'command' should not be valid"):
        validate({"command": "id"}, variables, raise_on_error=True, ignore_required=True)
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used <= set(variables["properties"]), "Prefect refuses a template that uses what it does not list"


RIGHT = ("ANNEAL_NODES", "ANNEAL_STOP_GRACE_S", "NCCL_DEBUG", "CUDA_VISIBLE_DEVICES", "PREFECT_LOGGING_LEVEL",
         "TORCH_CPP_LOG_LEVEL")
WRONG = ("PYTHONPATH", "PYTHONSTARTUP", "PREFECT_API_URL", "prefect_home", "PREFECT_LOGGING_SETTINGS_PATH", "CC",
         "HOME", "ANNEAL_SECRETS_BLOCK",
         "ANNEAL_PREFECT_URL", "ANNEAL_HOME", "ANNEAL_ALLOW_PRIVATE_HOSTS", "HTTPS_PROXY", "AWS_CONFIG_FILE",
         "A=B", "NCCL_NET_PLUGIN", "GIT_SSH_COMMAND", "TRITON_PTXAS_PATH", "OPENSSL_CONF", "CUDA_HOME", "anneal_nodes",
         "", "PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "BASH_ENV", "PREFECT__FLOW_ENTRYPOINT", "PREFECT_HOME")


@pytest.mark.parametrize("name", [*RIGHT, *WRONG])
def test_variables_that_choose_code_are_refused(name: str) -> None:
    def judge(values: Any) -> None:
        validate(values, Pool("gpu", "process").template["variables"], raise_on_error=True)

    if name in RIGHT:
        judge({"env": {name: "x"}})
        return
    with pytest.raises(ValidationError):
        judge({"env": {name: "x"}})


@pytest.mark.parametrize("kind", ["ecs", "vertex-ai", "cloud-run-v2", "azure-container-instance"])
def test_no_pool_of_another_type_lets_a_run_name_its_command(kind: str) -> None:
    template = Pool("gpu", kind, "team").template
    assert "command" not in template["variables"]["properties"]
    assert "{{ command }}" not in json.dumps(template)
    with pytest.raises(ValidationError, match="'command' should not be valid"):
        validate({"command": "id"}, template["variables"], raise_on_error=True, ignore_required=True)


def test_a_type_that_prefect_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match=r"no work pools of type .*slurm.* expected .*kubernetes"):
        _ = Pool("gpu", "slurm", "team").template


def test_exported_templates_are_ours(tmp_path: Path) -> None:
    files = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in export(tmp_path)}
    assert sorted(files) == ["cpu-docker.json", "cpu-kubernetes.json", "cpu-pool.json", "gpu-docker.json",
                             "gpu-kubernetes.json", "gpu-pool.json"]
    assert files["gpu-kubernetes.json"] == Pool("gpu", "kubernetes").template
