"""Block summaries: exact sums that do not depend on who added what, and when."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors import summary
from detectors.errors import InvalidInput
from detectors.summary import BlockSummary, fixed_point_sum, summarise

D, K = 6, 11

# A summary as format version 1 wrote it, and as version 2 does.
FIRST_VERSION = (
    "6472696674642e4201040300000000000000020000000300000001000000000000000000000000ffffff020000000101"
    "003001020100000001010103020000000000000000000000030000000200000000000000796573020000000100000000"
    "000000c3a4ba82624f"
)
SECOND_VERSION = (
    "6472696674642e4202040300000000000000020000000300000029010000000000000000000202030000000300000000"
    "0000000000000000300224020000000000000000000000010102010302796573c3a4d89a1d0b"
)


@dataclass
class Records:
    """Scored records with the columns that a summary reads, and what a model said of them."""

    x: np.ndarray
    distance: np.ndarray
    nearest: np.ndarray
    bin: np.ndarray
    group: np.ndarray
    confidence: np.ndarray
    predictions: list[str | None]
    prototypes: int = K
    score_scale: float = 1.5

    @classmethod
    def draw(cls, n: int, *, seed: int = 0, groups: int = 3, labels: int = 9) -> Records:
        random = np.random.default_rng(seed)
        names = [None, *(f"label {number}" for number in range(labels))]
        return cls(
            x=np.clip(random.standard_normal((n, D)) * 3, -8, 8).astype(np.float32),
            distance=random.gamma(3, 0.5, n).astype(np.float32),
            nearest=random.integers(0, K, n).astype(np.int32),
            bin=random.integers(0, 49, n).astype(np.uint8),
            group=random.integers(-2, groups - 2, n),
            confidence=np.where(random.random(n) < 0.1, np.nan, random.random(n)),
            predictions=[names[number] for number in random.integers(0, len(names), n)],
        )

    def rows(self, at: np.ndarray) -> Records:
        columns = {name: getattr(self, name)[at] for name in ("x", "distance", "nearest", "bin", "group", "confidence")}
        return replace(self, **columns, predictions=[self.predictions[row] for row in at])

    def summarise(self) -> dict[int, BlockSummary]:
        return summarise(self.group, self, confidence=self.confidence, predictions=self.predictions)


def merge_all(parts: list[dict[int, BlockSummary]]) -> dict[int, BlockSummary]:
    merged: dict[int, BlockSummary] = {}
    for part in parts:
        for group, found in part.items():
            merged[group] = merged[group].merge(found) if group in merged else found
    return merged


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 300), labels=st.sampled_from([3, 600]))
def test_any_cut_in_any_order_gives_equal_bytes(data: st.DataObject, n: int, labels: int) -> None:
    records = Records.draw(n, seed=n, labels=labels)
    worker = np.array(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))
    shuffled = np.random.default_rng(n).permutation(n)
    parts = [records.rows(shuffled[worker[shuffled] == number]).summarise() for number in range(5)]
    merged = merge_all(data.draw(st.permutations([part for part in parts if part])))
    whole = records.summarise()
    assert merged.keys() == whole.keys()
    for group, found in merged.items():
        assert found.to_bytes() == whole[group].to_bytes()


@settings(max_examples=40, deadline=None)
@given(sizes=st.tuples(*[st.integers(1, 80)] * 3), labels=st.sampled_from([2, 400]))
def test_merging_is_commutative_and_associative(sizes: tuple[int, int, int], labels: int) -> None:
    a, b, c = (
        Records.draw(size, seed=seed, groups=1, labels=labels).summarise()[-2] for seed, size in enumerate(sizes)
    )
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(BlockSummary.empty(D, K)) == a
    assert a != b.merge(a)


def test_a_summary_holds_the_sums_of_its_records() -> None:
    records = Records.draw(2000, seed=2)
    found = records.summarise()
    assert sorted(found) == list(found) == [-2, -1, 0]
    for group, block in found.items():
        of_group = records.group == group
        assert block.n == of_group.sum()
        assert np.array_equal(block.s, np.rint(records.x[of_group].astype(np.float64) * 2**20).astype(np.int64).sum(0))
        assert np.array_equal(block.h, np.bincount(records.bin[of_group], minlength=49))
        assert np.array_equal(block.c, np.bincount(records.nearest[of_group], minlength=K))
        confidence = records.confidence[of_group]
        assert block.confidence is not None
        assert block.confidence.sum() == (~np.isnan(confidence)).sum()
        assert block.labels is not None
        spoken = [text for text, yes in zip(records.predictions, of_group, strict=True) if yes and text is not None]
        assert block.labels == {text: spoken.count(text) for text in set(spoken)}
        assert block.scores is not None
        assert block.scores.sum() == block.n


def test_columns_that_are_not_given_are_not_collected() -> None:
    records = Records.draw(20, groups=1)
    block = summarise(records.group, records)[-2]
    assert block.confidence is None
    assert block.labels is None
    assert BlockSummary.from_bytes(block.to_bytes()) == block


def test_no_records_give_no_summaries() -> None:
    assert Records.draw(0).summarise() == {}


def test_sums_are_exact_at_the_largest_magnitude() -> None:
    # 128 rows of 8 * 2**20 come close to the end of int32, in which they are added.
    x = np.full((100_003, 2), 8.0, np.float32) * np.array([1, -1], np.float32)
    assert fixed_point_sum(x).tolist() == [100_003 * 8 * 2**20, -100_003 * 8 * 2**20]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 200), labels=st.sampled_from([0, 5, 300]))
def test_bytes_are_read_back(n: int, labels: int) -> None:
    for block in Records.draw(n, seed=n, labels=labels).summarise().values():
        again = BlockSummary.from_bytes(block.to_bytes())
        assert again == block
        assert again.to_bytes() == block.to_bytes()
        assert again.labels == block.labels


def test_every_damaged_byte_is_noticed() -> None:
    data = Records.draw(30, groups=1).summarise()[-2].to_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        with pytest.raises(InvalidInput):
            BlockSummary.from_bytes(bytes(damaged))
    for length in range(0, len(data), 7):
        with pytest.raises(InvalidInput):
            BlockSummary.from_bytes(data[:length])
    with pytest.raises(InvalidInput):
        BlockSummary.from_bytes(data + b"\0")


def test_the_format_of_the_bytes_stays() -> None:
    # Databases hold these bytes. Another layout needs another format version, and this one must still be read.
    block = BlockSummary(
        n=3,
        s=np.array([1, -(2**40)]),
        h=np.bincount([0, 48, 48], minlength=49),
        c=np.array([0, 3, 0]),
        labels={"yes": 2, "ä": 1},
    )
    assert block.to_bytes().hex() == SECOND_VERSION
    assert BlockSummary.from_bytes(bytes.fromhex(SECOND_VERSION)) == block
    assert BlockSummary.from_bytes(bytes.fromhex(FIRST_VERSION)) == block


def test_another_format_version_is_named() -> None:
    data = bytearray(BlockSummary.empty(2, 2).to_bytes())
    data[8] = 9
    with pytest.raises(InvalidInput, match="expected format version 2 or older, got 9"):
        BlockSummary.from_bytes(bytes(data))


def test_summaries_of_different_references_do_not_merge() -> None:
    with pytest.raises(InvalidInput, match="4 dimensions and 2 prototypes with one of 4 dimensions and 3 prototypes"):
        BlockSummary.empty(4, 2).merge(BlockSummary.empty(4, 3))


def test_labels_beyond_the_limit_are_counted_as_others() -> None:
    names = [f"name {number}" for number in range(1000)]
    records = Records.draw(1000, groups=1)
    block = replace(records, predictions=names).summarise()[-2]
    assert block.labels is not None
    assert len(block.labels) == summary.MAX_LABELS
    assert sum(block.labels.values()) + block.other_labels == 1000


def test_more_labels_than_fit_are_counted_alike_in_every_cut() -> None:
    records = Records.draw(3000, groups=1, labels=1500)
    order = np.random.default_rng(1).permutation(3000)
    parts = [records.rows(part).summarise() for part in np.array_split(order, 7)]
    whole = records.summarise()[-2]
    assert whole.other_labels > 0
    assert merge_all(parts)[-2] == merge_all(parts[::-1])[-2] == whole


def test_score_bins_follow_their_edges() -> None:
    scale = 0.83
    edges = summary.score_edges(scale)
    scores = np.concatenate([[0.0], np.geomspace(scale / 4, scale * 16, 5000)]).astype(np.float32)
    bins = summary.score_bins(scores, scale)
    assert bins.min() == 0
    assert bins.max() == summary.SCORE_BINS - 1
    assert (scores >= edges[bins] * (1 - 1e-6)).all()
    inner = bins < summary.SCORE_BINS - 1
    assert (scores[inner] < edges[bins[inner] + 1] * (1 + 1e-6)).all()
    ratios = edges[2:] / edges[1:-1]
    assert ratios.min() > 1.0019
    assert ratios.max() < 1.004


def test_the_score_at_a_share_leaves_at_most_that_share_above() -> None:
    scores = np.random.default_rng(0).gamma(4, 0.25, 200_000).astype(np.float32)
    histogram = np.bincount(summary.score_bins(scores, 1.0), minlength=summary.SCORE_BINS)
    for share in (0.5, 0.01, 0.001):
        cut = summary.score_at_share(histogram, share, scale=1.0)
        assert 0.9 * share < (scores >= cut).mean() <= share
    assert summary.score_at_share(histogram, 1.0, scale=1.0) == 0.0
    assert summary.score_at_share(np.bincount([1023], minlength=1024), 0.5, scale=1.0) == float("inf")
