"""The `anneal` command.

In:   a command line                Out: the answer on stdout, logs on stderr; with --json one JSON object
Exit: 0 done | 1 a fault that is not the user's | 2 the user can mend it | 130 Ctrl-C | 143 SIGTERM
Dies half-way: run the same command again; finished steps of a training are kept.
Nothing heavy is imported before a command needs it, so that --help is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deployments.cli.console import (
    Answer,
    check_room,
    links_of,
    set_environment,
    settings_here,
    start_own_server,
    table,
)
from deployments.cli.operate import deploy, down, env, gc, join, status, up, upload, watch
from deployments.cli.options import (
    Parser,
    add_gc_options,
    add_input_options,
    add_merge_options,
    add_spec_options,
    add_watch_options,
    spec_from,
)
from infra.errors import AnnealError, UserError, from_os_error
from infra.redaction import redact_logs, redacted

if TYPE_CHECKING:
    from infra.settings import Settings

EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    as_json = "--json" in arguments
    umask = os.umask(0o077)  # which commands change for themselves: see settings_here
    os.umask(umask)
    redact_logs()
    try:
        options = parser().parse_args(arguments)
        # Whatever a library prints is a log; the answer alone goes to stdout.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            answer: Answer = options.run(options)
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to go on.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except AnnealError as error:
        return _failed(error, as_json)
    except Exception as error:
        told = from_os_error(error, f"anneal {arguments[0]}") if isinstance(error, OSError) else None
        if isinstance(told, UserError):  # a full or read-only disk, wherever it was met
            return _failed(told, as_json)
        _print_error(error, as_json)
        raise
    finally:
        os.umask(umask)
    print(json.dumps(answer.data) if as_json else answer.text)
    return 0


def parser() -> Parser:
    """The whole command line."""
    root = Parser(prog="anneal", description="Fine-tune language models on your own GPUs.", allow_abbrev=False)
    root.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, run, about in (
        ("train", train, "train, evaluate, register and deploy a model"),
        ("estimate", estimate, "say what a training would take, without training"),
        ("predict", predict, "ask a deployed model"),
        ("merge", merge, "write a version as a whole model, its adapter merged into the base"),
        ("upload", upload, "bring data into the store, and print the address that trainings find it at"),
        ("join", join, "take part, on this machine, in trainings that another one leads"),
        ("deploy", deploy, "put work pools, deployments, schedules and triggers into Prefect"),
        ("watch", watch, "look for new data now and then, and train again when there is some"),
        ("up", up, "start the local stack: Prefect, MLflow, predictor, worker"),
        ("down", down, "stop what `anneal up` started"),
        ("status", status, "show what runs"),
        ("env", env, 'print the variables that other programs need: eval "$(anneal env)"'),
        ("gc", gc, "remove from the store what no version needs and is old"),
    ):
        command = commands.add_parser(name, help=about, description=about.capitalize() + ".", allow_abbrev=False)
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        if name in ("train", "estimate"):
            add_spec_options(command)
        if name == "watch":
            add_watch_options(command)
        if name == "predict":
            add_input_options(command)
        if name == "upload":
            command.add_argument("source", metavar="SOURCE", help="file, folder, pattern or address, as --train-data")
        if name == "join":
            command.add_argument("node", type=int, metavar="NUMBER", help="of this machine, from 1; the first one is 0")
        if name == "deploy":
            command.add_argument("--pool", choices=("process", "docker", "kubernetes"), default="process",
                                 help="kind of work pool that runs the deployments (default: process)")
            command.add_argument("--cpu-pool", action="store_true",
                                 help="also a pool for machines without GPUs, and finetune/cpu, which hands over to "
                                      "finetune/gpu when the data is packed")
        if name == "train":
            command.add_argument("--remote", action="store_true",
                                 help="start it on the work pool and watch, instead of running it in this process")
        if name == "gc":
            add_gc_options(command)
        if name == "merge":
            add_merge_options(command)
    return root


def train(options: argparse.Namespace) -> Answer:
    """Run the pipeline in this process, seen by the Prefect server if there is one."""
    spec, settings = spec_from(options), settings_here()
    _check_server(settings)
    set_environment(settings)
    if settings.prefect_api:
        os.environ["PREFECT_API_URL"] = settings.prefect_api
    if options.remote:
        from deployments.cli.remote import train_remotely

        return train_remotely(settings, spec)
    check_room(settings)
    from flows.finetune import finetune
    from flows.parameters import Parameters
    from tasks.runs.run_log import leave_endings_out

    start_own_server()
    leave_endings_out()
    from prefect.exceptions import CancelledRun

    try:
        version = finetune(Parameters(**dataclasses.asdict(spec)))
    except CancelledRun as error:
        raise UserError("the run was cancelled in Prefect", where=spec.destination,
                        fix="Run the same command again to go on at the last checkpoint.") from error
    links = links_of(settings)
    if "mlflow" in links:
        name, number = version.uri.removeprefix("models:/").rsplit("/", 1)
        links["mlflow"] += f"/#/models/{name}/versions/{number}"
    text = f"{version.destination} version {version.number}\n{version.id}"
    return Answer({**version.to_json(), "links": links}, "\n".join([text, *table(links)]))


def estimate(options: argparse.Namespace) -> Answer:
    """What the training would take."""
    spec, settings = spec_from(options), settings_here()
    set_environment(settings)
    from flows.finetune import estimate as forecast

    logging.getLogger("tasks.data.streams").setLevel(logging.INFO)  # how far it is; Prefect shows warnings only
    expected = forecast(spec)
    lines = {"device": f"{expected.ranks} x {expected.device}", **expected.lines()}
    return Answer(expected.to_json(), "\n".join(table(lines)))


def predict(options: argparse.Namespace) -> Answer:
    """Ask the predictor; on a terminal the answer appears as it is written."""
    from deployments.cli import predict as ask

    settings = settings_here()
    set_environment(settings)
    if not settings.predictor:
        raise UserError("no predictor is known", fix="Start one with `anneal up`, or set ANNEAL_PREDICTOR_URL.")
    return Answer(*ask.ask(settings, options, stream=sys.stdout.isatty() and not options.json))


def merge(options: argparse.Namespace) -> Answer:
    """Merge a version's adapter into its base, and say how far its logits are from the adapter's."""
    settings = settings_here(private=False)
    set_environment(settings)
    from deployments.cli.merge import merge as merged_into

    done = merged_into(settings, options.target, options.folder, dtype=options.dtype, base_model=options.base_model)
    version = done.version
    lines = {
        "folder": done.folder, "version": f"{version.destination} version {version.number}, {version.id}",
        "dtype": done.dtype, "bytes": done.bytes, "compared on": f"{done.probe_tokens} tokens of {done.probe}",
        "adapter": f"changes the base's logits by up to {done.effect:.2g} of the largest",
        "merged": _logits(done.merged, "adapter on base"), "reloaded": _logits(done.reloaded, "merged, fp32")}
    return Answer(done.to_json(), "\n".join(table(lines)))


class _Version(argparse.Action):
    def __call__(self, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        with contextlib.suppress(PackageNotFoundError):
            print(f"anneal {version('anneal')}")
            raise SystemExit(0)
        print("anneal, not installed (running from a checkout)")
        raise SystemExit(0)


def _check_server(settings: Settings) -> None:
    """Raise UserError if the stack's Prefect server should answer and does not: Prefect tries for minutes."""
    from infra.stack import local as stack

    server = stack.read_stack(settings).get("prefect")
    if server and server.url == settings.prefect_api and not stack.is_answering(server.health):
        raise UserError(
            "the Prefect server of the local stack does not answer", where=server.url,
            fix="Run `anneal down` and `anneal up`.")


def _logits(found: dict[str, float], beside: str) -> str:
    return (f"off by {found['max_absolute']:.2g} ({found['max_relative']:.2g} of the largest logit, allowed "
            f"{found['bound']:.2g}), likeliest token the same at {found['same_argmax']:.2%} ({beside})")


def _failed(error: AnnealError, as_json: bool) -> int:
    print(f"error: {error}", file=sys.stderr)
    _print_error(error, as_json)
    return EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAULT


def _print_error(error: Exception, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": redacted(str(error)), "type": type(error).__name__}))


if __name__ == "__main__":
    raise SystemExit(main())
