"""Many workers: idle partitions, topics that are made anew, gaps, pinned formats, pending halves, rows of a record."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_POSITION = ("model", "space", "topic", "number", "position")


def upgrade() -> None:
    op.add_column("partitions", sa.Column("topic_id", sa.Text, nullable=True))
    op.add_column("partitions", sa.Column("idle_offset", sa.BigInteger, nullable=True))
    op.add_column("partitions", sa.Column("advanced_ms", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("partitions", sa.Column("closed_late", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("dead_letters", sa.Column("row", sa.BigInteger, nullable=False, server_default="-1"))
    op.add_column("dead_letters", sa.Column("block", sa.BigInteger, nullable=True))
    with op.batch_alter_table("kept") as kept:
        kept.add_column(sa.Column("row", sa.BigInteger, nullable=False, server_default="0"))
        kept.drop_constraint("uq_kept", type_="unique")
        kept.create_unique_constraint("uq_kept", [*_POSITION, "row"])
    op.create_table(
        "gaps",
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("from_offset", sa.BigInteger, nullable=False),
        sa.Column("to_offset", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("noticed_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint(
            "model", "topic", "number", "from_offset", "to_offset", "reason", "noticed_ms", name="pk_gaps"
        ),
    )
    op.create_table(
        "formats",
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("format", sa.Text, nullable=False),
        sa.Column("pinned_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("model", "topic", name="pk_formats"),
    )
    op.create_table(
        "pending_halves",
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("blob", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("model", "topic", "number", "position", name="pk_pending_halves"),
    )
