"""The table of devices that the project ships; a user's own: tests/tasks/launcher/test_forecast.py."""

from __future__ import annotations

from infra.settings import Settings
from tasks.launcher.device_table import device_table, known_device


def test_a_machine_without_gpus_is_in_the_table(settings: Settings) -> None:
    name, device = known_device(settings)
    assert device is None or device.name in device_table()
    assert name


def test_a_tenth_of_a_devices_memory_is_not_for_tensors() -> None:
    assert device_table()["H100"].usable_gib == device_table()["H100"].memory_gib * 0.9
