"""The first tables. History is forward only: a newer database is refused by an older program, never turned back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True)


def _text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _int(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def _float(*names: str) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.Double, nullable=True) for name in names]


def _blob(name: str) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary, nullable=False)


def _bool(*names: str) -> list[sa.Column[bool]]:
    return [sa.Column(name, sa.Boolean, nullable=False) for name in names]


def _primary(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=f"pk_{table}")


def _unique(table: str, *columns: str) -> sa.UniqueConstraint:
    return sa.UniqueConstraint(*columns, name=f"uq_{table}")


def _partial(name: str, table: str, columns: list[str], *, sqlite: str, postgresql: str, unique: bool = False) -> None:
    op.create_index(
        name, table, columns, unique=unique, sqlite_where=sa.text(sqlite), postgresql_where=sa.text(postgresql)
    )


def upgrade() -> None:
    op.create_table(
        "partitions",
        *_text("model", "topic"),
        *_int("number", "next_offset", "max_time_ms", "records", "dead", "late"),
        _primary("partitions", "model", "topic", "number"),
    )
    op.create_table(
        "summary_deltas",
        _id(),
        *_text("model"),
        *_int("block"),
        *_text("space", "segment"),
        *_int("reference"),
        *_text("topic"),
        *_int("number", "first_offset"),
        _blob("blob"),
        _primary("summary_deltas", "id"),
        _unique(
            "summary_deltas",
            *("model", "block", "space", "segment", "reference", "topic", "number", "first_offset"),
        ),
    )
    op.create_table(
        "summaries",
        _id(),
        *_text("model", "space", "segment"),
        *_int("block", "reference"),
        _blob("blob"),
        *_int("stored_ms"),
        _primary("summaries", "id"),
        _unique("summaries", "model", "space", "segment", "block", "reference"),
    )
    op.create_table(
        "kept",
        _id(),
        *_text("model", "space", "topic"),
        *_int("number", "position", "time_ms", "block"),
        *_text("record_id", "reason"),
        *_float("score", "p_value"),
        *_int("reference", "exemplar"),
        sa.Column("prediction", sa.Text, nullable=True),
        *_float("confidence"),
        *_text("segments", "fields"),
        *_bool("flagged"),
        *_int("stored_ms"),
        _primary("kept", "id"),
        _unique("kept", "model", "space", "topic", "number", "position"),
    )
    op.create_index("ix_kept_block", "kept", ["model", "space", "block"])
    op.create_index("ix_kept_time", "kept", ["model", "time_ms"])
    _partial("ix_kept_flagged", "kept", ["model", "score"], sqlite="flagged = 1", postgresql="flagged")
    op.create_table(
        "dead_letters",
        _id(),
        *_text("model", "topic"),
        *_int("number", "position", "time_ms"),
        *_text("reason", "detail"),
        _blob("payload"),
        *_int("size"),
        *_bool("published"),
        *_int("stored_ms"),
        _primary("dead_letters", "id"),
    )
    op.create_index("ix_dead_letters_model", "dead_letters", ["model", "id"])
    _partial(
        "ix_dead_letters_unpublished",
        "dead_letters",
        ["model", "id"],
        sqlite="published = 0",
        postgresql="NOT published",
    )
    op.create_table(
        "dead_letter_counts",
        *_text("model", "topic"),
        *_int("number"),
        *_text("reason"),
        *_int("count"),
        _primary("dead_letter_counts", "model", "topic", "number", "reason"),
    )
    op.create_table("folds", *_text("model"), *_int("version", "next_block"), _primary("folds", "model"))
    op.create_table(
        "fold_states",
        *_text("model", "space", "segment"),
        *_int("reference", "written"),
        _blob("blob"),
        _primary("fold_states", "model", "space", "segment", "reference"),
    )
    op.create_table(
        "closures",
        _id(),
        *_text("model"),
        *_int("block"),
        *_text("reason", "next_offsets"),
        *_int("closed_at_ms"),
        _primary("closures", "id"),
    )
    op.create_index("ix_closures_model", "closures", ["model", "block"])
    op.create_table(
        "readings",
        _id(),
        *_text("model", "space", "segment"),
        *_int("block", "start_ms", "end_ms"),
        *_text("channel"),
        *_float("statistic", "strength", "threshold", "warn_threshold"),
        *_int("n"),
        *_float("effect"),
        *_int("window_start_ms"),
        sa.Column("onset_ms", sa.BigInteger, nullable=True),
        *_int("reference"),
        *_bool("page", "warn"),
        *_int("stored_ms"),
        _primary("readings", "id"),
        _unique("readings", "model", "space", "segment", "block", "channel", "reference"),
    )
    op.create_index("ix_readings_time", "readings", ["model", "start_ms"])
    op.create_table(
        "incidents",
        *_text("id", "model", "kind", "space", "segment", "severity", "status"),
        *_int("opened_ms", "onset_ms", "updated_ms"),
        sa.Column("resolved_ms", sa.BigInteger, nullable=True),
        *_int("revision", "reference"),
        *_text("title", "text", "detail"),
        _primary("incidents", "id"),
    )
    op.create_index("ix_incidents_model", "incidents", ["model", "status"])
    op.create_table(
        "outbox",
        _id(),
        *_text("sink", "notification_id", "incident", "body"),
        *_int("attempts", "due_ms"),
        *_text("status", "error"),
        sa.Column("sent_ms", sa.BigInteger, nullable=True),
        *_int("stored_ms"),
        _primary("outbox", "id"),
        _unique("outbox", "sink", "notification_id"),
    )
    pending = "status = 'pending'"
    _partial("ix_outbox_pending", "outbox", ["sink", "incident", "id"], sqlite=pending, postgresql=pending)
    op.create_table(
        "reference_versions",
        *_text("model", "space"),
        *_int("version"),
        *_text("path"),
        *_int("records", "dimension"),
        *_text("checksum"),
        *_int("created_ms"),
        *_bool("active"),
        sa.Column("activated_ms", sa.BigInteger, nullable=True),
        _primary("reference_versions", "model", "space", "version"),
    )
    _partial(
        "ux_reference_versions_active",
        "reference_versions",
        ["model", "space"],
        sqlite="active = 1",
        postgresql="active",
        unique=True,
    )
