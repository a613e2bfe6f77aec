"""deployments/gateway/removal.py with MLflow's own database."""

from __future__ import annotations

import time

import pytest

from deployments.gateway.intents import begun
from deployments.gateway.tables import Training
from infra.models.registry import Registry
from infra.settings import Settings
from infra.storage.store import Store
from tasks.register import register
from tests.support.gateway import running
from tests.support.past import Past

pytestmark = pytest.mark.slow


def test_a_deleted_version_is_gone_from_mlflow_store_and_lists(settings: Settings, store: Store, past: Past) -> None:
    version = register(
        settings, store, past.spec, past.trained, past.evaluation, past.split, past.pack, past.base)
    alone = settings.model_copy(update={"api_key": "the-key", "prefect_url": "http://127.0.0.1:9/api"})
    with running(alone, projecting=False) as gateway:
        gateway.model(*version.destination.split("/"))
        with gateway.here.database.session() as session:
            session.add(Training(**{
                **begun(), "id": "a" * 26, "owner": "acme", "model": "m/n", "version": "0" * 64, "input": {},
                "destination": version.destination, "spec": {}, "about": {}, "request_hash": "", "base_url": "",
                "idempotency_key": None, "source": "api", "webhook": "", "webhook_completed": "", "webhook_events": [],
                "status": "succeeded", "completed_at": time.time(), "output_version": version.id}))
        name = f"{version.destination}:{version.id}"
        assert [one["id"] for one in gateway.http.get("/openai/v1/models").json()["data"]][-1] == name
        refused = gateway.http.delete(f"/v1/models/{version.destination}")
        assert refused.status_code == 422 and version.id[:12] in refused.json()["detail"]
        gone = gateway.http.delete(f"/openai/v1/models/{name}")
        assert (gone.status_code, gone.json()) == (200, {"id": name, "object": "model", "deleted": True})
        assert gateway.http.delete(f"/openai/v1/models/{name}").status_code == 404
        assert gateway.http.delete(f"/v1/models/{version.destination}/versions/{version.id}").status_code == 404
        assert gateway.http.delete(f"/v1/models/{version.destination}").status_code == 204
        assert gateway.http.get("/v1/trainings/" + "a" * 26).json()["output"] is None
        assert name not in [one["id"] for one in gateway.http.get("/openai/v1/models").json()["data"]]
    assert store.find(f"versions/{version.id}") is None and version.id not in Registry(settings).identities()
