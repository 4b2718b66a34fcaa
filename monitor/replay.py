"""What other settings would have done: the stored summaries of closed blocks, folded again in memory.

The same `monitor.folding.Folder` judges them that judged them live, so with the settings of then over summaries that
were not merged since, readings, incidents and the ids of notifications are the same to the byte. Nothing is written.

History that was merged as it aged has one summary for 2^k blocks. It is folded as one step at its last block: the sums
of a window, and so its p-values, are those of the same records; windows begin with the first block of a summary; there
are fewer looks, so that false alarms are as rare or rarer. What is seen is seen later, by one summary at most; of
ready vectors by two, because alarms wait for a look at the encoder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from connectors.database import rows
from connectors.database.history import History
from connectors.database.rows import FraudHit, IncidentRow, ReadingRow, ReferenceRow, TruthRow
from connectors.database.store import Store
from connectors.notification import Notification
from detectors.errors import InvalidInput
from detectors.summary import BlockSummary
from monitor.ageing import age_rules
from monitor.budget import OUTLIER_RATE
from monitor.causes import ClosedBlocks, Key
from monitor.folding import Folder, Weighed, alarmed_segments
from monitor.fraud_build import fraud_row_of
from monitor.fraud_settings import FRAUD_SPACE
from monitor.pipeline import EVERYTHING, Space
from monitor.record_counts import RecordCounts
from monitor.replay_processes import Task, Variant, helped
from monitor.settings import DAY_S, ModelSettings, Settings
from monitor.spaces import load_fraud_of, load_past_spaces
from monitor.times import text_of

# Summaries that are decoded at a time: about 20 kB each at 384 dimensions and 1,000 prototypes.
AT_A_TIME = 2_048
# Blocks from which on it is worth while to start other processes, which takes 2 seconds each.
MANY = 4_096
# Windows go back at most about twice as far, so alarms that begin so long before know nearly all that live ones knew.
WARM_UP_BLOCKS = 16_384

_ONE = ("",)  # sink: each notification counts once, however many sinks would take it

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one variant would have done.

    Attributes:
        incidents: that were open at some time in the judged period, in their last state, in the order of their opening.
            Those of the watching itself, such as gaps and lag, are no matter of settings and are left out.
        told: what people would have been told in it, in that order; each stands for one message per sink.
        readings: of the judged period, in the order of blocks; empty unless they were asked for.
        alerts: records that would have been fraud alerts; `unlisted`: hits beyond the budget of alerts.
        resolution: (from_ms, to_ms, seconds of a block), oldest first: how finely each part of history is stored.
        judged_ms: from the first judged block to the end of the last.
        notes: what people should know of the answer, in sentences.
    """

    name: str
    settings: Settings
    incidents: list[IncidentRow]
    told: list[Notification]
    readings: list[ReadingRow]
    resolution: list[tuple[int, int, float]]
    judged_ms: tuple[int, int]
    notes: list[str]
    alerts: int = 0
    unlisted: int = 0


