"""Vectors that the records hold ready: embeddings, logits, probabilities."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from detectors.errors import InvalidInput, InvalidReference
from detectors.reference import ANGULAR, STANDARD, TEXT, Geometry
from monitor.embedders.embedder import Columns, Embedded, Problem, decode_state, encode_state, fingerprint
from monitor.embedders.rows import Encoding, PackedRows
from monitor.pointers import FieldName

GeometryName = Literal["angular", "text", "standard"]
GEOMETRIES: dict[GeometryName, Geometry] = {"angular": ANGULAR, "text": TEXT, "standard": STANDARD}


class VectorSettings(BaseModel, frozen=True, extra="forbid"):
    """A vector that the record holds ready: an embedding, logits, probabilities."""

    kind: Literal["vector"] = "vector"
    field: FieldName = Field(description="where the vector stands; body for records of codec raw")
    encoding: Encoding = Field("list", description="list: an array of numbers; base64: text; bytes: raw or MessagePack")
    dtype: Literal["f2", "f4", "f8"] = Field("f4", description="type of the numbers in base64 and bytes")
    endian: Literal["little", "big"] = Field("little", description="byte order of the numbers in base64 and bytes")
    dimension: int | None = Field(None, ge=1, description="length of the vector; without it, learned from the baseline")
    geometry: GeometryName = Field(
        "angular", description="angular: most encoders; text: encoders of text; standard: length carries meaning"
    )

    def build(self) -> VectorEmbedder:
        """Make the embedder."""
        return VectorEmbedder(self)


class VectorEmbedder:
    """Reads ready vectors.

    Where the settings give no dimension, it is the most common one of the first batch that holds a vector, and then
    fixed with the reference.
    """

    kind = "vector"
    learns = False

    def __init__(self, settings: VectorSettings) -> None:
        self._settings = settings
        self._dimension = settings.dimension
        self._dtype = np.dtype(settings.dtype).newbyteorder("<" if settings.endian == "little" else ">")
        self.fields = (settings.field,)
        self.geometry = GEOMETRIES[settings.geometry]

    def fit(self, columns: Columns) -> None:
        """Take the dimension from a baseline. Raises InvalidInput where no row is a vector."""
        if self._settings.dimension is None:
            self._dimension = self._packed(columns).usual_length()
            if self._dimension is None:
                raise InvalidInput(
                    f"None of {len(columns[0])} records holds a vector in {self._settings.field}.",
                    hint="Check the field and the encoding of the embedder.",
                )

    def state(self) -> bytes:
        return b"" if self._dimension is None else encode_state(self.kind, self._dimension)

    def restore(self, state: bytes) -> None:
        if not state:
            self._dimension = self._settings.dimension
            return
        dimension = decode_state(self.kind, state, int)
        if self._settings.dimension not in (None, dimension):
            raise InvalidReference(
                f"The reference holds {dimension}-dimensional vectors; the settings say {self._settings.dimension}.",
                hint=f"Set dimension: {dimension}, or build a new reference: driftd reference build",
            )
        self._dimension = dimension

    def fingerprint(self) -> str:
        # The geometry is not part of it: it changes how vectors are compared, not the vectors.
        settings = self._settings.model_dump(exclude={"geometry", "dimension"})
        return fingerprint(self.kind, settings, self.state())

    def embed(self, columns: Columns) -> Embedded:
        packed = self._packed(columns)
        if self._dimension is None:
            self._dimension = packed.usual_length()
        embedded = packed.matrix(self._dimension or 0, zero_is_a_problem=True)
        if self._dimension is None:  # no row holds a single number
            detail = f"{self._settings.field} has no numbers."
            known = {problem.row: problem for problem in embedded.problems if problem.reason != "zero_vector"}
            rows = range(len(embedded.vectors))
            return Embedded(embedded.vectors, [known.get(row, Problem(row, "wrong_dimension", detail)) for row in rows])
        return embedded

    def _packed(self, columns: Columns) -> PackedRows:
        (column,) = columns
        settings = self._settings
        return PackedRows(column, field=settings.field, encoding=settings.encoding, dtype=self._dtype)
