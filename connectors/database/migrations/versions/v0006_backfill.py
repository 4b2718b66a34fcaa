"""Backfill: which offsets count, summaries of several blocks, and what was scored of history."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("partitions", sa.Column("from_offset", sa.BigInteger, nullable=True))
    op.add_column("summaries", sa.Column("blocks", sa.BigInteger, nullable=False, server_default="1"))
    op.create_index("ix_summaries_block", "summaries", ["model", "block", "blocks"])
    op.create_table(
        "backfills",
        *(sa.Column(name, sa.Text, nullable=False) for name in ("id", "model", "lane", "status", "spans", "detail")),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=True) for name in ("from_ms", "to_ms", "finished_ms")),
        sa.PrimaryKeyConstraint("id", name="pk_backfills"),
    )
    op.create_index("ix_backfills_model", "backfills", ["model", "created_ms"])
