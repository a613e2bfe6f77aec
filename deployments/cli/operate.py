"""Commands that operate what runs for long, and what it keeps: up, down, status, env, deploy, watch, join, gateway,
key, promote, rollback, upload, gc.

In:   parsed options              Out: an Answer
Dies half-way: run the same command again.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.cli.console import (
    Answer,
    check_room,
    client_variables,
    links_of,
    set_environment,
    settings_here,
    signed_in,
    table,
)
from infra.errors import AnnealError, UserError

if TYPE_CHECKING:
    from infra.settings import Settings

DAYS_AT_MOST = 36_500


def join(options: argparse.Namespace) -> Answer:
    """Run this machine's ranks of every training, until it is stopped."""
    if options.node < 1:
        raise UserError(f"NUMBER is {options.node}", allowed="1 or more; the first node runs `anneal train`")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    from tasks.launcher.join import join as take_part

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # its ranks may save a checkpoint first
    take_part(settings_here(), options.node)
    return Answer({}, "")


def promote(options: argparse.Namespace) -> Answer:
    """Let a model answer with a version."""
    settings = settings_here()
    set_environment(settings)
    from deployments.cli import rollout

    done = rollout.promote(settings, options.target, base_model=options.base_model, force=options.force)
    return Answer(done.to_json(), "\n".join(table(done.lines())))


def rollback(options: argparse.Namespace) -> Answer:
    """Let a model answer with its version before."""
    settings = settings_here()
    set_environment(settings)
    from deployments.cli import rollout

    done = rollout.rollback(settings, options.target, base_model=options.base_model)
    return Answer(done.to_json(), "\n".join(table(done.lines())))


def upload(options: argparse.Namespace) -> Answer:
    """Bring data into the store, and say at which address every training on the same store finds it."""
    settings = settings_here()
    set_environment(settings)
    from deployments.cli.terminal import Terminal, shown_on
    from infra.storage.store import Store
    from tasks.data.datasets import address_of
    from tasks.ingest import upload as bring_to_stay

    with shown_on(terminal := Terminal(silent=options.verbose)):
        terminal.step_begins("upload")
        dataset = bring_to_stay(settings, Store(settings), options.source)
    address = address_of(dataset)
    return Answer({**dataset.to_json(), "address": address}, address)


def up(options: argparse.Namespace) -> Answer:
    """Start the stack, print its links."""
    settings = settings_here()
    set_environment(settings)
    check_room(settings)
    from deployments.cli.terminal import Terminal, shown_on
    from infra.stack import local as stack

    def prepare(settings: Settings) -> None:
        from deployments.prefect_setup.apply import deploy

        for difference in deploy(settings).differs:
            print(difference, file=sys.stderr)

    if missing := stack.missing(settings):
        print(f"Starting {', '.join(missing)}; logs in {settings.home_path / 'logs'}", file=sys.stderr)
    with shown_on(Terminal(silent=options.verbose)):
        running = stack.up(settings, prepare=prepare)
    services = {name: dataclasses.asdict(service) for name, service in running.items()}
    links = signed_in(settings, links_of(settings))
    clients = [f"export {name}={shlex.quote(value)}" for name, value in client_variables(settings).items()]
    return Answer({"services": services, "links": links}, "\n".join([*table(links), *clients, "", *next_commands()]))


def next_commands() -> list[str]:
    """What to type after `anneal up`: the demo's base, which needs no GPU and no download, where it is there."""
    from infra.process import ROOT

    base = ROOT / "deployments" / "examples" / "base"
    shown = base.relative_to(Path.cwd()) if base.is_relative_to(Path.cwd()) else base
    return ["Next, with one JSON object a line in data.jsonl, such as "
            '{"prompt": "...", "completion": "..."}:',
            f"  anneal train --train-data data.jsonl --base-model {shown} --destination me/my-model",
            "`anneal status` shows what runs, `anneal down` stops it."]


def env(_: argparse.Namespace) -> Answer:
    """The variables with which other programs find the running stack and are let in, as a shell reads them."""
    from infra.stack.services import credentials

    settings = settings_here()
    if not settings.prefect_api:
        raise UserError("no Prefect server is known", fix="Start one with `anneal up`, or set ANNEAL_PREFECT_URL.")
    key = settings.predictor_headers.get("Authorization", "").removeprefix("Bearer ")
    found = {
        "PREFECT_API_URL": settings.prefect_api, "MLFLOW_TRACKING_URI": settings.tracking_uri,
        "ANNEAL_PREDICTOR_URL": settings.predictor, "ANNEAL_API_KEY": key, **client_variables(settings),
        **credentials(settings)}
    wanted = {name: value for name, value in found.items() if value}
    return Answer(wanted, "\n".join(f"export {name}={shlex.quote(value)}" for name, value in wanted.items()))


def deploy(options: argparse.Namespace) -> Answer:
    """Create or update what Prefect needs, and say what stands there otherwise than prefect.yaml says."""
    settings = settings_here()
    set_environment(settings)
    from deployments.prefect_setup import apply, pools

    if options.export:
        written = [str(file) for file in pools.export(Path(options.export))]
        return Answer({"written": written}, "\n".join(written))
    kind, name = apply.pool_of(settings, options.pool, options.type)
    done = apply.deploy(settings, kind, name, cpu_pool=options.cpu_pool)
    lines = {"pools": ", ".join(done.pools), "GPU slots": done.limit or "none",
             "deployments": ", ".join(done.deployments)}
    return Answer(dataclasses.asdict(done), "\n".join([
        *table(lines), *(f"differs: {difference}" for difference in done.differs)]))


