"""Stores on SQLite and on PostgreSQL, for what both promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from connectors.database.store import Store
from tests.contract.clock import Clock
from tests.servers.postgres import PostgresServer


@pytest.fixture(scope="module")
def server_database(postgres: PostgresServer) -> str:
    """One PostgreSQL database for all tests of a file: a database each would cost 8 MB of disk and half a second."""
    return postgres.new_database()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/driftd.db"
    address: str = request.getfixturevalue("server_database")
    engine = sa.create_engine(address)
    with engine.begin() as connection:
        connection.exec_driver_sql("SET lock_timeout = 5000; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    engine.dispose()
    return address


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def new_store(url: str, clock: Clock) -> Iterator[Callable[[], Store]]:
    """More stores on the same database, as other processes would have."""
    stores: list[Store] = []

    def make() -> Store:
        stores.append(Store.open(url, busy_timeout_s=5.0, now_ms=clock))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(new_store: Callable[[], Store]) -> Store:
    made = new_store()
    made.migrate()
    return made
