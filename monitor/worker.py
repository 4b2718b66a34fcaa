"""One monitored model at work: reads its source, takes records through the pipeline, writes checkpoints, folds.

One thread calls `step` again and again. Whatever fails in between is safe: nothing counts before its transaction is
committed, and after a refused one the source reads on from the stored offsets.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from connectors.database.rows import Checkpoint, HalfRow, IncidentRow, PartitionState, ReferenceRow, ThinnedKeys
from connectors.database.store import Store
from connectors.records import Gap, Partition, RawBatch, Source
from detectors.errors import DriftdError, OwnershipLost, SinkError, SourceError, StoreBusy, StoreError, StoreFull
from monitor.canaries import CanaryCheck, EncoderChanged
from monitor.canary_watch import AGAIN_S, CanaryWatch
from monitor.collect import Collector
from monitor.dead_letters import WAVE_HINT, DeadLetterLimit
from monitor.decode import Decoder
from monitor.embedders.embedder import RemoteEmbedder
from monitor.first_reference import FirstReference
from monitor.folding import Folder, Outcome
from monitor.fraud import FraudStage
from monitor.fraud_learner import Learner
from monitor.incidents import OPERATIONAL
from monitor.log import event
from monitor.pairing import PairCounts
from monitor.pipeline import Pipeline, Space
from monitor.reader import Reader
from monitor.scores import Scores
from monitor.settings import Settings
from monitor.spaces import load_fraud_of, load_spaces
from monitor.troubles import Troubles
from monitor.watchdog import POLL_S as POLL_LIMIT_S
from monitor.watchdog import Watchdog

log = logging.getLogger(__name__)

POLL_S = 0.5
NO_FRAUD_BASELINE = (
    "no fraud scores: the reference has no fraud baseline; build it: driftd reference build, then start driftd again"
)
HURRIED = 4  # times as soon, where newer labels wait for the next checkpoint
LOST_FOLD = 5  # checkpoints until a worker that lost the race for a fold tries again


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did.

    Attributes:
        records: records taken in; some may be read again, where partitions move.
        counted: records of the checkpoints that were written: each once.
        finished: the source is at its end, and everything is written.
        failure: what failed and will be tried again, in words; "" if nothing.
        refused: the database refused a transaction.
        ownership_lost: it did because another worker had moved a partition; everything was rolled back.
        late, kept, dead: late records, kept records and dead letters by reason, of the checkpoints that were written.
        gaps: what was lost before it could be read, as far as these tell.
        thinned, unchecked: its records that did not enter the drift summaries because of their key, and those that did
            because their block has more keys than are remembered.
        pairs: what became, in that checkpoint, of the halves of pairs.
        seconds: time spent, per phase.
        commit_s: seconds that the checkpoint's transaction took; None if none was written.
        folded: what a fold did, if one was due.
        batch_records: records that the next poll asks for, so that they take no longer than a checkpoint.
        held: partitions that are not fetched now, because they run ahead of the slowest.
        scores_written, scores_dropped: records whose scores were written for other programs, with the checkpoints that
            were written, and those whose scores could not be.
        fraud_candidates: records with a p-value of at most ``fraud.alpha``, of the checkpoints that were written.
        entities_dropped: entities that these forgot, because there are too many.
    """

    records: int
    finished: bool
    failure: str = ""
    refused: bool = False
    ownership_lost: bool = False
    gaps: Sequence[Gap] = ()
    late: int = 0
    kept: int = 0
    thinned: int = 0
    unchecked: int = 0
    pairs: PairCounts = field(default_factory=PairCounts)
    counted: int = 0
    dead: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    commit_s: float | None = None
    folded: Outcome | None = None
    batch_records: int = 0
    held: int = 0
    scores_written: int = 0
    scores_dropped: int = 0
    fraud_candidates: int = 0
    entities_dropped: int = 0


