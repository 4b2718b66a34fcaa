"""The signals of records, as fraud scores see them: their own numbers, whose they are, what detectors say of vectors.

In the order of the columns of the fraud baseline.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from detectors.fraud_baseline import Signal
from monitor.event import EventBatch
from monitor.thinning import key_hashes

if TYPE_CHECKING:
    from monitor.fraud_build import FraudParts

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
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


def made_with(parts: FraudParts) -> str:
    """What makes vectors and signals, as labels remember it: hashes of the embedder and of the columns.

    A vector of another embedder means nothing here, even if it is as long. Signals in other columns are made anew.
    """
    return f"{parts.reference.embedder.fingerprint}/{_hash(parts.baseline.columns)}"


def same_embedder(one: str, other: str) -> bool:
    """Whether vectors that were made with these can be compared; what is not known is taken to be the same."""
    return not one or not other or one.partition("/")[0] == other.partition("/")[0]


def same_columns(one: str, columns: Sequence[Signal]) -> bool:
    """Whether signals that were made with this stand in these columns; what is not known is taken to be the same."""
    return not one or one.rpartition("/")[2] == _hash(columns)


def of_vectors(parts: FraudParts, vectors: Floats, p_value: Doubles) -> dict[str, Floats]:
    """Those signals that the vector alone tells, by name, float32 (n,) each.

    Args:
        vectors: float32 (n, d), as embedded.
        p_value: float64 (n,), what the space's reference says of them.
    """
    found = {"outlier": surprise_of(p_value)}
    if len(vectors):
        found |= {name: surprise_of(scorer.assess(vectors).p_value) for name, scorer in parts.scorers.items()}
    return found


def arranged(parts: FraudParts, n: int, columns: Mapping[str, Floats]) -> Floats:
    """Signals float32 (n, s), in the columns of the baseline; NaN where a column is not among those given."""
    signals = np.full((n, len(parts.baseline.columns)), np.nan, np.float32)
    for place, name in enumerate(parts.baseline.names):
        if name in columns:
            signals[:, place] = columns[name]
    return signals


def made_anew(parts: FraudParts, vectors: Floats) -> Floats:
    """What can be known of records of which only the vectors are left, float32 (n, s)."""
    if len(vectors) == 0:
        return arranged(parts, 0, {})
    return arranged(parts, len(vectors), of_vectors(parts, vectors, parts.reference.score(vectors).p_value))


def _hash(columns: Sequence[Signal]) -> str:
    said = "\n".join(f"{column.kind} {column.name}" for column in columns)
    return hashlib.sha256(said.encode()).hexdigest()[:8]
