"""The metrics of several workers at one address: whose each series is, and what is shown once."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from connectors.prometheus import Metrics
from connectors.prometheus_workers import OF_THE_DEPLOYMENT, SupervisorMetrics, merged


def text_of(metrics: Metrics) -> str:
    return metrics.exposition()[0].decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"a series that is there twice: {sample}"
            found[key] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float | None:
    return samples(text).get((name, frozenset(labels.items())))


def test_each_series_says_whose_it_is_and_keeps_its_value() -> None:
    one, two = Metrics(), Metrics()
    one.records.labels("m").inc(3)
    two.records.labels("m").inc(5)
    two.checkpoint_seconds.labels("m").observe(0.02)
    text = merged({"0": text_of(one), "1": text_of(two)})
    assert value(text, "driftd_records_total", worker="0", model="m") == 3
    assert value(text, "driftd_records_total", worker="1", model="m") == 5
    assert value(text, "driftd_checkpoint_seconds_bucket", worker="1", model="m", le="0.025") == 1
    assert value(text, "process_resident_memory_bytes", worker="0") > 1e6
    before = sum(name not in OF_THE_DEPLOYMENT for name, _ in samples(text_of(one)))
    assert sum(("worker", "0") in labels for _, labels in samples(text)) == before, "no series is lost"


def test_a_metric_is_described_once() -> None:
    lines = merged({"0": text_of(Metrics()), "1": text_of(Metrics())}).split("\n")
    heads = [line for line in lines if line.startswith("# ")]
    assert len(heads) == len(set(heads)) > 50
    assert lines[-1] == ""


def test_what_is_of_the_deployment_is_shown_once_by_its_greatest_value() -> None:
    texts = {}
    for worker, (depth, watermark) in enumerate([(3, 1.7725e9), (12, 1.77e9), (3, 9.0)]):
        metrics = Metrics()
        metrics.outbox_depth.set(depth)
        metrics.watermark.labels("m").set(watermark)
        metrics.expected_false_pages.set(1 / 90)
        texts[str(worker)] = text_of(metrics)
    text = merged(texts)
    assert value(text, "driftd_outbox_depth") == 12
    assert value(text, "driftd_watermark_timestamp_seconds", model="m") == 1.7725e9
    assert value(text, "driftd_expected_false_pages_per_day") == pytest.approx(1 / 90)
    assert [name for name, labels in samples(text) if name in OF_THE_DEPLOYMENT and "worker" in dict(labels)] == []


def test_only_gauges_are_of_the_deployment_and_each_is_there() -> None:
    kinds = {spec.name: spec.kind for spec in Metrics().specs}
    assert {name: kinds.get(name) for name in OF_THE_DEPLOYMENT} == dict.fromkeys(OF_THE_DEPLOYMENT, "gauge")


@pytest.mark.parametrize("segment", ['a"b\\c\nd', "x{y} 7", "line\u2028end", "ü = #"])
def test_a_label_may_hold_anything(segment: str) -> None:
    texts = {}
    for worker in ("0", "1"):
        metrics = Metrics()
        metrics.dead_letters.labels("m", segment).inc(2)
        metrics.drift(
            *("m", "s"),
            segment=segment,
            channel="level",
            strength=1,
            page_threshold=2,
            warn_threshold=1,
            statistic=3,
            effect=4,
            records=5,
        )
        texts[worker] = text_of(metrics)
    text = merged(texts)
    assert value(text, "driftd_dead_letters_total", worker="1", model="m", reason=segment) == 2
    assert value(text, "driftd_drift_strength", model="m", space="s", segment=segment, channel="level") == 1


def test_a_worker_that_does_not_answer_is_down_and_only_its_series_are_missing() -> None:
    metrics = Metrics()
    metrics.records.labels("m").inc(3)
    supervisor = SupervisorMetrics()
    supervisor.restarts.labels("1").inc(2)
    text = supervisor.exposition({"0": text_of(metrics), "1": None}).decode()
    assert value(text, "driftd_worker_up", worker="0") == 1
    assert value(text, "driftd_worker_up", worker="1") == 0
    assert value(text, "driftd_worker_restarts_total", worker="0") == 0
    assert value(text, "driftd_worker_restarts_total", worker="1") == 2
    assert value(text, "driftd_records_total", worker="0", model="m") == 3
    assert value(text, "driftd_records_total", worker="1", model="m") is None
    assert value(text, "process_resident_memory_bytes", worker="supervisor") > 1e6
