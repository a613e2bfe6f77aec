"""Times, sizes and prices in words: pytest tests/deployments/cli/test_words.py"""

from __future__ import annotations

import pytest

from deployments.cli.words import money, size_in_words
from infra.progress import seconds_in_words


@pytest.mark.parametrize(("seconds", "words"), [
    (0.84, "0.8 s"), (9.97, "10 s"), (59.4, "59 s"), (59.6, "1 min"), (200, "3 min 20 s"), (1500, "25 min"),
    (7500, "2 h 5 min")])
def test_seconds(seconds: float, words: str) -> None:
    assert seconds_in_words(seconds) == words


@pytest.mark.parametrize(("size", "words"), [(17, "17 B"), (2_400, "2.4 kB"), (24_000, "24 kB"), (3e12, "3.0 TB")])
def test_sizes(size: float, words: str) -> None:
    assert size_in_words(size) == words


def test_a_price_that_is_not_known_is_not_told() -> None:
    assert (money(None), money(0.0), money(0.001), money(2.5)) == (
        "", "  0.00 USD", "  less than 0.01 USD", "  2.50 USD")
