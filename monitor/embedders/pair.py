"""Two embedders into one space: whether the two sides of a record belong together.

A caption and its image (the two towers of CLIP: Radford et al. 2021), a question and its answer, a user and an item.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from detectors.errors import InvalidInput
from detectors.geometry import ANGULAR, STANDARD
from detectors.index import stable_product
from monitor.embedders.embedder import (
    Columns,
    Embedded,
    Floats,
    decode_state,
    encode_state,
    fingerprint,
    not_fitted,
)
from monitor.embedders.ngrams import mixed
from monitor.embedders.number import NumberEmbedder, NumberSettings
from monitor.embedders.parts import MadeOfParts, Part, Parts, problems_of, unit_rows, without

_DIRECTIONS = 16


class PairSettings(BaseModel, frozen=True, extra="forbid"):
    """Two sides of a record in one space: caption and image, user and item; how well they match."""

    kind: Literal["pair"] = "pair"
    left: Part = Field(description="embedder of one side, of any kind")
    right: Part = Field(description="embedder of the other side, into the same dimension")
    score: Literal["affinity", "both"] = Field(
        "affinity", description="affinity: a low one alone is strange; both: what is paired with what, too"
    )
    measure: Literal["cosine", "dot"] = Field(
        "cosine", description="dot: where the lengths of the vectors carry meaning, as in factorised ratings"
    )

    def build(self) -> AffinityEmbedder | PairEmbedder:
        """Make the embedder and those of both sides."""
        return AffinityEmbedder(self) if self.score == "affinity" else PairEmbedder(self)


class _Learned(msgspec.Struct, frozen=True):
    parts: dict[str, bytes]
    median: float  # of the affinity; 0 where it is not learned
    number: bytes  # state of the number


class AffinityEmbedder(MadeOfParts):
    """Makes vectors of how well two sides match.

    The affinity, the cosine or the product of the two vectors, becomes a number as those of kind ``number``, but that
    all above the median of the baseline count as the median: an uncommonly good match is nothing strange.

    16 more columns hold how far the affinity lies below the median, in standard deviations, times the direction in
    which the two sides part, as it looks along 16 random directions (Johnson and Lindenstrauss 1984). Without them, a
    low affinity would be near to the few that are about as low, and no stranger than these.
    """

    kind = "pair"
    geometry = STANDARD

    def __init__(self, settings: PairSettings) -> None:
        super().__init__(_sides(settings))
        self.learns = True
        self._measure = settings.measure
        self._median: float | None = None
        self._number = NumberEmbedder(NumberSettings(field="/affinity"))

    def fit(self, columns: Columns) -> None:
        self._parts.fit(columns)
        found = self._parts.embed(columns)
        n = len(columns[0])
        good = np.delete(np.arange(n), list(problems_of(found)))
        if len(good) == 0:
            raise InvalidInput(
                f"None of {n} records of the baseline has both sides.", hint="Check the fields of left and right."
            )
        affinity = _affinity(found, self._measure, n)[good]
        median = float(np.median(affinity))
        if not affinity.min() < median:
            raise InvalidInput(
                f"Left and right match equally well in {len(good)} records of the baseline: nothing to compare with.",
                hint="Leave this space out, or name other fields.",
            )
        self._number.fit([np.minimum(affinity, median).tolist()])
        self._median = median

    def state(self) -> bytes:
        if self._median is None:
            return b""
        return encode_state(self.kind, _Learned(self._parts.states(), self._median, self._number.state()))

    def restore(self, state: bytes) -> None:
        learned = decode_state(self.kind, state, _Learned) if state else None
        self._parts.restore({} if learned is None else learned.parts)
        self._number.restore(b"" if learned is None else learned.number)
        self._median = None if learned is None else learned.median

    def fingerprint(self) -> str:
        settings = {"parts": self._parts.fingerprints(), "score": "affinity", "measure": self._measure}
        return fingerprint(self.kind, settings, self.state())

    def number_of(self, value: float) -> float:
        """The affinity whose column `monitor.embedders.number.VALUE_COLUMN` is ``value``.

        Raises:
            InvalidReference: nothing was learned yet.
        """
        return self._number.number_of(value)

    def _joined(self, found: Mapping[str, Embedded], n: int) -> Embedded:
        if self._median is None:
            raise not_fitted(self.kind)
        affinity = np.minimum(_affinity(found, self._measure, n), self._median)
        number = self._number.embed([affinity.tolist()]).vectors
        below = ((self._median - affinity) / self._number.deviation).astype(np.float32)[:, None]
        left, right = (unit_rows(each.vectors) for each in found.values())
        if left.shape != right.shape:  # a side of problems only
            return without(np.concatenate([number, np.zeros((n, _DIRECTIONS))], axis=1), problems_of(found))
        parting = unit_rows(stable_product(left - right, _directions(left.shape[1])))
        return without(np.concatenate([number, below * parting], axis=1), problems_of(found))


class PairEmbedder(MadeOfParts):
    """Makes vectors of what is paired with what.

    Columns: the left side and the right one, each of length 1; their product, column by column, scaled to length 1; and
    the cosine, or the product of the two divided by the typical one of the baseline, at most 8 times that.
    """

    kind = "pair"
    geometry = ANGULAR

    def __init__(self, settings: PairSettings) -> None:
        super().__init__(_sides(settings))
        self._measure = settings.measure
        self._typical: float | None = None
        self.learns = self.learns or settings.measure == "dot"

    def fit(self, columns: Columns) -> None:
        self._parts.fit(columns)
        if self._measure == "cosine":
            return
        found = self._parts.embed(columns)
        n = len(columns[0])
        good = np.delete(np.arange(n), list(problems_of(found)))
        if len(good) == 0:
            raise InvalidInput(
                f"None of {n} records of the baseline has both sides.", hint="Check the fields of left and right."
            )
        self._typical = float(np.sqrt(np.square(_affinity(found, "dot", n)[good]).mean())) or 1.0

    def state(self) -> bytes:
        states = self._parts.states()
        learned = _Learned(states, self._typical or 0.0, b"")
        return encode_state(self.kind, learned) if any(states.values()) or self._typical is not None else b""

    def restore(self, state: bytes) -> None:
        learned = decode_state(self.kind, state, _Learned) if state else _Learned({}, 0.0, b"")
        self._parts.restore(learned.parts)
        self._typical = learned.median or None

    def fingerprint(self) -> str:
        settings = {"parts": self._parts.fingerprints(), "score": "both", "measure": self._measure}
        return fingerprint(self.kind, settings, self.state())

    def _joined(self, found: Mapping[str, Embedded], n: int) -> Embedded:
        left, right = (unit_rows(each.vectors) for each in found.values())
        affinity = _affinity(found, self._measure, n)
        if self._measure == "dot":
            if self._typical is None:
                raise not_fitted(self.kind)
            affinity = np.clip(affinity / self._typical, -8.0, 8.0)
        columns = (left, right, unit_rows(left * right), affinity.astype(np.float32)[:, None])
        return without(np.concatenate(columns, axis=1), problems_of(found))


@functools.cache
def _directions(dimension: int) -> Floats:
    """Random directions, each number 1 or -1: float32 (dimension, 16), the same on every machine."""
    bits = mixed(np.arange(1, dimension * _DIRECTIONS + 1, dtype=np.uint64)) & np.uint64(1)
    return np.where(bits, -1.0, 1.0).astype(np.float32).reshape(dimension, _DIRECTIONS)


def _sides(settings: PairSettings) -> Parts:
    return Parts({"left": settings.left.build(), "right": settings.right.build()})


def _affinity(found: Mapping[str, Embedded], measure: Literal["cosine", "dot"], n: int) -> npt.NDArray[np.float64]:
    """The affinity of each record, float64 (n,); 0 where a side has a problem.

    Raises:
        InvalidInput: the sides have other dimensions.
    """
    left, right = (each.vectors for each in found.values())
    if left.shape[1] != right.shape[1]:
        if any(len(each.problems) == n for each in found.values()):  # no vector whose dimension could be told
            return np.zeros(n)
        raise InvalidInput(
            f"A pair needs two sides of one dimension: left makes {left.shape[1]} numbers, right {right.shape[1]}.",
            hint="Name two embedders into one space, such as the text and the image tower of one model.",
        )
    sides: tuple[Floats, Floats] = (unit_rows(left), unit_rows(right)) if measure == "cosine" else (left, right)
    return np.asarray(np.einsum("ij,ij->i", sides[0].astype(np.float64), sides[1].astype(np.float64)))
