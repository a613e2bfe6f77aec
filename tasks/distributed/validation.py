"""Mean cross-entropy at the labelled held-out tokens, over all ranks.

Ranks take rows in turn, and all make the same number of forward passes: with sharded weights a
forward pass is a thing that ranks do together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from tasks.distributed.batches import Batch, batch_of
from tasks.distributed.loss import PackedLoss
from tasks.distributed.packs import PackedRows
from tasks.distributed.process_group import Group


def held_out_loss(
    model: PackedLoss, rows: PackedRows, ranks: Group, batch_size: int,
    precision: Callable[[], AbstractContextManager[Any]], seen: Callable[[int, Batch, float], None] | None = None,
) -> float:
    """In nats; nan without any labelled token. Leaves the model in evaluation mode.

    `seen` is told of this rank's every forward pass: its first row, the batch, the sum of its loss.
    """
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(rows), batch_size * ranks.world):
        place = start + ranks.rank * batch_size
        mine = np.arange(place, min(place + batch_size, len(rows)))  # empty for a rank that has no more rows
        batch = batch_of(rows, mine) if len(mine) else batch_of(rows, np.arange(1), labelled=False)
        with torch.no_grad(), precision():
            value = float(model(batch.to(ranks.device)))
        if seen and len(mine):
            seen(int(mine[0]), batch, value)
        sums += torch.tensor([value, len(batch.labels_N)], dtype=torch.float64)
    total, labels = ranks.patient_sum(sums).tolist()
    return float(total / labels) if labels else math.nan
