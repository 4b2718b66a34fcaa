"""Which records a training set lacks: those of kinds that the stream has more of than the baseline."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from detectors.errors import InvalidInput
from detectors.lacking import Named, name_lacking

Floats = npt.NDArray[np.float32]


def kinds(*counts: int, seed: int = 0) -> tuple[Floats, npt.NDArray[np.int64]]:
    """So many records around each of some far centres, mixed: float32 (n, 8), and the kind of each."""
    chance = np.random.default_rng(seed)
    centres = 10.0 * np.random.default_rng(7).normal(size=(len(counts), 8))
    kind = chance.permutation(np.repeat(np.arange(len(counts)), counts))
    return (centres[kind] + chance.normal(size=(len(kind), 8))).astype(np.float32), kind


def choose(vectors: Floats, baseline: Floats, most: int = 50, weights: object = None) -> Named:
    w = np.ones(len(vectors)) if weights is None else np.asarray(weights, dtype=np.float64)
    return name_lacking(vectors, w, baseline, most)


def test_new_kinds_are_named_before_known_ones_and_each_before_any_is_named_twice() -> None:
    baseline, _ = kinds(400, 400, 0, 0, 0, seed=1)
    stream, kind = kinds(160, 160, 40, 20, 20)
    named = choose(stream, baseline, most=12)
    first = kind[named.rows]
    assert set(first[:6]) >= {2, 3, 4}
    assert np.isin(first, [2, 3, 4]).mean() > 0.9


def test_a_known_kind_that_grew_is_named_and_one_that_shrank_is_not() -> None:
    baseline, _ = kinds(300, 300, 300, seed=1)
    stream, kind = kinds(100, 100, 10)
    grown = kind[choose(stream, baseline, most=20).rows]
    assert set(grown) <= {0, 1}


def test_a_record_of_the_sample_counts_for_all_it_stands_for() -> None:
    baseline, _ = kinds(500, 500, seed=1)
    stream, kind = kinds(20, 20)
    weights = np.where(kind == 1, 50.0, 1.0)
    named = choose(stream, baseline, weights=weights)
    assert set(kind[named.rows]) == {1}
    assert named.stands_for.sum() <= weights.sum()


def test_what_is_named_stands_for_all_of_its_groups() -> None:
    baseline, _ = kinds(400, 0, seed=1)
    stream, _ = kinds(40, 120)
    named = choose(stream, baseline, most=1000)
    assert named.covered == pytest.approx(1.0)
    assert len(set(named.rows.tolist())) == len(named.rows), "nothing is named twice"
    assert named.stands_for == pytest.approx(np.ones(len(named.rows))), "where all are named, each stands for itself"
    few = choose(stream, baseline, most=3)
    assert len(few.rows) == 3 and few.covered < 1.0
    assert few.lacking == named.lacking and few.sure == named.sure > 3
    assert np.array_equal(few.rows, named.rows[:3]), "more are named after the same first ones"


def test_where_nothing_changed_hardly_any_kind_is_sure_to_have_grown() -> None:
    baseline, _ = kinds(2000, 2000, seed=1)
    stream, _ = kinds(1000, 1000)
    named = choose(stream, baseline)
    assert named.sure <= 0.06 * 256, "2.3 % of 256 groups are expected by chance, and 6 % happen once in 10,000"


def test_the_same_candidates_give_the_same_choice_and_the_input_is_left_alone() -> None:
    baseline, _ = kinds(400, 0, seed=1)
    stream, _ = kinds(40, 120)
    before = stream.copy()
    one, other = choose(stream, baseline), choose(stream, baseline)
    assert np.array_equal(one.rows, other.rows) and np.array_equal(stream, before)


def test_nothing_is_named_of_nothing_and_one_of_one() -> None:
    baseline, _ = kinds(50, 0, seed=1)
    assert len(choose(baseline[:0], baseline).rows) == 0
    one = name_lacking(baseline[:1], np.array([100.0]), baseline[1:2], 5)
    assert len(one.rows) == 0, "as much as in the baseline is no lack"


@pytest.mark.parametrize(
    ("weights", "most", "baseline"), [([1.0], 5, 3), ([1.0, 0.0], 5, 3), ([1.0, 1.0], 0, 3), ([1.0, 1.0], 5, 0)]
)
def test_wrong_arguments_are_refused(weights: list[float], most: int, baseline: int) -> None:
    x = np.ones((2, 3), np.float32)
    with pytest.raises(InvalidInput):
        name_lacking(x, np.array(weights), np.ones((baseline, 3), np.float32), most)
