"""What steps took here says what they will take: pytest tests/tasks/launcher/test_measured.py"""

from __future__ import annotations

import numpy as np
import pytest

from infra.settings import Settings
from tasks.launcher.measured import FILE, KEPT, Measured, expected_span, note_measured, read_measured


def ran(work: float, seconds: float, like: str = "CPU") -> Measured:
    return Measured(step="train", like=like, work=work, seconds=seconds)


def test_the_same_work_takes_what_it_took() -> None:
    span = expected_span([ran(100, 60), ran(100, 64), ran(100, 62)], "train", "CPU", 100)
    assert span is not None and span.likely == 62 and span.low < 60 and span.high > 64


@pytest.mark.parametrize("seed", range(20))
def test_another_amount_is_within_a_quarter_after_two_that_differ(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(1, 0.04, 6)
    known = [ran(work, (12 + 0.5 * work) * off)
             for work, off in zip((200, 1000, 400, 200, 1000, 300), noise, strict=True)]
    for work in (240, 600, 2400):
        span = expected_span(known, "train", "CPU", work)
        assert span is not None and abs(span.likely / (12 + 0.5 * work) - 1) < 0.25
        assert span.low < 12 + 0.5 * work < span.high


def test_one_amount_alone_gives_an_interval_that_says_so() -> None:
    span = expected_span([ran(100, 60)], "train", "CPU", 400)
    assert span is not None and span.low <= 60 and span.high >= 240, "all of it start-up, or none"


def test_what_is_not_alike_says_nothing() -> None:
    assert expected_span([ran(100, 60, "H100")], "train", "CPU", 100) is None
    assert expected_span([ran(100, 60)], "evaluate", "CPU", 100) is None


def test_it_is_kept_in_the_home_and_does_not_grow_for_ever(settings: Settings) -> None:
    note_measured(settings, [ran(n, 1) for n in range(KEPT)])
    with (settings.home_path / FILE).open("a") as file:
        file.write('{"step": "train", "li')
    note_measured(settings, [ran(7, 7)])
    found = read_measured(settings)
    assert len(found) == KEPT and found[-1] == ran(7, 7) and found[0] == ran(1, 1)
