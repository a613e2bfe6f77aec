"""Take part in one launch of a training that another machine leads: started by that machine, for each launch anew.

In:   the launch's id, this machine's number among the nodes     Out: nothing of its own
A machine that runs `anneal join` needs no such run. Dies half-way: the launch ends on all nodes, and the first one
starts another, with runs of its own. Nobody but tasks/runs/start.py starts it.
"""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from infra.settings import Settings
from tasks.launcher.gpu_slots import hold
from tasks.launcher.join import join_launch
from tasks.runs.attempt import survives

Node = Annotated[int, Field(ge=1)]


@flow(name="join", flow_run_name="join {launch} node {node}", persist_result=False)
@survives
def join(launch: str, node: Node) -> State[None]:
    """Run this machine's ranks of a launch to their end.

    Args:
        launch: Id of the launch; the machine that leads knows it.
        node: This machine's number; the first one has 0.
    """
    settings = Settings()
    ended = join_launch(settings, launch, node, lambda ranks, look: hold(settings, ranks, look))
    return Completed(message=ended)
