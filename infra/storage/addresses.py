"""What a data source is written in: the word in front of its address, as in csv:https://host/data.csv."""

from __future__ import annotations

from typing import Literal

Form = Literal["jsonl", "csv", "parquet"]
WORDS: dict[str, Form] = {"csv": "csv", "parquet": "parquet"}


def form_of(source: str) -> tuple[Form, str]:
    """What a source is written in, and its address without the word for it."""
    word, colon, address = source.partition(":")
    return (WORDS[word], address) if colon and word in WORDS else ("jsonl", source)
