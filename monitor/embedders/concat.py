"""Several embedders side by side: one vector that holds the vector of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np
from pydantic import BaseModel, Field, model_validator

from detectors.errors import InvalidInput
from detectors.geometry import CLIP, STANDARD, Geometry, column_scale
from monitor.embedders.embedder import (
    Columns,
    Embedded,
    Floats,
    decode_state,
    encode_state,
    fingerprint,
    not_fitted,
)
from monitor.embedders.parts import MadeOfParts, Part, Parts, problems_of, unit_rows, without


class ConcatSettings(BaseModel, frozen=True, extra="forbid"):
    """Several embedders side by side, each with a weight: a text with the numbers beside it."""

    kind: Literal["concat"] = "concat"
    parts: dict[str, Part] = Field(min_length=1, description="embedders of any kind, by a name of your choice")
    weights: dict[str, float] = Field(
        default_factory=dict, description="share of a part in squared distances, relative to others; without one, 1"
    )

    @model_validator(mode="after")
    def _weights_are_of_parts(self) -> ConcatSettings:
        if unknown := sorted(set(self.weights) - set(self.parts)):
            raise ValueError(f"weights name {', '.join(unknown)}, but the parts are {', '.join(self.parts)}")
        if any(not 0.0 < weight < float("inf") for weight in self.weights.values()):
            raise ValueError("a weight is a number above 0; leave a part out that shall not count")
        return self

    def build(self) -> ConcatEmbedder:
        """Make the embedder and its parts.

        Raises:
            InvalidInput: weights that would do nothing.
        """
        return ConcatEmbedder(self)


class _Scale(msgspec.Struct, frozen=True):
    """Mean and standard deviation of the columns of a part, float32 each."""

    centre: bytes
    deviation: bytes


class _Learned(msgspec.Struct, frozen=True):
    parts: dict[str, bytes]
    scales: dict[str, _Scale]


class ConcatEmbedder(MadeOfParts):
    """Puts vectors side by side.

    Where a direction is all that each part means (texts, images), each is scaled to length 1 and multiplied by the root
    of its weight, so that the weights are shares of the squared distance. Where the length of each counts (numbers,
    categories, tables), the columns stay as they are, for the reference standardises every column.

    Where there are both, the columns z of a part whose length counts are standardised with what the baseline was like,
    clipped at 8, and lifted onto the sphere: (1, z / root of the number of columns), scaled to length 1 (the inverse of
    the gnomonic projection). A common row lies about 45 degrees from the lifted origin, a wild one up to 90, so that
    length becomes direction.
    """

    kind = "concat"

    def __init__(self, settings: ConcatSettings) -> None:
        super().__init__(Parts({name: part.build() for name, part in settings.parts.items()}))
        units = {name: each.geometry.unit for name, each in self._parts.embedders.items()}
        self._standard = not any(units.values())
        if self._standard and len(set(settings.weights.values()) | {1.0}) > 1:
            raise InvalidInput(
                "weights of an embedder concat: the columns of all its parts are standardised, each counts the same.",
                hint="Leave weights out, or give each part a space of its own, with its weight.",
            )
        self._lifted = () if self._standard else tuple(name for name, unit in units.items() if not unit)
        self._scales: dict[str, _Scale] = {}
        self._stretch = {name: np.float32(np.sqrt(settings.weights.get(name, 1.0))) for name in settings.parts}
        self.learns = self.learns or bool(self._lifted)
        whitening = [each.geometry.whitening for each in self._parts.embedders.values() if each.geometry.unit]
        self.geometry = STANDARD if self._standard else Geometry(unit=True, whitening=min(whitening))

    def fit(self, columns: Columns) -> None:
        self._parts.fit(columns)
        if not self._lifted:
            return
        found = self._parts.embed(columns)
        n = len(columns[0])
        good = np.delete(np.arange(n), list(problems_of(found)))
        if len(good) == 0:
            raise InvalidInput(
                f"None of {n} records of the baseline can be embedded by all parts.",
                hint="Check the fields of each part.",
            )
        for name in self._lifted:
            centre, deviation = column_scale(lambda rows=found[name].vectors[good]: iter([rows]))  # type: ignore[misc]
            self._scales[name] = _Scale(centre.astype("<f4").tobytes(), deviation.astype("<f4").tobytes())

    def state(self) -> bytes:
        states = self._parts.states()
        return encode_state(self.kind, _Learned(states, self._scales)) if any(states.values()) or self._scales else b""

    def restore(self, state: bytes) -> None:
        learned = decode_state(self.kind, state, _Learned) if state else _Learned({}, {})
        self._parts.restore(learned.parts)
        self._scales = learned.scales

    def fingerprint(self) -> str:
        settings = {
            "parts": self._parts.fingerprints(),
            "weights": [float(stretch) for stretch in self._stretch.values()],
        }
        return fingerprint(self.kind, settings, self.state())

    def _joined(self, found: Mapping[str, Embedded], n: int) -> Embedded:
        if set(self._scales) != set(self._lifted):
            raise not_fitted(self.kind)
        placed = [self._placed(name, embedded.vectors) for name, embedded in found.items()]
        return without(np.concatenate(placed, axis=1), problems_of(found))

    def _placed(self, name: str, rows: Floats) -> Floats:
        if self._standard:
            return rows
        if name in self._lifted:
            scale = self._scales[name]
            centre, deviation = (np.frombuffer(each, dtype="<f4") for each in (scale.centre, scale.deviation))
            standardised = np.clip((rows - centre) / deviation, -CLIP, CLIP) / np.float32(np.sqrt(len(centre)))
            rows = np.concatenate([np.ones((len(rows), 1), dtype=np.float32), standardised], axis=1)
        return unit_rows(rows) * self._stretch[name]
