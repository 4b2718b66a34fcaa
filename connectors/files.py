"""Records from files: JSON lines (also from stdin), Parquet, NumPy arrays.

Each file is a partition of its own: its path is the topic, its number 0. What an offset is depends on the format.

    format    offset                   value                                        lag in
    jsonl     byte where a line begins the line without its end                     bytes
    parquet   row number               the row's fields, JSON or MessagePack        rows
    npy       row number               the row as little-endian float32 (codec raw) rows

Positions survive as they do with Kafka: the same file is read on where the last checkpoint stood, and each record has
the same offset in every run. A file that was cut off or replaced since then is an `OffsetGap`, never a silent restart.
"""

from __future__ import annotations

import glob
import math
import select
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import AwareDatetime, BaseModel, Field, model_validator

from connectors.file_lines import FileBytes, LineReader, PipeBytes, after_last_line, line_start
from connectors.file_range import FilesRange
from connectors.file_reader import Int64s, Reader, Rows, cannot_be_read, listed, nearest_name
from connectors.file_tables import NpyReader, ParquetReader
from connectors.objectstore import ANSWER_S, Object, ObjectBytes, ObjectFile, ObjectStore, is_url, replaced
from connectors.records import Partition, RawBatch, Source, SourceState, Span, StoredPositions, StoredTopicIds
from detectors.errors import OffsetGap, SourceError, UnknownTopic

Format = Literal["jsonl", "parquet", "npy"]

STDIN: Final = "-"
SUFFIXES: Final[dict[str, Format]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".npy": "npy",
}
COMPRESSED: Final = (".gz", ".bz2", ".xz", ".zst")

_ROWS: Final = 8192  # rows of a batch of read_range
_WAIT_S: Final = 0.05  # between two looks at a file that does not grow
_LIST_S: Final = 10.0  # between two looks at what an object store holds


class RowTimes(BaseModel, frozen=True, extra="forbid"):
    """Times for rows that have none: the first row's, and how far the rows are apart."""

    start: AwareDatetime = Field(description="time of the first row of each file, RFC 3339")
    interval_ms: float = Field(gt=0, description="milliseconds from one row to the next")


class FilesSettings(BaseModel, frozen=True, extra="forbid"):
    """JSON lines, Parquet or NumPy files, or JSON lines from stdin."""

    kind: Literal["files"] = "files"
    path: str = Field(
        min_length=1,
        description="a file, a directory, a glob such as data/*.jsonl, the same in an object store (s3://bucket/key, "
        "gs://, abfs://, https://), or - for stdin",
    )
    format: Literal["auto", "jsonl", "parquet", "npy"] = Field("auto", description="auto goes by the file's suffix")
    rows: Literal["json", "msgpack"] = Field(
        "json",
        description="how rows of Parquet are encoded; record.codec must be the same, msgpack is faster for vectors",
    )
    follow: bool = Field(False, description="wait for lines that are appended and files that are added")
    time: RowTimes | None = Field(None, description="the records' times where the rows themselves hold none")
    name: str = Field("stdin", min_length=1, description="the topic under which positions in stdin are stored")

    @model_validator(mode="after")
    def _stdin_is_plain(self) -> FilesSettings:
        if self.path == STDIN and self.format not in ("auto", "jsonl"):
            raise ValueError(f"stdin is read as jsonl, not {self.format}; name the file instead")
        if self.path == STDIN and self.time is not None:
            raise ValueError("time is for files; lines from stdin need a time of their own: record: time: /ts")
        if self.path == STDIN and self.follow:
            raise ValueError("stdin is read until it ends; leave follow out")
        return self

    @model_validator(mode="after")
    def _credentials_stay_outside(self) -> FilesSettings:
        if self.path.startswith(("http://", "https://")):
            host = self.path.partition("://")[2].partition("/")[0]
            if "@" in host or "?" in self.path:
                raise ValueError("an address must not hold credentials or a signature: it is stored, and shown")
        return self

    @property
    def ends(self) -> bool:
        """Reading comes to an end by itself."""
        return not self.follow

    @property
    def answer_s(self) -> float:
        """How long one question may take, in seconds."""
        return ANSWER_S if is_url(self.path) else 0.0

    def build(self, *, client_id: str, group: str = "driftd") -> FilesSource:
        """Make the source. Nothing is opened yet. The names are for sources that tell their server who they are."""
        return FilesSource(self)


