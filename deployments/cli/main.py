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
from deployments.cli.operate import (
    deploy,
    down,
    env,
    gateway,
    gc,
    join,
    key,
    promote,
    rollback,
    status,
    up,
    upload,
    watch,
)
from deployments.cli.options import OPTIONS, Parser, forced, spec_from
from infra.errors import AnnealError, UserError, from_os_error
from infra.redaction import redact_logs, redacted

if TYPE_CHECKING:
    from deployments.cli.terminal import Terminal
    from infra.settings import Settings
    from infra.spec import TrainingSpec

EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
FORCED = ("--force: the gate is off. The version is deployed and becomes the champion even if it is worse than the "
          "base or the champion; the one before it keeps the alias `previous`. The verdict is told all the same.")


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
    except KeyboardInterrupt as error:
        print(f"Interrupted. {error or 'Run the same command again to go on.'}", file=sys.stderr)
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
    return answer.exit_code


def parser() -> Parser:
    """The whole command line."""
    root = Parser(prog="anneal", description="Fine-tune language models on your own GPUs.", allow_abbrev=False)
    root.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, run, about in (
        ("train", train, "train, evaluate, register and deploy a model"),
        ("estimate", estimate, "say what a training would take, without training"),
        ("predict", predict, "ask a deployed model"),
        ("promote", promote, "let a model answer with a version, by default with its challenger"),
        ("rollback", rollback, "let a model answer with its version before"),
        ("export", export, "write a version into a folder that peft, transformers or llama.cpp loads"),
        ("push", push, "put a version into a repository of the Hugging Face hub, private by default"),
        ("upload", upload, "bring data into the store, and print the address that trainings find it at"),
        ("join", join, "take part, on this machine, in trainings that another one leads"),
        ("deploy", deploy, "put work pools, deployments, schedules and triggers into Prefect"),
        ("watch", watch, "look for new data now and then, and train again when there is some"),
        ("up", up, "start the local stack: Prefect, MLflow, predictor, gateway, worker"),
        ("down", down, "stop what `anneal up` started"),
        ("status", status, "show services, models and trainings; exit 1 where a service is not running"),
        ("env", env, 'print the variables that other programs need: eval "$(anneal env)"'),
        ("gateway", gateway, "serve Replicate's API over the services that run already"),
        ("key", key, "make a key for a client of the gateway"),
        ("gc", gc, "remove from the store what no version needs and is old"),
    ):
        sentence = f"{about[0].upper()}{about[1:]}."
        command = commands.add_parser(name, help=about, description=sentence, allow_abbrev=False)
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.add_argument("--verbose", action="store_true", help="show the whole log of Prefect and the libraries")
        if name == "upload":
            command.add_argument("source", metavar="SOURCE", help="file, folder, pattern or address, as --train-data")
        if name == "join":
            command.add_argument("node", type=int, metavar="NUMBER", help="of this machine, from 1; the first one is 0")
        if name in OPTIONS:
            OPTIONS[name](command)
    return root


def train(options: argparse.Namespace) -> Answer:
    """Run the pipeline in this process, seen by the Prefect server if there is one."""
    from deployments.cli.terminal import be_quiet_before_import

    spec, settings = spec_from(options), settings_here()
    if options.force:
        spec = forced(spec, getattr(options, "gate", ""))
        print(FORCED, file=sys.stderr)
    _check_server(settings)
    set_environment(settings)
    if not options.verbose:
        be_quiet_before_import()
    if settings.prefect_api:
        os.environ["PREFECT_API_URL"] = settings.prefect_api
    from flows.parameters import refuse_mistakes

    if not options.remote or settings.is_own("prefect", settings.prefect_api):  # else the worker has other folders
        refuse_mistakes(settings, spec)
    from flows.finetune import startable

    spec = startable(settings, spec, elsewhere=options.remote)  # before there is a run that it would fail
    if options.remote:
        from deployments.cli.remote import train_remotely

        return train_remotely(settings, spec, options.deployment, verbose=options.verbose)
    check_room(settings)
    return _train_here(settings, spec, verbose=options.verbose)


