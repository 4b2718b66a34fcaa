"""The rows that go into and come out of the database, as typed records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from connectors.notification import Notification
from connectors.records import DeadLetter, Gap, Partition

MOST_BLOCKS = 4096  # of one stored summary


@dataclass(frozen=True, slots=True)
class Advance:
    """One partition moved on by a checkpoint.

    Attributes:
        expected: the next offset that this owner read before; None if the partition had no row.
        next_offset: the next offset after this checkpoint.
        max_time_ms: greatest event time seen in the partition so far; decides lateness and the watermark.
        records, dead, late: how many records this checkpoint adds to the partition's counts (dead and late are part of
            records).
        topic_id: the broker's id of the topic that the records came from; None where there is none, or it is unknown.
        scores: receipt of what was written of the records' scores, for `connectors.scores`; "" leaves the last one.
        from_offset: where counting begins, if the partition has no row yet.
    """

    partition: Partition
    expected: int | None
    next_offset: int
    max_time_ms: int
    records: int
    dead: int
    late: int
    topic_id: str | None = None
    scores: str = ""
    from_offset: int | None = None


@dataclass(frozen=True, slots=True)
class SummaryDelta:
    """What one checkpoint adds to one block. ``blob`` is the serialised summary; deltas of a block add up.

    Space "" holds the record counts of the block (records, dead letters by reason, late). A stored summary may be of
    several ``blocks``: ``block`` is the first of them.
    """

    space: str
    segment: str
    block: int
    reference: int
    partition: Partition
    first_offset: int
    blob: bytes
    blocks: int = 1


@dataclass(frozen=True, slots=True)
class ThinnedKeys:
    """Keys that one checkpoint met first in a block that is still open, where records are thinned by key.

    Attributes:
        first_offset: where the checkpoint began in the partition.
        hashes: 64-bit hashes of the keys, uint64 little-endian, ascending.
    """

    partition: Partition
    block: int
    first_offset: int
    hashes: bytes


@dataclass(frozen=True, slots=True)
class GapRow:
    """A gap, and when it was noticed: wall clock, milliseconds since 1970."""

    gap: Gap
    noticed_ms: int


@dataclass(frozen=True, slots=True)
class HalfRow:
    """One half of a request and its response, which waits for the other. ``blob`` is opaque to the database."""

    partition: Partition
    offset: int
    blob: bytes


@dataclass(frozen=True, slots=True)
class KeptRecord:
    """A record that a person may want to see: a candidate outlier, or one of the hash-chosen sample.

    Of the pseudo-space "fraud" the reason is fraud (a candidate), review (chosen by its hash, for a person to judge) or
    flood, the score is the surprise (-log10 p, continued beyond the finest p, so that it is comparable whatever the
    labels), the vector float32 as embedded, and ``detail`` holds the "probability" and the evidence.
    """

    partition: Partition
    offset: int
    time_ms: int
    space: str
    block: int
    id: str
    reason: Literal["outlier", "sample", "fraud", "review", "flood"]
    score: float
    p_value: float
    reference: int
    exemplar: int  # index of the nearest exemplar of the reference, -1 if it has none
    prediction: str | None
    confidence: float | None
    segments: dict[str, str]
    kept: dict[str, object]  # fields that settings allow to keep, after redaction
    flagged: bool = False  # set by the fold; ignored when a checkpoint writes the record
    vector: bytes | None = None  # float16 little-endian, as prepared by the reference; of fraud float32, as embedded
    row: int = 0  # among the rows of one record
    labels: int = 0  # of space "fraud": the version of the labels
    detail: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """A numbered reference of one space. ``active``: new records are scored against it."""

    model: str
    space: str
    version: int
    path: str
    records: int
    dimension: int
    checksum: str
    created_ms: int
    active: bool


LabelSource = Literal["analyst", "chargeback", "rule"]


@dataclass(frozen=True, slots=True)
class NewLabel:
    """What somebody says of one record.

    Attributes:
        record_id: the id of the record.
        label: "fraud", or "cleared": looked at, and no fraud.
        time_ms: when that was decided, milliseconds since 1970.
        source: who decides: an analyst, a chargeback, or a rule.
        confidence: in (0, 1].
        by: the name of the person or program; "" where unknown.
        origin: names the saying itself: the same one again is no new label. "topic/partition/offset" out of a topic.
        known: what is known of the record, where the label brought it along or it was found at once.
    """

    record_id: str
    label: Literal["fraud", "cleared"]
    time_ms: int
    source: LabelSource
    confidence: float
    by: str
    origin: str
    known: LabelledRecord | None = None


@dataclass(frozen=True, slots=True)
class LabelledRecord:
    """What a label needs to know of its record.

    Attributes:
        partition, offset, row: the record; offset -1 where it came with the label alone.
        event_ms: its event time.
        entity: whom it belongs to; "" where no entity is mapped.
        vector: float32 little-endian, as embedded.
        signals: float32 little-endian, as the fraud scorer saw them.
        probability, p_value: what the record was scored with when it came; NaN where it was not.
        scored_with: the version of the labels then.
        selected: why a person looked at it: "alert", "review" (chosen by its hash), or "" (neither).
        chance: how probable it was that a person would be asked, in (0, 1]; NaN where unknown.
        made_with: what made the vector and the signals (`monitor.signals.made_with`); "" where unknown.
    """

    partition: Partition
    offset: int
    row: int
    event_ms: int
    entity: str
    vector: bytes
    signals: bytes
    probability: float
    p_value: float
    scored_with: int
    selected: Literal["", "alert", "review"]
    chance: float
    made_with: str = ""


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A stored label.

    Attributes:
        id: in the order of arrival.
        version: of the model's labels, from which on it counts; 0 while its record is not known.
        received_ms: wall clock of its arrival.
        said: what was said, with what is known of the record.
    """

    id: int
    model: str
    version: int
    received_ms: int
    said: NewLabel