@dataclass(slots=True)
class _Tally:
    """What the checkpoints of one step wrote; mostly there is one at most."""

    gaps: list[Gap] = field(default_factory=list)
    records: int = 0
    dead: Counter[str] = field(default_factory=Counter)
    late: int = 0
    kept: int = 0
    thinned: int = 0
    unchecked: int = 0
    ahead: int = 0
    zeros: Counter[str] = field(default_factory=Counter)
    pairs: PairCounts = field(default_factory=PairCounts)
    scores_written: int = 0
    scores_dropped: int = 0
    fraud_candidates: int = 0
    entities_dropped: int = 0
    commit_s: float | None = None

    def add(self, written: Checkpoint, seconds: float) -> None:
        self.gaps += written.gaps
        self.dead.update(letter.reason for letter in written.dead_letters)
        self.records += sum(advance.records for advance in written.advances)
        self.late += sum(advance.late for advance in written.advances)
        self.kept += len(written.kept)
        self.commit_s = (self.commit_s or 0.0) + seconds

    def add_counts(self, pipeline: Pipeline) -> None:
        self.thinned += pipeline.thinned
        self.unchecked += pipeline.unchecked
        self.ahead += pipeline.ahead
        self.zeros.update({space: watch.zeros for space, watch in pipeline.watches.items()})
        self.pairs += pipeline.pairs
        if pipeline.fraud is not None:
            self.fraud_candidates += pipeline.fraud.candidates
            self.entities_dropped += pipeline.fraud.dropped


class DeadLetterWave(DriftdError):
    """Too many records of a source that has an end cannot be used."""


