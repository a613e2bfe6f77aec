"""What `anneal status` tells: services, models, trainings that run.

In:   stack.json, MLflow's registry, Prefect's runs      Out: an Answer; its exit code is 1 where a service should run
      and does not
A registry or a server that does not answer costs its part of the answer, not the others. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from deployments.cli.console import Answer, links_of, table
from infra.errors import AnnealError
from infra.progress import seconds_in_words
from infra.settings import Settings
from infra.stack import local as stack

EXIT_NOT_RUNNING = 1


def status_of(settings: Settings) -> Answer:
    """All of it."""
    found, links = stack.conditions(settings), links_of(settings)
    lines = {name: f"{one.state:16}{'  '.join(filter(None, [links.get(name, ''), one.reason]))}".rstrip()
             for name, one in found.items()}
    services = {name: {"state": one.state, "url": links.get(name, ""), "reason": one.reason}
                for name, one in found.items()}
    wrong = [*stack.missing(settings), *(name for name, one in found.items() if one.state == "not answering")]
    models, runs = models_of(settings), runs_of(settings)
    lines = {"home": str(settings.home_path), **lines}
    text = [*table(lines), *_part("models", models, _model), *_part("trainings", runs, _run)]
    if wrong:
        text += ["", f"Not running: {', '.join(sorted(set(wrong)))}. `anneal up` starts what is missing."]
    return Answer({"services": services, "models": models, "trainings": runs}, "\n".join(text),
                  EXIT_NOT_RUNNING if wrong else 0)


def models_of(settings: Settings) -> list[dict[str, Any]] | str:
    """Each registered model with its newest version and its aliases, or why that is not known."""
    local = settings.tracking_uri.startswith("sqlite:")
    if local and not (settings.home_path / "mlflow.db").exists():
        return []
    if not local and settings.is_own("mlflow", settings.tracking_uri) and not _answers(settings, "mlflow"):
        return "MLflow does not answer"
    from infra.models.mlflow_errors import translate_mlflow_errors
    from infra.models.registry import Registry

    try:
        registry = Registry(settings)
        with translate_mlflow_errors(registry.uri):
            known = registry.client.search_registered_models()
    except AnnealError as error:
        return str(error)
    return [{"model": one.name.replace("--", "/"), "newest": max(int(v.version) for v in one.latest_versions),
             "aliases": {name: int(number) for name, number in one.aliases.items()}}
            for one in known if one.latest_versions]


def runs_of(settings: Settings) -> list[dict[str, Any]] | str:
    """Each flow run on its way, or why that is not known."""
    if not settings.prefect_api:
        return []
    if settings.is_own("prefect", settings.prefect_api) and not _answers(settings, "prefect"):
        return "Prefect does not answer"
    import httpx
    from prefect.client.schemas.objects import StateType
    from prefect.exceptions import PrefectException

    from tasks.runs.queries import RECOVERED, runs_in
    from tasks.runs.start import client_of, run_page

    try:
        with client_of(settings) as client:
            known = runs_in(client, RECOVERED, StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
            return [{"run": run.name, "state": run.state.name if run.state else "", "page": run_page(run),
                     "since_s": (datetime.now(UTC) - run.start_time).total_seconds() if run.start_time else 0.0}
                    for run in known]
    except (httpx.HTTPError, PrefectException) as error:
        return f"Prefect does not answer ({error})"


def _answers(settings: Settings, name: str) -> bool:
    service = stack.read_stack(settings).get(name)
    return service is not None and stack.is_answering(service.health)


def _part(title: str, found: list[dict[str, Any]] | str, line: Callable[[dict[str, Any]], str]) -> list[str]:
    if isinstance(found, str):
        return ["", f"{title}: not known, {found}"]
    return ["", f"{title}:", *(f"  {line(one)}" for one in found)] if found else ["", f"{title}: none"]


def _model(one: dict[str, Any]) -> str:
    aliases = "".join(f", {name} is {number}" for name, number in sorted(one["aliases"].items()))
    return f"{one['model']}  newest version {one['newest']}{aliases}"


def _run(one: dict[str, Any]) -> str:
    return f"{one['run']}  {one['state']} for {seconds_in_words(one['since_s'])}  {one['page']}"
