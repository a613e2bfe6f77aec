"""Alembic's entry: migrates the connection that `Database.migrate` hands over."""

from __future__ import annotations

from alembic import context

from deployments.gateway.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata,
                  render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
