"""The metrics: names, labels, limits, and that the documentation lists them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from connectors.prometheus import Metrics
from connectors.prometheus_document import documentation
from connectors.prometheus_workers import SupervisorMetrics
from tests.contract.verdict_rows import verdict

ROOT = Path(__file__).resolve().parents[2]
OF_LEVEL = {"space": "s", "channel": "level"}


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = metrics.exposition()[0].decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def show(metrics: Metrics, model: str, *, space: str = "s", segment: str = "", channel: str = "level") -> None:
    """One reading."""
    metrics.drift(
        model,
        space,
        segment=segment,
        channel=channel,
        strength=1.5,
        page_threshold=5.9,
        warn_threshold=3.9,
        statistic=21.5,
        effect=0.25,
        records=640,
    )


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, frozenset(labels.items())))


def test_every_metric_has_prefix_unit_and_help() -> None:
    specs = [*Metrics().specs, *SupervisorMetrics().specs]
    assert len({spec.name for spec in specs}) == len(specs) > 20
    for spec in specs:
        assert re.fullmatch(r"driftd(_[a-z]+)+", spec.name), spec.name
        assert spec.help.endswith(".") and "|" not in spec.help and len(spec.help) > 12, spec.name
        assert spec.name.endswith("_total") == (spec.kind == "counter"), spec.name
        assert spec.unit and "|" not in spec.unit, spec.name
        assert spec.name.endswith("_timestamp_seconds") == (spec.unit == "seconds since 1970"), spec.name
        assert ("seconds" in spec.name) == spec.unit.startswith("seconds"), spec.name
        if spec.kind == "histogram":
            assert spec.name.endswith("_seconds")


def test_the_document_lists_every_metric_as_it_is() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == documentation(), (
        "docs/metrics.md is old. Make it anew: python -m connectors.prometheus_document > docs/metrics.md"
    )


def test_every_label_is_in_the_table_that_says_what_it_can_hold() -> None:
    table = documentation().partition("| label | values |")[2].partition("\n\n")[0]
    explained = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1:2][0] if row else "")
    }
    used = {label for spec in [*Metrics().specs, *SupervisorMetrics().specs] for label in spec.labels}
    assert used == explained, "a label that nobody has thought about the values of, or one that is gone"


def test_a_model_whose_source_is_at_its_end_looks_neither_stuck_nor_broken() -> None:
    metrics = Metrics()
    metrics.watch("m", ["input"])
    metrics.watch("other", ["input"])
    metrics.watched.labels("m").set(1)
    metrics.last_poll.labels("m").set(5.0)
    metrics.at_end("m")
    for name in ("driftd_model_watched", "driftd_last_poll_timestamp_seconds"):
        assert value(metrics, name, model="m") is None
    assert value(metrics, "driftd_model_watched", model="other") == 0
    assert value(metrics, "driftd_records_total", model="m") == 0


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
            show(metrics, "m", segment=segment)
    shown = [labels for name, labels in samples(metrics) if name == "driftd_drift_strength"]
    assert len(shown) == 4
    assert value(metrics, "driftd_segment_series_dropped_total", model="m") == 14
    assert value(metrics, "driftd_drift_threshold", model="m", **OF_LEVEL, segment="", level="page") == 5.9
    show(metrics, "other", segment="country=9")
    assert value(metrics, "driftd_drift_strength", model="other", **OF_LEVEL, segment="country=9") == 1.5


def test_a_reading_shows_all_its_numbers() -> None:
    metrics = Metrics()
    show(metrics, "m", segment="a=b", channel="mix")
    labels = {"model": "m", "space": "s", "segment": "a=b", "channel": "mix"}
    found = {name: number for (name, has), number in samples(metrics).items() if ("channel", "mix") in has}
    assert found.pop("driftd_drift_threshold") in (3.9, 5.9)
    assert found == {
        "driftd_drift_strength": 1.5,
        "driftd_drift_statistic": 21.5,
        "driftd_drift_effect": 0.25,
        "driftd_drift_window_records": 640,
    }
    assert value(metrics, "driftd_drift_threshold", **labels, level="warn") == 3.9


def test_each_channel_has_thresholds_of_its_own() -> None:
    metrics = Metrics()
    show(metrics, "m", channel="level")
    metrics.drift(
        *("m", "s"),
        segment="",
        channel="outlier_rate",
        strength=0.0,
        page_threshold=7.0,
        warn_threshold=5.0,
        statistic=0.001,
        effect=1.0,
        records=64,
    )
    labels = {"model": "m", "space": "s", "segment": "", "level": "page"}
    assert value(metrics, "driftd_drift_threshold", channel="level", **labels) == 5.9
    assert value(metrics, "driftd_drift_threshold", channel="outlier_rate", **labels) == 7.0


def test_all_models_together_show_a_thousand_segments_at_most() -> None:
    metrics = Metrics()
    for model in range(7):
        for segment in ["", *(f"country={index}" for index in range(250))]:
            show(metrics, f"m{model}", segment=segment)
    shown = [dict(labels) for name, labels in samples(metrics) if name == "driftd_drift_strength"]
    assert sum(labels["segment"] != "" for labels in shown) == 1000
    assert sum(labels["segment"] == "" for labels in shown) == 7, "the whole traffic is always shown"
    assert value(metrics, "driftd_segment_series_dropped_total", model="m0") == 50
    assert value(metrics, "driftd_segment_series_dropped_total", model="m6") == 250


def test_strengths_that_another_worker_shows_now_are_forgotten_and_come_back() -> None:
    metrics = Metrics()

    def judge(model: str, channel: str) -> None:
        show(metrics, model, segment="a=b", channel=channel)

    def fold(*, blocks: int, watermark_s: float) -> None:
        metrics.folded("m", blocks=blocks, watermark_s=watermark_s, now_s=1000 + watermark_s)

    def models() -> list[str]:
        return [dict(labels)["model"] for name, labels in samples(metrics) if name.startswith("driftd_drift_")]

    fold(blocks=2, watermark_s=120.0)
    judge("m", "level")
    judge("m", "shape")
    judge("other", "level")
    fold(blocks=0, watermark_s=120.0)
    assert sorted(models()) == ["m"] * 12 + ["other"] * 6, "nobody has judged a block since"
    fold(blocks=0, watermark_s=180.0)
    fold(blocks=0, watermark_s=240.0)
    assert models() == ["other"] * 6
    fold(blocks=1, watermark_s=300.0)
    judge("m", "mix")
    assert value(metrics, "driftd_drift_strength", model="m", space="s", segment="a=b", channel="mix") == 1.5
    assert value(metrics, "driftd_blocks_folded_total", model="m") == 3
    assert value(metrics, "driftd_watermark_timestamp_seconds", model="m") == 300


def test_a_watermark_that_stands_is_seen() -> None:
    metrics = Metrics()
    for watermark_s, now_s in [(60.0, 5000.0), (60.0, 6000.0), (120.0, 7000.0), (120.0, 9000.0)]:
        metrics.folded("m", blocks=1, watermark_s=watermark_s, now_s=now_s)
    assert value(metrics, "driftd_watermark_moved_timestamp_seconds", model="m") == 7000


@pytest.mark.parametrize(
    "segment", ['a"b\\c\nd', "\ud800", "ü", "x" * 10_000], ids=["quotes", "surrogate", "ü", "long"]
)
def test_any_segment_can_be_read_back(segment: str) -> None:
    metrics = Metrics()
    show(metrics, "m", segment=segment)
    (labels,) = [dict(labels) for name, labels in samples(metrics) if name == "driftd_drift_strength"]
    assert labels["segment"] == segment.encode("utf-8", "replace").decode()[:100]


def test_open_incidents_go_back_to_zero() -> None:
    metrics = Metrics()
    metrics.incidents("m", [("drift", "page", 50.0), ("drift", "page", 40.0), ("dead_letters", "warn", 60.0)])
    metrics.incidents("other", [("drift", "page", 10.0)])
    pages = {"model": "m", "kind": "drift", "severity": "page"}
    assert value(metrics, "driftd_open_incidents", **pages) == 2
    assert value(metrics, "driftd_open_incident_since_timestamp_seconds", **pages) == 40
    metrics.incidents("m", [("dead_letters", "warn", 60.0)])
    assert value(metrics, "driftd_open_incidents", **pages) == 0
    assert value(metrics, "driftd_open_incident_since_timestamp_seconds", **pages) is None, "there is no such time"
    assert value(metrics, "driftd_open_incidents", model="m", kind="dead_letters", severity="warn") == 1
    assert value(metrics, "driftd_open_incidents", model="other", kind="drift", severity="page") == 1
    metrics.incidents("m", [("drift", "page", 70.0)])
    assert value(metrics, "driftd_open_incident_since_timestamp_seconds", **pages) == 70


def test_a_client_that_asks_for_openmetrics_gets_it() -> None:
    body, content_type = Metrics().exposition("application/openmetrics-text;version=1.0.0")
    assert "openmetrics" in content_type and body.endswith(b"# EOF\n")
    assert Metrics().exposition("")[1].startswith("text/plain")


def test_one_word_is_said_of_a_model_with_the_numbers_that_are_known() -> None:
    metrics = Metrics()
    metrics.verdict("m", "degraded", 30.0, verdict(3, low=0.76, realised=0.9, labels=40))
    assert value(metrics, "driftd_verdict", model="m", word="degraded") == 1
    words = [sample for sample in samples(metrics) if sample[0] == "driftd_verdict"]
    assert len(words) == 10 and sum(samples(metrics)[word] for word in words) == 1
    assert value(metrics, "driftd_verdict_since_timestamp_seconds", model="m") == 30.0
    assert value(metrics, "driftd_accuracy", model="m", how="estimated", bound="low") == 0.76
    assert value(metrics, "driftd_accuracy", model="m", how="measured", bound="value") == 0.9
    assert value(metrics, "driftd_accuracy", model="m", how="measured", bound="low") is None
    assert value(metrics, "driftd_labelled_answers", model="m") == 40

    metrics.verdict("m", "learning", None, None)
    assert value(metrics, "driftd_verdict", model="m", word="learning") == 1
    assert value(metrics, "driftd_verdict", model="m", word="degraded") == 0
    assert value(metrics, "driftd_accuracy", model="m", how="estimated", bound="low") is None
    assert value(metrics, "driftd_verdict_since_timestamp_seconds", model="m") is None
