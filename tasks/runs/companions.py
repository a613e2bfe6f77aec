"""Bring the other machines of a training: a run of a deployment for each of them, on workers that are there.

In:   a launch (tasks/launcher/nodes.py)        Out: a flow run of ANNEAL_NODE_DEPLOYMENT for each node but the first
They are gone when the launch is: each of them ends its ranks when the first node ends the launch, or is not heard of
any more. On Kubernetes their jobs belong to the first node's pod, and go with it. Dies half-way: a run that starts too
late finds its launch over and ends.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from infra.settings import Settings
from tasks.launcher.nodes import Launch
from tasks.runs.start import start_run

POD = ("ANNEAL_POD_NAME", "ANNEAL_POD_UID")
"""Set by the job template infra/workpools/kubernetes.json."""
log = logging.getLogger(__name__)


def call_nodes(settings: Settings, launch: Launch) -> None:
    """Start the runs, once for each launch. Raises UserError or Transient, as `start_run` does."""
    if launch.nodes == 1 or not settings.node_deployment:
        return
    for node in range(1, launch.nodes):
        run = start_run(
            settings.node_deployment, {"launch": launch.id, "node": node}, key=f"{launch.id} node {node}",
            job_variables=owned())
        log.info("node %d of %d: %s of %s", node, launch.nodes, run.name, settings.node_deployment)


def owned() -> dict[str, Any] | None:
    """Job variables that make the other pods' jobs belong to this pod; None elsewhere than on Kubernetes."""
    name, uid = (os.environ.get(variable, "") for variable in POD)
    if not uid:
        return None
    return {"owner_references": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}]}
