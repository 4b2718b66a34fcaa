"""Second opinions: when river's detectors speak up, and that a restart changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.errors import InvalidInput
from detectors.feedback import LARGEST, MOST_BLOCKS, BlockScale, OpinionName, SecondOpinion

both = pytest.mark.parametrize("name", ["adwin", "page_hinkley"])


def stream(n: int, shifted_from: int, shift: float, seed: int = 0) -> list[float]:
    values = np.random.default_rng(seed).normal(size=n)
    values[shifted_from:] += shift
    return [float(value) for value in values]


def changes(opinion: SecondOpinion, values: list[float]) -> list[int]:
    return [block for block, value in enumerate(values) if opinion.push(value)]


@both
@pytest.mark.parametrize("shift", [2.0, -2.0])
def test_a_change_is_reported_once(name: OpinionName, shift: float) -> None:
    (found,) = changes(SecondOpinion(name), stream(1_500, 600, shift))
    assert 600 <= found < 640


@both
def test_an_unchanged_stream_is_left_alone(name: OpinionName) -> None:
    assert len(changes(SecondOpinion(name), stream(50_000, 50_000, 0.0, seed=1))) <= 1


@both
def test_a_restart_at_any_block_gives_the_same_answers_and_bytes(name: OpinionName) -> None:
    # Long enough for the earlier half to be forgotten, with changes before and after.
    values = stream(700, 300, 2.5) + stream(2_600, 2_500, 2.5, seed=2)
    whole, restarted = SecondOpinion(name), SecondOpinion(name)
    found = []
    for block, value in enumerate(values):
        answer = whole.push(value)
        if block % 50 == 7 or answer or block in (2_347, 2_348, 2_349, 2_350):
            restarted = SecondOpinion.from_bytes(name, restarted.to_bytes())
        assert restarted.push(value) == answer
        found += [block] * answer
    assert restarted.to_bytes() == whole.to_bytes()
    assert len(found) == 3


@both
def test_memory_is_bounded(name: OpinionName) -> None:
    opinion = SecondOpinion(name)
    sizes = []
    for value in stream(2 * MOST_BLOCKS, 2 * MOST_BLOCKS, 0.0, seed=3):
        opinion.push(value)
        sizes.append(len(opinion.to_bytes()))
    assert max(sizes) == 8 * MOST_BLOCKS


@both
def test_a_state_that_is_cut_off_is_refused(name: OpinionName) -> None:
    with pytest.raises(InvalidInput, match=name):
        SecondOpinion.from_bytes(name, b"1234567")


def test_the_spread_of_blocks_is_that_of_the_baseline() -> None:
    random = np.random.default_rng(4)
    records = random.integers(50, 150, size=2_000)
    independent = np.array([random.normal(3.0, 2.0, size=n).sum() for n in records])
    scale = BlockScale.of_blocks(independent, records)
    assert scale.centre == pytest.approx(3.0, abs=0.02)
    assert scale.spread == pytest.approx(2.0, rel=0.05)
    # Records of one block that are all alike: its mean varies as much as one record does.
    copies = random.normal(3.0, 2.0, size=2_000) * records
    assert BlockScale.of_blocks(copies, records).spread > 15
    assert scale.z(3.2, 100) == pytest.approx(1.0, abs=0.15)
    assert (scale.z(1e9, 100), scale.z(-1e9, 100)) == (LARGEST, -LARGEST)


@pytest.mark.parametrize("sums", [[], [1.0, 2.0], [0.0] * 50])
def test_without_a_spread_of_its_own_a_block_has_that_of_independent_records(sums: list[float]) -> None:
    scale = BlockScale.of_blocks(np.array(sums), np.full(len(sums), 10), usual=0.5)
    assert scale.spread == 0.5
