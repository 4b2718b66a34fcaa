"""The metrics: names, labels, limits, and that the documentation lists them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from connectors.prometheus import Metrics, documentation
from connectors.prometheus_workers import SupervisorMetrics

ROOT = Path(__file__).resolve().parents[2]


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = metrics.exposition()[0].decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, frozenset(labels.items())))


def test_every_metric_has_prefix_unit_and_help() -> None:
    specs = [*Metrics().specs, *SupervisorMetrics().specs]
    assert len({spec.name for spec in specs}) == len(specs) > 20
    for spec in specs:
        assert re.fullmatch(r"driftd(_[a-z]+)+", spec.name), spec.name
        assert spec.help.endswith(".") and "|" not in spec.help and len(spec.help) > 12, spec.name
        assert spec.name.endswith("_total") == (spec.kind == "counter"), spec.name
        if spec.kind == "histogram":
            assert spec.name.endswith("_seconds")


def test_the_document_lists_every_metric_as_it_is() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == documentation(), (
        "docs/metrics.md is old. Make it anew: python -m connectors.prometheus > docs/metrics.md"
    )


def test_counters_begin_at_zero_and_are_there_before_the_first_event() -> None:
    metrics = Metrics()
    metrics.watch("m", ["input"])
    metrics.watch_sink("pager")
    assert value(metrics, "driftd_records_total", model="m") == 0
    assert value(metrics, "driftd_outliers_total", model="m", space="input") == 0
    assert value(metrics, "driftd_outbox_dead_total", sink="pager") == 0
    assert value(metrics, "driftd_checkpoint_seconds_count", model="m") == 0


def test_two_sets_of_metrics_share_nothing() -> None:
    one, two = Metrics(), Metrics(CollectorRegistry())
    one.records.labels("m").inc(3)
    assert value(one, "driftd_records_total", model="m") == 3
    assert value(two, "driftd_records_total", model="m") is None


def test_the_process_and_the_build_are_shown() -> None:
    found = {name for name, _ in samples(Metrics())}
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "python_info", "driftd_build_info"} <= found
    assert not [name for name in found if name.endswith("_created")]


def test_segments_beyond_the_limit_are_counted_and_not_shown() -> None:
    metrics = Metrics(max_segments=3)
    for _ in range(2):
        for segment in ["", *(f"country={index}" for index in range(10))]:
            metrics.drift(
                "m",
                "input",
                segment=segment,
                channel="level",
                strength=1.5,
                page_threshold=5.9,
                warn_threshold=3.9,
            )
    shown = [labels for name, labels in samples(metrics) if name == "driftd_drift_strength"]
    assert len(shown) == 4
    assert value(metrics, "driftd_segment_series_dropped_total", model="m") == 14
    assert value(metrics, "driftd_drift_threshold", model="m", space="input", segment="", level="page") == 5.9
    metrics.drift(
        "other", "input", segment="country=9", channel="level", strength=1, page_threshold=2, warn_threshold=1
    )
    labels = {"model": "other", "space": "input", "segment": "country=9", "channel": "level"}
    assert value(metrics, "driftd_drift_strength", **labels) == 1


def test_strengths_that_another_worker_shows_now_are_forgotten_and_come_back() -> None:
    metrics = Metrics()

    def judge(model: str, channel: str) -> None:
        metrics.drift(model, "s", segment="a=b", channel=channel, strength=1, page_threshold=2, warn_threshold=1)

    def models() -> list[str]:
        return [dict(labels)["model"] for name, labels in samples(metrics) if name.startswith("driftd_drift_")]

    metrics.folded("m", blocks=2, watermark_s=120.0)
    judge("m", "level")
    judge("m", "shape")
    judge("other", "level")
    metrics.folded("m", blocks=0, watermark_s=120.0)
    assert sorted(models()) == ["m"] * 4 + ["other"] * 3, "nobody has judged a block since"
    metrics.folded("m", blocks=0, watermark_s=180.0)
    metrics.folded("m", blocks=0, watermark_s=240.0)
    assert models() == ["other"] * 3
    metrics.folded("m", blocks=1, watermark_s=300.0)
    judge("m", "mix")
    assert value(metrics, "driftd_drift_strength", model="m", space="s", segment="a=b", channel="mix") == 1
    assert value(metrics, "driftd_drift_threshold", model="m", space="s", segment="a=b", level="page") == 2
    assert value(metrics, "driftd_blocks_folded_total", model="m") == 3
    assert value(metrics, "driftd_watermark_timestamp_seconds", model="m") == 300


@pytest.mark.parametrize(
    "segment", ['a"b\\c\nd', "\ud800", "ü", "x" * 10_000], ids=["quotes", "surrogate", "ü", "long"]
)
def test_any_segment_can_be_read_back(segment: str) -> None:
    metrics = Metrics()
    metrics.drift("m", "s", segment=segment, channel="level", strength=1, page_threshold=2, warn_threshold=1)
    (labels,) = [dict(labels) for name, labels in samples(metrics) if name == "driftd_drift_strength"]
    assert labels["segment"] == segment.encode("utf-8", "replace").decode()[:100]


def test_open_incidents_go_back_to_zero() -> None:
    metrics = Metrics()
    metrics.incidents("m", [("drift", "page"), ("drift", "page"), ("dead_letters", "warn")])
    metrics.incidents("other", [("drift", "page")])
    assert value(metrics, "driftd_open_incidents", model="m", kind="drift", severity="page") == 2
    metrics.incidents("m", [("dead_letters", "warn")])
    assert value(metrics, "driftd_open_incidents", model="m", kind="drift", severity="page") == 0
    assert value(metrics, "driftd_open_incidents", model="m", kind="dead_letters", severity="warn") == 1
    assert value(metrics, "driftd_open_incidents", model="other", kind="drift", severity="page") == 1


def test_a_client_that_asks_for_openmetrics_gets_it() -> None:
    body, content_type = Metrics().exposition("application/openmetrics-text;version=1.0.0")
    assert "openmetrics" in content_type and body.endswith(b"# EOF\n")
    assert Metrics().exposition("")[1].startswith("text/plain")
