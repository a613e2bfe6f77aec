"""Trainings that are asked to finish."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("training") as table:
        table.add_column(sa.Column("finish_requested", sa.Boolean(), nullable=False, server_default=sa.false()))
