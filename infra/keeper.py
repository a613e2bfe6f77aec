"""Start services of the local stack again when they die, so that nothing depends on a person.

In:   stack.json                Out: every service in it runs; what died and when stands in this process's log
One that dies again within a minute is waited for longer and longer, up to a minute.
Dies half-way: the services go on; the next `anneal up` starts it again. A machine with systemd needs none of this
(infra/systemd/).
Run alone: python -m infra.keeper   (as `anneal up` starts it)
"""

from __future__ import annotations

import logging
import time

from infra import stack
from infra.errors import AnnealError
from infra.processes import reap
from infra.settings import Settings

POLL_S = 1.0
SHORT_LIFE_S = 60.0
LONGEST_PAUSE_S = 60.0
log = logging.getLogger(__name__)


def keep(settings: Settings) -> None:
    """Look, start, wait; for ever."""
    pause, restarted = POLL_S, time.monotonic()
    wanted: set[str] = set()
    log.info("keeping")  # infra/services.py waits for this word
    while True:
        time.sleep(pause)
        reap()
        try:
            wanted |= set(stack.read(settings)) - {"keeper"}  # one that could not be started stands there no more
            states = stack.status(settings, ask=False)
            dead = [name for name in states if name in wanted and states[name] == "stopped"]
            if not dead:
                continue
            short = time.monotonic() - restarted < SHORT_LIFE_S
            pause, restarted = min(2 * pause, LONGEST_PAUSE_S) if short else POLL_S, time.monotonic()
            log.warning("died: %s", ", ".join(dead))
            stack.up(settings, only=dead)
            log.info("started again: %s", ", ".join(dead))
        except (AnnealError, OSError) as error:  # a full disk may have room again
            log.error("not started, trying again in %.0f s: %s", pause, error)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    keep(Settings())
