"""One number of a record: a confidence, a prediction's score, a latency, an amount.

The vector is made so that the level channel of the drift rule tests the number's whole distribution. Between
neighbouring quantiles of the baseline, one ramp each climbs from -1/2 to 1/2; the mean of a ramp is the distribution
function there, smoothed. Standardised, their squared differences add up to the statistic of Anderson and Darling
(1952), and the soft whitening of the level channel takes it part of the way to the chi-square test of the quantile
histogram: shifts of mean and spread weigh most, narrow ones still count. The mix channel looks at the finest scale, at
the shares of up to 256 pieces of the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from detectors.errors import InvalidInput
from detectors.geometry import CLIP, STANDARD
from monitor.embedders.embedder import (
    Columns,
    Embedded,
    Floats,
    Problem,
    check_optional,
    decode_state,
    encode_state,
    fingerprint,
    not_fitted,
)
from monitor.pointers import FieldName

Doubles = npt.NDArray[np.float64]

VALUE_COLUMN = 0  # the column that holds the number itself, in standard deviations
# With 8, 16 and 32 ramps, delays of a shift of the mean by 0.1 sigma, of the spread by 10 % and of 5 % of the records
# in one value are within a tenth of each other. With hat functions or the plain histogram on the same quantiles the
# first two take a quarter to two thirds longer (means of 9 runs, run length 1e7 records).
QUANTILES = 16
# Beyond the outermost sixteenths, quantiles at 1/32, 1/128, ... with this many records of the baseline outside them.
TAIL_RECORDS = 10
WINSORISED = 0.005  # share at each end that mean and deviation of the number do not see
_TOO_LARGE = 1e150  # its square is still a float64
_NO_NUMBER = float("nan")


class NumberSettings(BaseModel, frozen=True, extra="forbid"):
    """One number: a confidence, a score, a latency; its whole distribution is watched."""

    kind: Literal["number"] = "number"
    field: FieldName = Field(description="where the number stands; for example what record.confidence names")
    optional: bool = Field(
        False, description="records without the number are watched too: a missing one is a value of its own"
    )

    def build(self) -> NumberEmbedder:
        """Make the embedder."""
        return NumberEmbedder(self)


@runtime_checkable
class OneNumber(Protocol):
    """An embedder whose column `VALUE_COLUMN` is one number, that a person knows in a unit of its own."""

    def number_of(self, value: float) -> float:
        """The number whose column `VALUE_COLUMN` is ``value``."""


class _Learned(msgspec.Struct, frozen=True):
    optional: bool
    centre: float
    deviation: float
    knots: tuple[float, ...]  # ascending and distinct: the baseline's least value, quantiles, and greatest value


class NumberEmbedder:
    """Makes vectors of numbers.

    Columns: the number in standard deviations (which leave out the outermost 0.5 % at each end), clipped at 8; how far
    it lies outside the range of the baseline, from -8 to 8, 0 inside; one ramp between each two neighbouring quantiles;
    where missing numbers are allowed, whether it is missing. A missing number lies in the middle of all other columns.
    """

    kind = "number"
    learns = True
    geometry = STANDARD

    def __init__(self, settings: NumberSettings) -> None:
        self._settings = settings
        self._learned: _Learned | None = None
        self.fields = (settings.field,)

    def fit(self, columns: Columns) -> None:
        numbers, problems = self._read(columns[0])
        present = numbers[~np.isnan(numbers)]
        field = self._settings.field
        if len(present) == 0:
            raise InvalidInput(
                f"None of {len(numbers)} records holds a number in {field}.", hint="Check the field of the embedder."
            )
        knots = _knots(present)
        gaps = len(numbers) - len(present) - len(problems)
        if len(knots) == 1 and gaps == 0:
            raise InvalidInput(
                f"{field} is the same number in all {len(present)} records of the baseline: nothing to compare with.",
                hint="Leave this space out, or collect a baseline in which it varies.",
            )
        kept = np.clip(present, *np.quantile(present, [WINSORISED, 1.0 - WINSORISED]))
        spread = kept if np.ptp(kept) > 0.0 else present  # almost constant: the rare other values are all that it says
        deviation = float(spread.std()) if np.ptp(spread) > 0.0 else 1.0
        self._learned = _Learned(self._settings.optional, float(kept.mean()), deviation, tuple(knots.tolist()))

    def state(self) -> bytes:
        return b"" if self._learned is None else encode_state(self.kind, self._learned)

    def restore(self, state: bytes) -> None:
        if not state:
            self._learned = None
            return
        learned = decode_state(self.kind, state, _Learned)
        check_optional(learned=learned.optional, set_to=self._settings.optional)
        self._learned = learned

    def fingerprint(self) -> str:
        return fingerprint(self.kind, self._settings.model_dump(), self.state())

    def embed(self, columns: Columns) -> Embedded:
        if self._learned is None:
            raise not_fitted(self.kind)
        numbers, problems = self._read(columns[0])
        vectors = _vectors(numbers, self._learned)
        if problems:
            vectors[list(problems)] = 0.0
        return Embedded(vectors, [Problem(row, *problems[row]) for row in sorted(problems)])

    @property
    def deviation(self) -> float:
        """The standard deviation that the column `VALUE_COLUMN` is in, in the unit of the field.

        Raises:
            InvalidReference: nothing was learned yet.
        """
        if self._learned is None:
            raise not_fitted(self.kind)
        return self._learned.deviation

    def number_of(self, value: float) -> float:
        """The number whose column `VALUE_COLUMN` is ``value``, in the unit of the field.

        Raises:
            InvalidReference: nothing was learned yet.
        """
        if self._learned is None:
            raise not_fitted(self.kind)
        return self._learned.centre + self._learned.deviation * value

    def _read(self, column: Sequence[Any]) -> tuple[Doubles, dict[int, tuple[str, str]]]:
        """float64 (n,), NaN where there is no number, and the rows that are a problem."""
        problems: dict[int, tuple[str, str]] = {}
        if set(map(type, column)) == {float}:
            numbers = np.array(column, dtype=np.float64)
        else:
            numbers = np.fromiter(map(_number, column), dtype=np.float64, count=len(column))
        field, optional = self._settings.field, self._settings.optional
        for row in np.flatnonzero(~(np.abs(numbers) < _TOO_LARGE)).tolist():
            value = column[row]
            numbers[row] = _NO_NUMBER
            if optional and (value is None or value != value):  # JSON that Python wrote says NaN for a missing number
                continue
            if value is None:
                problems[row] = ("missing_field", f"{field} is missing.")
            elif isinstance(value, float | int) and not isinstance(value, bool):
                problems[row] = ("not_finite", f"{field} is NaN or infinite, or larger than can be compared.")
            else:
                problems[row] = ("bad_value", f"{field} is not a number.")
        return numbers, problems


def _number(value: Any) -> float:
    """The value as a float; NaN where it is none, and the largest that counts as too large for integers beyond it."""
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value) if abs(value) < _TOO_LARGE else _TOO_LARGE
    return _NO_NUMBER


def _knots(numbers: Doubles) -> Doubles:
    """Distinct quantiles of the numbers, ascending, from the least to the greatest; all values where they are few."""
    distinct = np.unique(numbers)
    levels = [0.0, 1.0, *(part / QUANTILES for part in range(1, QUANTILES))]
    tail = 0.5 / QUANTILES
    while tail * len(numbers) >= TAIL_RECORDS:
        levels += [tail, 1.0 - tail]
        tail /= 4.0
    if len(distinct) <= len(levels):
        return distinct
    return np.unique(np.quantile(numbers, levels, method="inverted_cdf"))


def _vectors(numbers: Doubles, learned: _Learned) -> Floats:
    """float32 (n, columns); plain arithmetic only, so that no library's rounding depends on the rows around."""
    knots = np.array(learned.knots)
    gaps = np.isnan(numbers)
    width = 2 + len(knots) - 1 + int(learned.optional)
    vectors = np.zeros((len(numbers), width), dtype=np.float32)
    steps = np.diff(knots)
    with np.errstate(over="ignore"):
        vectors[:, VALUE_COLUMN] = np.clip((numbers - learned.centre) / learned.deviation, -CLIP, CLIP)
        vectors[:, 1] = _outside(numbers, knots)
        # Ramps are centred, so that no number makes a vector of zeros, which would mean that there is none.
        vectors[:, 2 : len(knots) + 1] = np.clip((numbers[:, None] - knots[:-1]) / steps, 0.0, 1.0) - 0.5
    if gaps.any():
        vectors[gaps] = 0.0
        if learned.optional:
            # The height counts only where no record of the baseline lacked the number, and the column has no scale.
            vectors[gaps, -1] = CLIP
    return vectors


def _outside(numbers: Doubles, knots: Doubles) -> Doubles:
    """How far beyond the baseline's range, in units of the outermost step between knots: -8 to 8 and never quite so.

    The outermost knots are the baseline's extremes and the quantiles with about ten records outside, so that the unit
    grows with the weight of the tail.
    """
    steps = np.diff(knots) if len(knots) > 1 else np.ones(1)
    above = np.maximum(numbers - knots[-1], 0.0) / steps[-1]
    below = np.maximum(knots[0] - numbers, 0.0) / steps[0]
    # Written so that what is far beyond the largest float's reach does not become infinity over infinity.
    return np.asarray(CLIP * ((1.0 - 1.0 / (1.0 + above)) - (1.0 - 1.0 / (1.0 + below))))
