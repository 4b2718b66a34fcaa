"""The fraud stage of the pipeline: every record of one space is scored as fraud, and what that takes is remembered.

What the stage says of a record depends on the records before it in its partition and on the version of the labels that
is in force there. A newer version is taken up only between two checkpoints, and the transaction of the first checkpoint
that is scored with it says so (`LabelSpan`). History is scored with the versions that were in force, or, when asked,
with the newest one: the same records then have the same scores, entities and floods, however they are cut.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from connectors.database.rows import (
    EntityRow,
    FloodRow,
    KeptRecord,
    LabelledRecord,
    LabelSpan,
    RememberedRow,
)
from connectors.records import Partition, RawBatch
from connectors.scores import FraudColumns
from detectors.conformal import position_uniforms
from detectors.fraud import FraudScores
from detectors.reference import Scored
from monitor import remembered
from monitor.entities import ScatterWatch
from monitor.event import EventBatch
from monitor.flood import Floods
from monitor.fraud_build import FraudParts
from monitor.fraud_evidence import evidence_of
from monitor.fraud_learner import Fitted
from monitor.fraud_past import Past
from monitor.fraud_settings import FRAUD_SPACE, FraudSettings
from monitor.fraud_signals import arranged, hashes_of, made_with, numbers_of, of_vectors
from monitor.kept import kept_record
from monitor.record_counts import FraudCounts, fraud_counts_of

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]

_VERSION = struct.Struct("<q")  # of what was fitted on the baseline, before the counts of a flood's cells
MOST_KEPT = 10_000  # rows of a checkpoint; the caller writes it before more are collected
MOST_REMEMBERED_BYTES = 64 << 20  # vectors and signals of a checkpoint; likewise


class FittedVersions(Protocol):
    """The scorers: `monitor.fraud_learner.Learner`."""

    def latest(self) -> Fitted:
        """The newest one. Never waits."""

    def at(self, version: int) -> Fitted:
        """That of a version of the labels."""


class StoredStates(Protocol):
    """What former checkpoints wrote: `connectors.database.store.Store`."""

    def label_spans(self, model: str, partition: Partition | None = None) -> list[LabelSpan]:
        """Which versions were in force, by offset."""

    def entity_states(self, model: str, partition: Partition) -> list[EntityRow]:
        """The entities of a partition."""

    def flood_counts(self, model: str, partition: Partition) -> list[FloodRow]:
        """The counts of its open blocks."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What the stage says of a batch.

    Attributes:
        columns: of every record, for other programs.
        counts: by block, of those on time.
    """

    columns: FraudColumns
    counts: dict[int, FraudCounts]


@dataclass(frozen=True, slots=True)
class FraudRows:
    """What a checkpoint writes of the stage; see `Checkpoint`."""

    kept: list[KeptRecord] = field(default_factory=list)
    spans: list[LabelSpan] = field(default_factory=list)
    remembered: list[RememberedRow] = field(default_factory=list)
    entities: list[EntityRow] = field(default_factory=list)
    floods: list[FloodRow] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """A batch that no checkpoint has written.

    Attributes:
        signals: float32 (n, s), probability, p_value: as scored by ``fitted``.
        entities: uint64 (n,), 0 for nobody's; None where no entity is mapped.
    """

    events: EventBatch
    fitted: Fitted
    vectors: Floats
    signals: Floats
    scores: FraudScores
    entities: Hashes | None


@dataclass(frozen=True, slots=True, eq=False)
class _KeptPiece:
    """Rows of a piece that are kept, and their places among the stage's kept rows."""

    fitted: Fitted
    places: list[int]
    vectors: Floats
    signals: Floats


@dataclass(slots=True)
class _Partition:
    """What is known of a partition.

    Attributes:
        span: the last one that is stored, and
        new: one that the next checkpoint writes.
        floods: near-identical records of its open blocks.
        past: its entities and pairs.
        pieces: batches that no checkpoint has written.
    """

    span: LabelSpan | None
    floods: Floods
    past: Past
    new: LabelSpan | None = None
    pieces: list[_Piece] = field(default_factory=list)
    jumped: bool = False


