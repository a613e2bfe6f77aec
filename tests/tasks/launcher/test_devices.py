"""tasks/launcher/devices.py, tasks/launcher/jobs.py: what nvidia-smi says decides what a child may expect."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.settings import Settings
from infra.spec import TrainingSpec
from tasks.distributed.model import torch_device
from tasks.launcher import jobs
from tasks.launcher.devices import gpus, gpus_have_bf16, refuse_optimizer


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """What nvidia-smi said is not remembered from one test to the next."""
    yield
    gpus.cache_clear()
    gpus_have_bf16.cache_clear()


def with_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, *capabilities: str) -> None:
    """An nvidia-smi that lists GPUs of these capabilities."""
    names, told = "NVIDIA X\\n" * len(capabilities), "".join(f"{one}\\n" for one in capabilities)
    (folder / "nvidia-smi").write_text(
        f"#!/bin/sh\ncase \"$1\" in *=name) printf '{names}';; *) printf '{told}';; esac\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus.cache_clear()
    gpus_have_bf16.cache_clear()


@pytest.mark.parametrize(("capabilities", "precision"), [
    (["8.0"], "bf16"), (["9.0", "10.0"], "bf16"), (["7.5"], "fp32"), (["8.9", "7.0"], "fp32"), (["[N/A]"], "bf16")])
def test_bf16_is_chosen_where_all_gpus_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: list[str], precision: str,
) -> None:
    with_smi(tmp_path, monkeypatch, *capabilities)
    assert gpus() == ("NVIDIA X",) * len(capabilities)
    assert jobs.settled(TrainingSpec(train_data="d", base_model="b", destination="a/b")).precision == precision


@pytest.mark.parametrize("has_gpu", [True, False])
def test_gpus_that_torch_cannot_use_are_no_reason_to_train_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_gpu: bool,
) -> None:
    with_smi(tmp_path, monkeypatch, *["9.0"] * has_gpu)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name, value in jobs.rank_environment(Settings(home=tmp_path), 1).items():
        monkeypatch.setenv(name, value)
    if not has_gpu:
        assert torch_device().type == "cpu"
        return
    with pytest.raises(UserError, match=r"nvidia-smi lists GPUs, but torch .* cannot use them"):
        torch_device()


def test_an_8_bit_optimizer_needs_a_gpu_and_bitsandbytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TrainingSpec(train_data="d", base_model="b", destination="a/b", optimizer="adamw_8bit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no CUDA device.*Leave optimizer out"):
        refuse_optimizer(spec)
    gpus.cache_clear()
    with_smi(tmp_path, monkeypatch, "9.0")
    monkeypatch.setattr("tasks.launcher.devices.find_spec", lambda name: None)
    with pytest.raises(UserError, match="bitsandbytes is not installed"):
        refuse_optimizer(spec)
    monkeypatch.setattr("tasks.launcher.devices.find_spec", lambda name: name)
    refuse_optimizer(spec)
