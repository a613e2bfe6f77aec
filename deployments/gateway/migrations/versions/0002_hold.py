"""Trainings that are paused and go on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("training") as table:
        table.add_column(sa.Column("hold", sa.String(length=12), nullable=False, server_default=""))
        table.add_column(sa.Column("attempt", sa.BigInteger(), nullable=False, server_default="0"))
