"""The tokenizers that a version reads requests with. Leaves nothing on disk.

A fast tokenizer cannot be shared between threads: each has a thread of its own, one for short texts and one for long
ones, so that a second of tokenising holds up no short request, and none of another version.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from deployments.predictor.lanes import SHORT_BYTES, Lane
from tasks.distributed.codec import Codec

T = TypeVar("T")


class Encoder:
    """Two tokenizers of one version with their threads."""

    def __init__(self, short: Codec, long: Codec) -> None:
        self.stop_ids = short.stop_ids
        self._short, self._long = (Lane("tokenizer"), short), (Lane("tokenizer-long"), long)

    def submit(self, size: int, work: Callable[[Codec], T]) -> Future[T]:
        """Do something with a tokenizer to a text of `size` bytes, on that tokenizer's thread."""
        lane, codec = self._long if size > SHORT_BYTES else self._short
        return lane.submit(lambda: work(codec))
