"""Every metric of driftd, in one place: name, kind, labels, and what it means.

The names begin with driftd_ and end in their unit, and no label holds an event's id. Segments come out of the records,
so there may be any number of them: only the first ``max_segments`` of each model get series of their own, and what is
left out is counted. Counters begin at 0 when the process starts, as Prometheus expects; the exact totals are in the
database.

docs/metrics.md is made from this: connectors/prometheus_document.py.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal, get_args

from connectors.database.rows import VerdictRow, VerdictWord

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

MAX_PARTITIONS = 200  # of a model, with series of their own
MAX_SEGMENTS = 1000  # of all models together
LEARNING = "learning"  # the word for a model that has no reference yet
MAX_LABEL = 100  # characters of a label's value
FIT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0)
CHECKPOINT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """What docs/metrics.md says of one metric."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]
    help: str


class Metrics:
    """All metrics, in a registry of their own. Safe to use from several threads.

        metrics = Metrics()
        metrics.watch("support_triage", ["input", "output"])
        metrics.records.labels("support_triage").inc(512)

    Args:
        registry: a registry that is still empty; a new one by default.
        max_segments: how many segments of each model get series.
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, max_segments: int = 200) -> None:
        import prometheus_client

        # A series per counter that says when it was made doubles the output, and nothing reads it.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry if registry is not None else prometheus_client.CollectorRegistry(auto_describe=True)
        self.specs: list[MetricSpec] = []
        self._max_segments = max_segments
        self._segments: dict[str, set[str]] = {}
        self._strengths: dict[str, set[tuple[str, str, str]]] = {}
        self._watermarks: dict[str, float] = {}
        self._partitions: dict[str, set[str]] = {}
        self._open_series: set[tuple[str, str, str]] = set()
        self._since_series: set[tuple[str, str, str]] = set()
        prometheus_client.ProcessCollector(registry=self.registry)
        prometheus_client.PlatformCollector(registry=self.registry)
        prometheus_client.GCCollector(registry=self.registry)

        def counter(name: str, unit: str, text: str, *labels: str) -> Counter:
            self.specs.append(MetricSpec(name, "counter", unit, labels, text))
            return prometheus_client.Counter(name, text, labels, registry=self.registry)

        def gauge(name: str, unit: str, text: str, *labels: str) -> Gauge:
            self.specs.append(MetricSpec(name, "gauge", unit, labels, text))
            return prometheus_client.Gauge(name, text, labels, registry=self.registry)

        def histogram(name: str, unit: str, text: str, *labels: str, buckets: Sequence[float]) -> Histogram:
            self.specs.append(MetricSpec(name, "histogram", unit, labels, text))
            return prometheus_client.Histogram(name, text, labels, registry=self.registry, buckets=buckets)

        build = gauge("driftd_build_info", "-", "Always 1; the labels say what runs.", "version", "python")
        build.labels(_version(), platform.python_version()).set(1)

        self.watched = gauge(
            "driftd_model_watched",
            "-",
            "1 while the process watches the model, 0 while it cannot begin; no series once the source is at its end.",
            "model",
        )
        self.records = counter(
            "driftd_records_total",
            "records",
            "Records counted in the database, unusable and late ones included.",
            "model",
        )
        self.dead_letters = counter(
            "driftd_dead_letters_total", "records", "Records that could not be used.", "model", "reason"
        )
        self.late = counter(
            "driftd_late_records_total",
            "records",
            "Records that came after their block was closed; scored, not counted.",
            "model",
        )
        self.thinned = counter(
            "driftd_thinned_records_total",
            "records",
            "Records that did not enter the drift summaries because an earlier one of their key did; scored and kept.",
            "model",
        )
        self.thinning_unchecked = counter(
            "driftd_thinning_unchecked_records_total",
            "records",
            "Records that entered the drift summaries unthinned: their block has more keys than are remembered.",
            "model",
        )
        self.pairs = counter("driftd_pairs_total", "pairs", "Requests that were joined with their responses.", "model")
        self.halves_alone = counter(
            "driftd_halves_alone_total",
            "records",
            "Requests and responses that went alone: the other did not come in time, or (room) too many were waiting.",
            "model",
            "why",
        )
        self.pending_halves = gauge(
            "driftd_pending_halves",
            "records",
            "Requests and responses that wait for the other, in this process.",
            "model",
        )
        self.oldest_half = gauge(
            "driftd_oldest_half_timestamp_seconds",
            "seconds since 1970",
            "Time of the oldest of them; 0 where none waits.",
            "model",
        )
        self.kept = counter(
            "driftd_kept_records_total", "records", "Records kept as candidates or as a random sample.", "model"
        )
        self.outliers = counter("driftd_outliers_total", "records", "Records flagged as outliers.", "model", "space")
        self.fraud_candidates = counter(
            "driftd_fraud_candidates_total",
            "records",
            "Records on time whose fraud score has a p-value of at most fraud.alpha.",
            "model",
        )
        self.fraud_alerts = counter(
            "driftd_fraud_alerts_total", "records", "Fraud candidates that were put before people.", "model"
        )
        self.fraud_unlisted = counter(
            "driftd_fraud_unlisted_total",
            "records",
            "Fraud hits that were not, because there were as many alerts as fraud.alerts.most allows.",
            "model",
        )
        self.label_version = gauge(
            "driftd_label_version_in_force",
            "labels",
            "Labels that the newest fraud scorer of this process knows; its next checkpoint is scored with it.",
            "model",
        )
        self.fraud_cases = gauge(
            "driftd_fraud_known_cases",
            "records",
            "Confirmed cases that it rests on, copies dropped; 0: it tells what is strange, not what is fraud.",
            "model",
        )
        self.labels_unusable = gauge(
            "driftd_fraud_unusable_labels",
            "labels",
            "Labels that it leaves out, because another embedder made the vectors of their records.",
            "model",
        )
        self.fraud_fit_seconds = histogram(
            "driftd_fraud_fit_seconds",
            "seconds",
            "What it took to read new labels and to fit the fraud scorer.",
            "model",
            buckets=FIT_BUCKETS,
        )
        self.fraud_fit_failures = counter(
            "driftd_fraud_fit_failures_total",
            "times",
            "How often labels could not be read or the fraud scorer not be fitted; the one before stays in force.",
            "model",
        )
        self.labels_taken = counter(
            "driftd_labels_total",
            "labels",
            "Labels that came, by what became of them: new, repeated, or the reason why they could not be used.",
            "model",
            "outcome",
        )
        self.labels_stored = gauge(
            "driftd_labels_stored",
            "labels",
            "Labels in the database, superseded ones included.",
            "model",
            "source",
            "label",
        )
        self.label_versions = gauge(
            "driftd_label_version", "labels", "Labels whose record is known: each made a version.", "model"
        )
        self.labels_waiting = gauge("driftd_labels_waiting", "labels", "Labels whose record is not known yet.", "model")
        self.labels_unmatched = gauge(
            "driftd_labels_unmatched",
            "labels",
            "Of them, those that have waited longer than records are remembered.",
            "model",
        )
        self.labels_contradicting = gauge(
            "driftd_labels_contradicting",
            "records",
            "Records of which both was said, that they are fraud and that they are not.",
            "model",
        )
        self.labels_superseded = gauge(
            "driftd_labels_superseded",
            "labels",
            "Labels that count for nothing, because of the same record more was said.",
            "model",
        )
        self.truths_taken = counter(
            "driftd_truths_total",
            "truths",
            "True answers that came, by what became of them: new, repeated, or the reason why they could not be used.",
            "model",
            "outcome",
        )
        self.truths_matched = gauge(
            "driftd_truths_matched", "truths", "True answers to records whose own answer is known: they count.", "model"
        )
        self.truths_waiting = gauge(
            "driftd_truths_waiting", "truths", "True answers to records whose own answer is not known yet.", "model"
        )
        self.truths_unmatched = gauge(
            "driftd_truths_unmatched",
            "truths",
            "Of them, those that have waited longer than answers are remembered.",
            "model",
        )
        self.truths_corrected = gauge(
            "driftd_truths_corrected",
            "truths",
            "True answers that count, but of whose record another one says more lately what is true.",
            "model",
        )
        self.entities_dropped = counter(
            "driftd_entities_dropped_total",
            "entities",
            "Entities that were forgotten because a partition has more of them than fraud.entity.most.",
            "model",
        )

        self.closed_late = counter(
            "driftd_closed_late_records_total",
            "records",
            "Of the late records, those whose block the wall clock had closed: their partition was silent or slow.",
            "model",
        )
        self.gaps = counter(
            "driftd_gaps_total",
            "gaps",
            "Stretches of a partition that were gone before they could be read.",
            "model",
            "reason",
        )
        self.lost = counter("driftd_lost_records_total", "records", "Offsets in these stretches.", "model")
        self.lag = gauge("driftd_lag_records", "records", "Records in the source that were not read yet.", "model")
        self.lag_seconds = gauge(
            "driftd_lag_seconds",
            "seconds",
            "Age of the last record that was read, by the broker's clock, where more wait; the oldest partition's.",
            "model",
        )
        self._partition_lag = gauge(
            "driftd_partition_lag_records",
            "records",
            "Records of a partition that were not read yet.",
            "model",
            "partition",
        )
        self._partition_lag_seconds = gauge(
            "driftd_partition_lag_seconds", "seconds", "The same as an age, per partition.", "model", "partition"
        )
        self.assigned = gauge(
            "driftd_assigned_partitions", "partitions", "Partitions that this process reads.", "model"
        )
        self.held = gauge(
            "driftd_held_partitions",
            "partitions",
            "Of them, those that wait because they run ahead of the slowest.",
            "model",
        )
        self.silent = gauge(
            "driftd_silent_partitions",
            "partitions",
            "Of them, those with records that wait and none that come.",
            "model",
        )
        self.stalled = gauge(
            "driftd_stalled_partitions",
            "partitions",
            "Partitions of the topic that stand still, so that blocks are closed without them.",
            "model",
        )
        self.failed_commits = counter(
            "driftd_failed_group_commits_total",
            "offsets",
            "Offsets that the group did not take; harmless, lag tools show old numbers meanwhile.",
            "model",
        )
        self.rebalances = counter(
            "driftd_rebalances_total", "times", "How often the group has told us our partitions.", "model"
        )
        self.client_rebuilds = counter(
            "driftd_client_rebuilds_total", "times", "How often an error made the Kafka client be built anew.", "model"
        )
        self.batch_records = gauge(
            "driftd_batch_records",
            "records",
            "Records that a poll asks for, so that they take no longer than a checkpoint.",
            "model",
        )
        self.last_poll = gauge(
            "driftd_last_poll_timestamp_seconds",
            "seconds since 1970",
            "Wall clock at which the last poll of the source came back.",
            "model",
        )
        self.watermark = gauge(
            "driftd_watermark_timestamp_seconds",
            "seconds since 1970",
            "Event time up to which blocks are closed and judged.",
            "model",
        )
        self._watermark_moved = gauge(
            "driftd_watermark_moved_timestamp_seconds",
            "seconds since 1970",
            "Wall clock at which this process last saw that event time move on, or saw it for the first time.",
            "model",
        )
        self.block_seconds = gauge(
            "driftd_block_seconds", "seconds", "Event time of one block, as the settings say.", "model"
        )
        self.phase_seconds = counter(
            "driftd_phase_seconds_total",
            "seconds",
            "Time spent in each phase of a record: poll, decode, embed, score, fraud, scores, commit, fold.",
            "model",
            "phase",
        )
        self.checkpoint_seconds = histogram(
            "driftd_checkpoint_seconds",
            "seconds",
            "Duration of checkpoint transactions.",
            "model",
            buckets=CHECKPOINT_BUCKETS,
        )
        self.scores_written = counter(
            "driftd_scores_written_total",
            "records",
            "Records whose scores were written for other programs, by checkpoints that were committed.",
            "model",
        )
        self.scores_dropped = counter(
            "driftd_scores_dropped_total",
            "records",
            "Records whose scores were not, where the settings allow that: scores.required: false.",
            "model",
        )
        self.checkpoint_failures = counter(
            "driftd_checkpoint_failures_total",
            "checkpoints",
            "Checkpoints that the database refused; their records are read again.",
            "model",
        )

        self.ownership_lost = counter(
            "driftd_ownership_lost_total",
            "checkpoints",
            "Checkpoints that were rolled back because another worker had the partition; normal while workers move.",
            "model",
        )
        self.last_transaction = gauge(
            "driftd_database_last_ok_timestamp_seconds",
            "seconds since 1970",
            "Wall clock at which the database was last in order.",
            "model",
        )

        self.blocks_folded = counter("driftd_blocks_folded_total", "blocks", "Blocks closed and judged.", "model")
        self._strength = gauge(
            "driftd_drift_strength",
            "log10 of blocks",
            "Evidence of drift: 10^strength blocks is the time in which such evidence appears once by chance.",
            "model",
            "space",
            "segment",
            "channel",
        )
        self._threshold = gauge(
            "driftd_drift_threshold",
            "log10 of blocks",
            "Strength from which on the level (page, warn) is reached.",
            "model",
            "space",
            "segment",
            "channel",
            "level",
        )
        self._statistic = gauge(
            "driftd_drift_statistic",
            "of the channel",
            "What the channel measures, in the window that speaks loudest: see docs/drift.md.",
            "model",
            "space",
            "segment",
            "channel",
        )
        self._effect = gauge(
            "driftd_drift_effect",
            "of the channel",
            "How large the change is: in standard deviations, and for outlier_rate as found / expected.",
            "model",
            "space",
            "segment",
            "channel",
        )
        self._window_records = gauge(
            "driftd_drift_window_records",
            "records",
            "Records in the window that gave the strength.",
            "model",
            "space",
            "segment",
            "channel",
        )
        self.surprise = counter(
            "driftd_surprise_records_total",
            "records",
            "Records of closed blocks by p-value: below this value, and not below the next lower one.",
            "model",
            "space",
            "below",
        )
        self.segments_dropped = counter(
            "driftd_segment_series_dropped_total",
            "readings",
            "Values of segments beyond the limit that were not shown as series.",
            "model",
        )
        self.expected_false_pages = gauge(
            "driftd_expected_false_pages_per_day",
            "pages per day",
            "False pages that the settings allow, for the whole deployment.",
        )
        self.pages = counter(
            "driftd_pages_total",
            "incidents",
            "Incidents of drift or of the outlier rate that became a page, in this process.",
            "model",
        )
        self.observed_seconds = gauge(
            "driftd_observed_seconds",
            "seconds",
            "Event time behind the two rates below; the budget's period at most.",
            "model",
        )
        self.observed_pages = gauge(
            "driftd_pages_per_day",
            "pages per day",
            "Pages of drift and of the outlier rate per day of event time.",
            "model",
        )
        self.observed_false_pages = gauge(
            "driftd_false_pages_per_day", "pages per day", "Of these, pages that people called false.", "model"
        )
        self.open_incidents = gauge(
            "driftd_open_incidents",
            "incidents",
            "Incidents open now, but for those that must last before people are told.",
            "model",
            "kind",
            "severity",
        )
        self.blind = gauge(
            "driftd_blind",
            "-",
            "1 while an incident is open by which what is said of the model cannot be relied on; else 0.",
            "model",
        )
        self.encoder_changed = gauge(
            "driftd_encoder_changed",
            "-",
            "1 while reading waits because an encoder makes other vectors of the reference's canaries; else 0.",
            "model",
        )
        self.canaries = gauge(
            "driftd_canaries",
            "records",
            "Inputs stored with the reference that were embedded again and compared, at the last look at all of them.",
            "model",
            "space",
        )
        self.canary_change = gauge(
            "driftd_canary_change",
            "-",
            "Largest change of their vectors at that look, as half a squared distance: 1 - cosine, or of the lengths.",
            "model",
            "space",
        )
        self._verdict = gauge(
            "driftd_verdict",
            "-",
            "1 for the word that is said of the model now, 0 for all others; see docs/verdict.md.",
            "model",
            "word",
        )
        self._verdict_since = gauge(
            "driftd_verdict_since_timestamp_seconds",
            "seconds since 1970",
            "Event time since which that word is said; by the wall clock where the model is blind.",
            "model",
        )
        self._accuracy = gauge(
            "driftd_accuracy",
            "share",
            "Right answers among all, with the ends of the interval: estimated, or measured by labels.",
            "model",
            "how",
            "bound",
        )
        self._metric = gauge(
            "driftd_performance_metric", "-", "What performance.metric asks for, over the labelled records.", "model"
        )
        self._accuracy_floor = gauge(
            "driftd_accuracy_floor", "share", "Right answers below which the model is degraded.", "model"
        )
        self._new_content = gauge(
            "driftd_new_content",
            "share",
            "Records like nothing in the baseline (novel), and those of them far outside of it (unsupported).",
            "model",
            "kind",
        )
        self._label_evidence = gauge(
            "driftd_label_evidence",
            "log10 of labels",
            "Evidence of true answers against the floor: chance makes as much once in 10^evidence labels.",
            "model",
        )
        self._labelled_answers = gauge(
            "driftd_labelled_answers", "records", "Labelled records that the measured accuracy is over.", "model"
        )
        self._model_age = gauge(
            "driftd_model_age_seconds",
            "seconds",
            "Event time since the watched model was trained or came on the stream.",
            "model",
        )
        # Series of the numbers of a `VerdictRow`.
        self._judged: tuple[tuple[Gauge, tuple[str, ...], str], ...] = (
            (self._accuracy, ("estimated", "value"), "estimated"),
            (self._accuracy, ("estimated", "low"), "low"),
            (self._accuracy, ("estimated", "high"), "high"),
            (self._accuracy, ("measured", "value"), "realised"),
            (self._accuracy, ("measured", "low"), "realised_low"),
            (self._accuracy, ("measured", "high"), "realised_high"),
            (self._metric, (), "metric"),
            (self._accuracy_floor, (), "floor"),
            (self._new_content, ("novel",), "novel"),
            (self._new_content, ("unsupported",), "unsupported"),
            (self._label_evidence, (), "evidence"),
            (self._labelled_answers, (), "labels"),
            (self._model_age, (), "age_s"),
        )
        self._oldest_incident = gauge(
            "driftd_open_incident_since_timestamp_seconds",
            "seconds since 1970",
            "When the oldest of them was opened, in event time where its kind has one; no series where none is open.",
            "model",
            "kind",
            "severity",
        )

        self.reference_version = gauge(
            "driftd_reference_version",
            "-",
            "Number of the reference that records are scored against.",
            "model",
            "space",
        )
        self.reference_records = gauge(
            "driftd_reference_records", "records", "Records that the reference was built from.", "model", "space"
        )
        self.reference_created = gauge(
            "driftd_reference_created_timestamp_seconds",
            "seconds since 1970",
            "Wall clock at which the reference was built.",
            "model",
            "space",
        )
        self.baseline_collected = gauge(
            "driftd_baseline_collected_records", "records", "Records collected for the first reference so far.", "model"
        )
        self.baseline_wanted = gauge(
            "driftd_baseline_wanted_records", "records", "Records that the first reference is built from.", "model"
        )

        self.outbox_depth = gauge("driftd_outbox_depth", "notifications", "Notifications that are not delivered yet.")
        self.outbox_oldest = gauge(
            "driftd_outbox_oldest_seconds", "seconds", "How long the oldest of them has waited; 0 where there is none."
        )
        self.dead_letters_waiting = gauge(
            "driftd_dead_letters_waiting", "records", "Dead letters that are not in their topic yet."
        )
        self.outbox_age = gauge(
            "driftd_outbox_age_seconds",
            "seconds",
            "Seconds since the sink began to refuse notifications; 0 while it takes them.",
            "sink",
        )
        self.outbox_sent = counter(
            "driftd_outbox_sent_total", "notifications", "Notifications that the sink took.", "sink"
        )
        self.outbox_failed = counter(
            "driftd_outbox_failed_total", "attempts", "Attempts that failed and are tried again.", "sink"
        )
        self.outbox_dead = counter("driftd_outbox_dead_total", "notifications", "Notifications given up.", "sink")
        self.messages = counter(
            "driftd_messages_total",
            "messages",
            "Messages that the sink took; one may hold many notifications.",
            "sink",
        )
        self.muted = counter(
            "driftd_notifications_muted_total",
            "notifications",
            "Notifications that nobody wanted: muted until they were over, or acknowledged.",
            "sink",
        )
        self.refresh_failures = counter(
            "driftd_sink_refresh_failures_total",
            "attempts",
            "Times that a sink could not be told again what still fires.",
            "sink",
        )

    def watch(self, model: str, spaces: Sequence[str]) -> None:
        """Make the series of a model at 0, so that their first increase is seen."""
        for counter in (
            self.records,
            self.late,
            self.kept,
            self.thinned,
            self.thinning_unchecked,
            self.blocks_folded,
            self.checkpoint_failures,
            self.segments_dropped,
            self.pages,
            self.closed_late,
            self.lost,
            self.rebalances,
            self.client_rebuilds,
            self.failed_commits,
            self.ownership_lost,
        ):
            counter.labels(model)
        self.checkpoint_seconds.labels(model)
        self.watched.labels(model).set(0)
        for space in spaces:
            self.outliers.labels(model, space)

    def at_end(self, model: str) -> None:
        """The source of a model was read to its end: nobody waits for a poll, a transaction or a block any more."""
        for gauge in (self.watched, self.last_poll, self.last_transaction, self._watermark_moved):
            with suppress(KeyError):  # where there was none yet
                gauge.remove(model)

    def watch_sink(self, sink: str) -> None:
        """Make the series of a sink at 0."""
        for metric in (
            self.outbox_sent,
            self.outbox_failed,
            self.outbox_dead,
            self.messages,
            self.muted,
            self.refresh_failures,
        ):
            metric.labels(sink)
        self.outbox_age.labels(sink).set(0)

    def drift(
        self,
        model: str,
        space: str,
        *,
        segment: str,
        channel: str,
        strength: float,
        page_threshold: float,
        warn_threshold: float,
        statistic: float,
        effect: float,
        records: int,
    ) -> None:
        """Show what the fold says of one channel of one segment ("" for the whole traffic)."""
        if not self._shows(model, segment):
            self.segments_dropped.labels(model).inc()
            return
        reading = model, space, clean_label(segment), channel
        self._strengths.setdefault(model, set()).add(reading[1:])
        self._strength.labels(*reading).set(strength)
        self._threshold.labels(*reading, "page").set(page_threshold)
        self._threshold.labels(*reading, "warn").set(warn_threshold)
        self._statistic.labels(*reading).set(statistic)
        self._effect.labels(*reading).set(effect)
        self._window_records.labels(*reading).set(records)

    def partitions(
        self, model: str, lag: Mapping[str, int], lag_seconds: Mapping[str, float], *, silent: int, held: int
    ) -> None:
        """Show the partitions that this process reads, by their names; those that it reads no more disappear.

        No more than 200 of them get series of their own; the sums hold all.
        """
        self.lag.labels(model).set(sum(lag.values()))
        self.lag_seconds.labels(model).set(max(lag_seconds.values(), default=0.0))
        self.assigned.labels(model).set(len(lag))
        self.silent.labels(model).set(silent)
        self.held.labels(model).set(held)
        shown = {clean_label(name): name for name in sorted(lag)[:MAX_PARTITIONS]}
        for label in self._partitions.get(model, set()) - shown.keys():
            self._partition_lag.remove(model, label)
            self._partition_lag_seconds.remove(model, label)
        self._partitions[model] = set(shown)
        for label, name in shown.items():
            self._partition_lag.labels(model, label).set(lag[name])
            self._partition_lag_seconds.labels(model, label).set(lag_seconds.get(name, 0.0))

    def folded(self, model: str, *, blocks: int, watermark_s: float, now_s: float) -> None:
        """After a step of the fold, before `drift`: how many blocks this process judged, and where event time stands.

        Where another worker has judged blocks since, it shows the strengths, and ours are forgotten.
        """
        moved = watermark_s != self._watermarks.get(model)
        if moved and not blocks:
            self._forget_drift(model)
        if moved:
            self._watermark_moved.labels(model).set(now_s)
        self._watermarks[model] = watermark_s
        self.blocks_folded.labels(model).inc(blocks)
        self.watermark.labels(model).set(watermark_s)

    def _forget_drift(self, model: str) -> None:
        for reading in self._strengths.pop(model, set()):
            for gauge in (self._strength, self._statistic, self._effect, self._window_records):
                gauge.remove(model, *reading)
            for level in ("page", "warn"):
                self._threshold.remove(model, *reading, level)

    def incidents(self, model: str, open_now: Iterable[tuple[str, str, float]]) -> None:
        """Show the open incidents of a model: kind, severity and the time when it was opened of each, in seconds."""
        opened: dict[tuple[str, str, str], list[float]] = {}
        for kind, severity, opened_s in open_now:
            opened.setdefault((model, kind, severity), []).append(opened_s)
        self._open_series |= opened.keys()
        for labels in self._open_series:
            if labels[0] == model:
                self.open_incidents.labels(*labels).set(len(opened.get(labels, ())))
        for labels in [labels for labels in self._since_series if labels[0] == model and labels not in opened]:
            self._oldest_incident.remove(*labels)
            self._since_series.remove(labels)
        for labels, times in opened.items():
            self._oldest_incident.labels(*labels).set(min(times))
            self._since_series.add(labels)

    def verdict(self, model: str, word: str, since_s: float | None, row: VerdictRow | None) -> None:
        """Show what is said of a model now, and the numbers of the newest verdict; what is not known disappears.

        Args:
            word: of `connectors.database.rows.VerdictWord`, or "learning".
            row: None where no block has been judged.
        """
        for known in (*get_args(VerdictWord), LEARNING):
            self._verdict.labels(model, known).set(known == word)
        shown: list[tuple[Gauge, tuple[str, ...], float]] = [
            (self._verdict_since, (), math.nan if since_s is None else since_s),
            *((gauge, labels, math.nan if row is None else getattr(row, name)) for gauge, labels, name in self._judged),
        ]
        for gauge, labels, value in shown:
            if not math.isnan(value):
                gauge.labels(model, *labels).set(value)
            else:
                with suppress(KeyError):  # where there was none yet
                    gauge.remove(model, *labels)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics as text, and its content type, for a client that sends this Accept header."""
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _shows(self, model: str, segment: str) -> bool:
        known = self._segments.setdefault(model, set())
        if segment in known or not segment:
            return True
        if len(known) >= self._max_segments or sum(map(len, self._segments.values())) >= MAX_SEGMENTS:
            return False
        known.add(segment)
        return True


def clean_label(value: str) -> str:
    """A label's value that any client can read: valid UTF-8, of bounded length."""
    return value.encode("utf-8", "replace").decode()[:MAX_LABEL]


def _version() -> str:
    try:
        return version("driftd")
    except PackageNotFoundError:
        return "unknown"
