"""Groups of similar hits: who looks like whom among the records that an alarm is about.

Leader clustering (Hartigan 1975): in the order given, a record that no group holds yet becomes the leader of a new one,
and takes in all that lie within a radius of it. One pass, no starting values: the same records in the same order give
the same groups. The radius is the distance that a usual record has to its nearest prototype, so that a group is about
as wide as one kind of normal records is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput

MOST_GROUPS = 256


@dataclass(frozen=True, slots=True)
class HitGroup:
    """Similar records.

    Attributes:
        members: int64 (m,), their rows, ascending.
        medoid: the row nearest to their mean, which can stand for all.
        radius: the largest distance of a member to the medoid.
    """

    members: npt.NDArray[np.int64]
    medoid: int
    radius: float


def group_hits(vectors: npt.NDArray[np.float32], radius: float) -> list[HitGroup]:
    """The groups, the largest first, and of equal ones that with the earliest member.

    Args:
        vectors: float32 (n, d), in the search space of the reference, the most important record first. n may be 0.
        radius: members lie within this distance of their group's leader; `Reference.score_scale`.

    Returns:
        At most `MOST_GROUPS`; records beyond are in none.

    Raises:
        InvalidInput: no matrix, or a radius that is negative or no number.
    """
    if vectors.ndim != 2:
        raise InvalidInput(f"hits: expected float32 vectors (n, d), got shape {vectors.shape}.")
    if not radius >= 0.0:
        raise InvalidInput(f"hits: expected a radius of at least 0, got {radius}.")
    left = np.arange(len(vectors))
    groups: list[HitGroup] = []
    while len(left) and len(groups) < MOST_GROUPS:
        near = _distances(vectors[left], vectors[left[0]]) <= radius
        near[0] = True
        members, left = left[near], left[~near]
        mean = vectors[members].mean(axis=0, dtype=np.float64)
        medoid = int(np.argmin(_distances(vectors[members], mean)))
        reach = _distances(vectors[members], vectors[members[medoid]])
        groups.append(HitGroup(members, int(members[medoid]), float(reach.max())))
    return sorted(groups, key=lambda group: (-len(group.members), int(group.members[0])))


def _distances(rows: npt.NDArray[np.float32], to: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    return np.asarray(np.sqrt(np.square(rows.astype(np.float64) - to).sum(axis=1)))
