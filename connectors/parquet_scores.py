"""Writes the scores of every record to Parquet files: FOLDER/model=MODEL/date=YYYY-MM-DD/NAME.parquet.

A checkpoint makes one file for each day of event time that its records lie in. They are written to FOLDER/_pending and
brought to the disk before the transaction; its receipt is their name, and stands in the database as the last one of
each partition. After the transaction they are moved to their place. So a file is never seen before it counts, and what
a crash leaves in between is moved by the next owner of a partition, or deleted where the transaction was rolled back.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from connectors.scores import ScoredRecords, SpaceScores, Vectors, cleaned
from detectors.errors import SinkError

if TYPE_CHECKING:
    import pyarrow as pa

DAY_MS = 86_400_000
MOST_DAYS = 32  # of one checkpoint that get a file each; event times may be anything
# A dictionary of numbers that hardly repeat, such as vectors, costs twice the time of all the rest.
_REPEATING = ["topic", "space", "prediction", "segments.key_value.key", "segments.key_value.value"]
STRAY_S = 7 * 86_400.0  # no worker lives on for so long between writing a file and the end of its transaction


class ParquetScoresSettings(BaseModel, frozen=True, extra="forbid"):
    """Parquet files, of which each record is in exactly one."""

    kind: Literal["parquet"] = "parquet"
    path: Path = Field(description="folder, the same one for all workers: PATH/model=MODEL/date=YYYY-MM-DD/*.parquet")
    vectors: Vectors = Field(False, description="false, float16 or float32: a column with the prepared vectors")
    required: bool = Field(
        True, description="wait where the scores cannot be written; false: count them as dropped and go on"
    )

    def build(self, *, model: str, client_id: str) -> ParquetScores:
        """The writer. Makes no folder before it has something to write."""
        return ParquetScores(self.path, model=model, token=secrets.token_hex(4))


class ParquetScores:
    """A `ScoresWriter` of Parquet files.

    Args:
        folder: below which they go.
        token: differs between any two writers that ever write there; a part of the files' names.
    """

    def __init__(self, folder: Path, *, model: str, token: str) -> None:
        self._folder = folder
        self._model = model
        self._token = token
        self._written = 0
        self._pending = folder / "_pending" / model
        self._published = folder / f"model={model}"

    def check(self) -> str:
        """Write, move and delete a file; one line on where the scores will go.

        Raises:
            SinkError: that cannot be done.
        """
        with self._translated():
            for folder in (self._pending, self._published):
                _make(folder)
            probe = self._pending / f"check-{self._token}"
            probe.write_bytes(b"")
            moved = self._published / f"_check-{self._token}"
            probe.replace(moved)
            moved.unlink()
        return f"Parquet files in {self._published}"

    def write(self, records: Sequence[ScoredRecords], now_ms: int) -> str:
        """Write the files of one checkpoint beside those that are seen.

        Raises:
            SinkError: the folder cannot be written.
        """
        if not records:
            return ""
        import pyarrow.parquet as pq

        topic, number = records[0].partition
        self._written += 1
        place = re.sub(r"[^A-Za-z0-9._]", "_", topic)[-80:]
        receipt = f"{place}-{number}-{records[0].offsets[0]}-{self._token}{self._written:x}"
        pending = self._pending / receipt
        table = table_of(records)
        days = np.concatenate([each.time_ms // DAY_MS for each in records for _ in each.spaces])
        found = np.unique(days)
        if len(found) > MOST_DAYS:
            days[:] = days[0]
            found = days[:1]
        try:
            with self._translated():
                _make(pending)
                for day in found:
                    path = pending / f"date={np.datetime_as_string(np.datetime64(int(day), 'D'))}.parquet"
                    rows = table if len(found) == 1 else table.filter(days == day)
                    pq.write_table(rows, path, compression="zstd", use_dictionary=_REPEATING)
                    _to_disk(path)
                _to_disk(pending)
        except SinkError:
            self.discard(receipt)
            raise
        return receipt

    def publish(self, receipt: str) -> None:
        """Move the files of a checkpoint to where they are seen, unless somebody did.

        Raises:
            SinkError: the folder cannot be written.
        """
        pending = self._pending / receipt
        with self._translated():
            for name in _names(pending):
                day = self._published / name.removesuffix(".parquet")
                _make(day)
                # Another worker that found the receipt in the database may be faster.
                with contextlib.suppress(FileNotFoundError):
                    (pending / name).replace(day / f"{receipt}.parquet")
                _to_disk(day)
            with contextlib.suppress(FileNotFoundError):
                pending.rmdir()

    def discard(self, receipt: str) -> None:
        """Delete the files of a checkpoint that was rolled back."""
        shutil.rmtree(self._pending / receipt, ignore_errors=True)

    def sweep(self, committed: Collection[str], now_ms: int) -> None:
        """Delete files that a crash has left behind a week ago, and whose transaction was rolled back."""
        with contextlib.suppress(OSError):
            for name in _names(self._pending):
                age_s = now_ms / 1000 - (self._pending / name).stat().st_mtime
                if name not in committed and age_s > STRAY_S:
                    self.discard(name)

    def close(self) -> None:
        """Nothing is open between two checkpoints."""

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (OSError, pa.ArrowException) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise SinkError(
                f"The scores of model {self._model} cannot be written to {self._folder}: {why}.",
                retryable=True,
                hint=f"Make room, or the folder writable for driftd's user: models.{self._model}.scores.path",
            ) from error


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _make(folder: Path) -> None:
    """A folder, and those above it where they are missing; all of them survive a power cut."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _to_disk(each.parent)


