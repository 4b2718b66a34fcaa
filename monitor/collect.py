"""The first reference: collects the records of a baseline and builds one reference for each space.

The same collector serves `driftd run` without a reference (the first records of the stream) and `driftd reference
build` (a time range of the source).
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from connectors.database.rows import ReferenceRow
from connectors.records import DeadLetter, Partition, RawBatch
from detectors.errors import InvalidInput, InvalidReference
from detectors.reference import EmbedderState, Reference
from detectors.seasons import Trial
from detectors.segments import MIN_SEGMENT_RECORDS
from monitor.calibration import BaselineTruths
from monitor.canaries import Candidates
from monitor.decode import Decoder
from monitor.embedders import Embedder, embed_all, learns_apart
from monitor.event import EventBatch
from monitor.fraud_build import FraudColumns, build_fraud
from monitor.fraud_settings import FRAUD_SPACE, FraudSettings
from monitor.log import RepeatingFailure
from monitor.pairing import Pairing, StoredHalves, none_stored, pairing_of
from monitor.performance_settings import PerformanceSettings
from monitor.settings import ReferenceSettings
from monitor.thinning import SeenKeys, key_hashes

log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
Chosen = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]


@dataclass(slots=True)
class _Columns:
    """What is kept of the collected records of one space: vectors; raw values where the embedder has to learn."""

    vectors: list[npt.NDArray[np.float32]] = field(default_factory=list)
    raw: list[list[Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Span:
    """Collected records of one partition: how many, and how far."""

    first_offset: int
    next_offset: int
    max_time_ms: int
    records: int
    dead: int
    topic_id: str | None


class Collector:
    """Collects up to ``settings.collect`` usable records, then builds the references.

    A record that an embedder cannot use becomes a dead letter as it would later. Nothing is written until the
    references are built: after a crash the collection begins again, at the same records.

    With ``thin_by_key``, only the first record of a key in a block of its partition is collected, as only it would
    enter the drift summaries later: moments, prototypes, calibration and block sums are all of what the fold will see.

    ``fraud`` are the settings of fraud scores: what they need to know of the baseline is built with the reference of
    ``fraud_space``.

    ``chosen`` says of event times, int64 (n,), whether their records belong in the baseline, bool (n,); by default all.

    ``seasons`` are periods to look for, in blocks. ``stored_halves`` looks up the halves of pairs that wait in a
    partition; what waits when the collection ends is in ``pairings``.

    ``performance`` says whose word it is how often the model was right; by default that of the records themselves.
    """

    def __init__(
        self,
        model: str,
        *,
        decoder: Decoder,
        embedders: Mapping[str, Embedder],
        settings: ReferenceSettings,
        block_ms: int,
        seasons: Sequence[float] = (),
        thin_by_key: bool = False,
        stored_halves: StoredHalves = none_stored,
        fraud: FraudSettings | None = None,
        fraud_space: str = "",
        chosen: Chosen | None = None,
        performance: PerformanceSettings | None = None,
    ) -> None:
        self.model = model
        self._truths = BaselineTruths(
            performance or PerformanceSettings(), confidence=decoder.settings.confidence is not None
        )
        self._chosen = chosen
        self._fraud = None if fraud is None else FraudColumns(fraud)
        self._fraud_space = fraud_space
        self.dead: list[DeadLetter] = []
        self.spoiled: list[DeadLetter] = []  # one for each record of which no row can be used
        self.collected = 0
        self.thinned = 0
        self.spans: dict[Partition, _Span] = {}
        self.pairings: dict[Partition, Pairing | None] = {}
        self._decoder = decoder
        self._stored_halves = stored_halves
        self._embedders = dict(embedders)
        self._settings = settings
        self._block_ms = block_ms
        self._seasons = tuple(seasons)
        self._thin_by_key = thin_by_key
        self._seen: dict[Partition, SeenKeys] = {}
        self._columns = {space: _Columns() for space in embedders}
        self._canaries = {
            space: Candidates(embedder, settings=settings, record=decoder.settings)
            for space, embedder in embedders.items()
        }
        self._times: list[npt.NDArray[np.int64]] = []
        self._ids: list[str] = []
        self._kept: list[dict[str, Any] | None] = []
        self._segments: dict[str, list[str]] = {}
        self._embedder_fails = RepeatingFailure(log, "embedder failed")

    @property
    def wanted(self) -> int:
        """Records to collect."""
        return self._settings.collect

    def take(self, batch: RawBatch, now_ms: int | None) -> RawBatch:
        """Take in records up to the one that completes the wanted number of rows, however the polls cut the stream.

        Returns:
            The records that are left over.
        """
        if batch.partition not in self.pairings:
            pair = self._decoder.settings.pair
            self.pairings[batch.partition] = pairing_of(batch.partition, pair, self._stored_halves)
        while len(batch) and self.collected < self.wanted:
            most = self.wanted - self.collected
            events = self._decoder.decode(batch, now_ms, self.pairings[batch.partition], most=most)
            taken = int(np.searchsorted(batch.offsets, events.next_offset))
            if self._chosen is not None:
                events = events.take(np.flatnonzero(self._chosen(events.time_ms)))
            self._add(batch.rows(0, taken), events)
            batch = batch.rows(taken, len(batch))
        return batch

    def _add(self, batch: RawBatch, events: EventBatch) -> None:
        good = np.ones(len(events), dtype=np.bool_)
        embedded: dict[str, npt.NDArray[np.float32]] = {}
        problems: dict[int, tuple[str, str]] = {}
        for space, embedder in self._embedders.items():
            if embedder.learns:
                continue
            columns_of = [events.fields[name] for name in embedder.fields]
            result = embed_all(embedder, columns_of, len(events), failed=self._embedder_fails.happened)
            embedded[space] = result.vectors
            for problem in result.problems:
                problems.setdefault(problem.row, (problem.reason, problem.detail))
        refused, _ = events.refused(problems)
        dead = refused.dead
        self.spoiled += refused.spoiled
        good[list(problems)] = False
        usable = np.flatnonzero(good)
        chosen = self._voting(events, usable)
        rows = chosen.tolist()
        for space, embedder in self._embedders.items():
            columns = self._columns[space]
            if embedder.learns:
                columns.raw += [[events.fields[name][row] for name in embedder.fields] for row in rows]
            elif rows:
                columns.vectors.append(embedded[space][chosen])
            self._canaries[space].push(events, chosen)
        self._truths.push(events, chosen)
        self._times.append(events.time_ms[chosen])
        self._ids += [events.ids[row] for row in rows]
        self._kept += [None if events.kept is None else events.kept[row] for row in rows]
        if self._fraud is not None:
            self._fraud.add(events, chosen)
        for name, values in events.segments.items():
            # Interned: many records, few values.
            self._segments.setdefault(name, []).extend(sys.intern(values[row]) for row in rows)
        self.dead += dead
        self.collected += len(rows)
        self._extend(batch, events.time_ms[usable], events.records, len(dead))

    def _voting(self, events: EventBatch, usable: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The usable rows without those whose key has had its vote in the block."""
        if not self._thin_by_key or events.keys is None:
            return usable
        # All blocks stay open: their keys are fewer than the records that are collected.
        seen = self._seen.setdefault(events.partition, SeenKeys())
        keys = [events.keys[row] for row in usable.tolist()]
        votes = seen.vote(events.time_ms[usable] // self._block_ms, key_hashes(keys))
        self.thinned += votes.thinned
        return usable[votes.enters]

    def _extend(self, batch: RawBatch, times: npt.NDArray[np.int64], records: int, dead: int) -> None:
        before = self.spans.get(batch.partition)
        first = int(batch.offsets[0]) if len(batch) else batch.next_offset
        newest = int(times.max()) if len(times) else -1
        self.spans[batch.partition] = _Span(
            first_offset=before.first_offset if before else first,
            next_offset=batch.next_offset,
            max_time_ms=max(before.max_time_ms if before else -1, newest),
            records=(before.records if before else 0) + records,
            dead=(before.dead if before else 0) + dead,
            topic_id=batch.topic_id,
        )

    def build(
        self, folder: Path, *, versions: Mapping[str, int], now_ms: int, progress: Progress | None = None
    ) -> list[ReferenceRow]:
        """Build and save one reference for each space, in ``folder``/model/space/version.

        Raises:
            InvalidInput: too few usable records.
            InvalidReference: a reference of that number exists already.
        """
        if self.collected == 0:
            reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(d.reason for d in self.dead).most_common(3))
            found = f"{reasons}. The first: {self.dead[0].detail}" if self.dead else "the source is empty."
            raise InvalidInput(
                f"No usable record for a reference of {self.model}: {found}",
                hint="Mend what names the fields: record and spaces of the model's settings."
                if self.dead
                else "Choose another range, or look at the source: driftd check",
            )
        times = np.concatenate(self._times)
        order = np.argsort(times, kind="stable")
        built: list[ReferenceRow] = []
        for space in self._embedders:
            built += self._build_space(space, folder / self.model, versions, times, order, now_ms, progress)
        return built

    def _build_space(
        self,
        space: str,
        folder: Path,
        versions: Mapping[str, int],
        times: npt.NDArray[np.int64],
        order: npt.NDArray[np.int64],
        now_ms: int,
        progress: Progress | None,
    ) -> list[ReferenceRow]:
        embedder = self._embedders[space]
        vectors, rows = self._vectors(space, embedder, order)
        blocks = times[rows] // self._block_ms
        reference = Reference.build(
            vectors,
            geometry=embedder.geometry,
            block_ids=blocks,
            exemplars=self._settings.exemplars,
            excerpts=[_excerpt(self._kept[row]) for row in rows],
            ids=[self._ids[row] for row in rows],
            times_ms=times[rows],
            embedder=EmbedderState(embedder.kind, embedder.fingerprint(), embedder.state()),
            model=self.model,
            space=space,
            segments=self._common_segments(),
            segment_values={name: [values[row] for row in rows.tolist()] for name, values in self._segments.items()},
            seasons=self._seasons,
            canaries=self._canaries[space].build(embedder),
            performance=self._truths.arrays(),
            created_ms=now_ms,
            progress=None if progress is None else lambda step, share: progress(f"{space}: {step}", share),
        )
        path = folder / space / str(versions[space])
        reference.save(path)
        row = ReferenceRow(
            model=self.model,
            space=space,
            version=versions[space],
            path=str(path),
            records=len(rows),
            dimension=reference.dimension,
            checksum=reference.checksum,
            created_ms=now_ms,
            active=True,
        )
        if self._fraud is None or space != self._fraud_space:
            return [row]
        fraud = build_fraud(
            folder / FRAUD_SPACE,
            reference,
            row=row,
            version=versions[FRAUD_SPACE],
            vectors=vectors,
            blocks=blocks,
            columns=self._fraud,
            order=rows,
            progress=(lambda step, share: progress(f"fraud: {step}", share)) if progress else lambda step, share: None,
        )
        return [row, fraud]

    def _vectors(
        self, space: str, embedder: Embedder, order: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The vectors in time order, and the collected record of each.

        Where an embedder learns apart, they are those of the later half.
        """
        columns = self._columns[space]
        if not embedder.learns:
            vectors = np.concatenate(columns.vectors)[order]
            columns.vectors.clear()
            return vectors, order
        by_field = [[columns.raw[row][index] for row in order] for index in range(len(embedder.fields))]
        columns.raw.clear()
        if learns_apart(embedder):
            half = len(order) // 2
            embedder.fit([column[:half] for column in by_field])
            by_field, order = [column[half:] for column in by_field], order[half:]
        else:
            embedder.fit(by_field)
        result = embedder.embed(by_field)
        good = np.setdiff1d(np.arange(len(order)), [problem.row for problem in result.problems]).astype(np.int64)
        return result.vectors[good], order[good]

    def _common_segments(self) -> dict[str, list[str]]:
        return {
            name: sorted(
                value for value, n in Counter(values).most_common(self._settings.segments) if n >= MIN_SEGMENT_RECORDS
            )
            for name, values in self._segments.items()
        }


def _excerpt(kept: dict[str, Any] | None) -> str:
    return "" if kept is None else json.dumps(kept, ensure_ascii=False, sort_keys=True)


def check_block_length(reference: Reference, block_ms: int) -> None:
    """Raise InvalidReference if the reference follows a season that was counted in blocks of another length."""
    followed = next((trial for trial in Trial.read(reference.drift) if trial.used), None)
    if followed is not None and int(reference.blocks.number[0]) != reference.first_ms // block_ms:
        raise InvalidReference(
            f"The reference {reference.model}/{reference.space} follows a season of {followed.period:g} blocks, "
            f"but not of blocks of {block_ms / 1000:g} s, as drift.block says now.",
            hint="Set drift.block back, or build the reference again: driftd reference build",
        )


def next_version(registered: Sequence[int], folder: Path) -> int:
    """The number that the next reference of a space gets; a folder left by a crash keeps its number to itself."""
    left = [int(path.name) for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []
    return max([*registered, *left], default=0) + 1
