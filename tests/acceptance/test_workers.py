"""`driftd run --workers N` on a real broker: who is killed, and the counts that must come out."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.command import Running, driftd, wait_until
from tests.acceptance.test_run_on_kafka import produce, records
from tests.servers.kafka import KafkaServer

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]
BASELINE = 2_000


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[[str, str], Running]]:
    """Makes a `driftd run`; whatever the test leaves running is ended."""
    made: list[Running] = []

    def make(brokers: str, topic: str) -> Running:
        source = {"kind": "kafka", "brokers": brokers, "topic": topic, "start": "earliest", "session_timeout_s": 6}
        model = {
            "source": source,
            "record": {"id": "/id", "time": {"path": "/ts", "unit": "ms"}},
            "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
            "reference": {"collect": BASELINE},
            "drift": {"idle": "2s", "lateness": "5s"},
        }
        made.append(Running(tmp_path, {"models": {"orders": model}}))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def pids(daemon: Running) -> dict[int, int]:
    """The process of each worker that was started last, by ordinal."""
    return {int(n): int(pid) for n, pid in re.findall(r"worker started worker=(\d+) pid=(\d+)", daemon.log())}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Whoever collects the orphans of this machine may take its time.
    return ") Z " not in Path(f"/proc/{pid}/stat").read_text()


def series(daemon: Running, name: str) -> dict[str, float]:
    """The values of one metric of this model, by worker."""
    found = re.findall(rf'^{name}{{worker="(\w+)"[^}}]*}} (\S+)$', daemon.get("/metrics")[1], re.MULTILINE)
    return {worker: float(value) for worker, value in found}


def test_three_workers_without_a_reference_count_once_though_one_is_killed(
    kafka: KafkaServer, topic: Callable[..., str], running: Callable[[str, str], Running]
) -> None:
    name = topic(partitions=4)
    produce(kafka.brokers, name, records(0, 2_400), partitions=4)  # no worker alone has enough for a baseline
    daemon = running(kafka.brokers, name)
    daemon.start("--workers", "3")
    daemon.wait_for_records(2_400)
    produce(kafka.brokers, name, records(2_400, 7_600), partitions=4)
    daemon.wait_for_records(10_000)
    wait_until(lambda: daemon.get("/readyz")[0] == 200, "all workers are ready")
    assert set(series(daemon, "driftd_records_total")) == {"0", "1", "2"}
    assert series(daemon, "driftd_worker_up") == {"0": 1.0, "1": 1.0, "2": 1.0}
    checks = {check["name"] for check in daemon.ready()["checks"]}
    assert {"worker 0: model orders", "worker 1: model orders", "worker 2: model orders"} <= checks
    assert "orders (worker 2)" in daemon.get("/")[1]
    assert daemon.get("/livez")[0] == 200

    victim = pids(daemon)[1]
    os.kill(victim, signal.SIGKILL)
    wait_until(
        lambda: [check for check in daemon.ready()["checks"] if check["name"] == "worker 1" and not check["ok"]],
        "/readyz says that one is down",
    )
    assert (daemon.get("/readyz")[0], daemon.get("/livez")[0]) == (503, 200)
    produce(kafka.brokers, name, records(10_000, 4_000), partitions=4)
    daemon.wait_for_records(14_000)
    wait_until(lambda: daemon.get("/readyz")[0] == 200, "the killed worker is back")
    assert pids(daemon)[1] != victim
    assert series(daemon, "driftd_worker_restarts_total") == {"0": 0.0, "1": 1.0, "2": 0.0}

    for pid in pids(daemon).values():  # as systemd does, which tells every process of a service
        os.kill(pid, signal.SIGTERM)
    code, took = daemon.terminate()
    assert (code, took < 10.0) == (0, True), daemon.log()
    assert not [pid for pid in pids(daemon).values() if alive(pid)]
    assert daemon.counted() == 14_000
    assert daemon.one("select sum(next_offset) from partitions") == 14_000
    assert daemon.one("select count(*) from reference_versions") == 1


def test_workers_go_with_a_supervisor_that_is_killed_and_the_next_ones_count_on(
    kafka: KafkaServer, topic: Callable[..., str], running: Callable[[str, str], Running]
) -> None:
    name = topic(partitions=2)
    produce(kafka.brokers, name, records(0, 12_000), partitions=2)
    daemon = running(kafka.brokers, name)
    built = driftd("reference", "build", "--from", "2020-01-01", "--to", "2100-01-01", cwd=daemon.folder)
    assert built.returncode == 0, built.stderr
    daemon.start("--workers", "3")
    daemon.wait_for_records(1, at_least=True)
    workers = pids(daemon)
    assert len(workers) == 3
    daemon.kill()
    wait_until(lambda: not [pid for pid in workers.values() if alive(pid)], "no worker lives on", 5.0)

    produce(kafka.brokers, name, records(12_000, 3_000), partitions=2)
    daemon.start("--workers", "3")
    daemon.wait_for_records(15_000)
    idle = "no partition is left for this worker"
    wait_until(lambda: idle in daemon.get("/readyz")[1], "one of three workers has none of two partitions")
    wait_until(lambda: daemon.get("/readyz")[0] == 200, "all are ready, also that one")
    assert daemon.terminate()[0] == 0
    assert daemon.counted() == 15_000
    assert daemon.one("select sum(next_offset) from partitions") == 15_000
    assert daemon.one("select count(*) from reference_versions") == 1


def test_files_are_read_by_one_process(tmp_path: Path) -> None:
    (tmp_path / "driftd.yaml").write_text(
        "models:\n"
        "  orders:\n"
        "    source: {kind: files, path: records.jsonl}\n"
        "    spaces: {input: {embedder: {kind: vector, field: /v, encoding: list}}}\n"
    )
    done = driftd("run", "--workers", "3", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "reads files or a query" in done.stderr and "Leave out --workers" in done.stderr
