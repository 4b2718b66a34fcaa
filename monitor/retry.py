"""Dead letters sent again: their records are read from the source once more and take the way that all records take,
with the settings of today.

    dead letters ──► Source.read_at ──► decode, embed, score ──► one transaction per batch:
                                                                 good: the letter goes, the record counts
                                                                 still bad: the letter stays, with what is wrong now

No next offset changes, so that a running daemon is not disturbed. Afterwards everything is as if the records had been
good from the beginning, but for those whose block is closed by now: they are counted as late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from connectors.database.rows import DeadLetterRow, Retried, SummaryDelta
from connectors.database.store import Store
from connectors.records import DeadLetter, Partition, RawBatch, Source
from detectors.errors import InvalidInput
from monitor.decode import Decoder
from monitor.event import EventBatch
from monitor.pairing import Pairing
from monitor.pipeline import EVERYTHING, Pipeline
from monitor.record_counts import RecordCounts
from monitor.settings import Settings
from monitor.spaces import load_spaces

BATCH = 500  # letters of one transaction
_NEVER_MS = 1 << 60  # whether a record is late is for the database to say, which knows what is closed

Place = tuple[Partition, int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class RetryResult:
    """What came of the dead letters of one model.

    Attributes:
        letters: how many were looked at.
        mended: letters whose records are good now, and those of them that came too late for their block.
        still: letters that stay, by the reason of today.
        gone: letters whose records cannot be read any more: deleted by the source, or another record is there now.
        added: further letters, of records that turned out to hold several rows.
    """

    model: str
    letters: int = 0
    mended: int = 0
    late: int = 0
    still: Mapping[str, int] = field(default_factory=dict)
    gone: int = 0
    added: int = 0

    def plus(self, other: RetryResult) -> RetryResult:
        """Both together."""
        return RetryResult(
            self.model,
            self.letters + other.letters,
            self.mended + other.mended,
            self.late + other.late,
            dict(Counter(self.still) + Counter(other.still)),
            self.gone + other.gone,
            self.added + other.added,
        )


class Retry:
    """Sends the dead letters of one model again.

    Args:
        name: the model's name.
        settings: all settings.
        store: the database.
        source: of the model; only `read_at` is called.

    Raises:
        InvalidInput: the model has no reference yet, or pairs requests with responses.
        InvalidReference: a reference is damaged or was made by another embedder.
    """

    def __init__(self, name: str, settings: Settings, *, store: Store, source: Source) -> None:
        model = settings.models[name]
        self._name = name
        self._store = store
        self._source = source
        self._block_ms = round(model.drift.block * 1000)
        if model.record.pair is not None:
            raise InvalidInput(
                f"Model {name} pairs requests with responses: the other halves of its dead letters have gone on alone.",
                hint="Send them to the topic again: driftd deadletters list --json says where they are.",
            )
        references = {space: store.active_reference(name, space) for space in model.spaces}
        if missing := [space for space, row in references.items() if row is None]:
            raise InvalidInput(
                f"Model {name} has no reference for: {', '.join(missing)}. Its dead letters cannot be scored.",
                hint="driftd run collects one, or build it: driftd reference build",
            )
        embedders = {space: settings.embedder.build() for space, settings in model.spaces.items()}
        self._decoder = _ChosenRows(
            model.watched_record,
            fields=[field for embedder in embedders.values() for field in embedder.fields],
            payload_bytes=model.dead_letters.payload_bytes,
            pin=partial(store.pin_format, name),
        )
        self._pipeline = Pipeline(
            name,
            decoder=self._decoder,
            spaces=load_spaces([row for row in references.values() if row is not None], model, embedders),
            block_ms=self._block_ms,
            lateness_ms=_NEVER_MS,
            alpha=model.outliers.alpha,
            sample=model.outliers.sample,
            keep_vectors=model.outliers.keep_vectors,
            stored=lambda partitions: {},
            remember=model.performance.remembered_share,
            stored_keys=(lambda partition: store.thinned_keys(name, partition)) if model.thins_by_key else None,
        )

    def run(
        self,
        now_ms: int,
        *,
        reason: str | None = None,
        number: int | None = None,
        dry_run: bool = False,
        progress: Progress = lambda done, total: None,
    ) -> RetryResult:
        """Send them again: all that are stored now, or those with a reason, or one.

        Args:
            now_ms: bounds event times where the source gives none.
            dry_run: write nothing.
            progress: is told how many are done, and of how many.

        Raises:
            SourceError: the source cannot be read; what was done before stays done.
            StoreError: the database refuses; likewise.
        """
        stored = self._store.stored_dead_letters(self._name, reason=reason)
        total = 1 if number is not None else sum(found.stored for found in stored)
        newest = max((found.newest for found in stored), default=0)
        result, done = RetryResult(self._name), 0
        while rows := self._store.dead_letter_rows(
            self._name, reason=reason, number=number, after=done, to=newest, limit=BATCH
        ):
            outcome, retried = self._again(rows, now_ms)
            if not dry_run and (late := self._store.retried(retried)) is not None:
                outcome = replace(outcome, late=late)
            elif not dry_run:
                continue  # another retry took some of them: what is left of these is read once more
            result, done = result.plus(outcome), rows[-1].id
            progress(result.letters, total)
        return result

    def _again(self, rows: Sequence[DeadLetterRow], now_ms: int) -> tuple[RetryResult, Retried]:
        """What comes of some letters, and what is to be written of it."""
        by_place: dict[Place, list[DeadLetterRow]] = {}
        for row in rows:
            by_place.setdefault((row.letter.partition, row.letter.offset), []).append(row)
        self._pipeline.discard()
        self._decoder.begin(by_place)
        # Offsets below zero are of a topic that was made anew since: nothing can be read there.
        for batch in self._source.read_at(sorted(place for place in by_place if place[1] >= 0)):
            self._pipeline.process(_the_same(batch, by_place), now_ms)
        checkpoint = self._pipeline.checkpoint()
        found = _Found(self._decoder.decoded, checkpoint.dead_letters)
        counts: dict[tuple[Partition, int], RecordCounts] = {}
        for delta in checkpoint.summaries:
            if delta.space == "":
                known = RecordCounts.from_bytes(delta.blob)
                if usable := known.records - sum(known.dead.values()):
                    mended = RecordCounts(usable, 0, {}, known.versions, norms=known.norms)
                    counts[delta.partition, delta.block] = mended
        retried = Retried(
            self._name,
            mended=[],
            changed=[],
            usable={place: count.records for place, count in counts.items()},
            summaries=[delta for delta in checkpoint.summaries if delta.space != ""],
            kept=checkpoint.kept,
            thinned_keys=checkpoint.thinned_keys,
            answers=checkpoint.answers,
            truths=checkpoint.truths,
            block_ms=self._block_ms,
        )
        still: Counter[str] = Counter()
        gone = 0
        for place, letters in by_place.items():
            for row in letters:
                now = found.letters_of(place, row.letter.row)
                if now is None:
                    gone += 1
                    continue
                still.update(letter.reason for letter in now[:1])
                _settle(retried, row, now)
            if letters[0].letter.row < 0 and (grown := found.rows_at(place) - 1) > 0:
                retried.more_records[place[0]] = retried.more_records.get(place[0], 0) + grown
        _correct(counts, retried)
        retried.summaries.extend(
            SummaryDelta("", EVERYTHING, block, 0, partition, 0, count.to_bytes())
            for (partition, block), count in sorted(counts.items())
            if count.records or count.dead
        )
        outcome = RetryResult(
            self._name, len(rows), len(retried.mended), still=still, gone=gone, added=len(retried.added)
        )
        return outcome, retried


class _ChosenRows(Decoder):
    """Decodes as always; but of a record of which only some rows were dead letters, lets only those through.

    Attributes:
        decoded: the rows of each record that could be decoded, by its place.
    """

    def begin(self, by_place: Mapping[Place, Sequence[DeadLetterRow]]) -> None:
        """The letters whose records come next."""
        self.decoded: dict[Place, set[int]] = {}
        self._wanted = {
            place: {row.letter.row for row in rows}
            for place, rows in by_place.items()
            if all(row.letter.row >= 0 for row in rows)
        }

    def decode(
        self, batch: RawBatch, now_ms: int | None, pairing: Pairing | None = None, *, most: int | None = None
    ) -> EventBatch:
        events = super().decode(batch, now_ms, pairing, most=most)
        partition = batch.partition
        places = list(zip(events.offsets.tolist(), events.rows.tolist(), strict=True))
        if self._wanted:
            chosen = [
                index
                for index, (offset, row) in enumerate(places)
                if row in self._wanted.get((partition, offset), (row,))
            ]
            events = events.take(np.array(chosen, dtype=np.int64))
            places = [places[index] for index in chosen]
            kept = [
                letter.row < 0 or letter.row in self._wanted.get((partition, letter.offset), (letter.row,))
                for letter in events.dead
            ]
            events.dead = [letter for letter, keep in zip(events.dead, kept, strict=True) if keep]
            events.dead_places = [place for place, keep in zip(events.dead_places, kept, strict=True) if keep]
        for offset, row in places:
            self.decoded.setdefault((partition, offset), set()).add(row)
        return events


class _Found:
    """What the records are now that were read again."""

    def __init__(self, decoded: Mapping[Place, set[int]], dead: Sequence[DeadLetter]) -> None:
        self._dead: dict[Place, dict[int, DeadLetter]] = {}
        for letter in dead:
            self._dead.setdefault((letter.partition, letter.offset), {})[letter.row] = letter
        self._decoded = decoded

    def letters_of(self, place: Place, row: int) -> list[DeadLetter] | None:
        """What is wrong now with a record (row -1) or a row of it, [] if nothing; None if it is not there."""
        dead = self._dead.get(place, {})
        decoded = self._decoded.get(place, set())
        if row < 0:
            return list(dead.values()) if dead or decoded else None
        if row in dead or -1 in dead:
            return [replace(dead.get(row) or dead[-1], row=row)]
        return [] if row in decoded else None

    def rows_at(self, place: Place) -> int:
        """How many rows the record has, good ones and dead ones."""
        dead = self._dead.get(place, {})
        return 1 if -1 in dead else len(self._decoded.get(place, set()) | set(dead))


def _the_same(batch: RawBatch, letters: Mapping[Place, Sequence[DeadLetterRow]]) -> RawBatch:
    """Without records that are not those of the letters: at their offsets, but with another time of the broker."""
    times = [letters[batch.partition, offset][0].letter.time_ms for offset in batch.offsets.tolist()]
    same = np.flatnonzero(batch.timestamps_ms == np.array(times, dtype=np.int64))
    if len(same) == len(batch):
        return batch
    rows = same.tolist()
    return replace(
        batch,
        offsets=batch.offsets[same],
        timestamps_ms=batch.timestamps_ms[same],
        keys=[batch.keys[row] for row in rows],
        values=[batch.values[row] for row in rows],
        headers=[batch.headers[row] for row in rows],
    )


def _settle(retried: Retried, row: DeadLetterRow, now: Sequence[DeadLetter]) -> None:
    """Note what becomes of one letter, given what is wrong with its record or row now."""
    if not now:
        retried.mended.append(row)
        return
    first, *others = (replace(letter, block=row.letter.block) for letter in now)
    if first != row.letter:
        retried.changed.append((row, first))
    retried.added.extend(others)


def _correct(counts: dict[tuple[Partition, int], RecordCounts], retried: Retried) -> None:
    """Take the letters that go or change out of the blocks in which they are counted."""

    def add(letter: DeadLetter, sign: int) -> None:
        if letter.block is not None:
            key = (letter.partition, letter.block)
            more = RecordCounts(sign, 0, {letter.reason: sign})
            counts[key] = counts[key].merge(more) if key in counts else more

    for row in retried.mended:
        add(row.letter, -1)
    for row, letter in retried.changed:
        add(row.letter, -1)
        add(letter, 1)
    for letter in retried.added:
        add(letter, 1)
