"""The way of the records of one model, from raw bytes to a checkpoint: decode, embed, score, summarise.

What comes out depends on the records, their offsets and the references alone: not on how polls cut the stream, not on
other workers, not on the state of any alarm. Deltas are collected until the caller asks for a checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from connectors.database.rows import Advance, Checkpoint, KeptRecord, PartitionState, SummaryDelta
from connectors.records import DeadLetter, Gap, Partition, RawBatch
from connectors.scores import FraudColumns
from detectors.conformal import p_bins, position_uniforms
from detectors.reference import Reference, Scored
from detectors.segments import OTHER as OTHER
from detectors.segments import segment_codes, segment_names, thresholds_of
from detectors.summary import BlockSummary, summarise
from monitor.answers import Answers
from monitor.decode import MAX_ROWS, Decoder
from monitor.embedders import Embedded, Embedder, embed_all
from monitor.event import EventBatch
from monitor.fraud import FraudRows, FraudStage
from monitor.kept import kept_record
from monitor.log import RepeatingFailure, event
from monitor.pairing import PairCounts, Pairing, StoredHalves, none_stored, pairing_of
from monitor.record_counts import RecordCounts, norms_of, versions_of
from monitor.thinning import SeenKeys, StoredKeys, key_hashes
from monitor.vector_watch import VectorWatch

if TYPE_CHECKING:
    from monitor.canaries import CanaryCheck
    from monitor.scores import TakenScores

log = logging.getLogger(__name__)

MAX_KEPT = 20_000  # rows of a checkpoint; the caller writes it before more are collected
MAX_SUMMARIES = 5_000  # block sums of a checkpoint, about 4 kB each: records far apart in time make one each
MANY_ALONE = 1_000  # halves of pairs; by then some should have found their other
EVERYTHING = ""  # the segment that every record belongs to


@dataclass(frozen=True, slots=True)
class Space:
    """One embedding of the model's records, with the reference that it is compared with.

    ``segments`` lists, per segment field, the values that are watched by themselves; all others share "(other)". They
    are fixed by the reference, so that the answer for a record does not depend on what came before it. A segment's
    p-values are its own: ranked among the calibration scores of its own baseline records.

    ``check`` is what came of the reference's canaries when it was loaded; None where it has none.
    """

    name: str
    embedder: Embedder
    reference: Reference
    version: int
    segments: Mapping[str, Sequence[str]]
    check: CanaryCheck | None = None

    @property
    def holds_ready_vectors(self) -> bool:
        """Its vectors come with the records, so that no canary can be embedded again."""
        return self.embedder.kind == "vector"


@dataclass(slots=True)
class _Position:
    """How far a partition is, in memory; what is stored follows with the next checkpoint."""

    stored: int | None
    next_offset: int
    first_offset: int
    max_time_ms: int
    seen: SeenKeys | None
    pairing: Pairing | None = None
    topic_id: str | None = None
    records: int = 0
    dead: int = 0
    late: int = 0


@dataclass(slots=True)
class PhaseTimes:
    """Seconds spent since the last look, per phase; for the metrics."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, phase: str, since: float) -> float:
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - since
        return now

    def taken(self) -> dict[str, float]:
        """The seconds since the last call."""
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken


