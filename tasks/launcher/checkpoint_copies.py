"""Checkpoints of a training in a remote store, so that another machine can go on.

In:   <home>/trainings/<id>/step-NNNNNN/ and best/     Out: checkpoints/<id>/step-NNNNNN in the store, the last two
Dies half-way: a draft in the store, which is swept; the copy before it stands. Copying takes a thread of its own:
who watches the ranks must not be silent for as long as an upload takes.
"""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from infra.errors import Transient
from infra.files import verify
from infra.storage.store import Store
from tasks.distributed.contract import BEST, checkpoint_folders, step_of

CHECKPOINTS = "checkpoints"
log = logging.getLogger(__name__)


class Copies:
    """Copies the newest checkpoint to a remote store, one at a time."""

    def __init__(self, store: Store, identity: str, run: Path) -> None:
        self._store, self._identity, self._run = store, identity, run
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="copy")
        self._copying: Future[None] | None = None
        self._due = False

    def look(self, *, new: bool) -> None:
        """Begin to copy if there is a `new` checkpoint, or was one while the last copy was made."""
        self._due = (self._due or new) and not self._store.is_local
        if self._copying is not None and self._copying.done():
            self._end()
        if self._due and self._copying is None:
            self._due, self._copying = False, self._copier.submit(self._copy_newest)

    def finish(self) -> None:
        """Wait until all that is there is copied: this machine may be about to go."""
        while self._copying is not None or self._due:
            self._end()
            self.look(new=False)
        self._copier.shutdown()

    def _end(self) -> None:
        try:
            if self._copying is not None:
                self._copying.result()
        except (Transient, OSError) as error:  # the ranks remove old ones meanwhile
            log.warning("checkpoint not copied, trying again at the next: %s", error)
        finally:
            self._copying = None

    def _copy_newest(self) -> None:
        for folder in checkpoint_folders(self._run):
            if verify(folder) is not None:
                older = in_store(self._store, self._identity)
                with self._store.draft() as draft:
                    shutil.copytree(folder, draft.path / CHECKPOINTS)
                    if verify(self._run / BEST) is not None:
                        shutil.copytree(self._run / BEST, draft.path / BEST)
                    name = f"{CHECKPOINTS}/{self._identity}/{folder.name}"
                    draft.commit(name, {"training": self._identity}, kept=False)
                for old in older[1:]:
                    self._store.remove(old)
                return


def in_store(store: Store, identity: str) -> list[str]:
    """The names of a training's copies, the newest first."""
    names = store.names(f"{CHECKPOINTS}/{identity}")
    return sorted(names, key=lambda name: step_of(name.rsplit("/", 1)[-1]), reverse=True)


def bring_checkpoint(store: Store, identity: str, run: Path) -> None:
    """Take over the checkpoint in a remote store if it is newer than what this machine has."""
    if store.is_local:
        return
    here = max((step_of(path.name) for path in checkpoint_folders(run) if verify(path)), default=-1)
    for name in in_store(store, identity):
        folder = run / name.rsplit("/", 1)[-1]
        if step_of(folder.name) <= here:
            return
        if store.find(name) is not None:
            fetched = store.fetch(name)
            if (fetched / BEST).exists():
                _take(fetched / BEST, run / BEST)
            _take(fetched / CHECKPOINTS, folder)  # what was here is damaged, or it would not be older
            return


def _take(source: Path, target: Path) -> None:
    part = target.with_name("fetched.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
