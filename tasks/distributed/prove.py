"""Prove the loss of a base on a few tokens: the child process of an estimate.

In:   job.json (ProveJob): base, spec     Out: result.json with what tasks/distributed/preflight.py found
The base is loaded as the training would load it, with its adapters. Raises what a training would raise before its
first step. Dies half-way: nothing is left. Run alone: python -m tasks.distributed.prove job.json
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from infra.spec import TrainingSpec
from tasks.distributed.contract import ProveJob, main_of
from tasks.distributed.lora import add_adapter
from tasks.distributed.loss import PackedLoss
from tasks.distributed.model import dtype_of, load_base, torch_device
from tasks.distributed.preflight import prove


def prove_base(job: ProveJob) -> int:
    """Load, compare, tell."""
    spec, device = TrainingSpec.from_json(job.spec), torch_device()
    compute = dtype_of(spec.precision, device)
    base = load_base(Path(job.base), dtype=compute, device=device, quantized=spec.peft_method == "qlora")
    if spec.peft_method != "full":
        add_adapter(base, spec)
    job.finish(dataclasses.asdict(prove(PackedLoss(base), compute, device)))
    return 0


if __name__ == "__main__":
    main_of(ProveJob, prove_base)
