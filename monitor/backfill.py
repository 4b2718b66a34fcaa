"""`driftd backfill`: scores history that does not count yet, beside or before live records.

Each offset counts once. What follows the records that count already is written where a daemon would write it, so that
a daemon reads on from there; what lies before them is scored in a lane (`connectors.database.lane`), whose fold goes on
through the blocks that were live.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from connectors.database.connection import wall_clock_ms
from connectors.database.lane import LaneStore
from connectors.database.rows import BackfillRow, Checkpoint, ReferenceRow
from connectors.database.store import Store
from connectors.grafana_annotations import GrafanaSettings
from connectors.records import Partition, Source, Span
from detectors.errors import InvalidInput, OffsetGap, OwnershipLost, StoreError
from monitor.app import build_sinks
from monitor.backfill_plan import Plan, references_of
from monitor.history import Found, HistoryLabels, HistoryWorker, history_pipeline
from monitor.history_range import HistoryRange
from monitor.outbox import RetryPolicy, SinkQueue
from monitor.settings import Settings
from monitor.verdicts import AnswersOfThen

SAMPLE = 4096  # records that a dry run scores,
SAMPLE_PARTITIONS = 256  # from so many partitions, the largest: small files hold few
FAILING_S = 300.0  # a source or database that fails for so long ends a backfill; what was scored stays
_RETRY_S = 1.0


class Runner(Protocol):
    """What scores a stretch of history; `monitor.history.HistoryWorker` is one."""

    found: Found
    failure: str

    def start(self) -> None:
        """Begin, at the stored positions."""

    @property
    def finished(self) -> bool:
        """Everything was read, and is written."""

    def left(self) -> int:
        """What is not read yet."""

    def step(self, now_ms: int, clock_s: float) -> int:
        """Go on for a moment. Returns how many records were counted."""

    def end(self, now_ms: int) -> None:
        """Close the blocks that may be closed."""

    def drain(self, now_ms: int) -> None:
        """Write what is pending."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True, slots=True)
class Job:
    """One backfill with what it needs: `BackfillRow` and the parts that are looked up."""

    row: BackfillRow
    references: list[ReferenceRow]
    labels: HistoryLabels
    range: HistoryRange

    @property
    def offsets(self) -> int:
        """How many offsets there are in all; bytes for lines of files."""
        return sum(len(span) for span in self.range.spans.values())


def job_of(row: BackfillRow, settings: Settings, store: Store, *, live: Store | None = None) -> Job:
    """A stored backfill, ready to run.

    Args:
        live: the database of the live records, if history is scored into another one: its closures by the wall clock
            are repeated, and the labels of then are used.

    Raises:
        InvalidInput: a reference that it was begun with is gone.
        StoreError: the database refuses.
    """
    name = row.model
    versions = row.detail["references"]
    assert isinstance(versions, dict)
    references = references_of(settings, name, store, versions)
    begins = row.detail.get("first_ms", [])
    assert isinstance(begins, list)
    first_ms = {Partition(topic, number): moment for topic, number, moment in begins}
    # The oldest first: where there are many files, blocks are over before all of them have been begun.
    ordered = sorted(row.spans.items(), key=lambda item: (first_ms.get(item[0], -1), item[0]))
    spans = {place: Span(first, after, topic_id) for place, (first, after, topic_id) in ordered}
    labels = HistoryLabels(int(str(row.detail["labels"])), store)
    if live is not None:
        labels = HistoryLabels(0, store, live.label_spans(name), AnswersOfThen(live, name))
    in_lane = row.lane != name
    live_from, read_to_ms = row.detail.get("live_from_block"), row.detail.get("read_to_ms")
    return Job(
        row,
        references,
        labels,
        HistoryRange(
            spans,
            read_to_ms=read_to_ms if isinstance(read_to_ms, int) else None,
            first_ms={place: moment for place, moment in first_ms.items() if moment >= 0},
            lane=row.lane if in_lane else "",
            live_from_block=live_from if isinstance(live_from, int) else None,
            joins=not isinstance(live_from, int) or not store.merged_since(name, live_from),
            closures=[] if live is None else live.closures(name),
        ),
    )


