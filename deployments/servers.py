"""Prefect's and MLflow's servers behind our own door: python -m deployments.servers prefect | mlflow

In:   ANNEAL_* settings (home, host, host_names, ports, require_secret)     Out: HTTP until SIGTERM
On disk: what they write themselves, below <home> (infra/stack/services.py). Exit 2: a setting is wrong.
Both are what their own commands start (`prefect server start`, `mlflow server`), with infra/security/door.py in front:
those commands have no way to put it there.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp

from infra.errors import UserError
from infra.files import alone_with
from infra.redaction import redact_logs
from infra.security.door import Door, Names
from infra.security.listen import bind, serve
from infra.security.sign_in import sign_in_page
from infra.settings import Settings
from infra.stack import services

DRAIN_S = 3
"""Pages hold websockets open; those never end by themselves."""


def prefect(settings: Settings) -> ASGIApp:
    """Prefect's API, pages and background services. It asks for the secret and against forged requests by itself."""
    os.environ.update(services.of_prefect_server(settings))
    from prefect.server.api.server import create_app

    page = sign_in_page("prefect") if settings.own_prefect_auth else ""
    return Door(create_app(final=True), names=Names.of(settings), sign_in=page)


def mlflow(settings: Settings) -> ASGIApp:
    """MLflow's tracking server and pages, with its files below the home."""
    os.environ.update(services.of_mlflow_server(settings))
    from mlflow.server.handlers import initialize_backend_stores

    with alone_with(settings.mlflow_lock):
        initialize_backend_stores(settings.mlflow_database, default_artifact_root=services.ARTIFACT_ROOT)
    from mlflow.server.fastapi_app import app

    return Door(app, names=Names.of(settings), secret=settings.secret, open_paths=("/health",),
                sign_in=sign_in_page("mlflow") if settings.secret else "")


SERVERS: dict[str, Callable[[Settings], ASGIApp]] = {"prefect": prefect, "mlflow": mlflow}


def main(name: str) -> int:
    """Listen until told to stop. Returns the exit code."""
    redact_logs()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = Settings.of_environment()
        port: int = getattr(settings, f"{name}_port")
        listener = bind(settings.host, port, f"ANNEAL_{name.upper()}_PORT")
        app: Any = SERVERS[name](settings)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    serve(app, listener, drain_s=DRAIN_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
