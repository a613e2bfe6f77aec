"""What a rank holds: pytest tests/invariants/test_memory.py"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from infra.settings import Settings
from tasks.distributed.contract import TrainJob
from tasks.launcher.jobs import TRAIN, run_child
from tests.conftest import ranks_in
from tests.tasks.distributed.conftest import MakeJob

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

LAYERS, HIDDEN = 24, 512
KNOBS = {"max_steps": 1, "run_validation": False, "lora_rank": 2, "train_batch_size": 2,
         "activation_checkpointing": True}
POLL_S = 0.005
MOST = 0.8
"""Of the base: a half, and what the run itself needs."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 405 MB in many layers, so that the one that is whole for a moment weighs little."""
    folder = tmp_path_factory.mktemp("base")
    config = LlamaConfig(vocab_size=512, hidden_size=HIDDEN, intermediate_size=4 * HIDDEN, num_hidden_layers=LAYERS,
                         num_attention_heads=8, max_position_embeddings=64)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


def peak_of(job: TrainJob, settings: Settings) -> int:
    """The most memory of its own that a rank of two had at any look, in bytes; pages of files are not its own."""
    peak = 0

    def look() -> None:
        nonlocal peak
        peak = max(peak, *(own_memory(process.pid) for process in ranks_in(job.out)), 0)

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_child, settings, job, TRAIN, ranks=2)
        while not run.done():
            look()
            time.sleep(POLL_S)
    run.result()
    return peak


def own_memory(pid: int | None) -> int:
    """RssAnon of /proc; 0 for a process that has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def test_with_shards_no_rank_ever_holds_the_whole_base(
    make_job: MakeJob, base: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what glibc keeps for later is nobody's
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    start = peak_of(make_job("start", parallelism="fsdp", **KNOBS), settings)
    grown = {}
    for parallelism in ("ddp", "fsdp"):
        job = make_job(parallelism, parallelism=parallelism, base=str(base), **KNOBS)
        grown[parallelism] = (peak_of(job, settings) - start) / size
    assert grown["ddp"] > 1.0, "the looks see a base that is held whole"
    assert grown["fsdp"] < MOST, grown