def _to_disk(path: Path) -> None:
    """A file's content, or a folder's names, survive a power cut from now on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def table_of(records: Sequence[ScoredRecords]) -> pa.Table:
    """One row for each record and space, space by space within each batch; docs/scores.md describes the columns."""
    import pyarrow as pa

    return pa.concat_tables([_rows(each, space) for each in records for space in each.spaces])


def _rows(records: ScoredRecords, scores: SpaceScores) -> pa.Table:
    import pyarrow as pa

    n = len(records)
    confidence = records.confidence
    columns: dict[str, Any] = {
        "topic": pa.repeat(records.partition.topic, n),
        "partition": pa.repeat(pa.scalar(records.partition.number, pa.int32()), n),
        "offset": pa.array(records.offsets),
        "row": pa.array(records.rows.astype(np.int32)),
        "time": pa.array(records.time_ms).cast(pa.timestamp("ms", tz="UTC")),
        "id": _texts(records.ids),
        "space": pa.repeat(scores.space, n),
        "reference": pa.repeat(pa.scalar(scores.reference, pa.int32()), n),
        "score": pa.array(scores.score),
        "p_value": pa.array(scores.p_value),
        "candidate": pa.array(scores.candidate),
        "late": pa.array(records.late),
        "thinned": pa.array(records.thinned),
        "prediction": pa.nulls(n, pa.string()) if records.predictions is None else _texts(records.predictions),
        "confidence": pa.nulls(n, pa.float64()) if confidence is None else pa.array(confidence, from_pandas=True),
        "segments": _maps(records.segments, n),
        "nearest": pa.array(scores.nearest),
    }
    if records.fraud is not None:
        columns |= {
            "fraud_probability": pa.array(records.fraud.probability),
            "fraud_p_value": pa.array(records.fraud.p_value),
            "fraud_labels": pa.array(records.fraud.version),
            "fraud_flood": pa.array(records.fraud.flood),
        }
    if scores.vectors is not None:
        width = scores.vectors.shape[1]
        columns["vector"] = pa.ListArray.from_arrays(
            pa.array(np.arange(0, (n + 1) * width, width, dtype=np.int32)), pa.array(scores.vectors.reshape(-1))
        )
    return pa.table(columns)


def _maps(segments: dict[str, Sequence[str]], n: int) -> pa.Array:
    import pyarrow as pa

    fields = len(segments)
    return pa.MapArray.from_arrays(
        pa.array(np.arange(0, fields * n + 1, fields, dtype=np.int32) if fields else np.zeros(n + 1, np.int32)),
        pa.array(list(segments) * n, pa.string()),
        _texts(list(chain.from_iterable(zip(*segments.values(), strict=True)))),
    )


def _texts(column: Sequence[str | None]) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(column, pa.string())
    except UnicodeEncodeError:
        return pa.array(cleaned(column), pa.string())