def _train_here(settings: Settings, spec: TrainingSpec, *, verbose: bool) -> Answer:
    """Run the flow, show how it gets on, and say what came of it."""
    from deployments.cli.terminal import Terminal, shown_on
    from flows.finetune import finetune
    from flows.parameters import Parameters
    from tasks.runs.run_log import leave_endings_out

    page = f"{links_of(settings)['prefect']}/v2/runs/flow-run/" if settings.prefect_api else ""
    terminal = Terminal(prefect_page=page, silent=verbose)
    if not page:
        terminal.say("No Prefect server runs: this training starts one for itself. `anneal up` starts one that stays.")
    leave_endings_out()
    from prefect.exceptions import CancelledRun

    try:
        with shown_on(terminal):
            start_own_server(settings)
            version = finetune(Parameters(**dataclasses.asdict(spec)))
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(going_on(terminal)) from error
    except CancelledRun as error:
        raise UserError("the run was cancelled in Prefect", where=spec.destination,
                        fix="Run the same command again to go on at the last checkpoint.") from error
    from deployments.cli.outcome import outcome
    from infra.models.registry import version_page

    links = links_of(settings)
    if "mlflow" in links:
        links["mlflow"] = version_page(links["mlflow"], version)
    return Answer({**version.to_json(), "links": links}, outcome(settings, version, terminal))


def going_on(terminal: Terminal) -> str:
    """What to do after Ctrl-C."""
    where = f" Prefect shows the run as cancelled: {terminal.run_page}" if terminal.run_page else ""
    return f"Run the same command again to go on. Finished steps and the last checkpoint are kept.{where}"


def estimate(options: argparse.Namespace) -> Answer:
    """What the training would take."""
    spec, settings = spec_from(options), settings_here()
    set_environment(settings)
    from deployments.cli.terminal import Terminal, be_quiet_before_import, shown_on

    if not options.verbose:
        be_quiet_before_import()
    from flows.finetune import estimate as forecast

    with shown_on(terminal := Terminal(silent=options.verbose)):
        terminal.step_begins("estimate")
        expected = forecast(spec)
    lines = {"device": f"{expected.ranks} x {expected.device}", **expected.lines()}
    return Answer(expected.to_json(), "\n".join(table(lines)))


def predict(options: argparse.Namespace) -> Answer:
    """Ask the predictor; on a terminal the answer appears as it is written."""
    from deployments.cli import chat
    from deployments.cli import predict as ask

    settings = settings_here()
    set_environment(settings)
    if not settings.predictor:
        raise UserError("no predictor is known", fix="Start one with `anneal up`, or set ANNEAL_PREDICTOR_URL.")
    if options.chat:
        return Answer(*chat.talk(settings, options))
    return Answer(*ask.ask(settings, options, stream=sys.stdout.isatty() and not options.json))


def export(options: argparse.Namespace) -> Answer:
    """Write a version in a form that others load; of a merge, say how far its logits are from the adapter's."""
    settings = settings_here(private=False)
    set_environment(settings)
    from deployments.cli.export import export as exported

    done = exported(settings, options.target, options.folder, options.form, dtype=options.dtype,
                    base_model=options.base_model)
    return Answer(done.to_json(), "\n".join(table(done.lines())))


def push(options: argparse.Namespace) -> Answer:
    """Upload a version, and say where it is."""
    settings = settings_here(private=False)
    set_environment(settings)
    from deployments.cli.push import push as pushed

    done = pushed(settings, options.target, options.repository, public=options.public, form=options.form,
                  dtype=options.dtype, base_model=options.base_model)
    return Answer(done.to_json(), "\n".join(table(done.lines())))


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


def _failed(error: AnnealError, as_json: bool) -> int:
    print(f"error: {error}", file=sys.stderr)
    _print_error(error, as_json)
    return EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAULT


def _print_error(error: Exception, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": redacted(str(error)), "type": type(error).__name__}))


if __name__ == "__main__":
    raise SystemExit(main())
