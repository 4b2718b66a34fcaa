"""One monitored model at work: reads its source, takes records through the pipeline, writes checkpoints, folds.

One thread calls `step` again and again. Whatever fails in between is safe: nothing counts before its transaction is
committed, and after a refused one the source reads on from the stored offsets.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from connectors.database.rows import Advance, Checkpoint, IncidentRow, PartitionState, SummaryDelta, ThinnedKeys
from connectors.database.store import Store
from connectors.records import Partition, RawBatch, Source
from detectors.errors import DriftdError, InvalidReference, OwnershipLost, SourceError, StoreError
from detectors.reference import Reference
from monitor.collect import Collector, check_block_length, next_version
from monitor.decode import Decoder
from monitor.embedders import Embedder
from monitor.folding import Folder, Outcome
from monitor.log import event
from monitor.pipeline import EVERYTHING, Pipeline, RecordCounts, Space
from monitor.settings import Settings

log = logging.getLogger(__name__)

POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did.

    Attributes:
        records: records taken in.
        finished: the source is at its end, and everything is written.
        failure: what failed and will be tried again, in words; "" if nothing.
        refused: the database refused a transaction.
        late, kept, dead: late records, kept records and dead letters by reason, of the checkpoint that was written.
        thinned, unchecked: its records that did not enter the drift summaries because of their key, and those that did
            because their block has more keys than are remembered.
        seconds: time spent, per phase.
        commit_s: seconds that the checkpoint's transaction took; None if none was written.
        folded: what a fold did, if one was due.
    """

    records: int
    finished: bool
    failure: str = ""
    refused: bool = False
    late: int = 0
    kept: int = 0
    thinned: int = 0
    unchecked: int = 0
    dead: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    commit_s: float | None = None
    folded: Outcome | None = None


class DeadLetterWave(DriftdError):
    """Too many records cannot be used: reading stops, so that a topic is not drained into the dead letters."""


