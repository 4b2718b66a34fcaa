"""Every query of every dashboard against real servers: PostgreSQL that a real `driftd run` fills, and a Prometheus that
scrapes it. The demo's stream comes from a real broker; only a gap and a mute, which it does not have, are added.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from connectors.database.rows import Checkpoint, MuteRow, NewLabel
from connectors.database.store import Store
from connectors.records import Gap, Partition
from dashboards.grafana import Dashboard, all_dashboards
from dashboards.grafana.panels import Panel
from dashboards.grafana.targets import PromQL, Sql, tidy
from dashboards.verdict_words import rank_of
from monitor.demo import MODEL
from monitor.demo_stream import DemoTruth, make_demo
from monitor.operations import fraud_changed_incident
from monitor.references import from_source
from monitor.settings import load_settings
from tests.acceptance.command import Running, wait_until
from tests.servers.kafka import KafkaServer, free_port
from tests.servers.postgres import PostgresServer
from tests.servers.prometheus import PrometheusServer

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.timeout(300)]

PANELS = [
    (dashboard, panel)
    for dashboard in all_dashboards()
    for panel in dashboard.panels
    if isinstance(panel, Panel) and isinstance(panel.targets[0], Sql)
]


@dataclass(frozen=True)
class Watched:
    """A database and a daemon that has read the demo's stream into it, and goes on running."""

    connection: psycopg.Connection[Any]
    daemon: Running
    from_ms: int  # what Grafana would show: from the middle of the stream, so that there is a past
    to_ms: int


