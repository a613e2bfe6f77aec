"""What Prometheus scrapes at `/metrics`: requests, tokens and times of each version, and how many wait.

In:   rows that have ended     Out: the text format of Prometheus
Names follow vLLM's metrics, so that panels made for those need only another prefix. Leaves nothing on disk.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from deployments.predictor.engine import Done, Row

LABELS = ("model", "version")
VERSION_DIGITS = 12
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
PREFIX = "anneal_"

__all__ = ("CONTENT_TYPE", "Metrics")


class Metrics:
    """The counters of one predictor."""

    def __init__(self, waiting: Callable[[], int], running: Callable[[], int]) -> None:
        """`waiting` and `running` are asked at each scrape: rows in the engines' queues, and those in a batch."""
        self._registry = here = CollectorRegistry()

        def counter(name: str, about: str, *more: str) -> Counter:
            return Counter(PREFIX + name, about, (*LABELS, *more), registry=here)

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(PREFIX + name, about, LABELS, buckets=buckets, registry=here)

        self._requests = counter("requests", "Answers that have ended, by why: end, stop, length, cancelled, error.",
                                 "finished_reason")
        self._prompt = counter("prompt_tokens", "Tokens of prompts.")
        self._written = counter("generation_tokens", "Tokens of answers.")
        self._queue = histogram("request_queue_time_seconds", "From the queue to the first step.", SECONDS)
        self._first = histogram("time_to_first_token_seconds", "From the queue to the first token.", SECONDS)
        self._between = histogram("inter_token_latency_seconds", "Mean time between the tokens of an answer.",
                                  TOKEN_SECONDS)
        self._whole = histogram("e2e_request_latency_seconds", "From the queue to the end.", SECONDS)
        for name, about, ask in (("num_requests_waiting", "Rows in the queues.", waiting),
                                 ("num_requests_running", "Rows in a batch.", running)):
            Gauge(PREFIX + name, about, registry=here).set_function(ask)

    def count(self, model: str, version: str, row: Row, done: Done) -> None:
        """A row has ended. Called on engines' threads."""
        labels = (model, version[:VERSION_DIGITS])
        self._requests.labels(*labels, done.reason).inc()
        self._prompt.labels(*labels).inc(len(row.ids))
        self._written.labels(*labels).inc(row.tokens)
        self._whole.labels(*labels).observe(row.ended - row.queued)
        if row.started:
            self._queue.labels(*labels).observe(row.started - row.queued)
        if row.first:
            self._first.labels(*labels).observe(row.first - row.queued)
        if row.tokens > 1:
            self._between.labels(*labels).observe((row.ended - row.first) / (row.tokens - 1))

    def text(self) -> bytes:
        """For a scrape."""
        return generate_latest(self._registry)
