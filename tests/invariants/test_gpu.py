"""The invariants on a CUDA device: pytest -m gpu tests/invariants

On one GPU: the recorded trajectory, exact resume, memory that really runs out, 4-bit bases.
"""

from __future__ import annotations

import json
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.errors import EXIT_OUT_OF_MEMORY
from infra.settings import Settings
from tasks.distributed.contract import TrainJob
from tasks.launcher.relaunch import PARTS, Launches
from tasks.launcher.watchdog import StallWatchdog
from tests.invariants.conftest import trajectory
from tests.invariants.test_resume import outcome
from tests.invariants.test_trajectory import check, check_bf16, log_of, losses_of, recorded
from tests.support import ranks
from tests.tasks.distributed.conftest import MakeJob, events_of, write_pack

pytestmark = [pytest.mark.gpu, pytest.mark.slow,
              pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LONG_TOKENS = 512
COMPILED = {"compile_layers": "on", "pack_sequences": True}


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_a_gpu_gives_the_recorded_trajectory(method: str, parallelism: str, make_job: MakeJob) -> None:
    job = make_job("run", peft_method=method, parallelism=parallelism)
    assert ranks.run(job, 1) == [0], log_of(job)
    check(trajectory(job), recorded(method))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    "knobs", [{}, COMPILED, {"activation_checkpointing": True}, {"parallelism": "fsdp"},
              {**COMPILED, "parallelism": "fsdp"}],
    ids=["", "compiled", "again", "fsdp", "fsdp_compiled"])
def test_bf16_stays_close_to_the_recorded_trajectory(method: str, knobs: dict[str, Any], make_job: MakeJob) -> None:
    job = make_job("run", peft_method=method, precision="bf16", **knobs)
    assert ranks.run(job, 1) == [0], log_of(job)
    check_bf16(job, method)


@pytest.fixture
def long_packs(tmp_path: Path) -> str:
    """Examples that several blocks of attention's kernels share: their sums come in any order unless forbidden."""
    lengths = (LONG_TOKENS - 64, LONG_TOKENS)
    return str(write_pack(tmp_path / "long", examples=128, lengths=lengths, packed=False))


@pytest.mark.parametrize(("method", "knobs"), [("lora", {}), ("lora", COMPILED), ("full", {})])
def test_a_kill_changes_nothing(
    method: str, knobs: dict[str, Any], make_job: MakeJob, long_packs: str, tmp_path: Path,
) -> None:
    values = {"packs": long_packs, "chunk_tokens": LONG_TOKENS, "train_batch_size": 8, "num_train_epochs": 1,
              "peft_method": method, "precision": "bf16", "checkpoint_steps": 2, "lora_dropout": 0.1, **knobs}
    smooth, killed = make_job("smooth", **values), make_job("killed", **values)
    assert ranks.run(smooth, 1) == [0], log_of(smooth)
    fired = tmp_path / "fired"
    codes = ranks.run(killed, 1, ANNEAL_CRASH_AT="train.after_backward:SIGKILL:8", ANNEAL_CRASH_FIRED=fired)
    assert fired.exists() and codes == [-signal.SIGKILL]
    assert ranks.run(killed, 1) == [0], log_of(killed)
    assert events_of(killed, "resume")[0]["step"] >= 4 and not events_of(killed, "not_repeatable")
    assert outcome(killed, method) == outcome(smooth, method)


def test_memory_that_really_runs_out_halves_the_micro_batch(
    make_job: MakeJob, long_packs: str, settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def training(name: str, parts: int) -> TrainJob:
        return make_job(name, packs=long_packs, chunk_tokens=LONG_TOKENS, precision="bf16", peft_method="full",
                        num_ranks=1, train_batch_size=64, gradient_accumulation_steps=parts, num_train_epochs=1)

    free = {parts: training(f"free{parts}", parts) for parts in (1, 2, 4)}
    for job in free.values():
        assert ranks.run(job, 1) == [0], log_of(job)
    peaks = {parts: result_of(job)["peak_memory_bytes"] for parts, job in free.items()}
    assert peaks[4] < 0.6 * peaks[1]
    limit = 0.8 * peaks[1] / torch.cuda.get_device_properties(0).total_memory
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", f"per_process_memory_fraction:{limit:.6f}")
    alone = training("alone", 1)
    assert ranks.run(alone, 1) == [EXIT_OUT_OF_MEMORY], log_of(alone)
    job = training("limited", 1)
    Launches(settings, StallWatchdog(settings), lambda: None).run_smaller_if_needed(job)
    parts = int((Path(job.out) / PARTS).read_text())
    assert parts in (2, 4) and losses_of(job) == losses_of(free[parts])


def result_of(job: TrainJob) -> dict[str, Any]:
    """What a finished training left."""
    return dict(json.loads((Path(job.out) / "result.json").read_text()))


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_adapters_learn_beside_a_base_of_four_bits(make_job: MakeJob) -> None:
    job = make_job("run", peft_method="qlora", precision="bf16", learning_rate=5e-3, num_train_epochs=6)
    assert ranks.run(job, 1) == [0], log_of(job)
    losses = losses_of(job)
    assert losses[-1] < 0.9 * losses[0]
