"""What a run may say of its job: the variables of the pools' templates."""

from __future__ import annotations

import json
import re
from itertools import product
from typing import Any

import pytest
from prefect.utilities.schema_tools import ValidationError, validate

from deployments.pools import Kind, Pool, Role

POOLS: list[tuple[Role, Kind]] = list(product(("gpu", "cpu"), ("process", "docker", "kubernetes")))


@pytest.mark.parametrize(("role", "kind"), POOLS)
def test_no_pool_lets_a_run_name_its_command(role: Role, kind: Kind) -> None:
    template = Pool(role, kind).template
    variables = template["variables"]
    assert "command" not in variables["properties"]
    with pytest.raises(ValidationError, match="'command' should not be valid"):
        validate({"command": "id"}, variables, raise_on_error=True, ignore_required=True)
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used <= set(variables["properties"]), "Prefect refuses a template that uses what it does not list"


@pytest.mark.parametrize(("name", "right"), [
    ("ANNEAL_NODES", True), ("NCCL_DEBUG", True), ("CUDA_VISIBLE_DEVICES", True), ("PREFECT_LOGGING_LEVEL", True),
    ("TORCH_CPP_LOG_LEVEL", True), ("HOME_PAGE", True), ("PYTHONPATH", False), ("PYTHONSTARTUP", False),
    ("PATH", False), ("LD_PRELOAD", False), ("LD_LIBRARY_PATH", False), ("BASH_ENV", False),
    ("PREFECT__FLOW_ENTRYPOINT", False), ("PREFECT_HOME", False), ("HOME", False), ("A=B", False), ("", False)])
def test_variables_that_choose_code_are_refused(name: str, right: bool) -> None:
    def judge(values: Any) -> None:
        validate(values, Pool("gpu", "process").template["variables"], raise_on_error=True)

    if right:
        judge({"env": {name: "x"}})
        return
    with pytest.raises(ValidationError):
        judge({"env": {name: "x"}})
