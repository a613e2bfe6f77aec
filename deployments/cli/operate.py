"""Commands that operate what runs for long, and what it keeps: up, down, status, env, deploy, watch, join, upload, gc.

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
from typing import TYPE_CHECKING

from deployments.cli.console import Answer, check_room, links_of, set_environment, settings_here, signed_in, table
from deployments.cli.options import spec_from
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


def upload(options: argparse.Namespace) -> Answer:
    """Bring data into the store, and say at which address every training on the same store finds it."""
    settings = settings_here()
    set_environment(settings)
    from infra.storage.store import Store
    from tasks.data.datasets import address_of
    from tasks.ingest import upload as bring_to_stay

    logging.getLogger("tasks.data.streams").setLevel(logging.INFO)  # how far it is; Prefect shows warnings only
    dataset = bring_to_stay(settings, Store(settings), options.source)
    address = address_of(dataset)
    return Answer({**dataset.to_json(), "address": address}, address)


def up(_: argparse.Namespace) -> Answer:
    """Start the stack, print its links."""
    settings = settings_here()
    set_environment(settings)
    check_room(settings)
    from infra.stack import local as stack

    def prepare(settings: Settings) -> None:
        from deployments.prefect_setup.apply import deploy

        for difference in deploy(settings).differs:
            print(difference, file=sys.stderr)

    if missing := stack.missing(settings):
        print(f"Starting {', '.join(missing)}; logs in {settings.home_path / 'logs'}", file=sys.stderr)
    running = stack.up(settings, prepare=prepare)
    services = {name: dataclasses.asdict(service) for name, service in running.items()}
    links = signed_in(settings, links_of(settings))
    return Answer({"services": services, "links": links}, "\n".join(table(links)))


def env(_: argparse.Namespace) -> Answer:
    """The variables with which other programs find the running stack and are let in, as a shell reads them."""
    from infra.stack.services import credentials

    settings = settings_here()
    if not settings.prefect_api:
        raise UserError("no Prefect server is known", fix="Start one with `anneal up`, or set ANNEAL_PREFECT_URL.")
    key = settings.predictor_headers.get("Authorization", "").removeprefix("Bearer ")
    found = {
        "PREFECT_API_URL": settings.prefect_api, "MLFLOW_TRACKING_URI": settings.tracking_uri,
        "ANNEAL_PREDICTOR_URL": settings.predictor, "ANNEAL_API_KEY": key, **credentials(settings)}
    wanted = {name: value for name, value in found.items() if value}
    return Answer(wanted, "\n".join(f"export {name}={shlex.quote(value)}" for name, value in wanted.items()))


def deploy(options: argparse.Namespace) -> Answer:
    """Create or update what Prefect needs, and say what stands there otherwise than prefect.yaml says."""
    settings = settings_here()
    set_environment(settings)
    from deployments.prefect_setup import apply

    done = apply.deploy(settings, options.pool, cpu_pool=options.cpu_pool)
    lines = {"pools": ", ".join(done.pools), "GPU slots": done.limit or "none",
             "deployments": ", ".join(done.deployments)}
    return Answer(dataclasses.asdict(done), "\n".join([
        *table(lines), *(f"differs: {difference}" for difference in done.differs)]))


def watch(options: argparse.Namespace) -> Answer:
    """Look for new data of a destination now and then, or stop that."""
    settings = settings_here()
    if options.off:
        from infra.spec import check_destination

        destination = getattr(options, "destination", "")
        check_destination(destination)
        set_environment(settings)
        from deployments.cli import watch

        slug, was_on = watch.switch_off(settings, destination)
        return Answer({"schedule": slug, "done": "removed" if was_on else "none"},
                      f"{destination} {'is not watched any more' if was_on else 'was not watched'}.")
    spec = spec_from(options)
    set_environment(settings)
    from deployments.cli import watch
    from deployments.prefect_setup.apply import WATCH
    from tasks.data.source_cache import look, sources_of

    every = options.every or watch.EVERY
    slug, done = watch.switch_on(settings, spec, every, options.cron)
    try:
        now = str(look(settings, sources_of(spec)))
    except AnnealError as error:
        now = "not to be seen from here"
        print(f"warning: {error}", file=sys.stderr)
    lines = {"schedule": f"{slug} of {WATCH}, {done}", "looks": options.cron or f"every {every}",
             "data": f"{', '.join(sources_of(spec))} ({now})", "trains": spec.destination}
    return Answer({"schedule": slug, "done": done, "data": now}, "\n".join(table(lines)))


def gc(options: argparse.Namespace) -> Answer:
    """Remove what no version needs and is old, and say what that was."""
    if not 0 <= options.days <= DAYS_AT_MOST:
        raise UserError(f"--days is {options.days:g}", allowed=f"0 to {DAYS_AT_MOST}")
    settings = settings_here()
    set_environment(settings)
    from deployments.cli.gc import collect
    from infra.storage.store import Store

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


def down(_: argparse.Namespace) -> Answer:
    """Stop the stack."""
    from infra.stack import local as stack

    stopped = stack.down(settings_here())
    return Answer({"stopped": stopped}, "Stopped " + ", ".join(stopped) if stopped else "Nothing was running.")


def status(_: argparse.Namespace) -> Answer:
    """State and address of each service, and what is wrong with it."""
    from infra.stack import local as stack

    settings = settings_here()
    found, links = stack.conditions(settings), links_of(settings)
    lines = {name: f"{one.state:16}{'  '.join(filter(None, [links.get(name, ''), one.reason]))}".rstrip()
             for name, one in found.items()}
    services = {name: {"state": one.state, "url": links.get(name, ""), "reason": one.reason}
                for name, one in found.items()}
    return Answer({"services": services}, "\n".join(table(lines)))
