"""Anneal's trainer as a contender: the very loop of tasks/distributed/train.py, a window at a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from infra.spec import TrainingSpec
from tasks.distributed.contract import TrainJob
from tasks.distributed.process_group import StopFlag, group
from tasks.distributed.train import Trainer
from tests.benchmarks.data import validation_loss
from tests.benchmarks.windows import Windows


def main() -> None:
    """Options: a TrainJob's."""
    job = TrainJob(**json.loads(sys.argv[1]))
    spec, stop, windows = TrainingSpec.from_json(job.spec), StopFlag(), Windows()
    with group() as ranks:
        trainer = Trainer(job, spec, ranks)
        trainer.resume()
        step = 0
        while windows.gate():
            trainer.step(step, stop)
            trainer.look_back()
            if ranks.is_first:
                windows.tokens += int(trainer.rows.tokens_in[trainer.plan.rows_of(step)].sum())
            step += 1
        trainer.look_back(all_of_them=True)
        windows.measured()
        windows.end(validation_loss(trainer.built.loss, Path(job.packs)))


if __name__ == "__main__":
    main()
