"""A user or a basket by its items: the mean of the vectors of the last items that the record names."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field, model_validator

from monitor.embedders.embedder import Columns, Embedded, Floats, fingerprint
from monitor.embedders.parts import Problems, listed
from monitor.embedders.vector import GEOMETRIES, GeometryName
from monitor.embedders.vector_table import VectorTable, check_path, read_table
from monitor.pointers import FieldName


class EntitySettings(BaseModel, frozen=True, extra="forbid"):
    """A user, a basket or an item: the mean vector of the last items that a record names."""

    kind: Literal["entity"] = "entity"
    field: FieldName = Field(description="where the items stand, oldest first: a list, or one alone")
    path: Path | None = Field(
        None, description="file of item vectors by id; without one, the field holds the items' vectors"
    )
    dimension: int | None = Field(None, ge=1, description="length of an item's vector, where there is no path")
    last: int = Field(50, ge=1, le=10_000, description="items that count, from the end of the list")
    most_items: int = Field(1_000_000, ge=1, description="items that are read of the file; 4 x dimension bytes each")
    geometry: GeometryName = Field(
        "angular", description="angular: most encoders; text: encoders of text; standard: length carries meaning"
    )

    @model_validator(mode="after")
    def _one_source_of_vectors(self) -> EntitySettings:
        if (self.path is None) == (self.dimension is None):
            raise ValueError("name either the path of a file of item vectors, or their dimension in the records")
        return self

    def build(self) -> EntityEmbedder:
        """Make the embedder. The file is read with the first record.

        Raises:
            InvalidInput: there is no such file.
        """
        return EntityEmbedder(self)


class EntityEmbedder:
    """Averages item vectors.

    A record's vector is made of that record alone: nothing is remembered of the user from one record to the next. Items
    that the file does not have are left out; a record of which none is known is a problem.
    """

    kind = "entity"
    learns = False

    def __init__(self, settings: EntitySettings) -> None:
        if settings.path is not None:
            check_path(settings.path, what="item vectors")
        self._settings = settings
        self._table: VectorTable | None = None
        self.fields = (settings.field,)
        self.geometry = GEOMETRIES[settings.geometry]

    def fit(self, columns: Columns) -> None:
        """The items' vectors are made already."""

    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        """There is nothing to restore."""

    def fingerprint(self) -> str:
        # The geometry changes how vectors are compared, not the vectors.
        settings = self._settings.model_dump(mode="json", exclude={"path", "most_items", "geometry"})
        items = "" if self._settings.path is None else self._loaded().digest
        return fingerprint(self.kind, {**settings, "items": items}, b"")

    def embed(self, columns: Columns) -> Embedded:
        (column,) = columns
        problems: Problems = {}
        if self._settings.path is None:
            vectors = self._mean_of_given(column, problems)
        else:
            vectors = self._mean_of_known(column, problems)
        for row in np.flatnonzero(~vectors.any(axis=1)).tolist():
            problems.setdefault(row, ("zero_vector", f"The items of {self._settings.field} add up to nothing."))
        return Embedded(vectors, listed(problems))

    def _mean_of_known(self, column: Sequence[Any], problems: Problems) -> Floats:
        table = self._loaded()
        vectors = np.zeros((len(column), table.dimension), dtype=np.float32)
        rows: list[int] = []
        places: list[int] = []
        counts: list[int] = []
        for row, value in enumerate(column):
            items = self._items(row, value, problems)
            known = [place for place in map(table.row_of.get, items) if place is not None]
            if known:
                rows.append(row)
                places += known
                counts.append(len(known))
            elif items:
                problems[row] = ("bad_value", f"{self._settings.field}: none of {len(items)} items is known.")
        if rows:
            vectors[rows] = _means(table.vectors[places], counts)
        return vectors

    def _items(self, row: int, value: Any, problems: Problems) -> list[str]:
        """The ids of the last items; empty, with the reason, where there is none."""
        field = self._settings.field
        if value is None:
            problems[row] = ("missing_field", f"{field} is missing.")
            return []
        items = (value if type(value) is list else [value])[-self._settings.last :]
        if not items:
            problems[row] = ("bad_value", f"{field} names no item.")
        if not all(type(item) in (str, int) for item in items):
            problems[row] = ("bad_value", f"{field} holds an item that is neither text nor an integer.")
            return []
        return [item[:256] if type(item) is str else _id_of(item) for item in items]

    def _mean_of_given(self, column: Sequence[Any], problems: Problems) -> Floats:
        dimension, field = self._settings.dimension or 0, self._settings.field
        vectors = np.zeros((len(column), dimension), dtype=np.float32)
        rows: list[int] = []
        counts: list[int] = []
        numbers: list[Floats] = []
        for row, value in enumerate(column):
            if value is None:
                problems[row] = ("missing_field", f"{field} is missing.")
                continue
            items = value[-self._settings.last :] if type(value) is list else []
            if not items or set(map(type, items)) != {list}:
                problems[row] = ("bad_vector", f"{field} is not a list of vectors.")
                continue
            if set(map(len, items)) != {dimension}:
                problems[row] = ("wrong_dimension", f"{field} holds an item that is not {dimension} numbers.")
                continue
            try:
                packed = struct.pack(f"<{len(items) * dimension}d", *chain.from_iterable(items))
            except (struct.error, OverflowError):
                problems[row] = ("bad_vector", f"{field} holds an item with something else than numbers.")
                continue
            with np.errstate(over="ignore"):
                matrix = np.frombuffer(packed, dtype="<f8").astype(np.float32).reshape(-1, dimension)
            if not np.isfinite(matrix).all():
                problems[row] = ("not_finite", f"{field} holds NaN or infinity, or more than float32 can.")
                continue
            rows.append(row)
            counts.append(len(items))
            numbers.append(matrix)
        if rows:
            vectors[rows] = _means(np.concatenate(numbers), counts)
        return vectors

    def _loaded(self) -> VectorTable:
        if self._table is None:
            assert self._settings.path is not None  # asked for only then
            self._table = read_table(self._settings.path, most=self._settings.most_items)
        return self._table


def _id_of(item: int) -> str:
    return str(item) if abs(item) < 1 << 128 else ""


def _means(rows: Floats, counts: Sequence[int]) -> Floats:
    """Means of consecutive rows, as many as ``counts`` says, each at least 1: float32 (len(counts), d)."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.intp)
    # In float64: vectors near the largest float32 have a mean, and their sum need not have one.
    sums = np.add.reduceat(rows.astype(np.float64), starts, axis=0)
    return np.asarray(sums / np.array(counts)[:, None], dtype=np.float32)
