"""The mean of several vectors of one record: of several embedders, or of several fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np
from pydantic import BaseModel, Field, model_validator

from detectors.errors import InvalidInput
from detectors.geometry import Geometry
from monitor.embedders.embedder import Columns, Embedded, Embedder, Floats, decode_state, encode_state, fingerprint
from monitor.embedders.parts import MadeOfParts, Part, Parts, problems_of, unit_rows, without
from monitor.pointers import FieldName


class AverageSettings(BaseModel, frozen=True, extra="forbid"):
    """The mean of several vectors of a record: of one embedder on several fields, or of several embedders."""

    kind: Literal["average"] = "average"
    fields: tuple[FieldName, ...] = Field((), description="fields that one embedder embeds, with `embedder`")
    embedder: Part | None = Field(None, description="the embedder of all fields, written without its field")
    parts: dict[str, Part] = Field(
        default_factory=dict, description="embedders into the same dimension, by a name of your choice"
    )
    optional: bool = Field(
        False, description="what cannot be embedded of a record is left out of its mean; one vector must be there"
    )

    @model_validator(mode="before")
    @classmethod
    def _first_field(cls, value: Any) -> Any:
        """An embedder of several fields is written without one, and checked with the first."""
        if isinstance(value, Mapping) and value.get("fields") and isinstance(value.get("embedder"), Mapping):
            return {**value, "embedder": {"field": value["fields"][0], **value["embedder"]}}
        return value

    @model_validator(mode="after")
    def _one_of_two(self) -> AverageSettings:
        if bool(self.parts) == (self.embedder is not None) or (self.embedder is None) == bool(self.fields):
            raise ValueError("name either fields and the embedder of all of them, or parts")
        if self.fields and getattr(self.embedder, "field", self.fields[0]) != self.fields[0]:
            raise ValueError("fields name what is embedded; leave field out of the embedder")
        return self

    def build(self) -> AverageEmbedder:
        """Make the embedder and what it averages.

        Raises:
            InvalidInput: some parts mean a direction and others not, or the embedder of fields takes several.
        """
        return AverageEmbedder(self)


class _Learned(msgspec.Struct, frozen=True):
    parts: dict[str, bytes]


class AverageEmbedder(MadeOfParts):
    """Averages vectors; those that mean a direction are scaled to length 1 before.

    One embedder of several fields learns from all of them as if they were one.
    """

    kind = "average"

    def __init__(self, settings: AverageSettings) -> None:
        self._optional = settings.optional
        self._shared: Embedder | None = None if settings.embedder is None else settings.embedder.build()
        if self._shared is None:
            super().__init__(Parts({name: part.build() for name, part in settings.parts.items()}))
        else:
            if len(self._shared.fields) != 1:
                raise InvalidInput(
                    f'An average over fields needs an embedder of one field; "{self._shared.kind}" takes several.',
                    hint="Name each under parts.",
                )
            super().__init__(Parts(dict.fromkeys(settings.fields, self._shared)))
            self.fields = settings.fields
        self.geometry = _common_geometry(self._parts)

    def fit(self, columns: Columns) -> None:
        if self._shared is None:
            self._parts.fit(columns)
        else:
            self._shared.fit([[value for column in columns for value in column]])

    def state(self) -> bytes:
        states = self._parts.states()
        return encode_state(self.kind, _Learned(states)) if any(states.values()) else b""

    def restore(self, state: bytes) -> None:
        self._parts.restore(decode_state(self.kind, state, _Learned).parts if state else {})

    def fingerprint(self) -> str:
        settings = {"parts": self._parts.fingerprints(), "fields": self.fields, "optional": self._optional}
        return fingerprint(self.kind, settings, b"")

    def _joined(self, found: Mapping[str, Embedded], n: int) -> Embedded:
        usable = {name: each.vectors for name, each in found.items() if len(each.problems) < n}
        widths = {name: vectors.shape[1] for name, vectors in usable.items()}
        if len(set(widths.values())) > 1:
            listing = ", ".join(f"{name}: {width}" for name, width in widths.items())
            raise InvalidInput(
                f"An average needs vectors of one dimension, and they have several ({listing}).",
                hint="Put them side by side: kind: concat",
            )
        unit = self.geometry.unit
        total: Floats = np.zeros((n, next(iter(widths.values()), 0)), dtype=np.float32)
        for vectors in usable.values():  # zero, and so nothing, where there is a problem
            total += unit_rows(vectors) if unit else vectors
        present = np.full(n, len(found))
        for each in found.values():
            present[[problem.row for problem in each.problems]] -= 1
        problems = problems_of(found)
        if self._optional:
            problems = {row: what for row, what in problems.items() if present[row] == 0}
        total /= np.maximum(present, 1)[:, None].astype(np.float32)
        if unit:
            for row in np.flatnonzero(~total.any(axis=1)).tolist():
                problems.setdefault(row, ("zero_vector", "The vectors of the record cancel each other out."))
        return without(total, problems)


def _common_geometry(parts: Parts) -> Geometry:
    geometries = [each.geometry for each in parts.embedders.values()]
    if len({each.unit for each in geometries}) > 1:
        raise InvalidInput(
            "An average of vectors that mean a direction and of others whose length counts means neither.",
            hint="Put them side by side: kind: concat",
        )
    return min(geometries, key=lambda each: each.whitening)