@dataclass(frozen=True, slots=True)
class LabelsAdded:
    """What became of labels that were brought in.

    Attributes:
        new: rows that were not there before.
        repeated: those whose origin was there already: nothing came of them.
        matched: of the new ones, those whose record is known, so that they count from now on.
        woken: of the repeated ones, those that had waited, and bring along what is known of their record.
        after, last: the numbers of the new rows: after < number <= last; no others of the model lie there.
    """

    new: int
    repeated: int
    matched: int
    woken: int = 0
    after: int = field(default=0, compare=False)
    last: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """The labels of one model, counted.

    Attributes:
        by: by source and label, each row once.
        version: of the labels: how many rows count.
        waiting: rows whose record is not known yet.
        unmatched: of them, those that have waited longer than records are remembered: nothing will come of them.
        contradicting: records of which both was said, that they are fraud and that they are not.
        superseded: rows that count for nothing, because of the same record more was said.
    """

    by: Mapping[tuple[LabelSource, str], int]
    version: int
    waiting: int
    unmatched: int
    contradicting: int
    superseded: int


@dataclass(frozen=True, slots=True)
class AskedRecord:
    """A record that people were asked about: an alert, or one of the review sample.

    Attributes:
        alerted: it was put before people as a hit.
        surprise, p_value: as scored; ``scored_with``: the version of the labels then.
        detail: the evidence.
    """

    partition: Partition
    offset: int
    row: int
    time_ms: int
    record_id: str
    alerted: bool
    surprise: float
    p_value: float
    scored_with: int
    detail: dict[str, object]

    @property
    def reviewed(self) -> bool:
        """Chosen by its hash, whatever its score."""
        return self.detail.get("review") is True


