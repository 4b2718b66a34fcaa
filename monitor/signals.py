"""The signals of live records, in the columns of the fraud baseline."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from detectors.fraud_baseline import Signal
from monitor.fraud_build import FraudParts
from monitor.fraud_signals import surprise_of

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


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
