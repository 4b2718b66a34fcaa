"""The cause of a change is found where it was put, and only there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import norm

from detectors.cause import EVERYTHING, SegmentPart, Sums, find_cause, nearest_exemplars, segment_parts, share_changes
from detectors.reference import Reference
from detectors.summary import summarise
from tests.streams import Topics

Vectors = npt.NDArray[np.float32]
TOPICS = Topics()


@pytest.fixture(scope="module")
def reference() -> Reference:
    vectors = TOPICS.draw(20_000, np.random.default_rng(0))
    return Reference.build(
        vectors,
        prototypes=120,
        block=100,
        ids=[f"b-{row}" for row in range(len(vectors))],
        segments={"site": ("a", "b", "c")},
    )


def sums_of(reference: Reference, vectors: Vectors) -> Sums:
    total = Sums.empty(reference.dimension, len(reference.prototypes))
    for summary in summarise(np.zeros(len(vectors), np.int64), reference.score(vectors)).values():
        total.add(summary)
    return total


def by_site(reference: Reference, **parts: Vectors) -> dict[str, Sums]:
    whole = Sums.empty(reference.dimension, len(reference.prototypes))
    result = {EVERYTHING: whole}
    for name, vectors in parts.items():
        result[f"site={name}"] = sums_of(reference, vectors)
        whole.add(result[f"site={name}"])
    return result


def quiet(reference: Reference, seed: int, **sizes: int) -> dict[str, Sums]:
    random = np.random.default_rng(seed)
    return by_site(reference, **{name: TOPICS.draw(size, random) for name, size in sizes.items()})


def part_of(rows: Sequence[SegmentPart], segment: str) -> float:
    return next(row.part for row in rows if row.segment == segment)


def test_share_changes_are_standard_normal_where_nothing_changed() -> None:
    random = np.random.default_rng(1)
    shares = np.full(50, 1 / 50)
    z = np.concatenate(
        [share_changes(random.multinomial(5_000, shares), random.multinomial(20_000, shares)) for _ in range(400)]
    )
    assert abs(z.mean()) < 0.03
    assert z.std() == pytest.approx(1.0, abs=0.03)
    assert (np.abs(z) > norm.ppf(0.9995)).mean() == pytest.approx(0.001, abs=0.0006)


def test_share_changes_are_divided_by_the_root_of_the_inflation() -> None:
    counts, baseline = np.array([30, 70]), np.array([200, 800])
    assert share_changes(counts, baseline, inflation=4.0) == pytest.approx(share_changes(counts, baseline) / 2.0)


def test_share_changes_agree_with_the_likelihood_ratio_of_a_table() -> None:
    from scipy.stats import chi2_contingency

    counts, baseline = np.array([30, 70]), np.array([200, 800])
    table = np.array([counts, baseline])
    g = chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
    assert share_changes(counts, baseline) == pytest.approx([np.sqrt(g), -np.sqrt(g)])


def test_a_new_topic_is_found_in_the_prototypes_that_it_fills(reference: Reference) -> None:
    random = np.random.default_rng(2)
    cause = find_cause(
        reference, {EVERYTHING: sums_of(reference, TOPICS.draw(4_000, random, new_topic=0.1))}, before={}
    )
    filled = set(reference.score(TOPICS.elsewhere[None]).nearest.tolist())
    assert filled <= set(cause.gained)
    assert cause.changed >= 1
    assert cause.prototypes[0].share > 2 * cause.prototypes[0].expected


def test_the_level_moves_towards_the_prototypes_of_topics_that_grew(reference: Reference) -> None:
    random = np.random.default_rng(13)
    grown = sums_of(reference, TOPICS.draw(8_000, random, prior=8.0))
    cause = find_cause(reference, {EVERYTHING: grown}, before={})
    topic_of = (reference.exemplars @ TOPICS.centres.T).argmax(axis=1)

    def topics(prototypes: tuple[int, ...]) -> set[int]:
        return {int(topic_of[found]) for (found,) in nearest_exemplars(reference, prototypes)}

    assert topics(cause.level.towards) <= set(range(5, 10))
    assert not topics(cause.level.away) & set(range(5, 10))
    assert topics(cause.gained) <= set(range(5, 10))


def test_an_unchanged_stream_has_no_cause(reference: Reference) -> None:
    random = np.random.default_rng(3)
    changed = [
        find_cause(reference, {EVERYTHING: sums_of(reference, TOPICS.draw(2_000, random))}, before={}).changed
        for _ in range(20)
    ]
    assert np.count_nonzero(changed) <= 2


@pytest.mark.parametrize("channel", ["level", "mix", "shape", "outlier_rate"])
def test_the_segment_that_changed_carries_the_change(reference: Reference, channel: str) -> None:
    random = np.random.default_rng(4)
    now = by_site(
        reference,
        a=TOPICS.draw(3_000, random),
        b=TOPICS.draw(1_000, random, new_topic=0.4),
        c=TOPICS.draw(2_000, random),
    )
    cause = find_cause(reference, now, before=quiet(reference, 5, a=3_000, b=1_000, c=2_000), channel=channel)
    assert cause.segments[0].segment == "site=b"
    assert cause.segments[0].part == pytest.approx(1.0, abs=0.15)
    assert sum(row.part for row in cause.segments) == pytest.approx(1.0)
    assert all(row.own_baseline for row in cause.segments)


def test_two_segments_share_the_change_by_their_records(reference: Reference) -> None:
    random = np.random.default_rng(6)
    now = by_site(
        reference,
        a=TOPICS.draw(6_000, random, new_topic=0.2),
        b=TOPICS.draw(3_000, random, new_topic=0.2),
        c=TOPICS.draw(3_000, random),
    )
    rows = segment_parts(reference, now, {}, channel="level")
    assert part_of(rows, "site=a") == pytest.approx(2 / 3, abs=0.1)
    assert part_of(rows, "site=b") == pytest.approx(1 / 3, abs=0.1)


def test_a_segment_that_always_was_different_is_not_blamed(reference: Reference) -> None:
    """Its own past is its baseline: without it, the odd segment would take a part of the blame."""
    random = np.random.default_rng(7)
    odd = [TOPICS.draw(3_000, random, prior=8.0, bias=0.1) for _ in range(2)]
    before = by_site(reference, a=TOPICS.draw(3_000, random), b=odd[0])
    now = by_site(reference, a=TOPICS.draw(3_000, random, new_topic=0.2), b=odd[1])
    assert part_of(segment_parts(reference, now, before, channel="level"), "site=a") > 0.9
    assert part_of(segment_parts(reference, now, {}, channel="level"), "site=a") < 0.8


@pytest.mark.parametrize("channel", ["level", "mix"])
def test_the_references_own_baseline_of_a_segment_is_used(channel: str) -> None:
    """The odd segment is known to be odd, so all of the change is the other one's, before a record was seen."""
    random = np.random.default_rng(14)
    odd = TOPICS.draw(6_000, random, prior=8.0, bias=0.1)
    plain = TOPICS.draw(6_000, random)
    vectors = np.stack([odd, plain], axis=1).reshape(12_000, -1)
    reference = Reference.build(
        vectors, prototypes=100, block=100, segments={"site": ("a", "b")}, segment_values={"site": ["b", "a"] * 6_000}
    )
    now = by_site(
        reference, a=TOPICS.draw(3_000, random, new_topic=0.2), b=TOPICS.draw(3_000, random, prior=8.0, bias=0.1)
    )
    rows = segment_parts(reference, now, {}, channel=channel)
    assert part_of(rows, "site=a") > 0.9
    assert all(row.own_baseline and row.before == pytest.approx(0.5) for row in rows)


