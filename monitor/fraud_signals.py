"""What a record tells of itself beside its vector, as fraud scores see it: numbers, and whose it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from monitor.event import EventBatch
from monitor.thinning import key_hashes

Floats = npt.NDArray[np.float32]
Hashes = npt.NDArray[np.uint64]

# A p-value is at least this: what it is below is no evidence, but the end of a calibration.
_LEAST_P = 1e-12
_LARGEST = 1e30  # beyond, squares are no float32


def numbers_of(events: EventBatch, fields: Mapping[str, str]) -> Floats:
    """The numbers that settings name, float32 (n, k): NaN where a record has none, or something else there.

    Args:
        fields: name to field, k of them; one column each, in their order.
    """
    found = np.full((len(events), len(fields)), np.nan, np.float32)
    for column, field in enumerate(fields.values()):
        found[:, column] = _numbers(events.fields[field])
    return found


def _numbers(values: Sequence[Any]) -> npt.NDArray[np.float64]:
    if not set(map(type, values)) <= {float, int}:
        values = [_number(value) for value in values]
    try:
        numbers = np.array(values, np.float64)
    except OverflowError:  # a whole number beyond what a float can be
        numbers = np.array([_number(value) for value in values], np.float64)
    return np.where(np.abs(numbers) <= _LARGEST, numbers, np.nan)


def _number(value: Any) -> float:
    if isinstance(value, bool | int | float):
        return float(value) if isinstance(value, float) or abs(value) < 1 << 100 else math.nan
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return math.nan
    return math.nan


def names_of(events: EventBatch, field: str) -> list[str | None]:
    """What stands in a field as text: whose record it is. None where there is nothing that names anybody."""
    values = events.fields[field]
    if set(map(type, values)) == {str}:
        return list(values)
    return [
        value if isinstance(value, str) else str(value) if isinstance(value, int | float) else None for value in values
    ]


def hashes_of(events: EventBatch, field: str) -> Hashes:
    """64 bits of what names somebody, uint64 (n,); 0 where nothing does."""
    return key_hashes(names_of(events, field))


def surprise_of(p_values: npt.NDArray[np.float64]) -> Floats:
    """-log10 of calibrated p-values, float32 (n,); larger is stranger."""
    return (-np.log10(np.maximum(p_values, _LEAST_P))).astype(np.float32)
