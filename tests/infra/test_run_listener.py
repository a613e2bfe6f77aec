"""Who hears how a run gets on: pytest tests/infra/test_run_listener.py"""

from __future__ import annotations

from infra.progress import ProgressLog
from infra.run_listener import RunListener, listener, listening


class Kept(RunListener):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, float, str]] = []

    def gets_on(self, done: float, total: float, what: str) -> None:
        self.heard.append((done, total, what))


def test_progress_reaches_the_one_who_listens_now() -> None:
    kept, before = Kept(), listener()
    with listening(kept):
        so_far = ProgressLog(lambda _: None, "written", "rows", 10)
        so_far._soon._seconds = 0.0
        so_far.at(4)
    so_far.at(5)
    assert kept.heard == [(4, 10, "written: 4 of 10 rows")] and listener() is before
