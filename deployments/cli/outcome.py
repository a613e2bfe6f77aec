"""What `anneal train` says at its end: the verdict, one answer beside the base's, the price, where to go from here.

In:   the version, what the steps returned      Out: text, and links
"""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING

from deployments.cli.console import links_of, signed_in, table
from deployments.cli.words import money
from infra.models.registry import Registry, run_page_of, version_page
from infra.progress import seconds_in_words
from infra.records import Deployment, Evaluation, Trained, Version
from infra.redaction import redacted

if TYPE_CHECKING:
    from deployments.cli.terminal import Terminal
    from infra.settings import Settings

SHOWN_CHARACTERS = 300
SHOWN = {"prompt": "asked", "tuned": "new model", "base": "base", "reference": "reference"}


def outcome(settings: Settings, version: Version, seen: Terminal) -> str:
    """The text at the end of a training that ended well."""
    evaluation, trained, deployment = (seen.results.get(step) for step in ("evaluate", "train", "deploy"))
    lines = [f"{version.destination} version {version.number}", version.id, ""]
    if isinstance(evaluation, Evaluation):
        lines += [evaluation.verdict, "", *sample(evaluation)]
    if isinstance(trained, Trained):
        lines += [price(seen, trained), ""]
    served = isinstance(deployment, Deployment) and bool(deployment.url)
    if isinstance(deployment, Deployment) and not served:
        lines += [f"Not deployed: {deployment.reason}.", ""]
    prompt = evaluation.examples[0]["prompt"] if isinstance(evaluation, Evaluation) and evaluation.examples else "Hello"
    found = pages(settings, version, seen, served=served)
    lines += table(found) if found else ["`anneal up` starts the pages on which runs, versions and answers are seen."]
    if served:
        lines += ["", "Ask it:", f"  {curl(settings, version, prompt)}"]
    return "\n".join(lines)


def sample(evaluation: Evaluation) -> list[str]:
    """One held-out row with the answers of the new model and of the base."""
    if not evaluation.examples:
        return []
    row = evaluation.examples[0]
    return [*table({name: shortened(row[key]) for key, name in SHOWN.items() if key in row}), ""]


def price(seen: Terminal, trained: Trained) -> str:
    """What the training took."""
    forecast = seen.forecast
    known = forecast is not None and forecast.usd_per_hour is not None
    usd = trained.seconds / 3600 * forecast.usd_per_hour * forecast.paid if known else None
    where = f" on {forecast.ranks} x {forecast.device}" if forecast is not None else ""
    return f"Trained for {seconds_in_words(trained.seconds)}{where}{money(usd)}".replace("  ", ", ")


def pages(settings: Settings, version: Version, seen: Terminal, *, served: bool) -> dict[str, str]:
    """Addresses for a browser, by what is to be seen there."""
    found, links = {}, links_of(settings)
    if served:
        key = signed_in(settings, links)["predictor"].partition("/#")[2] if sys.stdout.isatty() else ""  # not for logs
        found["playground"] = f"{links['predictor']}/?model={version.destination}{f'#{key}' if key else ''}"
    if seen.run_page:
        found["Prefect run"] = seen.run_page
    if "mlflow" in links:
        experiment, run = Registry(settings).run_of(version.destination, version.number)
        found["MLflow run"] = run_page_of(links["mlflow"], experiment, run)
        found["MLflow model"] = version_page(links["mlflow"], version)
    return found


def curl(settings: Settings, version: Version, prompt: str) -> str:
    """A line for a shell that asks the model."""
    body = json.dumps({"model": version.destination, "input": {"prompt": prompt}})
    key = ""
    if settings.api_key:
        key = ' -H "Authorization: Bearer $ANNEAL_API_KEY"'
    elif settings.predictor_headers:
        key = f' -H "Authorization: Bearer $(cat {shlex.quote(str(settings.home_path / "secret"))})"'
    return (f"curl -s {redacted(settings.predictor)}/predictions{key} -H 'Content-Type: application/json' "
            f"-d {shlex.quote(body)}")


def shortened(text: str) -> str:
    """On one line, and not too long."""
    one = " ".join(text.split())
    return one if len(one) <= SHOWN_CHARACTERS else one[: SHOWN_CHARACTERS - 3] + "..."
