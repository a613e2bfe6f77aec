"""Command-line options made from the fields of `TrainingSpec`, and errors instead of argparse's exits.

In:   an argparse parser           Out: one option a field, and a spec from the parsed values
Every value is checked in one place, `TrainingSpec`, so that the command line, the form and the API
answer a wrong value with the same sentence.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from infra.errors import UserError
from infra.spec import FIELD_TYPES, FIELDS, Group, Precision, TrainingSpec

INPUTS: dict[str, tuple[Callable[[str], Any], str]] = {
    "system_prompt": (str, "fills {system_prompt} of the template"),
    "max_new_tokens": (int, "longest answer, in tokens"),
    "temperature": (float, "0: always the likeliest token"),
    "top_p": (float, "keep the likeliest tokens up to this probability"),
    "top_k": (int, "keep this many of the likeliest tokens"),
    "stop_sequences": (str, "texts that end the answer, separated by commas"),
    "seed": (int, "same seed, same answer"),
    "prompt_template": (str, "text around {prompt}; empty: the version's own"),
}
"""What the predictor takes beside the prompt; it checks the values and has the defaults."""


class Parser(argparse.ArgumentParser):
    """Raises UserError for a wrong command line, so that --json can report it."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UserError(message, fix=f"`{self.prog} --help` lists the options.")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it; what is left over is a mistake in the command's options, not in the root's."""
        options, extra = self.parse_known_args(args, namespace)
        if extra:
            command = getattr(options, "command", None)
            raise UserError(f"unknown option {extra[0]}",
                            fix=f"`{self.prog} {command} --help` lists the options." if command else "")
        return options


def add_spec_options(parser: argparse.ArgumentParser, *, are_required: bool = True) -> None:
    """One `--train-data`-like option for every field of the spec."""
    groups = {name: parser.add_argument_group(name) for name in get_args(Group)}
    for field in FIELDS:
        group = groups[field.metadata["group"]]
        kind, is_required = FIELD_TYPES[field.name], field.default is dataclasses.MISSING
        about = "" if is_required or field.default == "" else f" (default: {_written(field.default)})"
        help_text = (field.metadata["help"] + about).replace("%", "%%")
        flag = "--" + field.name.replace("_", "-")
        if kind is bool:
            group.add_argument(
                flag, dest=field.name, action=argparse.BooleanOptionalAction, help=help_text,
                default=argparse.SUPPRESS)
        else:
            group.add_argument(
                flag, dest=field.name, type=_converter(kind), help=help_text,
                required=is_required and are_required, default=argparse.SUPPRESS, metavar=_metavar(kind))


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """The model to ask, the prompt, and the predictor's inputs."""
    parser.add_argument("target", metavar="MODEL[:VERSION]",
                        help="owner/name, and a version's number, alias or 64 hex digits (default: what is served); or "
                             "a version's 64 hex digits alone")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to ask; read from stdin if left out or -")
    for name, (kind, about) in INPUTS.items():
        parser.add_argument("--" + name.replace("_", "-"), dest=name, type=kind, help=about, metavar=_metavar(kind))


def add_watch_options(parser: argparse.ArgumentParser) -> None:
    """What to train when the data changes, and how often to look."""
    add_spec_options(parser, are_required=False)
    times = parser.add_mutually_exclusive_group()
    times.add_argument("--every", default="", metavar="TIME", help="look that often: 5m, 1h, 1d (default: 5m)")
    times.add_argument("--cron", default="", metavar="TEXT", help="look at these times instead, UTC: '*/10 * * * *'")
    times.add_argument("--off", action="store_true", help="stop watching for that --destination")


def add_merge_options(parser: argparse.ArgumentParser) -> None:
    """The version to merge, where to write it, and how."""
    parser.add_argument("target", metavar="MODEL[:VERSION]",
                        help="owner/name, and a version's number, alias or 64 hex digits (default: what is served, "
                             "else the newest)")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="new or empty folder for the whole model")
    parser.add_argument("--dtype", choices=get_args(Precision), default="auto",
                        help="number format of the weights (default: auto, fp32 if the base's are, else bf16)")
    parser.add_argument("--base-model", default="", metavar="TEXT",
                        help="base model, where this machine does not know it from a training")


def add_gc_options(parser: argparse.ArgumentParser) -> None:
    """How old, and whether only to look."""
    parser.add_argument("--days", type=float, default=30, metavar="X", help="what is younger stays (default: 30)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument("--uploads", action="store_true",
                        help="also data from `anneal upload`, of which the store may have the only copy")


def spec_from(options: argparse.Namespace) -> TrainingSpec:
    """The spec that the options ask for. Raises UserError, naming the field, for a wrong value."""
    names = {field.name for field in dataclasses.fields(TrainingSpec)}
    return TrainingSpec.of({name: value for name, value in vars(options).items() if name in names})


def _converter(kind: Any) -> Callable[[str], Any]:
    """Read a number if it is one; the spec names the field of a text that is not."""
    def convert(text: str) -> Any:
        try:
            return kind(text) if kind in (int, float) else text
        except ValueError:
            return text
    return convert


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    return {int: "N", float: "X"}.get(kind, "TEXT")


def _written(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
