"""Run the gateway: python -m deployments.gateway

In:   ANNEAL_* settings (host, gateway_port, gateway_database, home, store)     Out: HTTP until SIGTERM
Off the loopback address it asks for a key before it listens. Exit 2: a setting is wrong.
Dies half-way: what was accepted stands in the database, and the next start goes on with it.
"""

from __future__ import annotations

import logging
import sys

from infra.errors import AnnealError, UserError
from infra.redaction import redact_logs
from infra.security.listen import bind, serve
from infra.settings import Settings
from infra.stack import services

DRAIN_S = 10


def main() -> int:
    """Listen until told to stop. Returns the exit code."""
    redact_logs()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for loud in ("httpx", "httpcore", "alembic"):
        logging.getLogger(loud).setLevel(logging.WARNING)
    try:
        settings = Settings.of_environment()
        services.adopt(settings)
        from deployments.gateway.app import check_exposure, create_app  # after Prefect's environment is set

        check_exposure(settings)
        listener = bind(settings.host, settings.gateway_port, "ANNEAL_GATEWAY_PORT")
        app = create_app(settings)
    except AnnealError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    serve(app, listener, drain_s=DRAIN_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
