"""Fraud: labels, what they are matched with, which labels were in force where, entities, and floods."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False, autoincrement=True)


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _ints(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def upgrade() -> None:
    op.add_column("kept", sa.Column("labels", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("kept", sa.Column("detail", sa.Text, nullable=False, server_default=""))
    op.create_index("ix_kept_record", "kept", ["model", "record_id"])
    op.create_table(
        "labels",
        _id(),
        *_texts("model", "record_id", "label", "source", "by", "origin"),
        *_ints("time_ms", "received_ms", "version"),
        *(sa.Column(name, sa.Double, nullable=True) for name in ("confidence", "probability", "p_value", "chance")),
        *(sa.Column(name, sa.Text, nullable=True) for name in ("topic", "entity", "selected", "made_with")),
        *(
            sa.Column(name, sa.BigInteger, nullable=True)
            for name in ("number", "position", "row", "event_ms", "scored_with")
        ),
        *(sa.Column(name, sa.LargeBinary, nullable=True) for name in ("vector", "signals")),
        sa.PrimaryKeyConstraint("id", name="pk_labels"),
        sa.UniqueConstraint("model", "origin", name="uq_labels"),
    )
    op.create_index("ix_labels_version", "labels", ["model", "version"])
    op.create_index("ix_labels_record", "labels", ["model", "record_id"])
    op.create_table(
        "label_versions",
        *_texts("model"),
        *_ints("version"),
        sa.PrimaryKeyConstraint("model", name="pk_label_versions"),
    )
    op.create_table(
        "label_spans",
        *_texts("model", "topic"),
        *_ints("number", "from_offset", "version", "reference"),
        sa.PrimaryKeyConstraint("model", "topic", "number", "from_offset", name="pk_label_spans"),
    )
    op.create_table(
        "label_offsets",
        *_texts("model", "topic"),
        *_ints("number", "next_offset"),
        sa.Column("topic_id", sa.Text, nullable=True),
        sa.PrimaryKeyConstraint("model", "topic", "number", name="pk_label_offsets"),
    )
    op.create_table(
        "remembered",
        _id(),
        *_texts("model", "topic"),
        *_ints("number", "first_offset", "from_ms", "to_ms", "records", "bytes"),
        *_ints("stored_ms"),
        sa.Column("ids", sa.LargeBinary, nullable=False),
        sa.Column("blob", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_remembered"),
        sa.UniqueConstraint("model", "topic", "number", "first_offset", name="uq_remembered"),
    )
    op.create_table(
        "entity_states",
        *_texts("model", "kind", "topic"),
        *_ints("number", "entity", "position"),
        sa.Column("blob", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("model", "kind", "topic", "number", "entity", name="pk_entity_states"),
    )
    op.create_table(
        "flood_counts",
        *_texts("model", "topic"),
        *_ints("number", "block", "first_offset"),
        sa.Column("blob", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("model", "topic", "number", "block", "first_offset", name="pk_flood_counts"),
    )
