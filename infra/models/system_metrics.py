"""How busy the machine is while it trains: CPU, memory, disk, network and GPUs, by MLflow's own samplers.

MLflow's `SystemMetricsMonitor` is not used: its thread ends for good when the server does not answer once. GPUs need
nvidia-ml-py (the extra gpu), or pyrsmi for AMD's. Leaves nothing on disk.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from infra.models.tracking import Point

PREFIX = "system/"
"""By which MLflow's pages know them."""


class SystemMetrics:
    """MLflow's samplers of this machine."""

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
        from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

        self._samplers: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        for kind in (GPUMonitor, ROCMMonitor):
            with suppress(ImportError, RuntimeError):  # no such GPU, or no library for it
                self._samplers.append(kind())

    def sample(self, time_ms: int, step: int) -> list[Point]:
        """The machine at this moment."""
        found: dict[str, float] = {}
        for sampler in self._samplers:
            sampler.collect_metrics()
            found |= sampler.aggregate_metrics()
            sampler.clear_metrics()
        return [Point(f"{PREFIX}{name}", value, time_ms, step) for name, value in found.items()]
