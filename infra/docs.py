"""The tables of the README, made from the code they describe.

In:   README.md with <!-- table: name --> ... <!-- end --> marks     Out: the same with fresh tables
Run alone: python -m infra.docs   (tests/test_docs.py fails while the README is not up to date)
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal, get_args, get_origin

from infra.files import write_atomic
from infra.settings import Settings
from infra.spec import FIELD_TYPES, TrainingSpec

README = Path(__file__).resolve().parent.parent / "README.md"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def parameters() -> str:
    """Every knob of a training: name, values, default, meaning."""
    lines = ["| parameter | values | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(TrainingSpec):
        default = "**required**" if field.default is dataclasses.MISSING else _code(field.default)
        lines.append(f"| `{field.name}` | {_values(field)} | {default} | {field.metadata['help']} |")
    return "\n".join(lines) + "\n"


def settings() -> str:
    """Every environment variable."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        lines.append(f"| `ANNEAL_{name.upper()}` | {_code(field.default)} | {field.description} |")
    return "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """The text with its tables made anew."""
    tables = {"parameters": parameters, "settings": settings}
    return MARKED.sub(lambda mark: mark[1] + tables[mark[2]]() + mark[3], text)


def _values(field: dataclasses.Field[object]) -> str:
    kind, limits = FIELD_TYPES[field.name], field.metadata
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    if limits["ge"] is None:
        return {bool: "true, false", str: "text"}.get(kind, str(kind.__name__))
    upper = f"..{limits['le']}" if limits["le"] is not None else " or more"
    return f"{limits['ge']}{upper}"


def _code(value: object) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if str(value) else "empty"


if __name__ == "__main__":
    write_atomic(README, filled(README.read_text(encoding="utf-8")))