class FraudStage:
    """Scores the records of one space as fraud.

    Args:
        model: the model's name.
        settings: of its fraud scores.
        space: the space whose vectors are scored.
        parts: what was fitted on the baseline.
        versions: the scorers.
        stored: what former checkpoints wrote.
        history: which versions were in force where; None for records that get the newest one that is ready.

    Attributes:
        space: as given.
        candidates: records since the last checkpoint with a p-value of at most `fraud.alpha`, on time.
        dropped: entities that the next checkpoint drops, because there are too many.
    """

    def __init__(
        self,
        model: str,
        settings: FraudSettings,
        *,
        space: str,
        parts: FraudParts,
        versions: FittedVersions,
        stored: StoredStates,
        history: Sequence[LabelSpan] | None = None,
    ) -> None:
        self.space = space
        self.parts = parts
        self._model = model
        self._scatter = ScatterWatch(model)
        self._settings = settings
        self._versions = versions
        self._stored = stored
        self._history: dict[Partition, list[LabelSpan]] | None = None
        if history is not None:
            self._history = {}
            for span in sorted(history, key=lambda span: span.from_offset):
                self._history.setdefault(span.partition, []).append(span)
        self._made_with = made_with(parts)
        self._least_flood = max(parts.flood.least, settings.flood.least)
        self._segments = {name: tuple(name.split("=", 1)) for name in settings.alerts.segments}
        self._known: dict[Partition, _Partition] = {}
        self._in_force: Fitted | None = None
        self._clear()

    # ---- what the pipeline calls -----------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """The checkpoint should be written before more records are taken in."""
        return len(self._kept) >= MOST_KEPT or self._bytes >= MOST_REMEMBERED_BYTES

    @property
    def version(self) -> int:
        """Of the labels that the last records were scored with; 0 before the first."""
        return 0 if self._in_force is None else self._in_force.version

    @property
    def outdated(self) -> bool:
        """A scorer that knows newer labels waits for the next checkpoint."""
        if self._history is not None or not self._began or self._in_force is None:
            return False
        return self._versions.latest().version != self._in_force.version

    def of_one_version(self, batch: RawBatch) -> RawBatch:
        """The first records of a batch that are scored with one version: all of them, unless this is history."""
        if self._history is None or len(batch) == 0:
            return batch
        spans = self._history.get(batch.partition, [])
        after = bisect_right(spans, int(batch.offsets[0]), key=lambda span: span.from_offset)
        if after == len(spans):
            return batch
        return batch.rows(0, int(np.searchsorted(batch.offsets, spans[after].from_offset)))

    def take(
        self, events: EventBatch, vectors: Floats, scored: Scored, *, blocks: Int64s, late: Bools, at: int
    ) -> Taken:
        """Score a batch.

        Args:
            vectors: float32 (n, d), as embedded.
            scored: what the space's reference says of them.
            blocks: int64 (n,), the block of each event.
            late: bool (n,), those that came too late for their block: scored, neither kept nor counted.
            at: how far the partition was read when they came out.
        """
        place = self._partition(events.partition)
        fitted = self._fitted(events.partition, place, at)
        n = len(events)
        entities = None if self._settings.entity is None else hashes_of(events, self._settings.entity.field)
        columns = arranged(
            self.parts,
            n,
            {
                **self._own_signals(events, vectors, scored.p_value),
                **place.past.signals(events, vectors, entities),
            },
        )
        topic, number = events.partition
        scores = fitted.scorer.assess(
            vectors,
            signals=columns,
            uniforms=position_uniforms(topic, number, events.offsets, rows=events.rows, purpose="fraud"),
            scored=scored,
        )
        if fitted.scorer.n_cases == 0:  # how strange a record is, is no probability of fraud
            scores = replace(scores, probability=np.full(n, np.nan, np.float32))
        flood = place.floods.push(events, scored.x, blocks=blocks, late=late)
        if n:
            place.pieces.append(_Piece(events, fitted, vectors, columns, scores, entities))
            self._bytes += vectors.nbytes + columns.nbytes
            self._keep(place.pieces[-1], flood, blocks, late, known=place.past.known)
        on_time = np.flatnonzero(~late)
        self.candidates += int(np.count_nonzero(scores.p_value[on_time] <= self._settings.alpha))
        return Taken(
            FraudColumns(scores.probability, scores.p_value, np.full(n, fitted.version, np.int64), flood),
            self._counted(events, blocks, on_time, scores, flood, labelled=fitted.scorer.n_cases > 0),
        )

    def close(self, partition: Partition, below: int) -> None:
        """Blocks below ``below`` get no more records in time."""
        self._partition(partition).floods.close(below)

    def jumped(self, partition: Partition) -> None:
        """Offsets of the partition may be used again: with the next checkpoint its rows are read anew."""
        self._partition(partition).jumped = True

    def rows(self, first_offsets: Mapping[Partition, int]) -> FraudRows:
        """What the next checkpoint writes.

        Args:
            first_offsets: of its partitions, where it begins.
        """
        rows = FraudRows(kept=self._with_evidence())
        for partition, first_offset in sorted(first_offsets.items()):
            place = self._known.get(partition)
            if place is None:
                continue
            if place.new is not None:
                rows.spans.append(place.new)
            rows.entities.extend(place.past.rows(partition))
            self.dropped += place.past.dropped()
            version = _VERSION.pack(self.parts.version)
            floods = place.floods.unwritten(partition, first_offset)
            rows.floods.extend(replace(row, blob=version + row.blob) for row in floods)
            if place.pieces:
                rows.remembered.append(self._remembered(partition, first_offset, place.pieces))
        self._scatter.look(rows.entities)
        return rows

    def written(self) -> None:
        """The checkpoint was committed."""
        for partition, place in list(self._known.items()):
            if place.jumped:
                del self._known[partition]
                continue
            place.span, place.new = place.new or place.span, None
            place.past.written()
            place.floods.written()
            place.pieces = []
        self._clear()

    def discard(self) -> None:
        """Forget everything since the last checkpoint: the records come again."""
        self._known.clear()
        self._clear()

    # ---- for labels that bring their record ------------------------------------------------------------------------

    def describe(self, events: EventBatch, vectors: Floats) -> list[LabelledRecord]:
        """What a label needs to know of records that it brought along: neither their past nor their score is known.

        Args:
            vectors: float32 (n, d), as embedded.
        """
        p_value = self.parts.reference.score(vectors).p_value
        columns = arranged(self.parts, len(events), self._own_signals(events, vectors, p_value))
        entities = None if self._settings.entity is None else hashes_of(events, self._settings.entity.field)
        names = [""] * len(events) if entities is None else [name or "" for name in _names(entities)]
        return [
            LabelledRecord(
                partition=events.partition,
                offset=-1,
                row=int(events.rows[row]),
                event_ms=int(events.time_ms[row]),
                entity=names[row],
                vector=vectors[row].astype("<f4").tobytes(),
                signals=columns[row].astype("<f4").tobytes(),
                probability=float("nan"),
                p_value=float("nan"),
                scored_with=0,
                selected="",
                chance=float("nan"),
                made_with=self._made_with,
            )
            for row in range(len(events))
        ]

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        self._kept: list[KeptRecord] = []
        self._kept_pieces: list[_KeptPiece] = []
        self._bytes = 0
        self._began = False
        self.candidates = 0
        self.dropped = 0

    def _partition(self, partition: Partition) -> _Partition:
        place = self._known.get(partition)
        if place is None:
            # Rows below zero are of a topic that was made anew since.
            spans = [] if self._history is not None else self._stored.label_spans(self._model, partition)
            spans = [span for span in spans if span.from_offset >= 0]
            place = self._known[partition] = self._place(partition, spans[-1] if spans else None)
        return place

    def _place(self, partition: Partition, span: LabelSpan | None) -> _Partition:
        parts, settings = self.parts, self._settings
        floods = self._stored.flood_counts(self._model, partition)
        version = _VERSION.pack(parts.version)
        # Counts of another baseline's cells say nothing of these; rows below zero are of a topic that was made anew.
        floods = [row for row in floods if row.first_offset >= 0 and row.blob.startswith(version)]
        mine = [replace(row, blob=row.blob[len(version) :]) for row in floods]
        rows = self._stored.entity_states(self._model, partition)
        return _Partition(span, Floods(parts.flood, mine), Past(parts, settings, rows))

    def _fitted(self, partition: Partition, place: _Partition, at: int) -> Fitted:
        """The scorer in force at an offset; of live records the same one within a checkpoint."""
        if self._history is not None:
            spans = self._history.get(partition, [])
            index = bisect_right(spans, at, key=lambda span: span.from_offset) - 1
            version = spans[index].version if index >= 0 else 0
            if self._in_force is None or self._in_force.version != version:
                self._in_force = self._versions.at(version)
            return self._in_force
        if self._in_force is None or not self._began:
            self._in_force = self._versions.latest()
            self._began = True
        if place.new is None:
            in_force = (self._in_force.version, self.parts.version)
            if place.span is None or (place.span.version, place.span.reference) != in_force:
                place.new = LabelSpan(partition, at, *in_force)
        return self._in_force

    def _own_signals(self, events: EventBatch, vectors: Floats, p_value: Doubles) -> dict[str, Floats]:
        """What a record tells without those before it: signals by name, float32 (n,) each."""
        numbers = numbers_of(events, self._settings.fields)
        of_fields = {name: numbers[:, column] for column, name in enumerate(self._settings.fields)}
        return {**of_vectors(self.parts, vectors, p_value), **of_fields}

    def _keep(
        self, piece: _Piece, flood: npt.NDArray[np.int32], blocks: Int64s, late: Bools, *, known: Int64s | None
    ) -> None:
        """Keep candidates, the review sample, and where a flood begins or has doubled."""
        events, scores = piece.events, piece.scores
        topic, number = events.partition
        drawn = position_uniforms(topic, number, events.offsets, rows=events.rows, purpose="review")
        candidate, review = scores.p_value <= self._settings.alpha, drawn < self._settings.review
        begins = _doubles(flood, self._least_flood)
        rows = np.flatnonzero((candidate | review | begins) & ~late)
        if len(rows) == 0:
            return
        vectors, columns = piece.vectors[rows], piece.signals[rows]
        self._kept_pieces.append(
            _KeptPiece(piece.fitted, list(range(len(self._kept), len(self._kept) + len(rows))), vectors, columns)
        )
        names = [None] * len(rows) if piece.entities is None else _names(piece.entities[rows])
        blobs = [vector.tobytes() for vector in vectors.astype("<f4")]
        for row, vector, name in zip(rows.tolist(), blobs, names, strict=True):
            kept = kept_record(
                events,
                row,
                space=FRAUD_SPACE,
                block=int(blocks[row]),
                reason="fraud" if candidate[row] else "flood" if begins[row] else "review",
                score=float(scores.surprise[row]),
                p_value=float(scores.p_value[row]),
                reference=self.parts.version,
                vector=vector,
                labels=piece.fitted.version,
            )
            detail: dict[str, object] = {"made_with": self._made_with}
            if piece.fitted.scorer.n_cases:
                detail["probability"] = float(scores.probability[row])
            if review[row]:
                detail["review"] = True
            if flood[row] > 1:
                detail["flood"] = int(flood[row])
            if name is not None:
                detail["entity"] = name
                if known is not None:
                    detail["entity_records"] = int(known[row])
            self._kept.append(replace(kept, detail=detail))

    def _with_evidence(self) -> list[KeptRecord]:
        """The kept rows with their evidence; one search for all of a version, because single searches are slow."""
        kept = list(self._kept)
        by_version: dict[int, list[_KeptPiece]] = {}
        for piece in self._kept_pieces:
            by_version.setdefault(piece.fitted.version, []).append(piece)
        for pieces in by_version.values():
            details, exemplars = evidence_of(
                self.parts,
                pieces[0].fitted,
                np.concatenate([piece.vectors for piece in pieces]),
                np.concatenate([piece.signals for piece in pieces]),
                rules=self._settings.rules,
            )
            places = [place for piece in pieces for place in piece.places]
            for place, detail, exemplar in zip(places, details, exemplars.tolist(), strict=True):
                row = kept[place]
                kept[place] = replace(row, exemplar=exemplar, detail={**row.detail, **detail})
        return kept

    def _counted(
        self,
        events: EventBatch,
        blocks: Int64s,
        on_time: Int64s,
        scores: FraudScores,
        flood: npt.NDArray[np.int32],
        *,
        labelled: bool,
    ) -> dict[int, FraudCounts]:
        if len(on_time) == 0:
            return {}
        return fraud_counts_of(
            blocks[on_time],
            scores.surprise[on_time],
            scores.p_value[on_time],
            alpha=self._settings.alpha,
            segments={
                name: np.fromiter(map(value.__eq__, events.segments[of]), np.bool_, len(events))[on_time]
                for name, (of, value) in self._segments.items()
            },
            flood_sizes=flood[on_time],
            flood_least=self._least_flood,
            probability=scores.probability[on_time] if labelled else None,
        )

    def _remembered(self, partition: Partition, first_offset: int, pieces: Sequence[_Piece]) -> RememberedRow:
        """One row of what labels need to know, a pack for each version of the labels."""
        packs = []
        by_version: dict[int, list[_Piece]] = {}
        for piece in pieces:
            by_version.setdefault(piece.fitted.version, []).append(piece)
        for version, of_version in by_version.items():
            entities = [piece.entities for piece in of_version if piece.entities is not None]
            packs.append(
                remembered.pack(
                    partition,
                    first_offset,
                    offsets=np.concatenate([piece.events.offsets for piece in of_version]),
                    rows=np.concatenate([piece.events.rows for piece in of_version]),
                    time_ms=np.concatenate([piece.events.time_ms for piece in of_version]),
                    ids=[name for piece in of_version for name in piece.events.ids],
                    entities=_names(np.concatenate(entities)) if entities else None,
                    probability=np.concatenate([piece.scores.probability for piece in of_version]),
                    p_value=np.concatenate([piece.scores.p_value for piece in of_version]),
                    vectors=np.concatenate([piece.vectors for piece in of_version]),
                    signals=np.concatenate([piece.signals for piece in of_version]),
                    version=version,
                    made_with=self._made_with,
                )
            )
        return remembered.joined(packs)


def _names(hashes: Hashes) -> list[str | None]:
    """What stands for whom a record belongs to: 16 hexadecimal digits, None for nobody's.

    Not the name itself: that may be the number of a card, which nobody wants in one more database.
    """
    digits = hashes.astype(">u8").tobytes().hex()
    return [digits[16 * row : 16 * row + 16] if one else None for row, one in enumerate((hashes != 0).tolist())]


def _doubles(sizes: npt.NDArray[np.int32], least: int) -> Bools:
    """Where a group has just reached ``least``, or that times a power of two, bool (n,): rows stay few."""
    times, rest = np.divmod(sizes, least)
    return np.asarray((times > 0) & (rest == 0) & (times & (times - 1) == 0), np.bool_)
