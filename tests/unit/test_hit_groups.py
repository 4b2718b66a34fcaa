"""Similar hits are one group, with the record that can stand for them, and the same records give the same groups."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.errors import InvalidInput
from detectors.hit_groups import MOST_GROUPS, group_hits


def campaign(rng: np.random.Generator, centre: np.ndarray, n: int) -> np.ndarray:
    return (centre + rng.normal(0, 0.02, (n, len(centre)))).astype(np.float32)


def test_campaigns_are_found_among_scattered_hits_the_largest_first() -> None:
    rng = np.random.default_rng(0)
    centres = 3.0 * np.eye(8)[:2]
    rows = np.concatenate([campaign(rng, centres[0], 30), campaign(rng, centres[1], 12), rng.normal(0, 2, (20, 8))])
    order = rng.permutation(len(rows))
    groups = group_hits(rows[order].astype(np.float32), 0.5)
    of = [set(order[group.members].tolist()) for group in groups]
    assert of[:2] == [set(range(30)), set(range(30, 42))]
    assert sum(map(len, of)) == 62
    for group, centre in zip(groups[:2], centres, strict=True):
        assert group.medoid in group.members
        assert np.linalg.norm(rows[order][group.medoid] - centre) < 0.1
        assert group.radius < 0.3


def test_every_record_is_in_one_group_and_near_its_leader() -> None:
    rows = np.random.default_rng(1).normal(size=(200, 4)).astype(np.float32)
    groups = group_hits(rows, 1.0)
    assert sorted(np.concatenate([group.members for group in groups]).tolist()) == list(range(200))
    for group in groups:
        assert np.linalg.norm(rows[group.members] - rows[group.members[0]], axis=1).max() <= 1.0 + 1e-6


def test_a_radius_of_nothing_groups_copies_only() -> None:
    rows = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    assert [len(group.members) for group in group_hits(rows, 0.0)] == [4, 4, 4]


def test_groups_are_bounded() -> None:
    groups = group_hits(np.arange(1000, dtype=np.float32)[:, None], 0.1)
    assert len(groups) == MOST_GROUPS
    assert group_hits(np.zeros((0, 5), np.float32), 1.0) == []


@pytest.mark.parametrize(("rows", "radius"), [(np.zeros(3, np.float32), 1.0), (np.zeros((3, 1), np.float32), np.nan)])
def test_what_cannot_be_grouped_is_refused(rows: np.ndarray, radius: float) -> None:
    with pytest.raises(InvalidInput):
        group_hits(rows, radius)
