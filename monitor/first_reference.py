"""The first references of a model that has none: one of its workers collects a baseline, the others wait for it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from connectors.database.rows import Advance, Checkpoint, ReferenceRow, SummaryDelta
from connectors.database.store import Store
from connectors.records import DeadLetter, Gap, Partition, RawBatch
from detectors.errors import DriftdError
from monitor.collect import Collector, next_version
from monitor.decode import Decoder
from monitor.embedders import Embedder
from monitor.fraud_build import fraud_row_of
from monitor.fraud_settings import FRAUD_SPACE
from monitor.log import event
from monitor.pipeline import EVERYTHING
from monitor.record_counts import RecordCounts
from monitor.settings import Settings

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks for references that another worker builds


class FirstReference:
    """Collects a baseline, or waits for the worker that does: the one that reads the first partition of the topic.

    Nothing is written until the references are built. A worker that is stopped before, or loses a partition, leaves
    the collection to whoever reads the first partition then, and it begins anew, at the same stored positions.

    Args:
        model: the model's name.
        embedders: of every space.
    """

    def __init__(
        self, model: str, settings: Settings, *, store: Store, decoder: Decoder, embedders: Mapping[str, Embedder]
    ) -> None:
        self._model = model
        self._settings = settings
        self._store = store
        self._decoder = decoder
        self._embedders = dict(embedders)
        self._next_look = float("-inf")
        self._gaps: list[Gap] = []
        self.collector: Collector | None = None

    def built(self, clock_s: float) -> list[ReferenceRow]:
        """The references of all spaces, if they are there by now, and what belongs to them where fraud is scored.

        Looks at most once a second.

        Raises:
            DriftdError: there are some, but not for all spaces.
        """
        if clock_s < self._next_look:
            return []
        self._next_look = clock_s + LOOK_S
        rows = {space: self._store.active_reference(self._model, space) for space in self._embedders}
        missing = [space for space, row in rows.items() if row is None]
        if missing and len(missing) < len(rows):
            raise DriftdError(
                f"Model {self._model} has references for some spaces, but none for: {', '.join(missing)}.",
                hint="Build them: driftd reference build",
            )
        found = [row for row in rows.values() if row is not None]
        model = self._settings.models[self._model]
        if model.fraud is not None and (of_space := rows.get(model.fraud_space)) is not None:
            fraud = fraud_row_of(self._store.references(self._model, FRAUD_SPACE), of_space)
            found += [] if fraud is None else [fraud]
        return found

    def is_mine(self, assigned: frozenset[Partition], partitions: frozenset[Partition]) -> bool:
        """Whether this worker collects: then there is a collector; otherwise what was collected is forgotten."""
        mine = bool(assigned) and min(partitions | assigned) in assigned
        if mine and self.collector is None:
            model = self._settings.models[self._model]
            self.collector = Collector(
                self._model,
                decoder=self._decoder,
                embedders=self._embedders,
                settings=model.reference,
                block_ms=round(model.drift.block * 1000),
                seasons=model.drift.season_blocks,
                thin_by_key=model.thins_by_key,
                fraud=model.fraud,
                fraud_space=model.fraud_space,
                performance=model.performance,
                stored_halves=lambda partition: self._store.halves(self._model, partition),
            )
            log.info(event("collecting a baseline", model=self._model, records=self.collector.wanted))
        elif not mine:
            self.forget()
        return mine

    def has_read(self, partition: Partition) -> bool:
        """Whether records of the partition have been collected."""
        return self.collector is not None and partition in self.collector.spans

    def forget(self) -> None:
        """Begin anew: nothing of it was written."""
        self.collector = None
        self._gaps = []

    def take(self, batch: RawBatch, now_ms: int) -> tuple[RawBatch, Sequence[DeadLetter]]:
        """Into the baseline, up to exactly the wanted number of records.

        Returns:
            What is left over, to be scored, and a letter for each record that was taken and is of no use at all.
        """
        assert self.collector is not None
        if batch.gap is not None:
            self._gaps.append(batch.gap)
        tenths = 10 * self.collector.collected // self.collector.wanted
        before = len(self.collector.spoiled)
        rest = self.collector.take(batch, now_ms)
        if 10 * self.collector.collected // self.collector.wanted > tenths:
            log.info(
                event("baseline grows", model=self._model, records=self.collector.collected, of=self.collector.wanted)
            )
        return rest, self.collector.spoiled[before:]

    def build(self, now_ms: int, *, finished: bool) -> Checkpoint | None:
        """The references, and the checkpoint that writes them with the offsets; None while there are too few records.

        Args:
            finished: the source is at its end, so that what there is has to do.
        """
        collector = self.collector
        if collector is None or (collector.collected < collector.wanted and not (finished and collector.collected)):
            return None
        log.info(
            event("building the reference", model=self._model, records=collector.collected, thinned=collector.thinned)
        )
        versions = {
            space: next_version(
                [row.version for row in self._store.references(self._model, space)],
                self._settings.references / self._model / space,
            )
            for space in self._settings.models[self._model].reference_spaces
        }
        rows = collector.build(self._settings.references, versions=versions, now_ms=now_ms)
        stored = {state.partition: state for state in self._store.partition_states(self._model)}
        block_ms = round(self._settings.models[self._model].drift.block * 1000)
        advances: list[Advance] = []
        counts: list[SummaryDelta] = []
        letters: list[DeadLetter] = []
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
                    topic_id=span.topic_id,
                    from_offset=span.first_offset,
                )
            )
            dead = [letter for letter in collector.dead if letter.partition == partition]
            reasons = Counter(letter.reason for letter in dead)
            summary = RecordCounts(span.records, 0, dict(reasons)).to_bytes()
            block = max(span.max_time_ms, 0) // block_ms
            letters += [replace(letter, block=block) for letter in dead]
            counts.append(SummaryDelta("", EVERYTHING, block, 0, partition, span.first_offset, summary))
        pairings = [(place, pairing) for place, pairing in sorted(collector.pairings.items()) if pairing is not None]
        return Checkpoint(
            self._model,
            advances,
            summaries=counts,
            dead_letters=letters,
            references=rows,
            gaps=self._gaps,
            halves=[row for place, pairing in pairings for row in pairing.unwritten(place)],
            joined=[(place, offset) for place, pairing in pairings for offset in pairing.left],
        )

    @property
    def state(self) -> str:
        """In words, for people."""
        if self.collector is None:
            return "waiting for the first reference, which another worker builds"
        thinned = self.collector.thinned
        without = f", {thinned:,} more had no vote: record.key" if thinned else ""
        return f"collecting baseline: {self.collector.collected:,} of {self.collector.wanted:,} records{without}"