def test_a_segment_that_grew_is_told_from_one_that_changed(reference: Reference) -> None:
    random = np.random.default_rng(8)

    def odd(n: int) -> Vectors:
        return TOPICS.draw(n, random, new_topic=0.9)

    before = by_site(reference, a=TOPICS.draw(8_000, random), b=odd(1_000))
    now = by_site(reference, a=TOPICS.draw(4_000, random), b=odd(4_000))
    row = next(row for row in segment_parts(reference, now, before, channel="level") if row.segment == "site=b")
    assert row.moved > 0.5
    assert abs(row.own) < 0.1
    assert (row.share, row.before) == pytest.approx((1 / 2, 1 / 9))


def test_where_noise_is_most_of_the_change_no_segment_is_blamed(reference: Reference) -> None:
    found = [
        segment_parts(
            reference,
            quiet(reference, 100 + i, a=500, b=500),
            quiet(reference, 200 + i, a=500, b=500),
            channel="level",
        )
        for i in range(20)
    ]
    assert sum(bool(rows) for rows in found) <= 1


def test_a_segment_alone_is_measured_against_the_rest(reference: Reference) -> None:
    random = np.random.default_rng(9)
    now = by_site(reference, a=TOPICS.draw(3_000, random), b=TOPICS.draw(3_000, random, new_topic=0.3))
    del now["site=a"]
    cause = find_cause(reference, now, before={}, segment="site=b")
    assert [row.segment for row in cause.segments] == ["site=b"]
    assert cause.segments[0].part == pytest.approx(1.0, abs=0.1)
    assert cause.records == 3_000


