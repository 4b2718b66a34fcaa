"""Tables of ready vectors in local files: word vectors, and vectors of items by their ids.

What a file is, is told by its content:

* word2vec text and fastText ``.vec``: a line with the number of vectors and their dimension, then a line for each
  with the name and its numbers (Mikolov et al. 2013; Bojanowski et al. 2017)
* GloVe: the same without the first line (Pennington et al. 2014)
* word2vec binary: the same first line, then each name, a space and float32 numbers
* ``.npy``: float32, float64 or float16 (n, d), with the names in ``PATH.ids``, one in each line. Float32 is mapped, not
  read: processes share its memory
* Parquet: a column ``id`` and a column ``vector`` of lists

A table is read once by a process, and shared by all that need it.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final, Literal

import numpy as np

from detectors.errors import InvalidInput
from monitor.embedders.embedder import Floats

_COUNTS: Final = re.compile(rb"\s*[0-9]+ +[0-9]+ *\r?\n")
_HEAD: Final = 1 << 16  # bytes by which a file is told
_LINES: Final = 20_000  # that are parsed at a time
_LONGEST: Final = 1 << 20  # bytes of a line or name; beyond it, the file is something else
_KINDS: Final = "word2vec (text or binary), GloVe, fastText .vec, .npy with .npy.ids, or Parquet with id and vector"


class VectorTable:
    """Vectors by name.

    Args:
        names: of the rows; of equal ones, the first counts.
        vectors: float32 (n, d), finite.

    Attributes:
        names: of the rows.
        vectors: float32 (n, d), C-contiguous.
        row_of: the row of each name.
        digest: changes with any name or number.
    """

    def __init__(self, names: Sequence[str], vectors: Floats) -> None:
        self.names = names
        self.vectors = vectors
        self.row_of = {name: row for row, name in zip(range(len(names) - 1, -1, -1), reversed(names), strict=True)}
        digest = hashlib.blake2b("\n".join(names).encode("utf-8", "surrogatepass"), digest_size=16)
        for start in range(0, len(vectors), _LINES):
            digest.update(vectors[start : start + _LINES].astype("<f4", copy=False).tobytes())
        self.digest = digest.hexdigest()

    @property
    def dimension(self) -> int:
        return int(self.vectors.shape[1])

    @functools.cached_property
    def lowercased(self) -> dict[str, int]:
        """The row of each name in small letters; of several that become one, the first counts."""
        rows: dict[str, int] = {}
        for name, row in self.row_of.items():
            lowered = name.lower()
            rows[lowered] = min(row, rows.get(lowered, row))
        return rows


def check_path(path: Path, *, what: str) -> None:
    """Raise InvalidInput where there is no such file, or its first bytes are those of something else."""
    if not path.is_file():
        raise InvalidInput(
            f"There is no file {path} with {what}.", hint=f"Name a local file: {_KINDS}. Nothing is downloaded."
        )
    try:
        with path.open("rb") as file:
            _form(path, file.read(_HEAD))
    except OSError as error:
        raise _unreadable(path, error) from error


def read_table(path: Path, *, most: int) -> VectorTable:
    """The first ``most`` vectors of a file.

    Raises:
        InvalidInput: it cannot be read, or is none of the known kinds.
    """
    try:
        found = path.stat()
        return _read(path.resolve(), most, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise _unreadable(path, error) from error


@functools.lru_cache(maxsize=8)
def _read(path: Path, most: int, changed_ns: int, size: int) -> VectorTable:
    with path.open("rb") as file:
        begin = file.read(_HEAD)
        form, start, dimension = _form(path, begin)
        file.seek(start)
        if form == "npy":
            names, vectors = _from_npy(path, most)
        elif form == "parquet":
            names, vectors = _from_parquet(path, most)
        else:
            names, vectors = (_from_text if form == "text" else _from_binary)(file, path, dimension, most)
    if len(names) == 0:
        raise InvalidInput(f"{path} holds no vector.", hint=f"Expected: {_KINDS}.")
    if not np.isfinite(np.einsum("ij->", vectors, dtype=np.float64)) and not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise InvalidInput(f"{path}: vector {row} holds NaN or infinity.", hint="Repair the file.")
    return VectorTable(names, vectors)


def _form(path: Path, begin: bytes) -> tuple[Literal["npy", "parquet", "text", "binary"], int, int]:
    """What the first bytes of a file say: its form, where its vectors begin, and their dimension (0: not known yet).

    Raises:
        InvalidInput: it is none of the known kinds.
    """
    if begin.startswith(b"\x93NUMPY"):
        return "npy", 0, 0
    if begin.startswith(b"PAR1"):
        return "parquet", 0, 0
    if head := _COUNTS.match(begin):
        start, dimension = len(head[0]), int(head[0].split()[1])
        line = begin[start:].split(b"\n", 1)[0]
        return ("text" if _is_text(line, dimension) else "binary"), start, dimension
    line = begin.split(b"\n", 1)[0]
    dimension = len(line.split()) - 1
    if dimension < 1 or not _is_text(line, dimension):
        raise _unknown(path)
    return "text", 0, dimension


def _unreadable(path: Path, error: OSError) -> InvalidInput:
    return InvalidInput(f"{path} cannot be read: {type(error).__name__}.", hint="Check the path.")


def _unknown(path: Path) -> InvalidInput:
    return InvalidInput(f"{path} is no table of vectors that is known.", hint=f"Expected: {_KINDS}.")


def _is_text(line: bytes, dimension: int) -> bool:
    parts = line.split()
    try:
        line.decode()
        return len(parts) > dimension and len([float(part) for part in parts[-dimension:]]) == dimension
    except ValueError:
        return False


def _from_text(file: IO[bytes], path: Path, dimension: int, most: int) -> tuple[list[str], Floats]:
    names: list[str] = []
    pieces: list[Floats] = []
    while len(names) < most:
        lines = [line.rstrip() for line in itertools.islice(file, min(_LINES, most - len(names)))]
        if not lines:
            break
        split = [line.partition(b" ")[::2] for line in lines if line]
        numbers = _numbers([rest for _, rest in split], dimension)
        if numbers is None:  # a name may hold spaces; the numbers are what stands at the end
            tails = [line.rsplit(b" ", dimension) for line in lines if line]
            split = [(parts[0], b" ".join(parts[1:])) for parts in tails]
            numbers = _numbers([rest for _, rest in split], dimension)
        if numbers is None:
            first, last = len(names) + 1, len(names) + len(lines)
            raise InvalidInput(
                f"{path}: one of the vectors {first} to {last} is not a name and {dimension} numbers.",
                hint=f"Expected: {_KINDS}.",
            )
        names += [name.decode("utf-8", "replace") for name, _ in split]
        pieces.append(numbers)
    return names, np.concatenate(pieces) if pieces else np.zeros((0, dimension), dtype=np.float32)


def _numbers(lines: Sequence[bytes], dimension: int) -> Floats | None:
    """The numbers of each line, float32 (n, dimension); None where a line holds others, or something else."""
    if not lines:
        return np.zeros((0, dimension), dtype=np.float32)
    try:
        numbers = np.loadtxt(lines, dtype=np.float32, comments=None, ndmin=2)
    except ValueError:
        return None
    return numbers if numbers.shape == (len(lines), dimension) else None


def _from_binary(file: IO[bytes], path: Path, dimension: int, most: int) -> tuple[list[str], Floats]:
    names: list[str] = []
    numbers = bytearray()
    for name, packed in itertools.islice(_binary_rows(file, path, 4 * dimension), most):
        names.append(name)
        numbers += packed
    return names, np.frombuffer(numbers, dtype="<f4").reshape(len(names), dimension).astype(np.float32, copy=False)


def _binary_rows(file: IO[bytes], path: Path, size: int) -> Iterator[tuple[str, bytes]]:
    rest = b""
    while True:
        while (end := rest.find(b" ")) < 0 or len(rest) < end + 1 + size:
            piece = file.read(1 << 22)
            if not piece:
                if rest.strip():
                    raise InvalidInput(f"{path} ends within a vector.", hint="Copy the file again.")
                return
            rest += piece
            if end < 0 and len(rest) > _LONGEST and b" " not in rest[:_LONGEST]:
                raise _unknown(path)
        start = 0
        while (end := rest.find(b" ", start)) >= 0 and len(rest) >= end + 1 + size:
            # Some writers end each vector with a line feed, others do not.
            yield rest[start:end].lstrip(b"\n").decode("utf-8", "replace"), rest[end + 1 : end + 1 + size]
            start = end + 1 + size
        rest = rest[start:]


def _from_npy(path: Path, most: int) -> tuple[list[str], Floats]:
    beside = path.with_name(path.name + ".ids")
    if not beside.is_file():
        raise InvalidInput(
            f"{path} has no names: there is no {beside.name} beside it.", hint="Write one name a line, in row order."
        )
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        names = beside.read_text(encoding="utf-8").splitlines()
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} or {beside.name} is damaged: {type(error).__name__}.", hint="Write it anew.") from (
            error
        )
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != len(names):
        raise InvalidInput(
            f"{path} holds {vectors.dtype} {vectors.shape}, and {beside.name} {len(names)} names.",
            hint="Expected floating-point numbers (n, d) and n names.",
        )
    return names[:most], np.ascontiguousarray(vectors[:most], dtype=np.float32)


def _from_parquet(path: Path, most: int) -> tuple[list[str], Floats]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["id", "vector"])[:most]
        names = [str(name) for name in table.column("id").to_pylist()]
        column = table.column("vector").combine_chunks()
        lengths = np.unique(np.asarray(column.value_lengths()))
        numbers = np.asarray(column.flatten().cast(pa.float32()))
    except (pa.ArrowException, KeyError, AttributeError) as error:
        raise InvalidInput(
            f"{path} cannot be read as a table of vectors: {type(error).__name__}.",
            hint="Expected a column id and a column vector, of lists of numbers.",
        ) from error
    if len(lengths) > 1 or len(numbers) != len(names) * (int(lengths[0]) if len(lengths) else 0):
        raise InvalidInput(f"{path}: the vectors are not all of one length.", hint="Repair the table.")
    return names, np.array(numbers, dtype=np.float32).reshape(len(names), -1)