def watch(options: argparse.Namespace) -> Answer:
    """Look for new data of a destination now and then, or stop that, or list what is watched."""
    settings = settings_here()
    set_environment(settings)
    if options.off:
        return _unwatch(settings, getattr(options, "destination", ""))
    from deployments.cli import watch
    from deployments.prefect_setup.apply import WATCH
    from tasks.data.source_cache import look, sources_of

    plan = watch.plan_of(settings, options)
    print("\n".join(table(plan.lines())), file=sys.stderr)
    slug, done = watch.switch_on(settings, plan, from_champion=options.continue_from_champion)
    try:
        now = str(look(settings, sources_of(plan.spec)))
    except AnnealError as error:
        now = "not to be seen from here"
        print(f"warning: {error}", file=sys.stderr)
    lines = {"schedule": f"{slug} of {WATCH}, {done}", "looks": watch.often(plan.schedule), "data now": now,
             "stop": f"anneal watch --off --destination {plan.spec.destination}"}
    return Answer({"schedule": slug, "done": done, "data": now, "parameters": dataclasses.asdict(plan.spec)},
                  "\n".join(table(lines)))


def _unwatch(settings: Settings, destination: str) -> Answer:
    """Stop watching the data of a destination; without one list what is watched."""
    from infra.spec import check_destination

    if destination:
        check_destination(destination)
    from deployments.cli import watch

    if not destination:
        found = watch.watched(settings)
        lines = [f"{name}  {one['looks']}  {one['data']}{'' if one['active'] else '  (paused)'}"
                 for name, one in found.items()]
        told = [*lines, "`anneal watch --off --destination NAME` stops one."] if lines else ["Nothing is watched."]
        return Answer({"watched": found}, "\n".join(told))
    slug, was_on = watch.switch_off(settings, destination)
    return Answer({"schedule": slug, "done": "removed" if was_on else "none"},
                  f"{destination} {'is not watched any more' if was_on else 'was not watched'}.")


def gc(options: argparse.Namespace) -> Answer:
    """Remove what no version needs and is old, and say what that was."""
    if not 0 <= options.days <= DAYS_AT_MOST:
        raise UserError(f"--days is {options.days:g}", allowed=f"0 to {DAYS_AT_MOST}")
    settings = settings_here()
    set_environment(settings)
    from deployments.cli.gc import collect
    from deployments.cli.terminal import Terminal, shown_on
    from infra.storage.store import Store

    with shown_on(Terminal(silent=options.verbose)):
        gone = collect(settings, Store(settings), timedelta(days=options.days), dry_run=options.dry_run,
                       uploads=options.uploads)
    total = sum(one.bytes for one in gone)
    lines = [f"{one.modified:%Y-%m-%d}  {one.bytes / 2**20:10.1f} MiB  {one.name}" for one in gone]
    summary = f"{len(gone)} folders, {total / 2**20:.1f} MiB{', still there (--dry-run)' if options.dry_run else ''}"
    if not gone:
        summary = f"Nothing that no version needs is older than {options.days:g} days."
    found = [{**dataclasses.asdict(one), "modified": one.modified.isoformat()} for one in gone]
    data = {"gone": found, "bytes": total, "dry_run": options.dry_run}
    return Answer(data, "\n".join([*lines, summary]))


def gateway(options: argparse.Namespace) -> Answer:
    """Serve Replicate's API until told to stop: what `anneal up` starts beside the other services; or seed its database
    with a file's rows."""
    set_environment(settings_here())
    if options.do == "seed":
        if options.file is None:
            raise UserError("no file is named", where="anneal gateway seed", fix="Write anneal gateway seed FILE.json.")
        from deployments.gateway.context import Gateway
        from deployments.gateway.seed import seed

        here = Gateway(settings_here())
        here.database.migrate()
        counts = seed(here, options.file)
        return Answer(counts, ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    from deployments.gateway.__main__ import main

    raise SystemExit(main())


def key(options: argparse.Namespace) -> Answer:
    """Make a key for a client of the gateway."""
    settings = settings_here()
    from deployments.gateway.database import Database
    from deployments.gateway.keys import create_key

    database = Database(settings)
    database.migrate()
    scopes = [scope.strip() for scope in options.scopes.split(",") if scope.strip()]
    made = create_key(database, options.owner, scopes, options.name)
    return Answer({"key": made, "owner": options.owner, "scopes": scopes}, made)


def down(_: argparse.Namespace) -> Answer:
    """Stop the stack."""
    from infra.stack import local as stack

    stopped = stack.down(settings_here())
    return Answer({"stopped": stopped}, "Stopped " + ", ".join(stopped) if stopped else "Nothing was running.")


def status(_: argparse.Namespace) -> Answer:
    """State and address of each service, and what is wrong with it; models, and the trainings that run."""
    settings = settings_here()
    set_environment(settings)
    from deployments.cli.status import status_of

    return status_of(settings)
