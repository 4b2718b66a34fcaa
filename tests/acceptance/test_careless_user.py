"""What people do to a daemon: wrong files, locked and full databases, bad records, two signals."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.acceptance.command import ROOT, Running, driftd, wait_until

START_MS = 1_772_438_400_000
BASELINE = 2_000


def write_stream(path: Path, count: int, *, first: int = 0) -> None:
    """JSON lines with 8-dimensional vectors, 10 ms apart; appended."""
    vectors = np.random.default_rng(first).normal(size=(count, 8)).round(4).tolist()
    with path.open("a") as file:
        for row, vector in enumerate(vectors, first):
            file.write(json.dumps({"id": f"r{row}", "ts": START_MS + 10 * row, "v": vector}) + "\n")


def model(path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "source": {"kind": "files", "path": str(path), "follow": True},
        "record": {"id": "/id", "time": "/ts"},
        "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
        "reference": {"collect": BASELINE},
        "drift": {"idle": "1s", "lateness": "5s"},
        **changes,
    }


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Makes a `driftd run` over a file that grows; whatever the test leaves running is ended."""
    made: list[Running] = []

    def make(folder: Path = tmp_path, **changes: Any) -> Running:
        top = changes.pop("top", {})
        made.append(Running(folder, {"models": {"orders": model(tmp_path / "stream.jsonl", **changes)}, **top}))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def test_no_settings_file_says_what_to_type(tmp_path: Path) -> None:
    done = driftd("run", cwd=tmp_path)
    assert done.returncode == 2
    assert "driftd init" in done.stderr
    assert "Traceback" not in done.stderr


def test_init_makes_a_file_that_check_can_read(tmp_path: Path) -> None:
    assert driftd("init", cwd=tmp_path).returncode == 0
    again = driftd("init", cwd=tmp_path)
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    done = driftd("check", cwd=tmp_path, DRIFTD_MODELS__MY_MODEL__SOURCE__BROKERS=f"127.0.0.1:{free}")
    assert done.returncode == 1
    (failed,) = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert f"127.0.0.1:{free}" in failed
    assert "ok     database" in done.stdout


@pytest.mark.parametrize(
    "words", [["nonsense"], ["score"], ["reference", "show", "nowhere"], ["run", "-s", "/nowhere/x.yaml"]]
)
def test_wrong_words_end_without_a_traceback(words: list[str], tmp_path: Path) -> None:
    done = driftd(*words, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_a_taken_port_is_named(tmp_path: Path, running: Callable[..., Running]) -> None:
    write_stream(tmp_path / "stream.jsonl", 10)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        running(top={"http": {"bind": f"127.0.0.1:{port}"}})
        done = driftd("run", cwd=tmp_path)
    assert done.returncode == 1
    assert "http.bind" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_signal_leaves_at_once_and_costs_nothing(tmp_path: Path, running: Callable[..., Running]) -> None:
    write_stream(tmp_path / "stream.jsonl", 5_000)
    daemon = running()
    daemon.start()
    daemon.wait_for_records(5_000)
    write_stream(tmp_path / "stream.jsonl", 5_000, first=5_000)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGINT)
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(timeout=10) in (0, 130)
    daemon.start()
    daemon.wait_for_records(10_000)


def test_a_locked_database_is_waited_for(tmp_path: Path, running: Callable[..., Running]) -> None:
    write_stream(tmp_path / "stream.jsonl", 4_000)
    daemon = running()
    daemon.start()
    daemon.wait_for_records(4_000)
    holder = sqlite3.connect(daemon.database, isolation_level=None, timeout=30)
    holder.execute("begin immediate")
    write_stream(tmp_path / "stream.jsonl", 2_000, first=4_000)
    wait_until(lambda: "lock" in json.dumps(daemon.ready()), "/readyz says that the database is locked")
    assert daemon.get("/readyz")[0] == 503
    holder.execute("rollback")
    holder.close()
    daemon.wait_for_records(6_000)
    wait_until(lambda: daemon.get("/readyz")[0] == 200, "ready again")


def fill_the_disk(filler: Path) -> None:
    """Write until no room is left: the daemon writes at the same time, so free space cannot be asked for first."""
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError) as full:
        while True:
            file.write(bytes(4096))
    assert full.value.errno == errno.ENOSPC


def test_a_full_disk_is_waited_for(tmp_path: Path, running: Callable[..., Running]) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], capture_output=True, text=True, check=False
    )
    if mount.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    try:
        write_stream(tmp_path / "stream.jsonl", 4_000)
        daemon = running(top={"database": f"sqlite:///{small / 'driftd.db'}"})
        daemon.database = small / "driftd.db"
        daemon.start()
        daemon.wait_for_records(4_000)
        filler = small / "filler"
        fill_the_disk(filler)
        write_stream(tmp_path / "stream.jsonl", 4_000, first=4_000)
        wait_until(lambda: daemon.get("/readyz")[0] == 503, "not ready while the disk is full")
        filler.unlink()
        daemon.wait_for_records(8_000)
        daemon.terminate()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


def test_a_wave_of_bad_records_stops_reading(tmp_path: Path, running: Callable[..., Running]) -> None:
    stream = tmp_path / "stream.jsonl"
    write_stream(stream, 3_000)
    daemon = running()
    daemon.start()
    daemon.wait_for_records(3_000)
    with stream.open("a") as file:
        file.writelines("no json\n" for _ in range(20_000))
    wait_until(lambda: "reading stopped" in daemon.log(), "the log says that reading stopped")
    assert "cannot be used" in daemon.log()
    assert "bad_json" in daemon.log()
    status, ready = daemon.get("/readyz")
    assert (status, "driftd deadletters list" in ready) == (503, True)
    assert daemon.terminate()[0] == 0
    assert daemon.one("select sum(dead) from partitions") < 10_000
    stuck = driftd("doctor", cwd=tmp_path)
    assert stuck.returncode == 1
    assert "bad_json" in stuck.stdout


def test_records_come_through_a_pipe(tmp_path: Path, running: Callable[..., Running]) -> None:
    write_stream(tmp_path / "stream.jsonl", 5_000)
    daemon = running(source={"kind": "files", "path": "-"})
    with (tmp_path / "stream.jsonl").open("rb") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "monitor", "run"],
            cwd=tmp_path,
            stdin=stream,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    assert done.returncode == 0, done.stderr
    assert daemon.counted() == 5_000
    assert daemon.one("select count(*) from readings") > 0


def test_a_changed_embedder_is_refused_with_the_cure(tmp_path: Path, running: Callable[..., Running]) -> None:
    write_stream(tmp_path / "stream.jsonl", 3_000)
    daemon = running()
    daemon.start()
    daemon.wait_for_records(3_000)
    daemon.terminate()
    running(spaces={"input": {"embedder": {"kind": "tabular", "numbers": ["/ts"]}}})
    done = driftd("run", cwd=tmp_path)
    assert done.returncode == 1
    assert "driftd reference build" in done.stderr
    assert "Traceback" not in done.stderr
