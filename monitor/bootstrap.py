"""`driftd bootstrap`: a reference, thresholds and settings from history.

    look ──► find what is in the records ──► choose a baseline ──► build its reference ──► score the rest with the
    live parts into a database of its own ──► fold that under several run lengths ──► write

Nothing is written before the last step: the reference is built, and the test is scored, in a temporary folder. Nobody
is told of anything.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from connectors.database.rows import Advance, Checkpoint, IncidentRow, ReferenceRow
from connectors.database.store import Store
from connectors.records import Partition, Source, Span
from detectors.errors import InvalidInput, SourceError
from detectors.reference import Reference
from monitor.app import build_history, check_references_folder, open_store
from monitor.bootstrap_baseline import MOST_RECORDS, Baseline, Interval, choose_baseline
from monitor.bootstrap_look import Decoded, Looked, Progress, batches_of, decode
from monitor.collect import Collector, next_version
from monitor.decode import Decoder
from monitor.fraud_settings import FRAUD_SPACE
from monitor.history import HistoryLabels, HistoryWorker
from monitor.history_range import HistoryRange
from monitor.references import seasons_in_days, small_in_words
from monitor.replay import replay
from monitor.replay_processes import Variant
from monitor.replay_truth import stretches_of
from monitor.settings import DAY_S, ModelSettings, Settings, with_changes
from monitor.worker import DeadLetterWave

RUN_LENGTHS: Final = (7, 30, 90, 365)  # days between false pages that are tried
_SLICE_BLOCKS: Final = 30  # blocks in a row, where a long stretch has more records than a baseline takes
_TEST_MS: Final = 3_600_000  # less is no test
_FAILING_S: Final = 60.0  # a source that fails for so long ends the test
_DAY_MS: Final = round(DAY_S * 1000)


@dataclass(frozen=True)
class Test:
    """What the alarms would have done in a part of the history that is not in the baseline.

    Attributes:
        where: "after" or "before" the baseline.
        interval: event times.
        records, dead: counted, and of them dead letters.
        pages, warnings: by run length in days: how many incidents people would have been told of.
        incidents: at the run length of the settings, pages first.
        note: why there is nothing, or not all; "" if there is.
    """

    __test__ = False

    where: str
    interval: Interval
    records: int = 0
    dead: int = 0
    pages: Mapping[float, int] | None = None
    warnings: Mapping[float, int] | None = None
    incidents: Sequence[IncidentRow] = ()
    note: str = ""

    @property
    def days(self) -> float:
        """How long it is."""
        return (self.interval[1] - self.interval[0]) / _DAY_MS


@dataclass(frozen=True)
class Bootstrapped:
    """What came of it.

    Attributes:
        rows: the references, in the temporary folder until `take_over`.
        tests: of what is left of the history.
        collected: records of the baseline.
        notes: sentences for people on the references.
    """

    model: str
    settings: Settings
    looked: Looked
    sample: Decoded
    baseline: Baseline
    rows: Sequence[ReferenceRow]
    collected: int
    tests: Sequence[Test]
    notes: Sequence[str]


def bootstrap(
    name: str,
    settings: Settings,
    looked: Looked,
    *,
    folder: Path,
    versions: Mapping[str, int],
    days: float,
    without: Sequence[Interval] = (),
    progress: Progress,
) -> Bootstrapped:
    """From a look at a model's history to references and a test of them, all in ``folder``.

    Args:
        folder: temporary, empty.
        versions: the number of the reference of each space, see `next_versions`.
        days: of event time, from the newest record back.
        without: stretches to leave out of the baseline.

    Raises:
        InvalidInput: too few records, or nothing that could be learned from.
        SourceError: the source cannot be read.
    """
    model = settings.models[name]
    sample = decode(looked, model, progress=progress)
    recent = sample.time_ms >= int(np.quantile(sample.time_ms, 0.999)) - round(days * _DAY_MS)
    usable = looked.records * len(sample.time_ms) / max(sum(sample.dead.values()) + len(sample.time_ms), 1)
    records = round(usable * float(recent.mean()))
    sample = sample.rows(recent)
    baseline = choose_baseline(sample, model, records=records, without=without, progress=progress)
    with ExitStack() as opened:
        source = build_history(name, model)
        opened.callback(source.close)
        rows, collected, notes = _build(name, model, source, looked, sample, baseline, folder, versions, progress)
        tests = [
            _test(name, settings, source, _spans(looked, sample, interval), rows, where, interval, folder, progress)
            for where, interval in (
                ("after", (baseline.chosen[1], baseline.whole[1])),
                ("before", (baseline.whole[0], baseline.chosen[0])),
            )
            if interval[1] > interval[0] + 1 or where == "after"
        ]
    return Bootstrapped(name, settings, looked, sample, baseline, rows, collected, tests, notes)


# --- the reference ----------------------------------------------------------------------------------------------------


def _build(
    name: str,
    model: ModelSettings,
    source: Source,
    looked: Looked,
    sample: Decoded,
    baseline: Baseline,
    folder: Path,
    versions: Mapping[str, int],
    progress: Progress,
) -> tuple[list[ReferenceRow], int, list[str]]:
    """The references of the baseline, what it holds, and what is to be said of them."""
    embedders = {space: entry.embedder.build() for space, entry in model.spaces.items()}
    fields = [field for embedder in embedders.values() for field in embedder.fields]
    block_ms = round(model.drift.block * 1000)
    collector = Collector(
        name,
        decoder=Decoder(model.watched_record, fields=[*fields, *model.extra_fields]),
        embedders=embedders,
        settings=model.reference.model_copy(update={"collect": 2 * MOST_RECORDS}),
        block_ms=block_ms,
        seasons=model.drift.season_blocks,
        thin_by_key=model.thins_by_key,
        fraud=model.fraud,
        fraud_space=model.fraud_space,
        chosen=_slices(baseline, block_ms),
        performance=model.performance,
    )
    spans = _spans(looked, sample, baseline.chosen)
    total = max(sum(map(len, spans.values())), 1)
    left = {partition: len(span) for partition, span in spans.items()}
    for batch in batches_of(source, spans):
        if len(collector.take(batch, None)):
            break
        left[batch.partition] = max(spans[batch.partition].after - batch.next_offset, 0)
        progress("baseline", 1.0 - sum(left.values()) / total)
    rows = collector.build(
        folder / "references",
        versions=versions,
        now_ms=_now_ms(),
        progress=progress,
    )
    said: dict[str, list[str]] = {}
    for row in rows:
        if row.space != FRAUD_SPACE:
            made = Reference.load(row.path)
            for words in filter(None, [seasons_in_days(made, model.drift), small_in_words(made)]):
                said.setdefault(words, []).append(row.space)
    notes = [f"{', '.join(spaces)}: {words}." for words, spaces in said.items()]
    return rows, collector.collected, notes


def _slices(baseline: Baseline, block_ms: int) -> Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]:
    """Which event times are collected: all of the baseline, or slices of some blocks in a row that are enough.

    Which slices is a hash of their number, so that no hour of the day is preferred.
    """
    share = min(MOST_RECORDS / max(baseline.records, 1), 1.0)
    length = _SLICE_BLOCKS * block_ms

    def chosen(time_ms: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        inside = baseline.holds(time_ms)
        if share == 1.0:
            return inside
        number = (time_ms // length).astype(np.uint64)
        with np.errstate(over="ignore"):  # splitmix64 (Steele, Lea, Flood, 2014)
            number = number * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
            number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return inside & ((number >> np.uint64(11)) < np.uint64(round(share * 2**53)))

    return chosen


def _spans(looked: Looked, sample: Decoded, interval: Interval) -> dict[Partition, Span]:
    """The offsets in which a stretch of event time lies: between the sampled records around it."""
    found: dict[Partition, Span] = {}
    numbers = {partition: number for number, partition in enumerate(sorted(looked.spans))}
    of_row = np.array([numbers[partition] for partition in sample.partition], dtype=np.int64)
    for partition, whole in looked.spans.items():
        rows = np.flatnonzero(of_row == numbers[partition])
        rows = rows[np.argsort(sample.offsets[rows], kind="stable")]
        offsets, times = sample.offsets[rows], sample.time_ms[rows]
        inside = np.flatnonzero((times >= interval[0]) & (times < interval[1]))
        if len(inside) == 0:
            continue
        first, last = int(inside[0]), int(inside[-1])
        begin = int(offsets[first - 1]) if first > 0 else whole.first
        after = int(offsets[last + 1]) if last + 1 < len(offsets) else whole.after
        found[partition] = replace(whole, first=begin, after=after)
    return found


# --- the test ---------------------------------------------------------------------------------------------------------


def _test(
    name: str,
    settings: Settings,
    source: Source,
    spans: Mapping[Partition, Span],
    rows: Sequence[ReferenceRow],
    where: str,
    interval: Interval,
    folder: Path,
    progress: Progress,
) -> Test:
    """Score what lies in some spans with the live parts, and fold it under each run length."""
    if interval[1] - interval[0] < _TEST_MS or not spans:
        return Test(where, interval, note=f"Too little is left {where} the baseline for a test.")
    trial = with_changes(
        settings,
        {("database",): f"sqlite:///{folder / f'{where}.db'}", ("sinks",): {}},
        named="the settings",
    )
    note, failing_since = "", None
    with open_store(trial) as store:
        store.commit(Checkpoint(name, [], references=list(rows)))
        worker = HistoryWorker(
            name,
            trial,
            store=store,
            source=source.between(spans),
            references=rows,
            history=HistoryRange(spans, read_to_ms=None),
            labels=HistoryLabels(0, store),
        )
        total = max(sum(map(len, spans.values())), 1)
        try:
            worker.start()
            while not worker.finished:
                worker.step(_now_ms(), time.monotonic())
                failing_since = (failing_since or time.monotonic()) if worker.failure else None
                if failing_since is not None and time.monotonic() - failing_since > _FAILING_S:
                    raise SourceError(f"Given up after {_FAILING_S:.0f} s: {worker.failure}")
                progress(f"test {where}", 1.0 - worker.left() / total)
        except DeadLetterWave as error:
            note = f"The test ended early: {error.message}"
        finally:
            worker.close()
        worker.end(_now_ms())
        found = worker.found
        test = Test(where, interval, records=found.records, dead=found.dead.total(), note=note)
        return _folded(name, trial, store, test, progress)


def _folded(name: str, settings: Settings, store: Store, test: Test, progress: Progress) -> Test:
    lengths = sorted({*RUN_LENGTHS, settings.page_every_days})
    variants = [
        Variant(
            f"{days:g} days",
            with_changes(settings, dict.fromkeys(_places(settings), days), named="the settings"),
        )
        for days in lengths
        if days >= settings.warn_every_days
    ]
    try:
        replayed = replay(
            store,
            name,
            variants,
            progress=lambda done, total: progress(f"what it would have paged, {test.where}", done / max(total, 1)),
        )
    except InvalidInput as error:
        return replace(test, note=test.note or f"No block could be folded: {error.message}")
    pages: dict[float, int] = {}
    warnings: dict[float, int] = {}
    for one in replayed:
        days = one.settings.page_every_days
        told = [row for row in one.incidents if stretches_of(row)]
        pages[days] = sum(row.severity == "page" for row in told)
        warnings[days] = len(told) - pages[days]
    # As they were stored while the test was scored: with their causes, which a replay would have to look for anew.
    chosen = sorted(
        (row for row in store.incidents(model=name) if stretches_of(row)),
        key=lambda row: (row.severity != "page", row.opened_ms),
    )
    return replace(test, pages=pages, warnings=warnings, incidents=chosen)


def _places(settings: Settings) -> list[tuple[str, ...]]:
    """Where the settings state the run length of pages."""
    stated = [name for name, model in settings.models.items() if model.drift.page_every_days is not None]
    return [("models", name, "drift", "page_every_days") for name in stated] or [("alarms", "page_every_days")]


# --- taking over ------------------------------------------------------------------------------------------------------


def next_versions(name: str, settings: Settings, store: Store) -> dict[str, int]:
    """The numbers that the next references of a model get."""
    return {
        space: next_version([row.version for row in store.references(name, space)], settings.references / name / space)
        for space in settings.models[name].reference_spaces
    }


def take_over(found: Bootstrapped, settings: Settings) -> list[ReferenceRow]:
    """Make the references the active ones, and let `driftd run` begin where this look at the history ended.

    Positions that are stored already stay as they are. Where history lies in a source of its own, the live one begins
    where its settings say.

    Raises:
        InvalidInput: the folder of the references cannot be written.
        StoreError: the database refuses; the references then lie in their folder, and nothing uses them.
    """
    check_references_folder(settings.references)
    with open_store(settings) as store:
        known = {state.partition for state in store.partition_states(found.model)}
        rows = []
        made: list[Path] = []
        try:
            for row in found.rows:
                target = settings.references / found.model / row.space / str(row.version)
                target.mkdir(parents=True)  # an error where somebody else's is there
                made.append(target)
                shutil.copytree(row.path, target, dirs_exist_ok=True)
                rows.append(replace(row, path=str(target)))
        except BaseException as error:  # Ctrl-C, too, leaves nothing half done
            for folder in made:
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise InvalidInput(
                    f"The reference cannot be written to {target}: {error.strerror or type(error).__name__}.",
                    hint="Make room there, or name another folder: references: DIR",
                ) from error
            raise
        advances = [
            Advance(
                partition,
                expected=None,
                next_offset=span.after,
                max_time_ms=-1,
                records=0,
                dead=0,
                late=0,
                topic_id=span.topic_id,
                from_offset=span.after,
            )
            for partition, span in sorted(found.looked.spans.items())
            if not known and settings.models[found.model].history is None
        ]
        store.commit(Checkpoint(found.model, advances, references=rows))
    return rows


def _now_ms() -> int:
    return int(time.time() * 1000)
