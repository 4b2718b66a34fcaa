"""Rows of a SQL query as records: what they look like, that nothing is written, and what is said when it fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from connectors.query import QuerySettings, QuerySource
from connectors.records import Partition
from detectors.errors import AccessRefused, InvalidSettings, SourceError, SourceUnreachable, UnknownTopic

Make = Callable[..., QuerySource]


@pytest.fixture(scope="module")
def server(postgres: Any) -> str:
    """One PostgreSQL database for all tests of this file."""
    url: str = postgres.new_database()
    return url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with the table predictions: keys 1, 4, 7, ..., times a second apart."""
    if request.param == "postgresql":
        address: str = request.getfixturevalue("server")
        ask(address, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    else:
        address = f"sqlite:///{tmp_path}/service.db"
    ask(address, "CREATE TABLE predictions (id BIGINT PRIMARY KEY, ms BIGINT, word TEXT)")
    rows = ", ".join(f"({1 + 3 * n}, {1_000 + 1_000 * n}, 'w{n}')" for n in range(20))
    ask(address, f"INSERT INTO predictions VALUES {rows}")
    return address


def ask(url: str, statement: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.fixture
def make() -> Iterator[Make]:
    """``make(url, **settings)``; every source is closed at the end."""
    made: list[QuerySource] = []

    def build(url: str | None, query: str = "SELECT * FROM predictions", **settings: Any) -> QuerySource:
        values = {"url": url, "query": query, "key": "id", "name": "predictions", **settings}
        made.append(QuerySettings.model_validate(values).build(client_id="test"))
        return made[-1]

    yield build
    for source in made:
        source.close()


def nothing_stored(partitions: Sequence[Partition]) -> Mapping[Partition, int]:
    return {}


def documents(source: QuerySource) -> list[dict[str, Any]]:
    values = [value for batch in source.read_range(None, None) for value in batch.values]
    return [json.loads(value) for value in values if value is not None]


def test_a_row_is_json_with_its_key_as_the_offset(url: str, make: Make) -> None:
    source = make(url, time="ms")
    assert source.check().endswith("predictions, keys 1 to 58")
    (batch,) = source.read_range(None, None)
    assert batch.partition == Partition("predictions", 0)
    assert batch.offsets.tolist() == [1 + 3 * n for n in range(20)]
    assert batch.timestamps_ms.tolist() == [1_000 + 1_000 * n for n in range(20)]
    assert batch.values[2] == b'{"id":7,"ms":3000,"word":"w2"}'


def test_a_run_ends_at_the_keys_that_were_there_when_it_began(url: str, make: Make) -> None:
    source = make(url, page=6)
    source.open(nothing_stored)
    offsets = [offset for batch in source.poll(100, 0.1) for offset in batch.offsets.tolist()]
    assert len(offsets) == 6, "a page at a time"
    ask(url, "INSERT INTO predictions VALUES (100, 1, 'late')")
    while not source.finished:
        offsets += [offset for batch in source.poll(100, 0.1) for offset in batch.offsets.tolist()]
    assert offsets == [1 + 3 * n for n in range(20)]
    assert source.lag() == {Partition("predictions", 0): 0}


def test_the_extents_of_a_time_are_keys(url: str, make: Make) -> None:
    source = make(url, time="ms")
    (span,) = source.extents(3_500, 8_000).values()
    assert (span.first, span.after) == (10, 22)
    assert source.extents(90_000, None) == {}
    assert [batch.timestamps_ms.tolist() for batch in source.read_range(3_500, 6_000)] == [[4_000, 5_000]]
    (whole,) = make(url).extents(3_500, 8_000).values()
    assert (whole.first, whole.after) == (1, 59), "without a column of times the caller narrows it"


def test_rows_at_their_keys_are_found(url: str, make: Make) -> None:
    partition = Partition("predictions", 0)
    wanted = [(partition, key) for key in (58, 5, 4)] + [(Partition("other", 0), 1)]
    assert [batch.offsets.tolist() for batch in make(url).read_at(wanted)] == [[4, 58]]


@pytest.mark.postgres
def test_every_type_of_postgresql_becomes_json(server: str, make: Make) -> None:
    query = """SELECT 1 AS id, timestamptz '2026-01-02 03:04:05.678+02' AS zoned,
        timestamp '2026-01-02 03:04:05' AS plain, date '2026-01-02' AS day,
        12345678901234567890.5::numeric AS number, 'NaN'::numeric AS no_number,
        '\\x00ff'::bytea AS bytes, ARRAY[1.5, 2.5]::float8[] AS vector, '{"a": [1, null]}'::jsonb AS document,
        NULL::text AS nothing, true AS yes, 'NaN'::float8 AS nan, '192.168.0.1'::inet AS address,
        '6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid AS name, '10:20:30'::time AS clock, 'a:b %s'::text AS words"""
    source = make(server, query, time="zoned")
    (batch,) = source.read_range(None, None)
    assert batch.timestamps_ms.tolist() == [1767315845678]
    value = batch.values[0]
    assert value is not None
    assert b'"number":12345678901234567890.5' in value
    assert json.loads(value) == {
        "id": 1,
        "zoned": "2026-01-02T01:04:05.678000Z",
        "plain": "2026-01-02T03:04:05Z",
        "day": "2026-01-02",
        "number": 12345678901234567890.5,
        "no_number": None,
        "bytes": "AP8=",
        "vector": [1.5, 2.5],
        "document": {"a": [1, None]},
        "nothing": None,
        "yes": True,
        "nan": None,
        "address": "192.168.0.1",
        "name": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "clock": "10:20:30",
        "words": "a:b %s",
    }


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["timestamptz", "timestamp"])
def test_times_with_and_without_a_zone_are_compared_as_utc(server: str, make: Make, kind: str) -> None:
    query = "SELECT n AS id, (timestamptz '2026-01-01 00:00Z' + n * interval '1 s') AT TIME ZONE 'UTC' AS ts"
    query += " FROM generate_series(0, 99) n"
    if kind == "timestamptz":
        query = query.replace(" AT TIME ZONE 'UTC'", "")
    start_ms = 1767225600000 + 10_000
    source = make(server, query, time="ts")
    (span,) = source.extents(start_ms, start_ms + 5_000).values()
    assert (span.first, span.after) == (10, 15)
    (batch,) = source.read_range(start_ms, start_ms + 1_000)
    assert batch.timestamps_ms.tolist() == [start_ms]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT 1 AS id, 'a' AS word UNION ALL SELECT 1, 'b'", "not unique: 1 comes more than once"),
        ("SELECT NULL AS id, 'a' AS word UNION ALL SELECT 1, 'b'", "have no id"),
        ("SELECT 'one' AS id", "holds str values"),
        ("SELECT -1 AS id", "could be an offset"),
        ("SELECT 1.5 AS id", "could be an offset"),
    ],
)
def test_a_key_that_is_none_is_refused(url: str, make: Make, query: str, message: str) -> None:
    source = make(url, query)
    with pytest.raises(SourceError, match=message):
        list(source.read_range(None, None))


