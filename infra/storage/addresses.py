"""What a data source is written in: the word in front of its address, as in csv:https://host/data.csv; and, in brackets
in front of that, which of its columns are read as which keys, as in [prompt=question,completion=answer]csv:data.csv."""

from __future__ import annotations

import re
from typing import Literal

from infra.errors import UserError
from infra.spec import columns_named

Form = Literal["jsonl", "csv", "parquet", "alpaca", "sharegpt"]
WORDS: dict[str, Form] = {"csv": "csv", "parquet": "parquet", "alpaca": "alpaca", "sharegpt": "sharegpt"}
IN_BRACKETS = re.compile(r"\[((?:[^\[\]=,]+=[^\[\]=,]+,?)+)\](.*)", re.DOTALL)


def form_of(source: str) -> tuple[Form, str]:
    """What a source is written in, and its address without the word for it, and without columns."""
    source = columns_of(source)[1]
    word, colon, address = source.partition(":")
    return (WORDS[word], address) if colon and word in WORDS else ("jsonl", source)


def columns_of(source: str) -> tuple[dict[str, str], str]:
    """{key: the column that is read as it}, and the source without them."""
    found = IN_BRACKETS.fullmatch(source)
    return (columns_named(found[1]), found[2]) if found else ({}, source)


def with_columns(columns: str, source: str) -> str:
    """A source whose columns are named. Raises UserError for data that has been read already."""
    if not columns or not source:
        return source
    if source.startswith("store://"):
        raise UserError(f"columns is {columns}, and the data is in the store already", where=source,
                        fix="Leave columns out: rows in the store have the keys that they were brought in with.")
    return f"[{columns}]{source}"
