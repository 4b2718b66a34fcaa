"""The store on SQLite, on disks that are full and with files that are deleted, replaced, read-only or held by the dead.

Everywhere: nothing is written, offsets stay where they were, and once the cause is gone the same store goes on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.database.rows import Advance, Checkpoint, SummaryDelta
from connectors.database.store import Store
from connectors.records import Partition
from detectors.errors import OwnershipLost, StoreBusy, StoreFull, StoreUnreachable
from tests.frozen_worker import frozen_worker, thawed

ROOT = Path(__file__).resolve().parents[2]
P0 = Partition("orders", 0)


def checkpoint(expected: int | None, to: int, *, blob: bytes = b"") -> Checkpoint:
    return Checkpoint("m", [Advance(P0, expected, to, 0, 1, 0, 0)], [SummaryDelta("i", "", 0, 1, P0, to, blob)])


def records(store: Store) -> tuple[int, int]:
    """Where the partition stands, and how many records were counted: of a whole history they are equal."""
    return store.positions("m", [P0])[P0], store.totals("m").records


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{path}", busy_timeout_s=0.2) as store:
        store.migrate()
        store.commit(checkpoint(None, 1))
        yield store


# --- full -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip() or 'mount failed'}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_stops_writing_and_nothing_else(tmp_path: Path) -> None:
    if shutil.which("mount") is None:
        pytest.skip("there is no command mount")
    with small_disk(tmp_path / "disk", "2m") as disk, opened(disk / "driftd.db") as store:
        filler = disk / "filler"
        filler.write_bytes(b"")
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        at = 1
        with pytest.raises(StoreFull, match=r"full.*goes on by itself") as caught:
            while True:
                store.commit(checkpoint(at, at + 1, blob=bytes(20_000)))
                at += 1
        assert caught.value.retryable
        for _ in range(3):
            with pytest.raises(StoreFull):
                store.commit(checkpoint(at, at + 1, blob=bytes(200_000)))
        assert records(store) == (at, at), "it can still be read"
        filler.unlink()
        store.commit(checkpoint(at, at + 1, blob=bytes(200_000)))
        assert records(store) == (at + 1, at + 1)


# Without any rights: a limit on the size of files, which SQLite sees as a disk that takes no more.
LIMITED = """
import resource, signal, sys
from connectors.database.store import Store
from detectors.errors import StoreFull, StoreUnreachable
from tests.integration.test_store_broken import checkpoint, records
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store.open(sys.argv[1])
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
at = store.positions("m", [("orders", 0)])[("orders", 0)]
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
try:
    while True:
        store.commit(checkpoint(at, at + 1, blob=bytes(50_000)))
        at += 1
except (StoreFull, StoreUnreachable) as error:
    assert error.retryable
assert records(store) == (at, at), (records(store), at)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
store.commit(checkpoint(at, at + 1, blob=bytes(50_000)))
assert records(store) == (at + 1, at + 1)
print(at + 1)
"""


def test_a_file_that_may_not_grow_stops_writing_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "driftd.db"
    with opened(path) as store:
        command = [sys.executable, "-c", LIMITED, f"sqlite:///{path}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        written = int(done.stdout)
        assert written > 2 and records(store) == (written, written)


# --- deleted, replaced, read-only -------------------------------------------------------------------------------------


def test_a_file_that_is_moved_away_is_missed_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "driftd.db"
    with opened(path) as store:
        path.rename(tmp_path / "elsewhere.db")
        for _ in range(2):
            with pytest.raises(StoreUnreachable, match=r"is gone.*deleted or moved while driftd ran") as caught:
                store.commit(checkpoint(1, 2))
            assert caught.value.retryable and not path.exists(), "no empty file takes its place"
        with pytest.raises(StoreUnreachable):
            store.positions("m", [P0])
        (tmp_path / "elsewhere.db").rename(path)
        store.commit(checkpoint(1, 2))
        assert records(store) == (2, 2)


def test_a_file_that_is_replaced_is_not_written_to(tmp_path: Path) -> None:
    path, copy = tmp_path / "driftd.db", tmp_path / "copy.db"
    with opened(tmp_path / "other.db"):
        pass
    with opened(path) as store:
        path.rename(copy)
        (tmp_path / "other.db").rename(path)
        before = path.read_bytes()
        with pytest.raises(StoreUnreachable, match=r"another file now.*stop driftd, delete") as caught:
            store.commit(checkpoint(1, 2))
        assert caught.value.retryable and path.read_bytes() == before
        copy.rename(path)
        store.commit(checkpoint(1, 2))
        assert records(store) == (2, 2)


def test_a_file_that_turns_read_only_goes_on_when_it_may_be_written_again() -> None:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may write everything
        path = folder / "driftd.db"
        with opened(path) as store:
            store.close()  # as after any error: connections that are open may go on writing
            path.chmod(0o444)
            for _ in range(2):
                with pytest.raises(StoreFull, match="right to write the file, the two beside it") as caught:
                    store.commit(checkpoint(1, 2))
                assert caught.value.retryable and records(store) == (1, 1)
            for name in ("driftd.db", "driftd.db-wal", "driftd.db-shm"):
                if (folder / name).exists():  # made with the rights of the first
                    (folder / name).chmod(0o644)
            store.commit(checkpoint(1, 2))
            assert records(store) == (2, 2)
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


# --- workers that are frozen, dead, or do not know that they are replaced ---------------------------------------------


def test_two_zombies_write_nothing(tmp_path: Path) -> None:
    path = tmp_path / "driftd.db"
    url = f"sqlite:///{path}"
    with opened(path) as store, frozen_worker(url, "outside", 1) as first, frozen_worker(url, "outside", 1) as second:
        store.commit(checkpoint(1, 2))
        assert [thawed(first), thawed(second)] == ["OwnershipLost", "OwnershipLost"]
        assert records(store) == (2, 2) and store.dead_letters("m") == []


def test_a_worker_frozen_in_a_transaction_holds_the_file_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "driftd.db"
    with opened(path) as store, frozen_worker(f"sqlite:///{path}", "inside", 1) as frozen:
        with pytest.raises(StoreBusy, match="fuser") as caught:
            store.commit(checkpoint(1, 2))
        assert caught.value.retryable
        assert records(store) == (1, 1), "readers never wait"
        frozen.kill()
        frozen.wait(timeout=30)
        store.commit(checkpoint(1, 2))
        assert records(store) == (2, 2) and store.dead_letters("m") == []


def test_a_worker_that_thaws_in_its_transaction_has_written_and_the_others_have_not(tmp_path: Path) -> None:
    path = tmp_path / "driftd.db"
    with opened(path) as store, frozen_worker(f"sqlite:///{path}", "inside", 1) as frozen:
        with pytest.raises(StoreBusy):
            store.commit(checkpoint(1, 2))
        assert thawed(frozen) == "written"
        with pytest.raises(OwnershipLost):
            store.commit(checkpoint(1, 2))
        assert records(store) == (99, 99)
