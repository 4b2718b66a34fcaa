"""Objects as a source, on a server that speaks S3: what is found, what is asked for, what is said when it breaks."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from connectors import objectstore
from connectors.files import FilesSettings, FilesSource
from connectors.objectstore import ObjectFile, ObjectStore
from connectors.records import Partition, RawBatch
from detectors.errors import AccessRefused, MissingExtra, OffsetGap, SourceError, SourceUnreachable, UnknownTopic
from tests.servers.s3 import SECRET, S3Server

LINES = b"".join(b'{"number": %d}\n' % number for number in range(100))


def files(path: str, **settings: Any) -> FilesSource:
    return FilesSettings.model_validate({"path": path, **settings}).build(client_id="test")


def put(url: str, data: bytes) -> None:
    system, path = fsspec.core.url_to_fs(url)
    system.pipe(path, data)


def nothing_stored(partitions: Sequence[Partition]) -> Mapping[Partition, int]:
    return {}


def read_all(source: Any, max_records: int = 1000) -> list[RawBatch]:
    deadline = time.monotonic() + 30.0
    batches = []
    while not source.finished:
        assert time.monotonic() < deadline
        batches += source.poll(max_records, 0.1)
    return batches


def topics(source: FilesSource) -> list[str]:
    return [partition.topic for partition in source.extents(None, None)]


def test_an_object_a_directory_and_a_glob_are_found(s3: str) -> None:
    names = ["day=1/a.jsonl", "day=1/b.jsonl", "day=1/notes.txt", "day=1/deep/c.jsonl", "day=2/a.jsonl"]
    for name in names:
        put(f"{s3}/{name}", LINES)
    assert topics(files(f"{s3}/day=1/a.jsonl")) == [f"{s3}/day=1/a.jsonl"]
    assert topics(files(f"{s3}/day=1")) == topics(files(f"{s3}/day=1/")) == [f"{s3}/day=1/{x}.jsonl" for x in "ab"]
    assert topics(files(f"{s3}/day=*/a.jsonl")) == [f"{s3}/day={x}/a.jsonl" for x in "12"]
    assert files(f"{s3}/day=1").check() == f"files {s3}/day=1, 2 files, jsonl, {2 * len(LINES)} bytes"


def test_a_live_source_reads_objects_and_finds_new_ones(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.files._LIST_S", 0.0)
    put(f"{s3}/in/a.jsonl", LINES)
    source = files(f"{s3}/in", follow=True)
    source.open(nothing_stored)
    read = source.poll(1000, 0.0)
    assert [len(batch) for batch in read] == [100]
    put(f"{s3}/in/b.jsonl", LINES)
    deadline = time.monotonic() + 20.0
    while not (more := source.poll(1000, 0.1)):
        assert time.monotonic() < deadline
    assert [batch.partition.topic for batch in more] == [f"{s3}/in/b.jsonl"]
    assert not source.finished
    source.close()


def test_no_request_is_larger_than_the_buffer(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectstore, "CHUNK", 64)
    put(f"{s3}/a.jsonl", LINES)
    asked = []
    read = ObjectStore.read

    def watched(store: ObjectStore, url: str, start: int, end: int) -> bytes:
        asked.append(end - start)
        return read(store, url, start, end)

    monkeypatch.setattr(ObjectStore, "read", watched)
    whole = files(f"{s3}/a.jsonl")
    batches = read_all(opened(whole))
    assert b"".join(line + b"\n" for batch in batches for line in batch.values if line is not None) == LINES
    assert max(asked) <= 64
    assert sum(asked) < 2 * len(LINES)


def opened(whole: FilesSource) -> Any:
    part = whole.between(whole.extents(None, None))
    part.open(nothing_stored)
    return part


def test_of_a_table_only_the_row_groups_are_read_that_hold_the_span(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"vector": list(rng.random((20_000, 16), dtype=np.float32))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=5000, compression="none", use_dictionary=False)
    data = sink.getvalue().to_pybytes()
    put(f"{s3}/a.parquet", data)
    asked = []
    read = ObjectFile.read

    def watched(file: ObjectFile, size: int | None = -1) -> bytes:
        got = read(file, size)
        asked.append(len(got))
        return got

    monkeypatch.setattr(ObjectFile, "read", watched)
    whole = files(f"{s3}/a.parquet")
    (partition, span), *_ = whole.extents(None, None).items()
    assert sum(asked) < 0.1 * len(data), "the extent takes the foot of the table"
    part = whole.between({partition: type(span)(6000, 9000, span.topic_id)})
    part.open(nothing_stored)
    values = [value for batch in read_all(part) for value in batch.values]
    assert [json.loads(value)["vector"] for value in values] == table["vector"].to_pylist()[6000:9000]
    assert sum(asked) < 0.5 * len(data)


def test_an_object_that_was_replaced_is_a_gap(s3: str) -> None:
    put(f"{s3}/a.jsonl", LINES)
    whole = files(f"{s3}/a.jsonl")
    spans = whole.extents(None, None)
    put(f"{s3}/a.jsonl", LINES.replace(b"7", b"8"))
    part = whole.between(spans)
    part.open(nothing_stored)
    with pytest.raises(OffsetGap, match="was replaced"):
        read_all(part)


@pytest.mark.parametrize("suffix", ["jsonl", "npy"])
def test_an_object_that_is_replaced_while_it_is_read_is_a_gap(
    s3: str, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(objectstore, "CHUNK", 64)
    rows, others = io.BytesIO(), io.BytesIO()
    np.save(rows, np.zeros((50, 2)))
    np.save(others, np.ones((50, 2)))
    before, after = (LINES, LINES.replace(b"7", b"8")) if suffix == "jsonl" else (rows.getvalue(), others.getvalue())
    put(f"{s3}/a.{suffix}", before)
    part = opened(files(f"{s3}/a.{suffix}"))
    part.poll(3, 0.0)
    put(f"{s3}/a.{suffix}", after)
    with pytest.raises(OffsetGap, match="was replaced"):
        read_all(part)


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("{bucket}/logs/b.jsonl", "There is no object", "Did you mean {bucket}/logs/a.jsonl"),
        ("{bucket}/lgos", "There is no object", "Did you mean {bucket}/logs"),
        ("s3://no-such-bucket-here/a.jsonl", "There is no object", "bucket"),
        ("{bucket}/logs/*.parquet", "holds no object", "Name the files"),
    ],
)
def test_what_is_not_there_is_said_with_the_nearest_name(s3: str, path: str, message: str, hint: str) -> None:
    put(f"{s3}/logs/a.jsonl", LINES)
    with pytest.raises(UnknownTopic) as caught:
        files(path.format(bucket=s3)).check()
    assert message in caught.value.message
    assert hint.format(bucket=s3) in str(caught.value.hint)


def test_an_object_without_the_right_to_read_it_is_refused(s3: str, s3_server: S3Server) -> None:
    put(f"{s3}/a.jsonl", LINES)
    with pytest.raises(AccessRefused) as caught:  # over HTTP, where this server asks for a signature
        files(f"{s3_server.address}/{s3.removeprefix('s3://')}/a.jsonl").check()
    assert not caught.value.retryable
    assert SECRET not in str(caught.value)


def test_a_store_that_does_not_answer_is_tried_again_and_read_on(
    s3: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectstore, "_BACK_OFF_S", 0.0)
    monkeypatch.setattr(objectstore, "CHUNK", 64)
    put(f"{s3}/a.jsonl", LINES)
    part = opened(files(f"{s3}/a.jsonl"))
    batches = part.poll(3, 0.0)
    fails = iter([True] * 7 + [False] * 1000)
    driver = fsspec.get_filesystem_class("s3")
    call = driver._call_s3

    async def flaky(system: Any, method: str, *arguments: Any, **options: Any) -> Any:
        if method == "get_object" and next(fails):
            raise ConnectionResetError("the network went away")
        return await call(system, method, *arguments, **options)

    monkeypatch.setattr(driver, "_call_s3", flaky)
    failed = 0
    deadline = time.monotonic() + 30.0
    while not part.finished:
        assert time.monotonic() < deadline
        try:
            batches += part.poll(50, 0.1)
        except SourceUnreachable as error:
            failed += 1
            assert error.retryable
    assert failed == 1, "four tries each: the first four fail together, then three"
    assert b"".join(line + b"\n" for batch in batches for line in batch.values if line is not None) == LINES


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingExtra, match="gs://") as caught:
        files("gs://bucket/a.jsonl").check()
    assert "gcsfs" in str(caught.value.hint)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtra) as caught:
        files("memory://a.jsonl").check()
    assert "driftd[objects]" in str(caught.value.hint)


def test_an_unknown_store_is_refused() -> None:
    with pytest.raises(SourceError, match="No store is known for zz://"):
        files("zz://bucket/a.jsonl").check()


@pytest.mark.parametrize("path", ["https://user:secret@host/a.jsonl", "https://host/a.jsonl?X-Signature=secret"])
def test_credentials_in_an_address_are_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="must not hold credentials"):
        FilesSettings(path=path)


@pytest.fixture
def many(tmp_path: Path) -> Iterator[Path]:
    for number in range(300):
        (tmp_path / f"{number:04d}.jsonl").write_bytes(LINES[:1450] if number % 2 else b"")
    yield tmp_path


def test_many_small_files_are_read_in_the_order_of_their_names_and_few_are_open(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = files(str(many))
    open_at_once: list[int] = []
    part = opened(whole)
    read_from = []
    deadline = time.monotonic() + 30.0
    while not part.finished:
        assert time.monotonic() < deadline
        read_from += [Path(batch.partition.topic).stem for batch in part.poll(256, 0.0) if len(batch)]
        open_at_once.append(sum(1 for link in Path("/proc/self/fd").iterdir() if many.name in target_of(link)))
    assert max(open_at_once) <= 16
    assert len(set(read_from)) == 150
    newest = 0
    for name in read_from:
        assert int(name) >= newest - 2 * 16, "no file is read long after those that follow it"
        newest = max(newest, int(name))


def target_of(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # the folder's own, gone again
        return ""


def test_the_extents_of_lines_take_no_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    monkeypatch.setattr("connectors.files.FileBytes", None)
    (span,) = files(str(tmp_path)).extents(None, None).values()
    assert (span.first, span.after) == (0, len(LINES))


def test_a_followed_file_ends_with_its_last_complete_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES + b'{"half": ')
    (span,) = files(str(tmp_path), follow=True).extents(None, None).values()
    assert span.after == len(LINES)


def test_rows_with_times_have_an_extent_of_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    np.save(tmp_path / "b.npy", np.zeros((100, 2), dtype=np.float32))
    whole = files(str(tmp_path), time={"start": "1970-01-01T00:00:01Z", "interval_ms": 2.5})
    lines, rows = whole.extents(1_010, 1_100).values()
    assert (rows.first, rows.after) == (4, 40)
    starts = [at for at in range(len(LINES)) if at == 0 or LINES[at - 1 : at] == b"\n"]
    assert (lines.first, lines.after) == (starts[4], starts[40])
    for part in (whole.between(whole.extents(1_010, 1_100)),):
        part.open(nothing_stored)
        times = np.concatenate([batch.timestamps_ms for batch in read_all(part)])
        assert (times.min(), times.max(), len(times)) == (1_010, 1_097, 72)
        part.close()
    assert whole.extents(9_000, None) == {}


def test_a_file_that_became_shorter_is_a_gap(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    whole = files(str(tmp_path))
    spans = whole.extents(None, None)
    (tmp_path / "a.jsonl").write_bytes(LINES[:150])
    part = whole.between(spans)
    part.open(nothing_stored)
    with pytest.raises(OffsetGap, match="cut off or replaced"):
        part.poll(10, 0.0)


def test_stdin_has_no_history() -> None:
    with pytest.raises(SourceError, match="no history"):
        files("-").extents(None, None)
