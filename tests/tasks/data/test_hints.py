"""tasks/data/hints.py: a remedy that fits what happened to the line."""

from __future__ import annotations

import json

import pytest

from tasks.data.hints import remedy

CHAT = json.dumps({"messages": [{"role": "user", "content": "say },"}, {"role": "assistant", "content": "ok"}]})
ROW = json.dumps({"prompt": "a", "completion": "b"})


@pytest.mark.parametrize("line", [f"{ROW},", f"{CHAT},", f"{CHAT},  ", f'{{"a": {ROW}}},'])
def test_a_comma_at_the_end_of_a_line_is_seen_also_behind_a_conversation(line: str) -> None:
    assert remedy(line, "SHAPES").startswith("A comma stands at the end of the line")


@pytest.mark.parametrize("line", ["[", "]", f"[{ROW},", f"[{CHAT},", f"{ROW}]", f"{CHAT}]", f"{ROW},]"])
def test_a_line_of_an_array_is_told_apart_from_a_row(line: str) -> None:
    assert remedy(line, "SHAPES").startswith("It is a line of one JSON array: jq -c '.[]'")


@pytest.mark.parametrize("line", [f"{ROW}, {ROW}", f"{ROW}{ROW},", f"{CHAT} {CHAT}"])
def test_two_objects_in_a_line_are_told_to_part(line: str) -> None:
    assert remedy(line, "SHAPES").startswith("Write each object on a line of its own")


def test_a_line_that_is_cut_off_is_no_line_of_an_array() -> None:
    assert remedy(CHAT[:-3], "SHAPES").startswith("Write one complete object per line")
