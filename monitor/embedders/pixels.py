"""Images that the records hold as arrays of pixels."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, field_validator

from detectors.errors import InvalidInput, InvalidReference
from detectors.reference import Geometry
from monitor.embedders.embedder import Columns, Embedded, decode_state, encode_state, fingerprint, not_fitted
from monitor.embedders.projection import Projection
from monitor.embedders.rows import Encoding, PackedRows
from monitor.pointers import FieldName


class PixelsSettings(BaseModel, frozen=True, extra="forbid"):
    """An image as an array of pixels; small images of one size, such as scans of digits."""

    kind: Literal["pixels"] = "pixels"
    field: FieldName = Field(description="where the pixels stand")
    shape: tuple[int, ...] = Field(description="[height, width] or [height, width, channels]")
    encoding: Encoding = Field("list", description="list: nested or flat; base64: text; bytes: raw or MessagePack")
    dtype: Literal["u1", "f4"] = Field("u1", description="type of the pixels in base64 and bytes: uint8 or float32")
    maximum: float = Field(255.0, gt=0, description="the value of a full pixel; 1 where pixels are fractions already")
    dimension: int | None = Field(None, ge=1, description="principal components kept; without it, every pixel counts")
    # Measured on 8 x 8 digits, an unknown one among eight known, 500 prototypes: mean AUROC .93 with .25, .91 with .5,
    # .86 standardised without unit length.
    whitening: float = Field(0.25, ge=0, le=1, description="power of the soft whitening, 0: none")

    @field_validator("shape")
    @classmethod
    def _is_a_shape(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(value) not in (2, 3) or min(value) < 1:
            raise ValueError("expected [height, width] or [height, width, channels], such as [28, 28]")
        if math.prod(value) > 1 << 16:
            raise ValueError(f"{math.prod(value)} values in an image; at most 65536, larger images need an encoder")
        return value

    def build(self) -> PixelsEmbedder:
        """Make the embedder."""
        return PixelsEmbedder(self)


class _Learned(msgspec.Struct):
    shape: tuple[int, ...]
    projection: Projection


class PixelsEmbedder:
    """Flattens images, scales pixels to 0..1, and projects them on their principal components where asked to."""

    kind = "pixels"

    def __init__(self, settings: PixelsSettings) -> None:
        self._settings = settings
        self._projection: Projection | None = None
        self.fields = (settings.field,)
        self.geometry = Geometry(unit=True, whitening=settings.whitening)
        self.learns = settings.dimension is not None

    def fit(self, columns: Columns) -> None:
        if self._settings.dimension is None:
            return
        scaled = self._scaled(columns)
        bad = [problem.row for problem in scaled.problems]
        rows = np.delete(scaled.vectors, bad, axis=0)
        if len(rows) == 0:
            raise InvalidInput(
                f"None of {len(scaled.vectors)} records holds an image in {self._settings.field}.",
                hint="Check the field, the shape and the encoding of the embedder.",
            )
        self._projection = Projection.fit(rows, self._settings.dimension)

    def state(self) -> bytes:
        if self._projection is None:
            return b""
        return encode_state(self.kind, _Learned(self._settings.shape, self._projection))

    def restore(self, state: bytes) -> None:
        if not state:
            self._projection = None
            return
        learned = decode_state(self.kind, state, _Learned)
        if learned.shape != self._settings.shape or learned.projection.dimension != self._settings.dimension:
            raise InvalidReference(
                f"The reference was made from images of {list(learned.shape)} with {learned.projection.dimension} "
                f"components; the settings say {list(self._settings.shape)} and {self._settings.dimension}.",
                hint="Restore the settings, or build a new reference: driftd reference build",
            )
        self._projection = learned.projection

    def fingerprint(self) -> str:
        return fingerprint(self.kind, self._settings.model_dump(exclude={"whitening"}), self.state())

    def embed(self, columns: Columns) -> Embedded:
        scaled = self._scaled(columns)
        if self._settings.dimension is None:
            return scaled
        if self._projection is None:
            raise not_fitted(self.kind)
        vectors = self._projection.apply(scaled.vectors)
        vectors[[problem.row for problem in scaled.problems]] = 0.0
        return Embedded(vectors, scaled.problems)

    def picture(self, value: object) -> npt.NDArray[np.uint8] | None:
        """One record's image for the eye: uint8 (h, w) or (h, w, 3); None where it is broken or has other channels.

        Args:
            value: the raw value of the field.
        """
        shape = self._settings.shape
        if len(shape) == 3 and shape[2] not in (1, 3):
            return None
        scaled = self._scaled([[value]])
        return None if scaled.problems else self._drawn(scaled.vectors[0])

    def picture_of(self, vector: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8] | None:
        """The image whose vector this is, see `picture`; None where components of it are all that is known."""
        shape = self._settings.shape
        if self._settings.dimension is not None or len(vector) != math.prod(shape):
            return None
        return None if len(shape) == 3 and shape[2] not in (1, 3) else self._drawn(vector)

    def _drawn(self, scaled: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        shape = self._settings.shape
        pixels: npt.NDArray[np.uint8] = np.clip(np.rint(scaled * 255.0), 0, 255).astype(np.uint8)
        return pixels.reshape(shape[:2] if len(shape) == 2 or shape[2] == 1 else shape)

    def _scaled(self, columns: Columns) -> Embedded:
        (column,) = columns
        settings = self._settings
        dtype = np.dtype(settings.dtype).newbyteorder("<")
        packed = PackedRows(column, field=settings.field, encoding=settings.encoding, dtype=dtype)
        # A blank image has no direction; around the mean of the baseline it is an image like others.
        embedded = packed.matrix(math.prod(settings.shape), zero_is_a_problem=settings.dimension is None)
        np.multiply(embedded.vectors, np.float32(1.0 / settings.maximum), out=embedded.vectors)
        return embedded
