"""The rules for Prometheus and Grafana: each fires when it should, and only then. promtool evaluates the real file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from connectors.prometheus import Metrics
from connectors.prometheus_workers import SupervisorMetrics
from dashboards.grafana import all_dashboards
from dashboards.rules import (
    BLIND_KINDS,
    FOLDER,
    GRAFANA_FILE,
    GROUP,
    INTERVAL_S,
    PROMETHEUS_FILE,
    RULES,
    Rule,
    files,
    grafana_rule_group,
    prometheus_rules,
)
from monitor.operations import BLIND
from tests.servers.prometheus import promtool

ROOT = Path(__file__).resolve().parents[2]
DAY = 1440  # minutes
MADE_BY_CLIENTS = {"up", "process_start_time_seconds", "process_resident_memory_bytes"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What Prometheus scraped, a value each minute from 0 on, and what fires at some minute.

    Attributes:
        series: values in promtool's notation by the series as driftd shows it; job and instance are added.
        fires: the labels of each alert that fires, without those that the rule itself gives.
        value: of the alert, as its words show it; where given, summary and description are compared.
    """

    what: str
    series: dict[str, str]
    minute: int
    fires: list[dict[str, str]] = field(default_factory=list)
    value: str = ""


ORDERS = {"job": "driftd", "model": "orders"}
HERE = {"job": "driftd", "instance": "a:9464"}
PAGE = 'driftd_open_incidents{model="orders",kind="drift",severity="page"}'
WARN = 'driftd_open_incidents{model="orders",kind="drift",severity="warn"}'
SINCE = 'driftd_open_incident_since_timestamp_seconds{model="orders",kind="drift",severity="page"}'
WATERMARK = 'driftd_watermark_timestamp_seconds{model="orders"}'
MOVED = 'driftd_watermark_moved_timestamp_seconds{model="orders"}'
RECORDS = 'driftd_records_total{model="orders"}'
DEAD = 'driftd_dead_letters_total{model="orders",reason="bad_json"}'
GAPS = 'driftd_gaps_total{model="orders",reason="deleted"}'
LAG = 'driftd_lag_records{model="orders"}'
LAG_S = 'driftd_lag_seconds{model="orders"}'
POLL = 'driftd_last_poll_timestamp_seconds{model="orders"}'
WATCHED = 'driftd_model_watched{model="orders"}'
OUTLIERS = 'driftd_open_incidents{model="orders",kind="outlier_rate",severity="page"}'
OUTLIERS_WARN = 'driftd_open_incidents{model="orders",kind="outlier_rate",severity="warn"}'
WAVE = 'driftd_open_incidents{model="orders",kind="fraud_wave",severity="page"}'
WAVE_WARN = 'driftd_open_incidents{model="orders",kind="fraud_wave",severity="warn"}'
STALE = 'driftd_open_incidents{model="orders",kind="stale",severity="page"}'
STALE_WARN = 'driftd_open_incidents{model="orders",kind="stale",severity="warn"}'
ENCODER = 'driftd_open_incidents{model="orders",kind="encoder_changed",severity="page"}'
TO_WATCH = 'driftd_verdict{model="orders",word="watch"}'
UNFITTED = 'driftd_fraud_fit_failures_total{model="orders"}'
LABELS = 'driftd_label_version{model="orders"}'
IN_FORCE = 'driftd_label_version_in_force{model="orders"}'
UNMATCHED = 'driftd_labels_unmatched{model="orders"}'
DEAD_PAGE = 'driftd_open_incidents{model="orders",kind="dead_letters",severity="page"}'
SOURCE = 'driftd_open_incidents{model="orders",kind="source",severity="page"}'
REFERENCE = 'driftd_reference_version{model="orders",space="input"}'
CREATED = 'driftd_reference_created_timestamp_seconds{model="orders",space="input"}'
BLOCK = 'driftd_block_seconds{model="orders"}'
BUILD = 'driftd_build_info{version="1",python="3"}'
DB_OK = 'driftd_database_last_ok_timestamp_seconds{model="orders"}'
REFUSED = 'driftd_checkpoint_failures_total{model="orders"}'
FALSE = 'driftd_false_pages_per_day{model="orders"}'
OBSERVED = 'driftd_observed_seconds{model="orders"}'
EXPECTED = "driftd_expected_false_pages_per_day"
MEMORY = "process_resident_memory_bytes"
STARTED = "process_start_time_seconds"


def of(series: str, **labels: str) -> str:
    """The series with more labels, such as worker or instance."""
    name, _, has = series.rstrip("}").partition("{")
    more = [f'{label}="{value}"' for label, value in labels.items()]
    return f"{name}{{{','.join([*([has] if has else []), *more])}}}"


def blind(reason: str, **labels: str) -> list[dict[str, str]]:
    return [{**(labels or ORDERS), "reason": reason}]


