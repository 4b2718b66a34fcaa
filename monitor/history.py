"""Scores a stretch of history: the way of live records, from a source that has an end.

Decoder, embedders, references, pipeline, transactions and fold are those of `monitor.worker`. What is left out is what
watches a live source: silence, lag, idle partitions, and the first reference.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from connectors.database.rows import (
    EntityRow,
    FloodRow,
    HalfRow,
    IncidentRow,
    LabelSpan,
    PartitionState,
    ReferenceRow,
    ThinnedKeys,
)
from connectors.database.store import Store
from connectors.records import Partition, RawBatch, Source
from detectors.errors import OwnershipLost, SourceError, StoreBusy, StoreError, StoreFull
from monitor.ageing import HistoryAgeing
from monitor.dead_letters import WAVE_HINT, DeadLetterLimit
from monitor.decode import Decoder
from monitor.folding import Folder, Outcome
from monitor.fraud import FraudStage, StoredStates
from monitor.fraud_learner import Fitted, Learner, StoredLabels
from monitor.history_range import HistoryRange
from monitor.pipeline import Pipeline
from monitor.reader import Reader
from monitor.scores import Scores, TakenScores
from monitor.settings import Settings
from monitor.spaces import load_fraud_of, load_spaces
from monitor.verdicts import TrueAnswers
from monitor.worker import DeadLetterWave

POLL_S = 0.5
FOLD_S = 1.0  # between two folds


@dataclass(slots=True)
class Found:
    """What was scored, and what came of it, since the start of this process.

    Attributes:
        records: counted once each, with dead letters and late ones.
        late: too late for their block.
        flagged: outliers and fraud alerts within their budgets.
        incidents: in their last state, by id.
    """

    records: int = 0
    dead: Counter[str] = field(default_factory=Counter)
    late: int = 0
    flagged: int = 0
    blocks: int = 0
    incidents: dict[str, IncidentRow] = field(default_factory=dict)

    def add_fold(self, folded: Outcome) -> None:
        """Take in what a fold did."""
        self.late += folded.late
        self.flagged += folded.flagged.total()
        self.blocks += folded.blocks
        self.incidents |= {row.id: row for row in folded.incidents}


class OneVersion:
    """The fraud scorer of one version of the labels, whatever labels come."""

    def __init__(self, learner: Learner, version: int) -> None:
        self._learner = learner
        self._version = version

    def latest(self) -> Fitted:
        """That of the version."""
        return self.at(self._version)

    def at(self, version: int) -> Fitted:
        """That of any version."""
        return self._learner.at(version)


class StoredWork(StoredStates, Protocol):
    """What scoring asks of the database before it begins: `connectors.database.store.Store`."""

    def pin_format(self, model: str, topic: str, found: str, now_ms: int) -> str:
        """The format of the topic's records: ``found``, unless another one was pinned before."""

    def partition_states(self, model: str, partition: Partition | None = None) -> list[PartitionState]:
        """How far partitions are, or this one."""

    def thinned_keys(self, model: str, partition: Partition) -> list[ThinnedKeys]:
        """Keys of open blocks."""

    def halves(self, model: str, partition: Partition) -> list[HalfRow]:
        """Halves of pairs that wait."""


class NothingStored:
    """Where no former checkpoint counts: history that is scored from its first record on, and written nowhere."""

    def pin_format(self, model: str, topic: str, found: str, now_ms: int) -> str:
        """What was found."""
        return found

    def partition_states(self, model: str, partition: Partition | None = None) -> list[PartitionState]:
        """None."""
        return []

    def thinned_keys(self, model: str, partition: Partition) -> list[ThinnedKeys]:
        """None."""
        return []

    def halves(self, model: str, partition: Partition) -> list[HalfRow]:
        """None."""
        return []

    def label_spans(self, model: str, partition: Partition | None = None) -> list[LabelSpan]:
        """None."""
        return []

    def entity_states(self, model: str, partition: Partition) -> list[EntityRow]:
        """None."""
        return []

    def flood_counts(self, model: str, partition: Partition) -> list[FloodRow]:
        """None."""
        return []


@dataclass(frozen=True, slots=True)
class HistoryLabels:
    """Which labels score records of history as fraud.

    Attributes:
        store: where the labels are.
        version: those of this version everywhere, or
        spans: those that were in force when each record came; None where ``version`` holds.
        answers: where true answers come from; None: from where history is written.
    """

    version: int
    store: StoredLabels
    spans: Sequence[LabelSpan] | None = None
    answers: TrueAnswers | None = None


