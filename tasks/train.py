"""Train: run the ranks, watch them, keep their checkpoints, put the weights into the store.

In:   packs/<key>, the base model, the spec     Out: trainings/<id>/model/*, events.jsonl
On disk meanwhile: <home>/trainings/<id>/ with step-NNNNNN/, events.jsonl, log.txt
Dies half-way: run the same training again; it goes on at the last checkpoint. On a remote store
the checkpoints are copied there as they appear, so another machine can go on.
The training id is a function of everything the weights depend on, and of nothing else. Where a person finishes the
training before its end, the step at which it ended is a part of that.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.files import digest_of, link_weights, sha256_of, write_atomic
from infra.records import Base, Pack, Split, Trained
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.distributed.contract import EVENTS, TrainJob
from tasks.distributed.events import Event, drop_torn_line, read_events
from tasks.launcher.checkpoint_copies import Copies, bring_checkpoint, in_store
from tasks.launcher.gpu_slots import hold
from tasks.launcher.placement import Placement
from tasks.launcher.relaunch import Launches
from tasks.launcher.watchdog import StallWatchdog
from tasks.runs.attempt import reached
from tasks.runs.fence import is_cancelled
from tasks.runs.finish import FinishWatch, asked_to_finish, finished_before, note_finished
from tasks.runs.locks import exclusive_lock
from tasks.runs.retries import HOUR_S, found_done, step
from tasks.runs.start import start_machines
from tasks.ui.progress import RunProgress
from tasks.ui.tracking import RunWriter, goes_on_as, tracked

TRAINER = 4
"""Raised when the trainer would give other weights for the same spec."""
ID_CHARACTERS = 26
LAUNCHES_AT_MOST = 1000
"""tasks/launcher/relaunch.py stops long before, where they leave no newer checkpoint."""
CURVE = ("step", "validation")
"""Events of earlier launches that a resumed training shows again, for its curve."""
ENDED = "ended.json"
"""Beside the weights of a training that is not in the store yet: its result, and their digest."""
Watch = Callable[[Event], None]


def training_id(spec: TrainingSpec, pack: Pack, base: Base) -> str:
    """26 lower-case base-32 characters: the same for the same weights, wherever they are trained. The precision of
    `spec` is settled."""
    assert spec.precision != "auto"
    return _id_of(digest_of([TRAINER, spec.numbers("weights"), pack.digest, base.digest]))


def train(
    settings: Settings, store: Store, placement: Placement, pack: Pack, base: Base, watch: Watch,
    becomes: Callable[[str], None] | None = None,
) -> Trained:
    """Train to the end, or until a person finishes it, from the last checkpoint if there is one.

    `watch` sees every event, those of earlier launches that belong to the curve again; `becomes` hears the id under
    which the weights of a training that a person finished are stored.

    Raises:
        UserError: another process is at the same training, or the spec cannot be trained.
        RanksLost: ranks died or were stopped before a new checkpoint; calling again goes on at the last one.
        Transient: the store does not answer.
        Broken: ranks died, and three launches in a row left no newer checkpoint.
        Diverged, OutOfMemory: training cannot go on as specified.
    """
    spec = placement.spec
    identity = training_id(spec, pack, base)
    run = settings.home_path / "trainings" / identity
    run.mkdir(parents=True, exist_ok=True)
    # The lock lies beside the folder, which is removed at the end.
    with exclusive_lock(run.with_suffix(".lock"), f"training {identity}"):
        done = find_trained(store, spec, pack, base)
        if done is not None:  # somebody ended it while we waited for the lock
            return done
        ended = ended_before(run)
        if ended is None or (ended.get("planned_steps") and not asked_to_finish(store)):
            (run / ENDED).unlink(missing_ok=True)  # of another run, which was asked to finish
            result = _launched(settings, store, placement, pack, base, identity, watch)
            ended = {**result, "digest": _model_digest(run / "model")}
            write_atomic(run / ENDED, json.dumps(ended))
        made = identity
        if ended.get("planned_steps"):  # other weights, so another id
            made = _id_of(digest_of([identity, ended["steps"]]))
            note_finished(store, made)
            if becomes is not None:
                becomes(made)
        with store.draft() as draft:
            shutil.copytree(run / "model", draft.path / "model", copy_function=link_weights)
            shutil.copy(run / EVENTS, draft.path / EVENTS)
            trained = Trained.of({
                **ended, "folder": f"trainings/{made}", "training_id": made,
                "method": "full" if spec.peft_method == "full" else "lora"})
            draft.commit(trained.folder, trained.to_json())
        for name in in_store(store, identity):
            store.remove(name)
        shutil.rmtree(run, ignore_errors=True)
    return trained


def _launched(
    settings: Settings, store: Store, placement: Placement, pack: Pack, base: Base, identity: str, watch: Watch,
) -> dict[str, Any]:
    """Run the ranks until they have trained to the end; returns their result."""
    run = settings.home_path / "trainings" / identity
    bring_checkpoint(store, identity, run)
    drop_torn_line(run)
    earlier, offset = read_events(run)
    for event in earlier:
        if event["event"] in CURVE:
            watch(event)
    pace = StallWatchdog(settings)
    seen = _Seen(store, identity, run, offset, watch, pace)
    seen.step = max((event["step"] for event in earlier if event["event"] == "step"), default=0)
    device, expected = placement.device, placement.forecast
    base_version = placement.spec.base_version.rpartition(":")[2]
    start = str(store.fetch(f"versions/{base_version}")) if base_version else ""
    job = TrainJob(
        out=str(run), spec=placement.job_spec.to_json(), base=base.path,
        packs=str(store.fetch(pack.folder)), chunk_tokens=pack.chunk_tokens, key=identity, start=start,
        parallelism=expected.parallelism, peak_tflops=device.tflops * expected.paid if device else 0.0,
        usd_per_hour=device.usd_per_hour * expected.paid if device else 0.0)
    launches = Launches(settings, pace, seen.look,
                        call=lambda launch: start_machines(settings, launch.id, launch.nodes))
    try:
        with FinishWatch(store, run, lambda: seen.step):
            return launches.run_while_it_gets_on(job)
    finally:
        seen.look()
        if not is_cancelled():  # then the copy goes on without the GPUs; the process waits for its thread
            seen.copies.finish()


def ended_before(run: Path) -> dict[str, Any] | None:
    """The result of ranks that trained to the end in this folder, where only storing it failed: nothing is trained
    again for that. None unless the weights are those that they left."""
    try:
        ended = dict(json.loads((run / ENDED).read_text(encoding="utf-8")))
        return ended if _model_digest(run / "model") == ended["digest"] else None
    except (OSError, ValueError, KeyError):
        return None


def find_trained(store: Store, spec: TrainingSpec, pack: Pack, base: Base) -> Trained | None:
    """The weights trained earlier from the same spec, or by this run until it was asked to finish, if they still
    verify."""
    for identity in filter(None, (finished_before(store), training_id(spec, pack, base))):
        if (manifest := store.find(f"trainings/{identity}")) is not None:
            return Trained.kept(manifest.record)
    return None


class _Seen:
    """Passes events on as they are written, and has new checkpoints copied to a remote store."""

    def __init__(self, store: Store, identity: str, run: Path, offset: int, watch: Watch, pace: StallWatchdog) -> None:
        self._run, self._offset, self._watch, self._pace = run, offset, watch, pace
        self.copies = Copies(store, identity, run)
        self.step = 0  # the newest

    def look(self) -> None:
        events, self._offset = read_events(self._run, self._offset)
        for event in events:
            self._pace.see(event)
            if event["event"] == "step":
                self.step = event["step"]
            self._watch(event)
        self.copies.look(new=any(event["event"] == "checkpoint" for event in events))


def _id_of(digest: str) -> str:
    return base64.b32encode(bytes.fromhex(digest)).decode().lower()[:ID_CHARACTERS]


def _model_digest(folder: Path) -> str:
    return digest_of({p.name: sha256_of(p) for p in sorted(folder.iterdir())})


@step("train", timeout_s=14 * 24 * HOUR_S, retries=LAUNCHES_AT_MOST)
def train_task(placement: Placement, pack: Pack, base: Base, split: Split, subject: str) -> Trained:
    """Train, or go on training; returns the Trained."""
    settings = Settings()
    store = Store(settings)
    found = find_trained(store, placement.spec, pack, base)
    if found is not None:
        return found_done(found)
    identity = training_id(placement.spec, pack, base)
    about = tracked(placement.spec, identity, split, pack, base, store.root)
    with (RunProgress("training") as progress, hold(settings, placement.ranks), RunWriter(settings, about) as run):

        def watch(event: Event) -> None:
            progress.see(event)
            run.see(event)
            # From these a relaunched training would go on.
            if event["event"] == "start" or event["event"] == "resume" or event["event"] == "checkpoint":
                reached(f"train step {event['step']}", wait=False)

        return train(settings, store, placement, pack, base, watch,
                     becomes=lambda made: goes_on_as(settings, about, made))
