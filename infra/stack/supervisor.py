"""Start services of the local stack again when they die or hang, so that nothing depends on a person.

In:   stack.json                Out: every service in it runs; what died or hung, and when, stands in this process's log
A service that dies again within a minute is waited for longer and longer, up to a minute. One that hangs is killed
first: it does not answer its health address, or, where it has none, is stopped by a signal or leaves no beat. Of a
worker only its own process is killed; its runs go on.
On disk: <home>/logs/keeper.beat, touched at every look, by which `anneal status` sees whether this process hangs.
Dies half-way: the services go on; the next `anneal up` starts it again. A machine with systemd needs none of this
(infra/systemd/).
Run alone: python -m infra.stack.supervisor   (as `anneal up` starts it)
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import psutil

from infra.errors import AnnealError
from infra.settings import Settings
from infra.stack import local as stack
from infra.stack.health import get_within
from infra.stack.processes import SILENT_S, Service, is_stopped, kill, process_of, reap, silence_s
from infra.stack.services import beat_of

POLL_S = 1.0
SHORT_LIFE_S = 60.0
LONGEST_PAUSE_S = 60.0
ASK_EVERY_S = 10.0
ANSWER_TIMEOUT_S = 10.0
"""A service that shares its cores with a training answers within a second or two."""
MISSES = 6
"""In a row: a minute. They are counted instead of timed, because the clock may jump and this process may be held."""
FIRST_MISSES = 24
"""The same before the first answer: four minutes, longer than whoever started it waits (stack.START_TIMEOUT_S)."""
SERVERS_AT_MOST = len(stack.NAMES)

log = logging.getLogger(__name__)


@dataclass
class Pulse:
    """Whether one process of a service still works. It is asked on a thread, so that a hang holds nobody up."""

    service: Service
    misses: int = 0
    has_answered: bool = False
    due: float = 0.0
    """time.monotonic() from which it is asked again."""
    answer: Future[bool] | None = None

    def hangs(self, threads: ThreadPoolExecutor) -> bool:
        """Look at the last answer, ask again if it is time, and say whether it missed too many of them."""
        if self.answer is not None and self.answer.done():
            self.has_answered |= self.answer.result()
            self.misses = 0 if self.answer.result() else self.misses + 1
            self.answer = None
        if self.answer is None and time.monotonic() >= self.due:
            self.due = time.monotonic() + ASK_EVERY_S
            self.answer = threads.submit(works, self.service)
        return self.misses >= (MISSES if self.has_answered else FIRST_MISSES)


class Pulses:
    """Those of all services. A service that was started again begins anew."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(SERVERS_AT_MOST)
        self._of: dict[str, Pulse] = {}

    def hanging(self, running: dict[str, Service]) -> dict[str, Service]:
        """The services that hang."""
        self._of = {name: pulse for name, pulse in self._of.items() if running.get(name) == pulse.service}
        for name, service in running.items():
            self._of.setdefault(name, Pulse(service))
        return {name: pulse.service for name, pulse in self._of.items() if pulse.hangs(self._threads)}


def keep(settings: Settings) -> None:
    """Look, start, wait; for ever."""
    pause, restarted = POLL_S, time.monotonic()
    wanted: set[str] = set()
    pulses, beat = Pulses(), beat_of(settings, "keeper")
    beat.parent.mkdir(parents=True, exist_ok=True)
    log.info("keeping")  # infra/stack/services.py waits for this word
    while True:
        time.sleep(pause)
        reap()
        try:
            beat.touch()
            running = {name: service for name, service in stack.read_stack(settings).items() if name != "keeper"}
            wanted |= set(running)  # one that could not be started stands there no more
            end(settings, pulses.hanging(running))
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


def works(service: Service) -> bool:
    """False for one that hangs; whether it died is seen elsewhere."""
    try:
        process = process_of(service)
        if process is None:
            return True
        if not service.health and not is_stopped(process):
            return silence_s(service) < SILENT_S
    except psutil.Error:  # it may not be looked at
        return True
    if not service.health:
        return False
    status = get_within(service.health, ANSWER_TIMEOUT_S).status
    return 0 < status < 500 or status == 503  # 503: it is alive, but its database is busy


def end(settings: Settings, hanging: dict[str, Service]) -> None:
    """Kill the processes of services that hang; `up` takes care of what a server's own children hold."""
    if not hanging:
        return
    with stack.stack_lock(settings):
        there = stack.read_stack(settings)
        for name, service in hanging.items():
            process = process_of(service)
            if there.get(name) == service and process is not None and not works(service):
                log.warning("hangs: %s; process %d is killed", name, service.pid)
                kill({process})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    keep(Settings())
