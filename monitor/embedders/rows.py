"""Rows of numbers as they stand in records: arrays, base64 text or bytes, read a batch at a time."""

from __future__ import annotations

import binascii
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np

from monitor.embedders.embedder import Embedded, Floats, Problem

Encoding = Literal["list", "base64", "bytes"]


class PackedRows:
    """A column of rows of numbers, each as the bytes of its numbers.

    Args:
        column: n raw values.
        field: the column's name, for the details of problems.
        encoding: list: arrays of numbers, flat or nested; base64: text; bytes: as they are.
        dtype: of the numbers in base64 and bytes; lists become float64.
    """

    def __init__(self, column: Sequence[Any], *, field: str, encoding: Encoding, dtype: np.dtype[Any]) -> None:
        self.dtype = np.dtype("<f8") if encoding == "list" else dtype
        self._field = field
        self._problems: dict[int, tuple[str, str]] = {}
        self._packed = self._pack_all(column, _PACK[encoding], encoding)

    def _pack_all(self, column: Sequence[Any], pack: Callable[[Any], bytes], encoding: Encoding) -> Sequence[bytes]:
        if encoding == "bytes" and set(map(type, column)) <= {bytes}:
            return column
        packed: list[bytes] = []
        for row, value in enumerate(column):
            try:
                packed.append(pack(value))
            except (TypeError, ValueError, OverflowError, struct.error, RecursionError):
                packed.append(b"")
                if value is None:
                    self._problems[row] = ("missing_field", f"{self._field} is missing.")
                else:
                    self._problems[row] = ("bad_vector", f"{self._field} is not {_EXPECTED[encoding]}.")
        return packed

    def usual_length(self) -> int | None:
        """The most common number of numbers in a row, the first of several; None where no row has any."""
        size = self.dtype.itemsize
        lengths = Counter(len(packed) // size for packed in self._packed if packed and len(packed) % size == 0)
        return max(lengths, key=lambda length: lengths[length]) if lengths else None

    def matrix(self, length: int, *, zero_is_a_problem: bool) -> Embedded:
        """The rows as float32 (n, length), and the rows that are not ``length`` finite numbers."""
        problems = dict(self._problems)
        packed = self._packed
        wanted = length * self.dtype.itemsize
        if set(map(len, packed)) - {wanted}:
            packed = list(packed)
            for row in [row for row, each in enumerate(packed) if len(each) != wanted]:
                packed[row] = self._of_size(row, packed[row], wanted, problems)
        # A bytearray, so that the rows can be written to.
        numbers = np.frombuffer(bytearray().join(packed), dtype=self.dtype).reshape(len(packed), length)
        with np.errstate(over="ignore", invalid="ignore"):
            vectors = np.ascontiguousarray(numbers, dtype=np.float32)
            _find_unusable(vectors, self._field, zero_is_a_problem, problems)
        if problems:
            vectors[list(problems)] = 0.0
        return Embedded(vectors, [Problem(row, *problems[row]) for row in sorted(problems)])

    def _of_size(self, row: int, packed: bytes, wanted: int, problems: dict[int, tuple[str, str]]) -> bytes:
        size = self.dtype.itemsize
        if len(packed) % size:
            what = f"{self._field} has {len(packed)} bytes, no whole number of {self.dtype.name}."
            problems.setdefault(row, ("bad_vector", what))
        else:
            what = f"{self._field} has {len(packed) // size} numbers; expected {wanted // size}."
            problems.setdefault(row, ("wrong_dimension", what))
        return bytes(wanted)


def _find_unusable(vectors: Floats, field: str, zero_is_a_problem: bool, problems: dict[int, tuple[str, str]]) -> None:
    """Rows that are not finite, or zero: one pass over all, then a close look at the few that stand out."""
    squares = np.einsum("ij,ij->i", vectors, vectors)
    for row in np.flatnonzero(~((squares > 0) & (squares < np.inf))).tolist():
        if not np.isfinite(vectors[row]).all():
            problems.setdefault(row, ("not_finite", f"{field} holds NaN or infinity, or more than float32 can."))
        elif zero_is_a_problem and not vectors[row].any():
            problems.setdefault(row, ("zero_vector", f"{field} is zero everywhere."))


def _pack_list(value: Any) -> bytes:
    if type(value) is not list:
        raise TypeError
    while value and type(value[0]) is list:
        _refuse_ragged(value)
        value = list(chain.from_iterable(value))
    return struct.pack(f"<{len(value)}d", *value)


def _refuse_ragged(rows: list[Any]) -> None:
    if set(map(type, rows)) != {list} or len(set(map(len, rows))) != 1:
        raise ValueError


def _pack_base64(value: Any) -> bytes:
    return binascii.a2b_base64(value, strict_mode=True)


def _pack_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError
    return bytes(value)


_PACK: dict[Encoding, Callable[[Any], bytes]] = {"list": _pack_list, "base64": _pack_base64, "bytes": _pack_bytes}
_EXPECTED: dict[Encoding, str] = {"list": "an array of numbers", "base64": "base64 text", "bytes": "bytes"}
