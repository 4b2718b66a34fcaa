"""Verdict: what the model answered, what turned out to be right, and what is said of the model."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def _id() -> sa.Column[int]:
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    return sa.Column("id", number, primary_key=True, autoincrement=True)


def _columns(kind: type, *names: str, nullable: bool = False) -> list[sa.Column[object]]:
    return [sa.Column(name, kind, nullable=nullable) for name in names]


def upgrade() -> None:
    op.create_table(
        "answers",
        _id(),
        *_columns(sa.Text, "model", "topic"),
        *_columns(sa.BigInteger, "number", "first_offset", "from_ms", "to_ms", "records", "bytes", "stored_ms"),
        *_columns(sa.LargeBinary, "ids", "blob"),
        sa.UniqueConstraint("model", "topic", "number", "first_offset", name="uq_answers"),
    )
    op.create_table(
        "truths",
        _id(),
        *_columns(sa.Text, "model", "record_id", "truth", "origin"),
        *_columns(sa.BigInteger, "time_ms", "received_ms", "version"),
        *_columns(sa.Double, "weight", "confidence", nullable=True),
        *_columns(sa.Text, "answer", nullable=True),
        *_columns(sa.BigInteger, "event_ms", nullable=True),
        sa.UniqueConstraint("model", "origin", name="uq_truths"),
    )
    op.create_index("ix_truths_version", "truths", ["model", "version"])
    op.create_index("ix_truths_record", "truths", ["model", "record_id"])
    op.create_index("ix_truths_time", "truths", ["model", "event_ms"])
    op.create_table(
        "truth_versions",
        *_columns(sa.Text, "model"),
        *_columns(sa.BigInteger, "version"),
        sa.PrimaryKeyConstraint("model", name="pk_truth_versions"),
    )
    estimates = ("confidence", "estimated", "low", "high", "atc", "novel", "unsupported", "floor")
    found = ("realised", "realised_low", "realised_high", "metric", "evidence", "age_s")
    op.create_table(
        "verdicts",
        _id(),
        *_columns(sa.Text, "model"),
        *_columns(sa.BigInteger, "block", "start_ms", "end_ms"),
        *_columns(sa.Text, "word"),
        *_columns(sa.BigInteger, "since_ms", "records"),
        *_columns(sa.Double, *estimates, *found, nullable=True),
        *_columns(sa.BigInteger, "labels", "truths"),
        *_columns(sa.Text, "metric_name", "reasons"),
        *_columns(sa.BigInteger, "stored_ms"),
        sa.UniqueConstraint("model", "block", name="uq_verdicts"),
    )
    op.create_index("ix_verdicts_time", "verdicts", ["model", "start_ms"])