@dataclass(frozen=True, slots=True)
class LabelSpan:
    """From this offset on, records of the partition were scored with this version of the labels.

    Attributes:
        reference: the version of the fraud baseline.
    """

    partition: Partition
    from_offset: int
    version: int
    reference: int


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Something about each record of one partition in one checkpoint, for what is said of single records later.

    Attributes:
        from_ms, to_ms: event times of the records.
        ids: 64-bit hashes of the records' ids, uint64 little-endian, in the order of the blob.
        blob: what is known of them; see its maker.
        stored_ms: wall clock; 0 before it is written.
        id: number in the database; 0 before it is written.
    """

    partition: Partition
    first_offset: int
    from_ms: int
    to_ms: int
    records: int
    ids: bytes
    blob: bytes
    stored_ms: int = 0
    id: int = 0


@dataclass(frozen=True, slots=True)
class RememberedRow(PackedRow):
    """What labels need to know of the records; made by `monitor.remembered`."""


@dataclass(frozen=True, slots=True)
class AnswersRow(PackedRow):
    """What the model answered, for true answers; made by `monitor.answers`."""


@dataclass(frozen=True, slots=True)
class NewTruth:
    """What turned out to be right for one record.

    Attributes:
        record_id: the id of the record.
        truth: the right answer; a number in words for models that answer with numbers.
        time_ms: when that was known, milliseconds since 1970.
        weight: how many records this one stands for, > 0: one over the chance that it was asked about.
        origin: names the saying itself: the same one again is no new truth.
        answer: what the model had answered; None where that is not known (yet).
        confidence: how sure it was; NaN where unknown.
        event_ms: event time of the record; None where unknown.
    """

    record_id: str
    truth: str
    time_ms: int
    weight: float
    origin: str
    answer: str | None = None
    confidence: float = float("nan")
    event_ms: int | None = None


@dataclass(frozen=True, slots=True)
class TruthRow:
    """A stored truth.

    Attributes:
        id: in the order of arrival.
        version: in the order in which truths count; 0 while the model's answer is not known.
        received_ms: wall clock of its arrival.
    """

    id: int
    model: str
    version: int
    received_ms: int
    said: NewTruth


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """What the model answered to one record. ``confidence`` is NaN where unknown, ``event_ms`` None."""

    answer: str
    confidence: float
    event_ms: int | None


@dataclass(frozen=True, slots=True)
class TruthsAdded:
    """What became of truths that were brought in.

    Attributes:
        new: rows that were not there before.
        repeated: those whose origin was there already: nothing came of them.
        matched: of the new ones, those whose answer is known, so that they count from now on.
        woken: of the repeated ones, those that had waited, and bring along what the model answered.
        after, last: the numbers of the new rows: after < number <= last; no others of the model lie there.
    """

    new: int
    repeated: int
    matched: int
    woken: int = 0
    after: int = field(default=0, compare=False)
    last: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class TruthCounts:
    """The truths of one model, counted.

    Attributes:
        version: how many count, or have counted: those that retention has taken are among them.
        waiting: rows of which it is not known what the model answered.
        unmatched: of them, those that have waited longer than answers are remembered: nothing will come of them.
        corrected: rows that count, but of whose record another one says more lately what is true.
    """

    version: int
    waiting: int
    unmatched: int
    corrected: int


VerdictWord = Literal[
    "blind",
    "encoder changed",
    "degraded",
    "drifted, holding",
    "drifted",
    "mix changed",
    "watch",
    "too few records",
    "fresh",
]


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """What is said of a model after one block. Shares are 0 to 1; NaN where a number is not known.

    Attributes:
        word: the verdict, and since_ms: since when it is this one, event time.
        records: in the window that the estimates are over.
        confidence: the model's mean confidence in the window, as it says it.
        estimated: share of right answers without labels, by calibrated confidence; low, high: its interval.
        atc: the same by another method, average thresholded confidence.
        novel: share of the records that are like nothing in the baseline; unsupported: stranger than all but a
            hundredth of it.
        floor: share of right answers below which the model is degraded.
        realised: share of right answers among labelled records; realised_low, realised_high: its interval.
        labels: how many labelled records that is over.
        evidence: log10 of the e-value of the labels against the floor.
        truths: number of the last truth that this rests on.
        age_s: time since the model was trained or deployed, seconds.
        reasons: sentences for people, the weightiest first.
        metric_name, metric: another number over the same labelled records, as `performance.metric` asks for; "" and NaN
            where it asks for none.
    """

    block: int
    start_ms: int
    end_ms: int
    word: VerdictWord
    since_ms: int
    records: int
    confidence: float
    estimated: float
    low: float
    high: float
    atc: float
    novel: float
    unsupported: float
    floor: float
    realised: float
    realised_low: float
    realised_high: float
    labels: int
    evidence: float
    truths: int
    age_s: float
    reasons: tuple[str, ...]
    metric_name: str = ""
    metric: float = float("nan")


@dataclass(frozen=True, slots=True)
class EntityRow:
    """What is usual of one entity, as far as the partition has shown.

    Attributes:
        kind: name of the entity model that reads the blob.
        entity: hash of its name, a signed 64-bit number.
        offset: of its last record.
        blob: opaque to the database; empty where the entity was dropped, so that the row goes.
    """

    partition: Partition
    kind: str
    entity: int
    offset: int
    blob: bytes


@dataclass(frozen=True, slots=True)
class FloodRow:
    """Counts of near-identical records that one checkpoint added to a block that is still open."""

    partition: Partition
    block: int
    first_offset: int
    blob: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that one transaction writes.

    Attributes:
        references: new references, built from the records of this checkpoint; each becomes the active one of its space.
        gaps: records that were lost before they could be read; the advances jump over them. Where offsets are used
            again (a topic made anew, or cut at its end), what is stored of the old ones gets negative offsets, with
            what this checkpoint brings: it ends with such a gap.
        halves, joined: pending halves that came, and those (with their offsets) that are pending no more.
        incidents, outbox: what the worker itself has to tell of, such as a gap; an incident that is there is left, and
            a pair whose notification id and sink are there is skipped.
        spans: from which offsets on which labels are in force; remembered, entities, floods: what the fraud scores of
            later records, and labels, need to know of these.
        answers, truths: what the model answered, and what is known to be right, where records say so themselves.
        lane: under which name positions, and what is not finished, is written; "" is that of the model.
    """

    model: str
    advances: list[Advance]
    summaries: list[SummaryDelta] = field(default_factory=list)
    kept: list[KeptRecord] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    references: list[ReferenceRow] = field(default_factory=list)
    thinned_keys: list[ThinnedKeys] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    halves: list[HalfRow] = field(default_factory=list)
    joined: list[tuple[Partition, int]] = field(default_factory=list)
    incidents: list[IncidentRow] = field(default_factory=list)
    outbox: list[tuple[str, Notification]] = field(default_factory=list)
    spans: list[LabelSpan] = field(default_factory=list)
    remembered: list[RememberedRow] = field(default_factory=list)
    entities: list[EntityRow] = field(default_factory=list)
    floods: list[FloodRow] = field(default_factory=list)
    answers: list[AnswersRow] = field(default_factory=list)
    truths: list[NewTruth] = field(default_factory=list)
    lane: str = ""

    @property
    def work(self) -> str:
        """The name under which positions, and what is not finished, is written."""
        return self.lane or self.model

    def with_scores(self, receipt: str) -> Checkpoint:
        """The same, with the receipt of what was written of its records' scores."""
        if not receipt:
            return self
        return replace(self, advances=[replace(advance, scores=receipt) for advance in self.advances])


