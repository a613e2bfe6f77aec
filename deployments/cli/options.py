"""Command-line options made from the fields of `TrainingSpec`, and errors instead of argparse's exits.

In:   an argparse parser           Out: one option a field, and a spec from the parsed values
Every value is checked in one place, `TrainingSpec`, so that the command line, the form and the API
answer a wrong value with the same sentence.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from infra.errors import UserError, did_you_mean
from infra.spec import FIELD_TYPES, FIELDS, Group, Precision, TrainingSpec


def _json(text: str) -> Any:
    """The value of an option in JSON."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"it is no JSON ({error}); quote the whole value with '...'") from error


INPUTS: dict[str, tuple[Callable[[str], Any], str]] = {
    "system_prompt": (str, "fills {system_prompt} of the template"),
    "max_new_tokens": (int, "longest answer, in tokens"),
    "temperature": (float, "0: always the likeliest token"),
    "top_p": (float, "keep the likeliest tokens up to this probability"),
    "top_k": (int, "keep this many of the likeliest tokens"),
    "stop_sequences": (str, "texts that end the answer, separated by commas"),
    "seed": (int, "same seed, same answer"),
    "prompt_template": (str, "text around {prompt}; empty: the version's own"),
    "tools": (_json, "functions that the model may call, as JSON in OpenAI's form"),
}
"""What the predictor takes beside the prompt; it checks the values and has the defaults."""
INVALID_CHOICE = re.compile(r".*invalid choice: '(?P<found>.*?)' \(choose from (?P<known>.*)\)")
WORDS = re.compile(r"[\w-]+")
ELSEWHERE = {
    "--lr": "--learning-rate", "--epochs": "--num-train-epochs", "--num-epochs": "--num-train-epochs",
    "--batch-size": "--train-batch-size", "--per-device-train-batch-size": "--train-batch-size",
    "--micro-batch-size": "--train-batch-size", "--dataset": "--train-data", "--data": "--train-data",
    "--dataset-name": "--train-data", "--training-file": "--train-data", "--model": "--base-model",
    "--model-name-or-path": "--base-model", "--output": "--destination", "--output-dir": "--destination",
    "--name": "--destination", "--suffix": "--destination", "--cutoff-len": "--chunk-size",
    "--sequence-len": "--chunk-size", "--max-seq-length": "--chunk-size", "--max-length": "--chunk-size",
    "--sample-packing": "--pack-sequences", "--packing": "--pack-sequences", "--use-peft": "--peft-method",
    "--finetuning-type": "--peft-method", "--load-in-4bit": "--peft-method", "--lora-r": "--lora-rank",
    "--lr-scheduler-type": "--lr-schedule", "--gradient-checkpointing": "--activation-checkpointing",
    "--save-steps": "--checkpoint-steps", "--eval-steps": "--validation-steps", "--bf16": "--precision"}
"""What OpenAI, TRL, axolotl and LLaMA-Factory call our options."""


