"""The table of devices: peak rate, memory, price. infra/hardware.toml, or a user's own in the home.

In:   a file of TOML, this machine's GPUs      Out: a Device, or None for one that is not in the table
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UserError
from infra.settings import Settings
from tasks.launcher.devices import gpus

TABLE = Path(__file__).resolve().parent.parent.parent / "infra" / "hardware.toml"
GIB = 1 << 30
USABLE = 0.9
"""Share of a device's memory that is not lost to the CUDA context, NCCL's buffers and gaps."""


@dataclass(frozen=True, slots=True)
class Device:
    """One row of the table."""

    name: str
    tflops: float
    memory_gib: float
    usd_per_hour: float
    utilization: float

    @property
    def usable_gib(self) -> float:
        """What tensors can have of it."""
        return self.memory_gib * USABLE


def known_device(settings: Settings) -> tuple[str, Device | None]:
    """This machine's device and its row in the table, <home>/hardware.toml first.

    Raises UserError for a table that cannot be read; a device that is not in it is no error.
    """
    own = settings.home_path / "hardware.toml"
    table = device_table(own if own.exists() else TABLE)
    here = gpus()[0] if gpus() else "CPU"
    rows = (device for name, device in table.items() if re.search(rf"\b{re.escape(name)}\b", here, re.IGNORECASE))
    return here, next(rows, None)


def device_table(path: Path = TABLE) -> dict[str, Device]:
    """The table of devices. Raises UserError."""
    try:
        return {name: Device(name, **row) for name, row in tomllib.loads(path.read_text(encoding="utf-8")).items()}
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise UserError(f"the table cannot be read ({error})", where=str(path),
                        allowed="tflops, memory_gib, usd_per_hour and utilization for each device") from error