CASES: dict[str, list[Case]] = {
    "EmbeddingDriftPage": [
        Case(what="a page is open", series={PAGE: "0x9 2x20"}, minute=12, fires=[ORDERS], value="2"),
        Case(what="a warning is no page", series={PAGE: "0x30", WARN: "1x30"}, minute=20),
        Case(what="it is resolved", series={PAGE: "1x9 0x30"}, minute=20),
        Case(
            what="a restart, before anything is folded again", series={PAGE: "1x9 _x3 1x9"}, minute=12, fires=[ORDERS]
        ),
        Case(what="long gone", series={PAGE: "1x9 _x30"}, minute=30),
        Case(
            what="two machines say the same",
            series={of(PAGE, instance="a"): "1x9", of(PAGE, instance="b"): "1x9"},
            minute=5,
            fires=[ORDERS],
        ),
        Case(
            what="two models, and one of them twice in another deployment",
            series={PAGE: "1x9", of(PAGE, job="staging"): "1x9", PAGE.replace("orders", "other"): "0x9"},
            minute=5,
            fires=[ORDERS, {"job": "staging", "model": "orders"}],
        ),
        Case(
            what="one of two machines has heard of it",
            series={of(PAGE, instance="a"): "1x9", of(PAGE, instance="b"): "0x9"},
            minute=5,
            fires=[ORDERS],
        ),
        Case(what="a page of something else", series={PAGE: "0x9", DEAD_PAGE: "1x9"}, minute=5),
    ],
    "EmbeddingDriftWarning": [
        Case(what="a warning is open", series={PAGE: "0x20", WARN: "1x20"}, minute=12, fires=[ORDERS], value="1"),
        Case(what="a page is open as well, and says it all", series={PAGE: "1x20", WARN: "1x20"}, minute=12),
        Case(what="nothing is open", series={PAGE: "0x20", WARN: "0x20"}, minute=12),
        Case(what="there never was a page, so no series", series={WARN: "1x20"}, minute=12, fires=[ORDERS]),
        Case(what="a restart", series={PAGE: "0x9 _x3 0x9", WARN: "1x9 _x3 1x9"}, minute=12, fires=[ORDERS]),
        Case(what="a restart, with a page", series={PAGE: "1x9 _x3 1x9", WARN: "1x9 1x3 1x9"}, minute=12),
        Case(
            what="two machines, and each has heard of one of them",
            series={
                of(WARN, instance="a"): "1x9",
                of(WARN, instance="b"): "0x9",
                of(PAGE, instance="a"): "0x9",
                of(PAGE, instance="b"): "1x9",
            },
            minute=5,
        ),
        Case(
            what="two machines, one has heard of it",
            series={of(WARN, instance="a"): "1x9", of(WARN, instance="b"): "0x9"},
            minute=5,
            fires=[ORDERS],
        ),
        Case(what="a page of something else", series={WARN: "1x9", DEAD_PAGE: "1x9"}, minute=5, fires=[ORDERS]),
        Case(what="a warning of something else", series={WARN: "0x9", OUTLIERS_WARN: "1x9"}, minute=5),
    ],
    "OutlierRateHigh": [
        Case(
            what="a page is open",
            series={OUTLIERS: "1x9"},
            minute=5,
            fires=[ORDERS],
            value="1",
        ),
        Case(what="drift is another matter", series={PAGE: "1x9"}, minute=5),
        Case(what="a warning is no page", series={OUTLIERS_WARN: "1x9"}, minute=5),
        Case(what="a restart", series={OUTLIERS: "1x9 _x3 1x9"}, minute=12, fires=[ORDERS]),
        Case(
            what="one of two machines has heard of it",
            series={of(OUTLIERS, instance="a"): "1x9", of(OUTLIERS, instance="b"): "0x9"},
            minute=5,
            fires=[ORDERS],
        ),
    ],
    "FraudWave": [
        Case(what="a page is open", series={WAVE: "1x9"}, minute=5, fires=[ORDERS], value="1"),
        Case(what="outliers are another matter", series={OUTLIERS: "1x9"}, minute=5),
        Case(what="a warning is no page", series={WAVE_WARN: "1x9"}, minute=5),
        Case(what="a restart", series={WAVE: "1x9 _x3 1x9"}, minute=12, fires=[ORDERS]),
    ],
    "FraudWaveWarning": [
        Case(what="a warning is open", series={WAVE_WARN: "1x9"}, minute=5, fires=[ORDERS], value="1"),
        Case(what="a page says it all", series={WAVE: "1x9", WAVE_WARN: "1x9"}, minute=5),
        Case(what="nothing is open", series={WAVE_WARN: "0x9"}, minute=5),
    ],
    "ModelDegraded": [
        Case(what="a page is open", series={STALE: "1x9"}, minute=5, fires=[ORDERS], value="1"),
        Case(what="only a warning", series={STALE: "0x9", STALE_WARN: "1x9"}, minute=5),
        Case(what="a restart", series={STALE: "1x9 _x3 1x9"}, minute=12, fires=[ORDERS]),
    ],
    "ModelDegradedWarning": [
        Case(what="a warning is open", series={STALE_WARN: "1x9"}, minute=5, fires=[ORDERS], value="1"),
        Case(what="a page says it all", series={STALE: "1x9", STALE_WARN: "1x9"}, minute=5),
        Case(what="nothing is open", series={STALE_WARN: "0x9"}, minute=5),
    ],
    "ModelToWatch": [
        Case(what="an old model", series={TO_WATCH: "1x90"}, minute=70, fires=[ORDERS], value="1"),
        Case(what="not for long yet", series={TO_WATCH: "0x30 1x60"}, minute=80),
        Case(what="an incident says why", series={TO_WATCH: "1x90", WARN: "1x90"}, minute=70),
        Case(what="one that is over says nothing", series={TO_WATCH: "1x90", WARN: "0x90"}, minute=70, fires=[ORDERS]),
        Case(what="another word", series={TO_WATCH.replace("watch", "fresh"): "1x90", TO_WATCH: "0x90"}, minute=70),
        Case(what="a restart", series={TO_WATCH: "1x65 _x3 1x20"}, minute=80, fires=[ORDERS]),
        Case(
            what="two workers",
            series={of(TO_WATCH, instance="a"): "1x90", of(TO_WATCH, instance="b"): "1x90"},
            minute=70,
            fires=[ORDERS],
        ),
    ],
    "EncoderChanged": [
        Case(what="canaries failed", series={ENCODER: "1x9"}, minute=5, fires=[ORDERS], value="1"),
        Case(what="they are right again", series={ENCODER: "1x3 0x20"}, minute=15),
    ],
    "FraudFitFailing": [
        Case(what="every attempt fails", series={UNFITTED: "0+1x90"}, minute=80, fires=[ORDERS], value="60"),
        Case(what="one failed", series={UNFITTED: "0x30 1x60"}, minute=80),
    ],
    "LabelsBehind": [
        Case(
            what="one of two workers stands still",
            series={LABELS: "40x30", of(IN_FORCE, worker="0"): "40x30", of(IN_FORCE, worker="1"): "38x30"},
            minute=15,
            fires=[ORDERS],
            value="2",
        ),
        Case(what="labels count within a minute", series={LABELS: "0+1x30", IN_FORCE: "0+1x30"}, minute=20),
        Case(what="for a short while", series={LABELS: "4x30", IN_FORCE: "0x5 4x30"}, minute=12),
    ],
    "LabelsUnmatched": [
        Case(what="ids do not fit", series={UNMATCHED: "0x1440 20x30"}, minute=1445, fires=[ORDERS], value="20"),
        Case(what="a few old ones", series={UNMATCHED: "5x1440 9x30"}, minute=1445),
        Case(what="they are old", series={UNMATCHED: "200x1480"}, minute=1460),
    ],
    "LabelsSilent": [
        Case(what="none for a week", series={LABELS: "500x10300"}, minute=10200, fires=[ORDERS], value="1"),
        Case(what="one came yesterday", series={LABELS: "500x9000 501x1300"}, minute=10200),
        Case(what="there were hardly any", series={LABELS: "7x10300"}, minute=10200),
    ],
    "OutlierRateWarning": [
        Case(
            what="a warning is open",
            series={OUTLIERS_WARN: "1x9"},
            minute=5,
            fires=[ORDERS],
            value="1",
        ),
        Case(
            what="a page is open as well",
            series={
                OUTLIERS_WARN: "1x9",
                OUTLIERS: "1x9",
            },
            minute=5,
        ),
        Case(what="a restart", series={OUTLIERS_WARN: "1x9 _x3 1x9"}, minute=12, fires=[ORDERS]),
        Case(what="a restart, with a page", series={OUTLIERS: "1x9 _x3 1x9", OUTLIERS_WARN: "1x30"}, minute=12),
        Case(
            what="two machines, and each has heard of one of them",
            series={
                of(OUTLIERS_WARN, instance="a"): "1x9",
                of(OUTLIERS_WARN, instance="b"): "0x9",
                of(OUTLIERS, instance="a"): "0x9",
                of(OUTLIERS, instance="b"): "1x9",
            },
            minute=5,
        ),
        Case(
            what="two machines, one has heard of it",
            series={of(OUTLIERS_WARN, instance="a"): "1x9", of(OUTLIERS_WARN, instance="b"): "0x9"},
            minute=5,
            fires=[ORDERS],
        ),
    ],
    "ModelStale": [
        Case(
            what="a page of drift for 25 hours",
            series={WATERMARK: "0+600x200", SINCE: "0x200"},
            minute=150,
            fires=[ORDERS],
            value="1.042",
        ),
        Case(what="a page for 23 hours", series={WATERMARK: "0+600x200", SINCE: "0x200"}, minute=138),
        Case(what="resolved long ago", series={WATERMARK: "0+600x200", SINCE: "0x60 _x190"}, minute=150),
        Case(
            what="a process that has just started again",
            series={WATERMARK: "0+600x149 _x3 91800", SINCE: "0x149 _x3 0"},
            minute=152,
            fires=[ORDERS],
        ),
        Case(
            what="a stream that stands proves nothing more",
            series={WATERMARK: "0+600x60 36000x1500", SINCE: "0x2100"},
            minute=1600,
        ),
        Case(
            what="two machines, one of which folds",
            series={
                of(WATERMARK, instance="a"): "0+600x200",
                of(WATERMARK, instance="b"): "0x200",
                of(SINCE, instance="a"): "0x200",
                of(SINCE, instance="b"): "80000x200",
            },
            minute=150,
            fires=[ORDERS],
        ),
        Case(
            what="a warning of drift, and a page of something else",
            series={
                WATERMARK: "0+600x200",
                SINCE.replace("page", "warn"): "0x200",
                SINCE.replace('"drift"', '"outlier_rate"'): "0x200",
            },
            minute=150,
        ),
    ],
    "ReferenceOld": [
        Case(
            what="91 days old",
            series={CREATED: f"-{91 * 86400}x20"},
            minute=1,
            fires=[{**ORDERS, "space": "input"}],
            value="91",
        ),
        Case(what="89 days old", series={CREATED: f"-{89 * 86400}x20"}, minute=1),
        Case(
            what="one worker has the new one already",
            series={of(CREATED, instance="a"): f"-{91 * 86400}x20", of(CREATED, instance="b"): "0x20"},
            minute=1,
        ),
        Case(
            what="a restart",
            series={CREATED: f"-{91 * 86400}x5 _x5 -{91 * 86400}x5"},
            minute=8,
            fires=[{**ORDERS, "space": "input"}],
        ),
    ],
    "ReferenceMissing": [
        Case(what="collecting for a day", series={WATCHED: "1x1500"}, minute=DAY + 9, fires=[ORDERS], value="1"),
        Case(what="collecting for half a day", series={WATCHED: "1x1500"}, minute=DAY // 2),
        Case(what="there is one", series={WATCHED: "1x1500", REFERENCE: "3x1500"}, minute=DAY + 9),
        Case(
            what="one worker collects, one cannot begin",
            series={of(WATCHED, worker="0"): "1x1500", of(WATCHED, worker="1"): "0x1500"},
            minute=DAY + 9,
            fires=[ORDERS],
        ),
    ],
    "MonitorBlind": [
        Case(
            what="no poll comes back",
            series={POLL: "0+60x10 600x30"},
            minute=25,
            fires=blind("poll"),
            value="1",
        ),
        Case(
            what="one of two workers hangs",
            series={of(POLL, worker="0"): "0+60x40", of(POLL, worker="1"): "0+60x10 600x30"},
            minute=25,
            fires=blind("poll"),
        ),
        Case(what="one long poll, as when a reference is built", series={POLL: "0+60x10 600x8 1140+60x20"}, minute=19),
        Case(what="it cannot begin", series={WATCHED: "0x20"}, minute=10, fires=blind("start")),
        Case(what="it begins after a while", series={WATCHED: "0x3 1x20"}, minute=10),
        Case(
            what="the process runs, and has not even opened its database",
            series={BUILD: "1x20"},
            minute=10,
            fires=blind("start", job="driftd"),
        ),
        Case(what="it watches", series={BUILD: "1x20", WATCHED: "1x20", POLL: "0+60x20"}, minute=10),
        Case(
            what="records wait, and none is counted",
            series={LAG: "0x9 50x40", RECORDS: "0+600x9 5400x40", REFERENCE: "1x50"},
            minute=40,
            fires=blind("unread"),
        ),
        Case(
            what="one of two workers counts, the other waits for its turn",
            series={
                of(LAG, instance="a"): "50x50",
                of(RECORDS, instance="a"): "0x50",
                of(LAG, instance="b"): "50x50",
                of(RECORDS, instance="b"): "0+600x50",
                REFERENCE: "1x50",
            },
            minute=40,
        ),
        Case(
            what="a quiet stream, with a record that waits now and then",
            series={LAG: "0x9 1 0x9 1 0x40", RECORDS: "0x9 1x60", REFERENCE: "1x60"},
            minute=40,
        ),
        Case(what="the first reference is being collected", series={LAG: "900x50", RECORDS: "0x50"}, minute=40),
        Case(
            what="event time stands, while records come",
            series={MOVED: "0+60x9 540x140", RECORDS: "0+600x150", BLOCK: "10x150"},
            minute=90,
            fires=blind("watermark"),
        ),
        Case(
            what="event time stands, because nothing comes",
            series={MOVED: "0+60x9 540x140", RECORDS: "0+600x9 5400x140", BLOCK: "10x150"},
            minute=90,
        ),
        Case(
            what="blocks of an hour",
            series={MOVED: "0x180", RECORDS: "0+600x180", BLOCK: "3600x180"},
            minute=150,
        ),
        Case(
            what="the source cannot be read, says an incident",
            series={SOURCE: "0x9 1x20"},
            minute=20,
            fires=blind("source"),
        ),
        Case(
            what="it is over",
            series={SOURCE: "1x9 0x20"},
            minute=20,
        ),
        Case(what="drift does not make blind", series={PAGE: "1x20"}, minute=15),
        Case(
            what="two reasons, two alerts",
            series={
                POLL: "0x30",
                'driftd_open_incidents{model="orders",kind="silent",severity="warn"}': "1x30",
            },
            minute=20,
            fires=[*blind("poll"), *blind("silent")],
        ),
        Case(
            what="records wait, and none is counted, nor after a restart",
            series={LAG: "50x50", RECORDS: "5400x28 0x30", REFERENCE: "1x50"},
            minute=35,
            fires=blind("unread"),
        ),
        Case(
            what="records have waited for eight minutes",
            series={LAG: "50x50", RECORDS: "0+600x30 18000x30", REFERENCE: "1x60"},
            minute=38,
        ),
        Case(
            what="one of two workers cannot begin",
            series={of(WATCHED, worker="0"): "1x20", of(WATCHED, worker="1"): "0x20"},
            minute=10,
            fires=blind("start"),
        ),
        Case(
            what="event time stands, and the process was started anew",
            series={MOVED: "0x140", RECORDS: "0+600x80 0+600x80", BLOCK: "10x150"},
            minute=90,
            fires=blind("watermark"),
        ),
        Case(
            what="event time stands for half an hour",
            series={MOVED: "0x50", RECORDS: "0+600x50", BLOCK: "10x50"},
            minute=40,
        ),
        Case(
            what="one of two machines has not folded for long",
            series={
                of(MOVED, instance="a"): "0x140",
                of(MOVED, instance="b"): "0+60x140",
                RECORDS: "0+600x150",
                BLOCK: "10x150",
            },
            minute=90,
        ),
        Case(
            what="event time stands on two machines",
            series={of(MOVED, instance=name): "0x140" for name in ("a", "b")}
            | {of(BLOCK, instance=name): "10x140" for name in ("a", "b")}
            | {of(RECORDS, instance="a"): "0+600x140", of(RECORDS, instance="b"): "0x140"},
            minute=90,
            fires=blind("watermark"),
        ),
        Case(
            what="one of two machines knows of an incident, and is started anew",
            series={of(SOURCE, instance="a"): "1x20 _x4", of(SOURCE, instance="b"): "0x30"},
            minute=23,
            fires=blind("source"),
        ),
    ],
    "MonitorDown": [
        Case(
            what="it was there, and is down",
            series={"up": "1x9 0x30", BUILD: "1x9 _x30"},
            minute=20,
            fires=[HERE],
            value="1",
        ),
        Case(
            what="another program is down",
            series={
                of("up", job="web"): "0x30",
                "up": "1x30",
                BUILD: "1x30",
            },
            minute=20,
        ),
        Case(what="a restart of two minutes", series={"up": "1x9 0x1 1x20", BUILD: "1x9 _x1 1x20"}, minute=11),
        Case(what="its target is gone", series={"up": "1x9 _x30", BUILD: "1x9 _x30"}, minute=25, fires=[{}]),
        Case(
            what="one of two machines is down",
            series={
                of("up", instance="a"): "1x30",
                of(BUILD, instance="a"): "1x30",
                of("up", instance="b"): "1x9 0x30",
                of(BUILD, instance="b"): "1x9 _x30",
            },
            minute=20,
            fires=[{"job": "driftd", "instance": "b"}],
        ),
    ],
    "LagGrowing": [
        Case(
            what="behind, and it grows",
            series={LAG: "0+100x60", LAG_S: "0+60x60"},
            minute=40,
            fires=[ORDERS],
            value="40m 0s",
        ),
        Case(what="behind, and it catches up", series={LAG: "9000-100x60", LAG_S: "3600x60"}, minute=40),
        Case(what="a little behind", series={LAG: "0+100x60", LAG_S: "60x60"}, minute=40),
        Case(
            what="partitions move from one worker to the other, and all lag less and less",
            series={
                of(LAG, instance="a"): "5000-50x29 _x40",
                of(LAG_S, instance="a"): "3600x29 _x40",
                of(LAG, instance="b"): "5000-50x29 7000-50x40",
                of(LAG_S, instance="b"): "3600x70",
            },
            minute=40,
        ),
        Case(
            what="two workers, one is behind",
            series={
                of(LAG, instance="a"): "0x60",
                of(LAG_S, instance="a"): "0x60",
                of(LAG, instance="b"): "0+100x60",
                of(LAG_S, instance="b"): "0+60x60",
            },
            minute=40,
            fires=[ORDERS],
        ),
        Case(what="a quarter of an hour behind", series={LAG: "0+10x60", LAG_S: "900x60"}, minute=40, fires=[ORDERS]),
        Case(what="eight minutes behind", series={LAG: "0+10x60", LAG_S: "480x60"}, minute=40),
        Case(what="it grows for five minutes", series={LAG: "9000x40 9000+10x20", LAG_S: "900x60"}, minute=46),
    ],
    "DeadLettersHigh": [
        Case(
            what="one in ten",
            series={RECORDS: "0+1000x30", DEAD: "0+100x30"},
            minute=20,
            fires=[ORDERS],
            value="10%",
        ),
        Case(what="one in a hundred", series={RECORDS: "0+1000x30", DEAD: "0+10x30"}, minute=20),
        Case(what="two of few", series={RECORDS: "0+1x30", DEAD: "0x12 1x4 2x20"}, minute=20),
        Case(
            what="two reasons together, on two workers, over a restart",
            series={
                of(RECORDS, worker="0"): "0+1000x9 0+1000x20",
                of(RECORDS, worker="1"): "0+1000x30",
                of(DEAD, worker="0"): "0+60x9 0+60x20",
                of(DEAD, worker="1"): "0+60x30",
                of(DEAD.replace("bad_json", "tombstone"), worker="1"): "0+60x30",
            },
            minute=20,
            fires=[ORDERS],
        ),
        Case(what="four in a hundred", series={RECORDS: "0+1000x30", DEAD: "0+40x30"}, minute=20),
        Case(what="for three minutes", series={RECORDS: "0+1000x40", DEAD: "0x20 0+200x20"}, minute=25),
        Case(
            what="only those of one machine, four in a hundred of all",
            series={
                of(RECORDS, instance="a"): "0+1000x30",
                of(RECORDS, instance="b"): "0+1000x30",
                of(DEAD, instance="a"): "0+80x30",
            },
            minute=20,
        ),
        Case(
            what="a few on each of two machines",
            series={
                of(RECORDS, instance="a"): "0+10x30",
                of(RECORDS, instance="b"): "0+10x30",
                of(DEAD, instance="a"): "0+1x30",
                of(DEAD, instance="b"): "0+1x30",
            },
            minute=20,
            fires=[ORDERS],
        ),
        Case(
            what="a process that was started anew with many before",
            series={RECORDS: "90000+1000x14 0+1000x20", DEAD: "9000+100x14 0+100x20"},
            minute=20,
            fires=[ORDERS],
        ),
    ],
    "RecordsLost": [
        Case(what="a gap in a series that was there", series={GAPS: "0x70 1x60"}, minute=75, fires=[ORDERS]),
        Case(
            what="the first gap ever, so its series begins",
            series={GAPS: "_x9 2x90"},
            minute=12,
            fires=[ORDERS],
            value="2",
        ),
        Case(what="an hour later it is history", series={GAPS: "_x9 2x190"}, minute=90),
        Case(what="after a restart that found one", series={GAPS: "0x70 _x2 1x30"}, minute=75, fires=[ORDERS]),
        Case(what="a restart that found none", series={GAPS: "3x120 _x2 0x30"}, minute=135),
        Case(what="Prometheus itself was away", series={GAPS: "3x120 _x70 3x60"}, minute=200),
        Case(what="a restart that found one, after many", series={GAPS: "3x70 1x60"}, minute=75, fires=[ORDERS]),
    ],
    "SinkFailing": [
        Case(
            what="one of two sinks refuses",
            series={
                'driftd_outbox_age_seconds{sink="pager"}': "0+60x30",
                'driftd_outbox_age_seconds{sink="file"}': "0x30",
            },
            minute=20,
            fires=[{"job": "driftd", "sink": "pager"}],
            value="20m 0s",
        ),
        Case(what="for eight minutes", series={'driftd_outbox_age_seconds{sink="pager"}': "0+60x30"}, minute=8),
        Case(
            what="for twelve minutes",
            series={'driftd_outbox_age_seconds{sink="pager"}': "0+60x30"},
            minute=12,
            fires=[{"job": "driftd", "sink": "pager"}],
        ),
        Case(
            what="two workers send, one cannot",
            series={
                'driftd_outbox_age_seconds{sink="pager",worker="0"}': "0+60x30",
                'driftd_outbox_age_seconds{sink="pager",worker="1"}': "0x30",
            },
            minute=20,
            fires=[{"job": "driftd", "sink": "pager"}],
        ),
    ],
    "NotificationsGivenUp": [
        Case(
            what="one is given up",
            series={'driftd_outbox_dead_total{sink="pager"}': "0x70 1x60"},
            minute=75,
            fires=[{"job": "driftd", "sink": "pager"}],
        ),
        Case(what="none", series={'driftd_outbox_dead_total{sink="pager"}': "0x120"}, minute=75),
        Case(
            what="before the first scrape",
            series={'driftd_outbox_dead_total{sink="pager"}': "_x9 3x60"},
            minute=12,
            fires=[{"job": "driftd", "sink": "pager"}],
            value="3",
        ),
        Case(what="a restart", series={'driftd_outbox_dead_total{sink="pager"}': "4x80 0x60"}, minute=90),
        Case(
            what="one, after a restart",
            series={'driftd_outbox_dead_total{sink="pager"}': "4x80 1x60"},
            minute=90,
            fires=[{"job": "driftd", "sink": "pager"}],
        ),
        Case(what="an old one", series={'driftd_outbox_dead_total{sink="pager"}': "_x9 3x120"}, minute=90),
    ],
    "DatabaseFailing": [
        Case(
            what="nothing is taken for ten minutes",
            series={DB_OK: "0+60x9 540x20", REFUSED: "0x9 0+60x20"},
            minute=19,
            fires=[ORDERS],
            value="10m 0s",
        ),
        Case(
            what="a long step, in which nothing was asked of it",
            series={DB_OK: "0+60x9 540x20", REFUSED: "0x40"},
            minute=19,
        ),
        Case(what="a hiccup", series={DB_OK: "0+60x40", REFUSED: "0x9 3x30"}, minute=12),
        Case(
            what="one of two workers is cut off",
            series={
                of(DB_OK, worker="0"): "0+60x40",
                of(REFUSED, worker="0"): "0x40",
                of(DB_OK, worker="1"): "0+60x9 540x30",
                of(REFUSED, worker="1"): "0x9 0+60x30",
            },
            minute=19,
            fires=[ORDERS],
        ),
        Case(what="for two minutes", series={DB_OK: "0+60x9 540x20", REFUSED: "0x9 0+60x20"}, minute=11),
        Case(
            what="for three minutes, after a restart",
            series={DB_OK: "0+60x9 540x20", REFUSED: "900x9 0+10x20"},
            minute=12,
            fires=[ORDERS],
        ),
        Case(
            what="two machines, one is cut off",
            series={
                of(DB_OK, instance="a"): "0+60x40",
                of(REFUSED, instance="a"): "0x40",
                of(DB_OK, instance="b"): "0+60x9 540x30",
                of(REFUSED, instance="b"): "0x9 0+60x30",
            },
            minute=19,
            fires=[ORDERS],
        ),
    ],
    "WorkerRestarting": [
        Case(
            what="a process that systemd starts again and again",
            series={STARTED: "0x4 300x4 600x4 900x4 1200x4 1500x4", BUILD: "1x30"},
            minute=28,
            fires=[HERE],
            value="5",
        ),
        Case(what="one restart", series={STARTED: "0x20 1260x30", BUILD: "1x50"}, minute=40),
        Case(what="another program does", series={STARTED: "0x4 300x4 600x4 900x4 1200x4 1500x4"}, minute=28),
        Case(
            what="a worker that dies before anybody sees it",
            series={
                'driftd_worker_restarts_total{worker="1"}': "0+1x60",
                'driftd_worker_restarts_total{worker="0"}': "0x60",
                of(STARTED, worker="supervisor"): "0x60",
                of(STARTED, worker="0"): "0x60",
                BUILD: "1x60",
            },
            minute=30,
            fires=[{**HERE, "worker": "1"}],
        ),
        Case(what="two restarts", series={STARTED: "0x20 1260x10 1920x20", BUILD: "1x50"}, minute=40),
    ],
    "WorkerDown": [
        Case(
            what="one of two does not answer",
            series={'driftd_worker_up{worker="0"}': "1x30", 'driftd_worker_up{worker="1"}': "1x4 0x30"},
            minute=20,
            fires=[{**HERE, "worker": "1"}],
            value="1",
        ),
        Case(what="for five minutes", series={'driftd_worker_up{worker="1"}': "1x4 0x5 1x30"}, minute=9),
    ],
    "MemoryGrowing": [
        Case(
            what="three times as much as yesterday, in the same process",
            series={MEMORY: f"2e9x{DAY} 6e9x{DAY}", STARTED: "0x3000", BUILD: "1x3000"},
            minute=DAY + 200,
            fires=[HERE],
            value="3",
        ),
        Case(
            what="a new process",
            series={MEMORY: f"2e9x{DAY} 6e9x{DAY}", STARTED: f"0x{DAY} 86400x{DAY}", BUILD: "1x3000"},
            minute=DAY + 200,
        ),
        Case(
            what="three times as much of very little",
            series={MEMORY: f"2e8x{DAY} 6e8x{DAY}", STARTED: "0x3000", BUILD: "1x3000"},
            minute=DAY + 200,
        ),
        Case(what="another program", series={MEMORY: f"2e9x{DAY} 6e9x{DAY}", STARTED: "0x3000"}, minute=DAY + 200),
        Case(
            what="half as much again",
            series={MEMORY: f"2e9x{DAY} 3e9x{DAY}", STARTED: "0x3000", BUILD: "1x3000"},
            minute=DAY + 200,
        ),
        Case(
            what="for half an hour",
            series={MEMORY: f"2e9x{DAY + 150} 6e9x{DAY}", STARTED: "0x3000", BUILD: "1x3000"},
            minute=DAY + 180,
        ),
    ],
    "FalsePagesAboveBudget": [
        Case(
            what="three false pages in thirty days, one in ninety allowed",
            series={FALSE: "0.1x90", OBSERVED: f"{30 * 86400}x90", EXPECTED: "0.0111x90"},
            minute=80,
            fires=[{"job": "driftd"}],
            value="9.009",
        ),
        Case(
            what="one false page in its first week",
            series={FALSE: "0.142x90", OBSERVED: f"{7 * 86400}x90", EXPECTED: "0.0111x90"},
            minute=80,
        ),
        Case(
            what="as many as allowed",
            series={FALSE: "0.0222x90", OBSERVED: f"{90 * 86400}x90", EXPECTED: "0.0111x90"},
            minute=80,
        ),
        Case(
            what="one each of three models, on two machines",
            series={
                of(f'{name}{{model="{model}"}}', instance=instance): f"{value}x90"
                for model in ("a", "b", "c")
                for instance in ("x", "y")
                for name, value in (("driftd_false_pages_per_day", 0.05), ("driftd_observed_seconds", 20 * 86400))
            }
            | {of(EXPECTED, instance="x"): "0.0111x90", of(EXPECTED, instance="y"): "0.0111x90"},
            minute=80,
            fires=[{"job": "driftd"}],
        ),
        Case(
            what="three in ninety days",
            series={FALSE: "0.0333x90", OBSERVED: f"{90 * 86400}x90", EXPECTED: "0.0111x90"},
            minute=80,
            fires=[{"job": "driftd"}],
        ),
        Case(
            what="half an hour ago nobody had said so",
            series={FALSE: "0x60 0.1x30", OBSERVED: f"{30 * 86400}x90", EXPECTED: "0.0111x90"},
            minute=80,
        ),
        *(
            Case(
                what=f"{pages:g} pages in {days} days, as two machines say",
                series={
                    **{of(FALSE, instance=name): f"{pages / days}x90" for name in ("a", "b")},
                    **{of(OBSERVED, instance=name): f"{days * 86400}x90" for name in ("a", "b")},
                    **{of(EXPECTED, instance=name): "0.0111x90" for name in ("a", "b")},
                },
                minute=80,
            )
            for pages, days in ((1, 7), (1.2, 90), (1.6, 90))
        ),
        Case(
            what="one machine has looked back already",
            series={
                of(FALSE, instance="a"): "0.1x90",
                of(FALSE, instance="b"): "0x90",
                **{of(OBSERVED, instance=name): f"{30 * 86400}x90" for name in ("a", "b")},
                **{of(EXPECTED, instance=name): "0.0111x90" for name in ("a", "b")},
            },
            minute=80,
            fires=[{"job": "driftd"}],
        ),
    ],
}


def healthy(minutes: int) -> dict[str, str]:
    """Two workers on two machines that do what they should, restarted once, for so many minutes."""
    found: dict[str, str] = {}
    for instance in ("a:9464", "b:9464"):
        here = {"job": "driftd", "instance": instance}
        half = minutes // 2

        def show(series: str, values: str, here: dict[str, str] = here, **labels: str) -> None:
            found[of(series, **here, **labels)] = values

        def counter(series: str, by: int, half: int = half, **labels: str) -> None:
            show(series, f"0+{by}x{half} _x2 0+{by}x{minutes - half}", **labels)

        def now(series: str, half: int = half, **labels: str) -> None:
            show(series, f"0+60x{half} _x2 {60 * (half + 3)}+60x{minutes - half}", **labels)

        def gauge(series: str, value: float, half: int = half, **labels: str) -> None:
            show(series, f"{value:g}x{half} _x2 {value:g}x{minutes - half}", **labels)

        show("up", f"1x{minutes + 3}")
        gauge(BUILD, 1)
        now(WATERMARK)
        gauge(BLOCK, 10)
        gauge(REFERENCE, 1)
        gauge(CREATED, -3 * 86400)
        for series in (PAGE, WARN, SOURCE):
            gauge(series, 0)
        for series, value in ((FALSE, 0.0), (OBSERVED, 90.0 * 86400), (EXPECTED, 0.0111)):
            gauge(series, value)
        show(of(STARTED, worker="supervisor"), f"0x{half} _x2 {60 * half}x{minutes - half}")
        for worker in ("0", "1"):
            counter(RECORDS, 6000, worker=worker)
            counter(DEAD, 3, worker=worker)
            counter(GAPS, 0, worker=worker)
            counter(REFUSED, 0, worker=worker)
            counter('driftd_outbox_dead_total{sink="pager"}', 0, worker=worker)
            counter("driftd_worker_restarts_total", 0, worker=worker)
            gauge("driftd_worker_up", 1, worker=worker)
            gauge(WATCHED, 1, worker=worker)
            gauge(LAG, 40, worker=worker)
            gauge(LAG_S, 1, worker=worker)
            gauge('driftd_outbox_age_seconds{sink="pager"}', 0, worker=worker)
            gauge(MEMORY, 2e9, worker=worker)
            show(of(STARTED, worker=worker), f"0x{half} _x2 {60 * half}x{minutes - half}")
            for series in (POLL, MOVED, DB_OK):
                now(series, worker=worker)
    return found


def with_target(series: str) -> str:
    """The series with job and instance, where it has none."""
    for label, value in HERE.items():
        if f'{label}="' not in series:
            series = of(series, **{label: value})
    return series


def promtool_test(folder: Path, tests: list[dict[str, Any]], *, only: str = "") -> None:
    """Let promtool run these tests of the committed rules, or of one of them."""
    rules = FOLDER / PROMETHEUS_FILE
    if only:  # twenty times as fast
        groups = yaml.safe_load(rules.read_text())["groups"]
        (group,) = [group for group in groups if only in [rule["alert"] for rule in group["rules"]]]
        group["rules"] = [rule for rule in group["rules"] if rule["alert"] == only]
        rules = folder / "rules.yml"
        rules.write_text(yaml.safe_dump({"groups": [group]}))
    path = folder / "tests.yml"
    body = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    done = promtool("test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def firing(name: str, rule: Rule, fires: list[dict[str, str]]) -> list[dict[str, Any]]:
    """What promtool should find of the series ALERTS."""
    own = {"alertname": name, "alertstate": "firing", "severity": rule.severity, "about": rule.about}
    found = []
    for labels in fires:
        pairs = ",".join(f'{label}="{value}"' for label, value in {**labels, **own}.items())
        found.append({"labels": f"ALERTS{{{pairs}}}", "value": 1})
    return found


@pytest.mark.prometheus
@pytest.mark.parametrize("name", [rule.name for rule in RULES])
def test_each_rule_fires_when_it_should_and_only_then(name: str, promtool_there: None, tmp_path: Path) -> None:
    rule = next(rule for rule in RULES if rule.name == name)
    cases = CASES[name]
    assert any(case.fires for case in cases) and any(not case.fires for case in cases)
    tests = []
    for case in cases:
        test: dict[str, Any] = {
            "name": case.what,
            "interval": "1m",
            "input_series": [{"series": with_target(s), "values": v} for s, v in case.series.items()],
            "promql_expr_test": [
                {
                    "expr": f'ALERTS{{alertname="{name}",alertstate="firing"}}',
                    "eval_time": f"{case.minute}m",
                    "exp_samples": firing(name, rule, case.fires),
                }
            ],
        }
        if case.value:
            (labels,) = case.fires
            own = {"severity": rule.severity, "about": rule.about}
            words = {
                "summary": rendered(rule.summary, labels, case.value),
                "description": rendered(rule.description, labels, case.value),
                "runbook_url": rule.runbook_url(),
            }
            expected = [{"exp_labels": {**labels, **own}, "exp_annotations": words}]
            test["alert_rule_test"] = [{"alertname": name, "eval_time": f"{case.minute}m", "exp_alerts": expected}]
        tests.append(test)
    assert any("alert_rule_test" in test for test in tests), "no case says what people read"
    promtool_test(tmp_path, tests, only=name)


def rendered(template: str, labels: dict[str, str], value: str) -> str:
    """A template with its values filled in, as far as the rules use templates."""

    def branch(found: re.Match[str]) -> str:
        there = labels.get(found["label"], "")
        return found["yes"].replace("{{ . }}", there) if there else found["no"] or ""

    choice = r"{{ with \$labels\.(?P<label>\w+) }}(?P<yes>.*?)(?:{{ else }}(?P<no>.*?))?{{ end }}"
    text = re.sub(choice, branch, template)
    text = re.sub(r"{{ \$labels\.(\w+) }}", lambda found: labels.get(found[1], ""), text)
    text = re.sub(r"{{ \$value \| \w+ }}", value, text)
    assert "{{" not in text, text
    return text


@pytest.mark.prometheus
def test_nothing_fires_while_two_machines_with_two_workers_do_what_they_should(
    promtool_there: None, tmp_path: Path
) -> None:
    minutes = 480
    at = [1, 6, 12, 40, 90, *(minutes // 2 + after for after in (-1, 1, 3, 5, 9, 20)), minutes - 1]
    silent = [{"expr": "ALERTS", "eval_time": f"{minute}m", "exp_samples": []} for minute in at]
    series = [{"series": name, "values": values} for name, values in healthy(minutes).items()]
    promtool_test(tmp_path, [{"interval": "1m", "input_series": series, "promql_expr_test": silent}])


@pytest.mark.prometheus
def test_nothing_fires_for_a_model_that_has_just_begun(promtool_there: None, tmp_path: Path) -> None:
    first = {
        "up": "1x20",
        BUILD: "1x20",
        WATCHED: "0 1x20",
        RECORDS: "0x2 0+9000x20",
        REFUSED: "0x20",
        POLL: "_ 60+60x20",
        DB_OK: "_ 60+60x20",
        LAG: "_ 90000-4000x20",
        LAG_S: "_ 86400x3 90x20",
        "driftd_baseline_collected_records": "_ 0+9000x20",
        BLOCK: "10x20",
    }
    series = [{"series": with_target(name), "values": values} for name, values in first.items()]
    firing_now = 'ALERTS{alertstate="firing"}'
    silent = [{"expr": firing_now, "eval_time": f"{minute}m", "exp_samples": []} for minute in range(1, 20)]
    promtool_test(tmp_path, [{"interval": "1m", "input_series": series, "promql_expr_test": silent}])


@pytest.mark.prometheus
def test_promtool_finds_no_fault_in_the_file(promtool_there: None) -> None:
    done = promtool("check", "rules", str(FOLDER / PROMETHEUS_FILE))
    assert done.returncode == 0 and f"{len(RULES)} rules found" in done.stdout, done.stdout + done.stderr


@pytest.fixture
def promtool_there(missing_server: Callable[[str], None]) -> None:
    """Skips, or fails, where promtool is not installed."""
    from tests.servers.prometheus import missing_prometheus

    missing_server(missing_prometheus())


@pytest.mark.parametrize("name", [PROMETHEUS_FILE, GRAFANA_FILE])
def test_the_committed_files_are_those_that_the_list_makes(name: str) -> None:
    assert (FOLDER / name).read_text() == files()[name], (
        "a file of dashboards/rules is old. Make it anew: python -m dashboards.rules"
    )


def metric_names(query: str) -> Iterator[str]:
    """Names in PromQL that are metrics: what stands in braces or after by, on, offset is not."""
    bare = re.sub(r"\{.*?\}|\[.*?\]|\"[^\"]*\"", "", query)
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", "", bare)
    for found in re.finditer(r"\b([a-z_]+)\b(?!\s*\()", bare):
        if found[1] not in {"and", "or", "unless", "bool", "offset", "by", "on", "e", "d", "h", "m"}:
            yield found[1]


def test_the_rules_ask_only_for_metrics_that_exist() -> None:
    known = {spec.name for spec in [*Metrics().specs, *SupervisorMetrics().specs]} | MADE_BY_CLIENTS
    for rule in RULES:
        names = list(metric_names(rule.query))
        assert names and set(names) <= known, f"{rule.name}: {set(names) - known}"


def test_the_labels_that_the_rules_name_are_those_of_the_metrics() -> None:
    labels = {spec.name: set(spec.labels) for spec in [*Metrics().specs, *SupervisorMetrics().specs]}
    for rule in RULES:
        for name, matchers in re.findall(r"(driftd_\w+)\{([^}]*)\}", rule.query):
            assert set(re.findall(r"(\w+)=", matchers)) <= labels[name], rule.name


def test_all_kinds_of_incidents_that_make_blind_are_in_the_rule() -> None:
    assert set(BLIND_KINDS) == BLIND - {"lag"}, "lag that grows has a rule of its own"


def test_names_and_words_are_as_other_rules_have_them() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES) == len(CASES)
    for rule in RULES:
        assert re.fullmatch(r"([A-Z][a-z]+)+", rule.name)
        assert rule.hold_s % INTERVAL_S == 0
        assert rule.hold_s < 86_400, "Grafana 9.2 refuses days"
        assert rule.summary and rule.description.endswith(".") and len(rule.summary) < 120


def test_the_groups_tell_models_from_driftd_itself() -> None:
    groups = {group["name"]: group["rules"] for group in yaml.safe_load(prometheus_rules())["groups"]}
    assert sorted(groups) == [f"{GROUP}-itself", f"{GROUP}-models"]
    assert sum(len(rules) for rules in groups.values()) == len(RULES)
    for name, rules in groups.items():
        assert {rule["labels"]["about"] for rule in rules} == {"driftd" if name.endswith("itself") else "model"}


def test_the_group_for_grafana_has_what_every_version_takes() -> None:
    group = grafana_rule_group(folder_uid="folder", prometheus_uid="prom")
    assert (group["title"], group["folderUid"], group["interval"] % 10) == ("driftd", "folder", 0)
    rules = group["rules"]
    assert len({rule["uid"] for rule in rules}) == len({rule["title"] for rule in rules}) == len(RULES)
    for rule, made in zip(RULES, rules, strict=True):
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,40}", made["uid"])
        assert (made["folderUID"], made["ruleGroup"], made["condition"]) == ("folder", "driftd", "C")
        ask, reduce, compare = made["data"]
        assert (ask["refId"], reduce["refId"], compare["refId"]) == ("A", "B", "C")
        assert (ask["datasourceUid"], ask["model"]["expr"]) == ("prom", rule.query)
        assert {reduce["datasourceUid"], compare["datasourceUid"]} == {"__expr__"}
        assert (reduce["model"]["type"], reduce["model"]["expression"]) == ("reduce", "A")
        assert (compare["model"]["type"], compare["model"]["expression"]) == ("math", f"$B > {rule.above:g}")
        assert made["noDataState"] in {"OK", "NoData", "Alerting"}
        assert made["execErrState"] in {"OK", "Error", "Alerting"}
        assert "$value " not in made["annotations"]["description"] + made["annotations"]["summary"]


def test_one_rule_of_grafana_says_that_prometheus_does_not_answer() -> None:
    rules = grafana_rule_group(folder_uid="f", prometheus_uid="p")["rules"]
    assert [rule["title"] for rule in rules if rule["execErrState"] == "Alerting"] == ["MonitorDown"]


def test_every_rule_leads_to_a_panel_that_is_there() -> None:
    panels = {dashboard.uid: panel_ids(dashboard.to_json()) for dashboard in all_dashboards()}
    for rule in grafana_rule_group(folder_uid="f", prometheus_uid="p")["rules"]:
        words = rule["annotations"]
        assert int(words["__panelId__"]) in panels[words["__dashboardUid__"]], rule["title"]


def panel_ids(dashboard: dict[str, Any]) -> set[int]:
    return {panel["id"] for panel in dashboard["panels"]}