@dataclass(frozen=True, slots=True)
class PartitionState:
    """How far a partition was read, with its exact counts.

    Attributes:
        topic_id: the broker's id of the topic that it was read from, if known.
        idle_offset: its owner found it silent and read to its end at this next offset; void once it has moved on.
        advanced_ms: wall clock of the last checkpoint that moved it.
        closed_late: records that came after their block was closed by the wall clock; not part of ``late``.
        scores: receipt of the last checkpoint that wrote scores of its records; "" if none did.
        from_offset: records of from_offset <= offset < next_offset were counted; None where that is not known.
    """

    partition: Partition
    next_offset: int
    max_time_ms: int
    records: int
    dead: int
    late: int
    topic_id: str | None = None
    idle_offset: int | None = None
    advanced_ms: int = 0
    closed_late: int = 0
    scores: str = ""
    from_offset: int | None = None

    @property
    def idle(self) -> bool:
        """Silent, and read to its end, when its owner last looked."""
        return self.idle_offset == self.next_offset


@dataclass(frozen=True, slots=True)
class BackfillRow:
    """History that was scored, or is being scored.

    Attributes:
        lane: the name under which its unfinished work is stored; the model's where it goes on from what counts already.
        status: "scoring", "done", "taken over" (a daemon reads on from where it stood), or "cut short" (records of its
            spans are gone).
        spans: offsets first <= offset < after of each partition, with the broker's id of the topic.
        detail: settings that hold for the whole of it, JSON-compatible.
        from_ms, to_ms: what was asked for, milliseconds since 1970; None: from the first record, up to the last.
    """

    id: str
    model: str
    lane: str
    status: Literal["scoring", "done", "taken over", "cut short"]
    spans: Mapping[Partition, tuple[int, int, str | None]]
    detail: dict[str, object]
    created_ms: int
    from_ms: int | None = None
    to_ms: int | None = None
    finished_ms: int | None = None


@dataclass(frozen=True, slots=True)
class FoldState:
    """State of the alarm of one (space, segment). ``blob`` is opaque to the database."""

    space: str
    segment: str
    reference: int
    blob: bytes


