"""deployments/prefect_setup/prefect.yaml and how it is read: pytest tests/deployments/prefect_setup/test_declared.py"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deployments.prefect_setup.declared import FILE, declared
from deployments.prefect_setup.pools import QUEUES, Pool, merge
from infra.errors import Broken
from infra.stack.services import POOL


def test_the_deployments_that_are_declared() -> None:
    assert [one.full_name for one in declared()] == [
        "finetune/finetune", "finetune/finetune-advanced", "finetune/prepare", "retrain/retrain",
        "retrain/retrain-advanced", "join/machine", "predict/predict", "retrain/watch"]


def test_the_stacks_worker_serves_the_pool_of_trainings() -> None:
    assert Pool("gpu", "process").name == POOL == declared()[0].work_pool.name


def test_every_queue_is_one_of_the_pools() -> None:
    assert {one.work_pool.work_queue_name for one in declared()} <= set(QUEUES)


@pytest.mark.parametrize(("place", "key"), [
    ((), "deploymnets"), (("deployments", 0), "shedules"), (("deployments", 3, "schedules", 0), "max_scheduled_runs"),
    (("deployments", 3, "triggers", 0), "expects"), (("deployments", 0, "work_pool"), "queue")])
def test_a_misspelt_key_is_named(tmp_path: Path, place: tuple[str | int, ...], key: str) -> None:
    whole = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    part = whole
    for step in place:
        part = part[step]
    part[key] = 1
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    with pytest.raises(Broken, match=key):
        declared(tmp_path / "prefect.yaml")


@pytest.mark.parametrize(("value", "patch", "merged"), [  # the examples of RFC 7396, appendix A
    ({"a": "b"}, {"a": "c"}, {"a": "c"}), ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}), ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}), ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}), ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}), (["a", "b"], ["c", "d"], ["c", "d"]), ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None), ({"a": "foo"}, "bar", "bar"), ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}), ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}})])
def test_merge_patches(value: object, patch: object, merged: object) -> None:
    assert merge(value, patch) == merged
