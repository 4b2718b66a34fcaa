"""The metrics of several worker processes at one address: each series says which worker it is of."""

from __future__ import annotations

from collections.abc import Mapping

from connectors.prometheus import MetricSpec

# Gauges of the whole deployment, not of one process: each process shows what the database says, or what it knows so
# far. The greatest value counts, without the label of a worker: the newest watermark, the newest reference, the one
# worker that collects the baseline. Everything else gets a label that says whose it is.
OF_THE_DEPLOYMENT = frozenset(
    {
        "driftd_build_info",
        "driftd_watermark_timestamp_seconds",
        "driftd_drift_strength",
        "driftd_drift_threshold",
        "driftd_drift_statistic",
        "driftd_drift_effect",
        "driftd_drift_window_records",
        "driftd_block_seconds",
        "driftd_expected_false_pages_per_day",
        "driftd_observed_seconds",
        "driftd_pages_per_day",
        "driftd_false_pages_per_day",
        "driftd_open_incidents",
        "driftd_open_incident_since_timestamp_seconds",
        "driftd_verdict",
        "driftd_verdict_since_timestamp_seconds",
        "driftd_accuracy",
        "driftd_accuracy_floor",
        "driftd_new_content",
        "driftd_label_evidence",
        "driftd_labelled_answers",
        "driftd_model_age_seconds",
        "driftd_reference_version",
        "driftd_reference_records",
        "driftd_reference_created_timestamp_seconds",
        "driftd_baseline_collected_records",
        "driftd_baseline_wanted_records",
        "driftd_outbox_depth",
        "driftd_outbox_oldest_seconds",
        "driftd_dead_letters_waiting",
        "driftd_labels_stored",
        "driftd_label_version",
        "driftd_labels_waiting",
        "driftd_labels_unmatched",
        "driftd_labels_contradicting",
        "driftd_labels_superseded",
    }
)


class SupervisorMetrics:
    """What the process shows that starts and restarts the workers, before theirs."""

    def __init__(self) -> None:
        import prometheus_client

        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = prometheus_client.CollectorRegistry(auto_describe=True)
        self._process = prometheus_client.CollectorRegistry(auto_describe=True)
        prometheus_client.ProcessCollector(registry=self._process)
        restarts, up = "driftd_worker_restarts_total", "driftd_worker_up"
        self.restarts = prometheus_client.Counter(
            restarts,
            "Times that a worker process ended by itself and was started anew.",
            ["worker"],
            registry=self._registry,
        )
        self._up = prometheus_client.Gauge(
            up,
            "1 while the worker process answered for these metrics, 0 while it did not.",
            ["worker"],
            registry=self._registry,
        )
        self.specs = [
            MetricSpec(restarts, "counter", "times", ("worker",), self.restarts._documentation),
            MetricSpec(up, "gauge", "-", ("worker",), self._up._documentation),
        ]

    def exposition(self, workers: Mapping[str, str | None]) -> bytes:
        """All metrics as text: ours, and those of each worker by its name; None where it did not answer."""
        from prometheus_client.exposition import generate_latest

        for worker, text in workers.items():
            self._up.labels(worker).set(text is not None)
            self.restarts.labels(worker)
        answered = {worker: text for worker, text in workers.items() if text is not None}
        process = generate_latest(self._process).decode()
        return generate_latest(self._registry) + merged({"supervisor": process, **answered}).encode()


def merged(texts: Mapping[str, str]) -> str:
    """Metrics of several processes as one text, each series with a label worker="NAME" of its process.

    What is `OF_THE_DEPLOYMENT` stays one series without the label: the greatest value counts.

    The texts are those of `Metrics.exposition`: series stand below the TYPE of their metric, without time stamps. A
    parser for any text would take a hundred times as long as going by lines.
    """
    heads: dict[str, list[str]] = {}
    series: dict[str, list[str]] = {}
    greatest: dict[str, dict[str, str]] = {}
    for worker, text in texts.items():
        name = ""
        for line in text.split("\n"):
            if line.startswith("# "):
                name = line.split(" ", 3)[2]
                head = heads.setdefault(name, [])
                if line not in head:
                    head.append(line)
            elif line and name in OF_THE_DEPLOYMENT:
                key, _, value = line.rpartition(" ")
                best = greatest.setdefault(name, {})
                if key not in best or float(value) > float(best[key]):
                    best[key] = value
            elif line:
                metric, labelled, rest = line.partition("{")
                if labelled:
                    line = f'{metric}{{worker="{worker}",{rest}'
                else:
                    metric, _, value = line.rpartition(" ")
                    line = f'{metric}{{worker="{worker}"}} {value}'
                series.setdefault(name, []).append(line)
    lines: list[str] = []
    for name, head in heads.items():
        lines += [*head, *series.get(name, ()), *(f"{key} {value}" for key, value in greatest.get(name, {}).items())]
    return "\n".join([*lines, ""])
