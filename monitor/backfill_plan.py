"""What `driftd backfill` has to do: which offsets lie between two times and do not count yet, and what comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from connectors.database.lane import lane_name
from connectors.database.rows import BackfillRow, ReferenceRow
from connectors.database.store import Store
from connectors.kafka import KafkaSettings
from connectors.records import Partition, RawBatch, Source, Span
from detectors.errors import InvalidInput
from monitor.decode import Decoder
from monitor.fraud_build import fraud_row_of
from monitor.fraud_settings import FRAUD_SPACE
from monitor.settings import ModelSettings, Settings
from monitor.times import text_of

_PEEK = 4096  # records of a poll that looks for a time

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a backfill will do.

    Attributes:
        rows: backfills that were begun and not finished, then new ones.
        known: ids of all backfills that are stored.
        counted: offsets in the range that count already, or that somebody is about to count.
        notes: what people should know of it.
        shared: the history is of the source that a daemon reads.
    """

    rows: list[BackfillRow]
    known: list[str]
    counted: int
    notes: list[str]
    shared: bool

    @property
    def offsets(self) -> int:
        """How many offsets are to be read, but for what unfinished backfills have read."""
        return sum(after - first for row in self.rows for first, after, _ in row.spans.values())


def plan_backfill(
    settings: Settings,
    name: str,
    store: Store,
    source: Source,
    *,
    from_ms: int | None,
    to_ms: int | None,
    now_ms: int,
) -> Plan:
    """What there is to score between two times. Reads, and writes nothing.

    Args:
        source: of the history.
        from_ms, to_ms: milliseconds since 1970, by the broker's time; where there is none, by event time. None: from
            the first record, up to the last that is there now.

    Raises:
        InvalidInput: the model has no reference, or the times hold no record.
        SourceError: the history cannot be read.
    """
    model = settings.models[name]
    if from_ms is not None and to_ms is not None and from_ms >= to_ms:
        raise InvalidInput(
            f"--from {text_of(from_ms)} is not before --to {text_of(to_ms)}.",
            hint="Turn them round: --from OLD --to NEW",
        )
    chosen = references_of(settings, name, store, {})
    spans = source.extents(from_ms, to_ms)
    firsts: dict[Partition, int] = {}
    if not _has_times(model.history or model.source):
        if from_ms is not None or to_ms is not None:
            spans = narrowed(source, model, spans, from_ms, to_ms)
        firsts = {place: _first_ms(source, model, place, span) for place, span in spans.items()}
    if not spans:
        raise InvalidInput(
            f"The history of {name} holds no record between these times.",
            hint="What is there: driftd check. Without --from and --to, all of it is scored.",
        )
    jobs = store.backfills(name)
    unfinished = [job for job in jobs if job.status == "scoring"]

    def first_of(place: Partition, span: Span) -> int:
        if place in firsts and span.first == spans[place].first:
            return firsts[place]
        return _first_ms(source, model, place, span)

    before, after, counted, notes = _uncounted(name, model, store, spans, jobs, first_of)
    detail: dict[str, object] = {
        "references": {row.space: row.version for row in chosen},
        "labels": store.label_version(name),
    }
    ends = not isinstance(model.history or model.source, KafkaSettings)
    read_to_ms = None if ends else min(now_ms if to_ms is None else to_ms, now_ms)
    rows: list[BackfillRow] = []

    def add(lane: bool, found: Mapping[Partition, Span]) -> None:
        number = len(jobs) + len(rows) + 1
        more: dict[str, object] = {"read_to_ms": read_to_ms}
        begins = {place: first_of(place, span) for place, span in found.items() if lane or firsts}
        if lane:
            oldest_ms = min((moment for moment in begins.values() if moment >= 0), default=0)
            more = {"live_from_block": store.first_block(name, oldest_ms // round(model.drift.block * 1000))}
        if firsts:
            more["first_ms"] = [[*place, moment] for place, moment in sorted(begins.items())]
        rows.append(
            BackfillRow(
                id=f"{name}-{number}",
                model=name,
                lane=lane_name(name, number) if lane else name,
                status="scoring",
                spans={place: (span.first, span.after, span.topic_id) for place, span in found.items()},
                detail=detail | more,
                created_ms=now_ms,
                from_ms=from_ms,
                to_ms=to_ms,
            )
        )

    for found in before:
        add(True, found)
    if after:
        add(False, after)
    return Plan([*unfinished, *rows], [job.id for job in jobs], counted, notes, model.history is None)


def begin(plan: Plan, store: Store) -> None:
    """Store what is new in a plan: from then on, its offsets are nobody else's.

    Raises:
        OwnershipLost: another backfill was planned meanwhile.
    """
    known = list(plan.known)
    for row in plan.rows:
        if row.id not in known:
            store.plan_backfill(row, known, shared=plan.shared)
            known.append(row.id)


def narrowed(
    source: Source, model: ModelSettings, spans: Mapping[Partition, Span], from_ms: int | None, to_ms: int | None
) -> dict[Partition, Span]:
    """The parts of spans from the first record with event time >= from_ms up to the first with one >= to_ms.

    For records that have no time outside; the records are decoded, up to the second of the two.
    """
    found = {}
    for place, span in sorted(spans.items()):
        first = span.first if from_ms is None else None
        after = span.after
        for batch, times in _times(source, model, place, span):
            offsets = batch.offsets
            if first is None and from_ms is not None and (inside := np.flatnonzero(times >= from_ms)).size:
                first = int(offsets[inside[0]])
            if to_ms is not None and (beyond := np.flatnonzero(times >= to_ms)).size:
                after = int(offsets[beyond[0]])
                break
            if first is not None and to_ms is None:
                break
        if first is not None and first < after:
            found[place] = replace(span, first=first, after=after)
    return found


def _times(source: Source, model: ModelSettings, place: Partition, span: Span) -> Iterator[tuple[RawBatch, Int64s]]:
    """Batches of one partition with the event time of each record; -1 where it has none."""
    record = model.watched_record.model_copy(update={"pair": None})
    decoder = Decoder(record, fields=[], payload_bytes=0)
    reading = source.between({place: span})
    try:
        reading.open(lambda partitions: {})
        while not reading.finished:
            for batch in reading.poll(_PEEK, 5.0):
                times = np.full(len(batch), -1, dtype=np.int64)
                rest = batch
                while len(rest):  # a decoder takes so many rows at a time
                    events = decoder.decode(rest, None)
                    times[np.searchsorted(batch.offsets, events.offsets)] = events.time_ms
                    rest = rest.rows(int(np.searchsorted(rest.offsets, events.next_offset)), len(rest))
                yield batch, times
    finally:
        reading.close()


def _first_ms(source: Source, model: ModelSettings, place: Partition, span: Span) -> int:
    """Event time of the first usable record; -1 if none is."""
    for _, times in _times(source, model, place, span):
        if (usable := times[times >= 0]).size:
            return int(usable[0])
    return -1


def _uncounted(
    name: str,
    model: ModelSettings,
    store: Store,
    spans: Mapping[Partition, Span],
    jobs: Sequence[BackfillRow],
    first_of: Callable[[Partition, Span], int],
) -> tuple[list[dict[Partition, Span]], dict[Partition, Span], int, list[str]]:
    """What does not count yet: before the records that do (one stretch a partition each), and after them.

    Args:
        first_of: event time of the first usable record of a span.

    Returns also how many offsets count already, and notes.

    Raises:
        InvalidInput: a topic was made anew, and the model has not taken note of that.
    """
    live = {state.partition: state for state in store.partition_states(name)}
    edge = store.next_block(name)
    if edge is None:
        edge = store.first_block(name, 0)
    edge_ms = -1 if edge is None or not live else edge * round(model.drift.block * 1000)
    before: dict[Partition, list[Span]] = {}
    after: dict[Partition, Span] = {}
    unknown, counted = 0, 0
    for place, span in sorted(spans.items()):
        taken = [
            (first, after)
            for job in jobs
            if place in job.spans and job.status != "taken over"
            for first, after, topic_id in [job.spans[place]]
            if not _another(topic_id, span.topic_id)
        ]
        state = live.get(place)
        if state is not None and _another(state.topic_id, span.topic_id):
            raise InvalidInput(
                f"Topic {place.topic} was deleted and made anew since {name} read it last.",
                hint="Let the daemon take note of that first: driftd run, with source.on_gap: skip.",
            )
        if state is not None:
            unknown += state.from_offset is None
            taken.append((state.from_offset or 0, state.next_offset))
        for first, end in _without(span, taken):
            piece = replace(span, first=first, after=end)
            if state is not None and first >= state.next_offset:
                after[place] = replace(piece, first=state.next_offset)
            elif state is not None or first_of(place, piece) < edge_ms:
                before.setdefault(place, []).append(piece)
            else:
                after[place] = piece
            counted -= end - first
        counted += len(span)
    notes = []
    if unknown:
        notes.append(
            f"Of {unknown} partitions it is not known where counting began, because an older driftd began it: all "
            "before their positions is taken to be counted."
        )
    rounds = max(map(len, before.values()), default=0)
    stretches = [
        {place: pieces[number] for place, pieces in before.items() if number < len(pieces)} for number in range(rounds)
    ]
    return stretches, after, counted, notes


def _another(before: str | None, now: str | None) -> bool:
    """Whether two ids of a topic, as far as known, say that it was made anew."""
    return None not in (before, now) and before != now


def _without(span: Span, taken: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of a span that lie in none of these intervals."""
    free, at = [], span.first
    for first, after in sorted(taken):
        if first > at:
            free.append((at, min(first, span.after)))
        at = max(at, after)
        if at >= span.after:
            break
    if at < span.after:
        free.append((at, span.after))
    return [(first, after) for first, after in free if first < after]


def references_of(settings: Settings, name: str, store: Store, versions: Mapping[str, int]) -> list[ReferenceRow]:
    """A row for every space of the model, and one for fraud scores where they are configured and built.

    Raises:
        InvalidInput: there is none for a space, or none of that version.
    """
    model = settings.models[name]
    rows = []
    for space in model.spaces:
        row = store.active_reference(name, space)
        if space in versions:
            row = next((known for known in store.references(name, space) if known.version == versions[space]), None)
        if row is None:
            version = f" version {versions[space]}" if space in versions else ""
            raise InvalidInput(
                f"Model {name} has no reference{version} for its space {space}, to compare records with.",
                hint="Build one: driftd reference build; or all from history: driftd bootstrap. Those there are: "
                "driftd reference list",
            )
        rows.append(row)
    if model.fraud is not None:
        of_space = next(row for row in rows if row.space == model.fraud_space)
        if (fraud := fraud_row_of(store.references(name, FRAUD_SPACE), of_space)) is not None:
            rows.append(fraud)
    return rows


def _has_times(source: object) -> bool:
    """Whether records have a time outside of themselves."""
    return isinstance(source, KafkaSettings) or getattr(source, "time", None) is not None
