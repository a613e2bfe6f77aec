"""What every route of the gateway works with: settings, database, base models, store, registry."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Annotated, Any, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request

from deployments.gateway.catalogue import Catalogue
from deployments.gateway.database import Database
from infra.errors import Transient
from infra.models.registry import Registry
from infra.settings import Settings
from infra.storage.store import Store

MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's client would ask a server that is away for minutes."""
AWAY_S = 5.0
SLOW_THREADS = 8
P = ParamSpec("P")
R = TypeVar("R")


class Gateway:
    """One process of the service."""

    def __init__(self, settings: Settings) -> None:
        """Raises UserError for a setting that is wrong."""
        self.settings = settings
        self.database = Database(settings)
        self.catalogue = Catalogue(settings)
        self._registry: Registry | None = None
        self._one_at_a_time = threading.Lock()
        self._away_until = 0.0

    @cached_property
    def store(self) -> Store:
        """The store, where files and events lie."""
        return Store(self.settings)

    @cached_property
    def slow(self) -> CapacityLimiter:
        """The threads of requests that take seconds."""
        return CapacityLimiter(SLOW_THREADS)

    async def slowly(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """As run_in_threadpool, beside the threads that short requests need."""
        return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=self.slow)

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        """MLflow, which takes seconds to import. Not for the event loop.

        Raises Transient, at once for a while after MLflow did not answer: clients are waiting.
        """
        if time.monotonic() < self._away_until:
            raise Transient("MLflow did not answer a moment ago", where=self.settings.tracking_uri.split("@")[-1])
        for name, value in MLFLOW_PATIENCE.items():
            os.environ.setdefault(name, value)
        try:
            with self._one_at_a_time:
                if self._registry is None:
                    self._registry = Registry(self.settings)
            yield self._registry
        except Transient:
            self._away_until = time.monotonic() + AWAY_S
            raise


def base_url(request: Request) -> str:
    """What clients call this service, without a slash at the end."""
    settings: Settings = request.app.state.settings
    return (settings.public_url or str(request.base_url)).rstrip("/")


async def _gateway(request: Request) -> Any:
    return request.app.state.gateway


Here = Annotated[Gateway, Depends(_gateway)]
Base = Annotated[str, Depends(base_url)]
