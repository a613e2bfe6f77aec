"""Rows as other programs have them (tasks/data/schema.py): the remedy that is named makes rows that can be learned."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from infra.errors import DataError
from tasks.data.schema import clean, kind_of, parse

ASKED, SAID = "It's \"how\" many?", "Four.\n"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED},
        {"role": "assistant", "content": SAID}]
GEMINI = [{"role": "user", "parts": [{"text": ASKED}]}, {"role": "model", "parts": [{"text": "Fo"}, {"text": "ur.\n"}]}]
BEDROCK = [{"role": "user", "content": [{"text": ASKED}]}, {"role": "assistant", "content": [{"text": SAID}]}]
ROWS: dict[str, tuple[dict[str, Any], Any]] = {
    "gemini": ({"contents": GEMINI}, {"messages": CHAT[1:]}),
    "gemini-system": ({"systemInstruction": {"role": "system", "parts": [{"text": "Be brief."}]}, "contents": GEMINI},
                      {"messages": CHAT}),
    "vertex-system": ({"system_instruction": {"parts": [{"text": "Be brief."}]}, "contents": GEMINI},
                      {"messages": CHAT}),
    "bedrock": ({"schemaVersion": "bedrock-conversation-2024", "system": [{"text": "Be brief."}], "messages": BEDROCK},
                {"messages": CHAT}),
    "bedrock-bare": ({"schemaVersion": "bedrock-conversation-2024", "messages": BEDROCK}, {"messages": CHAT[1:]}),
    "openai-preference": (
        {"input": {"messages": CHAT[:2], "tools": [], "parallel_tool_calls": True}, "preferred_output": CHAT[2:],
         "non_preferred_output": [{"role": "assistant", "content": "No."}]}, {"messages": CHAT}),
    "axolotl": ({"segments": [{"label": False, "text": ASKED}, {"label": True, "text": SAID}]},
                {"prompt": ASKED, "completion": SAID}),
}


def read(row: dict[str, Any]) -> dict[str, Any]:
    found = parse(json.dumps(row).encode(), "line 1")
    return clean(found, kind_of(found, "line 1"), "line 1")


@pytest.mark.parametrize("name", ROWS)
def test_the_remedy_makes_rows_of_it(name: str) -> None:
    row, wanted = ROWS[name]
    with pytest.raises(DataError) as caught:
        read(row)
    (program,) = re.findall(r"jq -c '([^']+)'", str(caught.value))
    if shutil.which("jq") is None:
        pytest.skip("needs jq to run the remedy")
    done = subprocess.run(["jq", "-c", program], input=json.dumps(row), capture_output=True, text=True, check=True)
    (made,) = map(json.loads, done.stdout.splitlines())
    assert made == wanted == read(made)
