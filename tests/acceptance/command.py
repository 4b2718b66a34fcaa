"""The real command, as a user starts it, for the acceptance tests."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 90.0


def driftd(*words: str, cwd: Path, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `driftd` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "monitor", *words],
        cwd=cwd,
        env={**_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of ``condition``; fails with ``what`` at the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {deadline_s:g} s: {what}")


class Running:
    """A `driftd run` in the background, with its settings and database in ``folder``."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        settings = {
            "database": f"sqlite:///{folder / 'driftd.db'}",
            "references": str(folder / "references"),
            "http": {"bind": "127.0.0.1:0"},
            **settings,
        }
        (folder / "driftd.yaml").write_text(yaml.safe_dump(settings))
        self._set_up(folder)

    @classmethod
    def with_settings_of(cls, folder: Path) -> Running:
        """A `driftd run` with the driftd.yaml that is in the folder."""
        running = cls.__new__(cls)
        running._set_up(folder)
        return running

    def _set_up(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "driftd.db"
        self._log = folder / "driftd.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        """Start it, with ``more`` words on the command line."""
        self._began_at = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "monitor", "run", "-s", "driftd.yaml", *more],
                cwd=self.folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def log(self) -> str:
        """What this start has said so far."""
        return self._log.read_bytes()[self._began_at :].decode(errors="replace")

    def terminate(self) -> tuple[int, float]:
        """SIGTERM; the exit code, and the seconds it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=30)
        return code, time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=30)

    def url(self) -> str:
        """The address that the log names; port 0 took a free one."""

        def listening() -> str | None:
            found = [word for word in self.log().split() if word.startswith("url=http://")]
            assert self.process is None or self.process.poll() is None, self.log()
            return found[0].removeprefix("url=") if found else None

        return str(wait_until(listening, f"the address in the log:\n{self.log()}"))

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page."""
        try:
            with urllib.request.urlopen(self.url() + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def ready(self) -> dict[str, Any]:
        """The body of /readyz."""
        body: dict[str, Any] = json.loads(self.get("/readyz")[1])
        return body

    def one(self, query: str) -> Any:
        """The first value of the first row; 0 while there is no such table yet, which is so until the first start."""
        if not self.database.exists():
            return 0
        connection = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=10)
        try:
            row = connection.execute(query).fetchone()
        except sqlite3.OperationalError:
            known = connection.execute("select count(*) from sqlite_master where name = 'partitions'").fetchone()[0]
            if known:
                raise
            return 0
        finally:
            connection.close()
        return row[0] if row else 0

    def wait_for_records(self, wanted: int, *, at_least: bool = False) -> None:
        """Wait until so many records are counted, and fail at once when the daemon ends before."""

        def there() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"driftd ended:\n{self.log()}"
            counted = self.counted()
            return counted >= wanted if at_least else counted == wanted

        try:
            wait_until(there, f"{wanted} records counted")
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.counted()} are. The log:\n{self.log()}") from None

    def counted(self) -> int:
        """Records counted in the database; none before its tables are there."""
        if not self.one("select count(*) from sqlite_master where name = 'partitions'"):
            return 0
        return int(self.one("select coalesce(sum(records), 0) from partitions"))
