"""The signals of live records, in the columns of the fraud baseline."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from monitor.fraud_build import FraudParts
from monitor.fraud_signals import surprise_of

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


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
