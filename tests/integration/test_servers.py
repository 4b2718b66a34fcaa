"""The servers that the suite starts for itself are real, and survive what the tests do to them."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy

from tests.servers.alertmanager import AlertmanagerServer
from tests.servers.kafka import KafkaServer
from tests.servers.postgres import PostgresServer
from tests.servers.prometheus import PrometheusServer
from tests.servers.receiver import Receiver


@pytest.mark.kafka
def test_topics_of_a_test_have_the_partitions_it_asked_for(kafka: KafkaServer, topic) -> None:
    names = [topic(partitions=3), topic()]
    with kafka.admin() as admin:
        found = {entry["name"]: len(entry["partitions"]) for entry in admin.describe_topics(names)}
    assert found == {names[0]: 3, names[1]: 1}


@pytest.mark.kafka
def test_a_killed_broker_comes_back_at_the_same_address_with_its_topics(own_kafka: KafkaServer) -> None:
    name = own_kafka.create_topic("kept")
    address = own_kafka.brokers
    own_kafka.kill()
    own_kafka.start()
    assert own_kafka.brokers == address
    with own_kafka.admin() as admin:
        assert name in admin.list_topics()


@pytest.mark.postgres
def test_each_new_database_is_empty_and_separate(postgres: PostgresServer) -> None:
    engines = [sqlalchemy.create_engine(postgres.new_database()) for _ in range(2)]
    with engines[0].begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE mine (n integer)"))
    assert [sqlalchemy.inspect(engine).get_table_names() for engine in engines] == [["mine"], []]
    for engine in engines:
        engine.dispose()


@pytest.mark.prometheus
def test_a_rule_that_holds_in_prometheus_reaches_the_webhook_of_alertmanager(
    prometheus: Callable[..., PrometheusServer], alertmanager: Callable[..., AlertmanagerServer], tmp_path: Path
) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text("groups: [{name: g, rules: [{alert: SomethingIsUp, expr: 'up == 1'}]}]")
    with Receiver() as receiver:
        passing_on = alertmanager(webhook=receiver.url)
        prometheus(rules=[rules], alertmanager=passing_on.address)
        receiver.wait_for(1, timeout_s=30)
        (alert,) = receiver.requests[0].json["alerts"]
        assert (alert["status"], alert["labels"]["alertname"]) == ("firing", "SomethingIsUp")
        assert [alert["labels"]["job"] for alert in passing_on.alerts()] == ["prometheus"]


@pytest.mark.prometheus
def test_alerts_outlive_a_killed_alertmanager_only_when_they_are_sent_again(
    alertmanager: Callable[..., AlertmanagerServer],
) -> None:
    server = alertmanager()
    body = json.dumps([{"labels": {"alertname": "A"}}]).encode()
    asked = urllib.request.Request(f"{server.url}/api/v2/alerts", body, {"Content-Type": "application/json"})
    for _ in range(2):
        with urllib.request.urlopen(asked, timeout=10) as answer:
            assert answer.status == 200
        assert [alert["labels"] for alert in server.alerts()] == [{"alertname": "A"}]
        server.kill()
        server.start()
        assert server.alerts() == []
