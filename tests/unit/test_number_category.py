"""Spaces of one number and of one category: what their vectors say, and what the drift rule makes of them."""

from __future__ import annotations

import numpy as np

from detectors.drift import DriftMonitor
from detectors.reference import STANDARD, Reference


def one_hot(random: np.random.Generator, n: int, shares: list[float]) -> np.ndarray:
    return np.eye(len(shares), dtype=np.float32)[random.choice(len(shares), size=n, p=shares)]


def test_equal_rows_share_one_prototype_and_an_unchanged_mix_raises_no_page() -> None:
    random = np.random.default_rng(0)
    shares = [1 / 16] * 15 + [1 / 16 - 0.004, 0.004]
    reference = Reference.build(one_hot(random, 20_000, shares), geometry=STANDARD, block=64)
    assert len(reference.prototypes) == len(shares)
    assert reference.score(np.eye(len(shares))).distance.max() == 0.0
    monitor = DriftMonitor(reference, block=64, page_every=20_000, warn_every=2_000)
    readings = monitor.update(one_hot(random, 100_000, shares))
    assert sum(reading.page for reading in readings) <= 1
