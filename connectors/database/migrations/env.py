"""Alembic's entry: runs the migrations on the connection that `Store.migrate` hands over, in its transaction."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from connectors.database.schema import metadata

connection = context.config.attributes.get("connection")
assert isinstance(connection, Connection), "driftd migrates by itself: call Store.migrate, not the alembic command"

context.configure(connection=connection, target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
