"""The secrets of runs in containers, by reference: Prefect's Secret block `anneal-run`.

In:   a Prefect server, this process's environment      Out: the block, one key for each of NAMES
infra/workpools/docker.json names the keys; the worker puts their values into a container when it makes it. So job
variables, which Prefect stores and shows, hold none. What the block holds stays; only what is empty there is filled
from the environment. Change it in the UI (Blocks, anneal-run). Dies half-way: nothing, or the whole block, is stored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from prefect.blocks.system import Secret
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import BlockDocumentCreate, BlockDocumentUpdate
from prefect.exceptions import ObjectNotFound

from infra.errors import UserError
from tasks.runs.blocks import NAMES

BLOCK = "anneal-run"


def ensure_secrets(client: SyncPrefectClient, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Create the block, or fill what is empty in it; returns what it holds otherwise than the environment.

    Raises UserError if somebody has made a block of that name which holds no keys.
    """
    kind = client.read_block_type_by_slug(Secret.get_block_type_slug())
    try:
        known = client.read_block_document_by_name(BLOCK, kind.slug)
    except ObjectNotFound:
        schema = client.get_most_recent_block_schema_for_block_type(kind.id)
        assert schema is not None, "Prefect's server registers the type Secret when it starts"
        values = {name: environment.get(name, "") for name in NAMES}
        client.create_block_document(BlockDocumentCreate(
            name=BLOCK, data={"value": values}, block_type_id=kind.id, block_schema_id=schema.id))
        return []
    stored = known.data["value"]
    if not isinstance(stored, dict):
        raise UserError(f"the Secret block {BLOCK} holds plain text", where="Prefect's UI, Blocks",
                        allowed=f"a JSON object with keys such as {', '.join(NAMES[:3])}",
                        fix="Make it one, or delete the block: anneal deploy makes a new one of its environment.")
    filled = {**stored, **{name: stored.get(name) or environment.get(name, "") for name in NAMES}}
    if filled != stored:
        client.update_block_document(known.id, BlockDocumentUpdate(data={"value": filled}, merge_existing_data=False))
    return [f"secret {BLOCK}: {name} has another value than here (kept)"
            for name in NAMES if environment.get(name) and environment[name] != filled[name]]
