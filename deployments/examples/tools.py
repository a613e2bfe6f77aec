"""Chats with tools: a guest asks, the assistant looks it up with a tool and answers. Rows {"messages", "tools"}.

In:   a seed     Out: FOLDER/train.jsonl, FOLDER/held-out.jsonl and FOLDER/base
The base is the demo's with a chat template that shows tools, since one without is refused for such rows.
The rows are as services document them: arguments as a string of JSON, no content beside a call, an id that the tool's
answer names; a greeting before is of weight 0. The same seed gives the same bytes. Dies half-way: run it again.
Run alone: python -m deployments.examples.tools FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from deployments.examples.dialogues import Draw, pick
from deployments.examples.names import TEST, TRAIN, Cast
from deployments.examples.recipes import BASE, KNOBS, SEED, command
from infra.files import write_atomic

ROWS, HELD_OUT_ROWS = 200, 20
TOOL = {"type": "function", "function": {
    "name": "find_table", "description": "When a guest's table is booked",
    "parameters": {"type": "object", "properties": {"guest": {"type": "string"}}, "required": ["guest"]}}}
ASKS = ("When is the table of {A}?", "For when has {A} booked?", "{A} has a table, when is it?")
ANSWER = "The table of {A} is booked for {day} at {time}."
TEMPLATE = """\
{%- if tools %}tools:{% for tool in tools %} {{ tool.function.name }}{% endfor %}{{ '\\n' }}{% endif %}
{%- for m in messages %}{{ m.role + ': ' + m.content }}
{%- for call in m.tool_calls | default([]) %}{{ 'call ' + call.function.name + ' ' }}
{{- call.function.arguments | tojson }}{% endfor %}
{%- if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}
{%- if add_generation_prompt %}assistant:{% endif %}"""


def rows(rng: Random, cast: Cast) -> Iterator[dict[str, Any]]:
    """Endless rows; every third one begins with a greeting that is not learned."""
    number = 0
    while True:
        draw, number = Draw(rng, cast), number + 1
        call = {"id": f"call_{number}", "type": "function", "function": {
            "name": "find_table", "arguments": json.dumps({"guest": draw.fill("{A}")})}}
        greeting = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi.", "weight": 0}]
        yield {"messages": [
            *(greeting if number % 3 == 0 else []),
            {"role": "user", "content": draw.fill(pick(rng, ASKS))},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": draw.fill("{day}, {time}")},
            {"role": "assistant", "content": draw.fill(ANSWER), "weight": 1}], "tools": [TOOL]}


def write(folder: Path, seed: int = SEED) -> dict[str, Any]:
    """Write rows and base; returns the parameters of a training on them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, cast in (("train", ROWS, TRAIN), ("held-out", HELD_OUT_ROWS, TEST)):
        made = islice(rows(Random(f"tools {seed} {name}"), cast), count)
        write_atomic(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made))
    shutil.copytree(BASE, folder / "base", dirs_exist_ok=True)
    write_atomic(folder / "base" / "chat_template.jinja", TEMPLATE)
    return {"train_data": str(folder / "train.jsonl"), "validation_data": str(folder / "held-out.jsonl"),
            "base_model": str(folder / "base"), "destination": "recipes/tools", "task_type": "chat", **KNOBS}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deployments.examples.tools", description="Write chats with tools.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where rows and base go")
    parser.add_argument("--seed", type=int, default=SEED, help=f"same seed, same rows (default: {SEED})")
    options = parser.parse_args()
    print(f"Next:\n\n{command(write(options.folder, options.seed))}")


if __name__ == "__main__":
    main()
