"""Run the predictor: python -m deployments.predictor

In:   ANNEAL_* settings (host, predictor_port, api_key, home, store)     Out: HTTP until SIGTERM
Off the loopback address it asks for a key before it listens. Exit 2: a setting is wrong.
SIGTERM: answers under way end first. After a kill the records on disk are served again.
"""

from __future__ import annotations

import logging
import sys

import torch
from transformers.utils.logging import disable_progress_bar

from deployments.predictor.app import create_app
from deployments.predictor.responses import DRAIN_S
from infra.errors import UserError, shown
from infra.redaction import redact_logs
from infra.security.door import is_loopback
from infra.security.listen import bind, serve
from infra.settings import Settings

PROCESSES = 2
"""The predictor leaves half of the cores to a training on the same machine."""


def main() -> int:
    """Listen until told to stop. Returns the exit code."""
    redact_logs()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    disable_progress_bar()
    try:
        settings = Settings.of_environment()
        check_exposure(settings.host, settings.predictor_key)
        torch.set_num_threads(settings.threads_for(PROCESSES))
        listener = bind(settings.host, settings.predictor_port, "ANNEAL_PREDICTOR_PORT")
        app = create_app(settings)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    serve(app, listener, drain_s=DRAIN_S + 5)
    return 0


def check_exposure(host: str, api_key: str) -> None:
    """Raise UserError for an address that others can reach without a key."""
    if not is_loopback(host) and not api_key:
        raise UserError(f"ANNEAL_HOST is {shown(host)} and there is no API key",
                        allowed="a loopback address, or a key",
                        fix="Set ANNEAL_API_KEY to a long random text, or ANNEAL_HOST to 127.0.0.1.")


if __name__ == "__main__":
    sys.exit(main())
