"""Launch a training's ranks, again and again while that brings it further.

In:   a TrainJob               Out: the ranks' result.json
On disk meanwhile: <run>/ended-at.json, the checkpoints that launches ended at; <run>/parts, how many micro-batches fit
Ranks that die after a new checkpoint are started again at once; where memory runs out, with smaller micro-batches.
Dies half-way: both files are read by the next process.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.errors import Broken, OutOfMemory, RanksLost, Transient
from infra.files import write_atomic
from infra.settings import Settings
from infra.spec import TrainingSpec
from tasks.distributed.contract import TrainJob, checkpoint_folders
from tasks.distributed.events import drop_torn_line
from tasks.launcher.jobs import TRAIN, ranks_of, run_child
from tasks.launcher.nodes import Launch, machines_of
from tasks.launcher.watchdog import StallWatchdog

PARTS = "parts"
"""The file with the number of micro-batches that fitted after memory had run out."""
ENDED_AT, SAME_LAUNCHES = "ended-at.json", 3
"""The file with the checkpoints that launches ended at; so many of the same are enough."""
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Launches:
    """What every launch of one training needs, and the two rules for another one."""

    settings: Settings
    pace: StallWatchdog
    look: Callable[[], None]
    """Called about four times a second, and between launches."""
    call: Callable[[Launch], None] | None = None
    """Brings the other nodes of a launch."""

    def run_while_it_gets_on(self, job: TrainJob) -> dict[str, Any]:
        """Run the ranks; where they die after a new checkpoint, again at once: only what comes no further has to wait.

        Raises RanksLost for a launch that left no newer checkpoint, Broken for three of them in a row.
        """
        run = Path(job.out)
        while True:
            before = newest_checkpoint(run)
            try:
                return self.run_smaller_if_needed(job)
            except Transient as error:
                if comes_no_further(run):
                    raise Broken(
                        f"{SAME_LAUNCHES} launches in a row ended at the same checkpoint; the last one: {error}",
                        where=f"training {job.key}") from error
                if newest_checkpoint(run) == before:
                    raise RanksLost(str(error)) from error
                log.warning("training=%s goes on at %s: %s", job.key, newest_checkpoint(run), error.found)
                self.look()
                drop_torn_line(run)

    def run_smaller_if_needed(self, job: TrainJob) -> dict[str, Any]:
        """Run the ranks; where memory runs out, again with micro-batches of half the size.

        The numbers stay the same: only the cut of a batch into micro-batches changes. Training goes on at the
        last checkpoint. Raises OutOfMemory when a micro-batch is a single row.
        """
        spec, nodes, noted = TrainingSpec.from_json(job.spec), machines_of(self.settings), Path(job.out) / PARTS
        ranks = ranks_of(spec.num_ranks)
        share = math.ceil(spec.train_batch_size / (ranks * nodes.count))
        parts = spec.gradient_accumulation_steps or 1
        if noted.exists():  # of a launch before this one
            parts = max(parts, min(int(noted.read_text()), share))
        while True:
            job = dataclasses.replace(job, spec=dataclasses.replace(spec, gradient_accumulation_steps=parts).to_json())
            self.look()  # what the launch before told must not count as this one's
            self.pace.launch()
            try:
                return run_child(self.settings, job, TRAIN, ranks=ranks, on_poll=self.look, nodes=nodes,
                                 call=self.call, patience_s=self.pace.limit_s)
            except OutOfMemory as error:
                if parts >= share:
                    raise
                parts = min(2 * parts, share)
                write_atomic(noted, str(parts))
                log.warning("training=%s %s; micro-batches of %d rows from here on", job.key, error.found,
                            math.ceil(share / parts))


def comes_no_further(run: Path) -> bool:
    """Note at which checkpoint a launch ended; whether the last ones all ended there."""
    noted = run / ENDED_AT
    earlier = json.loads(noted.read_text(encoding="utf-8")) if noted.exists() else []
    ended = [*earlier, newest_checkpoint(run)][-SAME_LAUNCHES:]
    write_atomic(noted, json.dumps(ended))
    return len(ended) == SAME_LAUNCHES and len(set(ended)) == 1


def newest_checkpoint(run: Path) -> str:
    """The name of its folder, or an empty string."""
    return next((path.name for path in checkpoint_folders(run)), "")