def store_of(job: Job, store: Store) -> Store:
    """The database as the job's records are written to it."""
    return LaneStore.beside(store, job.row.model, job.range.lane) if job.range.lane else store


def local_runner(job: Job, settings: Settings, store: Store, source: Source) -> HistoryWorker:
    """Scores a job in this process."""
    return HistoryWorker(
        job.row.model,
        settings,
        store=store_of(job, store),
        source=source.between(job.range.spans),
        references=job.references,
        history=job.range,
        labels=job.labels,
        sinks=sinks_of_history(settings),
        ends=job.range.read_to_ms is None,
    )


def run_job(
    job: Job,
    runner: Runner,
    store: Store,
    *,
    stopping: threading.Event,
    progress: Callable[[Runner], None] = lambda runner: None,
    rate: float | None = None,
) -> bool:
    """Score a job to its end, fold it, and hand over what it found.

    Args:
        stopping: set, it stops after the next checkpoint; the same command goes on from there.
        progress: called after each step.
        rate: most records a second.

    Returns:
        Whether it is finished.

    Raises:
        TakenOver: a daemon reads on from where this one stood; nothing is lost or counted twice.
        OwnershipLost: another process works on the same job.
        OffsetGap: records of it are gone. What was scored before counts, and the rest is to be planned anew.
        SourceError, StoreError: what does not mend, or has not for 5 minutes; what was scored stays.
    """
    began, records, failing_since = time.monotonic(), 0, None
    try:
        runner.start()
        while not runner.finished:
            clock_s = time.monotonic()
            records += runner.step(wall_clock_ms(), clock_s)
            progress(runner)
            if stopping.is_set():
                runner.drain(wall_clock_ms())
                return False
            if not runner.failure:
                failing_since = None
            else:
                failing_since = clock_s if failing_since is None else failing_since
                if clock_s - failing_since > FAILING_S:
                    raise StoreError(
                        f"Given up after {FAILING_S / 60:.0f} minutes: {runner.failure}",
                        hint="What was scored stays. Type the same command again to go on.",
                    )
                stopping.wait(_RETRY_S)
            if rate is not None and (ahead_s := records / rate - (time.monotonic() - began)) > 0:
                stopping.wait(ahead_s)
        _finish(job, runner, store, stopping)
    except OffsetGap as error:
        runner.drain(wall_clock_ms())
        _finish(job, runner, store, stopping, cut_short=True)
        hint = "What was scored counts. Type the same command again for what is left of the range."
        if not job.range.lane:
            hint = "What was scored counts. What is gone can be passed over by a daemon alone, which takes note of it: "
            hint += "driftd run, with source.on_gap: skip."
        raise OffsetGap(error.message, hint=hint) from error
    except OwnershipLost as error:
        if job.range.lane:
            raise OwnershipLost(
                f"Another process works on backfill {job.row.id}: {error.message}",
                hint="Let it run, or stop it first. Nothing was counted twice.",
            ) from error
        store.end_backfill(job.row, "taken over", wall_clock_ms())
        raise TakenOver(
            f"A daemon, or another backfill, has taken over {job.row.model}: it reads on from where this one stood, "
            "and counts the rest.",
            hint="Nothing is lost, and nothing counts twice. How far it is says the status page.",
        ) from error
    finally:
        runner.close()
    return True


def give_up(job: Job, runner: Runner, store: Store) -> None:
    """End a job where it stands: what was scored counts, and the rest of its offsets is free again.

    Raises:
        OwnershipLost: another process works on it.
        StoreError: the database refuses.
    """
    try:
        _finish(job, runner, store, threading.Event(), cut_short=True)
    finally:
        runner.close()


class TakenOver(OwnershipLost):
    """A daemon reads what was to be scored as history."""


def _finish(job: Job, runner: Runner, store: Store, stopping: threading.Event, *, cut_short: bool = False) -> None:
    row, work = job.row, store_of(job, store)
    status: Literal["done", "cut short"] = "cut short" if cut_short else "done"
    if cut_short:
        row = replace(row, spans=_read_of(row, work))
    while True:
        try:
            runner.end(wall_clock_ms())
            if not job.range.lane:
                store.end_backfill(row, status, wall_clock_ms())
                return
            newest_ms = max((state.max_time_ms for state in work.partition_states(row.model)), default=-1)
            if store.hand_over(row, wall_clock_ms(), joins=job.range.joins, end_ms=newest_ms, status=status):
                return
        except StoreError as error:
            if not error.retryable or isinstance(error, OwnershipLost) or stopping.wait(_RETRY_S):
                raise


