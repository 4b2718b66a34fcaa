"""Alerts: groups of notifications, mutes, deployments, and block statistics for dashboards."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("partitions", sa.Column("scores", sa.Text, nullable=False, server_default=""))
    for name in ("model", "severity", "event"):
        op.add_column("outbox", sa.Column(name, sa.Text, nullable=False, server_default=""))
    op.create_index("ix_outbox_sent", "outbox", ["sink", "sent_ms"])
    op.create_index("ix_outbox_incident", "outbox", ["sink", "incident", "id"])
    op.create_table(
        "mutes",
        *(sa.Column(name, sa.Text, nullable=False) for name in ("id", "model", "kind", "space", "segment")),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("from_ms", "until_ms")),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("reason", "by")),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_mutes"),
    )
    op.create_table(
        "deployments",
        *(sa.Column(name, sa.Text, nullable=False) for name in ("model", "version")),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("block", "start_ms", "stored_ms")),
        sa.PrimaryKeyConstraint("model", "version", name="pk_deployments"),
    )
    counts = ("block", "start_ms", "end_ms", "reference", "records", "late", "dead")
    op.create_table(
        "block_stats",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False, autoincrement=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("model", "space")),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in counts),
        sa.Column("confidence", sa.Double, nullable=True),
        *(sa.Column(f"surprise_{number}", sa.BigInteger, nullable=False) for number in range(10)),
        sa.Column("stored_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_block_stats"),
        sa.UniqueConstraint("model", "space", "block", "reference", name="uq_block_stats"),
    )
    op.create_index("ix_block_stats_time", "block_stats", ["model", "start_ms"])
