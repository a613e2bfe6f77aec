"""What all seven tasks have in common: when Prefect retries them, and how they are named.

A step is done when its manifest verifies (infra/files.py); Prefect's own result cache is not
used. Only errors that may pass are retried; the user's errors and ours fail at once.
Tasks are called directly in the flow, never submitted: only then do signals and time limits
reach them in the main thread, and training saves a checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Cancelled, Completed

from infra.errors import AnnealError, Broken, Missing, RanksLost, Transient, from_os_error
from infra.records import Record
from infra.redaction import redacted
from infra.run_listener import listener
from tasks.runs.attempt import INTERRUPTED, reached
from tasks.runs.step_times import timed

P = ParamSpec("P")
R = TypeVar("R")
Done = TypeVar("Done", bound=Record)

DELAYS_S = [2.0, 4.0, 8.0, 30.0, 60.0, 120.0, 300.0, 300.0]
"""Between tries: a service may be away for a quarter of an hour. What is waited for stands in the run's log."""
MISSING_TRIES = 3
"""A shared file system shows a new folder to other machines within seconds. What was deleted stays away."""
HOUR_S = 3600.0
_outages: dict[UUID, tuple[int, float]] = {}
"""Of the task runs of this process that met one: failed tries in a row, and when the last one failed."""


def step(
    name: str, *, timeout_s: float, retries: int = len(DELAYS_S),
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a step's function with the common policy. Its `subject` argument names the run.

    No tags: with any, Prefect asks the server for slots of limits on them before a task begins.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        options = task(
            name=name, task_run_name=f"{name} {{subject}}", retries=retries,
            retry_delay_seconds=DELAYS_S, retry_jitter_factor=0.3,
            retry_condition_fn=may_pass, timeout_seconds=timeout_s, cache_policy=NO_CACHE, persist_result=False)

        @wraps(function)
        def work(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except KeyboardInterrupt:  # Prefect would call it Crashed
                return cast(R, Cancelled(message=INTERRUPTED))
            except OSError as error:
                raise from_os_error(error, name) from error
            except AnnealError:
                raise
            except Exception as error:
                if redacted(str(error)) == str(error):
                    raise
                # Prefect stores what an error says, and this one says a secret.
                raise Broken(f"{type(error).__name__}: {error}", where=name) from None

        prefect_task = options(work)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            listener().step_begins(name)
            with timed(name) as clock:
                value = prefect_task(*args, **kwargs)
                if isinstance(value, State):
                    clock.forget()
            if isinstance(value, State) and value.is_cancelled():  # by Ctrl-C: see `work`
                raise KeyboardInterrupt
            result = value.result() if isinstance(value, State) else value
            reached(f"{name} done")
            listener().step_ends(
                name, result if isinstance(result, Record) else None, was_done=isinstance(value, State))
            return result

        return call

    return decorate


def may_pass(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Retry what may pass by itself, and nothing else: a service for a quarter of an hour, ranks again and again."""
    error = state.data if isinstance(state.data, BaseException) else None
    if error is None:
        try:
            state.result()
        except BaseException as raised:  # noqa: BLE001  (the state's own error, looked at and dropped)
            error = raised
    if isinstance(error, RanksLost):
        _outages.pop(run.id, None)
        return True
    if not isinstance(error, Transient):
        return False
    tries, last = _outages.get(run.id, (0, 0.0))
    now = time.monotonic()
    tries = 1 if now - last > HOUR_S else tries + 1  # a try may take days: then this is another outage
    _outages[run.id] = tries, now
    return tries <= (MISSING_TRIES if isinstance(error, Missing) else len(DELAYS_S))


def found_done(record: Done) -> Done:
    """The state of a step that was done before: shown as Cached, unwrapped by `step`."""
    return cast(Done, Completed(name="Cached", message="done before; its manifest verifies", data=record))
