"""How much of injected bursts is found, and how many floods clean traffic makes, on real vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from detectors.flood import WIDTH, FloodPlan, FloodSketch
from detectors.reference import TEXT, Reference
from tests.quality.adbench import DATA, NO_DATA

pytestmark = pytest.mark.skipif(not (DATA / "embeddings_minilm").is_dir(), reason=NO_DATA)

Floats = npt.NDArray[np.float32]
BLOCK = 2_000
BURST = 100  # one record in twenty of the block


@pytest.fixture(scope="module", params=["ag_news_test", "banking77"])
def watched(request: pytest.FixtureRequest) -> tuple[FloodPlan, Floats]:
    """What the first half says a flood is, and the prepared other half."""
    vectors = np.load(DATA / "embeddings_minilm" / f"{request.param}.npz")["X"].astype(np.float32)
    vectors = vectors[np.random.default_rng(5).permutation(len(vectors))]
    half = len(vectors) // 2
    reference = Reference.build(vectors[:half], geometry=TEXT)
    plan = FloodPlan.measure(reference, vectors[:half], np.arange(half) // BLOCK)
    return plan, reference.prepare(vectors[half:])


def found(plan: FloodPlan, clean: Floats, distance: float, seed: int) -> float:
    """Share of a burst's records from its ``least``-th on that are flagged."""
    chance = np.random.default_rng(seed)
    x = clean[chance.choice(len(clean), BLOCK)]
    rows = np.sort(chance.choice(BLOCK, BURST, replace=False))
    noise = chance.normal(size=(BURST, x.shape[1])).astype(np.float32)
    noise *= np.float32(distance * plan.width / WIDTH) / np.linalg.norm(noise, axis=1, keepdims=True)
    x[rows] = clean[chance.integers(len(clean))] + noise
    x[rows] /= np.linalg.norm(x[rows], axis=1, keepdims=True)
    least = max(plan.least, 20)
    sizes = FloodSketch(plan).push(np.zeros(BLOCK, np.int64), x)[rows]
    return float((sizes[least - 1 :] >= least).mean())


def test_clean_traffic_makes_no_flood(watched: tuple[FloodPlan, Floats]) -> None:
    plan, clean = watched
    sizes = FloodSketch(plan).push(np.arange(len(clean), dtype=np.int64) // BLOCK, clean)
    assert sizes.max() < plan.least


# In parts of the typical distance to the nearest other record; measured 1 and 1, .97 and .98, .90 and .90, .59 and .70.
@pytest.mark.parametrize(("distance", "floor"), [(0.0, 1.0), (1 / 32, 0.9), (1 / 16, 0.8), (1 / 8, 0.45)])
def test_bursts_of_one_in_twenty_records_are_found(
    watched: tuple[FloodPlan, Floats], distance: float, floor: float
) -> None:
    plan, clean = watched
    share = np.mean([found(plan, clean, distance, seed) for seed in range(20)])
    assert share >= floor