class Worker:
    """Watches one model.

    Args:
        name: the model's name.
        settings: all settings.
        store: the database, already migrated.
        source: where the records come from; opened here.
        collects: may collect the first baseline; of the workers of one machine, one does.
        scores: gets the scores of every record; None: nobody wants them.
        watchdog: told of each poll.

    Attributes:
        learner: fits the fraud scorer; None where records are not scored as fraud.
        waits_outside: the source is not opened yet, so that the worker that collects the first baseline gets all of it.
        halted: why nothing is read any more, in words; "" while records are read. What is open stays open: the source
            is asked again and again, so that no other worker gets its partitions, but nothing is fetched.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        store: Store,
        source: Source,
        watchdog: Watchdog | None = None,
        collects: bool = True,
        scores: Scores | None = None,
    ) -> None:
        self.name = name
        self.scores = scores
        self._unsettled = True  # scores may be left to be shown, by whoever had these partitions before
        self._holds_for_scores = False  # nothing is fetched, because they cannot be written
        self.waits_outside = False
        self._collects = collects
        self.model = settings.models[name]
        self.source = source
        self.pipeline: Pipeline | None = None
        self.learner: Learner | None = None
        self.folder: Folder | None = None
        self.halted = ""
        self._changed: EncoderChanged | None = None
        self._next_look = float("-inf")  # at the canaries, while the encoder is another one; monotonic clock
        self._canaries: CanaryWatch | None = None
        self._settings = settings
        self._store = store
        self._watchdog = watchdog or Watchdog()
        source_settings = self.model.source
        self._poll_limit_s = max(POLL_LIMIT_S, 6 * source_settings.answer_s)  # one poll may ask several things
        self._reader = Reader(
            source,
            most_records=settings.checkpoint.poll_records,
            target_s=settings.checkpoint.every,
            idle_s=self.model.drift.idle,
            wait_s=self.model.drift.wait,
            live=self.model.source.kind == "kafka",
        )
        self._troubles = Troubles(
            name,
            store,
            sinks=tuple(settings.sinks),
            after_s=self.model.drift.wait,
            page_every_days=settings.page_every_days,
            most_bad=self.model.dead_letters.alert_ratio,
            live=not source_settings.ends,
        )
        self._checkpoint_began: float | None = None
        self._next_fold = float("-inf")
        self._limit = DeadLetterLimit(self.model.dead_letters)
        self._states: list[PartitionState] = []  # as the last fold found them
        self._written: dict[Partition, int] = {}  # next offsets that were written since
        self._open: dict[str, IncidentRow] = {}
        self._next_block: int | None = None
        self._tally = _Tally()
        self.records = self.dead = 0  # since the start

    @property
    def open_incidents(self) -> list[IncidentRow]:
        """Incidents that are open."""
        return list({**self._open, **{row.id: row for row in self._troubles.open}}.values())

    @property
    def watermark_ms(self) -> int | None:
        """Event time up to which blocks are closed; None before the first."""
        return None if self._next_block is None else self._next_block * round(self.model.drift.block * 1000)

    @property
    def spaces(self) -> Sequence[Space]:
        """The spaces with their references; none while a baseline is collected."""
        return () if self.pipeline is None else self.pipeline.spaces

    @property
    def assigned(self) -> frozenset[Partition]:
        """The partitions that this worker reads."""
        return self._reader.assigned

    @property
    def held(self) -> frozenset[Partition]:
        """Those of them that are not fetched now, because they run ahead of the slowest."""
        return frozenset() if self._holds_for_scores else self._reader.held & self._reader.assigned

    @property
    def failure(self) -> str:
        """Why the source cannot be read now, in words; "" if it can."""
        return self._reader.failure

    @property
    def collector(self) -> Collector | None:
        """What has been collected for the first reference, while this worker collects."""
        return self._first.collector if self.pipeline is None else None

    @property
    def encoder_changed(self) -> str:
        """Why nothing is read until the encoder is the right one again, in words; "" while it is."""
        return "" if self._changed is None else f"reading waits: {self._changed}"

    @property
    def canaries(self) -> Mapping[str, CanaryCheck]:
        """What came of the last look at all canaries, or of that at which an encoder was another one, by space."""
        latest = {} if self._canaries is None else self._canaries.latest
        return latest if self._changed is None else latest | {self._changed.space: self._changed.check}

    @property
    def state(self) -> str:
        """In words, for people."""
        state = self.halted or self.encoder_changed or (self._first.state if self.pipeline is None else "running")
        blind = [row.title.partition(": ")[2] for row in self._troubles.open if row.kind in self.blind]
        return f"{state}; blind: {', '.join(blind)}" if blind else state

    @property
    def blind(self) -> list[str]:
        """Kinds of open incidents that this worker told of by which what is said of the model cannot be relied on."""
        return self._troubles.blind

    @property
    def cautions(self) -> list[str]:
        """What people should know of the alarms, such as a baseline that is too small to page."""
        if self.folder is None:
            return []
        small = {space.name: self.folder.only_warns(space.name) for space in self.spaces}
        cautions = [f"pages of {name} turn into warnings: {why}" for name, why in small.items() if why]
        return cautions + ([NO_FRAUD_BASELINE] if self.model.fraud is not None and self.learner is None else [])

    def lag_seconds(self, now_ms: int) -> dict[Partition, float]:
        """How long ago the broker got the last record that was read, per partition; 0 where nothing is left to read."""
        return self._reader.lag_seconds(now_ms)

    def longest_lag_s(self, now_ms: int) -> float:
        """The longest of them, but for partitions that are held back on purpose."""
        ages = self.lag_seconds(now_ms).items()
        return max((age_s for partition, age_s in ages if partition not in self.held), default=0.0)

    def start(self) -> None:
        """Load the references, or prepare to collect them, and open the source.

        Raises:
            InvalidReference: a reference is damaged or was made by another embedder.
            SourceError: the source cannot be read.
        """
        embedders = {name: space.embedder.build() for name, space in self.model.spaces.items()}
        fields = [field for embedder in embedders.values() for field in embedder.fields]
        self._decoder = Decoder(
            self.model.watched_record,
            fields=[*fields, *self.model.extra_fields],
            payload_bytes=self.model.dead_letters.payload_bytes,
            pin=partial(self._store.pin_format, self.name),
        )
        self._embedders = embedders
        self._first = FirstReference(
            self.name, self._settings, store=self._store, decoder=self._decoder, embedders=embedders
        )
        self._load_or_wait(self._first.built(float("-inf")))
        rows = self._stored_open()
        self._open = {row.id: row for row in rows if row.kind not in OPERATIONAL}
        self._troubles.take_over(rows)
        self.waits_outside = self.pipeline is None and self._changed is None and not self._collects
        if not self.waits_outside:
            self.source.open(self._positions, topic_ids=self._topic_ids)

    def step(self, now_ms: int, clock_s: float, *, wait_s: float = POLL_S) -> Step:
        """Poll once, take in what came, write a checkpoint and fold when they are due.

        Args:
            now_ms: wall clock, milliseconds since 1970.
            clock_s: monotonic clock, seconds.
            wait_s: longest wait for records.

        Raises:
            SourceError, StoreError: of the kinds that cannot be waited out.
        """
        if self.waits_outside:
            return self._wait_outside(clock_s, wait_s)
        began = time.perf_counter()
        with self._watchdog.limit(f"poll of {self.name}", self._poll_limit_s):
            batches = self._reader.poll(clock_s, wait_s=wait_s)
        seconds = {"poll": time.perf_counter() - began}
        if self._reader.gone(clock_s):
            # The new owner reads on from the stored offsets, so what is pending of these partitions is its work now.
            self._start_over()
            batches = []
        if self.halted:
            self._troubles.wave(self.halted, now_ms, clock_s)
            self._reader.hold(self.source.partitions())
            if batches:
                self._reader.rewind()
                batches = []
        if self.scores is not None and self.scores.waits(now_ms):
            self._holds_for_scores = True
            self._reader.hold(self.source.partitions())
            if batches:
                self._reader.rewind()
                batches = []
        elif self._holds_for_scores:
            self._holds_for_scores = False
            self._reader.hold(frozenset())
        if self._changed is not None:
            self._troubles.encoder_changed(self._changed, now_ms, clock_s)
            self._reader.hold(self.source.partitions())
            if batches:
                self._reader.rewind()
                batches = []
        elif self.pipeline is not None:
            self._troubles.encoder_right(now_ms, clock_s)
        records = sum(len(batch) for batch in batches)
        self._tally = _Tally()
        folded = None
        self._troubles.source(self._reader, now_ms, clock_s)
        self._troubles.clocks(batches, now_ms, clock_s)
        self._troubles.lag(self.longest_lag_s(now_ms), sum(self.source.lag().values()), now_ms, clock_s)
        try:
            self._settle(now_ms)
            self._look_at_canaries(clock_s)
            if self.pipeline is None and not self.halted and self._changed is None:
                batches, collected = self._collect(batches, now_ms, clock_s)
                if not collected:
                    records = 0  # another worker collects, so these were left to be read again
            if self.pipeline is not None:
                began = time.perf_counter()
                self._score(self.pipeline, batches, now_ms, clock_s)
                self._reader.took(records, time.perf_counter() - began)
                seconds |= self.pipeline.phases.taken()
            if records:
                self._reader.cope()
            if self._due(clock_s):
                self._commit(now_ms)
            seconds["commit"] = self._tally.commit_s or 0.0
            if self.pipeline is not None:
                tally = self._tally
                self._troubles.records(
                    tally.records,
                    tally.dead,
                    ahead=tally.ahead,
                    zeros=tally.zeros,
                    watches=self.pipeline.watches,
                    now_ms=now_ms,
                    clock_s=clock_s,
                )
            began = time.perf_counter()
            folded = self._fold(now_ms, clock_s)
            seconds["fold"] = time.perf_counter() - began
        except SinkError as error:  # the scores that others want of every record
            self._start_over()
            return replace(self._told(records, seconds), failure=str(error))
        except SourceError as error:  # a schema registry or an encoder that does not answer: no fault of the records
            self._start_over()
            if not self._is_of_another_encoder(error):
                self._reader.stumble(error, clock_s)
            return replace(self._told(records, seconds), failure=str(error))
        except EncoderChanged as error:
            self._start_over()
            self._wait_for_encoder(error)
            return replace(self._told(0, seconds), failure=str(error))
        except StoreError as error:
            lost = isinstance(error, OwnershipLost)
            if not error.retryable and not lost:
                raise
            self._start_over()
            return replace(self._told(records, seconds), failure=str(error), refused=True, ownership_lost=lost)
        failure = self._reader.failure or ("" if self.scores is None else self.scores.failure(now_ms))
        at_end = self.source.finished and not batches and not failure and self.pipeline is not None
        finished = at_end and not self._pending
        return replace(self._told(records, seconds), finished=finished, failure=failure, folded=folded)

    def _told(self, records: int, seconds: Mapping[str, float]) -> Step:
        """The step so far: what was written counts, whatever failed after it."""
        tally = self._tally
        self.records += tally.records
        self.dead += tally.dead.total()
        return Step(
            records,
            finished=False,
            gaps=tally.gaps,
            late=tally.late,
            kept=tally.kept,
            thinned=tally.thinned,
            unchecked=tally.unchecked,
            pairs=tally.pairs,
            counted=tally.records,
            dead=tally.dead,
            seconds=seconds,
            commit_s=tally.commit_s,
            batch_records=self._reader.batch_records,
            held=len(self.held),
            scores_written=tally.scores_written,
            scores_dropped=tally.scores_dropped,
            fraud_candidates=tally.fraud_candidates,
            entities_dropped=tally.entities_dropped,
        )

    def _wait_outside(self, clock_s: float, wait_s: float) -> Step:
        """Join the group once another worker of this machine has built the first reference."""
        try:
            rows = self._first.built(clock_s)
            if rows:
                self._load_or_wait(rows)
                self.source.open(self._positions, topic_ids=self._topic_ids)
                self.waits_outside = False
                return Step(0, finished=False)
        except (SourceError, StoreError) as error:
            if not error.retryable:
                raise
            return Step(0, finished=False, failure=str(error), refused=isinstance(error, StoreError))
        time.sleep(wait_s)
        return Step(0, finished=False)

    def drain(self, now_ms: int) -> None:
        """Write what is pending; called before leaving. A refused checkpoint is left for the next start.

        Raises:
            StoreError, SinkError: it was refused.
        """
        self._settle(now_ms)
        try:
            if self.pipeline is not None and self._pending:
                self._commit(now_ms)
        except (EncoderChanged, SourceError) as error:  # its records are read again
            log.warning(event("last checkpoint not written", model=self.name, reason=str(error)))
            self._start_over()
        if self.folder is not None:
            self._note(self.folder.step(self._store, now_ms, partitions=self.source.partitions()))

    def close(self) -> None:
        """End the thread that fits the fraud scorer; waits up to 5 seconds for a fit."""
        if self.learner is not None:
            self.learner.close()

    def close_blocks_at_end(self, now_ms: int) -> None:
        """A bounded source was read to its end: close the last blocks too."""
        if self.folder is not None:
            self._note(self.folder.close_all(self._store, now_ms))

    def _note(self, folded: Outcome) -> Outcome:
        """Remember what the fold changed, or the folds of other workers before it."""
        if folded.next_block != self._next_block or folded.incidents:
            self._open = {row.id: row for row in self._stored_open() if row.kind not in OPERATIONAL}
        self._next_block = folded.next_block
        return folded

    def _stored_open(self) -> list[IncidentRow]:
        return self._store.incidents(model=self.name, status="open")

    @property
    def _pending(self) -> bool:
        return self._checkpoint_began is not None

    def _positions(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        self._unsettled = True  # another worker had them, or a transaction of ours failed
        return self._store.positions(self.name, partitions)

    def _topic_ids(self, partitions: Sequence[Partition]) -> Mapping[Partition, str]:
        return self._store.topic_ids(self.name, partitions)

    def _stored(self, partitions: Sequence[Partition]) -> Mapping[Partition, PartitionState]:
        # One by one: of thousands of files, all would be read for each.
        found = (self._store.partition_states(self.name, partition) for partition in partitions)
        return {state.partition: state for states in found for state in states}

    def _stored_keys(self, partition: Partition) -> Sequence[ThinnedKeys]:
        return self._store.thinned_keys(self.name, partition)

    def _stored_halves(self, partition: Partition) -> Sequence[HalfRow]:
        return self._store.halves(self.name, partition)

    def _load_or_wait(self, rows: Sequence[ReferenceRow]) -> None:
        """As `_load`; where an encoder is another one, it is tried again."""
        try:
            self._load(rows)
        except EncoderChanged as error:
            self._wait_for_encoder(error)

    def _load(self, rows: Sequence[ReferenceRow]) -> None:
        """Score against these references from now on; nothing where there are none yet."""
        if not rows:
            return
        spaces = load_spaces(rows, self.model, self._embedders)
        self._canaries = CanaryWatch(spaces, every_s=self.model.reference.canaries_every)
        drift, outliers = self.model.drift, self.model.outliers
        self.pipeline = Pipeline(
            self.name,
            decoder=self._decoder,
            spaces=spaces,
            block_ms=round(drift.block * 1000),
            lateness_ms=self.model.lateness_ms,
            alpha=outliers.alpha,
            sample=outliers.sample,
            keep_vectors=outliers.keep_vectors,
            stored=self._stored,
            stored_keys=self._stored_keys if self.model.thins_by_key else None,
            stored_halves=self._stored_halves,
            scores=self.scores,
            fraud=self._fraud_stage(rows, spaces),
            remember=self.model.performance.remembered_share,
        )
        stage = self.pipeline.fraud
        self.folder = Folder(self.name, self._settings, spaces=spaces, fraud=None if stage is None else stage.parts)
        for caution in self.cautions:
            log.warning(event("caution", model=self.name, reason=caution))

    def _fraud_stage(self, rows: Sequence[ReferenceRow], spaces: Sequence[Space]) -> FraudStage | None:
        """What scores records as fraud, with the labels that there are by now; None where it cannot, or should not.

        Raises:
            InvalidReference: what was fitted on the baseline is damaged, or was made by other settings.
            StoreError: the labels cannot be read.
        """
        self.close()
        self.learner, settings = None, self.model.fraud
        parts = load_fraud_of(rows, self.model, spaces)
        if settings is None or parts is None:
            return None
        learner = Learner(self.name, store=self._store, parts=parts, prevalence=settings.prevalence)
        learner.start()
        self.learner = learner
        return FraudStage(
            self.name, settings, space=self.model.fraud_space, parts=parts, versions=learner, stored=self._store
        )

    def _collect(self, batches: Sequence[RawBatch], now_ms: int, clock_s: float) -> tuple[list[RawBatch], bool]:
        """On the way to the first reference. Returns the records to be scored, and whether the others were taken."""
        rows = self._first.built(clock_s)
        if rows:  # another worker, or a person
            self._first.forget()
            self._load(rows)
            self._reader.hold(frozenset())
            self._reader.rewind()
            return [], False
        partitions = self.source.partitions()
        if not self._first.is_mine(self._reader.assigned, partitions):
            self._reader.hold(partitions)
            if batches:
                self._reader.rewind()
            return [], False
        self._reader.hold(frozenset())
        left = []
        for batch in batches:
            if batch.gap is not None and self._first.has_read(batch.partition):
                self._start_over()  # what was collected of it lies in a topic that is no more, or has lost a part
                return [], False
            rest, spoiled = self._first.take(batch, now_ms)
            if len(rest):
                left.append(rest)
            if wave := self._limit.push(batch.offsets[: len(batch) - len(rest)], spoiled):
                self._first.forget()
                self._halt(wave, now_ms, clock_s)
                return [], False
        checkpoint = self._first.build(now_ms, finished=self.source.finished)
        if checkpoint is None:
            return left, True
        self._write(checkpoint, now_ms)
        self.source.commit({advance.partition: advance.next_offset for advance in checkpoint.advances})
        self._first.forget()
        self._load(checkpoint.references)
        row = checkpoint.references[0]
        log.info(event("reference built", model=self.name, version=row.version, records=row.records))
        return left, True

    def _score(self, pipeline: Pipeline, batches: Sequence[RawBatch], now_ms: int, clock_s: float) -> None:
        for batch in batches:
            left: RawBatch | None = batch
            while left is not None:
                if self._checkpoint_began is None:
                    self._checkpoint_began = clock_s
                before, offsets = len(pipeline.pending_spoiled), left.offsets
                left = pipeline.process(left, now_ms, until_full=True)
                taken = offsets[: len(offsets) - (0 if left is None else len(left))]
                wave = self._limit.push(taken, pipeline.pending_spoiled[before:])
                if wave or pipeline.full or pipeline.jumped:
                    self._commit(now_ms)
                if wave:
                    self._halt(wave, now_ms, clock_s)
                    return
        if self.source.finished and pipeline.end(self.source.partitions(), now_ms) and self._checkpoint_began is None:
            self._checkpoint_began = clock_s

    def _halt(self, why: str, now_ms: int, clock_s: float) -> None:
        """Read nothing more, so that a topic is not drained into the dead letters; what was not counted is not lost.

        Raises:
            DeadLetterWave: the source has an end, so somebody waits for it.
        """
        if self.model.source.ends:
            raise DeadLetterWave(f"Model {self.name}: {why}.", hint=WAVE_HINT)
        self.halted = f"reading stopped: {why}. {WAVE_HINT}"
        self._reader.rewind()
        log.error(event("reading stopped", model=self.name, reason=why))
        self._troubles.wave(why, now_ms, clock_s)

    def _wait_for_encoder(self, error: EncoderChanged) -> None:
        """Read nothing more until the encoder is the right one again. What was not counted is not lost.

        Raises:
            EncoderChanged: the source has an end, so somebody waits for it.
        """
        if self.model.source.ends:
            raise error
        if self._changed is None or str(self._changed) != str(error):
            log.error(event("encoder changed", model=self.name, reason=str(error)))
        self._changed = error
        for embedder in self._embedders.values():
            if isinstance(embedder, RemoteEmbedder) and embedder.remote:
                embedder.forget()  # the other encoder may have made them

    def _is_of_another_encoder(self, error: SourceError) -> bool:
        """Whether a source failed because the program that embeds was replaced, by one with longer vectors perhaps."""
        if self._canaries is None:
            return False
        self._canaries.soon()  # where it does not answer, it may come back as another one
        if error.retryable:
            return False
        try:
            self._canaries.look_at_all()
        except EncoderChanged as changed:
            self._wait_for_encoder(changed)
            return True
        except SourceError:
            pass  # it is told of by the first one
        return False

    def _look_at_canaries(self, clock_s: float) -> None:
        """See whether the encoders still are those of the references, if it is time.

        Raises:
            EncoderChanged: one is not.
            SourceError: one does not answer.
        """
        if self._changed is None:
            if self._canaries is not None:
                self._canaries.look(clock_s)
            return
        if clock_s < self._next_look:
            return
        self._next_look = clock_s + AGAIN_S
        if self._canaries is not None:
            self._canaries.look_at_all()
        elif rows := self._first.built(clock_s):
            self._load(rows)
        else:
            return
        self._changed = None
        self._reader.hold(frozenset())
        log.info(event("the encoder is the one of the reference again", model=self.name))

    def _due(self, clock_s: float) -> bool:
        if self._checkpoint_began is None or self.pipeline is None:
            return False
        limits, since_s = self._settings.checkpoint, clock_s - self._checkpoint_began
        newer_labels = self.pipeline.fraud is not None and self.pipeline.fraud.outdated
        return (
            self.pipeline.full
            or self.pipeline.jumped
            or self.pipeline.records >= limits.records
            or since_s >= (limits.every / HURRIED if newer_labels else limits.every)
            or self.source.finished
        )

    def _commit(self, now_ms: int) -> None:
        assert self.pipeline is not None
        if self._canaries is not None:
            self._canaries.look_at_a_few()
        checkpoint, receipt = self.pipeline.checkpoint(), ""
        if self.scores is not None:
            began = time.perf_counter()
            receipt = self.scores.write(now_ms)
            self.pipeline.phases.add("scores", began)
        try:
            self._write(checkpoint.with_scores(receipt), now_ms)
        except (OwnershipLost, StoreBusy, StoreFull):  # it is certain that nothing was written
            if self.scores is not None:
                self.scores.discard(receipt)
            raise
        self._checkpoint_began = None
        self._tally.add_counts(self.pipeline)
        moved = self.pipeline.written()
        self._written |= moved
        self.source.commit(moved)
        if self.scores is not None:
            self._unsettled = True
            try:
                self.scores.publish(receipt, now_ms)
            finally:
                self._tally.scores_written += self.scores.written
                self._tally.scores_dropped += self.scores.dropped
            self._unsettled = False

    def _settle(self, now_ms: int) -> None:
        """Show the scores of checkpoints that were committed, where that may be left to be done.

        Raises:
            SinkError: that cannot be done now.
        """
        if self.scores is not None and self._unsettled:
            self.scores.settle(self._store.partition_states(self.name), now_ms)
            self._unsettled = False

    def _write(self, checkpoint: Checkpoint, now_ms: int) -> None:
        began = time.perf_counter()
        checkpoint = self._troubles.with_gaps(checkpoint, now_ms)
        self._store.commit(checkpoint)
        self._open |= {row.id: row for row in checkpoint.incidents}
        self._tally.add(checkpoint, time.perf_counter() - began)

    def _start_over(self) -> None:
        """Forget what was not written, and read on from the stored offsets."""
        self._checkpoint_began = None
        if self.pipeline is not None:
            self.pipeline.discard()
        self._first.forget()
        self._written.clear()
        self._reader.rewind()

    def _fold(self, now_ms: int, clock_s: float) -> Outcome | None:
        if self.folder is None or (clock_s < self._next_fold and not self.source.finished):
            return None
        if rest := self._reader.at_rest(clock_s, self._states, self._written):
            self._store.mark_idle(self.name, rest)
        folded = self.folder.step(self._store, now_ms, clock_s, partitions=self.source.partitions())
        every = self._settings.checkpoint.every
        self._next_fold = clock_s + every * (LOST_FOLD if folded.lost else 1)
        self._states, self._written = folded.partitions, {}
        if not self.halted and not self._holds_for_scores and self._changed is None:
            self._reader.hold_those_ahead(folded.partitions, folded.stalled)
            if self.records >= self.model.dead_letters.stop_records:
                self._troubles.no_wave(now_ms, clock_s)
            self._troubles.silent(self._reader, folded.partitions, now_ms, clock_s)
        self._troubles.stalled(folded.stalled, folded.partitions, now_ms, clock_s)
        if self.learner is not None and self.learner.judged:
            self._troubles.fraud_changed(self.learner.change, now_ms, clock_s)
        return self._note(folded)
