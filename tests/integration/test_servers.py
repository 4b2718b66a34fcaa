"""The servers that the suite starts for itself are real, and survive what the tests do to them."""

from __future__ import annotations

import pytest
import sqlalchemy

from tests.servers.kafka import KafkaServer
from tests.servers.postgres import PostgresServer


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