def replay(
    store: Store,
    model: str,
    variants: Sequence[Variant],
    *,
    from_ms: int | None = None,
    to_ms: int | None = None,
    readings: bool = False,
    causes: bool = False,
    progress: Progress = lambda done, total: None,
    processes: int | None = None,
) -> list[Replayed]:
    """Fold the stored history of a model again under each of the variants, in one pass over the data.

    Args:
        variants: their settings differ only in what summaries can answer (`monitor.replay_settings.needs_vectors`).
        from_ms, to_ms: judge blocks that begin then or later, and before; all that are stored by default. Alarms begin
            anew `WARM_UP_BLOCKS` before, or with the first stored block.
        readings: keep the readings.
        causes: find the cause of each incident whenever it is told, which takes most of the time where there are many.
        progress: told of (done, total) stored blocks.
        processes: that share the segments among them; by default one for each core where there is much to fold. With
            ``readings`` or ``causes`` it is one.

    Raises:
        InvalidInput: nothing is stored there, or the variants have blocks of different lengths.
        InvalidReference: a reference that history was scored with is missing or damaged.
    """
    lengths = {variant.settings.models[model].drift.block for variant in variants}
    if len(lengths) != 1:
        raise InvalidInput(
            f"Variants with blocks of {' and '.join(f'{length:g} s' for length in sorted(lengths))} cannot be compared "
            "on the same summaries.",
            hint=f"Leave models.{model}.drift.block as it is.",
        )
    block_s = lengths.pop()
    block_ms = round(block_s * 1000)
    with store.history(model) as history:
        first_judged = None if from_ms is None else -(-from_ms // block_ms)
        last = None if to_ms is None else -(-to_ms // block_ms)
        warm_from = None if first_judged is None else first_judged - WARM_UP_BLOCKS
        timeline = history.timeline(from_block=warm_from, to_block=last)
        judged = [entry for entry in timeline if first_judged is None or entry[0] >= first_judged]
        if not judged:
            raise InvalidInput(
                f"No summaries of {model} are stored of that time.",
                hint="Summaries come of driftd run, and of history by driftd backfill --from T --to T.",
            )
        judged_ms = judged[0][0] * block_ms, sum(judged[-1]) * block_ms
        rules = age_rules(variants[0].settings, model)
        merged_to = (history.fold.next_block or 0) if any(blocks > 1 for _, blocks in timeline) else 0
        replays = [_Replay(model, variant.settings, history, judged[0][0], keeps=readings) for variant in variants]
        if readings or causes:
            processes = 1
        elif processes is None:
            processes = len(os.sched_getaffinity(0)) if len(timeline) >= MANY else 1
        task = Task(store.url, model, variants, timeline, judged[0][0], share=0, of=processes)
        done = 0
        with helped(task) as others:
            for batch in _batches(store, history, model, variants[0].settings, timeline, replays, 0, processes):
                explained = ClosedBlocks(history.fold, rules=rules, next_block=merged_to) if causes else None
                found = [next(other) for other in others]
                for place, one in enumerate(replays):
                    one.judge(batch, explained, [weighed[place] for weighed in found])
                done += len(batch.counts)
                progress(done, len(timeline))
        resolution = _resolution(judged, block_ms)
        notes = _notes(history, model, timeline, judged, block_s, variants[0].settings)
    return [
        Replayed(
            variant.name,
            variant.settings,
            one.seen(judged_ms[0]),
            one.told,
            one.readings,
            resolution,
            judged_ms,
            notes,
            alerts=one.alerts,
            unlisted=one.unlisted,
        )
        for variant, one in zip(variants, replays, strict=True)
    ]


def weigh_share(task: Task, tell: Callable[[list[Weighed]], None]) -> None:
    """Fold some of the segments for another process, and tell what each batch says, by variant."""
    with Store.open(task.database) as store, store.history(task.model) as history:
        replays = [
            _Replay(task.model, variant.settings, history, task.first_judged, keeps=False) for variant in task.variants
        ]
        settings = task.variants[0].settings
        for batch in _batches(store, history, task.model, settings, task.timeline, replays, task.share, task.of):
            tell([one.weigh(batch) for one in replays])


# --- the references that history was scored with ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Era:
    """A stretch of history in which every space has one reference.

    Attributes:
        entries: first block and number of blocks of each stored step.
        versions: of each space that is judged.
        judged: by space, the first blocks of its summaries that are judged; None: all are.
    """

    entries: Sequence[tuple[int, int]]
    versions: Mapping[str, int]
    judged: Mapping[str, frozenset[int] | None]
    spaces: Sequence[Space]
    references: Sequence[ReferenceRow]


def _eras(
    store: Store, history: History, model: str, settings: Settings, timeline: Sequence[tuple[int, int]]
) -> Iterator[_Era]:
    chosen = settings.models[model]
    embedders = {name: space.embedder.build() for name, space in chosen.spaces.items()}
    known = {name: {row.version: row for row in store.references(model, name)} for name in chosen.reference_spaces}
    versions: dict[str, dict[int, int]] = {}
    judged: dict[str, frozenset[int] | None] = {}
    for name in chosen.spaces:
        versions[name], judged[name] = _versions(history, name, timeline)
    starts: list[int] = []
    current = {name: found[min(found)] for name, found in versions.items() if found}
    maps: list[dict[str, int]] = []
    for place, (first, _) in enumerate(timeline):
        following = current | {name: found[first] for name, found in versions.items() if first in found}
        if following != current or not starts:
            starts.append(place)
            maps.append(following)
        current = following
    loaded: dict[tuple[str, int], Space] = {}
    for (begin, end), of_era in zip(pairwise([*starts, len(timeline)]), maps, strict=True):
        wanted = [known[name][version] for name, version in sorted(of_era.items())]
        for row in wanted:
            if (row.space, row.version) not in loaded:
                loaded.update(
                    {(space.name, space.version): space for space in load_past_spaces([row], chosen, embedders)}
                )
        spaces = [loaded[name, of_era[name]] for name in chosen.spaces if name in of_era]
        of_fraud = None
        if chosen.fraud is not None and chosen.fraud_space in of_era:
            scored = known[chosen.fraud_space][of_era[chosen.fraud_space]]
            of_fraud = fraud_row_of(list(known[FRAUD_SPACE].values()), scored)
        references = wanted if of_fraud is None else [*wanted, of_fraud]
        yield _Era(timeline[begin:end], of_era, judged, spaces, references)


def _versions(
    history: History, space: str, timeline: Sequence[tuple[int, int]]
) -> tuple[dict[int, int], frozenset[int] | None]:
    """By first block, the reference that a space's summaries were judged with; and which of them were judged.

    Where a new reference took over, blocks hold summaries of both: live, those of the one in use were judged when the
    block closed, and the reading says which that was. Blocks of which no reading is left, because they are too old, are
    judged with the newest that they have.
    """
    low, high = timeline[0][0], timeline[-1][0] + 1
    found = history.references(space)
    if len(found) <= 1:
        return {timeline[0][0]: found[0]} if found else {}, None
    read = dict(history.judged(space, OUTLIER_RATE, from_block=low, to_block=sum(timeline[-1])))
    oldest = min(read, default=None)
    versions: dict[int, int] = {}
    passed_over: list[int] = []
    for first, blocks, reference in history.blocks_of(space, from_block=low, to_block=high):
        last = first + blocks - 1
        if oldest is None or last < oldest:
            versions[first] = max(versions.get(first, 0), reference)
        elif any(read.get(block) == reference for block in range(max(first, oldest), last + 1)):
            versions[first] = reference
        else:
            passed_over.append(first)
    judged = frozenset(versions)
    # Open when the next reference took over, which passed over what had been scored against the one before.
    for first in sorted({*passed_over} - judged, reverse=True):
        following = min((later for later in versions if later > first), default=None)
        if following is not None:
            versions[first] = versions[following]
    return versions, judged


# --- the data ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Batch:
    """Decoded summaries of some blocks, each under its last block."""

    counts: dict[int, RecordCounts]
    merged: dict[Key, BlockSummary]
    widths: dict[Key, int]
    first: int
    below: int


def _batches(
    store: Store,
    history: History,
    model: str,
    settings: Settings,
    timeline: Sequence[tuple[int, int]],
    replays: Sequence[_Replay],
    share: int,
    of: int,
) -> Iterator[_Batch]:
    """All of the timeline, with the summaries of every ``of``-th segment, beginning with number ``share``."""
    for era in _eras(store, history, model, settings, timeline):
        for one in replays:
            one.enter(era)
        wanted = sorted({key for one in replays for key in one.segments})
        yield from _batches_of(history, replays, era, wanted[share::of], size=max(AT_A_TIME // max(len(wanted), 1), 16))


def _batches_of(
    history: History, replays: Sequence[_Replay], era: _Era, wanted: Sequence[tuple[str, str]], *, size: int
) -> Iterator[_Batch]:
    entries = era.entries
    edges = sorted({*range(0, len(entries), size), _first_judged(entries, replays[0].first_judged), len(entries)})
    for begin, end in pairwise(edges):
        first, below = entries[begin][0], sum(entries[end - 1])
        counts: dict[int, RecordCounts] = {}
        merged: dict[Key, BlockSummary] = {}
        widths: dict[Key, int] = {}
        for stored in history.summaries("", EVERYTHING, 0, from_block=first, to_block=below):
            last = stored.first + stored.blocks - 1
            counts[last] = RecordCounts.from_bytes(stored.blob)
            widths["", EVERYTHING, last, 0] = stored.blocks
        for space, segment in wanted:
            version, judged = era.versions[space], era.judged[space]
            for stored in history.summaries(space, segment, version, from_block=first, to_block=below):
                if judged is None or stored.first in judged:
                    key = space, segment, stored.first + stored.blocks - 1, version
                    merged[key] = BlockSummary.from_bytes(stored.blob)
                    widths[key] = stored.blocks
        yield _Batch(counts, merged, widths, first, below)


def _first_judged(entries: Sequence[tuple[int, int]], block: int) -> int:
    """The place of the first entry that begins at a block or later: before it, nothing is counted."""
    return next((place for place, (first, _) in enumerate(entries) if first >= block), len(entries))


# --- one variant ------------------------------------------------------------------------------------------------------


class _Replay:
    """The fold of one variant, as `monitor.folding.Past` for its own steps.

    Args:
        keeps: readings are kept.
    """

    def __init__(self, model: str, settings: Settings, history: History, first_judged: int, *, keeps: bool) -> None:
        self.first_judged = first_judged
        self.told: list[Notification] = []
        self.readings: list[ReadingRow] = []
        self.alerts = self.unlisted = 0
        self._model = model
        self._settings = settings
        self._history = history
        self._keeps = keeps
        self._states: dict[tuple[str, str], rows.FoldState] = {}
        self._incidents: dict[str, IncidentRow] = {}
        self._recent: dict[str, IncidentRow] = {}  # open, or resolved within the cooldown
        self._widths: Mapping[Key, int] = {}
        self._folder = Folder(model, settings, spaces=(), sinks=_ONE)
        self.segments: list[tuple[str, str]] = []  # space and segment of every alarm
        self._block_ms = round(self._chosen.drift.block * 1000)
        self._cooldown_ms = round(settings.incidents.cooldown * 1000)

    @property
    def _chosen(self) -> ModelSettings:
        return self._settings.models[self._model]

    def enter(self, era: _Era) -> None:
        """Judge with the references of this stretch of history from now on."""
        fraud = load_fraud_of(era.references, self._chosen, era.spaces)
        self._folder = Folder(self._model, self._settings, spaces=era.spaces, fraud=fraud, sinks=_ONE)
        self.segments = [
            (space.name, segment)
            for space in era.spaces
            for segment in (EVERYTHING, *alarmed_segments(space.reference, self._chosen))
        ]

    def weigh(self, batch: _Batch) -> Weighed:
        """What some blocks say of the segments whose summaries are there; the states stay here."""
        current = {(state.space, state.segment): state for state in self._states.values()}
        weighed = self._folder.weigh(current, batch.merged, widths=batch.widths, bare=True)
        self._states.update({(state.space, state.segment): state for state in weighed.states})
        return replace(weighed, states=[])

    def judge(self, batch: _Batch, causes: ClosedBlocks | None, elsewhere: Sequence[Weighed] = ()) -> None:
        """Take in some blocks.

        Args:
            elsewhere: what other processes say of the segments whose summaries are not there.
        """
        self._widths = batch.widths
        result, unlisted = self._folder.judge(
            self,
            causes,
            batch.counts,
            batch.merged,
            list(self._recent.values()),
            batch.below,
            widths=batch.widths,
            bare=not self._keeps,
            elsewhere=elsewhere,
        )
        self._states.update({(state.space, state.segment): state for state in result.states})
        for row in result.incidents:
            self._incidents[row.id] = self._recent[row.id] = row
        oldest_ms = batch.below * self._block_ms - self._cooldown_ms
        self._recent = {
            row.id: row
            for row in self._recent.values()
            if row.status == "open" or row.resolved_ms is None or row.resolved_ms >= oldest_ms
        }
        if batch.first < self.first_judged:
            return
        self.told += [notification for _, notification in result.outbox]
        self.alerts += len(result.hits)
        self.unlisted += unlisted
        if self._keeps:
            self.readings += [self._wide(row) for row in result.readings]

    def _wide(self, row: ReadingRow) -> ReadingRow:
        """A reading over several blocks begins with the first of them."""
        key = ("", EVERYTHING, row.block, 0) if row.space == FRAUD_SPACE else None
        key = key or (row.space, row.segment, row.block, row.reference)
        blocks = self._widths.get(key, 1)
        return row if blocks == 1 else replace(row, start_ms=row.end_ms - blocks * self._block_ms)

    def seen(self, from_ms: int) -> list[IncidentRow]:
        """The incidents that were open at that time or later."""
        rows = [row for row in self._incidents.values() if row.resolved_ms is None or row.resolved_ms > from_ms]
        return sorted(rows, key=lambda row: (row.opened_ms, row.id))

    def states(self) -> list[rows.FoldState]:
        """See `monitor.folding.Past`."""
        return list(self._states.values())

    def truths(self, after: int, most: int, *, upto: int | None = None) -> list[TruthRow]:
        """See `monitor.folding.Past`."""
        return self._history.truths(after, most, upto=upto)

    def said(self, from_ms: int, to_ms: int) -> list[TruthRow]:
        """See `monitor.folding.Past`."""
        return self._history.said(from_ms, to_ms)

    def truths_at(self, from_block: int, below: int) -> dict[int, int]:
        """See `monitor.folding.Past`."""
        return self._history.truths_at(from_block, below)

    def fraud_hits(self, space: str, block: int, at_least: float, most: int) -> list[FraudHit]:
        """See `monitor.folding.Past`."""
        blocks = self._widths.get(("", EVERYTHING, block, 0), 1)
        return self._history.fraud_hits(space, block - blocks + 1, block + 1, at_least, most)


# --- in words ---------------------------------------------------------------------------------------------------------


def _resolution(entries: Sequence[tuple[int, int]], block_ms: int) -> list[tuple[int, int, float]]:
    """Stretches that are stored equally finely, oldest first."""
    found: list[tuple[int, int, float]] = []
    for first, blocks in entries:
        seconds, end_ms = blocks * block_ms / 1000, (first + blocks) * block_ms
        if found and found[-1][2] == seconds:
            found[-1] = found[-1][0], end_ms, seconds
        else:
            found.append((first * block_ms, end_ms, seconds))
    return found


def _notes(
    history: History,
    model: str,
    timeline: Sequence[tuple[int, int]],
    judged: Sequence[tuple[int, int]],
    block_s: float,
    settings: Settings,
) -> list[str]:
    block_ms = round(block_s * 1000)
    start, day = timeline[0][0], round(DAY_S / block_s)
    notes = []
    # What retention may have taken away, nobody knows; before that, live alarms began here, too.
    whole = start == history.first_block() and sum(timeline[-1]) - start < 0.9 * settings.retention.summaries_days * day
    if not whole and judged[0][0] - start < WARM_UP_BLOCKS:
        notes.append(
            f"Alarms begin anew at {text_of(start * block_ms)}: what came before is not held against the stream, which "
            f"may differ from live for up to {WARM_UP_BLOCKS * block_s / 3600:.3g} hours."
        )
    if settings.models[model].fraud is not None:
        kept = history.first_kept(FRAUD_SPACE)
        if kept is None or kept > judged[0][0] + day:
            since = "are kept" if kept is None else f"from before {text_of(kept * block_ms)} are kept"
            notes.append(f"No fraud candidates {since}: waves are judged all the same, alerts are not counted there.")
    return notes
