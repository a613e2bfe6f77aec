"""What commands have in common: their answer, the settings with errors in our words, Prefect around them, links."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import from_os_error
from infra.files import alone_with, write_atomic
from infra.private import umask_for
from infra.redaction import redacted

if TYPE_CHECKING:
    from infra.settings import Settings


ROOM_BYTES = 8 << 20
"""What a new database of Prefect's server and its journal take."""


@dataclass(frozen=True)
class Answer:
    """What a command prints: `data` with --json, `text` without."""

    data: dict[str, Any]
    text: str
    exit_code: int = 0
    """Of the command that found something wrong and could still answer."""


def settings_here(*, private: bool = True) -> Settings:
    """The settings of this process. Raises UserError, naming the variable, for a wrong one.

    `private`: what this process writes, and all that it starts, is for those whom the home is for
    (infra/private.py). A store in a folder elsewhere keeps the user's umask: others may be meant to read it.
    """
    from infra.settings import Settings

    settings = Settings.of_environment()
    home, store = settings.home_path, settings.store_root
    if private and (store.startswith("s3://") or Path(store).is_relative_to(home)):
        before = os.umask(0o077)
        os.umask(umask_for(home, before))
    return settings


def set_environment(settings: Settings) -> None:
    """Set the environment of Prefect, which is read at its import, and keep proxies out of the way."""
    from infra.stack import services

    os.environ.update(services.for_runs(settings))


def start_own_server(settings: Settings) -> None:
    """Where no Prefect server is known, start the temporary one that Prefect would start for the flow.

    Ctrl-C in a terminal reaches it too, and a run that is interrupted would report that for minutes to a server that
    has gone. Started while SIGINT is blocked, which processes inherit, it ends when Prefect ends it. Until it answers,
    within ten seconds or so, Ctrl-C waits. Two that make the tables of a new home at once would fail: the second one
    waits.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED

    if PREFECT_API_URL.value() or not PREFECT_SERVER_EPHEMERAL_ENABLED.value():
        return
    with alone_with(settings.home_path / "prefect.lock"):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            SubprocessASGIServer().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_room(settings: Settings) -> None:
    """Raise UserError where the home cannot be written, or its disk is full: services say that in their logs alone, and
    a temporary Prefect server that cannot write is started again and again by Prefect's client."""
    probe = settings.home_path / "room"
    try:
        write_atomic(probe, bytes(ROOM_BYTES))
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise from_os_error(error, f"ANNEAL_HOME {settings.home_path}") from error


def links_of(settings: Settings) -> dict[str, str]:
    """Addresses for people: user interfaces and the predictor."""
    mlflow = settings.tracking_uri if settings.tracking_uri.startswith("http") else ""
    links = {"prefect": settings.prefect_api.removesuffix("/api"), "mlflow": mlflow, "predictor": settings.predictor,
             "gateway": settings.gateway}
    return {name: redacted(link) for name, link in links.items() if link}


def signed_in(settings: Settings, links: dict[str, str]) -> dict[str, str]:
    """The same addresses, those of the running stack with what signs a browser in. For the eyes of who started it."""
    from urllib.parse import quote

    from infra.security.sign_in import sign_in_link

    found = dict(links)
    if "prefect" in links and settings.is_own("prefect", settings.prefect_api):
        found["prefect"] = sign_in_link(links["prefect"], settings.own_prefect_auth)
    if "mlflow" in links and settings.is_own("mlflow", settings.tracking_uri):
        found["mlflow"] = sign_in_link(links["mlflow"], settings.secret)
    if "gateway" in links and settings.is_own("gateway", settings.gateway):
        found["gateway"] = sign_in_link(links["gateway"], settings.predictor_key)
    if "predictor" in links and settings.is_own("predictor", settings.predictor) and settings.predictor_key:
        found["predictor"] = f"{links['predictor']}/#key={quote(settings.predictor_key, safe='')}"
    return found


def client_variables(settings: Settings) -> dict[str, str]:
    """The variables with which Replicate's and OpenAI's clients find the running stack's gateway and are let in; none
    without it."""
    if not settings.gateway:
        return {}
    key = settings.predictor_key or "none"
    return {"REPLICATE_BASE_URL": settings.gateway, "REPLICATE_API_TOKEN": key,
            "OPENAI_BASE_URL": f"{settings.gateway}/openai/v1", "OPENAI_API_KEY": key}


def table(values: dict[str, Any]) -> list[str]:
    width = max(map(len, values), default=0)
    return [f"{name:{width}}  {value}" for name, value in values.items()]
