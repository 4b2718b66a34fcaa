"""Rows of Parquet and NumPy files, by their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import RawIOBase
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from connectors.file_reader import Rows, first_sentence
from detectors.errors import OffsetGap, SourceError

_ROWS: Final = 8192  # most rows turned into values at a time
_PIECE: Final = 1024  # rows of a Parquet file that are held encoded
_BUFFER: Final = 1 << 20  # bytes of a column that are read at a time
_OBJECT_BUFFER: Final = 4 << 20  # a request of its own each


class _TableReader:
    """The part that Parquet and NumPy files share: rows by number, as many as there were when the file was opened."""

    def __init__(self, path: str, rows: int) -> None:
        self._path = path
        self._rows = rows
        self._next = 0

    @property
    def at_end(self) -> bool:
        return self._next >= self._rows

    @property
    def remaining(self) -> int:
        return self._rows - self._next

    def seek(self, offset: int) -> None:
        if offset > self._rows:
            raise OffsetGap(
                f"{self._path} has {self._rows} rows, but row {offset} was next: the file was replaced.",
                hint="Restore the file, or give the new one another name.",
            )
        self._next = offset

    def read(self, max_rows: int) -> Rows | None:
        if self.at_end:
            return None
        start, end = self._next, min(self._next + min(max_rows, _ROWS), self._rows)
        values = self._values(start, end)
        self._next = start + len(values)
        numbers = np.arange(start, self._next, dtype=np.int64)
        return Rows(numbers, numbers, values, self._next)

    def _values(self, start: int, end: int) -> list[bytes]:
        """The values of the rows from start on, up to end at most and at least one."""
        raise NotImplementedError

    def forget(self, offset: int) -> None:
        """Everything stays in the file."""

    def close(self) -> None:
        """Nothing is held open."""


class NpyReader(_TableReader):
    """Rows of a two-dimensional array of numbers: mapped into memory, or read by ranges from an object.

    Args:
        file: the object; otherwise ``path`` is a file of this machine.
    """

    def __init__(self, path: str, file: RawIOBase | None = None) -> None:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False) if file is None else _ArrayOfObject(file)
        except (ValueError, EOFError) as error:
            raise SourceError(
                f"{path} is not a NumPy file of numbers: {first_sentence(error)}.",
                hint="Write it with numpy.save(path, vectors), vectors float32 (n, d).",
            ) from error
        if isinstance(array, np.lib.npyio.NpzFile):
            array.close()
            raise SourceError(f"{path} is an archive of arrays.", hint="Write one array with numpy.save.")
        if array.ndim != 2 or array.dtype.kind not in "fiu":
            raise SourceError(
                f"{path} holds {array.dtype.name} {array.shape}; expected numbers (n, d).",
                hint="Write one row for each record: numpy.save(path, vectors.astype('float32')).",
            )
        super().__init__(path, len(array))
        self._array = array

    def _values(self, start: int, end: int) -> list[bytes]:
        with np.errstate(over="ignore"):  # becomes infinite, which the embedder refuses with its reason
            block = np.ascontiguousarray(self._array[start:end], dtype="<f4")
        packed, width = block.tobytes(), block.shape[1] * 4
        return [packed[at : at + width] for at in range(0, width * len(block), width)] if width else [b""] * len(block)


class _ArrayOfObject:
    """A NumPy array in an object: as much of an array as NpyReader asks for."""

    def __init__(self, file: RawIOBase) -> None:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its format is version {version[0]}.{version[1]}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, in_columns, self.dtype = read(file)
        if in_columns and self.ndim > 1:
            raise ValueError("it is stored by columns, so that its rows cannot be read one after another")
        self._file = file
        self._start = file.tell()

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        width = self.dtype.itemsize * self.shape[1]
        self._file.seek(self._start + rows.start * width)
        data = self._file.read((rows.stop - rows.start) * width)
        return np.frombuffer(data or b"", self.dtype).reshape(rows.stop - rows.start, self.shape[1])


class ParquetReader(_TableReader):
    """Rows of a Parquet file as JSON or MessagePack, read in pieces of a row group.

    Args:
        file: an object, read by ranges; otherwise ``path`` is a file of this machine.
    """

    def __init__(self, path: str, *, codec: Literal["json", "msgpack"], file: RawIOBase | None = None) -> None:
        import msgspec
        import pyarrow
        import pyarrow.parquet

        self._encode: Callable[[Any], bytes] = msgspec.json.encode if codec == "json" else msgspec.msgpack.encode
        self._errors: tuple[type[Exception], ...] = (pyarrow.ArrowException, OSError)
        try:
            self._file = pyarrow.parquet.ParquetFile(
                path if file is None else file, buffer_size=_BUFFER if file is None else _OBJECT_BUFFER
            )
        except FileNotFoundError:
            raise
        except PermissionError:
            raise
        except self._errors as error:
            raise self._damaged(path, error) from error
        metadata = self._file.metadata
        super().__init__(path, metadata.num_rows)
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._group_ends = np.cumsum(sizes, dtype=np.int64)
        self._pieces: Iterator[Any] = iter(())
        self._values_from = 0
        self._ready: list[bytes] = []

    def seek(self, offset: int) -> None:
        super().seek(offset)
        self._pieces, self._ready, self._values_from = iter(()), [], offset

    def _values(self, start: int, end: int) -> list[bytes]:
        if not self._values_from <= start < self._values_from + len(self._ready):
            self._load(start)
        first = start - self._values_from
        return self._ready[first : first + end - start]

    def _load(self, start: int) -> None:
        """Make the piece ready that holds a row: the next one of its row group, or the first ones after a jump."""
        at = self._values_from + len(self._ready)
        try:
            while True:
                piece = next(self._pieces, None)
                if piece is None:
                    group = int(np.searchsorted(self._group_ends, start, side="right"))
                    at = int(self._group_ends[group - 1]) if group else 0
                    self._pieces = self._file.iter_batches(batch_size=_PIECE, row_groups=[group])
                    continue
                at, before = at + piece.num_rows, at
                if before <= start < at:
                    self._ready, self._values_from = _encode_rows(piece, self._encode), before
                    return
        except self._errors as error:
            raise self._damaged(self._path, error) from error

    def _damaged(self, path: str, error: Exception) -> SourceError:
        return SourceError(
            f"{path} is not a Parquet file that can be read: {first_sentence(error)}.",
            hint="Write it again; a file must be complete before it gets its name.",
        )

    def close(self) -> None:
        self._file.close()


def _encode_rows(piece: Any, encode: Callable[[Any], bytes]) -> list[bytes]:
    """The rows of an Arrow record batch as objects.

    Lists of numbers of one length, the usual form of vectors, go through NumPy, which is ten times faster than Arrow's
    own conversion. Times without a zone are taken as UTC.
    """
    names = piece.schema.names
    columns = [_column_values(piece.column(index)) for index in range(len(names))]
    if not names:
        return [encode({})] * piece.num_rows
    return [encode(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def _column_values(column: Any) -> list[Any]:
    import pyarrow

    kind = column.type
    types = pyarrow.types
    if types.is_timestamp(kind):
        column = column.cast(pyarrow.timestamp("us", tz=kind.tz or "UTC"), safe=False)
        return list(column.cast(pyarrow.timestamp("us", tz="UTC")).to_pylist())
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if is_list and types.is_floating(kind.value_type) and column.null_count == 0 and len(column):
        numbers = column.flatten()
        if numbers.null_count == 0 and len(numbers) % len(column) == 0:
            width = len(numbers) // len(column)
            if types.is_fixed_size_list(kind) or (np.diff(column.offsets.to_numpy()) == width).all():
                values: list[Any] = numbers.to_numpy().reshape(len(column), width).tolist()
                return values
    return list(column.to_pylist())