def history_pipeline(
    name: str,
    settings: Settings,
    references: Sequence[ReferenceRow],
    *,
    store: StoredWork,
    labels: HistoryLabels,
    scores: TakenScores | None = None,
    writes: bool = True,
) -> Pipeline:
    """What scores the records of a model as live records are scored.

    Args:
        references: of every space, and of the pseudo-space "fraud" where fraud is scored.
        store: where positions and what is unfinished are looked up.
        writes: the format of a topic is pinned once it is known; otherwise nothing is written.

    Raises:
        InvalidReference: a reference is damaged, or does not fit the settings.
        StoreError: the labels cannot be read.
    """
    model = settings.models[name]
    embedders = {space: entry.embedder.build() for space, entry in model.spaces.items()}
    fields = [field for embedder in embedders.values() for field in embedder.fields]
    decoder = Decoder(
        model.watched_record,
        fields=[*fields, *model.extra_fields],
        payload_bytes=model.dead_letters.payload_bytes,
        pin=partial(store.pin_format, name) if writes else None,
    )
    spaces = load_spaces(references, model, embedders)
    stage = None
    parts = load_fraud_of(references, model, spaces)
    if parts is not None and model.fraud is not None:
        learner = Learner(name, store=labels.store, parts=parts, prevalence=model.fraud.prevalence)
        stage = FraudStage(
            name,
            model.fraud,
            space=model.fraud_space,
            parts=parts,
            versions=OneVersion(learner, labels.version) if labels.spans is None else learner,
            stored=store,
            history=labels.spans,
        )

    def stored(partitions: Sequence[Partition]) -> Mapping[Partition, PartitionState]:
        # One by one: of thousands of files, all would be read for each.
        found = (store.partition_states(name, partition) for partition in partitions)
        return {state.partition: state for states in found for state in states}

    return Pipeline(
        name,
        decoder=decoder,
        spaces=spaces,
        block_ms=round(model.drift.block * 1000),
        lateness_ms=model.lateness_ms,
        alpha=model.outliers.alpha,
        sample=model.outliers.sample,
        keep_vectors=model.outliers.keep_vectors,
        stored=stored,
        stored_keys=partial(store.thinned_keys, name) if model.thins_by_key else None,
        stored_halves=partial(store.halves, name),
        scores=scores,
        fraud=stage,
        remember=model.performance.remembered_share,
    )


