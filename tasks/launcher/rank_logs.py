"""What the ranks print, in our own log, and so in the run's log in Prefect (tasks/runs/run_log.py).

In:   the log files beside a job      Out: log lines
The files are the truth: everything that ranks print stands there. The run's log shows each kind of line once, whichever
rank says it and however often, and no more of them than a person reads.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

FILES = "log*.txt"
"""Of the first node and of those that join it (tasks/launcher/jobs.py, tasks/launcher/join.py)."""
LINES_AT_MOST = 200
CHARACTERS_AT_MOST = 2000
VARIES = re.compile(r"0x[0-9a-f]+|\d+")
"""What differs between lines that say the same: ranks, steps, addresses, times."""
BAR = re.compile(r"\s*\d+%\|")
"""The first rank's progress bar, which tasks/ui/progress.py shows in its own way."""
log = logging.getLogger(__name__)


class RankLines:
    """Follows the log files of one launch. Used as a context; at its end it says how much was left out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read = {path: path.stat().st_size for path in folder.glob(FILES)}
        self._kinds: set[str] = set()
        self._left_out = 0

    def __enter__(self) -> RankLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        if self._left_out:
            log.info("%d more lines, most of them alike, are in %s", self._left_out, self._folder / FILES)

    def look(self) -> None:
        """Pass on the lines that have been completed since the last look."""
        for path in sorted(self._folder.glob(FILES)):
            start = self._read.get(path, 0)
            if path.stat().st_size <= start:
                continue
            with path.open("rb") as file:
                file.seek(start)
                text = file.read()
            whole = text[:text.rfind(b"\n") + 1]
            self._read[path] = start + len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                self._pass_on(line.rstrip())

    def _pass_on(self, line: str) -> None:
        if not line or BAR.match(line):
            return
        kind = VARIES.sub("0", line)
        if kind in self._kinds or len(self._kinds) == LINES_AT_MOST:
            self._left_out += 1
            return
        self._kinds.add(kind)
        log.info("%s", line[:CHARACTERS_AT_MOST])
