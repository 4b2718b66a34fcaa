"""The tables. A change here needs a new file in migrations/versions; a test compares the two.

``position`` is a record's offset (OFFSET is a word of SQL). Times are milliseconds since 1970. ``stored_ms`` is when
the row was written, by the wall clock; retention goes by it, so that history scored today stays as long as today's
records.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

# The newest file in migrations/versions. Four digits: a greater text is a newer schema.
REVISION = "0007"

metadata = MetaData(naming_convention={"pk": "pk_%(table_name)s", "uq": "uq_%(table_name)s"})


def _id() -> Column[int]:
    # SQLite counts by itself only where the type is exactly INTEGER.
    return Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False)


def _int(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _added(name: str) -> Column[int]:
    # Of a later schema: the rows that were there before have 0.
    return Column(name, BigInteger, nullable=False, server_default="0")


def _new_text(name: str) -> Column[str]:
    # Of a later schema, too.
    return Column(name, Text, nullable=False, server_default="")


def _float(name: str) -> Column[float]:
    # Nullable, because NaN is stored as NULL: SQLite has no NaN.
    return Column(name, Double, nullable=True)


def _blob(name: str) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=False)


def _bool(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False)


def _partial(name: str, *columns: str, sqlite: str, postgresql: str) -> Index:
    return Index(name, *columns, sqlite_where=text(sqlite), postgresql_where=text(postgresql))


partitions = Table(
    "partitions",
    metadata,
    _text("model"),
    _text("topic"),
    _int("number"),
    _int("next_offset"),
    _int("max_time_ms"),
    _int("records"),
    _int("dead"),
    _int("late"),  # of their own partition
    Column("topic_id", Text, nullable=True),  # the broker's id of the topic; another one means that it was made anew
    Column("idle_offset", BigInteger, nullable=True),  # silent at its end, as long as this is the next offset
    _added("advanced_ms"),  # wall clock of the last checkpoint that moved it
    _added("closed_late"),  # records whose block the wall clock had closed before they came
    _new_text("scores"),  # receipt of the last checkpoint whose records' scores have to be shown once it is committed
    Column("from_offset", BigInteger, nullable=True),  # where its counting began; unknown of rows of earlier schemas
    PrimaryKeyConstraint("model", "topic", "number"),
)

# What checkpoints add to blocks that are still open. The unique key is a second guard against counting twice.
summary_deltas = Table(
    "summary_deltas",
    metadata,
    _id(),
    _text("model"),
    _int("block"),
    _text("space"),
    _text("segment"),
    _int("reference"),
    _text("topic"),
    _int("number"),
    _int("first_offset"),
    _blob("blob"),
    UniqueConstraint("model", "block", "space", "segment", "reference", "topic", "number", "first_offset"),
)

# Hashes of the keys that one checkpoint met first in a block that is still open, where records are thinned by key.
thinned_keys = Table(
    "thinned_keys",
    metadata,
    _text("model"),
    _text("topic"),
    _int("number"),
    _int("block"),
    _int("first_offset"),
    _blob("blob"),
    PrimaryKeyConstraint("model", "topic", "number", "block", "first_offset"),
)

# One merged summary per closed block, or per ``blocks`` of them, of which ``block`` is the first: for replay and the
# report.
summaries = Table(
    "summaries",
    metadata,
    _id(),
    _text("model"),
    _text("space"),
    _text("segment"),
    _int("block"),
    _int("reference"),
    _blob("blob"),
    _int("stored_ms"),
    Column("blocks", BigInteger, nullable=False, server_default="1"),
    UniqueConstraint("model", "space", "segment", "block", "reference"),
    Index("ix_summaries_block", "model", "block", "blocks"),
)

kept = Table(
    "kept",
    metadata,
    _id(),
    _text("model"),
    _text("space"),
    _text("topic"),
    _int("number"),
    _int("position"),
    _int("time_ms"),
    _int("block"),
    _text("record_id"),
    _text("reason"),
    _float("score"),
    _float("p_value"),
    _int("reference"),
    _int("exemplar"),
    Column("prediction", Text, nullable=True),
    _float("confidence"),
    _text("segments"),
    _text("fields"),
    _bool("flagged"),
    _int("stored_ms"),
    Column("vector", LargeBinary, nullable=True),
    _added("row"),  # among the rows of one record
    _added("labels"),  # of space "fraud": the version of the labels that it was scored with
    _new_text("detail"),  # of space "fraud": the evidence
    UniqueConstraint("model", "space", "topic", "number", "position", "row"),
    Index("ix_kept_block", "model", "space", "block"),
    Index("ix_kept_record", "model", "record_id"),
    Index("ix_kept_time", "model", "time_ms"),
    _partial("ix_kept_flagged", "model", "score", sqlite="flagged = 1", postgresql="flagged"),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    _id(),
    _text("model"),
    _text("topic"),
    _int("number"),
    _int("position"),
    _int("time_ms"),
    _text("reason"),
    _text("detail"),
    _blob("payload"),
    _int("size"),
    _bool("published"),
    _int("stored_ms"),
    Column("row", BigInteger, nullable=False, server_default="-1"),  # of many; -1 where all of it cannot be used
    Column("block", BigInteger, nullable=True),  # the block that it is counted in, as no better time is known
    Index("ix_dead_letters_model", "model", "id"),
    _partial("ix_dead_letters_unpublished", "model", "id", sqlite="published = 0", postgresql="NOT published"),
)

# Counted per partition, so that two workers never wait for one row.
dead_letter_counts = Table(
    "dead_letter_counts",
    metadata,
    _text("model"),
    _text("topic"),
    _int("number"),
    _text("reason"),
    _int("count"),
    PrimaryKeyConstraint("model", "topic", "number", "reason"),
)

# Records that were gone before they could be read.
gaps = Table(
    "gaps",
    metadata,
    _text("model"),
    _text("topic"),
    _int("number"),
    _int("from_offset"),
    _int("to_offset"),
    _text("reason"),
    _text("detail"),
    _int("noticed_ms"),
    PrimaryKeyConstraint("model", "topic", "number", "from_offset", "to_offset", "reason", "noticed_ms"),
)

# What the first record of a topic looked like, where the settings leave the format open: it holds from then on.
formats = Table(
    "formats",
    metadata,
    _text("model"),
    _text("topic"),
    _text("format"),
    _int("pinned_ms"),
    PrimaryKeyConstraint("model", "topic"),
)

# Requests and responses whose other half has not come yet, as bytes.
pending_halves = Table(
    "pending_halves",
    metadata,
    _text("model"),
    _text("topic"),
    _int("number"),
    _int("position"),
    _blob("blob"),
    PrimaryKeyConstraint("model", "topic", "number", "position"),
)

folds = Table(
    "folds",
    metadata,
    _text("model"),
    _int("version"),
    _int("next_block"),
    PrimaryKeyConstraint("model"),
)

fold_states = Table(
    "fold_states",
    metadata,
    _text("model"),
    _text("space"),
    _text("segment"),
    _int("reference"),
    _int("written"),  # the fold's version that wrote it
    _blob("blob"),
    PrimaryKeyConstraint("model", "space", "segment", "reference"),
)

closures = Table(
    "closures",
    metadata,
    _id(),
    _text("model"),
    _int("block"),
    _text("reason"),
    _text("next_offsets"),
    _int("closed_at_ms"),
    Index("ix_closures_model", "model", "block"),
)

readings = Table(
    "readings",
    metadata,
    _id(),
    _text("model"),
    _text("space"),
    _text("segment"),
    _int("block"),
    _int("start_ms"),
    _int("end_ms"),
    _text("channel"),
    _float("statistic"),
    _float("strength"),
    _float("threshold"),
    _float("warn_threshold"),
    _int("n"),
    _float("effect"),
    _int("window_start_ms"),
    Column("onset_ms", BigInteger, nullable=True),
    _int("reference"),
    _bool("page"),
    _bool("warn"),
    _int("stored_ms"),
    Column("onset_from_ms", BigInteger, nullable=True),
    Column("onset_to_ms", BigInteger, nullable=True),
    UniqueConstraint("model", "space", "segment", "block", "channel", "reference"),
    Index("ix_readings_time", "model", "start_ms"),
)

incidents = Table(
    "incidents",
    metadata,
    _text("id"),
    _text("model"),
    _text("kind"),
    _text("space"),
    _text("segment"),
    _text("severity"),
    _text("status"),
    _int("opened_ms"),
    _int("onset_ms"),
    _int("updated_ms"),
    Column("resolved_ms", BigInteger, nullable=True),
    _int("revision"),
    _int("reference"),
    _text("title"),
    _text("text"),
    _text("detail"),
    PrimaryKeyConstraint("id"),
    Index("ix_incidents_model", "model", "status"),
)

outbox = Table(
    "outbox",
    metadata,
    _id(),
    _text("sink"),
    _text("notification_id"),
    _text("incident"),
    _text("body"),
    _int("attempts"),
    _int("due_ms"),
    _text("status"),
    _text("error"),
    Column("sent_ms", BigInteger, nullable=True),  # of the last message that it was in, whatever came of that
    _int("stored_ms"),
    _new_text("model"),  # what a group is made by
    _new_text("severity"),
    _new_text("event"),
    UniqueConstraint("sink", "notification_id"),
    _partial(
        "ix_outbox_pending", "sink", "incident", "id", sqlite="status = 'pending'", postgresql="status = 'pending'"
    ),
    Index("ix_outbox_sent", "sink", "sent_ms"),
    Index("ix_outbox_incident", "sink", "incident", "id"),
)

# When nobody wants to be told, and of what. "" in model, kind, space or segment stands for all of them.
mutes = Table(
    "mutes",
    metadata,
    _text("id"),
    _text("model"),
    _text("kind"),
    _text("space"),
    _text("segment"),
    _int("from_ms"),
    _int("until_ms"),
    _text("reason"),
    _text("by"),
    _int("created_ms"),
    PrimaryKeyConstraint("id"),
)

# The versions of a watched model that its stream names, each with the first block that holds records of it.
deployments = Table(
    "deployments",
    metadata,
    _text("model"),
    _text("version"),
    _int("block"),
    _int("start_ms"),
    _int("stored_ms"),
    PrimaryKeyConstraint("model", "version"),
)

# What a dashboard draws of a closed block: numbers that stand inside the summaries, where SQL cannot see them. Space ""
# holds the counts of the whole block.
block_stats = Table(
    "block_stats",
    metadata,
    _id(),
    _text("model"),
    _text("space"),
    _int("block"),
    _int("start_ms"),
    _int("end_ms"),
    _int("reference"),
    _int("records"),
    _int("late"),
    _int("dead"),
    _float("confidence"),
    *(_int(f"surprise_{number}") for number in range(10)),
    _int("stored_ms"),
    UniqueConstraint("model", "space", "block", "reference"),
    Index("ix_block_stats_time", "model", "start_ms"),
)

# What people and other systems say of single records: never changed, but for what is known of the record itself.
labels = Table(
    "labels",
    metadata,
    _id(),
    _text("model"),
    _text("record_id"),
    _text("label"),
    _text("source"),
    _text("by"),
    _text("origin"),  # what it came as: the same again is no new label
    _int("time_ms"),
    _int("received_ms"),
    _int("version"),  # of the labels, from which on it counts; 0 while its record is not known
    _float("confidence"),
    _float("probability"),
    _float("p_value"),
    _float("chance"),
    Column("topic", Text, nullable=True),
    Column("entity", Text, nullable=True),
    Column("selected", Text, nullable=True),
    Column("made_with", Text, nullable=True),
    Column("number", BigInteger, nullable=True),
    Column("position", BigInteger, nullable=True),
    Column("row", BigInteger, nullable=True),
    Column("event_ms", BigInteger, nullable=True),
    Column("scored_with", BigInteger, nullable=True),
    Column("vector", LargeBinary, nullable=True),
    Column("signals", LargeBinary, nullable=True),
    UniqueConstraint("model", "origin"),
    Index("ix_labels_version", "model", "version"),
    Index("ix_labels_record", "model", "record_id"),
)

# How many versions of its labels a model has had.
label_versions = Table("label_versions", metadata, _text("model"), _int("version"), PrimaryKeyConstraint("model"))

# From which offset on the records of a partition were scored with which version of the labels and the fraud baseline.
label_spans = Table(
    "label_spans",
    metadata,
    _text("model"),
    _text("topic"),
    _int("number"),
    _int("from_offset"),
    _int("version"),
    _int("reference"),
    PrimaryKeyConstraint("model", "topic", "number", "from_offset"),
)

# How far the topics of labels were read.
label_offsets = Table(
    "label_offsets",
    metadata,
    _text("model"),
    _text("topic"),
    _int("number"),
    _int("next_offset"),
    Column("topic_id", Text, nullable=True),
    PrimaryKeyConstraint("model", "topic", "number"),
)


def _packed(name: str) -> Table:
    """Something about each record of one checkpoint, for what is said of single records later."""
    return Table(
        name,
        metadata,
        _id(),
        _text("model"),
        _text("topic"),
        _int("number"),
        _int("first_offset"),
        _int("from_ms"),
        _int("to_ms"),
        _int("records"),
        _int("bytes"),
        _int("stored_ms"),
        # At the end, because SQLite reads through all that stands before a column.
        _blob("ids"),  # hashes of the records' ids: what is asked for is found without reading the rest
        _blob("blob"),
        UniqueConstraint("model", "topic", "number", "first_offset"),
    )


remembered = _packed("remembered")  # what labels need to know of the records
answers = _packed("answers")  # what the model answered, for true answers

# What turned out to be right for single records; with what the model had answered, once that is known.
truths = Table(
    "truths",
    metadata,
    _id(),
    _text("model"),
    _text("record_id"),
    _text("truth"),
    _text("origin"),  # what it came as: the same again is no new truth
    _int("time_ms"),
    _int("received_ms"),
    _int("version"),  # in the order in which truths count; 0 while the model's answer is not known
    _float("weight"),
    _float("confidence"),
    Column("answer", Text, nullable=True),
    Column("event_ms", BigInteger, nullable=True),
    UniqueConstraint("model", "origin"),
    Index("ix_truths_version", "model", "version"),
    Index("ix_truths_record", "model", "record_id"),
    Index("ix_truths_time", "model", "event_ms"),
)

# How many of a model's truths count.
truth_versions = Table("truth_versions", metadata, _text("model"), _int("version"), PrimaryKeyConstraint("model"))

# What is said of a model after each block: one word, and the numbers behind it.
verdicts = Table(
    "verdicts",
    metadata,
    _id(),
    _text("model"),
    _int("block"),
    _int("start_ms"),
    _int("end_ms"),
    _text("word"),
    _int("since_ms"),
    _int("records"),
    *map(
        _float,
        (
            "confidence",
            "estimated",
            "low",
            "high",
            "atc",
            "novel",
            "unsupported",
            "floor",
            "realised",
            "realised_low",
            "realised_high",
            "metric",
            "evidence",
            "age_s",
        ),
    ),
    _int("labels"),
    _int("truths"),
    _text("metric_name"),
    _text("reasons"),
    _int("stored_ms"),
    UniqueConstraint("model", "block"),
    Index("ix_verdicts_time", "model", "start_ms"),
)

# What is usual of a card, a user, a merchant, as far as one partition has seen it.
entity_states = Table(
    "entity_states",
    metadata,
    _text("model"),
    _text("kind"),
    _text("topic"),
    _int("number"),
    _int("entity"),  # the hash of its name, as a signed number
    _int("position"),  # offset of its last record
    _blob("blob"),
    PrimaryKeyConstraint("model", "kind", "topic", "number", "entity"),
)

# Counts of near-identical records that one checkpoint added to a block that is still open.
flood_counts = Table(
    "flood_counts",
    metadata,
    _text("model"),
    _text("topic"),
    _int("number"),
    _int("block"),
    _int("first_offset"),
    _blob("blob"),
    PrimaryKeyConstraint("model", "topic", "number", "block", "first_offset"),
)

# History that was scored, or is being scored. ``lane`` names the rows of its unfinished work in other tables, where the
# model's name would stand; it is the model's where these are the model's own.
backfills = Table(
    "backfills",
    metadata,
    _text("id"),
    _text("model"),
    _text("lane"),
    _text("status"),
    _text("spans"),
    _text("detail"),
    _int("created_ms"),
    Column("from_ms", BigInteger, nullable=True),
    Column("to_ms", BigInteger, nullable=True),
    Column("finished_ms", BigInteger, nullable=True),
    PrimaryKeyConstraint("id"),
    Index("ix_backfills_model", "model", "created_ms"),
)

references = Table(
    "reference_versions",  # REFERENCES is a word of SQL
    metadata,
    _text("model"),
    _text("space"),
    _int("version"),
    _text("path"),
    _int("records"),
    _int("dimension"),
    _text("checksum"),
    _int("created_ms"),
    _bool("active"),
    Column("activated_ms", BigInteger, nullable=True),
    PrimaryKeyConstraint("model", "space", "version"),
    Index(
        "ux_reference_versions_active",
        "model",
        "space",
        unique=True,
        sqlite_where=text("active = 1"),
        postgresql_where=text("active"),
    ),
)


@cache
def insert_ignoring(table: Table, *, dialect: str) -> Any:
    """An INSERT that skips rows whose key is there already; the count of rows says how many were new."""
    return _insert(table, dialect).on_conflict_do_nothing()


@cache
def upsert(table: Table, key: tuple[str, ...], *, dialect: str, leave: tuple[str, ...] = (), add: str = "") -> Any:
    """An INSERT that replaces the row with the same ``key``.

    Args:
        key: the columns of the primary or unique key.
        leave: columns that keep the value they have.
        add: a column to which the new value is added; all others are left.
    """
    insert = _insert(table, dialect)
    if add:
        changes = {add: table.c[add] + insert.excluded[add]}
    else:
        skip = {"id", *key, *leave}
        changes = {column.name: insert.excluded[column.name] for column in table.columns if column.name not in skip}
    return insert.on_conflict_do_update(index_elements=list(key), set_=changes)


def _insert(table: Table, dialect: str) -> Any:
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as postgresql_insert

        return postgresql_insert(table)
    from sqlalchemy.dialects.sqlite import insert as sqlite_insert

    return sqlite_insert(table)
