"""Which version each model answers with: deploy beside, check, switch, unload later.

In:   deploy orders (model, version, store folder)     Out: the version for each request
Each model keeps its current and its previous version. A switch changes where new requests go;
rows under way end on the version they began with. A version that no model names is unloaded
when its last row has ended.
On disk: <home>/predictor/<owner>--<name>.json, written atomically after the smoke test and
before the switch. Dies half-way: after a restart the record on disk is served.
What is loaded is compared before and after: a version with its id, a base with the digest that its versions name.
Versions on one base share it, so that a wrong one would answer for all of them.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from deployments.predictor import loading
from deployments.predictor.engine import MAX_WAITING, Engine
from deployments.predictor.loading import Loaded
from deployments.predictor.metrics import Metrics
from deployments.predictor.served import Conflict, NotServed, Order, Served, path_of
from deployments.predictor.smoke import smoke_answer
from infra.crashpoints import crashpoint
from infra.errors import AnnealError, Transient, UserError, shown
from infra.models.base_folders import stamp_of
from infra.models.version_names import choose, read_name, which_exist
from infra.settings import Settings
from infra.spec import check_destination
from infra.storage.store import Store

log = logging.getLogger(__name__)


class ServedVersions:
    """All versions in memory and the pointers of the models."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._records = settings.home_path / "predictor"
        self._deploying = threading.Lock()
        self._lock = threading.Lock()
        self._loaded: dict[str, Loaded] = {}
        self._engines: dict[str, Engine] = {}
        self.served: dict[str, Served] = {}
        self.failed: dict[str, str] = {}
        """Models whose record could not be restored, and why."""
        self.restored = False
        self.metrics = Metrics(lambda: sum(engine.waiting for engine in list(self._engines.values())),
                               lambda: sum(engine.running for engine in list(self._engines.values())))

    @property
    def alive(self) -> bool:
        """False when an engine's thread is gone: only a restart helps."""
        return all(engine.alive for engine in list(self._engines.values()))

    @property
    def is_full(self) -> bool:
        """True when an engine takes no more rows for now."""
        return any(engine.waiting >= MAX_WAITING for engine in list(self._engines.values()))

    def model_of(self, version: str) -> str | None:
        """A model that keeps this version."""
        return next((served.model for served in list(self.served.values()) if version in served.ids), None)

    def versions(self) -> list[Loaded]:
        """Everything in memory."""
        with self._lock:
            return list(self._loaded.values())

    def claim(self, version: str | None, model: str | None) -> Loaded:
        """The version that a request is answered with; give it back with `release`. Raises NotServed, UserError."""
        with self._lock:
            version, model = self._named(version, model)
            if version is None:
                version = self._current(model)
            elif model is not None and not self._keeps(model, version):
                raise NotServed(f"version {version[:12]} of {shown(model)} is not served here",
                                fix="GET /models lists what is.")
            if version not in self._loaded or self.model_of(version) is None:  # one that ends its last rows is gone
                raise NotServed(f"version {shown(version)} is not served here", fix="GET /models lists what is.")
            loaded = self._loaded[version]
            loaded.in_flight += 1
            return loaded

    def hold(self, loaded: Loaded) -> None:
        """One more row of a version that is claimed."""
        with self._lock:
            loaded.in_flight += 1

    def release(self, loaded: Loaded) -> None:
        """A row has ended."""
        with self._lock:
            loaded.in_flight -= 1
        self.sweep()

    def deploy(self, model: str, order: Order) -> Served:
        """Load, check, try, then switch. On any error what was served before is served on."""
        check_destination(model)
        try:
            with self._deploying:
                now = self.served.get(model)
                if now and (now.current.version, now.current.folder) == (order.version, order.folder):
                    return self._again(now, order)
                smoke = self._prepare(order)
                crashpoint("deploy.after_load")
                served = Served(
                    model=model, current=order, previous=now.current if now else None, smoke=smoke,
                    deployed_at=datetime.now(UTC).isoformat(timespec="seconds"))
                served.write(self._records)
                crashpoint("deploy.after_record")
                self._switch(served)
                return served
        finally:
            self.sweep()

    def remove(self, model: str, version: str = "") -> None:
        """Stop serving a model, or one version of it: the current one is all of it. Raises NotServed."""
        try:
            with self._deploying:
                self._remove(model, version)
        finally:
            self.sweep()

    def restore(self) -> None:
        """Serve what was served before the restart. One bad record does not stop the others."""
        with self._deploying:
            for path in sorted(self._records.glob("*.json")):
                model = path.stem.replace("--", "/", 1)
                try:
                    self._restore_one(Served.read(path))
                except AnnealError as error:
                    log.error("not restored model=%s error=%s", model, error)
                    self.failed[model] = str(error)
                except Exception as error:
                    log.exception("not restored model=%s", model)
                    self.failed[model] = f"{type(error).__name__} while loading; see the predictor's log."
        self.restored = True
        self.sweep()

    def sweep(self) -> None:
        """Unload what no model names and no row uses. Does nothing while a deploy runs: it sweeps itself."""
        if not self._deploying.acquire(blocking=False):
            return
        try:
            with self._lock:
                named = {version for served in self.served.values() for version in served.ids}
                gone = [v for v in self._loaded.values() if v.id not in named and not v.in_flight]
                for loaded in gone:
                    del self._loaded[loaded.id]
            for loaded in gone:
                self._unload(loaded)
        finally:
            self._deploying.release()

    def close(self) -> None:
        """End all engines."""
        engines = list(self._engines.values())
        for engine in engines:
            engine.close()
        for engine in engines:
            engine.join()

    def _named(self, version: str | None, model: str | None) -> tuple[str | None, str | None]:
        """Id and model of a request that may name a version in any form."""
        name = read_name(version or model or "") if version or (model and ":" in model) else None
        if name is None:
            return version, model
        model = name.destination or (model if version else None)
        if not name.which or name.which in self._loaded:
            return name.which or None, model
        served = self.served.get(name.destination)
        found = choose(name, served.numbered, served.aliases) if served else None
        if found is None:
            raise NotServed(f"version {shown(name.which)} of {shown(name.destination)} is not served here",
                            allowed=which_exist(served.numbered, served.aliases) if served else "",
                            fix="GET /models lists what is.")
        return found, model

    def _current(self, model: str | None) -> str:
        if model is None and len(self.served) == 1:
            return next(iter(self.served.values())).current.version
        if model is None:
            raise UserError(f"neither version nor model is given and {len(self.served)} models are served",
                            allowed="one of " + (", ".join(sorted(self.served)) or "none yet"),
                            fix="Name the model." if self.served else "Deploy a version first.")
        if model not in self.served:
            raise NotServed(f"model {shown(model)} is not served here", fix="GET /models lists what is.")
        return self.served[model].current.version

    def _keeps(self, model: str, version: str) -> bool:
        return model in self.served and version in self.served[model].ids

    def _remove(self, model: str, version: str) -> None:
        path = path_of(self._records, model)
        if model not in self.served and model not in self.failed:
            raise NotServed(f"{shown(model)} is not served here", fix="GET /models lists what is.")
        now = (self.served.get(model) or Served.read(path)) if version else None
        if now is not None and version not in now.ids:
            raise NotServed(f"{shown(model)} does not keep version {shown(version)}", fix="GET /models lists what is.")
        if now is not None and version != now.current.version:
            rest = replace(now, previous=None)
            rest.write(self._records)
            if model in self.served:
                self._switch(rest)
            return
        path.unlink(missing_ok=True)
        with self._lock:
            self.served.pop(model, None)
            self.failed.pop(model, None)

    def _restore_one(self, served: Served) -> None:
        previous = served.previous
        if previous is not None:
            try:
                self._load(previous)
            except AnnealError as error:
                log.warning("previous version not restored model=%s error=%s", served.model, error)
                previous = None
        self._prepare(served.current)
        self._switch(replace(served, previous=previous))

    def _again(self, now: Served, order: Order) -> Served:
        """The same version once more: judged as if it were new, and its base perhaps in another folder by now."""
        self._load(order)
        current = replace(now.current, base_path=order.base_path or now.current.base_path,
                          number=order.number or now.current.number)
        if current == now.current:
            return now
        moved = replace(now, current=current)
        moved.write(self._records)
        self._switch(moved)
        return moved

    def _prepare(self, order: Order) -> str:
        """Load a version and let it answer its smoke prompt."""
        loaded = self._load(order)
        with self._lock:
            loaded.in_flight += 1
        try:
            return smoke_answer(loaded, order.smoke_prompt or loaded.card.smoke_prompt)
        finally:
            with self._lock:
                loaded.in_flight -= 1

    def _load(self, order: Order) -> Loaded:
        there = self._loaded.get(order.version)
        if there is not None:
            if there.folder != order.folder:
                raise Conflict(f"version {order.version[:12]} is served from {there.folder}, not {order.folder}",
                               fix="A version id names one set of files for ever; register a new version.")
            loading.check_base(self._settings, there.card, order)
            return there
        folder = Store(self._settings).fetch(order.folder)
        stamp = stamp_of(folder, sorted(folder.rglob("*")))
        card = loading.read_card(folder, order.version)
        base = loading.check_base(self._settings, card, order)
        lora = card.method == "lora"
        key = f"{card.base_digest} {card.precision}" if lora else order.version
        encoder, decoder = loading.load_codecs(folder, templated=card.templated)
        if key in self._engines:
            loading.add_adapter(self._engines[key], folder, order.version)
        else:
            self._engines[key] = loading.open_engine(card, folder, base, order.version)
        loaded = Loaded(
            id=order.version, folder=order.folder, card=card, engine=self._engines[key],
            adapter=order.version if lora else None, encoder=encoder, decoder=decoder)
        if not (_is_stamped(folder, stamp) and (base is None or base.is_unchanged())):
            self._unload(loaded)
            raise Transient("its files changed while they were loaded", where=f"version {order.version[:12]}",
                            fix="Deploy it again.")
        with self._lock:
            self._loaded[order.version] = loaded
        return loaded

    def _unload(self, loaded: Loaded) -> None:
        log.info("unload version=%s", loaded.id)
        if any(other.engine is loaded.engine for other in self._loaded.values()):
            loading.drop_adapter(loaded.engine, loaded.id)
            return
        loaded.engine.close()
        self._engines = {key: engine for key, engine in self._engines.items() if engine is not loaded.engine}

    def _switch(self, served: Served) -> None:
        with self._lock:
            self.served[served.model] = served
            self.failed.pop(served.model, None)
        log.info("serving model=%s version=%s", served.model, served.current.version)


def _is_stamped(folder: Path, stamp: str) -> bool:
    """Whether a version's files are still those that were compared with its id."""
    try:
        return stamp_of(folder, sorted(folder.rglob("*"))) == stamp
    except OSError:
        return False