class Worker:
    """Watches one model.

    Args:
        name: the model's name.
        settings: all settings.
        store: the database, already migrated.
        source: where the records come from; opened here.
    """

    def __init__(self, name: str, settings: Settings, *, store: Store, source: Source) -> None:
        self.name = name
        self.model = settings.models[name]
        self.source = source
        self.collector: Collector | None = None
        self.pipeline: Pipeline | None = None
        self.folder: Folder | None = None
        self._settings = settings
        self._store = store
        self._checkpoint_began: float | None = None
        self._last_fold = float("-inf")
        self._recent: list[tuple[int, int]] = []  # (records, dead) of the last batches, for the dead-letter limit
        self._last_record: dict[Partition, float] = {}
        self._assigned: frozenset[Partition] = frozenset()
        self._rewind_due = False
        self._open: dict[str, IncidentRow] = {}
        self._next_block: int | None = None
        self._thinned = self._unchecked = 0  # of the last checkpoint
        self.records = self.dead = 0  # since the start

    @property
    def open_incidents(self) -> list[IncidentRow]:
        """Incidents that are open."""
        return list(self._open.values())

    @property
    def watermark_ms(self) -> int | None:
        """Event time up to which blocks are closed; None before the first."""
        return None if self._next_block is None else self._next_block * round(self.model.drift.block * 1000)

    @property
    def spaces(self) -> Sequence[Space]:
        """The spaces with their references; none while a baseline is collected."""
        return () if self.pipeline is None else self.pipeline.spaces

    @property
    def state(self) -> str:
        """In words, for people."""
        if self.collector is not None:
            thinned = self.collector.thinned
            without = f", {thinned:,} more had no vote: record.key" if thinned else ""
            return f"collecting baseline: {self.collector.collected:,} of {self.collector.wanted:,} records{without}"
        return "running" if self.pipeline is not None else "starting"

    @property
    def cautions(self) -> list[str]:
        """What people should know of the alarms, such as a baseline that is too small to page."""
        if self.folder is None:
            return []
        small = {space.name: self.folder.only_warns(space.name) for space in self.spaces}
        return [f"pages of {name} turn into warnings: {why}" for name, why in small.items() if why]

    def start(self) -> None:
        """Load the references, or prepare to collect them, and open the source.

        Raises:
            InvalidReference: a reference is damaged or was made by another embedder.
            SourceError: the source cannot be read.
        """
        block_ms = round(self.model.drift.block * 1000)
        embedders = {name: space.embedder.build() for name, space in self.model.spaces.items()}
        fields = [field for embedder in embedders.values() for field in embedder.fields]
        self._decoder = Decoder(
            self.model.watched_record, fields=fields, payload_bytes=self.model.dead_letters.payload_bytes
        )
        self._embedders = embedders
        rows = {name: self._store.active_reference(self.name, name) for name in embedders}
        if all(row is None for row in rows.values()):
            self.collector = Collector(
                self.name,
                decoder=self._decoder,
                embedders=embedders,
                settings=self.model.reference,
                block_ms=block_ms,
                seasons=self.model.drift.season_blocks,
                thin_by_key=self.model.thins_by_key,
            )
            log.info(event("collecting a baseline", model=self.name, records=self.collector.wanted))
        else:
            missing = [name for name, row in rows.items() if row is None]
            if missing:
                raise DriftdError(
                    f"Model {self.name} has references for some spaces, but none for: {', '.join(missing)}.",
                    hint="Build them: driftd reference build",
                )
            self._run_with([(name, row.version, Path(row.path)) for name, row in rows.items() if row], embedders)
        self._open = {row.id: row for row in self._store.incidents(model=self.name, status="open")}
        self.source.open(self._positions)

    def step(self, now_ms: int, clock_s: float, *, wait_s: float = POLL_S) -> Step:
        """Poll once, take in what came, write a checkpoint and fold when they are due.

        Args:
            now_ms: wall clock, milliseconds since 1970.
            clock_s: monotonic clock, seconds.
            wait_s: longest wait for records.

        Raises:
            DeadLetterWave: the limit of unusable records is reached.
            SourceError, StoreError: of the kinds that cannot be retried.
        """
        failure = ""
        began = time.perf_counter()
        batches: list[RawBatch] = []
        try:
            if self._rewind_due:
                self.source.rewind()
                self._rewind_due = False
            batches = self.source.poll(self._settings.checkpoint.poll_records, wait_s)
        except (SourceError, StoreError) as error:  # a source asks the database where to begin
            if not error.retryable:
                raise
            failure = str(error)
        seconds = {"poll": time.perf_counter() - began}
        if self._lost_partitions(clock_s):
            batches = []  # they come again, from the stored offsets on
        records = sum(len(batch) for batch in batches)
        self.records += records
        written: Checkpoint | None = None
        commit_s = folded = None
        try:
            if self.collector is not None:
                batches = self._collect(self.collector, batches, now_ms)
                written = self._finish_collecting(now_ms)
            if self.pipeline is not None:
                self._score(self.pipeline, batches, now_ms, clock_s)
                seconds |= self.pipeline.phases.taken()
            self._thinned = self._unchecked = 0
            if written is None and self._due(clock_s):
                began = time.perf_counter()
                written = self._commit()
                commit_s = seconds["commit"] = time.perf_counter() - began
            began = time.perf_counter()
            folded = self._fold(now_ms, clock_s)
            seconds["fold"] = time.perf_counter() - began
        except StoreError as error:
            if not error.retryable and not isinstance(error, OwnershipLost):
                raise
            self._start_over()
            return Step(records, finished=False, failure=str(error), refused=True, seconds=seconds)
        at_end = self.source.finished and not batches and not failure and self.pipeline is not None
        dead = Counter(letter.reason for letter in written.dead_letters) if written else Counter[str]()
        self.dead += dead.total()
        return Step(
            records,
            finished=at_end and not self._pending,
            failure=failure,
            late=sum(advance.late for advance in written.advances) if written else 0,
            kept=len(written.kept) if written else 0,
            thinned=self._thinned,
            unchecked=self._unchecked,
            dead=dead,
            seconds=seconds,
            commit_s=commit_s,
            folded=folded,
        )

    def drain(self, now_ms: int) -> None:
        """Write what is pending; called before leaving. A refused checkpoint is left for the next start."""
        if self.pipeline is not None and self._pending:
            self._commit()
        if self.folder is not None:
            self._note(self.folder.step(self._store, now_ms, idle=frozenset(), assigned=self.source.assignment()))

    def close_blocks_at_end(self, now_ms: int) -> None:
        """A bounded source was read to its end: close the last blocks too."""
        if self.folder is not None:
            self._note(self.folder.close_all(self._store, now_ms))

    def _note(self, folded: Outcome) -> Outcome:
        """Remember what the fold changed."""
        self._next_block = folded.next_block
        for row in folded.incidents:
            if row.status == "open":
                self._open[row.id] = row
            else:
                self._open.pop(row.id, None)
        return folded

    @property
    def _pending(self) -> bool:
        return self._checkpoint_began is not None

    def _positions(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        return self._store.positions(self.name, partitions)

    def _stored(self, partitions: Sequence[Partition]) -> Mapping[Partition, PartitionState]:
        wanted = set(partitions)
        return {
            state.partition: state for state in self._store.partition_states(self.name) if state.partition in wanted
        }

    def _stored_keys(self, partition: Partition) -> Sequence[ThinnedKeys]:
        return self._store.thinned_keys(self.name, partition)

    def _run_with(self, references: Sequence[tuple[str, int, Path]], embedders: Mapping[str, Embedder]) -> None:
        spaces = []
        for name, version, path in references:
            reference = Reference.load(path)
            check_block_length(reference, round(self.model.drift.block * 1000))
            embedder = embedders[name]
            _fit_together(embedder, reference, f"{self.name}/{name} version {version}")
            watched = {
                field: known for field, known in reference.segments.items() if field in self.model.segment_fields
            }
            spaces.append(Space(name, embedder, reference, version, watched))
        drift, outliers = self.model.drift, self.model.outliers
        self.pipeline = Pipeline(
            self.name,
            decoder=self._decoder,
            spaces=spaces,
            block_ms=round(drift.block * 1000),
            lateness_ms=round(drift.lateness * 1000),
            alpha=outliers.alpha,
            sample=outliers.sample,
            keep_vectors=outliers.keep_vectors,
            stored=self._stored,
            stored_keys=self._stored_keys if self.model.thins_by_key else None,
        )
        self.folder = Folder(self.name, self._settings, spaces=spaces)

    def _lost_partitions(self, clock_s: float) -> bool:
        """Take note of the assignment. Whether partitions went away, so that everything pending was forgotten."""
        assigned = self.source.assignment()
        gone = self._assigned - assigned
        self._assigned = assigned
        for partition in assigned:
            self._last_record.setdefault(partition, clock_s)
        for partition in gone:
            self._last_record.pop(partition, None)
        if gone:
            # The new owner reads on from the stored offsets, so what is pending of these partitions is its work now.
            self._start_over()
        return bool(gone)

    def _collect(self, collector: Collector, batches: Sequence[RawBatch], now_ms: int) -> list[RawBatch]:
        """Into the baseline, up to exactly the wanted number of records. Returns what is left over, to be scored."""
        left = []
        tenths = 10 * collector.collected // collector.wanted
        for batch in batches:
            before = len(collector.dead)
            rest = collector.take(batch, now_ms)
            if len(rest):
                left.append(rest)
            self._watch_dead_letters(len(batch) - len(rest), len(collector.dead) - before)
        if 10 * collector.collected // collector.wanted > tenths:
            log.info(event("baseline grows", model=self.name, records=collector.collected, of=collector.wanted))
        return left

    def _score(self, pipeline: Pipeline, batches: Sequence[RawBatch], now_ms: int, clock_s: float) -> None:
        for batch in batches:
            self._last_record[batch.partition] = clock_s
            if self._checkpoint_began is None:
                self._checkpoint_began = clock_s
            before = len(pipeline.pending_dead)
            pipeline.process(batch, now_ms)
            self._watch_dead_letters(len(batch), len(pipeline.pending_dead) - before)

    def _watch_dead_letters(self, records: int, dead: int) -> None:
        limits = self.model.dead_letters
        self._recent.append((records, dead))
        while sum(n for n, _ in self._recent[1:]) >= limits.stop_records:
            self._recent.pop(0)
        seen, bad = sum(n for n, _ in self._recent), sum(n for _, n in self._recent)
        if seen >= limits.stop_records and bad > limits.stop_ratio * seen:
            reason = self._last_reason()
            if self.pipeline is not None and self._pending:
                self._commit()
            raise DeadLetterWave(
                f"Model {self.name}: {bad:,} of the last {seen:,} records cannot be used (last reason: {reason}).",
                hint="Look at them: driftd doctor. Mend models.*.record, or raise dead_letters.stop_ratio.",
            )

    def _last_reason(self) -> str:
        dead = (
            self.collector.dead if self.collector is not None else self.pipeline.pending_dead if self.pipeline else []
        )
        return f"{dead[-1].reason}: {dead[-1].detail}" if dead else "unknown"

    def _due(self, clock_s: float) -> bool:
        if self._checkpoint_began is None or self.pipeline is None:
            return False
        limits = self._settings.checkpoint
        return (
            self.pipeline.full
            or self.pipeline.records >= limits.records
            or clock_s - self._checkpoint_began >= limits.every
            or self.source.finished
        )

    def _commit(self) -> Checkpoint:
        assert self.pipeline is not None
        checkpoint = self.pipeline.checkpoint()
        self._store.commit(checkpoint)
        self._checkpoint_began = None
        self._thinned, self._unchecked = self.pipeline.thinned, self.pipeline.unchecked
        self.source.commit(self.pipeline.written())
        return checkpoint

    def _start_over(self) -> None:
        """Forget what was not written, and read on from the stored offsets."""
        self._checkpoint_began = None
        if self.pipeline is not None:
            self.pipeline.discard()
        if self.collector is not None:
            self._collect_again()
        self._rewind_due = True

    def _collect_again(self) -> None:
        """Begin the collection anew; its records were never counted."""
        self.collector = Collector(
            self.name,
            decoder=self._decoder,
            embedders=self._embedders,
            settings=self.model.reference,
            block_ms=round(self.model.drift.block * 1000),
            seasons=self.model.drift.season_blocks,
            thin_by_key=self.model.thins_by_key,
        )

    def _fold(self, now_ms: int, clock_s: float) -> Outcome | None:
        every = self._settings.checkpoint.every
        if self.folder is None or (clock_s - self._last_fold < every and not self.source.finished):
            return None
        lag = self.source.lag()
        idle = frozenset(
            partition
            for partition in self.source.assignment()
            if lag.get(partition, 0) == 0
            and clock_s - self._last_record.get(partition, clock_s) >= self.model.drift.idle
        )
        folded = self.folder.step(self._store, now_ms, idle=idle, assigned=self.source.assignment())
        self._last_fold = clock_s
        return self._note(folded)

    def _finish_collecting(self, now_ms: int) -> Checkpoint | None:
        """Build the references once there are enough records, and write them with the offsets in one transaction."""
        collector = self.collector
        assert collector is not None
        if collector.collected < collector.wanted and not (self.source.finished and collector.collected):
            return None
        log.info(
            event("building the reference", model=self.name, records=collector.collected, thinned=collector.thinned)
        )
        versions = {
            space: next_version(
                [row.version for row in self._store.references(self.name, space)],
                self._settings.references / self.name / space,
            )
            for space in self._embedders
        }
        rows = collector.build(self._settings.references, versions=versions, now_ms=now_ms)
        block_ms = round(self.model.drift.block * 1000)
        stored = self._stored(list(collector.spans))
        advances, counts = [], []
        for partition, span in sorted(collector.spans.items()):
            before = stored.get(partition)
            advances.append(
                Advance(
                    partition,
                    expected=before.next_offset if before else None,
                    next_offset=span.next_offset,
                    max_time_ms=max(span.max_time_ms, before.max_time_ms if before else -1),
                    records=span.records,
                    dead=span.dead,
                    late=0,
                )
            )
            reasons = Counter(letter.reason for letter in collector.dead if letter.partition == partition)
            summary = RecordCounts(span.records, 0, dict(reasons)).to_bytes()
            block = max(span.max_time_ms, 0) // block_ms
            counts.append(SummaryDelta("", EVERYTHING, block, 0, partition, span.first_offset, summary))
        checkpoint = Checkpoint(self.name, advances, summaries=counts, dead_letters=collector.dead, references=rows)
        self._store.commit(checkpoint)
        self.source.commit({advance.partition: advance.next_offset for advance in advances})
        self.collector = None
        self._run_with([(row.space, row.version, Path(row.path)) for row in rows], self._embedders)
        log.info(event("reference built", model=self.name, version=rows[0].version, records=collector.collected))
        for caution in self.cautions:
            log.warning(event("small baseline", model=self.name, reason=caution))
        return checkpoint


def _fit_together(embedder: Embedder, reference: Reference, name: str) -> None:
    """Give the embedder what it learned from the baseline, and see that it still makes the same vectors.

    Raises:
        InvalidReference: the reference was made by another embedder, or by other settings of this one.
    """
    made_by = reference.embedder
    hint = "Undo the change of the embedder, or build a new reference: driftd reference build"
    if made_by.kind != embedder.kind:
        raise InvalidReference(
            f'Reference {name} was made by the embedder "{made_by.kind}", but the settings say "{embedder.kind}".',
            hint=hint,
        )
    embedder.restore(made_by.state)
    if made_by.fingerprint != embedder.fingerprint():
        raise InvalidReference(
            f'Reference {name} was made by other settings or another model of the embedder "{embedder.kind}".',
            hint=hint,
        )