@dataclass(frozen=True, slots=True)
class ReadingRow:
    """What the fold says of one block in one channel. Times in milliseconds, strength and threshold in log10 blocks."""

    space: str
    segment: str
    block: int
    start_ms: int
    end_ms: int
    channel: str
    statistic: float
    strength: float
    threshold: float  # page
    warn_threshold: float
    n: int  # records in the window that gave the strength
    effect: float  # in sigmas
    window_start_ms: int
    onset_ms: int | None
    reference: int
    page: bool
    warn: bool
    onset_from_ms: int | None = None  # the onset lies between these two, as far as one can say
    onset_to_ms: int | None = None


@dataclass(frozen=True, slots=True)
class IncidentRow:
    """A thing that a person should know, with a life.

    Attributes:
        id: hash of model, kind, space, segment and the block that opened it.
        kind: "drift", "outlier_rate", "dead_letters", ...
        detail: numbers and words for the report and the notification; JSON-compatible.
        revision: counts updates; part of the notification's id.
    """

    id: str
    model: str
    kind: str
    space: str
    segment: str
    severity: Literal["page", "warn"]
    status: Literal["open", "resolved"]
    opened_ms: int
    onset_ms: int
    updated_ms: int
    resolved_ms: int | None
    revision: int
    reference: int
    title: str
    text: str
    detail: dict[str, object]


@dataclass(frozen=True, slots=True)
class Closure:
    """Blocks below ``block`` were closed by the wall clock or the end of a source, with these next offsets."""

    block: int
    reason: Literal["idle", "stalled", "end"]
    next_offsets: dict[Partition, int]
    closed_at_ms: int


@dataclass(frozen=True, slots=True)
class BlockStatRow:
    """What a dashboard draws of one closed block of a space's whole traffic; of all spaces together where it is "".

    Attributes:
        records: of the space; for space "" all that came in the block, late and unusable ones included.
        late, dead: 0 but for space "".
        confidence: the model's mean confidence; NaN where it says none.
        surprise: how many records have a p-value in each of the ten classes of `monitor.block_stats.SURPRISE_BELOW`.
    """

    space: str
    block: int
    start_ms: int
    end_ms: int
    reference: int
    records: int
    late: int
    dead: int
    confidence: float
    surprise: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Silences:
    """The longest times in which a stream brought nothing, in seconds, descending; and how long that past is."""

    longest_s: tuple[float, ...]
    span_s: float


@dataclass(frozen=True, slots=True)
class DeploymentRow:
    """A version of the watched model, and the first block that holds records of it."""

    version: str
    block: int
    start_ms: int


@dataclass(frozen=True, slots=True)
class MuteRow:
    """From when until when nobody is told, and of what.

    Attributes:
        id: 8 hexadecimal digits.
        model, kind, space, segment: what it is about; "" stands for all.
        from_ms, until_ms: wall clock, milliseconds since 1970.
        reason, by: what the person said, and who that was.
    """

    id: str
    model: str
    kind: str
    space: str
    segment: str
    from_ms: int
    until_ms: int
    reason: str
    by: str
    created_ms: int

    def covers(self, told: Notification | IncidentRow) -> bool:
        """Whether this is about a notification or an incident. Says nothing of when: `Store.mutes` does."""
        about = ((self.model, told.model), (self.kind, told.kind), (self.space, told.space))
        return all(not asked or asked == found for asked, found in (*about, (self.segment, told.segment)))


@dataclass(frozen=True, slots=True)
class FraudHit:
    """A record that is put before people, or could be: a kept candidate of space "fraud", without its evidence."""

    space: str
    partition: Partition
    offset: int
    row: int
    surprise: float
    probability: float
    labels: int  # version of the labels that it was scored with
    segments: dict[str, str]


@dataclass(frozen=True, slots=True)
class SaidLate:
    """Records that came after their block was closed: those from_ms <= event time < to_ms from an offset on."""

    partition: Partition
    first_offset: int
    from_ms: int
    to_ms: int