class Parser(argparse.ArgumentParser):
    """Raises UserError for a wrong command line, so that --json can report it."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        wrong = INVALID_CHOICE.match(message)
        asked = did_you_mean(wrong["found"], WORDS.findall(wrong["known"])) if wrong else ""
        raise UserError(message, fix=f"{asked}`{self.prog} --help` lists the options.")

    def flags(self) -> list[str]:
        """All options of this parser."""
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]

    def command(self, name: str) -> Parser | None:
        """The parser of that command."""
        found = (action.choices.get(name) for action in self._actions
                 if isinstance(action, argparse._SubParsersAction))
        return next(found, None)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it; but an unknown option is told before those that are missing, and it is a mistake in the
        command's options, not in the root's."""
        words = [str(word) for word in args or ()]
        command = self.command(words[0]) if words else None
        for word in words[1 : words.index("--") if "--" in words else None]:
            if command is not None and word.startswith("--") and word.partition("=")[0] not in command.flags():
                command.refuse(word.partition("=")[0])
        options, extra = self.parse_known_args(args, namespace)
        if extra:
            (command or self).refuse(extra[0])
        return options

    def refuse(self, flag: str) -> NoReturn:
        """Raise UserError for an option that is none of ours."""
        flags = [one for one in self.flags() if flag.startswith("--no-") or not one.startswith("--no-")]
        same = ELSEWHERE.get(flag.replace("_", "-"), "")
        asked = f"Did you mean {same}? " if same in flags else did_you_mean(flag, flags)
        raise UserError(f"unknown option {flag}", fix=f"{asked}`{self.prog} --help` lists the options.")


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


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """The fields of the spec, where to train, and whether to deploy whatever comes out."""
    add_spec_options(parser)
    parser.add_argument("--remote", action="store_true",
                        help="start it on the work pool and watch, instead of running it in this process")
    parser.add_argument("--deployment", metavar="NAME", default="", help="which deployment --remote starts "
                        "(default: finetune/finetune, or the only one there is)")
    parser.add_argument("--force", action="store_true", help="deploy the version whatever its verdict says, even if it "
                        "is worse than the champion that it replaces; the same as --gate off")


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """The model to ask, the prompt, and the predictor's inputs."""
    parser.add_argument("target", metavar="MODEL[:VERSION]",
                        help="owner/name, and a version's number, alias or 64 hex digits (default: what is served); or "
                             "a version's 64 hex digits alone")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to ask; read from stdin if left out or -")
    parser.add_argument("--chat", action="store_true", help="talk: PROMPT and each line of stdin is a message, which "
                        "is sent with all that was said before; for versions trained on messages")
    for name, (kind, about) in INPUTS.items():
        parser.add_argument("--" + name.replace("_", "-"), dest=name, type=kind, help=about, metavar=_metavar(kind))


def add_watch_options(parser: argparse.ArgumentParser) -> None:
    """What to train when the data changes, and how often to look."""
    add_spec_options(parser, are_required=False)
    times = parser.add_mutually_exclusive_group()
    times.add_argument("--every", default="", metavar="TIME", help="look that often: 5m, 1h, 1d (default: 5m)")
    times.add_argument("--cron", default="", metavar="TEXT", help="look at these times instead, UTC: '*/10 * * * *'")
    parser.add_argument("--continue-from-champion", action="store_true",
                        help="go on from the version that is served then, instead of from the base model")
    times.add_argument("--off", action="store_true",
                       help="stop watching for that --destination; without one: list what is watched")


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """The version to export, where to write it, and in which form."""
    _add_version(parser)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="new or empty folder")
    parser.add_argument("--format", dest="form", choices=("peft", "merged", "gguf"), default="peft",
                        help="peft: the adapter. merged: a whole model for transformers. gguf: one file for llama.cpp, "
                             "by its converter (default: peft)")
    _add_weights(parser)


def add_push_options(parser: argparse.ArgumentParser) -> None:
    """The version to push, and the repository that takes it."""
    _add_version(parser)
    parser.add_argument("repository", metavar="USER/NAME", help="repository of the hub; made if need be, private")
    parser.add_argument("--public", action="store_true", help="everybody may see and have it")
    parser.add_argument("--format", dest="form", choices=("auto", "peft", "merged"), default="auto",
                        help="peft: the adapter. merged: a whole model. auto: as it was trained (default: auto)")
    _add_weights(parser)


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="MODEL[:VERSION]",
                        help="owner/name, and a version's number, alias or 64 hex digits (default: what is served, "
                             "else the newest); or a version's 64 hex digits alone")


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=get_args(Precision), default="auto",
                        help="number format of a whole model's weights (default: auto; an adapter's base decides: fp32 "
                             "if its are, else bf16; all weights: as they were trained)")
    parser.add_argument("--base-model", default="", metavar="TEXT",
                        help="base model, where this machine does not know it from a training, or is to name it as the "
                             "hub does; its content is compared")


