"""The pipeline: what it makes of records depends on the records and their offsets, not on how they arrive."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.database.rows import Checkpoint, PartitionState, SummaryDelta
from connectors.database.store import Store
from connectors.records import Gap, Partition, RawBatch
from detectors.reference import Reference
from detectors.summary import BlockSummary
from monitor.decode import Decoder, RecordSettings
from monitor.embedders import Columns, Embedded, Embedder
from monitor.embedders.vector import VectorSettings
from monitor.pipeline import OTHER, Pipeline, Space
from monitor.record_counts import RecordCounts
from monitor.scores import Scores

START_MS = 1_772_438_400_000
ORDERS = Partition("orders", 0)


@pytest.fixture(scope="module")
def reference() -> Reference:
    vectors = np.random.default_rng(3).normal(size=(2_000, 6)).astype(np.float32)
    shops = [("a", "b")[row % 2] for row in range(2_000)]
    return Reference.build(vectors, segments={"shop": ["a", "b"]}, segment_values={"shop": shops})


def pipeline_of(
    reference: Reference, stored: dict[Partition, PartitionState] | None = None, *, scores: Scores | None = None
) -> Pipeline:
    embedder: Embedder = VectorSettings.model_validate({"field": "/v", "encoding": "list"}).build()
    embedder.embed([[[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]])
    record = RecordSettings.model_validate(
        {
            "id": "/id",
            "time": "/ts",
            "segments": {"shop": "/shop"},
            "prediction": "/p",
            "confidence": "/c",
            "version": "/ver",
        }
    )
    known = stored or {}
    return Pipeline(
        "orders",
        decoder=Decoder(record, fields=["/v"]),
        spaces=[Space("input", embedder, reference, 1, {"shop": ["a", "b"]})],
        block_ms=1_000,
        lateness_ms=2_000,
        alpha=0.01,
        sample=0.05,
        stored=lambda partitions: {p: known[p] for p in partitions if p in known},
        scores=scores,
    )


def batch_of(values: Sequence[bytes | None], first: int = 0) -> RawBatch:
    n = len(values)
    return RawBatch(
        partition=ORDERS,
        offsets=np.arange(first, first + n, dtype=np.int64),
        timestamps_ms=np.full(n, -1, dtype=np.int64),
        keys=[None] * n,
        values=values,
        headers=[()] * n,
        next_offset=first + n,
    )


def stream(n: int, seed: int = 5) -> list[bytes | None]:
    """Records 5 ms apart, some of them far behind, some broken."""
    chance = np.random.default_rng(seed)
    values: list[bytes | None] = []
    for row, vector in enumerate(chance.normal(size=(n, 6)).round(3).tolist()):
        late = 6_000 if row % 97 == 50 else 0
        record = {
            "id": f"r{row}",
            "ts": START_MS + 5 * row - late,
            "v": vector,
            "shop": "abc"[row % 3],
            "p": "yes",
            "c": 0.5,
            "ver": f"v{row // 400}",
        }
        values.append(None if row % 211 == 7 else b"{" if row % 173 == 9 else json.dumps(record).encode())
        if row % 301 == 11:
            values[-1] = json.dumps(record | {"v": [0.0] * 6}).encode()
    return values


def run(
    pipeline: Pipeline, values: Sequence[bytes | None], cuts: Sequence[int], *, checkpoints: bool
) -> list[Checkpoint]:
    """Take the stream through the pipeline in pieces; a checkpoint after every piece, or one at the end."""
    written = []
    edges = [0, *sorted(set(cuts)), len(values)]
    for first, after in itertools.pairwise(edges):
        if after > first:
            pipeline.process(batch_of(values[first:after], first), None)
            if checkpoints:
                written.append(pipeline.checkpoint())
                pipeline.written()
    if not checkpoints:
        written.append(pipeline.checkpoint())
    return written


def totals(
    written: Sequence[Checkpoint],
) -> tuple[dict[tuple[str, str, int], bytes], list[tuple[int, str, float]], list[str]]:
    """What the database would hold after all: merged summaries, kept records, dead letters."""
    summaries: dict[tuple[str, str, int], list[SummaryDelta]] = {}
    for checkpoint in written:
        for delta in checkpoint.summaries:
            summaries.setdefault((delta.space, delta.segment, delta.block), []).append(delta)
    merged = {}
    for key, deltas in summaries.items():
        kind = RecordCounts if key[0] == "" else BlockSummary
        total = kind.from_bytes(deltas[0].blob)
        for delta in deltas[1:]:
            total = total.merge(kind.from_bytes(delta.blob))  # type: ignore[arg-type]
        merged[key] = total.to_bytes()
    kept = [(row.offset, row.reason, row.score) for checkpoint in written for row in checkpoint.kept]
    dead = [f"{letter.offset} {letter.reason}" for checkpoint in written for letter in checkpoint.dead_letters]
    return merged, sorted(kept), sorted(dead)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 899), max_size=12), checkpoints=st.booleans())
def test_any_cut_of_the_stream_gives_the_same_bytes(reference: Reference, cuts: list[int], checkpoints: bool) -> None:
    values = stream(900)
    whole = totals(run(pipeline_of(reference), values, [], checkpoints=False))
    assert totals(run(pipeline_of(reference), values, cuts, checkpoints=checkpoints)) == whole


def test_every_record_is_counted_once(reference: Reference) -> None:
    values = stream(900)
    written = run(pipeline_of(reference), values, [100, 450], checkpoints=True)
    advances = [advance for checkpoint in written for advance in checkpoint.advances]
    assert sum(advance.records for advance in advances) == 900
    dead = [letter for checkpoint in written for letter in checkpoint.dead_letters]
    assert {letter.reason for letter in dead} == {"tombstone", "bad_json", "zero_vector"}
    assert sum(advance.dead for advance in advances) == len(dead)
    assert [(advance.expected, advance.next_offset) for advance in advances] == [(None, 100), (100, 450), (450, 900)]
    counts = [
        RecordCounts.from_bytes(delta.blob)
        for checkpoint in written
        for delta in checkpoint.summaries
        if delta.space == ""
    ]
    assert sum(count.records for count in counts) == 900
    assert sum(sum(count.dead.values()) for count in counts) == len(dead)
    assert sum(count.late for count in counts) == sum(advance.late for advance in advances) > 0


def test_late_records_are_scored_and_not_summarised(reference: Reference) -> None:
    written = run(pipeline_of(reference), stream(900), [], checkpoints=False)
    everything = [d for d in written[0].summaries if (d.space, d.segment) == ("input", "")]
    (advance,) = written[0].advances
    assert sum(BlockSummary.from_bytes(d.blob).n for d in everything) == 900 - advance.dead - advance.late


def test_a_segment_that_the_baseline_did_not_have_shares_other(reference: Reference) -> None:
    written = run(pipeline_of(reference), stream(900), [], checkpoints=False)
    sizes: dict[str, int] = {}
    for delta in written[0].summaries:
        if delta.space == "input":
            sizes[delta.segment] = sizes.get(delta.segment, 0) + BlockSummary.from_bytes(delta.blob).n
    assert set(sizes) == {"", "shop=a", "shop=b", f"shop={OTHER}"}
    assert sizes[""] == sum(n for segment, n in sizes.items() if segment)


def test_a_segment_counts_its_own_p_values(reference: Reference) -> None:
    written = run(pipeline_of(reference), stream(900), [], checkpoints=False)
    found = {
        segment: sum(
            BlockSummary.from_bytes(delta.blob).h
            for delta in written[0].summaries
            if (delta.space, delta.segment) == ("input", segment)
        )
        for segment in ("", "shop=a", "shop=b", f"shop={OTHER}")
    }
    assert sum(int(h.sum()) for name, h in found.items() if name) == int(found[""].sum())
    # The values without a baseline of their own are ranked among all records, the others are not.
    parts = found["shop=a"] + found["shop=b"] + found[f"shop={OTHER}"]
    assert (parts != found[""]).any()


def test_records_that_were_counted_before_are_passed_over(reference: Reference) -> None:
    stored = {ORDERS: PartitionState(ORDERS, 300, START_MS + 1_500, 300, 0, 0)}
    pipeline = pipeline_of(reference, stored)
    pipeline.process(batch_of(stream(900)), None)
    (advance,) = pipeline.checkpoint().advances
    assert (advance.expected, advance.next_offset, advance.records) == (300, 900, 600)


def test_a_refused_checkpoint_leaves_nothing_behind(reference: Reference) -> None:
    pipeline = pipeline_of(reference)
    values = stream(900)
    pipeline.process(batch_of(values), None)
    first = totals([pipeline.checkpoint()])
    pipeline.discard()
    pipeline.process(batch_of(values), None)
    assert totals([pipeline.checkpoint()]) == first


def test_a_clock_that_runs_ahead_makes_nobody_else_late(reference: Reference) -> None:
    pipeline = pipeline_of(reference)
    rows = [
        {"id": str(row), "ts": START_MS + 10 * row + (1_800_000 if row == 20 else 0), "v": [1, 2, 3, 4, 5, 6]}
        for row in range(100)
    ]
    batch = batch_of([json.dumps(row).encode() for row in rows])
    times = np.arange(START_MS, START_MS + 1_000, 10, dtype=np.int64)
    pipeline.process(
        RawBatch(ORDERS, batch.offsets, times, batch.keys, batch.values, batch.headers, batch.next_offset), None
    )
    (advance,) = pipeline.checkpoint().advances
    assert (advance.late, advance.max_time_ms) == (0, START_MS + 990)


def test_a_topic_made_anew_is_counted_beside_the_old_one_in_the_same_blocks(
    reference: Reference, tmp_path: Path
) -> None:
    values = stream(50)
    gap = Gap(ORDERS, 50, 0, "recreated", "The topic was made anew.")
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        pipeline = pipeline_of(reference)
        for _ in range(3):
            pipeline.process(batch_of(values), None)
            assert not pipeline.jumped
            pipeline.process(replace(batch_of([]), gap=gap, next_offset=0), None)
            assert pipeline.jumped, "the checkpoint is due: the next record may be another one at a known offset"
            store.commit(pipeline.checkpoint())
            assert pipeline.written() == {ORDERS: 0}
        assert store.totals("orders").records == 150 and len(store.gaps("orders")) >= 1
        with store.begin_fold("orders") as fold:
            counts = [RecordCounts.from_bytes(row.blob) for row in fold.deltas(10**12) if row.space == ""]
        assert sum(count.records for count in counts) == 150
        assert all(letter.offset < 0 for letter in store.dead_letters("orders"))
        assert len(store.dead_letters("orders")) == store.totals("orders").dead > 0


class Failing:
    """An embedder whose runtime fails at some values, and at every batch that holds one."""

    kind = "failing"
    learns = False

    def __init__(self, inner: Embedder) -> None:
        self._inner = inner
        self.fields = inner.fields
        self.geometry = inner.geometry
        self.fit, self.state, self.restore = inner.fit, inner.state, inner.restore
        self.fingerprint = inner.fingerprint

    def embed(self, columns: Columns) -> Embedded:
        if [7.0] * 6 in columns[0]:
            raise RuntimeError("a text that quotes the record")
        return self._inner.embed(columns)


def test_a_record_at_which_the_embedder_fails_is_a_dead_letter_and_stops_no_other(
    reference: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = pipeline_of(reference)
    whole = replace(pipeline.spaces[0], embedder=Failing(pipeline.spaces[0].embedder))
    pipeline.spaces = (whole,)
    values = stream(300)
    poison = {"id": "x", "ts": START_MS, "v": [7.0] * 6, "shop": "a"}
    values[100:100] = [json.dumps(poison).encode()] * 2
    (checkpoint,) = run(pipeline, values, [], checkpoints=False)
    dead = [letter for letter in checkpoint.dead_letters if letter.reason == "embedder_failed"]
    assert [letter.offset for letter in dead] == [100, 101]
    assert dead[0].detail == "The embedder failed: RuntimeError."
    assert "quotes" not in caplog.text and caplog.text.count("embedder failed") == 1
    (usual,) = run(pipeline_of(reference), values, [], checkpoints=False)
    assert sum(advance.records for advance in usual.advances) == sum(advance.records for advance in checkpoint.advances)
    assert {x.reason for x in checkpoint.dead_letters} == {"embedder_failed"} | {x.reason for x in usual.dead_letters}


def test_versions_of_the_model_are_counted_in_their_blocks_but_not_of_late_records(reference: Reference) -> None:
    values = stream(900)
    (checkpoint,) = run(pipeline_of(reference), values, [], checkpoints=False)
    blocks = {delta.block: RecordCounts.from_bytes(delta.blob) for delta in checkpoint.summaries if delta.space == ""}
    found: dict[str, int] = {}
    for counts in blocks.values():
        assert sum(counts.versions.values()) == counts.records - counts.late - sum(counts.dead.values())
        for version, count in counts.versions.items():
            found[version] = found.get(version, 0) + count
    assert set(found) == {"v0", "v1", "v2"}
