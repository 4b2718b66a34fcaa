"""`driftd run`: one process that watches the models until it is told to stop.

One thread does the work, model after model: poll, score, checkpoint, fold. Beside it run the HTTP server, one sender
for each sink and one for dead letters, so that a slow receiver never delays scoring.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from types import FrameType
from typing import Any

from connectors.database.rows import MuteRow, Retention
from connectors.database.store import Store
from connectors.prometheus import Metrics
from detectors.errors import DriftdError, RetryableError, SinkError, StoreError
from monitor.ageing import merge_old_summaries
from monitor.app import (
    build_dead_letter_topics,
    build_label_readers,
    build_sinks,
    build_truth_readers,
    build_workers,
    check_references_folder,
    http_address,
)
from monitor.app import open_store as open_database
from monitor.block_stats import SURPRISE_BELOW
from monitor.budget import budget_so_far, is_page, observed_by_model, together
from monitor.child import Parent
from monitor.dead_letters import DeadLetterPublisher
from monitor.document_reader import DocumentReader
from monitor.folding import Outcome
from monitor.fraud_learner import Learner
from monitor.fraud_settings import FRAUD_SPACE
from monitor.health import Health
from monitor.incident_list import alerted, mute_of
from monitor.label_requests import TRUTHS, LabelRequests
from monitor.log import configure, event
from monitor.pacing import Pace
from monitor.sender import OutboxSender
from monitor.settings import Settings
from monitor.standing import word_now
from monitor.watchdog import STEP_S, Watchdog
from monitor.web import Status, WebServer
from monitor.worker import Step, Worker

log = logging.getLogger(__name__)

RETRY_S = 1.0
RETRY_BESIDE_S = 30.0  # of a start that may take 5 s to fail, while other models wait for their turn
TICK_S = 0.05
PRUNE_EVERY_S = 3600.0
MERGE_EVERY_S = 600.0
MERGE_AGAIN_S = 1.0  # where more is left than is merged at once
LOOK_BACK_EVERY_S = 30.0
MUTES_EVERY_S = 5.0
VERDICTS_EVERY_S = 15.0
WAIT_S = 0.5  # longest wait for records of all models together


class _Stopped(Exception):
    """A signal came while something was waited for."""


class Daemon:
    """Runs until SIGTERM, SIGINT, or the end of bounded sources.

    Args:
        settings: all settings.
        ordinal: of this process among several.
        parent: the supervisor that started it, and shows what it says at the address of the settings.
    """

    def __init__(self, settings: Settings, *, ordinal: int = 0, parent: Parent | None = None) -> None:
        self._settings = settings
        self._ordinal = ordinal
        self._parent = parent
        self._watchdog = Watchdog()
        self._stopping = False
        self._status = Status(live_within_s=STEP_S + 60)  # the watchdog comes first, and says more
        self._metrics = Metrics()
        self._said: dict[str, str] = {}
        self._next_prune = 0.0
        self._next_merge = 0.0
        self._merged: Counter[str] = Counter()  # stored summaries that became fewer, by model
        self._next_look = 0.0
        self._next_mutes = 0.0
        self._next_verdicts = 0.0
        self._mutes: list[MuteRow] = []  # in force, when it was looked last
        self._paged: dict[str, set[str]] = {}  # pages that are counted already, by model
        self._seen: dict[str, tuple[int, int, int]] = {}  # what a source counts, as it was counted here, by model
        self._fit_failures: dict[str, int] = {}  # of the fraud scorer, as they were counted here, by model
        self._health: dict[str, Health] = {}
        self._labels = LabelRequests(settings.http)
        self._truths = LabelRequests(settings.http, path=TRUTHS, needs="a prediction (record.prediction)")
        self._start_at: dict[str, float] = {}  # when a model that did not start is tried again, monotonic clock

    def run(self) -> int:
        """Watch. Returns the exit code: 0 after a stop that was asked for, or when all sources were read to their end.

        Raises:
            DriftdError: what cannot be waited out: wrong settings, a reference that does not fit, refused credentials.
        """
        configure(self._settings.log_format, worker=self._ordinal if self._parent else None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        check_references_folder(self._settings.references)
        host, port = ("127.0.0.1", 0) if self._parent else http_address(self._settings)
        with ExitStack() as closing:
            self._watchdog.start()
            closing.callback(self._watchdog.stop)
            web = WebServer(self._status, self._metrics, host=host, port=port, labels=self._labels, truths=self._truths)
            web.start()
            closing.callback(web.stop)
            if self._parent:
                self._parent.tell(web.port)
            else:
                log.info(event("listening", url=web.url))
            try:
                self._watch(closing)
            except _Stopped:
                pass
        log.info(event("stopped"))
        return 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks for a stop after the current batch; the second leaves at once, which is safe.

        A worker may get one from its supervisor and the same from systemd, which tells every process of a service.
        """
        if self._stopping and self._parent is None:
            os._exit(128 + number)
        self._stopping = True

    def _watch(self, closing: ExitStack) -> None:
        store = self._open_database()
        closing.callback(store.close)
        notify = self._settings.notify
        pace = Pace(
            group_wait_ms=round(notify.group_wait * 1000),
            group_interval_ms=round(notify.group_interval * 1000),
            most_per_minute=notify.most_per_minute,
        )
        sender = OutboxSender(store, build_sinks(self._settings), metrics=self._metrics, pace=pace)
        sender.start()
        closing.callback(sender.stop)
        workers = build_workers(self._settings, store, ordinal=self._ordinal, watchdog=self._watchdog)
        by_name = {worker.name: worker for worker in workers}
        publisher = DeadLetterPublisher(
            store, build_dead_letter_topics(self._settings), assigned=lambda model: by_name[model].assigned
        )
        publisher.start()
        closing.callback(publisher.stop)
        readers = build_label_readers(self._settings, store, self._metrics, ordinal=self._ordinal)
        truths = build_truth_readers(self._settings, store, self._metrics, ordinal=self._ordinal)
        taking: list[tuple[str, DocumentReader[Any]]] = [*readers.items(), *truths.items()]
        for _, reader in taking:
            reader.start()
            closing.callback(reader.stop)
        for _, reader in taking:
            closing.callback(reader.ask_to_stop)
        self._labels.open(readers)
        closing.callback(self._labels.close)
        self._truths.open(truths)
        closing.callback(self._truths.close)
        for worker in workers:
            closing.callback(worker.source.close)
            closing.callback(worker.close)
            if worker.scores is not None:
                closing.callback(worker.scores.close)
            self._metrics.watch(worker.name, list(worker.model.spaces))
            self._metrics.block_seconds.labels(worker.name).set(worker.model.drift.block)
            self._status.model(worker.name, state="starting")
            self._health[worker.name] = Health(worker, lag_limit_s=worker.model.drift.wait)
        self._metrics.expected_false_pages.set(1.0 / self._settings.page_every_days)
        starting, running = list(workers), list[Worker]()
        while (starting or running) and not self._stopping:
            for worker in list(starting):
                if not self._stopping and self._started(worker, store, others=bool(running)):
                    starting.remove(worker)
                    running.append(worker)
                    # What was made so far lives as long as the process: the collector need not look at it each time.
                    gc.collect()
                    gc.freeze()
            if not running:
                self._pause(TICK_S)
            for worker in list(running):
                wait_s = max(0.1, WAIT_S / len(running))
                if self._one_step(worker, wait_s=wait_s, others=len(running) > 1):
                    running.remove(worker)
            self._prune(store)
            self._merge_summaries(store)
            self._look_back(store, publisher)
            self._look_at_mutes(store, workers)
            self._look_at_verdicts(store)
            for sink, trouble in sender.troubles().items():
                self._status.check(f"sink {sink}", ok=not trouble, detail=trouble or "nothing known against it")
            for name, reader in taking:
                trouble = reader.trouble
                detail = trouble or "nothing known against it"
                self._status.check(f"{reader.what} of {name}", ok=not trouble, detail=detail)
        self._drain([worker for worker in workers if worker not in starting])
        if not self._stopping:
            sender.finish()

    def _one_step(self, worker: Worker, *, wait_s: float, others: bool) -> bool:
        """One step of one model, with a pause after a failure, a short one where others wait. True at its end."""
        with self._watchdog.limit(f"step of {worker.name}", STEP_S):
            step = worker.step(self._now_ms(), time.monotonic(), wait_s=wait_s)
        self._status.polled(worker.name)
        self._count(worker, step)
        for check in self._health[worker.name].checks(step, self._now_ms(), time.monotonic()):
            self._status.check(check.name, ok=check.ok, detail=check.detail)
        if step.failure:
            self._say(worker.name, step.failure)
            self._status.model(worker.name, state=step.failure, ready=False)
            if not step.records:
                self._pause(wait_s if others else RETRY_S)
        elif step.records or step.folded is not None or worker.name in self._said:
            self._said.pop(worker.name, None)
            self._show(worker)
        if step.finished:
            worker.close_blocks_at_end(self._now_ms())
            self._show(worker)
            self._status.model(worker.name, state="finished: the source was read to its end", finished=True)
            self._metrics.at_end(worker.name)
            log.info(event("source finished", model=worker.name))
        return step.finished

    def _drain(self, workers: list[Worker]) -> None:
        for worker in workers:
            try:
                worker.drain(self._now_ms())
            except (StoreError, SinkError) as error:
                log.warning(
                    event("last checkpoint refused, its records are read again", model=worker.name, reason=str(error))
                )

    def _open_database(self) -> Store:
        """Open it, and wait out failures that may pass; /readyz and the log say what is waited for."""
        while not self._stopping:
            try:
                with self._watchdog.limit("start: database", STEP_S):
                    store = open_database(self._settings)
                self._said.pop("database", None)
                self._status.check("database", ok=True, detail="open")
                return store
            except RetryableError as error:
                if not error.retryable:
                    raise
                self._say("database", str(error))
                self._status.check("database", ok=False, detail=str(error))
                self._pause()
        raise _Stopped

    def _started(self, worker: Worker, store: Store, *, others: bool) -> bool:
        """Start a model, if it is time to try. What may pass is tried again, less often where others are delayed by it.

        Raises:
            DriftdError: what cannot be waited out. Where others run, and this model was waited for before, that is no
                reason to end them: it is tried again like the rest.
        """
        name = worker.name
        if time.monotonic() < self._start_at.get(name, 0.0):
            return False
        try:
            with self._watchdog.limit(f"start of {name}", STEP_S):
                worker.start()
                self._paged[name] = {row.id for row in store.incidents(model=name) if is_page(row)}
        except DriftdError as error:
            passing = isinstance(error, RetryableError) and error.retryable
            if not passing and not (others and name in self._start_at):
                raise
            self._start_at[name] = time.monotonic() + (RETRY_BESIDE_S if others else RETRY_S)
            self._say(f"model {name}", str(error))
            self._status.polled(name)
            self._status.model(name, state=str(error), ready=False)
            return False
        self._said.pop(f"model {name}", None)
        self._status.polled(name)
        self._metrics.watched.labels(name).set(1)
        self._show(worker)
        return True

    def _say(self, what: str, text: str) -> None:
        """Log a failure when its text changes; it is in /readyz all the while."""
        if self._said.get(what) != text:
            self._said[what] = text
            log.warning(event("waiting", what=what, reason=text))

    def _pause(self, seconds: float = RETRY_S) -> None:
        end = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < end:
            time.sleep(TICK_S)

    def _look_back(self, store: Store, publisher: DeadLetterPublisher) -> None:
        """Show the pages that there were beside those that the budget allows, and what people said of them."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_BACK_EVERY_S
        try:
            seen = observed_by_model(self._settings, store)
        except StoreError as error:
            self._say("alarm budget", str(error))
            return
        for name, found in seen.items():
            self._metrics.observed_seconds.labels(name).set(found.days * 86_400)
            self._metrics.observed_pages.labels(name).set(found.pages_per_day)
            self._metrics.observed_false_pages.labels(name).set(found.false_per_day)
        try:
            self._metrics.dead_letters_waiting.set(publisher.waiting())
        except StoreError as error:
            self._say("dead letters", str(error))
        detail = budget_so_far(self._settings, together(seen.values()))
        self._status.check("alarm budget", ok=True, detail=detail)

    def _look_at_mutes(self, store: Store, workers: Iterable[Worker]) -> None:
        """Show how many of the open incidents are muted; nothing else here depends on it."""
        if time.monotonic() < self._next_mutes:
            return
        self._next_mutes = time.monotonic() + MUTES_EVERY_S
        try:
            self._mutes = store.mutes(self._now_ms())
        except StoreError as error:
            self._say("mutes", str(error))
            return
        self._said.pop("mutes", None)
        for worker in workers:
            self._status.model(worker.name, muted_incidents=self._muted(worker))

    def _look_at_verdicts(self, store: Store) -> None:
        """Show what is said of each model; nothing else here depends on it.

        Out of the database, so that every worker shows the same, whichever of them folds.
        """
        if time.monotonic() < self._next_verdicts:
            return
        self._next_verdicts = time.monotonic() + VERDICTS_EVERY_S
        try:
            for name in self._settings.models:
                word, since_ms, row = word_now(self._settings, store, name)
                self._metrics.verdict(name, word, None if since_ms is None else since_ms / 1000, row)
        except StoreError as error:
            self._say("verdicts", str(error))
            return
        self._said.pop("verdicts", None)

    def _muted(self, worker: Worker) -> int:
        return sum(mute_of(row, self._mutes) is not None for row in worker.open_incidents)

    def _prune(self, store: Store) -> None:
        if time.monotonic() < self._next_prune:
            return
        self._next_prune = time.monotonic() + PRUNE_EVERY_S
        keep = self._settings.retention
        try:
            deleted = store.prune(
                self._now_ms(),
                Retention(
                    kept_days=keep.kept_days,
                    kept_rows=keep.kept_rows,
                    dead_letters_days=keep.dead_letters_days,
                    dead_letter_rows=keep.dead_letter_rows,
                    readings_days=keep.readings_days,
                    summaries_days=keep.summaries_days,
                    remembered_days=keep.remembered_days,
                    remembered_mb=keep.remembered_mb,
                    answers_days=keep.answers_days,
                    answers_mb=keep.answers_mb,
                ),
            )
        except StoreError as error:
            log.warning(event("retention skipped", reason=str(error)))
            return
        if any(deleted.values()):
            log.info(event("old rows deleted", **deleted))

    def _merge_summaries(self, store: Store) -> None:
        """Old history in fewer rows; a little of each model at a time, so that no record waits for it."""
        if time.monotonic() < self._next_merge:
            return
        self._next_merge = time.monotonic() + MERGE_EVERY_S
        for name in self._settings.models:
            try:
                aged = merge_old_summaries(store, self._settings, name)
            except StoreError as error:
                self._say(f"old summaries of {name}", str(error))
                continue
            if aged.waits_for:
                self._say(f"old summaries of {name}", f"not merged before the backfill {aged.waits_for} is finished")
                continue
            self._said.pop(f"old summaries of {name}", None)
            self._merged[name] += aged.rows - aged.into
            if aged.left:
                self._next_merge = time.monotonic() + MERGE_AGAIN_S
            elif self._merged[name]:
                log.info(event("old summaries merged", model=name, fewer=self._merged.pop(name)))

    def _count(self, worker: Worker, step: Step) -> None:
        metrics, name = self._metrics, worker.name
        metrics.last_poll.labels(name).set(time.time())
        metrics.blind.labels(name).set(bool(worker.blind))
        metrics.encoder_changed.labels(name).set(bool(worker.encoder_changed))
        for space, check in worker.canaries.items():
            metrics.canaries.labels(name, space).set(check.canaries)
            metrics.canary_change.labels(name, space).set(check.largest)
        metrics.records.labels(name).inc(step.counted)
        for reason, count in step.dead.items():
            metrics.dead_letters.labels(name, reason).inc(count)
        metrics.late.labels(name).inc(step.late)
        metrics.kept.labels(name).inc(step.kept)
        metrics.thinned.labels(name).inc(step.thinned)
        metrics.thinning_unchecked.labels(name).inc(step.unchecked)
        if worker.learner is not None:
            self._count_fraud(worker.learner, name, step)
        if worker.scores is not None:
            metrics.scores_written.labels(name).inc(step.scores_written)
            metrics.scores_dropped.labels(name).inc(step.scores_dropped)
        if worker.model.record.pair is not None:
            self._count_pairs(worker, step)
        self._count_reading(worker, step)
        for phase, seconds in step.seconds.items():
            metrics.phase_seconds.labels(name, phase).inc(seconds)
        if step.commit_s is not None:
            metrics.checkpoint_seconds.labels(name).observe(step.commit_s)
        if step.ownership_lost:
            metrics.ownership_lost.labels(name).inc()
        elif step.refused:
            metrics.checkpoint_failures.labels(name).inc()
        else:
            metrics.last_transaction.labels(name).set(time.time())
        for gap in step.gaps:
            metrics.gaps.labels(name, gap.reason).inc()
            metrics.lost.labels(name).inc(max(0, gap.to_offset - gap.from_offset))
        if step.folded is not None:
            self._count_fold(worker, step.folded)

    def _count_reading(self, worker: Worker, step: Step) -> None:
        metrics, name, state = self._metrics, worker.name, worker.source.state()
        lag, ages = worker.source.lag(), worker.lag_seconds(self._now_ms())
        metrics.partitions(
            name,
            {f"{place.topic}/{place.number}": records for place, records in lag.items()},
            {f"{place.topic}/{place.number}": seconds for place, seconds in ages.items()},
            silent=len(state.silent),
            held=step.held,
        )
        metrics.batch_records.labels(name).set(step.batch_records)
        counted = state.rebalances, state.rebuilt, state.failed_commits
        before = self._seen.get(name, (0, 0, 0))
        self._seen[name] = counted
        counters = metrics.rebalances, metrics.client_rebuilds, metrics.failed_commits
        for counter, now, then in zip(counters, counted, before, strict=True):
            counter.labels(name).inc(now - then)

    def _count_fraud(self, learner: Learner, name: str, step: Step) -> None:
        metrics, latest = self._metrics, learner.latest()
        metrics.fraud_candidates.labels(name).inc(step.fraud_candidates)
        metrics.entities_dropped.labels(name).inc(step.entities_dropped)
        metrics.label_version.labels(name).set(latest.version)
        metrics.fraud_cases.labels(name).set(latest.scorer.n_cases)
        metrics.labels_unusable.labels(name).set(latest.dropped)
        for seconds in learner.fit_seconds():
            metrics.fraud_fit_seconds.labels(name).observe(seconds)
        failures = learner.failures
        metrics.fraud_fit_failures.labels(name).inc(max(failures - self._fit_failures.get(name, 0), 0))
        self._fit_failures[name] = failures

    def _count_pairs(self, worker: Worker, step: Step) -> None:
        metrics, name, pipeline = self._metrics, worker.name, worker.pipeline
        metrics.pairs.labels(name).inc(step.pairs.joined)
        metrics.halves_alone.labels(name, "timeout").inc(step.pairs.timed_out)
        metrics.halves_alone.labels(name, "room").inc(step.pairs.crowded_out)
        if pipeline is not None:
            metrics.pending_halves.labels(name).set(pipeline.pending_halves)
            metrics.oldest_half.labels(name).set((pipeline.oldest_half_ms or 0) / 1000)

    def _count_fold(self, worker: Worker, folded: Outcome) -> None:
        metrics, name = self._metrics, worker.name
        metrics.late.labels(name).inc(folded.late)
        metrics.closed_late.labels(name).inc(folded.late)
        metrics.stalled.labels(name).set(len(folded.stalled))
        for space, count in folded.flagged.items():
            if space == FRAUD_SPACE and worker.model.fraud is not None:
                metrics.fraud_alerts.labels(name).inc(count)
            else:
                metrics.outliers.labels(name, space).inc(count)
        if folded.unlisted:
            metrics.fraud_unlisted.labels(name).inc(folded.unlisted)
        if folded.next_block is not None:
            metrics.folded(
                name,
                blocks=folded.blocks,
                watermark_s=folded.next_block * worker.model.drift.block,
                now_s=time.time(),
            )
        for reading in folded.readings:
            metrics.drift(
                name,
                reading.space,
                segment=reading.segment,
                channel=reading.channel,
                strength=reading.strength,
                page_threshold=reading.threshold,
                warn_threshold=reading.warn_threshold,
                statistic=reading.statistic,
                effect=reading.effect,
                records=reading.n,
            )
        for stat in folded.stats:
            if stat.space:
                for below, records in zip(SURPRISE_BELOW, stat.surprise, strict=True):
                    metrics.surprise.labels(name, stat.space, f"{below:.2g}").inc(records)
        counted = self._paged.setdefault(name, set())
        pages = {row.id for row in folded.incidents if is_page(row)} - counted
        counted |= pages
        metrics.pages.labels(name).inc(len(pages))
        self._show_incidents(worker)

    def _show_incidents(self, worker: Worker) -> None:
        self._metrics.incidents(worker.name, alerted(worker.open_incidents))

    def _show(self, worker: Worker) -> None:
        metrics, name = self._metrics, worker.name
        self._show_incidents(worker)
        self._status.model(
            name,
            state="; ".join([worker.state, *worker.cautions]),
            ready=worker.pipeline is not None and not worker.halted and not worker.encoder_changed,
            blind=bool(worker.blind),
            records=worker.records,
            dead_letters=worker.dead,
            lag=sum(worker.source.lag().values()),
            open_incidents=len(worker.open_incidents),
            muted_incidents=self._muted(worker),
            watermark_ms=worker.watermark_ms,
            reference=", ".join(f"{space.name} {space.version}" for space in worker.spaces),
        )
        if worker.collector is not None:
            metrics.baseline_collected.labels(name).set(worker.collector.collected)
            metrics.baseline_wanted.labels(name).set(worker.collector.wanted)
        for space in worker.spaces:
            metrics.reference_version.labels(name, space.name).set(space.version)
            metrics.reference_records.labels(name, space.name).set(space.reference.n_records)
            metrics.reference_created.labels(name, space.name).set(space.reference.created_ms / 1000)

    @staticmethod
    def _now_ms() -> int:
        return int(time.time() * 1000)
