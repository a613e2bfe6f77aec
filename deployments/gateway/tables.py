"""The gateway's tables: what clients asked for, and what became of it.

A row is written before anything else happens, so that what was accepted is never lost. Versions stay in MLflow, bytes
in the store, progress in the trainer's events. Times are seconds since 1970, ids 26 base-32 characters.
migrations/versions/ makes these tables; tests/deployments/gateway/test_database.py compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, Index, LargeBinary, String, Text, UniqueConstraint, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Table(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON, float: Float(53), int: BigInteger}  # noqa: RUF012


class ApiKey(Table):
    """A bearer key, of which only the hash is kept."""

    __tablename__ = "api_key"
    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    """sha256 of the key, which has 256 random bits: nothing that could be guessed from it."""
    owner: Mapped[str] = mapped_column(String(120))
    name: Mapped[str] = mapped_column(String(120))
    scopes: Mapped[list[str]]
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class Model(Table):
    """A model that trainings put versions into."""

    __tablename__ = "model"
    __table_args__ = (UniqueConstraint("owner", "name"), Index("model_newest", "created_at", "id"))
    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    owner: Mapped[str] = mapped_column(String(120))
    name: Mapped[str] = mapped_column(String(120))
    visibility: Mapped[str] = mapped_column(String(16))
    hardware: Mapped[str] = mapped_column(String(120))
    about: Mapped[dict[str, Any]]
    """description, github_url, paper_url, license_url, cover_image_url."""
    created_at: Mapped[float]


class File(Table):
    """An uploaded file."""

    __tablename__ = "file"
    __table_args__ = (Index("file_newest", "owner", "created_at", "id"),)
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(120))
    name: Mapped[str] = mapped_column(Text)
    content_type: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    md5: Mapped[str] = mapped_column(String(32))
    about: Mapped[dict[str, Any]]
    """The metadata that the client sent."""
    purpose: Mapped[str] = mapped_column(String(40))
    place: Mapped[str] = mapped_column(Text)
    """The file in the store: folder/name; empty while it is awaited (the guide's upload in two requests)."""
    dataset: Mapped[str] = mapped_column(Text)
    """store:// address of its rows; empty if it cannot be trained on."""
    report: Mapped[dict[str, Any]]
    """What its rows are, or the sentence why they cannot be trained on."""
    created_at: Mapped[float]


class Training(Table):
    """A training that was asked for, here or elsewhere."""

    __tablename__ = "training"
    __table_args__ = (
        Index("training_newest", "owner", "created_at", "id"), Index("training_open", "status"),
        Index("training_destination", "destination"),
        UniqueConstraint("owner", "idempotency_key"))
    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    owner: Mapped[str] = mapped_column(String(120))
    model: Mapped[str] = mapped_column(Text)
    """The base model as the client named it."""
    version: Mapped[str] = mapped_column(String(64))
    destination: Mapped[str] = mapped_column(Text)
    input: Mapped[dict[str, Any]]
    """What the client sent."""
    spec: Mapped[dict[str, Any]]
    """The same, checked: what Prefect gets."""
    about: Mapped[dict[str, Any]]
    """What a client of OpenAI's dialect wants to read again: files, metadata, method."""
    request_hash: Mapped[str] = mapped_column(String(64), index=True)
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    source: Mapped[str] = mapped_column(String(8))
    """api, or web: a form, a schedule or Python."""
    base_url: Mapped[str] = mapped_column(Text)
    """What the client called the gateway; for addresses in webhooks."""
    webhook: Mapped[str] = mapped_column(Text)
    webhook_completed: Mapped[str] = mapped_column(Text)
    webhook_events: Mapped[list[str]]
    flow_run_id: Mapped[str | None] = mapped_column(String(36), unique=True)
    content_id: Mapped[str] = mapped_column(String(26))
    """Names trainings/<id>/ with the events; known once the data is packed."""
    status: Mapped[str] = mapped_column(String(16))
    waits_for: Mapped[str] = mapped_column(Text)
    """Why it has not begun, in a sentence."""
    error: Mapped[str | None] = mapped_column(Text)
    output_version: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    completed_at: Mapped[float | None]
    told_step: Mapped[int]
    """The optimizer step that the last webhook about logs told."""
    hold: Mapped[str] = mapped_column(String(12))
    """pausing, paused, or empty. A paused training has no run; its checkpoints stay."""
    attempt: Mapped[int]
    """How often it was paused: each time it goes on, it is a new run of Prefect's."""
    finish_requested: Mapped[bool] = mapped_column(server_default=false())
    """A person asks for the weights so far."""
    cancel_requested: Mapped[bool]
    cancel_delivered: Mapped[bool]
    missing_since: Mapped[float | None]
    """Since when Prefect does not know the run any more."""


class Prediction(Table):
    """A prompt and its answer."""

    __tablename__ = "prediction"
    __table_args__ = (Index("prediction_newest", "owner", "created_at", "id"), Index("prediction_open", "status"))
    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    owner: Mapped[str] = mapped_column(String(120))
    model: Mapped[str] = mapped_column(Text)
    version: Mapped[str] = mapped_column(String(64))
    about_version: Mapped[bool]
    """Whether the client named the version; else the model answers with its current one."""
    input: Mapped[dict[str, Any]]
    output: Mapped[list[str]]
    status: Mapped[str] = mapped_column(String(16))
    error: Mapped[str | None] = mapped_column(Text)
    logs: Mapped[str] = mapped_column(Text)
    metrics: Mapped[dict[str, Any]]
    stream_token: Mapped[str] = mapped_column(String(64), unique=True)
    base_url: Mapped[str] = mapped_column(Text)
    webhook: Mapped[str] = mapped_column(Text)
    webhook_completed: Mapped[str] = mapped_column(Text)
    webhook_events: Mapped[list[str]]
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    completed_at: Mapped[float | None]
    seen_at: Mapped[float]
    """When the process that answers it last gave a sign of life."""


class Delivery(Table):
    """A webhook message, from its writing to its delivery."""

    __tablename__ = "delivery"
    __table_args__ = (Index("delivery_due", "done_at", "due"),)
    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    """The webhook-id: the same at each try."""
    owner: Mapped[str] = mapped_column(String(120))
    subject: Mapped[str] = mapped_column(String(26), index=True)
    """The training or prediction."""
    event: Mapped[str] = mapped_column(String(16))
    url: Mapped[str] = mapped_column(Text)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    due: Mapped[float]
    tries: Mapped[int]
    answer: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float]
    done_at: Mapped[float | None]


class Secret(Table):
    """A secret that signs an owner's webhooks; for a while after a change both sign."""

    __tablename__ = "secret"
    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    owner: Mapped[str] = mapped_column(String(120), index=True)
    key: Mapped[str] = mapped_column(String(120))
    created_at: Mapped[float]
    retired_at: Mapped[float | None]


class Lease(Table):
    """Who of several processes does what only one may do."""

    __tablename__ = "lease"
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    holder: Mapped[str] = mapped_column(String(80))
    until: Mapped[float]
    seen_at: Mapped[float]
    """When Prefect last answered its holder."""
