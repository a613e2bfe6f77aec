"""Named places where a test lets a process die. Without ANNEAL_CRASH_AT they do nothing.

In:   ANNEAL_CRASH_AT=<point>:<how>:<nth pass>[:<rank>], how: a signal's name or MEMORY
      ANNEAL_CRASH_FIRED: a file; written when the fault fires, which happens once as long as it is there
Standard library only: ranks import this file.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

AT, FIRED = "ANNEAL_CRASH_AT", "ANNEAL_CRASH_FIRED"
_passes: Counter[str] = Counter()


def crashpoint(name: str) -> None:
    """Die here if a test wants it. Raises MemoryError where the wish is MEMORY."""
    wish = os.environ.get(AT)
    if not wish:
        return
    point, how, nth, *rank = wish.split(":")
    if point != name or (rank and rank[0] != os.environ.get("RANK")):
        return
    _passes[name] += 1
    fired = Path(os.environ[FIRED])
    if _passes[name] != int(nth) or fired.exists():
        return
    fired.write_text(wish, encoding="utf-8")
    if how == "MEMORY":
        raise MemoryError(f"injected at {name}")
    os.kill(os.getpid(), signal.Signals[how])
