"""Let another deployment go on with a training whose data is packed: from a CPU pool to the GPUs.

In:   a spec whose data lies in the store     Out: a run of that deployment; this run ends as HandedOver
There is no second code path: the other run takes the same steps, and finds the first three done.
Dies half-way: the run that is started again finds the one that it started before, and so does a retraining of the same
data while the first one is under way: the spec names its data by content.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import cast

from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed

from infra.files import digest_of
from infra.records import Version
from infra.spec import TrainingSpec
from tasks.runs.retries import HOUR_S, step
from tasks.runs.start import page_of, start_run
from tasks.ui import reports


def hand_over(deployment: str, spec: TrainingSpec) -> Version:
    """Start the run that goes on; returns the state in which this one ends, in place of a version.

    Raises UserError if there is no such deployment, Transient if Prefect stays away.
    """
    started = hand_over_task(deployment, spec, subject=deployment)
    reports.show("handed-over", f"## Handed over\n\n[{started.name}]({page_of(started)}) of {deployment} goes on.")
    message = f"Its data is packed; {started.name} of {deployment} goes on."
    return cast(Version, Completed(name="HandedOver", message=message))


@step("hand over", timeout_s=HOUR_S)
def hand_over_task(deployment: str, spec: TrainingSpec, subject: str) -> FlowRun:
    """Start the deployment's run; the same training handed over before is found while its run has not ended."""
    values = dataclasses.asdict(spec)
    key, tries = f"handed over {digest_of([deployment, values])[:32]}", itertools.count(2)
    started = start_run(deployment, {"training": values}, key=key)
    while started.state is not None and started.state.is_final():
        started = start_run(deployment, {"training": values}, key=f"{key} {next(tries)}")
    return started