def test_a_key_that_comes_twice_is_seen_at_the_edge_of_a_page_too(url: str, make: Make) -> None:
    source = make(url, "SELECT id FROM predictions UNION ALL SELECT 4", page=2)
    with pytest.raises(SourceError, match="not unique: 4"):
        list(source.read_range(None, None))


def test_a_wrong_column_is_said_with_the_nearest_name(url: str, make: Make) -> None:
    with pytest.raises(InvalidSettings, match="no column idd; it has id, ms, word") as caught:
        make(url, key="idd").check()
    assert caught.value.hint == "Did you mean id?"
    with pytest.raises(SourceError, match="no column of times"):
        make(url, time="word").extents(0, 1)


def test_a_wrong_table_and_a_wrong_query_are_said(url: str, make: Make) -> None:
    with pytest.raises(UnknownTopic, match="predictionz"):
        make(url, "SELECT * FROM predictionz").check()
    with pytest.raises(SourceError, match="cannot be answered") as caught:
        make(url, "SELEC * FROM predictions").check()
    assert not caught.value.retryable


def test_nothing_can_be_written(url: str, make: Make) -> None:
    for query in ("DELETE FROM predictions RETURNING id", "SELECT 1 AS id) AS r; DELETE FROM predictions --"):
        try:
            source = make(url, query)
        except ValidationError as error:
            assert "several statements" in str(error)
            continue
        with pytest.raises(SourceError):
            source.check()
    assert len(documents(make(url))) == 20


@pytest.mark.postgres
def test_a_function_that_writes_is_refused_by_the_server(server: str, make: Make) -> None:
    ask(server, "CREATE SEQUENCE IF NOT EXISTS numbers")
    with pytest.raises(SourceError, match="The query writes"):
        list(make(server, "SELECT nextval('numbers') AS id").read_range(None, None))


@pytest.mark.postgres
def test_a_query_that_takes_too_long_is_given_up(server: str, make: Make) -> None:
    source = make(server, "SELECT 1 AS id FROM pg_sleep(20)", timeout_s=0.2)
    with pytest.raises(SourceError, match=r"took more than 0\.2 s") as caught:
        source.check()
    assert "index on id" in str(caught.value.hint)


@pytest.mark.postgres
def test_a_wrong_password_is_refused_and_never_shown(server: str, make: Make) -> None:
    wrong = sa.make_url(server).set(username="nobody-like-that", password="hunter2")
    source = make(wrong.render_as_string(hide_password=False))
    with pytest.raises(SourceError) as caught:
        source.check()
    assert isinstance(caught.value, AccessRefused)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(source._settings)


def test_a_server_that_is_not_there_is_tried_again(make: Make) -> None:
    with pytest.raises(SourceUnreachable) as caught:
        make("postgresql://user:hunter2@127.0.0.1:1/nothing").check()
    assert caught.value.retryable
    assert "hunter2" not in str(caught.value)


@pytest.mark.postgres
def test_a_lost_connection_is_made_anew_and_reading_goes_on(server: str, make: Make) -> None:
    source = make(server, "SELECT n AS id FROM generate_series(1, 50) n", page=10)
    source.open(nothing_stored)
    offsets: list[int] = []
    while not source.finished:
        offsets += [offset for batch in source.poll(10, 0.1) for offset in batch.offsets.tolist()]
        others = "application_name = 'test' AND pid <> pg_backend_pid()"
        ask(server, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
    assert offsets == list(range(1, 51))


def test_the_address_may_stand_in_a_file(url: str, make: Make, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(url + "\n")
    source = make(None, url_file=tmp_path / "url")
    assert len(documents(source)) == 20
    with pytest.raises(InvalidSettings, match="cannot be read"):
        make(None, url_file=tmp_path / "other").check()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://host/db", "kind mysql"),
        ("nonsense", "no address of a database"),
        ("sqlite:///no/such/file.db", "no SQLite file"),
    ],
)
def test_an_address_that_cannot_be_used_is_said(make: Make, url: str, message: str) -> None:
    with pytest.raises((InvalidSettings, SourceError), match=message):
        make(url).check()


def test_either_an_address_or_its_file_is_given() -> None:
    for settings in ({}, {"url": "sqlite:///a.db", "url_file": "b"}):
        with pytest.raises(ValidationError, match="either url or url_file"):
            QuerySettings.model_validate({"query": "SELECT 1", "key": "id", "name": "p", **settings})