@dataclass(frozen=True, slots=True)
class FoldResult:
    """Everything that one step of the fold writes, in one transaction, if the fold's version is still the expected one.

    Attributes:
        next_block: blocks below it are closed now.
        merged: one summary for each (space, segment, block, reference) that was closed; replaces the deltas.
        flag_at: per (space, block), kept candidates with score >= the value are flagged as outliers.
        outbox: (sink name, notification) pairs; a pair whose notification id and sink are there already is skipped.
        closed_late: records of blocks that were closed before they came, to be added to the counts of their partitions.
        stats: of the closed blocks; replaces what is there.
        deployments: versions of the model that were not seen before; those that are known are left.
        hits: candidates of space "fraud" that are flagged, each by itself.
        verdicts: one for each closed block; replaces what is there.
        said_late: whose truths that they say themselves count for no block.
    """

    next_block: int
    merged: list[SummaryDelta]
    states: list[FoldState]
    readings: list[ReadingRow]
    incidents: list[IncidentRow]
    outbox: list[tuple[str, Notification]]
    flag_at: dict[tuple[str, int], float] = field(default_factory=dict)
    closure: Closure | None = None
    closed_late: dict[Partition, int] = field(default_factory=dict)
    stats: list[BlockStatRow] = field(default_factory=list)
    deployments: list[DeploymentRow] = field(default_factory=list)
    hits: list[FraudHit] = field(default_factory=list)
    verdicts: list[VerdictRow] = field(default_factory=list)
    said_late: list[SaidLate] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A notification on its way to one sink.

    ``held``: a mute covers it; ``muted``: nobody wanted to be told, and it is over.
    """

    sink: str
    notification: Notification
    attempts: int
    due_ms: int
    status: Literal["pending", "held", "sent", "dead", "muted"]
    error: str
    stored_ms: int = 0


@dataclass(frozen=True, slots=True)
class WaitingModel:
    """What waits for one sink about one model. Times by the wall clock, in milliseconds since 1970.

    Attributes:
        page_ms: when the oldest news of a page was stored (a page opened, reopened, or a warning that became one); None
            if there is none.
        other_ms: the same of everything else.
        sending: some of it is on its way, or waits for another attempt.
        told_ms: the last message about the model; None if that is long ago.
        told_page_ms: the last message with a page about the model.
    """

    model: str
    page_ms: int | None = None
    other_ms: int | None = None
    sending: bool = False
    told_ms: int | None = None
    told_page_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Everything that waits for one sink. ``messages``: how many went to it within the last minute."""

    models: tuple[WaitingModel, ...]
    messages: int


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """A stored dead letter with its number in the database.

    Attributes:
        stored_ms: when it was stored, by the wall clock.
        published: it is in the dead-letter topic.
    """

    id: int
    model: str
    letter: DeadLetter
    stored_ms: int = 0
    published: bool = False


@dataclass(frozen=True, slots=True)
class StoredLetters:
    """How many dead letters of a model are stored with one reason, and the number of the newest."""

    model: str
    reason: str
    stored: int
    newest: int


@dataclass(frozen=True, slots=True)
class Retried:
    """What came of dead letters whose records were read again, for one transaction.

    Attributes:
        mended: letters that go, because their records are good now.
        changed: letters that stay, each with what is wrong now.
        added: further letters, of records that turned out to hold several rows.
        more_records: for such records, by how many their partitions' counts grow.
        usable: how many records are good now, by partition and block.
        summaries, kept, thinned_keys, answers: what they add, as a checkpoint would; first offsets are given by the
            store.
        truths: what they say is true.
        block_ms: length of the blocks; what is said by records of a closed one counts for none.
    """

    model: str
    mended: list[DeadLetterRow]
    changed: list[tuple[DeadLetterRow, DeadLetter]]
    usable: dict[tuple[Partition, int], int]
    summaries: list[SummaryDelta]
    kept: list[KeptRecord]
    thinned_keys: list[ThinnedKeys]
    added: list[DeadLetter] = field(default_factory=list)
    more_records: dict[Partition, int] = field(default_factory=dict)
    answers: list[AnswersRow] = field(default_factory=list)
    truths: list[NewTruth] = field(default_factory=list)
    block_ms: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """What happened to a model's records. Exact for ever, but ``kept`` and ``flagged``: these rows are still stored."""

    records: int
    dead: int
    late: int
    kept: int
    flagged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long rows stay (days since they were written), and how many at most; the oldest go first.

    Incidents, references, positions and counts are never deleted, and neither are notifications that are not sent yet.
    """

    kept_days: float = 30.0
    kept_rows: int = 1_000_000
    dead_letters_days: float = 30.0
    dead_letter_rows: int = 100_000
    readings_days: float = 90.0
    reading_rows: int = 5_000_000
    summaries_days: float = 90.0
    summary_rows: int = 1_000_000
    outbox_days: float = 30.0
    outbox_rows: int = 100_000
    remembered_days: float = 120.0
    remembered_mb: float = 1024.0
    answers_days: float = 120.0
    answers_mb: float = 1024.0
