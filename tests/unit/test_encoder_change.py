"""What about an encoder changed, from fixed inputs: every kind of change by its name, and none where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from detectors.encoder_change import ALIKE, SAME, changes, diagnose
from detectors.errors import InvalidInput

Floats = npt.NDArray[np.float32]
M, D = 64, 96
CHANCE = np.random.default_rng(7)


def vectors_of(seed: int, lengths: bool = False) -> Floats:
    """Vectors that resemble each other, as those of texts do."""
    chance = np.random.default_rng(seed)
    rows = chance.normal(size=(M, D)) + 0.7 * chance.normal(size=(M, 8)) @ chance.normal(size=(8, D)) + 0.5
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows * (chance.uniform(4, 9, (M, 1)) if lengths else 1.0), dtype=np.float32)


BEFORE = vectors_of(1)
CAPITALS = np.arange(M) % 3 == 0
TRAITS = {"with capitals": CAPITALS, "with digits": np.arange(M) % 2 == 0}
ROTATION = np.linalg.qr(CHANCE.normal(size=(D, D)))[0]
PREFIX = CHANCE.normal(size=D) * 0.05


def touched(rows: npt.NDArray[np.bool_], by: float) -> Floats:
    moved = BEFORE.copy()
    moved[rows] += CHANCE.normal(size=(int(rows.sum()), D)).astype(np.float32) * np.float32(by)
    return moved


INJECTED: dict[str, tuple[Floats, npt.NDArray[np.floating[Any]], str, str]] = {
    "fewer dimensions": (BEFORE, BEFORE[:, :48], "dimension", "have 48 dimensions; they had 96"),
    "normalisation off": (BEFORE, BEFORE * CHANCE.uniform(5, 9, (M, 1)), "normalisation", "switched normalisation off"),
    "normalisation on": (vectors_of(2, lengths=True), vectors_of(2), "normalisation", "switched normalisation on"),
    "other scale": (BEFORE, BEFORE * 3, "normalisation", "each had length 1, and now they have 3 to 3"),
    "rotation": (BEFORE, BEFORE @ ROTATION, "rotation", "the space was turned"),
    "order of columns": (BEFORE, BEFORE[:, CHANCE.permutation(D)], "rotation", "columns stand in another place"),
    "signs of columns": (BEFORE, BEFORE * np.where(np.arange(D) < 9, -1, 1), "rotation", "9 of 96 columns have the ot"),
    "letter case": (BEFORE, touched(CAPITALS, 0.05), "preprocessing", "22 of the 22 with capitals and 0 of the others"),
    "one input": (BEFORE, touched(np.arange(M) == 5, 0.05), "preprocessing", "1 of 64 canaries"),
    "rounded weights": (BEFORE, BEFORE + CHANCE.normal(size=(M, D)) * 0.004, "numeric", "changed a little"),
    "pooling": (BEFORE, BEFORE + CHANCE.normal(size=(M, D)) * 0.15, "model", "otherwise (correlation"),
    "prefix": (BEFORE, BEFORE + PREFIX + CHANCE.normal(size=(M, D)) * 0.02, "model", "another prefix"),
    "another model": (BEFORE, vectors_of(99), "model", "or another network"),
    "refusal": (BEFORE, np.where(CAPITALS[:, None], 0, BEFORE), "refused", "no vector of 22 of 64 canaries"),
}


@pytest.mark.parametrize("name", INJECTED)
def test_each_change_of_an_encoder_is_found_with_its_cause(name: str) -> None:
    before, after, cause, text = INJECTED[name]
    change = diagnose(before, np.asarray(after, dtype=np.float32), traits=TRAITS)
    assert change is not None and change.cause == cause
    assert text in change.text and ".." not in change.text
    assert 0 < change.changed <= change.canaries == M and change.largest > SAME


def test_a_thousand_clean_checks_find_nothing() -> None:
    """A real matrix product in float32, of other rows, in other batches and another order: its last bits differ."""
    chance = np.random.default_rng(11)
    first: Floats = chance.normal(size=(D, 64)).astype(np.float32) / np.float32(8)
    second: Floats = chance.normal(size=(64, D)).astype(np.float32)
    inputs = chance.normal(size=(M, D)).astype(np.float32)

    def embed(rows: Floats) -> Floats:
        return np.asarray(np.tanh(rows @ first) @ second, dtype=np.float32)

    before, largest = embed(inputs), 0.0
    for _ in range(1_000):
        order = chance.permutation(M)
        pieces = np.split(order, np.sort(chance.choice(M, size=int(chance.integers(0, 4)), replace=False)))
        after = np.zeros_like(before)
        for rows in pieces:
            after[rows] = embed(inputs[rows])
        assert diagnose(before, after) is None
        largest = max(largest, float(changes(before, after).max()))
    assert 0.0 < largest < SAME / 100, "the last bits do differ, and are far from the tolerance"


def test_what_is_noise_on_other_hardware_is_a_change_on_the_same() -> None:
    after = BEFORE + np.random.default_rng(3).normal(size=(M, D)).astype(np.float32) * 0.01
    assert SAME < changes(BEFORE, after).max() < ALIKE
    found = diagnose(BEFORE, after)
    assert found is not None and found.cause == "numeric"
    assert diagnose(BEFORE, after, tolerance=ALIKE) is None


def test_vectors_of_zeros_and_almost_zeros_are_compared_by_their_difference() -> None:
    before = BEFORE.copy()
    before[0], before[1] = 0.0, 1e-9
    after = before.copy()
    after[1] = -1e-9
    assert diagnose(before, after) is None, "a faint vector has no direction"
    after[0, 0] = 1.0
    found = diagnose(before, after)
    assert found is not None and (found.cause, found.changed) == ("preprocessing", 1)
    assert diagnose(np.zeros((4, 3), np.float32), np.zeros((4, 3), np.float32)) is None


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(InvalidInput, match="as many vectors now as before"):
        diagnose(BEFORE, BEFORE[:5])
    with pytest.raises(InvalidInput, match="as many vectors now as before"):
        diagnose(BEFORE[:0], BEFORE[:0])
    with pytest.raises(InvalidInput, match="of one shape"):
        changes(BEFORE, BEFORE[:, :4])
    with pytest.raises(InvalidInput, match=r"of shape \(m, d\)"):
        diagnose(BEFORE[0], BEFORE[0])
