"""Bursts of near-identical records: counted within their block, the same for any cut, in bounded memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.database.rows import FloodRow
from connectors.records import Partition, RawBatch
from detectors import flood
from detectors.errors import InvalidInput, InvalidReference
from detectors.flood import CELLS, MAX_BLOCKS, FloodPlan, FloodSketch
from detectors.reference import ANGULAR, STANDARD, Reference
from monitor.decode import Decoder
from monitor.event import EventBatch
from monitor.flood import Floods
from monitor.record import RecordSettings

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

P0 = Partition("payments", 0)
D = 24
PLAN = FloodPlan(dimension=D, width=1.0, least=20)


def unit(vectors: npt.NDArray[np.float64]) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def strangers(n: int, seed: int) -> Floats:
    return unit(np.random.default_rng(seed).normal(size=(n, D)))


def near(centre: Floats, n: int, *, distance: float, seed: int) -> Floats:
    noise = unit(np.random.default_rng(seed).normal(size=(n, D)))
    return (centre + np.float32(distance) * noise).astype(np.float32)


def zeros(n: int) -> Int64s:
    return np.zeros(n, np.int64)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.build(strangers(4_000, 0), geometry=ANGULAR)


# --- counting ---------------------------------------------------------------------------------------------------------


def test_the_copies_of_a_record_are_counted_one_after_the_other() -> None:
    copies = np.repeat(strangers(1, 1), 30, axis=0)
    assert FloodSketch(PLAN).push(zeros(30), copies).tolist() == list(range(1, 31))


def test_every_block_counts_for_itself() -> None:
    copies = np.repeat(strangers(1, 1), 6, axis=0)
    assert FloodSketch(PLAN).push(np.array([7, 7, 8, 7, 8, 9]), copies).tolist() == [1, 2, 1, 3, 2, 1]


def test_strangers_are_no_group_and_near_identical_records_are() -> None:
    plan = replace(PLAN, width=0.5)
    crowd, centre = strangers(1_000, 2), strangers(1, 3)[0]
    burst = near(centre, 100, distance=0.5 / 32, seed=4)
    rows = np.random.default_rng(5).permutation(1_100)
    sizes = FloodSketch(plan).push(zeros(1_100), np.concatenate([crowd, burst])[rows])
    of_burst = sizes[rows >= 1_000]
    assert (sizes[rows < 1_000] <= 3).all()
    assert of_burst.max() >= 60
    assert np.mean(of_burst >= 20) >= 0.6


def test_records_three_widths_apart_are_strangers() -> None:
    plan = replace(PLAN, width=0.2)
    scattered = near(strangers(1, 3)[0], 500, distance=0.6, seed=4)
    assert FloodSketch(plan).push(zeros(500), scattered).max() <= 3


def test_a_crowded_block_adds_no_more_than_the_stated_error() -> None:
    n = 60_000
    sketch, group = FloodSketch(replace(PLAN, width=0.05)), np.repeat(strangers(1, 1), 200, axis=0)
    crowd = strangers(n, 6)
    of_crowd = np.concatenate([sketch.push(zeros(2_000), crowd[at : at + 2_000]) for at in range(0, n, 2_000)])
    sizes = sketch.push(zeros(200), group)
    error = np.sqrt(n / CELLS)
    assert abs(int(sizes[-1]) - 200) <= 5 * error
    assert (of_crowd >= 20).sum() == 0
    assert (of_crowd == 1).mean() > 0.99, "what other cells add is taken for noise"


def test_a_flood_makes_no_floods_of_strangers_that_share_one_of_its_counters() -> None:
    copies = np.repeat(strangers(1, 1), 20_000, axis=0)
    sketch = FloodSketch(replace(PLAN, width=0.05))
    sketch.push(zeros(20_000), copies)
    assert (sketch.push(zeros(20_000), strangers(20_000, 7)) < 20).all()


def test_no_records_are_no_trouble() -> None:
    sketch = FloodSketch(PLAN)
    assert sketch.push(zeros(0), strangers(0, 0).reshape(0, D)).tolist() == []
    assert sketch.unwritten() == []


# --- exactness --------------------------------------------------------------------------------------------------------


def stream(n: int = 300) -> tuple[Int64s, Floats]:
    chance = np.random.default_rng(8)
    vectors = np.concatenate([strangers(n - 180, 9), near(strangers(1, 10)[0], 180, distance=0.03, seed=11)])
    order = chance.permutation(n)
    return np.sort(chance.integers(0, 4, n)) + chance.integers(0, 2, n), vectors[order]


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(
        st.tuples(st.integers(0, 300), st.sampled_from(["poll", "checkpoint", "owner", "crash"])), max_size=8
    ),
    most=st.sampled_from([1, 2, 3, MAX_BLOCKS]),
)
def test_any_cut_any_checkpoint_and_any_owner_give_the_same_sizes(cuts: list[tuple[int, str]], most: int) -> None:
    blocks, vectors = stream()
    whole = FloodSketch(PLAN, most=most).push(blocks, vectors)
    stored: list[tuple[int, bytes]] = []
    sketch, found, at, written = FloodSketch(PLAN, most=most), np.zeros(300, np.int32), 0, 0
    for cut, then in [*sorted(cuts), (300, "poll")]:
        found[at:cut] = sketch.push(blocks[at:cut], vectors[at:cut])
        at = max(at, cut)
        if then in ("checkpoint", "owner"):
            stored += sketch.unwritten()
            sketch.written()
            written = at
        if then in ("owner", "crash"):
            sketch, at = FloodSketch(PLAN, stored, most=most), written
    found[at:] = sketch.push(blocks[at:], vectors[at:])
    assert found.tolist() == whole.tolist()
    assert whole.max() > 20


def test_what_was_written_is_not_written_again() -> None:
    sketch = FloodSketch(PLAN)
    sketch.push(np.array([1, 2, 2]), strangers(3, 1))
    assert [block for block, _ in sketch.unwritten()] == [1, 2]
    sketch.written()
    sketch.push(np.array([2]), strangers(1, 2))
    assert [block for block, _ in sketch.unwritten()] == [2]


def test_rows_are_small() -> None:
    sketch = FloodSketch(PLAN)
    sketch.push(zeros(4_000), strangers(4_000, 1))
    ((_, blob),) = sketch.unwritten()
    assert len(blob) < 4 * 4_000


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_blocks_that_the_partition_has_passed_are_forgotten() -> None:
    sketch, copies = FloodSketch(PLAN), np.repeat(strangers(1, 1), 3, axis=0)
    sketch.push(np.array([4, 5, 6]), copies)
    sketch.close(6)
    assert [block for block, _ in sketch.unwritten()] == [6]
    assert sketch.push(np.array([5, 6, 7]), copies).tolist() == [0, 2, 1]


def test_of_too_many_open_blocks_the_newest_are_counted_whoever_owns_the_partition() -> None:
    copies = np.repeat(strangers(1, 1), MAX_BLOCKS + 2, axis=0)
    sketch = FloodSketch(PLAN)
    assert (sketch.push(np.arange(MAX_BLOCKS + 2, dtype=np.int64), copies) == 1).all()
    stored = sketch.unwritten()
    again = np.array([0, 1, 2, MAX_BLOCKS + 1])
    for owner in (sketch, FloodSketch(PLAN, stored)):
        assert owner.push(again, copies[:4]).tolist() == [0, 0, 2, 2]
    all_blocks = FloodSketch(PLAN).push(np.arange(MAX_BLOCKS + 2, dtype=np.int64)[::-1].copy(), copies)
    assert all_blocks.tolist() == [1] * MAX_BLOCKS + [0, 0]


def test_a_partition_holds_eight_megabytes_at_most() -> None:
    sketch = FloodSketch(PLAN)
    sketch.push(np.arange(200, dtype=np.int64), strangers(200, 1))
    assert sum(counts.nbytes for counts in sketch._counts.values()) <= 8 * 2**20


# --- what a flood is --------------------------------------------------------------------------------------------------


def test_a_baseline_without_copies_asks_for_a_handful(reference: Reference) -> None:
    plan = FloodPlan.measure(reference, strangers(4_000, 0), np.arange(4_000) // 200)
    assert plan.dimension == D and 10 <= plan.least <= 20
    assert 0.5 < plan.width / flood.WIDTH < 1.1, "the distance of a record to its nearest other"


def test_bursts_of_the_baseline_are_no_floods(reference: Reference) -> None:
    chance = np.random.default_rng(12)
    vectors = strangers(4_000, 0)
    for start in range(0, 4_000, 200):  # a text that is common, in every block
        vectors[start + chance.choice(200, chance.poisson(12), replace=False)] = vectors[0]
    blocks = np.arange(4_000) // 200
    plan = FloodPlan.measure(reference, vectors, blocks)
    largest = [
        int(FloodSketch(plan).push(zeros(200), vectors[start : start + 200]).max()) for start in range(0, 4_000, 200)
    ]
    assert plan.least > 2 * np.median(largest), "twice the traffic is still normal"


@pytest.mark.parametrize("rate", [2.0, 8.0, 30.0])
def test_normal_traffic_makes_no_floods_in_a_thousand_blocks(rate: float) -> None:
    chance = np.random.default_rng(13)
    baseline = flood._least(chance.poisson(2 * rate, 50).astype(np.int64))  # of two blocks taken as one
    assert (chance.poisson(rate, 100_000) >= baseline).mean() <= 1e-4


def test_a_plan_needs_vectors(reference: Reference) -> None:
    with pytest.raises(InvalidInput, match="as many block numbers"):
        FloodPlan.measure(reference, strangers(3, 0), zeros(2))


def test_tables_are_measured_on_their_own_scale() -> None:
    rows = np.random.default_rng(14).normal(size=(2_000, 3)).astype(np.float32) * np.array([1, 1_000, 1e-3], np.float32)
    reference = Reference.build(rows, geometry=STANDARD)
    plan = FloodPlan.measure(reference, rows, np.arange(2_000) // 100)
    burst = reference.prepare(np.repeat(rows[:1], 50, axis=0))
    assert FloodSketch(plan).push(zeros(50), burst)[-1] == 50
    assert FloodSketch(plan).push(zeros(500), reference.prepare(rows[:500])).max() < plan.least


def test_a_saved_plan_reads_as_it_was(tmp_path: Path) -> None:
    plan = FloodPlan(384, 0.6432198, 27)
    plan.save(tmp_path)
    assert FloodPlan.load(tmp_path) == plan


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": 1}', '{"format": 2, "dimension": 3, "width": 1.0, "least": 3}']
)
def test_a_plan_that_is_missing_or_damaged_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(InvalidReference, match="reference build"):
        FloodPlan.load(tmp_path)
    (tmp_path / "flood.json").write_text(content)
    with pytest.raises(InvalidReference, match="reference build"):
        FloodPlan.load(tmp_path)


# --- a partition ------------------------------------------------------------------------------------------------------


def events_of(times_ms: list[int], broker_ms: int = -1) -> EventBatch:
    n = len(times_ms)
    batch = RawBatch(
        partition=P0,
        offsets=np.arange(n, dtype=np.int64),
        timestamps_ms=np.full(n, broker_ms, np.int64),
        keys=[None] * n,
        values=[json.dumps({"ts": time_ms}).encode() for time_ms in times_ms],
        headers=[()] * n,
        next_offset=n,
    )
    return Decoder(RecordSettings.model_validate({"time": "/ts"}), []).decode(batch, None)


START_MS = 1_700_000_000_000


def test_late_records_and_those_dated_ahead_are_not_counted() -> None:
    events = events_of([START_MS, START_MS, START_MS + 1_800_000, START_MS], broker_ms=START_MS)
    copies = np.repeat(strangers(1, 1), 4, axis=0)
    late = np.array([False, True, False, False])
    floods = Floods(PLAN)
    assert floods.push(events, copies, blocks=events.time_ms // 1_000, late=late).tolist() == [1, 0, 0, 2]
    assert len(floods.unwritten(P0, 0)) == 1


def test_a_new_owner_counts_on() -> None:
    events = events_of([START_MS] * 5)
    copies, late, blocks = np.repeat(strangers(1, 1), 5, axis=0), np.zeros(5, np.bool_), events.time_ms // 1_000
    floods = Floods(PLAN)
    rows: list[FloodRow] = []
    floods.push(events, copies, blocks=blocks, late=late)
    rows += floods.unwritten(P0, 100)
    floods.written()
    floods.push(events, copies, blocks=blocks, late=late)
    rows += floods.unwritten(P0, 200)
    assert [(row.partition, row.block, row.first_offset) for row in rows] == [
        (P0, START_MS // 1_000, 100),
        (P0, START_MS // 1_000, 200),
    ]
    owner = Floods(PLAN, rows)
    assert owner.push(events, copies, blocks=blocks, late=late).tolist() == [11, 12, 13, 14, 15]
    owner.close(START_MS // 1_000 + 1)
    assert owner.push(events, copies, blocks=blocks, late=late).tolist() == [0] * 5
    assert owner.unwritten(P0, 300) == []
