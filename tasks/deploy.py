"""Let the predictor answer with the new version; the old one answers until the new one can.

In:   a registered version that passed the gate     Out: the predictor serves it, alias `champion`
The base's folder is written down in the home first: a predictor of this home may load it from there
(infra/models/base_folders.py). The predictor loads it beside the current version, answers a smoke prompt and switches.
Aliases move only then: `previous` first, `champion` last. Dies half-way: the predictor serves one of the
two versions whole, and the next try brings the aliases up.
"""

from __future__ import annotations

from pathlib import Path

import httpx

from infra.crashpoints import crashpoint
from infra.errors import BaseModelError, Broken, GateError, Transient, UserError
from infra.models import base_folders
from infra.models.registry import GATE_TAG, SMOKE_TAG, Registry
from infra.records import Base, Deployment, Evaluation, Version
from infra.redaction import redacted
from infra.settings import Settings
from infra.spec import TrainingSpec
from tasks.runs.retries import HOUR_S, step

LOAD_TIMEOUT_S = 900.0
CONNECT_TIMEOUT_S = 10.0


def deploy(settings: Settings, spec: TrainingSpec, version: Version, evaluation: Evaluation, base: Base) -> Deployment:
    """Switch the predictor to `version`.

    Raises:
        GateError: the evaluation failed, or the champion is another one by now; the version stays the challenger.
        UserError, Broken: the predictor refused it; what it served before goes on.
        Transient: the predictor does not answer.
    """
    if not spec.deploy:
        return Deployment(version=version.id, status="skipped", reason="deploy is off")
    if not evaluation.passed:
        Registry(settings).tag(version.destination, version.number, {GATE_TAG: "failed"})
        raise GateError(
            evaluation.verdict.rstrip("."), where=f"version {version.number} of {version.destination}",
            fix="It is registered as challenger and was not deployed. Train longer or on more data, or deploy it "
                "all the same with --force (gate=off).")
    refuse_another_champion(Registry(settings), spec, version, evaluation)
    url = settings.predictor
    if not url:
        reason = ("no predictor is running; start one with `anneal up` and run the same training again, nothing is "
                  "trained twice")
        return Deployment(version=version.id, status="skipped", reason=reason)
    smoke = make_champion(settings, Registry(settings), version, base)
    return Deployment(version=version.id, status="serving", url=redacted(url), smoke=smoke)


def make_champion(settings: Settings, registry: Registry, version: Version, base: Base | None) -> str:
    """Let the predictor switch, then move the aliases; returns the answer to the smoke prompt. Raises as `deploy`.

    `base` is None for full weights, which need none.
    """
    smoke = switch(settings, settings.predictor, version, base)
    crashpoint("deploy.after_swap")
    before = registry.number_at("champion", version.destination)
    if before is not None and before != version.number:
        registry.point("previous", version.destination, before)
    registry.tag(version.destination, version.number, {SMOKE_TAG: "passed"})
    crashpoint("deploy.before_champion")
    registry.point("champion", version.destination, version.number)
    return smoke


def refuse_another_champion(registry: Registry, spec: TrainingSpec, version: Version, evaluation: Evaluation) -> None:
    """Raise GateError if another version became the champion after this one was compared with it."""
    if spec.gate not in ("auto", "not_worse_than_champion") or evaluation.champion is None:
        return
    now = registry.number_at("champion", version.destination)
    if now not in (None, evaluation.champion, version.number):
        raise GateError(
            f"version {now} has become the champion since it was evaluated",
            where=f"version {version.number} of {version.destination}",
            fix="Run the same training again: it is compared with that one, and nothing is trained or answered twice.")


def switch(settings: Settings, url: str, version: Version, base: Base | None) -> str:
    """Ask the predictor to load, try and switch; returns its answer to the smoke prompt."""
    body: dict[str, str | int] = {"version": version.id, "folder": version.folder, "number": version.number}
    if base is not None:
        base_folders.note_base(settings, Path(base.path))
        body |= {"base_path": base.path, "base_digest": base.digest}
    timeout = httpx.Timeout(LOAD_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    try:
        answer = httpx.put(f"{url}/deployments/{version.destination}", json=body,
                           headers=settings.predictor_headers, timeout=timeout)
    except httpx.HTTPError as error:
        raise Transient(
            f"the predictor does not answer ({type(error).__name__})", where=url,
            fix="The version is registered; run the same training again once the predictor is up.") from error
    if answer.is_success:
        return str(answer.json()["smoke"])
    raise _refusal(answer, version)


def _refusal(answer: httpx.Response, version: Version) -> Exception:
    try:
        detail = answer.json()
        sentence = str(detail.get("error") or detail.get("detail"))
    except ValueError:
        sentence = answer.text[:500]
    where = f"deploying version {version.number} of {version.destination}"
    kept = "The version before it goes on answering."
    if answer.status_code in (502, 503, 504):
        return Transient(f"the predictor is not ready: {sentence}", where=where)
    if answer.status_code in (401, 403):
        return UserError(f"the predictor refuses the key: {sentence}", where=where, fix="Set ANNEAL_API_KEY.")
    kind = BaseModelError if answer.status_code == 422 else Broken
    return kind(sentence.rstrip("."), where=where, fix=kept)


@step("deploy", timeout_s=HOUR_S)
def deploy_task(
    spec: TrainingSpec, version: Version, evaluation: Evaluation, base: Base, subject: str,
) -> Deployment:
    """Deploy the version; returns the Deployment."""
    return deploy(Settings(), spec, version, evaluation, base)