class Pipeline:
    """Scores the records of one model and collects what the next transaction writes.

    Args:
        model: the model's name.
        decoder: bytes to events.
        spaces: at least one.
        block_ms: event time of one block, in milliseconds.
        lateness_ms: a record is late when its block ended so long before the newest event time of its partition.
        alpha: p-value up to which a record is kept as a candidate outlier.
        sample: share of records kept at random, chosen by a hash of their position.
        keep_vectors: keep the prepared vectors of such records, too, as float16.
        stored: looks up what the database holds of partitions; called when a partition is first seen.
        stored_keys: looks up the keys that a partition has shown in its open blocks, after ``stored``; None: records
            are not thinned by key.
        stored_halves: looks up the halves of pairs that wait in a partition, after ``stored``; needed where the
            decoder's settings pair records.
        scores: is handed the scores of every record; None: nobody wants them.
        fraud: scores records of one of the spaces as fraud; None: nobody asks for that.
        remember: share of the records whose answers are remembered for true answers that come later.
    """

    def __init__(
        self,
        model: str,
        *,
        decoder: Decoder,
        spaces: Sequence[Space],
        block_ms: int,
        lateness_ms: int,
        alpha: float,
        sample: float,
        keep_vectors: bool = True,
        stored: Callable[[Sequence[Partition]], Mapping[Partition, PartitionState]],
        stored_keys: StoredKeys | None = None,
        stored_halves: StoredHalves = none_stored,
        scores: TakenScores | None = None,
        fraud: FraudStage | None = None,
        remember: float = 0.0,
    ) -> None:
        self.model = model
        self.spaces = tuple(spaces)
        self.phases = PhaseTimes()
        self._decoder = decoder
        self._answers = Answers(remember)
        self._block_ms = block_ms
        self._lateness_ms = lateness_ms
        self._alpha = alpha
        self._sample = sample
        self._keep_vectors = keep_vectors
        self._stored = stored
        self._own_thresholds = {
            (space.name, field): [
                (value, thresholds)
                for value, segment in enumerate(segment_names(field, known))
                if (thresholds := thresholds_of(space.reference.drift, segment)) is not None
            ]
            for space in spaces
            for field, known in space.segments.items()
        }
        self._stored_keys = stored_keys
        self._stored_halves = stored_halves
        self._scores = scores
        self.fraud = fraud
        self._pair_settings = decoder.settings.pair
        self._all_pairs = PairCounts()
        self._strangers = False
        self._embedder_fails = RepeatingFailure(log, "embedder failed")
        self.watches = {space.name: VectorWatch(space.reference) for space in spaces}
        self.discard()

    def discard(self) -> None:
        """Forget everything since the last checkpoint: the source will hand it over again."""
        self._known: dict[Partition, _Position] = {}
        if self.fraud is not None:
            self.fraud.discard()
        self._clear()

    def _clear(self) -> None:
        if self._scores is not None:
            self._scores.clear()
        self._answers.clear()
        self._touched: set[Partition] = set()
        self._summaries: dict[tuple[str, str, int, int, Partition], BlockSummary] = {}
        self._counts: dict[tuple[int, Partition], RecordCounts] = {}
        self._kept: list[KeptRecord] = []
        # For each space, pieces of prepared vectors and the place in `_kept` of their first record.
        self._kept_x: dict[str, list[tuple[int, npt.NDArray[np.float32]]]] = {}
        self._dead: list[DeadLetter] = []
        self._spoiled: list[DeadLetter] = []
        self._gaps: list[Gap] = []
        self.records = 0
        self.thinned = 0  # records since the last checkpoint that had no vote, and those beyond the keys remembered
        self.unchecked = 0
        self.ahead = 0  # records since the last checkpoint that are dated after the broker got them
        for watch in self.watches.values():
            watch.zeros = 0

    @property
    def pending_spoiled(self) -> Sequence[DeadLetter]:
        """One dead letter for each record of the next checkpoint of which no row can be used."""
        return self._spoiled

    @property
    def pairs(self) -> PairCounts:
        """What became of halves of pairs since the last checkpoint."""
        return sum((pairing.counts for pairing in self._pairings()), start=PairCounts())

    @property
    def pending_halves(self) -> int:
        """Halves that wait for the other, in all partitions that are read here."""
        return sum(map(len, self._pairings()))

    @property
    def oldest_half_ms(self) -> int | None:
        """Time of the oldest half that waits; None where none does."""
        return min((pairing.oldest_ms for pairing in self._pairings() if pairing.oldest_ms is not None), default=None)

    def _pairings(self) -> list[Pairing]:
        return [position.pairing for position in self._known.values() if position.pairing is not None]

    @property
    def full(self) -> bool:
        """The checkpoint should be written before more records are taken in."""
        if (self._scores is not None and self._scores.full) or (self.fraud is not None and self.fraud.full):
            return True
        if self._answers.full:
            return True
        return len(self._kept) >= MAX_KEPT or len(self._dead) >= MAX_KEPT or len(self._summaries) >= MAX_SUMMARIES

    def process(self, batch: RawBatch, now_ms: int | None, *, until_full: bool = False) -> RawBatch | None:
        """Take in one batch.

        Args:
            now_ms: bounds event times where the broker gives none; None for history.
            until_full: stop when the checkpoint should be written.

        Returns:
            What was not taken in; None if all was.
        """
        began = time.perf_counter()
        position = self._position(batch)
        position.topic_id = batch.topic_id
        if batch.gap is not None:
            # What was lost cannot be read again, so the position jumps; back to the start of a topic that is made anew.
            self._gaps.append(batch.gap)
            if batch.next_offset < position.next_offset:
                self._end_pairs(position, batch.partition, now_ms)
            position.next_offset = batch.next_offset
            if self.fraud is not None:
                self.fraud.jumped(batch.partition)
            self._touched.add(batch.partition)
            return None
        self._touched.add(batch.partition)
        while True:
            batch = _from(batch, position.next_offset)
            piece = batch if self.fraud is None else self.fraud.of_one_version(batch)
            at = int(piece.offsets[0]) if len(piece) else piece.next_offset
            events = self._decoder.decode(piece, now_ms, position.pairing)
            self._take_in(events, position, began, at=at)
            if position.next_offset >= batch.next_offset:
                return None
            if until_full and self.full:
                return _from(batch, position.next_offset)
            began = time.perf_counter()

    def end(self, partitions: Iterable[Partition], now_ms: int | None) -> int:
        """The source is at its end: halves of pairs that wait in these partitions go alone. Returns how many."""
        if self._pair_settings is None:
            return 0
        return sum(
            self._end_pairs(self._position_of(partition, 0), partition, now_ms) for partition in sorted(partitions)
        )

    def _end_pairs(self, position: _Position, partition: Partition, now_ms: int | None) -> int:
        if position.pairing is None or not len(position.pairing):
            return 0
        if position.first_offset == position.next_offset:
            # Nothing was read since the last checkpoint, so the next one begins at the same offset: sums of this one
            # need another name.
            position.first_offset = -1 - position.next_offset
        self._touched.add(partition)
        halves = position.pairing.end()
        for first in range(0, len(halves), MAX_ROWS):
            began = time.perf_counter()
            events = self._decoder.decode_alone(
                partition, halves[first : first + MAX_ROWS], now_ms, next_offset=position.next_offset
            )
            self._take_in(events, position, began, at=position.next_offset)
        return len(halves)

    def _take_in(self, events: EventBatch, position: _Position, began: float, *, at: int) -> None:
        """Score decoded rows, and count them. ``at``: how far the partition was read when they came out."""
        began = self.phases.add("decode", began)
        vectors, events = self._embed(events)
        began = self.phases.add("embed", began)
        self.ahead += int(np.count_nonzero(events.ahead))
        blocks, newest = self._blocks(events, position)
        late = (blocks + 1) * self._block_ms <= newest[:-1] - self._lateness_ms
        voting = self._voting(events, blocks, np.flatnonzero(~late), position)
        began = self.phases.add("thin", began)
        of_spaces: list[tuple[Space, Scored]] = []
        of_fraud: FraudColumns | None = None
        for space, rows in zip(self.spaces, vectors, strict=True):
            scored = space.reference.score(rows)
            self.watches[space.name].push(rows, scored.distance)
            began = self.phases.add("score", began)
            self._summarise(space, events.partition, events, blocks, voting, scored)
            began = self.phases.add("summarise", began)
            self._keep(space, events, blocks, late, scored)
            began = self.phases.add("keep", began)
            if space.holds_ready_vectors:
                for block, lengths in norms_of(space.name, rows, blocks, late).items():
                    self._add_counts(block, events.partition, lengths)
            if self._scores is not None:
                of_spaces.append((space, scored))
            if self.fraud is not None and space.name == self.fraud.space:
                taken = self.fraud.take(events, rows, scored, blocks=blocks, late=late, at=at)
                of_fraud = taken.columns
                for block, counts in taken.counts.items():
                    self._add_counts(block, events.partition, RecordCounts(0, 0, {}, fraud=counts))
                began = self.phases.add("fraud", began)
        if self._scores is not None:
            self._scores.take(events, of_spaces, late=late, voting=voting, alpha=self._alpha, fraud=of_fraud)
            self.phases.add("scores", began)
        self._answers.take(events, late)
        self._count(events, blocks, late, newest)
        self._spoiled += events.spoiled
        position.next_offset = max(events.next_offset, position.next_offset)
        position.max_time_ms = int(newest[-1])
        closed = (position.max_time_ms - self._lateness_ms) // self._block_ms
        if position.seen is not None:
            position.seen.close(closed)
        if self.fraud is not None:
            self.fraud.close(events.partition, closed)
        position.records += events.records
        position.dead += len(events.dead)
        position.late += int(np.count_nonzero(late))
        self.records += events.records

    @property
    def jumped(self) -> bool:
        """A gap was taken in: the checkpoint is due, before records come whose offsets may have been used before."""
        return bool(self._gaps)

    def checkpoint(self) -> Checkpoint:
        """What one transaction has to write. Call `written` after it was, `discard` when it was refused."""
        advances = [
            Advance(
                partition=partition,
                expected=position.stored,
                next_offset=position.next_offset,
                max_time_ms=position.max_time_ms,
                records=position.records,
                dead=position.dead,
                late=position.late,
                topic_id=position.topic_id,
                from_offset=position.first_offset,
            )
            for partition in sorted(self._touched)
            for position in [self._known[partition]]
        ]
        summaries = [
            SummaryDelta(
                space, segment, block, reference, partition, self._known[partition].first_offset, blob.to_bytes()
            )
            for (space, segment, block, reference, partition), blob in sorted(
                self._summaries.items(), key=lambda i: i[0]
            )
        ]
        summaries += [
            SummaryDelta("", EVERYTHING, block, 0, partition, self._known[partition].first_offset, counts.to_bytes())
            for (block, partition), counts in sorted(self._counts.items(), key=lambda item: item[0])
        ]
        keys = [
            row
            for partition in sorted(self._touched)
            for position in [self._known[partition]]
            if position.seen is not None
            for row in position.seen.unwritten(partition, position.first_offset)
        ]
        pairings = [
            (partition, pairing)
            for partition in sorted(self._touched)
            if (pairing := self._known[partition].pairing) is not None
        ]
        began = time.perf_counter()
        fraud = (
            FraudRows()
            if self.fraud is None
            else self.fraud.rows({partition: self._known[partition].first_offset for partition in self._touched})
        )
        if self.fraud is not None:
            self.phases.add("fraud", began)
        return Checkpoint(
            self.model,
            advances,
            summaries,
            self._with_exemplars() + fraud.kept,
            self._dead,
            thinned_keys=keys,
            gaps=self._gaps,
            halves=[row for partition, pairing in pairings for row in pairing.unwritten(partition)],
            joined=[(partition, offset) for partition, pairing in pairings for offset in pairing.left],
            spans=fraud.spans,
            remembered=fraud.remembered,
            entities=fraud.entities,
            floods=fraud.floods,
            answers=self._answers.rows({partition: self._known[partition].first_offset for partition in self._touched}),
            truths=list(self._answers.truths),
        )

    def _with_exemplars(self) -> list[KeptRecord]:
        """The kept records with the nearest exemplar of each; one search for all, because single searches are slow."""
        kept = list(self._kept)
        for space in self.spaces:
            pieces = self._kept_x.get(space.name, [])
            if not pieces or len(space.reference.exemplars) == 0:
                continue
            places = [first + row for first, x in pieces for row in range(len(x))]
            x = np.concatenate([x for _, x in pieces])
            nearest = space.reference.exemplar_index().nearest(space.reference.search_space(x))
            for place, exemplar in zip(places, nearest.tolist(), strict=True):
                kept[place] = replace(kept[place], exemplar=exemplar)
        return kept

    def written(self) -> dict[Partition, int]:
        """The transaction was committed. Returns the next offsets of the partitions that moved."""
        self._look_for_partners()
        moved = {}
        for partition in self._touched:
            position = self._known[partition]
            position.stored = position.first_offset = moved[partition] = position.next_offset
            position.records = position.dead = position.late = 0
            if position.seen is not None:
                position.seen.written()
            if position.pairing is not None:
                position.pairing.written()
        if self.fraud is not None:
            self.fraud.written()
        self._clear()
        return moved

    def _look_for_partners(self) -> None:
        """Say it once where hardly a half finds its other."""
        self._all_pairs += self.pairs
        alone = self._all_pairs.timed_out + self._all_pairs.crowded_out
        if not self._strangers and alone >= MANY_ALONE > self._all_pairs.joined:
            self._strangers = True
            log.warning(
                event(
                    "requests and responses do not meet",
                    model=self.model,
                    alone=alone,
                    joined=self._all_pairs.joined,
                    hint="both must be in one partition: key the topic by their id; see record.pair",
                )
            )

    def _position(self, batch: RawBatch) -> _Position:
        first = int(batch.offsets[0]) if len(batch) else batch.next_offset
        return self._position_of(batch.partition, first)

    def _position_of(self, partition: Partition, first: int) -> _Position:
        """How far a partition is; ``first`` where it was never read."""
        position = self._known.get(partition)
        if position is None:
            state = self._stored([partition]).get(partition)
            position = _Position(
                stored=state.next_offset if state else None,
                next_offset=state.next_offset if state else first,
                first_offset=state.next_offset if state else first,
                max_time_ms=state.max_time_ms if state else -1,
                seen=None if self._stored_keys is None else SeenKeys(self._stored_keys(partition)),
                pairing=pairing_of(partition, self._pair_settings, self._stored_halves),
            )
            self._known[partition] = position
        return position

    def _embed(self, events: EventBatch) -> tuple[list[npt.NDArray[np.float32]], EventBatch]:
        """Vectors of every space, for the rows that every space could embed; the others become dead letters."""
        embedded = [self._embed_space(space, events) for space in self.spaces]
        problems: dict[int, tuple[str, str]] = {}
        for result in embedded:
            for problem in result.problems:
                problems.setdefault(problem.row, (problem.reason, problem.detail))
        vectors = [result.vectors for result in embedded]
        if not problems:
            return vectors, events
        events, good = events.refused(problems)
        return [rows[good] for rows in vectors], events

    def _embed_space(self, space: Space, events: EventBatch) -> Embedded:
        """The vectors of one space. Records at which the embedder fails are a problem of their own, and stop no other.

        An embedder that fails altogether makes dead letters of all of them, until there are so many that reading stops;
        `driftd deadletters retry` reads them again.
        """
        columns = [events.fields[name] for name in space.embedder.fields]
        return embed_all(
            space.embedder,
            columns,
            len(events),
            dimension=space.reference.dimension,
            failed=lambda kind: self._embedder_fails.happened(kind, model=self.model, space=space.name),
        )

    def _blocks(self, events: EventBatch, position: _Position) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The block of every event, and the newest time of its partition before each event and after the last.

        A record stamped after the time at which the broker got it moves the partition's newest time only up to the
        broker's time, so that one clock that runs ahead makes nobody else late.
        """
        blocks = events.time_ms // self._block_ms
        newest = np.where(events.broker_ms >= 0, np.minimum(events.time_ms, events.broker_ms), events.time_ms)
        return blocks, np.maximum.accumulate(np.concatenate([[position.max_time_ms], newest]))

    def _voting(
        self,
        events: EventBatch,
        blocks: npt.NDArray[np.int64],
        on_time: npt.NDArray[np.int64],
        position: _Position,
    ) -> npt.NDArray[np.int64]:
        """The rows that enter the summaries: those on time, without those whose key has had its vote."""
        if position.seen is None or events.keys is None:
            return on_time
        keys = events.keys if len(on_time) == len(events) else [events.keys[row] for row in on_time]
        votes = position.seen.vote(blocks[on_time], key_hashes(keys))
        self.thinned += votes.thinned
        self.unchecked += votes.unchecked
        return on_time[votes.enters] if votes.thinned else on_time

    def _summarise(
        self,
        space: Space,
        partition: Partition,
        events: EventBatch,
        blocks: npt.NDArray[np.int64],
        voting: npt.NDArray[np.int64],
        scored: Scored,
    ) -> None:
        if len(voting) == 0:
            return
        everything = len(voting) == len(events)
        if not everything:
            scored = _taken(scored, voting)
        numbers, group = np.unique(blocks[voting], return_inverse=True)
        confidence = None if events.confidence is None else events.confidence[voting]
        predictions = None if events.predictions is None else [events.predictions[row] for row in voting]
        self._merge(
            space,
            partition,
            EVERYTHING,
            numbers,
            summarise(group, scored, confidence=confidence, predictions=predictions),
        )
        for name, known in space.segments.items():
            values = events.segments[name]
            which = segment_codes(values if everything else [values[row] for row in voting], known)
            own = replace(scored, bin=self._own_bins(space, name, which, scored))
            both = which * len(numbers) + group
            result = summarise(both, own, confidence=confidence, predictions=predictions)
            for value, label in enumerate(segment_names(name, known)):
                inside = {
                    number % len(numbers): summary
                    for number, summary in result.items()
                    if number // len(numbers) == value
                }
                self._merge(space, partition, label, numbers, inside)

    def _own_bins(
        self, space: Space, field: str, which: npt.NDArray[np.int64], scored: Scored
    ) -> npt.NDArray[np.uint8]:
        """The bins of p among each record's own segment; among all records where the segment has no baseline."""
        bins = scored.bin.copy()
        for value, thresholds in self._own_thresholds[space.name, field]:
            rows = np.flatnonzero(which == value)
            if len(rows):
                bins[rows] = p_bins(scored.distance[rows], thresholds)
        return bins

    def _merge(
        self,
        space: Space,
        partition: Partition,
        segment: str,
        numbers: npt.NDArray[np.int64],
        summaries: Mapping[int, BlockSummary],
    ) -> None:
        for index, summary in summaries.items():
            key = (space.name, segment, int(numbers[index]), space.version, partition)
            before = self._summaries.get(key)
            self._summaries[key] = summary if before is None else before.merge(summary)

    def _keep(
        self,
        space: Space,
        events: EventBatch,
        blocks: npt.NDArray[np.int64],
        late: npt.NDArray[np.bool_],
        scored: Scored,
    ) -> None:
        """Keep candidates and the sample. Not late ones: their block may be closed, and its outliers flagged."""
        topic, number = events.partition
        candidates = scored.p_value <= self._alpha
        sampled = position_uniforms(topic, number, events.offsets, rows=events.rows, purpose="sample") < self._sample
        rows = np.flatnonzero((candidates | sampled) & ~late)
        if len(rows) == 0:
            return
        x = scored.x[rows]
        self._kept_x.setdefault(space.name, []).append((len(self._kept), x))
        vectors = [half.tobytes() for half in x.astype("<f2")] if self._keep_vectors else [None] * len(rows)
        for row, vector in zip(rows.tolist(), vectors, strict=True):
            self._kept.append(
                kept_record(
                    events,
                    row,
                    space=space.name,
                    block=int(blocks[row]),
                    reason="outlier" if candidates[row] else "sample",
                    score=float(scored.distance[row]),
                    p_value=float(scored.p_value[row]),
                    reference=space.version,
                    vector=vector,
                )
            )

    def _count(
        self,
        events: EventBatch,
        blocks: npt.NDArray[np.int64],
        late: npt.NDArray[np.bool_],
        newest: npt.NDArray[np.int64],
    ) -> None:
        # A late record counts where its partition stood: its own block may be closed already, or not, and what is
        # counted must not depend on that.
        blocks = np.where(late, newest[:-1] // self._block_ms, blocks)
        versions = versions_of(events, blocks, late)
        for block, records in zip(*np.unique(blocks, return_counts=True), strict=True):
            inside = int(np.count_nonzero(late[blocks == block]))
            counted = RecordCounts(int(records), inside, {}, versions.get(int(block), {}))
            self._add_counts(int(block), events.partition, counted)
        if not events.dead:
            return
        # A dead letter has no event time that could be trusted: it counts where its partition stood.
        stood = newest[np.searchsorted(events.places, events.dead_places)]
        if stood[0] < 0:  # before the partition's first usable record
            broker = np.array([max(letter.time_ms, 0) for letter in events.dead])
            stood = np.where(stood >= 0, stood, broker)
        reasons: dict[int, dict[str, int]] = {}
        for letter, block in zip(events.dead, (stood // self._block_ms).tolist(), strict=True):
            counts = reasons.setdefault(block, {})
            counts[letter.reason] = counts.get(letter.reason, 0) + 1
            self._dead.append(letter.counted_in(block))
        for block, counts in reasons.items():
            self._add_counts(block, events.partition, RecordCounts(sum(counts.values()), 0, counts))

    def _add_counts(self, block: int, partition: Partition, counts: RecordCounts) -> None:
        key = (block, partition)
        before = self._counts.get(key)
        self._counts[key] = counts if before is None else before.merge(counts)


def _taken(scored: Scored, rows: npt.NDArray[np.int64]) -> Scored:
    """Some of the scored records."""
    return replace(
        scored,
        x=scored.x[rows],
        distance=scored.distance[rows],
        nearest=scored.nearest[rows],
        p_value=scored.p_value[rows],
        bin=scored.bin[rows],
    )


def _from(batch: RawBatch, next_offset: int) -> RawBatch:
    """The batch without records that were counted already: a source may hand a record over twice."""
    skip = int(np.searchsorted(batch.offsets, next_offset))
    return batch.rows(skip, len(batch)) if skip else batch
