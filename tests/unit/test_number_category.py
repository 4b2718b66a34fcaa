"""Spaces of one number and of one category: what their vectors say, and what the drift rule makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from detectors.drift import DriftMonitor
from detectors.errors import InvalidInput, InvalidReference
from detectors.geometry import CLIP, STANDARD
from detectors.reference import Reference
from monitor.embedders.category import OWN_COLUMNS, CategoryEmbedder, CategorySettings
from monitor.embedders.number import VALUE_COLUMN, NumberEmbedder, NumberSettings

Values = list[Any]
Draw = Callable[[np.random.Generator, int], Values]
BASELINE = 30_000
BLOCK = 128


def number(values: Values, *, optional: bool = False) -> NumberEmbedder:
    embedder = NumberSettings(field="/n", optional=optional).build()
    embedder.fit([values])
    return embedder


def number_or_none(values: Values) -> NumberEmbedder:
    return number(values, optional=True)


def category(values: Values, *, optional: bool = False) -> CategoryEmbedder:
    embedder = CategorySettings(field="/c", optional=optional).build()
    embedder.fit([values])
    return embedder


def reasons(embedded: Any) -> list[tuple[int, str]]:
    return [(problem.row, problem.reason) for problem in embedded.problems]


def strangeness(embedder: Any, reference: Reference, values: Values) -> list[float]:
    p_values: list[float] = reference.score(embedder.embed([values]).vectors).p_value.tolist()
    return p_values


# --- prototypes of spaces in which many records are equal ------------------------------------------------------------


def one_hot(random: np.random.Generator, n: int, shares: list[float]) -> Any:
    return np.eye(len(shares), dtype=np.float32)[random.choice(len(shares), size=n, p=shares)]


def test_equal_rows_share_one_prototype_and_an_unchanged_mix_raises_no_page() -> None:
    random = np.random.default_rng(0)
    shares = [1 / 16] * 15 + [1 / 16 - 0.004, 0.004]
    reference = Reference.build(one_hot(random, 20_000, shares), geometry=STANDARD, block=BLOCK)
    assert len(reference.prototypes) == len(shares)
    assert reference.score(np.eye(len(shares))).distance.max() == 0.0
    monitor = DriftMonitor(reference, block=BLOCK, page_every=20_000, warn_every=2_000)
    readings = monitor.update(one_hot(random, 100_000, shares))
    assert sum(reading.page for reading in readings) <= 1


# --- numbers: the vector ---------------------------------------------------------------------------------------------


def test_the_mean_of_a_ramp_is_the_distribution_function() -> None:
    random = np.random.default_rng(1)
    embedder = number(random.normal(size=BASELINE).tolist())
    ramps = embedder.embed([random.normal(size=BASELINE).tolist()]).vectors[:, 2:] + 0.5
    assert ramps.min() == 0.0 and ramps.max() == 1.0
    # The ramp that climbs around the median is halfway up on average; all fall from the first to the last.
    means = ramps.mean(axis=0)
    assert (np.diff(means) < 0).all() and abs(means[len(means) // 2] - 0.5) < 0.05


def test_integers_with_few_values_have_a_step_for_each() -> None:
    embedder = number([0, 1, 1, 2, 7] * 20)
    ramps = embedder.embed([[0, 1, 2, 7]]).vectors[:, 2:] + 0.5
    assert ramps.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_the_number_comes_back_out_of_its_column() -> None:
    values = np.random.default_rng(2).beta(8, 2, size=5_000)
    embedder = number(values.tolist())
    mean = embedder.embed([values.tolist()]).vectors[:, VALUE_COLUMN].mean()
    assert embedder.number_of(float(mean)) == pytest.approx(values.mean(), abs=0.002)


def test_the_same_number_gives_the_same_vector_as_integer_and_as_fraction() -> None:
    embedder = number([0, 1.5, 2, 3, 3.25] * 10)
    assert embedder.embed([[2, 3]]).vectors.tobytes() == embedder.embed([[2.0, 3.0]]).vectors.tobytes()


def test_what_is_no_number_is_named() -> None:
    nan = float("nan")
    embedder = number([1.0, 2.0, 3.0])
    embedded = embedder.embed([[1.0, None, nan, -float("inf"), 10**999, 1e200, "2", True, [1.0], {}]])
    assert reasons(embedded) == [
        (1, "missing_field"),
        (2, "not_finite"),
        (3, "not_finite"),
        (4, "not_finite"),
        (5, "not_finite"),
        (6, "bad_value"),
        (7, "bad_value"),
        (8, "bad_value"),
        (9, "bad_value"),
    ]
    assert not embedded.vectors[1:].any()


def test_a_missing_number_is_a_value_of_its_own_where_that_is_asked_for() -> None:
    embedder = number([1.0, 2.0, None, 3.0] * 10, optional=True)
    embedded = embedder.embed([[2.0, None, float("nan"), "x"]])
    assert reasons(embedded) == [(3, "bad_value")]
    assert embedded.vectors[:, -1].tolist() == [0.0, CLIP, CLIP, 0.0]
    assert not embedded.vectors[1, :-1].any()
    with pytest.raises(InvalidReference, match="optional: true"):
        NumberSettings(field="/n").build().restore(embedder.state())


@pytest.mark.parametrize("values", [[5] * 50, [0.1] * 50, [-0.0, 0.0] * 25])
def test_a_number_that_never_varies_is_refused_with_its_cure(values: Values) -> None:
    with pytest.raises(InvalidInput, match="nothing to compare with") as caught:
        number(values)
    assert "Leave this space out" in caught.value.hint
    assert number([*values, None], optional=True).state()  # that it may be missing is something to watch


def test_some_wild_numbers_in_the_baseline_do_not_hide_those_to_come() -> None:
    random = np.random.default_rng(3)
    values = random.normal(10.0, 2.0, size=5_000)
    values[:3] = 1e9
    embedder = number(values.tolist())
    reference = Reference.build(embedder.embed([values.tolist()]).vectors, geometry=STANDARD, exemplars=0)
    vectors = embedder.embed([[10.0, 12.0, 60.0]]).vectors
    assert vectors[:, VALUE_COLUMN] == pytest.approx([0.0, 1.0, CLIP], abs=0.1)
    assert strangeness(embedder, reference, [60.0])[0] < 0.01


# --- numbers: strange records ----------------------------------------------------------------------------------------

TAILS: dict[str, Draw] = {
    "normal": lambda random, n: random.normal(size=n).tolist(),
    "cauchy": lambda random, n: random.standard_cauchy(size=n).tolist(),
    "confidence": lambda random, n: random.beta(8, 2, size=n).tolist(),
    "lognormal": lambda random, n: random.lognormal(0, 2, size=n).tolist(),
}


@pytest.mark.parametrize("draw", TAILS.values(), ids=TAILS)
def test_the_strangest_numbers_are_those_at_the_ends_and_beyond(draw: Draw) -> None:
    random = np.random.default_rng(4)
    baseline = draw(random, BASELINE)
    embedder = number(baseline)
    reference = Reference.build(embedder.embed([baseline]).vectors, geometry=STANDARD, exemplars=0)
    fresh = np.array(draw(random, 60_000))
    p = np.array(strangeness(embedder, reference, fresh.tolist()))
    assert 20 <= np.count_nonzero(p <= 0.001) <= 150
    rank = fresh.argsort().argsort() / len(fresh)
    outer = 2 * np.minimum(rank, 1 - rank)
    assert np.mean(outer[p <= 0.001] < 0.015) > 0.9
    reach = max(baseline) - np.quantile(baseline, 0.999)
    beyond = strangeness(embedder, reference, [max(baseline) + reach, max(baseline) + 50 * reach])
    assert max(beyond) < 0.001


def test_a_number_in_a_gap_of_the_baseline_is_stranger_than_its_neighbours() -> None:
    random = np.random.default_rng(5)
    baseline = np.where(random.random(BASELINE) < 0.5, random.normal(0, 1, BASELINE), random.normal(10, 1, BASELINE))
    embedder = number(baseline.tolist())
    reference = Reference.build(embedder.embed([baseline.tolist()]).vectors, geometry=STANDARD, exemplars=0)
    gap, left, right = strangeness(embedder, reference, [5.0, 0.5, 9.5])
    assert gap < 0.03 < min(left, right)


# --- categories: the vector ------------------------------------------------------------------------------------------


def test_a_closed_set_of_labels_has_a_column_for_each_and_one_for_what_is_new() -> None:
    embedder = category(["yes"] * 60 + ["no"] * 39 + ["rare"])
    vectors = embedder.embed([["yes", "no", "rare", "maybe"]]).vectors
    assert vectors.argmax(axis=1).tolist() == [0, 1, 2, 4]
    assert vectors.shape == (4, 5) and np.count_nonzero(vectors) == 4


def test_texts_integers_and_booleans_are_categories_and_fractions_are_not() -> None:
    embedder = category([True, False, 3, "3", "a"] * 10)
    embedded = embedder.embed([[True, "true", 3, "3", 1, 3.0, None, [], "a" * 300]])
    assert reasons(embedded) == [(5, "bad_value"), (6, "missing_field"), (7, "bad_value")]
    columns = embedded.vectors.argmax(axis=1)
    assert columns[0] == columns[1] and columns[2] == columns[3] and columns[4] == columns[8] != columns[2]


def test_a_missing_category_is_a_value_of_its_own_where_that_is_asked_for() -> None:
    embedder = category(["a", "b", None] * 10, optional=True)
    embedded = embedder.embed([["a", None, "new", 0.5]])
    assert reasons(embedded) == [(3, "bad_value")]
    assert embedded.vectors.argmax(axis=1).tolist() == [0, 4, 3, 0]
    with pytest.raises(InvalidReference, match="optional: true"):
        CategorySettings(field="/c").build().restore(embedder.state())


def test_the_commonest_values_have_columns_and_the_others_share_one() -> None:
    values = [str(label) for label in range(100) for _ in range(110 - label)]
    embedder = category(values)
    columns = embedder.embed([["0", "62", "63", "99", "100"]]).vectors.argmax(axis=1)
    assert columns.tolist() == [0, 62, OWN_COLUMNS, OWN_COLUMNS, OWN_COLUMNS + 1]


def test_the_share_of_new_values_to_expect_is_learned_from_an_open_set() -> None:
    random = np.random.default_rng(6)
    baseline, fresh = ([f"user {rank}" for rank in random.zipf(1.3, size=BASELINE)] for _ in range(2))
    embedder = category(baseline)
    new = OWN_COLUMNS + 1
    was, is_now = ((embedder.embed([values]).vectors[:, new] > 0).mean() for values in (baseline, fresh))
    # A third of the values was never seen: taking only such for new, the baseline would have none to expect.
    assert len(set(fresh) - set(baseline)) > 0.3 * len(set(fresh))
    error = np.sqrt(was * (1 - was) / BASELINE)
    assert abs(is_now - was) < 5 * error


@pytest.mark.parametrize(
    ("values", "message"),
    [(["a"] * 50, "nothing to compare"), ([True] * 50, "nothing to compare"), ([*map(str, range(50))], "no category")],
)
def test_a_field_that_cannot_be_watched_is_refused_with_its_cure(values: Values, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        category(values)
    assert caught.value.hint


def test_a_new_category_is_strange_and_a_rare_one_is_not() -> None:
    random = np.random.default_rng(7)
    baseline = random.choice(["a", "b", "c"], size=BASELINE, p=[0.7, 0.298, 0.002]).tolist()
    embedder = category(baseline)
    reference = Reference.build(embedder.embed([baseline]).vectors, geometry=STANDARD, exemplars=0)
    a, c, new = strangeness(embedder, reference, ["a", "c", "new"])
    assert (a, c) == (1.0, 1.0)
    assert new < 0.0001


# --- drift -----------------------------------------------------------------------------------------------------------


def gaps(share: float) -> Draw:
    return lambda random, n: [
        None if gap else value
        for gap, value in zip((random.random(n) < share).tolist(), random.normal(size=n).tolist(), strict=True)
    ]


def labels(*shares: float) -> Draw:
    return lambda random, n: [f"label {k}" for k in random.choice(len(shares), size=n, p=shares).tolist()]


def mixed(share: float, value: float) -> Draw:
    return lambda random, n: np.where(random.random(n) < share, value, random.normal(size=n)).tolist()


NORMAL: Draw = lambda random, n: random.normal(size=n).tolist()  # noqa: E731
TEN = (0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.04, 0.03, 0.02, 0.01)
NULLS: dict[str, tuple[Any, Draw]] = {
    "normal": (number, NORMAL),
    "rounded": (number, lambda random, n: random.beta(8, 2, size=n).round(2).tolist()),
    "counts": (number, lambda random, n: random.poisson(2, size=n).tolist()),
    "mostly zero": (number, lambda random, n: np.where(random.random(n) < 0.7, 0, random.exponential(size=n)).tolist()),
    "heavy tails": (number, TAILS["cauchy"]),
    "almost constant": (number, lambda random, n: np.where(random.random(n) < 5e-4, 8.0, 7.0).tolist()),
    "a tenth missing": (number_or_none, gaps(0.1)),
    "ten labels": (category, labels(*TEN)),
    "open set": (category, lambda random, n: [str(k) for k in random.zipf(1.3, size=n).tolist()]),
}


def watch(kind: Any, draw: Draw, *, seed: int) -> tuple[Any, Reference]:
    baseline = draw(np.random.default_rng([seed, 0]), BASELINE)
    embedder = kind(baseline)
    return embedder, Reference.build(embedder.embed([baseline]).vectors, geometry=STANDARD, block=BLOCK, exemplars=0)


@pytest.mark.parametrize(("kind", "draw"), NULLS.values(), ids=NULLS)
def test_an_unchanged_stream_pages_no_more_often_than_was_asked_for(kind: Any, draw: Draw) -> None:
    embedder, reference = watch(kind, draw, seed=8)
    random = np.random.default_rng(9)
    monitor = DriftMonitor(reference, block=BLOCK, page_every=20_000, warn_every=2_000)
    readings = monitor.update(embedder.embed([draw(random, 80_000)]).vectors)
    assert sum(reading.page for reading in readings) <= 4
    assert sum(reading.warn for reading in readings) <= 20  # of the 40 that were allowed for


SHIFTS: dict[str, tuple[Any, Draw, Draw, int, set[str]]] = {
    # kind, before, after, records to be found in at most, channels
    "mean + 0.3": (number, NORMAL, lambda r, n: (r.normal(size=n) + 0.3).tolist(), 1_200, {"level"}),
    "spread x 1.2": (number, NORMAL, lambda r, n: (r.normal(size=n) * 1.2).tolist(), 2_000, {"level"}),
    "spread x 0.8": (number, NORMAL, lambda r, n: (r.normal(size=n) * 0.8).tolist(), 2_500, {"level"}),
    "5 % in one value": (number, NORMAL, mixed(0.05, 0.3), 1_500, {"mix", "level"}),
    "1 % far out": (number, NORMAL, mixed(0.01, 9.0), 2_500, {"level", "shape"}),
    "1 % missing, never before": (number_or_none, gaps(0.0), gaps(0.01), 2_000, {"level"}),
    "missing 10 % to 20 %": (number_or_none, gaps(0.1), gaps(0.2), 1_500, {"level"}),
    "label 2 % to 4 %": (category, labels(*TEN), labels(0.28, *TEN[1:8], 0.04, 0.01), 8_000, {"level", "mix"}),
    "a new label, 1 %": (category, labels(*TEN), labels(0.29, *TEN[1:], 0.01), 3_000, {"level", "shape"}),
}


@pytest.mark.parametrize(("kind", "before", "after", "within", "channels"), SHIFTS.values(), ids=SHIFTS)
def test_a_shift_is_paged(kind: Any, before: Draw, after: Draw, within: int, channels: set[str]) -> None:
    embedder, reference = watch(kind, before, seed=10)
    random = np.random.default_rng(11)
    monitor = DriftMonitor(reference, block=BLOCK)
    quiet = monitor.update(embedder.embed([before(random, 4_096)]).vectors)
    assert not any(reading.page for reading in quiet)
    found = monitor.update(embedder.embed([after(random, within)]).vectors)
    page = next(reading for reading in found if reading.page)
    assert page.channel in channels
    assert page.onset is not None and abs(page.onset - 4_096) <= max(512, within // 3)
