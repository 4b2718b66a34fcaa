"""One category of a record: the predicted label, a country, whether the answer was accepted.

The vector is one-hot, so that the level channel of the drift rule is a regularised multinomial test of the mix, and a
value that the baseline did not have lies far from all prototypes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import isqrt
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from detectors.errors import InvalidInput
from detectors.geometry import CLIP, STANDARD
from monitor.embedders.embedder import (
    Columns,
    Embedded,
    Problem,
    check_optional,
    decode_state,
    encode_state,
    fingerprint,
    not_fitted,
)
from monitor.pointers import FieldName

OWN_COLUMNS = 63
MOST_KNOWN = 4096  # values beyond the commonest 63 that are told from new ones
MAX_LENGTH = 256  # characters; what predictions and segments are cut at, too


class CategorySettings(BaseModel, frozen=True, extra="forbid"):
    """One category: a text, an integer, true or false, such as the predicted label; its mix is watched."""

    kind: Literal["category"] = "category"
    field: FieldName = Field(description="where the category stands; for example what record.prediction names")
    optional: bool = Field(
        False, description="records without the category are watched too: a missing one is a value of its own"
    )

    def build(self) -> CategoryEmbedder:
        """Make the embedder."""
        return CategoryEmbedder(self)


class _Learned(msgspec.Struct, frozen=True):
    optional: bool
    own: tuple[str, ...]  # values with a column of their own
    other: tuple[str, ...]  # values that share a column


class CategoryEmbedder:
    """Makes vectors of categories.

    Columns: one for each of the 63 commonest values of the baseline, one for its other values, one for values that are
    new, and, where missing ones are allowed, one for these.

    Where the baseline holds values that came only once or a few times, more such values are to be expected, and a
    record with an unknown one is nothing strange. "New" then means: seen by the baseline fewer than m times, with the
    least m for which the baseline's share of such records says what share to expect (Good 1953). With a closed set of
    labels m is 1.
    """

    kind = "category"
    learns = True
    geometry = STANDARD

    def __init__(self, settings: CategorySettings) -> None:
        self._settings = settings
        self._learned: _Learned | None = None
        self._column_of: dict[str | None, int] = {}
        self.fields = (settings.field,)

    def fit(self, columns: Columns) -> None:
        values, problems = self._read(columns[0])
        counts = Counter(value for value in values if value is not None)
        usable = sum(counts.values())
        missing = len(values) - usable - len(problems)
        field = self._settings.field
        if usable == 0:
            raise InvalidInput(
                f"None of {len(values)} records holds a category in {field}.",
                hint="Check the field of the embedder; for numbers with a fraction there is the kind number.",
            )
        if len(counts) == 1 and missing == 0:
            raise InvalidInput(
                f"{field} is the same in all {usable} records of the baseline: nothing to compare with.",
                hint="Leave this space out, or collect a baseline in which it varies.",
            )
        known = _known(counts)
        if not known and missing == 0:
            raise InvalidInput(
                f"Hardly a value of {field} comes again in {usable} records of the baseline: it is no category.",
                hint="Name a field with fewer values, or collect a longer baseline.",
            )
        self._learn(_Learned(self._settings.optional, known[:OWN_COLUMNS], known[OWN_COLUMNS:]))

    def _learn(self, learned: _Learned) -> None:
        self._learned = learned
        self._column_of = {value: column for column, value in enumerate(learned.own)}
        self._column_of |= dict.fromkeys(learned.other, len(learned.own))
        self._column_of[None] = len(learned.own) + 2

    def state(self) -> bytes:
        return b"" if self._learned is None else encode_state(self.kind, self._learned)

    def restore(self, state: bytes) -> None:
        if not state:
            self._learned = None
            return
        learned = decode_state(self.kind, state, _Learned)
        check_optional(learned=learned.optional, set_to=self._settings.optional)
        self._learn(learned)

    def fingerprint(self) -> str:
        return fingerprint(self.kind, self._settings.model_dump(), self.state())

    def embed(self, columns: Columns) -> Embedded:
        if self._learned is None:
            raise not_fitted(self.kind)
        values, problems = self._read(columns[0])
        new = len(self._learned.own) + 1
        where: npt.NDArray[np.intp] = np.fromiter(
            (self._column_of.get(value, new) for value in values), dtype=np.intp, count=len(values)
        )
        vectors = np.zeros((len(values), new + 1 + int(self._learned.optional)), dtype=np.float32)
        good = np.delete(np.arange(len(values)), list(problems))
        # The height counts only where the baseline never had the like, and the column has no scale.
        vectors[good, where[good]] = CLIP
        return Embedded(vectors, [Problem(row, *problems[row]) for row in sorted(problems)])

    def _read(self, column: Sequence[Any]) -> tuple[list[str | None], dict[int, tuple[str, str]]]:
        """The values as texts, None where missing, and the rows that are a problem."""
        if set(map(type, column)) == {str}:
            return [value[:MAX_LENGTH] for value in column], {}
        values = [_text(value) for value in column]
        field = self._settings.field
        problems: dict[int, tuple[str, str]] = {}
        for row in (row for row, value in enumerate(values) if value is None):
            if column[row] is not None:
                problems[row] = ("bad_value", f"{field} is neither text, an integer, true nor false.")
            elif not self._settings.optional:
                problems[row] = ("missing_field", f"{field} is missing.")
        return values, problems


def _text(value: Any) -> str | None:
    if type(value) is str:
        return value[:MAX_LENGTH]
    if type(value) is bool:
        return "true" if value else "false"
    return str(value)[:MAX_LENGTH] if type(value) is int and abs(value) < 1 << 128 else None


def _known(counts: Counter[str]) -> tuple[str, ...]:
    """The values that are not new, commonest first, ties by name.

    In expectation, values seen fewer than m times have m n_m / n more of the records to come than they had of the
    baseline, n_m being the number of values seen exactly m times (Good 1953): the least m is taken for which that is
    below the standard error of their share.
    """
    ranked = sorted(counts, key=lambda value: (-counts[value], value))
    seen = Counter(counts.values())  # how many values were seen so often
    least, below = 1, 0  # records of values seen fewer than `least` times
    while least * seen[least] > max(isqrt(below), 1):
        below += least * seen[least]
        least += 1
    most = OWN_COLUMNS + MOST_KNOWN
    return tuple(value for value in ranked[:most] if counts[value] >= least)