class HistoryWorker:
    """Scores one stretch of history, and folds it. One thread calls `step` until `finished`, then `end`.

    Whoever stops it at any moment loses nothing: the next one goes on at the stored positions.

    Args:
        name: the model's name.
        store: the database, or a lane in it.
        source: hands over the records of the stretch, and then has an end.
        references: those that records are scored against.
        labels: those that records are scored as fraud with.
        sinks: names of those that are told of incidents of the past.
        scores: gets the scores of every record; None: nobody wants them.
        ends: no more records are to come after the stretch: halves of pairs that wait go alone.

    Attributes:
        found: what came of it so far.
        failure: what failed and is tried again, in words; "" while nothing does.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        store: Store,
        source: Source,
        references: Sequence[ReferenceRow],
        history: HistoryRange,
        labels: HistoryLabels,
        sinks: Sequence[str] = (),
        scores: Scores | None = None,
        ends: bool = True,
    ) -> None:
        self.name = name
        self.found = Found()
        self.failure = ""
        self.source = source
        self._model = settings.models[name]
        self._limits = settings.checkpoint
        self._store = store
        self._history = history
        self._scores = scores
        self._unsettled = True
        self._ends = ends
        self.pipeline = history_pipeline(name, settings, references, store=store, labels=labels, scores=scores)
        stage = self.pipeline.fraud
        self.folder = Folder(
            name,
            settings,
            spaces=self.pipeline.spaces,
            fraud=None if stage is None else stage.parts,
            sinks=sinks,
            history=history,
            answers=labels.answers,
        )
        self._reader = Reader(
            source,
            most_records=self._limits.poll_records,
            target_s=self._limits.every,
            idle_s=self._model.drift.idle,
            wait_s=self._model.drift.wait,
            live=False,
        )
        self._limit = DeadLetterLimit(self._model.dead_letters)
        self._began: float | None = None  # monotonic clock of the first record that no checkpoint has written
        self._next_fold = float("-inf")
        self._ageing = HistoryAgeing(store, settings, name)
        self._begins = True  # what is stored was not looked at yet

    def start(self) -> None:
        """Open the source.

        Raises:
            SourceError: the source cannot be read.
        """
        self.source.open(partial(self._store.positions, self.name), topic_ids=partial(self._store.topic_ids, self.name))

    @property
    def finished(self) -> bool:
        """Everything was read, and is written."""
        return self.source.finished and self._began is None and not self.failure

    def left(self) -> int:
        """What is not read yet, in records; in bytes for lines of a file."""
        return sum(self.source.lag().values())

    def step(self, now_ms: int, clock_s: float, *, wait_s: float = POLL_S) -> int:
        """Poll once, take in what came, write a checkpoint and fold when they are due.

        Returns:
            How many records a checkpoint counted.

        Raises:
            OwnershipLost: another process reads on from here.
            DeadLetterWave: too many records cannot be used.
            SourceError, StoreError: of the kinds that cannot be waited out.
        """
        batches = self._reader.poll(clock_s, wait_s=wait_s)
        before = self.found.records
        self.failure = self._reader.failure
        try:
            self._settle(now_ms)
            began = time.perf_counter()
            for batch in batches:
                self._take(batch, now_ms, clock_s)
            self._reader.took(sum(map(len, batches)), time.perf_counter() - began)
            if batches:
                self._reader.cope()
            over = self._end_pairs(batches)
            if self._due(clock_s) or over:
                self._commit(now_ms)
            if clock_s >= self._next_fold:
                self._fold(now_ms, clock_s)
        except SourceError as error:  # a schema registry that does not answer
            self._start_over()
            self._reader.stumble(error, clock_s)
            self.failure = str(error)
        except StoreError as error:
            if not error.retryable:
                raise
            self._start_over()
            self.failure = str(error)
        return self.found.records - before

    def end(self, now_ms: int) -> None:
        """Everything was read: close what may be closed now.

        Raises:
            StoreError: the database refuses; what was closed before stays closed.
        """
        self.found.add_fold(self.folder.close_all(self._store, now_ms))

    def drain(self, now_ms: int) -> None:
        """Write what is pending, before leaving early."""
        self._settle(now_ms)
        if self._began is not None:
            self._commit(now_ms)

    def close(self) -> None:
        """Give the source back."""
        self.source.close()

    def _take(self, batch: RawBatch, now_ms: int, clock_s: float) -> None:
        """Take in one batch, up to each offset at which a checkpoint has to end."""
        rest: RawBatch | None = batch
        while rest is not None:
            if self._began is None:
                self._began = clock_s
            cut = None if not len(rest) else self._history.next_cut(rest.partition, int(rest.offsets[0]))
            after = len(rest) if cut is None else int(rest.offsets.searchsorted(cut))
            piece, left = rest.rows(0, after), rest.rows(after, len(rest)) if after < len(rest) else None
            self._take_piece(piece, now_ms, clock_s)
            if left is not None:
                self._commit(now_ms)
                self._began = clock_s
            rest = left

    def _end_pairs(self, batches: Sequence[RawBatch]) -> bool:
        """Halves of pairs that wait at the end of a span go alone, before a fold takes its blocks to be over.

        Returns whether there are any.
        """
        if not self._ends or self._model.record.pair is None:
            return False
        spans = self._history.spans
        at: dict[Partition, int] = {}
        if self._begins:  # what was read to its end before comes no more
            self._begins = False
            at = self._store.positions(self.name, list(spans))
        at |= {batch.partition: batch.next_offset for batch in batches}
        ended = {partition for partition, offset in at.items() if offset >= spans[partition].after}
        return self.pipeline.end(ended, None) > 0

    def _take_piece(self, piece: RawBatch, now_ms: int, clock_s: float) -> None:
        left: RawBatch | None = piece
        while left is not None:
            before, offsets = len(self.pipeline.pending_spoiled), left.offsets
            left = self.pipeline.process(left, None, until_full=True)
            taken = offsets[: len(offsets) - (0 if left is None else len(left))]
            wave = self._limit.push(taken, self.pipeline.pending_spoiled[before:])
            if wave or self.pipeline.full or self.pipeline.jumped:
                self._commit(now_ms)
                self._began = clock_s
            if wave:
                raise DeadLetterWave(f"Model {self.name}: {wave}.", hint=WAVE_HINT)

    def _due(self, clock_s: float) -> bool:
        if self._began is None:
            return False
        return (
            self.pipeline.full
            or self.pipeline.records >= self._limits.records
            or clock_s - self._began >= self._limits.every
            or self.source.finished
        )

    def _commit(self, now_ms: int) -> None:
        checkpoint, receipt = self.pipeline.checkpoint(), ""
        if self._scores is not None:
            receipt = self._scores.write(now_ms)
        try:
            self._store.commit(checkpoint.with_scores(receipt))
        except (OwnershipLost, StoreBusy, StoreFull):  # it is certain that nothing was written
            if self._scores is not None:
                self._scores.discard(receipt)
            raise
        self._began = None
        self.pipeline.written()
        self.found.records += sum(advance.records for advance in checkpoint.advances)
        self.found.late += sum(advance.late for advance in checkpoint.advances)
        self.found.dead.update(letter.reason for letter in checkpoint.dead_letters)
        if self._scores is not None:
            self._unsettled = True
            self._scores.publish(receipt, now_ms)
            self._unsettled = False

    def _settle(self, now_ms: int) -> None:
        if self._scores is not None and self._unsettled:
            self._scores.settle(self._store.partition_states(self.name), now_ms)
            self._unsettled = False

    def _fold(self, now_ms: int, clock_s: float) -> None:
        folded = self.folder.step(self._store, now_ms, clock_s, partitions=frozenset(self._history.spans))
        self._next_fold = clock_s + FOLD_S
        self.found.add_fold(folded)
        self._ageing.step(clock_s)
        spans = self._history.spans
        unfinished = [
            state
            for state in folded.partitions
            if state.partition in spans and state.next_offset < spans[state.partition].after
        ]
        self._reader.hold_those_ahead(unfinished, frozenset())

    def _start_over(self) -> None:
        self._began = None
        self._begins = True
        self.pipeline.discard()
        self._reader.rewind()
