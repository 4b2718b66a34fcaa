"""`driftd score`: a file of vectors in, a file of scores out."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput

ROWS = 8192  # rows scored at a time: memory stays bounded for files of any size
INPUTS = (".npy", ".parquet", ".jsonl")


def read_vectors(path: Path, field: str = "vector") -> tuple[int, Iterator[npt.NDArray[np.float32]]]:
    """The number of rows (-1 if only reading tells) and float32 (m, d) pieces of a file of vectors.

    Args:
        path: .npy with an (n, d) array; .parquet or .jsonl with one list of numbers a row in ``field``.

    Raises:
        InvalidInput: no such file, another format, not an array of numbers of two dimensions.
    """
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*") if p.suffix in INPUTS], n=1)
        raise InvalidInput(f"There is no file {path}.", hint=f"Did you mean {near[0]}?" if near else "")
    if path.suffix == ".npy":
        array = _mapped(path)
        return len(array), (
            np.ascontiguousarray(array[at : at + ROWS], dtype=np.float32) for at in range(0, len(array), ROWS)
        )
    if path.suffix == ".parquet":
        return _parquet(path, field)
    if path.suffix == ".jsonl":
        return -1, _jsonl(path, field)
    raise InvalidInput(f"{path} is neither .npy nor .parquet nor .jsonl.", hint="Save the vectors with numpy.save.")


def _mapped(path: Path) -> npt.NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InvalidInput(f"{path} is not a NumPy array file of numbers: {error}.") from error
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise InvalidInput(
            f"{path} holds an array of shape {array.shape} and type {array.dtype}; expected numbers of shape (n, d)."
        )
    return np.asarray(array)


def _parquet(path: Path, field: str) -> tuple[int, Iterator[npt.NDArray[np.float32]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise InvalidInput(f"{path} is not a Parquet file: {error}.") from error
    if field not in file.schema_arrow.names:
        raise InvalidInput(
            f"{path} has no column {field}; it has: {', '.join(file.schema_arrow.names)}.",
            hint="Name it: --field COLUMN",
        )

    def pieces() -> Iterator[npt.NDArray[np.float32]]:
        for batch in file.iter_batches(ROWS, columns=[field]):
            yield _matrix(batch.column(0).to_pylist(), path, field)

    return file.metadata.num_rows, pieces()


def _jsonl(path: Path, field: str) -> Iterator[npt.NDArray[np.float32]]:
    rows: list[Any] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                rows.append(msgspec.json.decode(line)[field])
            except (msgspec.DecodeError, KeyError, TypeError) as error:
                raise InvalidInput(
                    f"{path}, line {number}: expected a JSON object with the field {field}.",
                    hint="Name it: --field NAME",
                ) from error
            if len(rows) == ROWS:
                yield _matrix(rows, path, field)
                rows = []
    if rows:
        yield _matrix(rows, path, field)


def _matrix(rows: list[Any], path: Path, field: str) -> npt.NDArray[np.float32]:
    try:
        matrix = np.asarray(rows, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{path}: {field} does not hold lists of numbers of one length.") from error
    if matrix.ndim != 2:
        raise InvalidInput(f"{path}: {field} does not hold one list of numbers a row.")
    return matrix


def score_file(
    reference: Path,
    *,
    input: Path,  # noqa: A002 - the public name of the option
    output: Path,
    p_values: bool,
    field: str,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Score every row of ``input`` and write ``output``. Returns the number of rows.

    An .npy output holds the scores, float32 (n,), larger is stranger; with ``p_values`` the p-values instead, float64
    (n,). A .parquet or .jsonl output has the columns row and score, and p_value if asked.

    Raises:
        InvalidInput: a file cannot be read or written, or the dimensions differ.
        InvalidReference: the reference cannot be used.
    """
    from detectors import OutlierScorer, Reference

    if output.suffix not in INPUTS:
        raise InvalidInput(f"The output {output} must end in .npy, .parquet or .jsonl.")
    if not output.parent.is_dir():
        raise InvalidInput(
            f"The folder of the output, {output.parent}, does not exist.", hint=f"mkdir -p {output.parent}"
        )
    scorer = OutlierScorer(Reference.load(reference))
    total, pieces = read_vectors(input, field)
    scores: list[npt.NDArray[np.float32]] = []
    chances: list[npt.NDArray[np.float64]] = []
    done = 0
    for vectors in pieces:
        scores.append(scorer.score(vectors))
        if p_values:
            chances.append(scorer.p_values(vectors))
        done += len(vectors)
        if progress is not None:
            progress(done, total)
    score = np.concatenate(scores) if scores else np.empty(0, dtype=np.float32)
    chance = (np.concatenate(chances) if chances else np.empty(0)) if p_values else None
    _write(output, score, chance)
    return done


def _write(output: Path, score: npt.NDArray[np.float32], chance: npt.NDArray[np.float64] | None) -> None:
    partial = output.with_name(output.name + ".partial")
    columns: dict[str, npt.NDArray[Any]] = {"row": np.arange(len(score)), "score": score}
    if chance is not None:
        columns["p_value"] = chance
    try:
        if output.suffix == ".npy":
            with partial.open("wb") as file:
                np.save(file, score if chance is None else chance)
        elif output.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table(columns), partial)
        else:
            encode = msgspec.json.encode
            lists = [column.tolist() for column in columns.values()]
            with partial.open("wb") as file:
                for values in zip(*lists, strict=True):
                    file.write(encode(dict(zip(columns, values, strict=True))) + b"\n")
        partial.replace(output)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InvalidInput(f"{output} cannot be written: {error.strerror}.") from error
