"""The supervisor of `driftd run --workers N`, with real processes that act as its workers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.kafka import KafkaSettings, KafkaSource
from monitor.app import build_source
from monitor.settings import ModelSettings

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = """
http: {bind: "127.0.0.1:0"}
models:
  orders:
    source: {kind: kafka, brokers: "127.0.0.1:1", topic: orders}
    spaces: {input: {embedder: {kind: vector, field: /v, encoding: list}}}
"""
PROGRAM = """
import sys
from pathlib import Path
import monitor.supervisor as supervisor
from monitor.settings import load_settings

supervisor.STOP_WITHIN_S = float(sys.argv[3])
path = Path("driftd.yaml")
command = (sys.executable, sys.argv[1])
sys.exit(supervisor.Supervisor(load_settings(path), path, workers=int(sys.argv[2]), command=command).run())
"""


class Supervised:
    """A supervisor in a process of its own, over workers that act as they are told."""

    def __init__(self, folder: Path, acts: list[str], *, stop_within_s: float) -> None:
        (folder / "driftd.yaml").write_text(SETTINGS)
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    PROGRAM,
                    str(ROOT / "tests/acting_worker.py"),
                    str(len(acts)),
                    f"{stop_within_s}",
                ],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "ACTS": json.dumps(acts)},
                stdout=log,
                stderr=log,
            )

    def log(self) -> str:
        return self._log.read_text()

    def pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"worker started worker=\d+ pid=(\d+)", self.log())]

    def get(self, path: str) -> tuple[int, str]:
        url = self.until(lambda: re.findall(r"url=(http://\S+)", self.log()), "it listens")[0]
        try:
            with urllib.request.urlopen(url + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def checks(self) -> dict[str, str]:
        """What /readyz says, by name; "" where it is well."""
        checks = json.loads(self.get("/readyz")[1])["checks"]
        return {check["name"]: "" if check["ok"] else check["detail"] for check in checks}

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.02)
        raise AssertionError(f"{what} never came:\n{self.log()}")

    def all_serve(self) -> None:
        self.until(lambda: self.get("/readyz")[0] == 200, "every worker is ready")


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    made: list[Supervised] = []

    def make(*acts: str, stop_within_s: float = 8.0) -> Supervised:
        made.append(Supervised(tmp_path, list(acts), stop_within_s=stop_within_s))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(timeout=30)


@pytest.mark.parametrize("code", [1, 2])
def test_a_worker_that_cannot_run_ends_all_with_its_code(supervised: Callable[..., Supervised], code: int) -> None:
    one = supervised(f"{code}", "serve")
    assert one.process.wait(timeout=60) == code, one.log()
    assert "worker cannot run, so all stop" in one.log() and len(one.pids()) == 2
    assert not any(alive(pid) for pid in one.pids())


def test_a_worker_that_fails_after_it_has_read_ends_no_other(supervised: Callable[..., Supervised]) -> None:
    one = supervised("serve", "fails")
    one.all_serve()
    os.kill(one.pids()[1], signal.SIGTERM)
    one.until(lambda: "again_in=1" in one.log(), "the pause before it is started anew")
    assert one.process.poll() is None and "all stop" not in one.log()


def test_all_workers_that_end_with_0_end_the_supervisor(supervised: Callable[..., Supervised]) -> None:
    one = supervised("0", "0")
    assert one.process.wait(timeout=60) == 0, one.log()
    assert len(one.pids()) == 2


def test_a_worker_that_dies_is_started_after_a_pause_that_grows(supervised: Callable[..., Supervised]) -> None:
    one = supervised("serve", "70")
    one.until(lambda: "again_in=2" in one.log(), "the second pause")
    assert re.findall(r"how=\"ended with code 70\" lived_s=\d+ again_in=(\S+)", one.log()) == ["1", "2"]
    checks = one.until(lambda: "worker 0: model orders" in (found := one.checks()) and found, "worker 0 answers")
    assert checks["worker 0: model orders"] == "" and "ended with code 70" in checks["worker 1"]
    assert (one.get("/readyz")[0], one.get("/livez")[0]) == (503, 200)
    metrics = one.get("/metrics")[1]
    assert 'driftd_worker_restarts_total{worker="1"} 1.0' in metrics
    assert 'driftd_worker_up{worker="0"} 1.0' in metrics and 'driftd_worker_up{worker="1"} 0.0' in metrics
    one.process.send_signal(signal.SIGINT)
    assert one.process.wait(timeout=30) == 0, one.log()


def test_workers_are_shown_together_and_one_that_is_frozen_delays_no_other(
    supervised: Callable[..., Supervised],
) -> None:
    one = supervised("serve", "serve")
    one.all_serve()
    metrics = one.get("/metrics")[1]
    assert 'driftd_records_total{worker="0",model="orders"} 100.0' in metrics
    assert 'driftd_records_total{worker="1",model="orders"} 101.0' in metrics
    assert "\ndriftd_expected_false_pages_per_day 0.5\n" in metrics
    frozen = one.pids()[1]
    os.kill(frozen, signal.SIGSTOP)
    detail = one.until(lambda: one.checks().get("worker 1"), "the frozen worker is shown as down")
    assert "has not answered for" in detail
    began = time.monotonic()
    metrics = one.get("/metrics")[1]
    assert time.monotonic() - began < 1.0
    assert 'driftd_worker_up{worker="1"} 0.0' in metrics and 'worker="0",model="orders"} 100.0' in metrics
    # A frozen worker goes with its supervisor.
    one.process.kill()
    one.until(lambda: not any(alive(pid) for pid in one.pids()), "the end of all workers")


def test_a_worker_that_hangs_in_foreign_code_goes_with_its_supervisor(supervised: Callable[..., Supervised]) -> None:
    one = supervised("stuck", "stuck")
    silent = "has not answered for"
    one.until(lambda: all(silent in detail for detail in one.checks().values()), "both have told their ports and hang")
    one.process.kill()
    one.until(lambda: not any(alive(pid) for pid in one.pids()), "the end of all workers")


def test_a_worker_that_does_not_stop_is_killed(supervised: Callable[..., Supervised]) -> None:
    one = supervised("serve", "deaf", stop_within_s=0.3)
    one.all_serve()
    one.process.terminate()
    assert one.process.wait(timeout=30) == 0, one.log()
    assert "worker does not stop, and is killed worker=1" in one.log()
    assert not any(alive(pid) for pid in one.pids())


def test_a_second_signal_kills_at_once(supervised: Callable[..., Supervised]) -> None:
    one = supervised("deaf", "deaf")
    one.all_serve()
    one.process.terminate()
    one.until(lambda: "stopping" in one.log(), "the first signal is heard")
    one.process.terminate()
    assert one.process.wait(timeout=5) == 128 + signal.SIGTERM, one.log()
    one.until(lambda: not any(alive(pid) for pid in one.pids()), "the end of all workers")


@pytest.mark.parametrize(("instance", "second"), [("edge", "edge-1"), ("none", None)])
def test_workers_of_one_machine_are_different_members(instance: str, second: str | None) -> None:
    chosen = KafkaSettings(brokers="127.0.0.1:1", topic="orders", instance=instance)
    spaces = {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}}
    model = ModelSettings.model_validate({"source": chosen, "spaces": spaces})
    sources = [build_source("orders", model, ordinal=ordinal) for ordinal in (0, 1)]
    assert all(isinstance(source, KafkaSource) for source in sources)
    assert [source.instance for source in sources] == [None if instance == "none" else instance, second]
