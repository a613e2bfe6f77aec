"""S3 keys and other secrets of a run from a block of Prefect's, where its variables are not set.

In:   ANNEAL_SECRETS_BLOCK: type/name, such as secret/anneal-run      Out: variables of this process
A Secret block holds a JSON object with names of NAMES; an AWS Credentials block (prefect-aws) holds the keys alone.
What the environment has stays, and no other name is taken: a block chooses no code. Leaves nothing on disk.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectException

from infra.errors import Transient, UserError, shown
from infra.settings import Settings

NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "HF_TOKEN",
         "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "ANNEAL_API_KEY", "ANNEAL_WEBHOOK_SECRET")
"""Where one is empty, whoever reads it takes it as not set. PREFECT_API_AUTH_STRING comes from the worker itself."""
SECRET, AWS = "secret", "aws-credentials"
AWS_FIELDS = {"AWS_ACCESS_KEY_ID": "aws_access_key_id", "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
              "AWS_SESSION_TOKEN": "aws_session_token", "AWS_DEFAULT_REGION": "region_name"}
WHERE = "ANNEAL_SECRETS_BLOCK"


def adopt_secrets(settings: Settings, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what is not set. Raises UserError for a block that is not there or holds something else, Transient when
    Prefect does not answer."""
    if not settings.secrets_block:
        return
    kind, _, name = settings.secrets_block.partition("/")
    if kind not in (SECRET, AWS) or not name:
        raise UserError(f"it is {shown(settings.secrets_block)}", where=WHERE,
                        allowed=f"{SECRET}/NAME or {AWS}/NAME", fix="Name a block of Prefect's so.")
    try:
        with get_client(sync_client=True) as client:
            data = client.read_block_document_by_name(name, kind).data
    except ObjectNotFound as error:
        raise UserError(f"there is no block {settings.secrets_block}", where=WHERE,
                        fix="Make it in Prefect's UI (Blocks), or by `anneal deploy --pool docker`.") from error
    except (PrefectException, httpx.HTTPError) as error:
        raise Transient(f"the block {settings.secrets_block} cannot be read ({error})", where=WHERE) from error
    for variable, value in secrets_in(kind, data).items():
        environment.setdefault(variable, value)


def secrets_in(kind: str, data: Mapping[str, Any]) -> dict[str, str]:
    """Variables, by name, that a block of that type holds. Raises UserError for a Secret that is plain text."""
    if kind == AWS:
        found = {name: data.get(field) for name, field in AWS_FIELDS.items()}
    else:
        value = data.get("value")
        if not isinstance(value, dict):
            raise UserError("the Secret block holds plain text", where=WHERE,
                            allowed=f"a JSON object with keys such as {', '.join(NAMES[:3])}")
        found = {name: value.get(name) for name in NAMES}
    return {name: str(value) for name, value in found.items() if value}
