"""The rules where they live: a real Prometheus scrapes a real `driftd run`, and tells a real Alertmanager."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from dashboards.rules import FOLDER, PROMETHEUS_FILE, RULES
from tests.acceptance.command import Running, wait_until
from tests.servers.alertmanager import AlertmanagerServer
from tests.servers.kafka import KafkaServer, free_port
from tests.servers.prometheus import PrometheusServer, promtool

pytestmark = [pytest.mark.kafka, pytest.mark.prometheus]
BASELINE = 2_000
SECRET = "swordfish-0451"


def impatient_rules(folder: Path) -> Path:
    """The committed rules, evaluated twice a second, without the time that an alert must hold."""
    rules = yaml.safe_load((FOLDER / PROMETHEUS_FILE).read_text())
    for group in rules["groups"]:
        group["interval"] = "500ms"
        for rule in group["rules"]:
            rule.pop("for", None)
    path = folder / "rules.yml"
    path.write_text(yaml.safe_dump(rules))
    return path


def produce(brokers: str, topic: str) -> None:
    from kafka import KafkaProducer

    vectors = np.random.default_rng(5).normal(size=(BASELINE + 1_000, 8)).round(4).tolist()
    with KafkaProducer(bootstrap_servers=brokers, linger_ms=5) as producer:
        for index, vector in enumerate(vectors):
            record = {"id": f"customer-{index}", "ts": 1_772_438_400_000 + 10 * index, "v": vector}
            producer.send(topic, json.dumps(record).encode())
        producer.flush(timeout=60)


def test_a_broker_that_is_gone_reaches_alertmanager_as_a_blind_monitor(
    own_kafka: KafkaServer,
    prometheus: Callable[..., PrometheusServer],
    alertmanager: Callable[..., AlertmanagerServer],
    tmp_path: Path,
) -> None:
    port = free_port()
    told = alertmanager()
    server = prometheus(
        targets={"driftd": [f"127.0.0.1:{port}"]}, rules=[impatient_rules(tmp_path)], alertmanager=told.address
    )
    topic = own_kafka.create_topic("orders")
    produce(own_kafka.brokers, topic)
    model = {
        "source": {"kind": "kafka", "brokers": own_kafka.brokers, "topic": topic, "start": "earliest"},
        "record": {"id": "/id", "time": {"path": "/ts", "unit": "ms"}},
        "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
        "reference": {"collect": BASELINE},
        "drift": {"idle": "1s", "wait": "2s", "lateness": "1s"},
    }
    pager = {"kind": "webhook", "url": f"http://127.0.0.1:1/{SECRET}", "secret": SECRET}
    daemon = Running(
        tmp_path,
        {"models": {"orders": model}, "sinks": {"pager": pager}, "http": {"bind": f"127.0.0.1:{port}"}},
    )
    daemon.start()
    try:
        daemon.wait_for_records(BASELINE + 1_000)
        server.wait_for_series('driftd_surprise_records_total{model="orders"} and on (model) driftd_drift_statistic')
        server.wait_for(lambda: not server.alerts(), "all is well")

        own_kafka.kill()
        (alert,) = server.wait_for(
            lambda: [alert for alert in told.alerts() if alert["labels"].get("reason") == "source"],
            "the alert at Alertmanager",
        )
        assert alert["labels"] == {
            "alertname": "MonitorBlind",
            "job": "driftd",
            "model": "orders",
            "reason": "source",
            "severity": "critical",
            "about": "driftd",
        }
        assert alert["annotations"]["summary"] == "orders: is not watched (source)"
        assert alert["annotations"]["runbook_url"] == "docs/runbooks.md#monitorblind"

        rules = [rule for group in server.rule_groups() for rule in group["rules"]]
        assert {rule["name"]: rule["health"] for rule in rules} == {rule.name: "ok" for rule in RULES}
        assert not [rule.get("lastError") for rule in rules if rule.get("lastError")]

        page = daemon.get("/metrics")[1]
    finally:
        daemon.terminate()

    checked = promtool("check", "metrics", stdin=page.encode())
    complaints = [line for line in checked.stdout.splitlines() + checked.stderr.splitlines() if "driftd_" in line]
    assert complaints == []
    assert SECRET not in page
    assert "customer-" not in page, "no series is about one record"
    assert wait_until(lambda: daemon.process is not None and daemon.process.poll() == 0, "a clean end")
