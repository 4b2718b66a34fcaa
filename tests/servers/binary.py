"""A server that is one binary and says by HTTP when it is ready: how Prometheus and Alertmanager are started."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.servers.kafka import free_port

START_DEADLINE_S = 60.0  # 0.3 s on a quiet machine; a test machine is not quiet


def missing_binaries(package: str, *wanted: tuple[str, ...]) -> str:
    """ "" where one name of each group is on the path, else one sentence with what is missing and what to type."""
    missing = [names[0] for names in wanted if not any(shutil.which(name) for name in names)]
    return f"{', '.join(missing)} not installed (Debian package {package}); type: make servers" if missing else ""


def found(*names: str) -> str:
    """The path of the first of these binaries that is installed."""
    return next(path for name in names if (path := shutil.which(name)))


class BinaryServer:
    """One process on a free port of 127.0.0.1, with its data and its log in ``directory``.

    Args:
        directory: an empty directory, or one that does not exist yet.
        command: makes the command line for a port.
    """

    def __init__(self, directory: Path, command: Callable[[int], list[str]]) -> None:
        self.directory = directory
        self.port = free_port()
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def start(self) -> None:
        """Start, or start again after `stop` or `kill`; returns once it says that it is ready.

        Raises:
            RuntimeError: it ended or was not ready in time; holds the end of its log.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(self.port),
                cwd=self.directory,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C at the tests must not end it before the fixture does
            )
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._ready():
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with code {self._process.returncode}:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.name} was not ready within {START_DEADLINE_S:g} s:\n{self._log_tail()}")
            time.sleep(0.05)

    @property
    def name(self) -> str:
        return Path(self._command(self.port)[0]).name

    def stop(self) -> None:
        """SIGTERM; SIGKILL where it is still there after 15 s."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(15)

    def get(self, path: str) -> Any:
        """The JSON document at ``path``."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)

    def wait_for(self, condition: Callable[[], Any], what: str, deadline_s: float = 30.0) -> Any:
        """The first true value of ``condition``; fails with ``what`` and the end of the log at the deadline."""
        end = time.monotonic() + deadline_s
        while not (value := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"not within {deadline_s:g} s: {what}\n{self._log_tail()}")
            time.sleep(0.05)
        return value

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError, http.client.HTTPException):
            return False

    def _log_tail(self) -> str:
        return (self.directory / "server.log").read_text(errors="replace")[-3000:]
