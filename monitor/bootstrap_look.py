"""A sample of a model's history, spread evenly over it: what `driftd bootstrap` knows before there is a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from connectors.kafka import KafkaSettings
from connectors.records import Partition, RawBatch, Source, Span
from detectors.errors import InvalidInput
from monitor.decode import Decoder
from monitor.embedders import Embedder, embed_all
from monitor.event import EventBatch
from monitor.pairing import none_stored, pairing_of
from monitor.settings import ModelSettings
from monitor.sniff import Sample
from monitor.times import text_of

Int64s = npt.NDArray[np.int64]
Progress = Callable[[str, float], None]

MOST_SAMPLED: Final = 40_000  # records
MOST_TEXTS: Final = 10_000  # of them, where an encoder of text takes milliseconds for each
MOST_BYTES: Final = 128 << 20  # of their values
MOST_READ: Final = 1_000_000  # offsets of topics: of longer ones, single places are read
_PLACES: Final = 400  # where such a topic is read
_PAIRED: Final = 64  # records in a row, where a request and its response are two
_POLL: Final = 4096
_WAIT_S: Final = 0.5


@dataclass
class Looked:
    """Records from all over the history.

    Attributes:
        spans: what there is, with ends as they were at the beginning.
        samples: by partition, in the order of their offsets.
        records: how many there are in all; estimated where not all were read.
    """

    spans: Mapping[Partition, Span]
    samples: dict[Partition, list[Sample]] = field(default_factory=dict)
    records: int = 0

    def some(self, most: int, *, run: int = 1) -> list[Sample]:
        """Every n-th of the sample; with ``run``, so many in a row each time."""
        every = [sample for _, samples in sorted(self.samples.items()) for sample in samples]
        step = max(-(-len(every) // most), 1)
        return [sample for place, sample in enumerate(every) if place // run % step == 0]


def look(source: Source, settings: object, *, start_ms: int | None, progress: Progress, paired: bool = False) -> Looked:
    """Take a sample of everything since ``start_ms`` (by the broker's time; files give all that they have).

    Args:
        settings: of the source.
        paired: keep records that follow one another together, so that requests find their responses.

    Raises:
        InvalidInput: there is nothing.
        SourceError: the source cannot be read.
    """
    progress("looking", 0.0)
    spans = source.extents(start_ms, None)
    if not spans:
        since = "" if start_ms is None else f" since {text_of(start_ms)}"
        raise InvalidInput(
            f"There are no records{since}.", hint="Look further back: --days 60. What is there: driftd check"
        )
    run = _PAIRED if paired else 1
    if isinstance(settings, KafkaSettings) and sum(map(len, spans.values())) > MOST_READ:
        return _at_places(source, spans, progress)
    return _read_through(source, spans, run, progress)


def _read_through(source: Source, spans: Mapping[Partition, Span], run: int, progress: Progress) -> Looked:
    """Read everything, and keep every n-th (run of) record of each partition; n doubles as the sample grows."""
    found = Looked(spans)
    step, kept, size = 1, 0, 0
    seen: dict[Partition, int] = {}
    places: dict[Partition, list[int]] = {}
    left = {partition: len(span) for partition, span in spans.items()}
    total = sum(left.values())
    for batch in batches_of(source, spans):
        at = seen.get(batch.partition, 0)
        seen[batch.partition] = at + len(batch)
        numbers = np.arange(at, at + len(batch))
        rows = np.flatnonzero(numbers // run % step == 0).tolist()
        new = [_sample(batch, row) for row in rows]
        found.samples.setdefault(batch.partition, []).extend(new)
        places.setdefault(batch.partition, []).extend(numbers[rows].tolist())
        kept += len(new)
        size += sum(len(sample.value or b"") for sample in new)
        while kept > MOST_SAMPLED or (size > MOST_BYTES and kept > 2):
            step *= 2
            for partition, samples in found.samples.items():
                stays = [row for row, number in enumerate(places[partition]) if number // run % step == 0]
                found.samples[partition] = [samples[row] for row in stays]
                places[partition] = [places[partition][row] for row in stays]
            kept = sum(map(len, found.samples.values()))
            size = sum(len(sample.value or b"") for samples in found.samples.values() for sample in samples)
        left[batch.partition] = max(spans[batch.partition].after - batch.next_offset, 0)
        progress("looking", 1.0 - sum(left.values()) / max(total, 1))
    found.records = sum(seen.values())
    return found


def _at_places(source: Source, spans: Mapping[Partition, Span], progress: Progress) -> Looked:
    """Records in a row at places that are evenly spread: a topic is not read through for a sample of it."""
    found = Looked(spans)
    total = sum(map(len, spans.values()))
    positions: list[tuple[Partition, int]] = []
    for partition, span in sorted(spans.items()):
        places = max(round(_PLACES * len(span) / total), 1)
        row = max(MOST_SAMPLED // _PLACES, 1)
        starts = np.linspace(span.first, max(span.after - row, span.first), places).astype(np.int64)
        offsets = np.unique(starts[:, None] + np.arange(row))
        positions += [(partition, int(offset)) for offset in offsets if offset < span.after]
    got = 0
    for batch in source.read_at(positions):
        found.samples.setdefault(batch.partition, []).extend(_sample(batch, row) for row in range(len(batch)))
        got += len(batch)
        progress("looking", got / len(positions))
    found.records = round(total * got / len(positions))
    return found


def batches_of(source: Source, spans: Mapping[Partition, Span]) -> Iterator[RawBatch]:
    """Every batch of some spans. The client that reads them is closed at the end.

    Raises:
        SourceError: they cannot be read.
    """
    if not spans:
        return
    reader = source.between(spans)
    try:
        reader.open(lambda partitions: {})
        while not reader.finished:
            for batch in reader.poll(_POLL, _WAIT_S):
                if len(batch):
                    yield batch
    finally:
        reader.close()


def _sample(batch: RawBatch, row: int) -> Sample:
    return Sample(
        batch.partition,
        int(batch.offsets[row]),
        int(batch.timestamps_ms[row]),
        batch.keys[row],
        batch.values[row],
        dict(batch.headers[row]),
    )


# --- decoded ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoded:
    """The usable rows of a sample, in the order of time.

    Attributes:
        time_ms: int64 (n,), event times, ascending.
        offsets: int64 (n,), and
        partition: n, where each row's record lies.
        ids: n texts.
        vectors: by space, float32 (n, d).
        disorder_ms: how far 999 of 1,000 lie behind the newest before them in their partition, at most.
        dead: dead letters by reason.
    """

    time_ms: Int64s
    offsets: Int64s
    partition: Sequence[Partition]
    ids: Sequence[str]
    vectors: Mapping[str, npt.NDArray[np.float32]]
    disorder_ms: int
    dead: Mapping[str, int]

    def rows(self, chosen: npt.NDArray[np.bool_] | Int64s) -> Decoded:
        """Some of the rows."""
        at = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen
        return Decoded(
            self.time_ms[at],
            self.offsets[at],
            [self.partition[row] for row in at.tolist()],
            [self.ids[row] for row in at.tolist()],
            {space: vectors[at] for space, vectors in self.vectors.items()},
            self.disorder_ms,
            self.dead,
        )


def decode(looked: Looked, model: ModelSettings, *, progress: Progress) -> Decoded:
    """Open and embed a sample as the settings say.

    Raises:
        InvalidInput: nothing in it can be used.
        MissingExtra: an embedder's package is not installed.
    """
    embedders = {space: entry.embedder.build() for space, entry in model.spaces.items()}
    fields = [name for embedder in embedders.values() for name in embedder.fields]
    decoder = Decoder(model.watched_record, fields=[*fields, *model.extra_fields])
    texts = any(embedder.kind == "text" for embedder in embedders.values())
    run = 1 if model.record.pair is None else _PAIRED
    some = looked.some(MOST_TEXTS if texts else MOST_SAMPLED, run=run)
    by_partition: dict[Partition, list[Sample]] = {}
    for sample in some:
        by_partition.setdefault(sample.partition, []).append(sample)
    events: list[EventBatch] = []
    dead: dict[str, int] = {}
    for partition, samples in sorted(by_partition.items()):
        pairing = pairing_of(partition, model.record.pair, none_stored)
        batch = _batch(partition, samples)
        while len(batch):
            opened = decoder.decode(batch, None, pairing)
            events.append(opened)
            for letter in opened.dead:
                dead[letter.reason] = dead.get(letter.reason, 0) + 1
            batch = batch.rows(int(np.searchsorted(batch.offsets, opened.next_offset)), len(batch))
    count = sum(map(len, events))
    if count == 0:
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(dead.items()))
        raise InvalidInput(
            f"None of {len(some)} records can be used: {reasons or 'there are none'}.",
            hint=_cure(dead),
        )
    vectors: dict[str, npt.NDArray[np.float32]] = {}
    good = np.ones(count, dtype=np.bool_)
    for number, (space, embedder) in enumerate(embedders.items()):
        progress("embedding", number / len(embedders))
        vectors[space], usable = _embedded(embedder, events, dead)
        good &= usable
    times = np.concatenate([batch.time_ms for batch in events])
    if not good.any():
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(dead.items()))
        raise InvalidInput(f"None of {count} records can be embedded: {reasons}.", hint="See models.*.spaces.")
    order = np.argsort(times, kind="stable")
    order = order[good[order]]
    partitions = [batch.partition for batch in events for _ in range(len(batch))]
    ids = [one for batch in events for one in batch.ids]
    return Decoded(
        times[order],
        np.concatenate([batch.offsets for batch in events])[order],
        [partitions[row] for row in order.tolist()],
        [ids[row] for row in order.tolist()],
        {space: one[order] for space, one in vectors.items()},
        _disorder(events),
        dead,
    )


def _embedded(
    embedder: Embedder, events: Sequence[EventBatch], dead: dict[str, int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    columns = [[value for batch in events for value in batch.fields[name]] for name in embedder.fields]
    count = len(columns[0])
    embedder.fit(columns)
    result = embed_all(embedder, columns, count, failed=lambda error: None)
    usable = np.ones(count, dtype=np.bool_)
    for problem in result.problems:
        usable[problem.row] = False
        dead[problem.reason] = dead.get(problem.reason, 0) + 1
    return result.vectors, usable


def _disorder(events: Sequence[EventBatch]) -> int:
    behind: list[Int64s] = []
    newest: dict[Partition, int] = {}
    for batch in events:
        if not len(batch):
            continue
        before = np.maximum.accumulate(np.concatenate([[newest.get(batch.partition, -1)], batch.time_ms]))
        behind.append(np.maximum(before[:-1] - batch.time_ms, 0))
        newest[batch.partition] = int(before[-1])
    return int(np.quantile(np.concatenate(behind), 0.999)) if behind else 0


def _cure(dead: Mapping[str, int]) -> str:
    if dead.get("no_time"):
        return (
            "Records of files need a time: a field that holds one, or source.time: {start: ..., interval_ms: ...} in "
            "the settings, then driftd bootstrap --settings driftd.yaml"
        )
    return "See models.*.record in the settings: driftd bootstrap --settings driftd.yaml"


def _batch(partition: Partition, samples: Sequence[Sample]) -> RawBatch:
    return RawBatch(
        partition=partition,
        offsets=np.array([sample.offset for sample in samples], dtype=np.int64),
        timestamps_ms=np.array([sample.time_ms for sample in samples], dtype=np.int64),
        keys=[sample.key for sample in samples],
        values=[sample.value for sample in samples],
        headers=[list(sample.headers.items()) for sample in samples],
        next_offset=samples[-1].offset + 1,
    )
