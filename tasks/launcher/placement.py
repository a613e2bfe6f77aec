"""How a training lies on this machine's devices: settled once after `pack`, and handed to the steps that start ranks.

In:   spec, pack, base; the devices that are here     Out: a Placement
"""

from __future__ import annotations

from dataclasses import dataclass
from tempfile import TemporaryDirectory

from infra.records import Base, Pack
from infra.settings import Settings
from infra.spec import TrainingSpec
from tasks.distributed.contract import ProveJob
from tasks.launcher.device_table import Device, known_device
from tasks.launcher.forecast import Forecast, forecast
from tasks.launcher.jobs import ranks_of, run_child, settled


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What `train` and `evaluate` need to know of the machine."""

    spec: TrainingSpec
    """As asked for, with the precision that this machine's devices compute in."""
    ranks: int
    """Training processes on this machine."""
    device: Device | None
    """The row of the table of devices; None: it is not in there."""
    forecast: Forecast

    @property
    def job_spec(self) -> TrainingSpec:
        """The spec as ranks get it: with micro-batches, and whether layers are compiled."""
        return self.forecast.settle(self.spec)


def try_base(settings: Settings, spec: TrainingSpec, base: Base) -> str:
    """Prove the base's loss on a few tokens, in a child process, as a training does before its first step.

    Returns why examples go through the model one at a time, or "". Raises BaseModelError, Transient.
    """
    with TemporaryDirectory(prefix="anneal-try-") as folder:
        job = ProveJob(out=folder, base=base.path, spec=settled(spec).to_json())
        return str(run_child(settings, job, "tasks.distributed.prove")["why"])


def place(settings: Settings, spec: TrainingSpec, pack: Pack, base: Base) -> Placement:
    """Settle what the spec leaves to the machine. Raises UserError for more ranks than there are GPUs."""
    spec = settled(spec)
    return Placement(spec=spec, ranks=ranks_of(spec.num_ranks), device=known_device(settings)[1],
                     forecast=forecast(settings, spec, pack, base))