def add_promote_options(parser: argparse.ArgumentParser) -> None:
    """The version to serve."""
    parser.add_argument("target", metavar="MODEL[:VERSION]",
                        help="owner/name, and a version's number, alias or 64 hex digits (default: the challenger)")
    parser.add_argument("--force", action="store_true", help="even if the gate kept it from being deployed")
    _add_base(parser)


def add_rollback_options(parser: argparse.ArgumentParser) -> None:
    """The model whose version before is to be served."""
    parser.add_argument("target", metavar="MODEL", help="owner/name")
    _add_base(parser)


def _add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-model", default="", metavar="TEXT", help="base model, where this machine does not know "
                        "it from a training; its content is compared")


def add_gc_options(parser: argparse.ArgumentParser) -> None:
    """How old, and whether only to look."""
    parser.add_argument("--days", type=float, default=30, metavar="X", help="what is younger stays (default: 30)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument("--uploads", action="store_true",
                        help="also data from `anneal upload`, of which the store may have the only copy")


def spec_from(options: argparse.Namespace) -> TrainingSpec:
    """The spec that the options ask for. Raises UserError, naming the field, for a wrong value."""
    return TrainingSpec.of(given_in(options))


def given_in(options: argparse.Namespace) -> dict[str, Any]:
    """The parameters of a training that the command line names."""
    names = {field.name for field in dataclasses.fields(TrainingSpec)}
    return {name: value for name, value in vars(options).items() if name in names}


def forced(spec: TrainingSpec, gate: str) -> TrainingSpec:
    """What --force asks for: no gate. Raises UserError beside a `gate` that was asked for too."""
    if gate not in ("", "off"):
        raise UserError(f"--force and --gate {gate} contradict each other", fix="Leave one of them out.")
    return dataclasses.replace(spec, gate="off")


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


def add_seed_options(parser: argparse.ArgumentParser) -> None:
    """Those of `gateway seed`."""
    parser.add_argument("do", choices=("seed",), nargs="?", help="for tests of clients: put a file's rows into the "
                        "gateway's database (ANNEAL_GATEWAY_FIXTURES=true)")
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE.json", help="models, versions, trainings and "
                        "predictions; see docs/api.md")


def add_key_options(parser: argparse.ArgumentParser) -> None:
    """Those of `key create`."""
    parser.add_argument("do", choices=("create",), help="make a key and print it, once")
    parser.add_argument("--owner", required=True, help="whose models and trainings it sees: owner of owner/name")
    parser.add_argument("--scopes", default="read,train,predict", help="read, train, predict, admin, by commas")
    parser.add_argument("--name", default="", help="what the key is for")


def add_pool_options(command: argparse.ArgumentParser) -> None:
    """Options of `anneal deploy`."""
    command.add_argument("--pool", metavar="NAME", default="process", help="work pool that runs the deployments: "
                         "process (this machine, the default), docker, kubernetes, or the name of any other; each has "
                         "deployments of its own, such as finetune/finetune-docker")
    command.add_argument("--type", metavar="TYPE", default="", help="type of a pool with another name, such as "
                         "kubernetes or ecs (default: that of the pool, if it is there)")
    command.add_argument("--cpu-pool", action="store_true", help="also a pool for machines without GPUs, and "
                         "finetune/prepare, which hands over to finetune/finetune when the data is packed")
    command.add_argument("--export", metavar="FOLDER", default="", help="only write the base job templates, for "
                         "`prefect work-pool create --base-job-template`")


OPTIONS = {
    "train": add_train_options, "estimate": add_spec_options, "watch": add_watch_options, "predict": add_input_options,
    "promote": add_promote_options, "rollback": add_rollback_options, "gateway": add_seed_options,
    "key": add_key_options, "deploy": add_pool_options, "gc": add_gc_options, "export": add_export_options,
    "push": add_push_options}
"""What the commands that have options of their own take."""