def filled(
    query: str, chosen: Mapping[str, Sequence[str]], *, from_ms: int, to_ms: int, interval_ms: int = 10_000
) -> str:
    """The query as Grafana sends it on: macros and variables filled in, as ${name:sqlstring} quotes them."""
    query = tidy(query).replace("$__unixEpochFrom()", str(from_ms // 1000))
    query = query.replace("$__unixEpochTo()", str(to_ms // 1000)).replace("$__interval_ms", str(interval_ms))

    def quoted(match: re.Match[str]) -> str:
        return ",".join("'" + value.replace("'", "''") + "'" for value in chosen[match[1]])

    return re.sub(r"\$\{(\w+):sqlstring\}", quoted, query)


def choices(connection: psycopg.Connection[Any], dashboard: Dashboard, **times: int) -> dict[str, list[str]]:
    """What is chosen where a person opens the dashboard: the first value, or what stands for all of them."""
    chosen: dict[str, list[str]] = {}
    for variable in dashboard.variables:
        found = [str(row[0]) for row in connection.execute(filled(variable.query, chosen, **times)).fetchall()]
        assert found, f"{dashboard.uid}: {variable.name} has no choice"
        if variable.first is not None:
            assert variable.first in found
        chosen[variable.name] = [variable.first] if variable.first else found if variable.all else found[:1]
    return chosen


def as_versioned(lines: Sequence[bytes]) -> list[bytes]:
    """The demo's lines, where the second half comes from a new version of the model."""
    half = len(lines) // 2
    return [
        line[:-1] + f', "version": "{1 + (number >= half)}"}}'.encode() if line.endswith(b"}") else line
        for number, line in enumerate(lines)
    ]


def settings_of(folder: Path, source: dict[str, Any], database: str) -> Path:
    """The demo's settings with another source and database, and a sink that takes nothing."""
    content = {
        "database": database,
        "references": str(folder / "references"),
        "http": {"bind": "127.0.0.1:0"},
        "models": {
            MODEL: {
                "source": source,
                "record": {
                    "id": "/id",
                    "time": {"path": "/ts", "unit": "ms"},
                    "prediction": "/prediction",
                    "confidence": "/confidence",
                    "version": "/version",
                    "segments": {"scanner": "/scanner"},
                    "keep": ["/scanner"],
                },
                "spaces": {
                    "input": {
                        "embedder": {"kind": "pixels", "field": "/pixels", "shape": [8, 8], "encoding": "base64"}
                    },
                    "output": {"embedder": {"kind": "vector", "field": "/probabilities", "encoding": "list"}},
                },
                "drift": {"idle": "2s", "lateness": "5s"},
                "outliers": {"sample": 0.02},
                "fraud": {"review": 0.02, "alpha": 0.01, "alerts": {"most": 50, "every": "2m"}},
            }
        },
        "incidents": {"deploy_grace": 0, "min_duration": 0},
        "sinks": {
            "log": {"kind": "jsonl", "path": str(folder / "notifications.jsonl")},
            "deaf": {"kind": "webhook", "url": f"http://127.0.0.1:{free_port()}/"},
        },
    }
    file = folder / "driftd.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def told_by_hand(store: Store, at_ms: int) -> None:
    """What the demo has none of: records that were lost, a mute, a label, and an incident of fraud."""
    lost = Gap(Partition("digits-of-old", 0), 0, 1_000, "retention", "The broker deleted them.")
    store.commit(Checkpoint(MODEL, [], gaps=[lost]))
    store.add_labels(MODEL, [NewLabel("gone", "cleared", at_ms, "analyst", 1.0, "ann", "by hand")])
    changed, _ = fraud_changed_incident(
        MODEL, version=1, answers=64, foretold=0.3, found=0.9, since_ms=at_ms, now_ms=at_ms
    )
    store.open_incident(changed, [])
    now_ms = int(time.time() * 1000)
    store.add_mute(
        MuteRow("0a1b2c3d", MODEL, "dead_letters", "", "", now_ms, now_ms + 86_400_000, "known", "ann", now_ms)
    )


@pytest.fixture(scope="module")
def watched(
    kafka: KafkaServer, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("dashboards")
    truth = make_demo(
        folder / "data",
        baseline_records=20_000,
        clean_blocks=40,
        drift_blocks=30,
        recovery_blocks=1,
        damaged_share=0.002,
    )
    database = postgres.new_database()
    baseline = settings_of(folder, {"kind": "files", "path": str(truth.baseline)}, database)
    from_source(load_settings(baseline), MODEL, start_ms=None, end_ms=None, progress=lambda step, share: None)
    store = Store.open(database)
    store.migrate()
    told_by_hand(store, truth.start_ms + 20 * truth.block_ms)
    daemon = started(kafka, folder, truth, database)
    try:
        with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as connection:
            wait_until(
                lambda: everything_judged(connection, truth), f"the whole stream is judged: {daemon.log()[-3000:]}"
            )
            answered_by_hand(connection)
            as_a_reader(connection)
            yield Watched(connection, daemon, truth.start_ms + 10 * truth.block_ms, truth.end_ms)
    finally:
        daemon.kill()
        store.close()


def answered_by_hand(connection: psycopg.Connection[Any]) -> None:
    """What the verdicts would say if the baseline's answers, true answers and the model's age were known."""
    connection.execute(
        """UPDATE verdicts SET low = coalesce(low, 0.9), high = coalesce(high, 0.96), floor = coalesce(floor, 0.94),
                  realised = 0.95, labels = 120, novel = coalesce(novel, 0.01), unsupported = coalesce(unsupported, 0),
                  age_s = 86400"""
    )


def as_a_reader(connection: psycopg.Connection[Any]) -> None:
    """From here on the connection has the rights that docs/grafana.md gives Grafana, and no others."""
    name = f"reader_{secrets.token_hex(4)}"
    connection.execute(f"CREATE ROLE {name}")
    connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}")
    connection.execute(f"SET ROLE {name}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("DELETE FROM kept")


def started(kafka: KafkaServer, folder: Path, truth: DemoTruth, database: str) -> Running:
    """`driftd run --workers 2` on the demo's stream."""
    from kafka import KafkaProducer

    topic = kafka.create_topic("digits-on-dashboards", partitions=2, config=None)
    with KafkaProducer(bootstrap_servers=kafka.brokers, linger_ms=20) as producer:
        for number, line in enumerate(as_versioned(truth.stream.read_bytes().splitlines())):
            producer.send(topic, line, partition=number % 2)
        producer.flush(timeout=60)
    source = {"kind": "kafka", "brokers": kafka.brokers, "topic": topic, "start": "earliest"}
    settings_of(folder, source, database)
    daemon = Running.with_settings_of(folder)
    daemon.start("--workers", "2")
    return daemon


def everything_judged(connection: psycopg.Connection[Any], truth: DemoTruth) -> bool:
    newest = connection.execute("SELECT max(end_ms) FROM block_stats").fetchone()
    return newest is not None and newest[0] is not None and newest[0] >= truth.end_ms - 2 * truth.block_ms


@pytest.mark.parametrize(
    ("dashboard", "panel"), PANELS, ids=[f"{dashboard.uid}: {panel.title}" for dashboard, panel in PANELS]
)
def test_every_sql_query_returns_rows_with_the_columns_that_its_panel_names(
    watched: Watched, dashboard: Dashboard, panel: Panel
) -> None:
    times = {"from_ms": watched.from_ms, "to_ms": watched.to_ms}
    chosen = choices(watched.connection, dashboard, **times)
    named: set[str] = set()
    for target in panel.targets:
        assert isinstance(target, Sql)
        cursor = watched.connection.execute(filled(target.query, chosen, **times))
        columns = [column.name for column in cursor.description or ()]
        rows = cursor.fetchall()
        assert rows, filled(target.query, chosen, **times)
        assert any(value is not None for row in rows for value in row)
        assert len(set(columns)) == len(columns)
        named |= set(columns)
        if target.format == "time_series":
            at = [row[columns.index("time")] for row in rows]
            assert at == sorted(at)
            assert isinstance(at[0], int)
        if "metric" in columns:
            named |= {row[columns.index("metric")] for row in rows}
            values = [row[columns.index("value")] for row in rows]
            assert any(value is not None for value in values)
            assert all(row[columns.index("metric")] for row in rows), "a series without a name"
    for column in panel.columns:
        if column.name.startswith("/"):
            assert any(re.search(column.name.strip("/"), name) for name in named), column.name
        elif column.name not in ("page", "warn"):  # of incidents: not every stream has both
            assert column.name in named


@pytest.mark.parametrize("dashboard", all_dashboards(), ids=lambda dashboard: dashboard.uid)
def test_every_annotation_returns_rows(watched: Watched, dashboard: Dashboard) -> None:
    times = {"from_ms": watched.from_ms, "to_ms": watched.to_ms}
    chosen = choices(watched.connection, dashboard, **times)
    for annotation in dashboard.annotations:
        cursor = watched.connection.execute(filled(annotation.query, chosen, **times))
        columns = [column.name for column in cursor.description or ()]
        rows = cursor.fetchall()
        assert rows, annotation.name
        assert {"time", "text", "tags"} <= set(columns) <= {"time", "timeend", "text", "tags"}


@pytest.mark.prometheus
def test_every_promql_query_returns_rows(watched: Watched, prometheus: Callable[..., PrometheusServer]) -> None:
    server = prometheus(targets={"driftd": [watched.daemon.url().removeprefix("http://").rstrip("/")]})
    server.wait_for_series("rate(driftd_records_total[5s])")
    server.wait_for_series('driftd_outbox_failed_total{sink="deaf"} > 0')
    server.wait_for_series("driftd_pages_per_day")
    empty = []
    for dashboard in all_dashboards():
        for panel in dashboard.panels:
            for target in panel.targets if isinstance(panel, Panel) else ():
                if isinstance(target, PromQL):
                    query = tidy(target.query).replace("$__rate_interval", "10s")
                    query = query.replace("$model", MODEL).replace("$space", "input|output")
                    now_s = time.time()
                    rows = server.query_range(query, start_s=now_s - 5, end_s=now_s, step_s=1)
                    labels = set(itertools.chain.from_iterable(row["metric"] for row in rows))
                    if not rows or not set(re.findall(r"{{(\w+)}}", target.legend)) <= labels:
                        empty.append(f"{dashboard.uid}: {panel.title}: {query}")
    assert not empty, "\n".join(empty)


@pytest.fixture(scope="module")
def large(postgres: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    """Much of four models and a little of 200, without the daemon: for plans, and for what comes first."""
    database = postgres.new_database()
    store = Store.open(database)
    store.migrate()
    store.close()
    with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as connection:
        surprise = ", ".join(f"surprise_{number}" for number in range(10))
        connection.execute(
            f"""INSERT INTO block_stats (model, space, block, start_ms, end_ms, reference, records, late, dead,
                                         {surprise}, stored_ms)
                SELECT 'm' || n % 4, (ARRAY['input', ''])[1 + n / 4 % 2], n, n * 10000, n * 10000 + 10000,
                       1, 9, 0, 0, {"0, " * 10} 0
                FROM generate_series(1, 20000) AS n"""
        )
        connection.execute(
            """INSERT INTO readings (model, space, segment, block, start_ms, end_ms, channel, n, window_start_ms,
                                     reference, page, warn, stored_ms)
               SELECT 'm' || n % 4, CASE n / 4 % 5 WHEN 4 THEN 'fraud' ELSE 'input' END, '', n, n * 10000,
                      n * 10000 + 10000, (ARRAY['level', 'shape', 'mix', 'outlier_rate', 'fraud_wave'])[1 + n / 4 % 5],
                      9, 0, 1, false, false, 0
               FROM generate_series(1, 25000) AS n"""
        )
        connection.execute(
            """INSERT INTO kept (model, space, topic, number, position, time_ms, block, record_id, reason, reference,
                                 exemplar, segments, fields, flagged, stored_ms)
               SELECT 'm' || n % 4, (ARRAY['input', 'fraud'])[1 + n / 4 % 2], 't', 0, n, n * 10000, n, n, 'sample', 1,
                      -1, '{}', '{}', n % 50 = 0, 0
               FROM generate_series(1, 20000) AS n"""
        )
        connection.execute(
            """INSERT INTO partitions (model, topic, number, next_offset, max_time_ms, records, dead, late)
               SELECT 'm' || n, 't', 0, 9, 9, 9, 0, 0 FROM generate_series(0, 199) AS n"""
        )
        for model, kind, severity, channel in (
            ("m7", "drift", "page", "mix"),
            ("m8", "drift", "warn", "level"),
            ("m9", "source", "page", ""),
            ("m10", "encoder_changed", "page", ""),
            ("m10", "lag", "warn", ""),
            ("m199", "drift", "page", "level"),
            ("driftd", "sink", "page", ""),
        ):
            connection.execute(
                """INSERT INTO incidents (id, model, kind, space, segment, severity, status, opened_ms, onset_ms,
                                          updated_ms, revision, reference, title, text, detail)
                   VALUES (%s, %s, %s, 'input', '', %s, 'open', 1, 1, 1, 1, 1, 'a title', 'Next: look', %s)""",
                (f"{kind} of {model}", model, kind, severity, json.dumps({"channel": channel})),
            )
        judged = "stored_ms, model, block, start_ms, end_ms, word, since_ms, records, labels, truths, reasons, low"
        judged += ", metric_name"
        connection.execute(
            f"""INSERT INTO verdicts ({judged})
                SELECT 0, 'm' || n % 4, n, n * 10000, n * 10000 + 10000, 'fresh', 0, 9, 0, 0, '["well"]', 0.9, ''
                FROM generate_series(1, 20000) AS n"""
        )
        for model, word in (
            ("m5", "fresh"),
            ("m6", "degraded"),
            ("m7", "mix changed"),
            ("m8", "watch"),
            ("m9", "fresh"),
            ("m199", "drifted"),
        ):
            connection.execute(
                f"""INSERT INTO verdicts ({judged})
                    VALUES (0, %s, 1, 100000000, 100010000, 'fresh', 1, 9, 0, 0, '[]', 0.9, ''),
                           (0, %s, 2, 100010000, 100020000, %s, 1, 9, 0, 0, '["because", "not seen"]', 0.9, '')""",
                (model, model, word),
            )
        connection.execute("VACUUM ANALYZE")
        yield connection


TIMES = {"from_ms": 100_000_000, "to_ms": 110_000_000, "interval_ms": 10_000}


def sql_of(title: str) -> str:
    (query,) = (panel.targets[0].query for _, panel in PANELS if panel.title == title)
    return query


def test_the_worst_of_200_models_comes_first(large: psycopg.Connection[Any]) -> None:
    overview, drift = all_dashboards()[:2]
    chosen = choices(large, overview, **TIMES)
    assert len(chosen["model"]) == 200
    assert chosen["model"][:5] == ["m10", "m9", "m199", "m7", "m8"]
    rows = large.execute(filled(sql_of("Verdict of each model"), chosen, **TIMES)).fetchall()
    assert len(rows) == 200
    assert [row[:3] for row in rows[:6]] == [
        ("blind", "m9", "a title"),
        ("encoder changed", "m10", "a title"),
        ("degraded", "m6", "because"),
        ("drifted", "m199", "because"),
        ("mix changed", "m7", "because"),
        ("watch", "m8", "because"),
    ]
    assert {row[0] for row in rows[6:-5]} == {"learning"}
    assert [row[:2] for row in rows[-5:]] == [("fresh", f"m{n}") for n in (0, 1, 2, 3, 5)]
    first = large.execute(filled(drift.variables[0].query, {}, **TIMES)).fetchone()
    assert first == ("m10",)
    told = large.execute(filled(sql_of("Open incidents"), chosen, **TIMES)).fetchall()
    assert len(told) == 7, "a sink that takes nothing belongs to no model, and is shown all the same"


def test_the_word_over_time_is_the_last_block_s_unless_something_stood_above_it(
    large: psycopg.Connection[Any],
) -> None:
    chosen = {"model": ["m6", "m9", "m10", "m11"], "space": ["input"]}
    times = {"from_ms": 99_990_000, "to_ms": 100_030_000, "interval_ms": 10_000}
    found: dict[str, list[int | None]] = {}
    for _, model, value in large.execute(filled(sql_of("Verdict over time"), chosen, **times)).fetchall():
        found.setdefault(model, []).append(value)
    fresh, degraded = rank_of("fresh"), rank_of("degraded")
    assert found == {
        "m6": [None, fresh, degraded, degraded, degraded],
        "m9": [rank_of("blind")] * 5,
        "m10": [rank_of("encoder changed")] * 5,
        "m11": [None] * 5,
    }
    reasons = large.execute(filled(sql_of("Why"), chosen, **times)).fetchall()
    assert reasons == [("m6", "because"), ("m6", "not seen"), ("m9", "because"), ("m9", "not seen")]


def scans(plan: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What a plan reads of the large tables: kind of scan, name of the index, what is looked up in it."""
    if (
        plan.get("Relation Name") in ("readings", "block_stats", "kept", "verdicts")
        and plan["Node Type"] != "Bitmap Heap Scan"
    ):
        yield plan["Node Type"], plan.get("Index Name", ""), plan.get("Index Cond", "")
    if plan["Node Type"] == "Bitmap Index Scan":
        yield plan["Node Type"], plan["Index Name"], plan["Index Cond"]
    for part in plan.get("Plans", ()):
        yield from scans(part)


def test_graphs_look_up_their_time_range_in_an_index(large: psycopg.Connection[Any]) -> None:
    chosen = {"model": ["m3"], "space": ["input"], "segment": ["(whole traffic)"]}
    looked_up = 0
    for _, panel in PANELS:
        for target in panel.targets:
            assert isinstance(target, Sql)
            if "$__unixEpochFrom()" not in target.query:
                continue
            row = large.execute("EXPLAIN (FORMAT JSON) " + filled(target.query, chosen, **TIMES)).fetchone()
            assert row is not None
            for kind, index, condition in scans(row[0][0]["Plan"]):
                if not index.startswith("ix_incidents"):
                    # Flagged records are few, and have an index of their own.
                    by_time = re.search(r"\b(start_ms|time_ms) [<>]=", condition) or index == "ix_kept_flagged"
                    assert by_time, f"{panel.title}: {kind} {index} {condition}"
                    looked_up += 1
    assert looked_up > 10


def test_a_choice_with_a_quote_in_it_is_no_sql(large: psycopg.Connection[Any]) -> None:
    for _, panel in PANELS:
        for target in panel.targets:
            assert isinstance(target, Sql)
            chosen = {name: ["it's; DROP TABLE kept --"] for name in ("model", "space", "segment")}
            large.execute(filled(target.query, chosen, **TIMES))
    assert large.execute("SELECT count(*) FROM kept").fetchone() == (20_000,)


@pytest.mark.parametrize("choice", [[], [""]], ids=["all of nothing", "none"])
def test_before_anything_is_known_every_query_runs_and_finds_nothing(
    choice: list[str], large: psycopg.Connection[Any]
) -> None:
    chosen = dict.fromkeys(("model", "space", "segment"), choice)
    for dashboard in all_dashboards():
        for query in (*dashboard.variables, *dashboard.annotations):
            large.execute(filled(query.query, chosen, **TIMES))
    for _, panel in PANELS:
        for target in panel.targets:
            assert isinstance(target, Sql)
            large.execute(filled(target.query, chosen, **TIMES))
    assert large.execute(filled(sql_of("Verdict of each model"), chosen, **TIMES)).fetchall() == []
