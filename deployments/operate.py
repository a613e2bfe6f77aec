"""Commands that operate what runs for long: up, down, status, deploy, join, gc.

In:   parsed options              Out: an Answer
Dies half-way: run the same command again.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

from deployments.console import Answer, links_of, set_environment, settings_here, table
from infra.errors import UserError

if TYPE_CHECKING:
    from infra.settings import Settings

DAYS_AT_MOST = 36_500


def join(options: argparse.Namespace) -> Answer:
    """Run this machine's ranks of every training, until it is stopped."""
    if options.node < 1:
        raise UserError(f"NUMBER is {options.node}", allowed="1 or more; the first node runs `anneal train`")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    from tasks.join import join as take_part

    take_part(settings_here(), options.node)
    return Answer({}, "")


def up(_: argparse.Namespace) -> Answer:
    """Start the stack, print its links."""
    settings = settings_here()
    set_environment(settings)
    from infra import stack

    def prepare(settings: Settings) -> None:
        from deployments.pipelines import deploy

        for difference in deploy(settings).differs:
            print(difference, file=sys.stderr)

    print(f"Starting Prefect, MLflow and the predictor; logs in {settings.home_path / 'logs'}", file=sys.stderr)
    running = stack.up(settings, prepare=prepare)
    services = {name: dataclasses.asdict(service) for name, service in running.items()}
    links = links_of(settings)
    return Answer({"services": services, "links": links}, "\n".join(table(links)))


def deploy(options: argparse.Namespace) -> Answer:
    """Create or update what Prefect needs, and say what stands there otherwise than prefect.yaml says."""
    settings = settings_here()
    set_environment(settings)
    from deployments import pipelines

    done = pipelines.deploy(settings, options.pool, cpu_pool=options.cpu_pool)
    lines = {"pools": ", ".join(done.pools), "GPU slots": done.limit or "none",
             "deployments": ", ".join(done.deployments)}
    return Answer(dataclasses.asdict(done), "\n".join([
        *table(lines), *(f"differs: {difference}" for difference in done.differs)]))


def gc(options: argparse.Namespace) -> Answer:
    """Remove what no version needs and is old, and say what that was."""
    if not 0 <= options.days <= DAYS_AT_MOST:
        raise UserError(f"--days is {options.days:g}", allowed=f"0 to {DAYS_AT_MOST}")
    settings = settings_here()
    set_environment(settings)
    from infra.store import Store
    from tasks.collect import collect

    gone = collect(settings, Store(settings), timedelta(days=options.days), dry_run=options.dry_run)
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
    from infra import stack

    stopped = stack.down(settings_here())
    return Answer({"stopped": stopped}, "Stopped " + ", ".join(stopped) if stopped else "Nothing was running.")


def status(_: argparse.Namespace) -> Answer:
    """State and address of each service."""
    from infra import stack

    settings = settings_here()
    states, links = stack.status(settings), links_of(settings)
    lines = {name: f"{state:16}{links.get(name, '')}".rstrip() for name, state in states.items()}
    services = {name: {"state": state, "url": links.get(name, "")} for name, state in states.items()}
    return Answer({"services": services}, "\n".join(table(lines)))