def test_a_named_segment_is_compared_with_its_own_past(reference: Reference) -> None:
    random = np.random.default_rng(10)
    odd = [TOPICS.draw(4_000, random, prior=8.0) for _ in range(2)]
    now, before = by_site(reference, a=odd[0]), by_site(reference, a=odd[1])
    past = find_cause(reference, now, before=before, segment="site=a")
    assert past.against == "before"
    assert past.changed <= 1  # in one of a hundred, a prototype is named by chance
    whole = find_cause(reference, now, before={}, segment="site=a")
    assert whole.against == "reference"
    assert whole.changed > 5


def test_the_cause_does_not_depend_on_the_order_of_the_blocks(reference: Reference) -> None:
    random = np.random.default_rng(11)
    blocks = [sums_of(reference, TOPICS.draw(300, random, new_topic=0.2)) for _ in range(8)]

    def added(order: Mapping[int, Sums]) -> Sums:
        total = Sums.empty(reference.dimension, len(reference.prototypes))
        for block in order.values():
            total.add(block)
        return total

    forward = find_cause(reference, {EVERYTHING: added(dict(enumerate(blocks)))}, before={})
    backward = find_cause(reference, {EVERYTHING: added(dict(enumerate(blocks[::-1])))}, before={})
    assert asdict(forward) == asdict(backward)


def test_no_records_no_cause(reference: Reference) -> None:
    empty = Sums.empty(reference.dimension, len(reference.prototypes))
    cause = find_cause(reference, {EVERYTHING: empty, "site=a": empty}, before={})
    assert (cause.records, cause.prototypes, cause.segments, cause.level.sigmas) == (0, (), (), 0.0)


def test_the_level_moved_as_far_as_it_was_moved(reference: Reference) -> None:
    random = np.random.default_rng(12)
    bias = TOPICS.draw(20_000, random, bias=0.05)
    moved = find_cause(reference, {EVERYTHING: sums_of(reference, bias)}, before={}).level.sigmas
    x = reference.prepare(bias).astype(np.float64).mean(axis=0) - np.asarray(reference.drift["level_mean"])
    assert moved == pytest.approx(float(np.linalg.norm(x @ reference.drift["level_map"])), rel=0.05)
    still = find_cause(reference, {EVERYTHING: sums_of(reference, TOPICS.draw(20_000, random))}, before={})
    assert still.level.sigmas < 0.1


def test_a_prototype_is_shown_by_exemplars_that_lie_near_it(reference: Reference) -> None:
    (found,) = nearest_exemplars(reference, [7], 3)
    assert len(found) == 3
    assert (reference.score(reference.exemplars[found]).nearest == 7).any()
    assert nearest_exemplars(reference, []) == []
