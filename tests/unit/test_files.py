"""The file source: positions and values per format, following, and what is said when a file cannot be used."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from connectors import file_lines
from connectors.files import FilesSettings, FilesSource
from connectors.records import Partition, RawBatch, StoredPositions
from detectors.errors import AccessRefused, OffsetGap, SourceError, UnknownTopic

Row = tuple[int, bytes]


OPENED: list[FilesSource] = []


@pytest.fixture(autouse=True)
def _close_what_was_opened() -> Iterator[None]:
    yield
    _close_all()


def _close_all() -> None:
    while OPENED:
        OPENED.pop().close()


def source(path: Path | str, *, stored: Mapping[Partition, int] | None = None, **settings: Any) -> FilesSource:
    made = FilesSettings.model_validate({"path": str(path), **settings}).build(client_id="test")
    OPENED.append(made)
    made.open(lookup(stored or {}))
    return made


def lookup(stored: Mapping[Partition, int]) -> StoredPositions:
    def find(partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        return {partition: stored[partition] for partition in partitions if partition in stored}

    return find


def rows(batches: Sequence[RawBatch]) -> list[Row]:
    return [
        (int(offset), value)
        for batch in batches
        for offset, value in zip(batch.offsets, batch.values, strict=True)
        if value is not None
    ]


def read_all(files: FilesSource, max_records: int = 100) -> list[RawBatch]:
    batches: list[RawBatch] = []
    deadline = time.monotonic() + 20
    while not files.finished:
        assert time.monotonic() < deadline
        got = files.poll(max_records, 0.0)
        assert sum(map(len, got)) <= max_records
        batches += got
    return batches


def lines_of(content: bytes) -> list[Row]:
    """What JSON lines mean, in the plainest way."""
    found, offset = [], 0
    for line in content.split(b"\n"):
        value = line.removeprefix(b"\xef\xbb\xbf") if offset == 0 else line
        if value not in (b"", b"\r"):
            found.append((offset, value))
        offset += len(line) + 1
    return found


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lines, "_CHUNK", 7)


PIECES = (b"a", b"{}", b"\n", b"\r\n", b"xyz", b"\xef\xbb\xbf", b"long" * 9)


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES)), st.integers(1, 5))
def test_lines_have_the_byte_offsets_of_their_beginnings(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], share: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(b"".join(pieces))
    expected = lines_of(path.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_lines, "_CHUNK", 7)
        batches = read_all(source(path), share)
        assert rows(batches) == expected
        # From every position that was ever handed out, the rest is the same.
        for batch in batches:
            rest = read_all(source(path, stored={batch.partition: batch.next_offset}))
            assert rows(rest) == [row for row in expected if row[0] >= batch.next_offset]
    _close_all()


def test_batches_keep_the_contract_of_a_source(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b'{"n": %d}\n' % n for n in range(1000)))
    files = source(path)
    assert files.assignment() == {Partition(str(path), 0)} and not files.finished
    before = -1
    for batch in read_all(files, 64):
        assert batch.partition == Partition(str(path), 0)
        assert batch.offsets.dtype == np.int64 and (np.diff(batch.offsets) > 0).all()
        assert before <= batch.offsets[0] and batch.offsets[-1] < batch.next_offset
        assert len(batch) == len(batch.keys) == len(batch.values) == len(batch.headers) == len(batch.timestamps_ms)
        assert set(batch.timestamps_ms.tolist()) == {-1}
        before = batch.next_offset
    assert before == path.stat().st_size and files.finished and files.poll(10, 5.0) == []
    files.close()
    files.close()


def test_a_rewind_goes_back_to_what_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n2\n3\n4\n")
    stored: dict[Partition, int] = {}
    files = FilesSettings(path=str(path)).build(client_id="test")
    OPENED.append(files)
    files.open(lambda partitions: dict(stored))
    first = files.poll(2, 0.0)
    files.rewind()
    assert rows(files.poll(2, 0.0)) == rows(first) == [(0, b"1"), (2, b"2")]
    stored[Partition(str(path), 0)] = 4
    files.poll(2, 0.0)
    files.rewind()
    assert rows(read_all(files)) == [(4, b"3"), (6, b"4")]


def test_several_files_take_turns_and_the_order_is_always_the_same(tmp_path: Path) -> None:
    for name, n in (("b.jsonl", 50), ("a.jsonl", 5), ("c.jsonl", 20)):
        (tmp_path / name).write_bytes(b"".join(b"%d\n" % i for i in range(n)))
    (tmp_path / ".hidden.jsonl").write_bytes(b"no\n")
    (tmp_path / "notes.txt").write_bytes(b"no\n")
    (tmp_path / "folder.jsonl").mkdir()

    def order(share: int) -> list[tuple[str, int]]:
        return [(Path(b.partition.topic).name, int(o)) for b in read_all(source(tmp_path), share) for o in b.offsets]

    assert order(9) == order(9) and sorted(order(9)) == sorted(order(2)) and len(order(1)) == 75
    assert [name for name, _ in order(9)[:9]] == ["a.jsonl"] * 3 + ["b.jsonl"] * 3 + ["c.jsonl"] * 3
    assert {name for name, _ in order(2)[:6]} == {"a.jsonl", "b.jsonl", "c.jsonl"}


def test_a_glob_names_its_files(tmp_path: Path) -> None:
    for name in ("x1.log", "x2.log", "y1.log"):
        (tmp_path / name).write_bytes(b"1\n")
    files = source(tmp_path / "x*.log", format="jsonl")
    assert {Path(partition.topic).name for partition in files.assignment()} == {"x1.log", "x2.log"}
    assert files.check() == f"files {tmp_path}/x*.log, 2 files, jsonl, 4 bytes"


def test_a_growing_file_is_followed_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n2")
    files = source(path, follow=True)
    assert rows(files.poll(10, 0.0)) == [(0, b"1")]
    assert files.poll(10, 0.0) == [] and not files.finished
    assert files.lag() == {Partition(str(path), 0): 1}
    with path.open("ab") as file:
        file.write(b"2\n33")
    assert rows(files.poll(10, 0.0)) == [(2, b"22")]
    began = time.monotonic()
    assert files.poll(10, 0.1) == []
    assert time.monotonic() - began >= 0.1


def test_a_poll_that_waits_returns_when_a_line_comes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"")
    files = source(path, follow=True)
    writer = threading.Timer(0.1, path.write_bytes, [b"late\n"])
    writer.start()
    assert rows(files.poll(10, 20.0)) == [(0, b"late")]
    writer.join()


def test_a_directory_is_followed_for_new_files(tmp_path: Path) -> None:
    files = source(tmp_path, follow=True)
    assert files.poll(10, 0.0) == [] and files.check().endswith(", none yet")
    (tmp_path / "a.jsonl").write_bytes(b"1\n")
    got: list[RawBatch] = []
    deadline = time.monotonic() + 20
    while not got:
        assert time.monotonic() < deadline
        got += files.poll(10, 0.2)
    assert rows(got) == [(0, b"1")]


@pytest.mark.parametrize("how", ["cut off", "replaced"])
def test_a_followed_file_that_is_cut_off_or_replaced_is_a_gap(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n2\n")
    files = source(path, follow=True)
    files.poll(10, 0.0)
    if how == "cut off":
        path.write_bytes(b"")
    else:
        (tmp_path / "new").write_bytes(b"1\n2\n3\n")
        (tmp_path / "new").replace(path)
    with pytest.raises(OffsetGap, match=f"{how}.*byte 4 was next"):
        files.poll(10, 0.0)


def test_a_followed_file_that_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n")
    files = source(path, follow=True)
    files.poll(10, 0.0)
    path.unlink()
    with pytest.raises(UnknownTopic, match=r"a\.jsonl"):
        files.poll(10, 0.0)


@pytest.mark.parametrize(("position", "what"), [(100, "ends at byte 8"), (5, "no line begins there")])
def test_a_stored_position_that_does_not_fit_the_file_is_a_gap(tmp_path: Path, position: int, what: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"100\n200\n")
    with pytest.raises(OffsetGap, match=what):
        source(path, stored={Partition(str(path), 0): position})


def test_a_file_that_grew_after_a_last_line_without_end_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n2")
    end = read_all(source(path))[-1].next_offset
    path.write_bytes(b"1\n2\n3\n")
    assert rows(read_all(source(path, stored={Partition(str(path), 0): end}))) == [(4, b"3")]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lines, "_CHUNK", 10)
    monkeypatch.setattr(file_lines, "_MAX_LINE", 25)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n" + b"x" * 1000 + b"\n2\n" + b"y" * 500)
    assert rows(read_all(source(path))) == [(0, b"1"), (2, b"x" * 25), (1003, b"2"), (1005, b"y" * 25)]
    assert read_all(source(path))[-1].next_offset == path.stat().st_size


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass


def stdin(end: int, stored: Mapping[Partition, int] | None = None, name: str = "stdin") -> FilesSource:
    files = FilesSource(FilesSettings(path="-", name=name), stdin=end)
    files.open(lookup(stored or {}))
    return files


def test_stdin_is_read_until_it_ends(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    files = stdin(reading, name="orders")
    assert files.assignment() == {Partition("orders", 0)} and files.check() == "files -, jsonl from stdin"
    assert files.poll(10, 0.0) == []
    os.write(writing, b"1\n2\n3")
    assert rows(files.poll(10, 5.0)) == [(0, b"1"), (2, b"2")]
    assert not files.finished and files.lag() == {Partition("orders", 0): 1}
    os.close(writing)
    assert rows(read_all(files)) == [(4, b"3")]


def test_stdin_is_kept_for_a_rewind_until_the_checkpoint(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    stored: dict[Partition, int] = {}
    files = FilesSource(FilesSettings(path="-"), stdin=reading)
    files.open(lambda partitions: dict(stored))
    os.write(writing, b"1\n2\n3\n4\n")
    os.close(writing)
    assert rows(files.poll(2, 1.0)) == [(0, b"1"), (2, b"2")]
    files.rewind()
    assert rows(files.poll(2, 1.0)) == [(0, b"1"), (2, b"2")]
    stored[Partition("stdin", 0)] = 4
    files.commit(stored)
    files.poll(1, 1.0)
    files.rewind()
    assert rows(read_all(files)) == [(4, b"3"), (6, b"4")]
    stored[Partition("stdin", 0)] = 0
    with pytest.raises(SourceError, match="from byte 4 on"):
        files.rewind()


@pytest.mark.usefixtures("small_chunks")
def test_stdin_skips_what_is_stored_when_it_is_piped_in_again(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"first line\nsecond line\nthird\n")
    os.close(writing)
    files = stdin(reading, {Partition("stdin", 0): 23})
    assert rows(read_all(files)) == [(23, b"third")]


def test_stdin_that_is_shorter_than_what_is_stored_is_a_gap(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"1\n")
    os.close(writing)
    with pytest.raises(OffsetGap, match="ended at byte 2"):
        read_all(stdin(reading, {Partition("stdin", 0): 23}))


def test_stdin_without_checkpoints_is_kept_only_up_to_a_bound(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_lines, "_MAX_REPLAY", 100)
    reading, writing = pipe
    files = stdin(reading)
    for _ in range(5):
        os.write(writing, b"x" * 49 + b"\n")
        assert len(rows(files.poll(10, 5.0))) == 1
    with pytest.raises(SourceError, match="from byte 150 on"):
        files.rewind()


def write_npy(path: Path, array: np.ndarray[Any, Any]) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", ["float32", ">f8", "float16", "int32", "uint8"])
@pytest.mark.parametrize("fortran", [False, True])
def test_rows_of_an_array_are_float32_bytes(tmp_path: Path, dtype: str, fortran: bool) -> None:
    array = np.arange(30).reshape(10, 3).astype(dtype)
    path = write_npy(tmp_path / "a.npy", np.asfortranarray(array) if fortran else array)
    batches = read_all(source(path), 4)
    assert [len(batch) for batch in batches] == [4, 4, 2] and batches[0].next_offset == 4
    assert rows(batches) == [(n, array[n].astype("<f4").tobytes()) for n in range(10)]
    assert rows(read_all(source(path, stored={Partition(str(path), 0): 8}))) == rows(batches)[8:]


def test_numbers_too_large_for_float32_become_infinite_without_a_word(tmp_path: Path) -> None:
    path = write_npy(tmp_path / "a.npy", np.array([[1e300]]))
    assert rows(read_all(source(path))) == [(0, np.array([np.inf], "<f4").tobytes())]


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros(3), r"\(3,\)"),
        (np.zeros((2, 2, 2)), r"\(2, 2, 2\)"),
        (np.array([["a"]]), "str"),
        (np.array([[1 + 2j]]), "complex"),
        (np.array([[None]], dtype=object), "Python objects"),
    ],
)
def test_arrays_that_are_no_rows_of_numbers_are_refused(tmp_path: Path, array: Any, found: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(SourceError, match=found):
        source(path)


@pytest.mark.parametrize("name", ["a.npy", "a.parquet"])
@pytest.mark.parametrize("content", [b"", b"not what it says", b"PAR1xxxxPAR1"])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=rf"{name} is not a") as error:
        source(tmp_path / name)
    assert error.value.hint and not error.value.retryable


def test_a_truncated_array_is_refused(tmp_path: Path) -> None:
    path = write_npy(tmp_path / "a.npy", np.zeros((100, 4), np.float32))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match="is not a NumPy file"):
        source(path)


def test_an_array_that_became_shorter_is_a_gap(tmp_path: Path) -> None:
    path = write_npy(tmp_path / "a.npy", np.zeros((3, 4), np.float32))
    with pytest.raises(OffsetGap, match="3 rows, but row 7"):
        source(path, stored={Partition(str(path), 0): 7})


def write_parquet(path: Path, n: int = 2500, group: int = 600) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(n, 3)).astype(np.float32)
    table = pa.table(
        {
            "id": [f"r{i}" for i in range(n)],
            "t": pa.array([1_772_438_400_000_000 + i for i in range(n)], pa.timestamp("us")),
            "v": pa.array(vectors.tolist(), pa.list_(pa.float32())),
            "f": pa.array(vectors.tolist(), pa.list_(pa.float32(), 3)),
            "ragged": [[1.5] * (i % 3) for i in range(n)],
            "gap": [None if i % 2 else i for i in range(n)],
            "s": [{"a": i, "b": [str(i)]} for i in range(n)],
            "c": pa.array([("x", "y")[i % 2] for i in range(n)]).dictionary_encode(),
            "z": pa.array([1_772_438_400_000 + i for i in range(n)], pa.timestamp("ms", tz="Europe/Oslo")),
            "bytes": [b"\x00\xff"] * n,
        }
    )
    pq.write_table(table, path, row_group_size=group)
    start = datetime(2026, 3, 2, 8, tzinfo=UTC)
    return [
        {
            "id": f"r{i}",
            "t": start.replace(microsecond=i).isoformat().replace("+00:00", "Z"),
            "v": vectors[i].tolist(),
            "f": vectors[i].tolist(),
            "ragged": [1.5] * (i % 3),
            "gap": None if i % 2 else i,
            "s": {"a": i, "b": [str(i)]},
            "c": ("x", "y")[i % 2],
            "z": datetime.fromtimestamp((1_772_438_400_000 + i) / 1000, UTC).isoformat().replace("+00:00", "Z"),
            "bytes": "AP8=",
        }
        for i in range(n)
    ]


@pytest.mark.parametrize("share", [7, 600, 100_000])
def test_rows_of_a_parquet_file_are_json(tmp_path: Path, share: int) -> None:
    expected = write_parquet(tmp_path / "a.parquet")
    got = rows(read_all(source(tmp_path / "a.parquet"), share))
    assert [offset for offset, _ in got] == list(range(2500))
    assert [json.loads(value) for _, value in got] == expected


def test_rows_of_a_parquet_file_can_be_message_pack(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    moment = datetime(2026, 3, 2, 8, tzinfo=UTC)
    pq.write_table(pa.table({"v": [[1.5, 2.5]], "b": [b"\x00\xff"], "t": [moment], "f": [float("nan")]}), path)
    ((_, value),) = rows(read_all(source(path, rows="msgpack")))
    row = msgspec.msgpack.decode(value)
    assert (row["v"], row["b"], row["t"]) == ([1.5, 2.5], b"\x00\xff", moment) and row["f"] != row["f"]


def test_a_parquet_file_is_read_on_from_any_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path)
    everything = rows(read_all(source(path), 1000))
    for position in (1, 599, 600, 1700, 2499, 2500):
        assert rows(read_all(source(path, stored={Partition(str(path), 0): position}), 333)) == everything[position:]
    files = source(path)
    files.poll(1500, 0.0)
    files.rewind()
    assert rows(read_all(files)) == everything
    assert source(path).check().endswith("1 file, parquet, 2500 rows")


def test_a_parquet_file_without_rows_or_columns_is_read_to_its_end(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    assert read_all(source(tmp_path / "a.parquet")) == []


def test_a_parquet_file_that_is_damaged_inside_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": np.random.default_rng(0).normal(size=5000)}), path, compression="snappy")
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396
    path.write_bytes(content)
    with pytest.raises(SourceError, match="is not a Parquet file that can be read"):
        read_all(source(path))


@pytest.mark.parametrize("kind", ["jsonl", "npy", "parquet"])
def test_rows_without_a_time_can_be_given_one(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_bytes(b"1\n\n2\n3\n")  # a blank line takes its place in time
    elif kind == "npy":
        write_npy(path, np.zeros((4, 2)))
    else:
        pq.write_table(pa.table({"a": [1, 2, 3, 4]}), path)
    spaced = {"start": "2026-03-02T08:00:00.001Z", "interval_ms": 2.5}
    batches = read_all(source(path, time=spaced), 1)
    start = 1_772_438_400_001
    expected = [start, start + 2, start + 5, start + 7]
    if kind == "jsonl":
        del expected[1]
    assert [int(batch.timestamps_ms[0]) for batch in batches] == expected
    middle = batches[1].next_offset
    resumed = read_all(source(path, time=spaced, stored={batches[0].partition: middle}), 1)
    assert [int(batch.timestamps_ms[0]) for batch in resumed] == expected[2:]
    ranged = list(source(path, time=spaced).read_range(start + 1, start + 7))
    assert [int(t) for batch in ranged for t in batch.timestamps_ms] == [t for t in expected if start < t < start + 7]


def test_a_range_ends_where_the_file_ended_at_its_start_and_leaves_the_positions_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n2\n")
    files = source(path, follow=True)
    ranged = files.read_range(None, None)
    first = next(ranged)
    with path.open("ab") as file:
        file.write(b"3\n")
    assert rows([first, *ranged]) == [(0, b"1"), (2, b"2")]
    assert rows(files.poll(10, 0.0)) == [(0, b"1"), (2, b"2"), (4, b"3")]


def test_a_range_of_stdin_is_all_of_it(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"1\n2\n3")
    os.close(writing)
    files = FilesSource(FilesSettings(path="-"), stdin=reading)
    assert rows(list(files.read_range(None, None))) == [(0, b"1"), (2, b"2"), (4, b"3")]


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "orders.jsonl").write_bytes(b"")
    with pytest.raises(UnknownTopic, match=r"no file .*order\.jsonl.*Did you mean .*orders\.jsonl"):
        source(tmp_path / "order.jsonl")
    with pytest.raises(UnknownTopic, match="no directory"):
        source(tmp_path / "absent" / "a.jsonl")


def test_a_directory_or_glob_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(UnknownTopic, match=r"holds no file that ends in \.jsonl"):
        source(tmp_path)
    with pytest.raises(UnknownTopic, match="holds no file"):
        source(tmp_path / "*.jsonl")


@pytest.mark.parametrize(("name", "cure"), [("a.jsonl.gz", "gunzip -c"), ("a.csv", "format: jsonl")])
def test_files_of_an_unknown_form_are_refused_with_a_cure(tmp_path: Path, name: str, cure: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match=cure):
        source(tmp_path / name)


@pytest.fixture
def nobody() -> Iterator[Callable[[], None]]:
    """Root may read everything: become nobody for the rest of the test."""
    was = os.geteuid()
    yield lambda: os.seteuid(65534) if was == 0 else None
    os.seteuid(was)


@pytest.mark.parametrize("name", ["a.jsonl", "a.npy", "a.parquet"])
@pytest.mark.parametrize("closed", ["file", "directory"])
def test_a_file_that_may_not_be_read_is_named(name: str, closed: str, nobody: Callable[[], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(b"")
        path.chmod(0 if closed == "file" else 0o644)
        path.parent.chmod(0o755 if closed == "file" else 0o600)
        nobody()
        try:
            with pytest.raises(AccessRefused, match=r"may not be read.*chmod"):
                source(path)
        finally:
            os.seteuid(os.getuid())
            path.parent.chmod(0o700)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"path": ""}, "path"),
        ({"path": "-", "format": "npy"}, "stdin is read as jsonl"),
        ({"path": "-", "follow": True}, "leave follow out"),
        ({"path": "-", "time": {"start": "2026-01-01T00:00:00Z", "interval_ms": 1}}, "record: time"),
        ({"path": "a", "time": {"start": "2026-01-01T00:00:00", "interval_ms": 1}}, "timezone"),
        ({"path": "a", "format": "csv"}, "jsonl"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_a_cure(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        FilesSettings.model_validate(settings)


def test_a_held_file_is_not_read_until_it_is_let_go(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(b"1\n2\n3\n")
    files = source(tmp_path)
    held = Partition(str(tmp_path / "b.jsonl"), 0)
    assert held in files.partitions() == files.assignment()
    files.hold(frozenset({held}))
    assert {batch.partition for batch in files.poll(100, 0.0) + files.poll(100, 0.0)} == files.partitions() - {held}
    assert not files.finished
    files.hold(frozenset())
    assert rows(read_all(files)) == [(0, b"1"), (2, b"2"), (4, b"3")]
    state = files.state()
    assert (state.member, state.connected, state.silent) == ("none", True, {})


def test_held_stdin_is_not_read(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    files = FilesSource(FilesSettings(path="-"), stdin=reading)
    OPENED.append(files)
    files.open(lookup({}))
    os.write(writing, b"1\n")
    files.hold(files.partitions())
    assert files.poll(10, 0.1) == []
    files.hold(frozenset())
    assert rows(files.poll(10, 5.0)) == [(0, b"1")]


@pytest.mark.parametrize("time", [None, {"start": "2026-01-31T00:00:00Z", "interval_ms": 1000}])
def test_records_are_read_again_by_their_offsets(tmp_path: Path, time: dict[str, object] | None) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b"%d\n" % number for number in range(20_000)))
    lines = dict(lines_of(path.read_bytes()))
    offsets = list(lines)
    wanted = [offsets[9000], offsets[3], offsets[3], offsets[19_999], offsets[4] + 1, 10**9]
    found = list(
        source(path, time=time).read_at(
            [(Partition(str(path), 0), offset) for offset in wanted] + [(Partition(str(tmp_path / "gone.jsonl"), 0), 0)]
        )
    )
    assert rows(found) == [(offsets[row], b"%d" % row) for row in (3, 9000, 19_999)]
    seconds = [(ms - 1_769_817_600_000) // 1000 for batch in found for ms in batch.timestamps_ms.tolist()]
    assert seconds == ([3, 9000, 19_999] if time else [seconds[0]] * 3)


def test_nothing_of_a_file_is_read_again_where_no_wanted_record_begins(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"long line\n" * 3)
    assert list(source(path).read_at([(Partition(str(path), 0), 4), (Partition(str(path), 0), 99)])) == []
    np.save(tmp_path / "b.npy", np.arange(6.0).reshape(3, 2))
    found = list(source(tmp_path / "b.npy").read_at([(Partition(str(tmp_path / "b.npy"), 0), 2)]))
    assert [batch.offsets.tolist() for batch in found] == [[2]]


def test_a_file_of_lines_can_be_cut_where_a_line_begins_and_a_table_at_every_row(tmp_path: Path) -> None:
    lines, table = tmp_path / "a.jsonl", tmp_path / "b.npy"
    lines.write_bytes(b"{}\n{12}\r\n\n{3}")
    np.save(table, np.zeros((5, 2), np.float32))
    source = FilesSource(FilesSettings(path=str(tmp_path)))
    assert [source.next_start(Partition(str(lines), 0), offset) for offset in range(13)] == [
        *(0, 3, 3, 3),
        *(9, 9, 9, 9, 9, 9),
        *(10, 13, 13),
    ]
    assert [source.next_start(Partition(str(table), 0), row) for row in (0, 3)] == [0, 3]
    with pytest.raises(SourceError, match="gone"):
        source.next_start(Partition(str(tmp_path / "c.jsonl"), 0), 1)