def _read_of(row: BackfillRow, work: Store) -> dict[Partition, tuple[int, int, str | None]]:
    """The spans of a backfill as far as they were read."""
    positions = work.positions(row.model, list(row.spans))
    return {
        place: (first, min(positions[place], after), topic_id)
        for place, (first, after, topic_id) in row.spans.items()
        if positions.get(place, first) > first
    }


def sinks_of_history(settings: Settings) -> list[str]:
    """The sinks that are told of the past: those that show things at their own time. Nobody is called at night."""
    return [name for name, sink in settings.sinks.items() if isinstance(sink, GrafanaSettings)]


def tell(settings: Settings, store: Store, stopping: threading.Event) -> int:
    """Deliver what was found to the sinks of history, as far as they take it. Returns how many are left waiting.

    Raises:
        StoreError: the database refuses.
    """
    left = 0
    sinks = build_sinks(settings)
    for name in sinks_of_history(settings):
        queue = SinkQueue(name, sinks[name], store, policy=RetryPolicy())
        queue.hurry()
        queue.pump(wall_clock_ms, stopping)
        left += len(store.outbox_incidents(name, "pending"))
    for sink in sinks.values():
        sink.close()
    return left


def trial_settings(settings: Settings, database: str) -> Settings:
    """The same, with a database of its own, and nobody to tell."""
    return settings.model_copy(update={"database": database, "sinks": {}})


def prepare_trial(settings: Settings, name: str, live: Store, trial: Store, references: Mapping[str, int]) -> None:
    """Make references and labels known in a database into which history is scored.

    Args:
        references: by space, the version; those in use where not named.

    Raises:
        InvalidInput: it holds live records, or other references of the model; or the model has none.
    """
    if trial.is_same(live) or (trial.partition_states(name) and not trial.backfills(name)):
        raise InvalidInput(
            f"That database holds the live records of {name}; a trial needs one of its own.",
            hint="Name a new one: --into sqlite:///trial.db",
        )
    rows = references_of(settings, name, live, references)
    for row in rows:
        there = {known.version for known in trial.references(name, row.space)}
        if there - {row.version}:
            raise InvalidInput(
                f"That database holds a trial against version {max(there)} of {name}/{row.space}.",
                hint="Name a new one: --into sqlite:///trial-2.db",
            )
    if not trial.references(name, rows[0].space):
        trial.commit(Checkpoint(name, [], references=rows))
    trial.copy_labels(name, live)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a dry run says.

    Attributes:
        records: to be scored, as many as the offsets and the sample suggest.
        rate: records a second of the sample, on this machine; 0 where there is nothing to score.
    """

    records: int
    rate: float


def rehearse(plan: Plan, settings: Settings, store: Store, source: Source) -> Rehearsal:
    """Score some records of a plan, and write nothing."""
    if not plan.offsets:
        return Rehearsal(0, 0.0)
    job = job_of(plan.rows[-1], settings, store)
    largest = sorted(job.range.spans.items(), key=lambda item: (-len(item[1]), item[0]))[:SAMPLE_PARTITIONS]
    pipeline = history_pipeline(
        job.row.model, settings, job.references, store=store_of(job, store), labels=job.labels, writes=False
    )
    records = timed = offsets = 0
    seconds = 0.0
    reading = source.between(dict(largest))
    try:
        reading.open(lambda partitions: {})
        while records < SAMPLE and not reading.finished:
            for batch in reading.poll(SAMPLE // 4, 5.0):
                began = time.perf_counter()
                pipeline.process(batch, None)
                if records:  # the first ones load what the others find loaded
                    seconds += time.perf_counter() - began
                    timed += len(batch)
                if len(batch):
                    offsets += batch.next_offset - int(batch.offsets[0])
                records += len(batch)
    finally:
        reading.close()
    return Rehearsal(round(plan.offsets * records / max(offsets, 1)), timed / seconds if timed else 0.0)