class FilesSource:
    """Reads files as a source of records: bounded, or endless with ``follow``.

    Several files take turns: each poll takes an equal share from each. Delivery: every record once per position; what
    comes after a position never depends on how the polls were cut.

    Args:
        settings: what to read.
        stdin: the file descriptor that stands for "-".
    """

    def __init__(self, settings: FilesSettings, *, stdin: int = 0) -> None:
        self._settings = settings
        self._stdin = stdin
        self._positions: StoredPositions = _nothing_stored
        self._readers: dict[Partition, Reader] = {}
        self._held: frozenset[Partition] = frozenset()
        self._opened = False
        self._turn = 0
        self._store = ObjectStore(settings.path)  # asked where the path is a URL only
        self._listed: dict[str, Object] = {}
        self._listed_at = float("-inf")
        self._postponed: SourceError | None = None

    @property
    def finished(self) -> bool:
        """Every file was read to its end, and more is not waited for."""
        if self._settings.follow or not self._opened:
            return False
        return all(reader.at_end for reader in self._readers.values())

    def check(self) -> str:
        """Open each file once and say what was found.

        Raises:
            SourceError: nothing to read, not allowed, or not a file of its format.
        """
        if self._settings.path == STDIN:
            return "files -, jsonl from stdin"
        paths = self._paths()
        remaining = 0
        for path in paths:
            reader = self._reader(path)
            remaining += reader.remaining
            reader.close()
        kinds = sorted({self._format(path) for path in paths})
        if not paths:
            return f"files {self._settings.path}, none yet"
        unit = "bytes" if kinds == ["jsonl"] else "rows" if "jsonl" not in kinds else "bytes and rows"
        files = f"{len(paths)} file{'' if len(paths) == 1 else 's'}"
        return f"files {self._settings.path}, {files}, {', '.join(kinds)}, {remaining} {unit}"

    def open(self, positions: StoredPositions, *, topic_ids: StoredTopicIds | None = None) -> None:
        """Find the files, and go to the stored positions. Files have no ids.

        Raises:
            SourceError: see `check`; OffsetGap where a stored position is not in its file any more.
        """
        self._positions = positions
        self._opened = True
        self._find_files()

    def poll(self, max_records: int, timeout_s: float) -> list[RawBatch]:
        """Up to ``max_records`` records, an equal share of each file; [] where nothing came within ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while True:
            batches = self._take_turns(max_records)
            left_s = deadline - time.monotonic()
            if batches or self.finished or left_s <= 0:
                return batches
            if self._settings.path == STDIN and not self._held:
                select.select([self._stdin], [], [], left_s)
            elif self._settings.path == STDIN:
                time.sleep(min(_WAIT_S, left_s))
            else:
                time.sleep(min(_WAIT_S, left_s))
                if not is_url(self._settings.path) or time.monotonic() - self._listed_at >= _LIST_S:
                    self._find_files()

    def rewind(self) -> None:
        """Read on from the stored positions."""
        self._postponed = None
        stored = self._positions(list(self._readers))
        for partition, reader in self._readers.items():
            reader.seek(stored.get(partition, 0))

    def assignment(self) -> frozenset[Partition]:
        """One partition for each file."""
        return frozenset(self._readers)

    def partitions(self) -> frozenset[Partition]:
        """The files that were found: this source reads them all."""
        return frozenset(self._readers)

    def hold(self, partitions: frozenset[Partition]) -> None:
        """Read nothing of exactly these files until told otherwise."""
        self._held = partitions

    def state(self) -> SourceState:
        """Files have no group, and no connection to lose."""
        return SourceState("none", self._opened, 0, 0, 0, {})

    def commit(self, next_offsets: Mapping[Partition, int]) -> None:
        """Stdin is not kept for a rewind before these offsets; files need no word of it."""
        for partition, offset in next_offsets.items():
            if partition in self._readers:
                self._readers[partition].forget(offset)

    def lag(self) -> Mapping[Partition, int]:
        """Bytes (jsonl) or rows not yet read, per file; of stdin, what has arrived."""
        return {partition: reader.remaining for partition, reader in self._readers.items()}

    def read_range(self, start_ms: int | None, end_ms: int | None) -> Iterator[RawBatch]:
        """All records with start_ms <= time < end_ms, file after file, up to the ends that the files have now.

        A record of a file has a time here only where the settings say ``time``. Without it, every record is given:
        its event time stands inside it, and the caller decides.
        """
        if self._settings.path == STDIN:
            self._find_files()
            yield from self._rest_of_stdin()
            return
        with ExitStack() as opened:
            readers: dict[Partition, Reader] = {}
            for path in self._paths():  # all at once: their ends are fixed now
                readers[Partition(path, 0)] = reader = self._reader(path, end=self._size(path))
                opened.callback(reader.close)
            for partition, reader in readers.items():
                while rows := reader.read(_ROWS):
                    batch = self._batch(partition, rows)
                    if self._settings.time is not None:
                        batch = _between(batch, start_ms, end_ms)
                    if len(batch):
                        yield batch

    def extents(self, start_ms: int | None, end_ms: int | None) -> dict[Partition, Span]:
        """See `connectors.records.Source.extents`: whole files, but where the settings say ``time``.

        Of lines the sizes are looked at only, of tables their heads; lines with ``time`` are counted.

        Raises:
            SourceError: stdin, or a file that cannot be read.
        """
        if self._settings.path == STDIN:
            raise SourceError("Stdin has no history to go back to.", hint="Name the files: path: data/*.jsonl")
        spans = {Partition(path, 0): self._extent(path, start_ms, end_ms) for path in self._paths()}
        return {partition: span for partition, span in spans.items() if len(span)}

    def between(self, spans: Mapping[Partition, Span]) -> Source:
        """See `connectors.records.Source.between`."""
        return FilesRange(spans, read=self._reader_of, batch=self._batch, verify=self._verify, whole=self)

    def next_start(self, partition: Partition, offset: int) -> int:
        """See `connectors.records.Cuttable.next_start`: any row of a table, the begin of a line."""
        path = partition.topic
        if offset <= 0 or self._format(path) != "jsonl":
            return max(0, offset)
        try:
            stream = ObjectBytes(self._store, path) if is_url(path) else FileBytes(path, end=None, follow=False)
        except OSError as error:
            raise cannot_be_read(path, error) from error
        try:
            return line_start(stream, offset)
        finally:
            stream.close()

    def read_at(self, positions: Sequence[tuple[Partition, int]]) -> Iterator[RawBatch]:
        """The records at these offsets, file after file, each read once from the first wanted offset on.

        Absent are those of files that are gone, offsets where no record begins, and everything of stdin.
        """
        wanted: dict[str, list[int]] = {}
        for partition, offset in positions:
            wanted.setdefault(partition.topic, []).append(offset)
        for path, offsets in sorted(wanted.items()):
            if self._settings.path == STDIN or not self._is_there(path):
                continue
            with ExitStack() as opened:
                reader = self._reader(path, end=self._size(path))
                opened.callback(reader.close)
                yield from self._rows_at(Partition(path, 0), reader, np.unique(np.array(offsets, dtype=np.int64)))

    def _rows_at(self, partition: Partition, reader: Reader, offsets: Int64s) -> Iterator[RawBatch]:
        for first in offsets.tolist():
            try:
                reader.seek(first)
                break
            except OffsetGap:  # no record begins there any more
                continue
        else:
            return
        while rows := reader.read(_ROWS):
            batch = self._batch(partition, rows)
            if found := np.flatnonzero(np.isin(batch.offsets, offsets)).tolist():
                yield batch.take(found)
            if rows.next_offset > offsets[-1]:
                return

    def _rest_of_stdin(self) -> Iterator[RawBatch]:
        while not all(reader.at_end for reader in self._readers.values()):
            for partition, reader in self._readers.items():
                select.select([self._stdin], [], [])
                if rows := reader.read(_ROWS):
                    reader.forget(rows.next_offset)
                    yield self._batch(partition, rows)

    def close(self) -> None:
        """Close the files. Stdin stays open: it is not ours."""
        for reader in self._readers.values():
            reader.close()
        self._readers = {}

    def _take_turns(self, max_records: int) -> list[RawBatch]:
        """An equal share of each file that is not at its end; which comes first moves on with each poll."""
        if self._postponed is not None:
            error, self._postponed = self._postponed, None
            raise error
        waiting = sorted(partition for partition, reader in self._readers.items() if not reader.at_end)
        waiting = [partition for partition in waiting if partition not in self._held]
        if not waiting:
            return []
        first = self._turn % len(waiting)
        self._turn += 1
        share = max(1, max_records // len(waiting))
        batches: list[RawBatch] = []
        left = max_records
        for partition in waiting[first:] + waiting[:first]:
            if left <= 0:
                break
            try:
                rows = self._readers[partition].read(min(share, left))
            except SourceError as error:
                if not batches:
                    raise
                self._postponed = error  # what the others gave must be handed over: they have gone on
                break
            if rows is not None:
                batches.append(self._batch(partition, rows))
                left -= len(rows.values)
        return batches

    def _batch(self, partition: Partition, rows: Rows) -> RawBatch:
        n = len(rows.values)
        times = np.full(n, -1, dtype=np.int64)
        if self._settings.time is not None:
            start_ms = _to_ms(self._settings.time.start)
            times = start_ms + np.floor(rows.numbers * self._settings.time.interval_ms).astype(np.int64)
        return RawBatch(
            partition=partition,
            offsets=rows.offsets,
            timestamps_ms=times,
            keys=[None] * n,
            values=rows.values,
            headers=[()] * n,
            next_offset=rows.next_offset,
        )

    def _find_files(self) -> None:
        """Take in the files that were not known yet."""
        self._listed_at = time.monotonic()
        if self._settings.path == STDIN:
            wanted = [Partition(self._settings.name, 0)]
        else:
            wanted = [Partition(path, 0) for path in self._paths()]
        new = [partition for partition in wanted if partition not in self._readers]
        stored = self._positions(new) if new else {}
        for partition in new:
            reader = self._stdin_reader() if self._settings.path == STDIN else self._reader(partition.topic)
            self._readers[partition] = reader
            try:
                reader.seek(stored.get(partition, 0))
            except SourceError:
                self._readers.pop(partition).close()
                raise

    def _paths(self) -> list[str]:
        """The files that the settings name, in the order of their names.

        Raises:
            UnknownTopic: there are none.
        """
        if is_url(self._settings.path):
            return self._find_objects(self._settings.path)
        try:
            return self._find_paths(self._settings.path)
        except PermissionError as error:  # a directory on the way
            raise cannot_be_read(self._settings.path, error) from error

    def _find_paths(self, wanted: str) -> list[str]:
        path = Path(wanted)
        if path.is_dir():
            found = sorted(str(inner) for inner in listed(path) if inner.is_file() and self._belongs(inner))
            what = "file that ends in " + ", ".join(self._suffixes())
        elif not path.exists() and glob.has_magic(wanted):
            found = sorted(name for name in glob.glob(wanted, recursive=True) if Path(name).is_file())  # noqa: PTH207 - also absolute
            what = "file"
        else:
            if not path.exists():
                raise UnknownTopic(f"There is no file {wanted}.", hint=nearest_name(path))
            return [wanted]
        return self._some(found, wanted, what)

    def _find_objects(self, wanted: str) -> list[str]:
        self._listed = self._store.find(wanted, lambda url: self._belongs(Path(url)))
        return self._some(list(self._listed), wanted, "object that ends in " + ", ".join(self._suffixes()))

    def _some(self, found: list[str], wanted: str, what: str) -> list[str]:
        if not found and not self._settings.follow:
            raise UnknownTopic(f"{wanted} holds no {what}.", hint="Name the files: path: data/*.jsonl, format: jsonl.")
        return found

    def _object(self, url: str) -> Object:
        """What the last list said of an object: one request for thousands of them."""
        return self._listed.get(url) or self._store.look(url)

    def _is_there(self, path: str) -> bool:
        if not is_url(path):
            return Path(path).is_file()
        try:
            self._store.look(path)
        except UnknownTopic:
            return False
        return True

    def _suffixes(self) -> list[str]:
        return [suffix for suffix, kind in SUFFIXES.items() if self._settings.format in ("auto", kind)]

    def _belongs(self, path: Path) -> bool:
        return path.suffix.lower() in self._suffixes() and not path.name.startswith(".")

    def _format(self, path: str) -> Format:
        suffix = Path(path).suffix.lower()
        if suffix in COMPRESSED:
            raise SourceError(
                f"{path} is compressed, and positions in it would mean nothing.",
                hint=f"Unpack it, or pipe it in with path: - (gunzip -c {path} | driftd run ...).",
            )
        if self._settings.format != "auto":
            return self._settings.format
        if suffix not in SUFFIXES:
            known = ", ".join(SUFFIXES)
            raise SourceError(
                f"{path} does not say what it is: known are {known}.", hint="Set format: jsonl, or another."
            )
        return SUFFIXES[suffix]

    def _size(self, path: str) -> int | None:
        """Bytes of complete lines that a file has now; None for tables, which do not grow.

        Raises:
            SourceError: it cannot be read.
        """
        if self._format(path) != "jsonl":
            return None
        if is_url(path):
            return self._object(path).size
        try:
            size = Path(path).stat().st_size
            return size if not self._settings.follow else after_last_line(path, size)
        except OSError as error:
            raise cannot_be_read(path, error) from error

    def _reader(self, path: str, *, end: int | None = None) -> Reader:
        kind = self._format(path)
        if is_url(path):
            return self._object_reader(path, kind, end)
        try:
            if kind == "parquet":
                return ParquetReader(path, codec=self._settings.rows)
            if kind == "npy":
                return NpyReader(path)
            stream = FileBytes(path, end=end, follow=self._settings.follow)
        except FileNotFoundError as error:
            raise UnknownTopic(f"There is no file {path}.", hint=nearest_name(Path(path))) from error
        except OSError as error:
            raise cannot_be_read(path, error) from error
        return LineReader(stream, open_ended=self._settings.follow, count_lines=self._settings.time is not None)

    def _reader_of(self, partition: Partition, span: Span) -> Reader:
        """A file that must still hold its span."""
        self._verify(partition, span)
        reader = self._reader(partition.topic, end=span.after)
        if reader.remaining < span.after:
            held = reader.remaining
            reader.close()
            raise OffsetGap(
                f"{partition.topic} ends at {held}, and should be read to {span.after}: cut off or replaced.",
                hint="Restore the file, or begin anew with the files that are there.",
            )
        return reader

    def _verify(self, partition: Partition, span: Span) -> None:
        if span.topic_id is not None and self._store.look(partition.topic).version != span.topic_id:
            raise replaced(partition.topic)

    def _extent(self, path: str, start_ms: int | None, end_ms: int | None) -> Span:
        """The offsets of one file between two times; all that are there now where its rows have none."""
        lines_end, times = self._size(path), self._settings.time
        version = (self._object(path).version or None) if is_url(path) else None
        if times is None and lines_end is not None:
            return Span(0, lines_end, version)
        reader = self._reader(path, end=lines_end)
        try:
            first, after = 0, reader.remaining
            if times is not None and end_ms is not None:
                after = _offset_of(reader, _number_since(end_ms, times), lines=lines_end is not None)
            if times is not None and start_ms is not None:
                first = _offset_of(reader, _number_since(start_ms, times), lines=lines_end is not None)
        finally:
            reader.close()
        return Span(first, after, version)

    def _object_reader(self, url: str, kind: Format, end: int | None) -> Reader:
        if kind == "parquet":
            return ParquetReader(url, codec=self._settings.rows, file=ObjectFile(self._store, url))
        if kind == "npy":
            return NpyReader(url, ObjectFile(self._store, url))
        stream = ObjectBytes(self._store, url, end=end)
        return LineReader(stream, open_ended=False, count_lines=self._settings.time is not None)

    def _stdin_reader(self) -> Reader:
        return LineReader(PipeBytes(self._stdin, self._settings.name), open_ended=False, count_lines=False)


def _number_since(wanted_ms: int, times: RowTimes) -> int:
    """The first row whose time is not before ``wanted_ms``."""
    away_ms = wanted_ms - _to_ms(times.start)
    number = max(0, math.ceil(away_ms / times.interval_ms))
    while number > 0 and math.floor((number - 1) * times.interval_ms) >= away_ms:  # what division rounded
        number -= 1
    while math.floor(number * times.interval_ms) < away_ms:
        number += 1
    return number


def _offset_of(reader: Reader, number: int, *, lines: bool) -> int:
    """The offset of a row by its number; the end of the file where there are fewer."""
    reader.seek(0)
    end = reader.remaining
    if not lines:
        return min(number, end)
    while rows := reader.read(_ROWS):
        at = int(np.searchsorted(rows.numbers, number))
        if at < len(rows.numbers):
            return int(rows.offsets[at])
    return end


def _between(batch: RawBatch, start_ms: int | None, end_ms: int | None) -> RawBatch:
    inside = np.ones(len(batch), dtype=bool)
    if start_ms is not None:
        inside &= batch.timestamps_ms >= start_ms
    if end_ms is not None:
        inside &= batch.timestamps_ms < end_ms
    return batch.take(np.flatnonzero(inside).tolist())


def _to_ms(moment: datetime) -> int:
    return math.floor(round(moment.timestamp() * 1e6) / 1000)


def _nothing_stored(partitions: Sequence[Partition]) -> Mapping[Partition, int]:
    return {}
