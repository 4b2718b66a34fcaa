"""Files of documents on single records: JSON, a line each or a list, a table in CSV, or a Parquet file."""

from __future__ import annotations

import codecs
import csv
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from detectors.errors import InvalidInput

ROWS = 20_000  # of a Parquet file that are read at once

# Number and bytes of a line, or of what stands for one, and a function that gives its document.
Line = tuple[int, bytes, Callable[[], Any]]


def opened(name: str) -> tuple[BinaryIO, int]:
    """The bytes of a file or of standard input, and how many they are; 0 where that is not known."""
    if name == "-":
        return sys.stdin.buffer, 0
    try:
        stream = Path(name).open("rb")  # noqa: SIM115
        return stream, os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise InvalidInput(
            f"{name} cannot be read: {error.strerror}.", hint="Name a file that is there, such as FILE.jsonl."
        ) from error


def lines_of(stream: BinaryIO, name: str, *, needs: tuple[str, ...] = ("id", "label")) -> Iterator[Line]:
    """The documents of a file.

    Args:
        name: of the file: .csv and .parquet say what it holds.
        needs: columns that a table must have.

    Raises:
        InvalidInput: it is none of these, or lacks a column.
        BadLabel: it begins like a list in JSON, and is none; or, by the function of a line: the line is no JSON.
    """
    from monitor.labels import parse

    suffix = Path(name).suffix.lower()
    if suffix == ".parquet":
        yield from _of_parquet(stream, needs)
        return
    is_csv = suffix == ".csv"
    first = b""
    number = 0
    for number, first in enumerate(stream, start=1):  # noqa: B007
        if first.strip():
            break
    if not first.strip():
        return
    first = first.removeprefix(b"\xef\xbb\xbf")
    begin = first.lstrip()[:1]
    if is_csv or begin not in (b"{", b"["):
        yield from _table(first, stream, number, needs)
        return
    if begin == b"[":
        yield from _of_list(first + stream.read())
        return
    yield number, first.strip(), partial(parse, first)
    for line in stream:
        number += 1
        if line.strip():
            yield number, line.strip(), partial(parse, line)


def _of_list(body: bytes) -> Iterator[Line]:
    """The documents of a list, with their places in it instead of line numbers."""
    from monitor.labels import documents

    for number, document in enumerate(documents(body), start=1):
        yield number, json.dumps(document, sort_keys=True).encode(), partial(_just, document)


def _table(first: bytes, stream: BinaryIO, number: int, needs: tuple[str, ...]) -> Iterator[Line]:
    """The rows of a table in CSV, whose first line names the columns."""
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InvalidInput("The file is in UTF-16.", hint="Save it as CSV in UTF-8.")
    head = first.decode("utf-8", "replace").strip()
    # A spreadsheet writes semicolons where the comma is the decimal point.
    columns = {mark: [name.strip(' "').lower() for name in head.split(mark)] for mark in ",;\t"}
    mark = next((mark for mark, names in columns.items() if set(needs) <= set(names)), None)
    if mark is None:
        names = max(columns.values(), key=len)
        raise InvalidInput(
            f"The first line names the columns {', '.join(names)[:200]}; expected {' and '.join(needs)} among them.",
            hint=f"Such as: {','.join(needs)},time",
        )
    names = columns[mark]
    rows = csv.reader((line.decode("utf-8", "replace") for line in stream), delimiter=mark)
    try:
        for row in rows:
            if any(row):
                line = "\x1f".join(row).encode("utf-8", "replace")
                cells = [cell.strip() for cell in row]
                yield number + rows.line_num, line, partial(_just, dict(zip(names, cells, strict=False)))
    except csv.Error as error:
        raise InvalidInput(
            f"Line {number + rows.line_num} is no CSV: {error}.",
            hint="Mend it and give the file again: what was taken is known.",
        ) from error


def _of_parquet(stream: BinaryIO, needs: tuple[str, ...]) -> Iterator[Line]:
    """The rows of a Parquet file; what is empty there, or NaN, is not said."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(stream)
        names = [str(name).lower() for name in table.schema_arrow.names]
        if not set(needs) <= set(names):
            raise InvalidInput(
                f"The file has the columns {', '.join(names)[:200]}; expected {' and '.join(needs)} among them."
            )
        number = 0
        for batch in table.iter_batches(batch_size=ROWS):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                document = {name: _plain(value) for name, value in zip(names, row, strict=True)}
                line = json.dumps(document, sort_keys=True, default=str).encode()
                yield number, line, partial(_just, document)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(f"The file is no Parquet file that can be read: {error}.") from error


def _plain(value: Any) -> Any:
    """A value of a table as JSON would have it. Times without a zone are of UTC."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    return None if isinstance(value, float) and math.isnan(value) else value


def _just(document: Any) -> Any:
    return document
