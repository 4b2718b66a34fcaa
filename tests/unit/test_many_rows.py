"""Records of many rows: every row is scored, kept, counted and refused by itself, whatever cuts the stream."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.database.rows import Checkpoint, SummaryDelta
from connectors.database.store import Store
from connectors.files import FilesSettings
from connectors.records import Partition, RawBatch
from detectors.conformal import position_uniforms
from detectors.reference import Reference
from detectors.summary import BlockSummary
from monitor.collect import Collector
from monitor.decode import Decoder, RecordSettings
from monitor.embedders import Embedder
from monitor.embedders.number import NumberSettings
from monitor.embedders.vector import VectorSettings
from monitor.pipeline import Pipeline, Space
from monitor.record_counts import RecordCounts
from monitor.settings import ReferenceSettings, Settings
from monitor.worker import Worker

START_MS = 1_772_438_400_000
ORDERS = Partition("orders", 0)
DIMENSION = 6
RECORD = {
    "format": "v2",
    "time": "/inputs/ts",
    "key": "/inputs/user",
    "segments": {"shop": "/inputs/shop"},
    "prediction": "/outputs/label",
    "confidence": "/outputs/p",
}


@pytest.fixture(scope="module")
def reference() -> Reference:
    vectors = np.random.default_rng(3).normal(size=(2_000, DIMENSION)).astype(np.float32)
    return Reference.build(vectors, segments={"shop": ["a", "b"]}, segment_values={"shop": ["a", "b"] * 1_000})


def pipeline_of(reference: Reference, record: dict[str, Any], field: str, *, by_key: bool = False) -> Pipeline:
    embedder: Embedder = VectorSettings.model_validate({"field": field, "encoding": "list"}).build()
    embedder.embed([[[0.0] * (DIMENSION - 1) + [1.0]]])
    return Pipeline(
        "orders",
        decoder=Decoder(RecordSettings.model_validate(record), fields=[field]),
        spaces=[Space("input", embedder, reference, 1, {"shop": ["a", "b"]})],
        block_ms=1_000,
        lateness_ms=2_000,
        alpha=0.01,
        sample=0.05,
        stored=lambda partitions: {},
        stored_keys=(lambda partition: []) if by_key else None,
    )


def batch_of(values: Sequence[bytes | None], first: int = 0) -> RawBatch:
    n = len(values)
    offsets = np.arange(first, first + n, dtype=np.int64)
    return RawBatch(ORDERS, offsets, np.full(n, -1, dtype=np.int64), [None] * n, values, [()] * n, first + n)


Row = dict[str, Any]


def rows_of(n: int, seed: int = 5) -> list[Row]:
    """Rows 5 ms apart, some of them far behind, some without a direction, some with a time that is none."""
    chance = np.random.default_rng(seed)
    rows: list[Row] = []
    for number, vector in enumerate(chance.normal(size=(n, DIMENSION)).round(3).tolist()):
        late = 6_000 if number % 97 == 50 else 0
        rows.append(
            {
                "ts": "noon" if number % 61 == 7 else START_MS + 5 * number - late,
                "v": [0.0] * DIMENSION if number % 73 == 9 else vector,
                "shop": "abc"[number % 3],
                "user": f"u{number // 3}",
                "label": "yes",
                "p": 0.5,
            }
        )
    return rows


def body_of(rows: Sequence[Row]) -> bytes:
    def tensor(name: str, datatype: str, shape: tuple[int, ...] = ()) -> dict[str, Any]:
        data = [row[name] for row in rows]
        return {"name": name, "datatype": datatype, "shape": [len(rows), *shape], "data": data}

    inputs = [
        tensor("ts", "INT64"),
        tensor("v", "FP32", (DIMENSION,)),
        tensor("shop", "BYTES"),
        tensor("user", "BYTES"),
    ]
    return json.dumps({"inputs": inputs, "outputs": [tensor("label", "BYTES"), tensor("p", "FP32")]}).encode()


def stream(n: int) -> tuple[list[bytes | None], list[list[Row]]]:
    """Bodies of 1 to 9 rows, and what is no body at all; and the rows of each."""
    values: list[bytes | None] = []
    pieces: list[list[Row]] = []
    left = rows_of(n)
    for number in itertools.count():
        if not left:
            return values, pieces
        if number % 23 == 5:
            values.append(None if number % 2 else b'{"inputs": []}')
            pieces.append([])
        piece, left = left[: 1 + number % 9], left[1 + number % 9 :]
        values.append(body_of(piece))
        pieces.append(piece)
    raise AssertionError


def run(pipeline: Pipeline, values: Sequence[bytes | None], cuts: Sequence[int]) -> list[Checkpoint]:
    written = []
    for first, after in itertools.pairwise([0, *sorted(set(cuts)), len(values)]):
        pipeline.process(batch_of(values[first:after], first), None)
        written.append(pipeline.checkpoint())
        pipeline.written()
    return written


def summaries_of(written: Sequence[Checkpoint]) -> dict[tuple[str, str, int], bytes]:
    found: dict[tuple[str, str, int], list[SummaryDelta]] = {}
    for delta in itertools.chain.from_iterable(checkpoint.summaries for checkpoint in written):
        found.setdefault((delta.space, delta.segment, delta.block), []).append(delta)
    merged = {}
    for key, deltas in found.items():
        total: Any = (RecordCounts if key[0] == "" else BlockSummary).from_bytes(deltas[0].blob)
        for delta in deltas[1:]:
            total = total.merge(type(total).from_bytes(delta.blob))
        merged[key] = total.to_bytes()
    return merged


def totals(written: Sequence[Checkpoint]) -> tuple[Any, ...]:
    kept = sorted((row.offset, row.row, row.reason, row.id, row.score) for each in written for row in each.kept)
    dead = sorted((row.offset, row.row, row.reason, row.block) for each in written for row in each.dead_letters)
    advances = [advance for each in written for advance in each.advances]
    counts = [sum(getattr(advance, name) for advance in advances) for name in ("records", "dead", "late")]
    return summaries_of(written), kept, dead, counts


@pytest.mark.parametrize("most", [7, 16_384])
@pytest.mark.parametrize("by_key", [False, True])
def test_any_cut_of_the_stream_gives_the_same_bytes(
    reference: Reference, monkeypatch: pytest.MonkeyPatch, most: int, by_key: bool
) -> None:
    values, _ = stream(900)
    whole = totals(run(pipeline_of(reference, RECORD, "/inputs/v", by_key=by_key), values, []))
    monkeypatch.setattr("monitor.decode.MAX_ROWS", most)
    for cuts in ([], [1, 50, 51], list(range(1, len(values)))):
        assert totals(run(pipeline_of(reference, RECORD, "/inputs/v", by_key=by_key), values, cuts)) == whole


def test_rows_of_bodies_are_summarised_as_the_same_rows_sent_one_by_one(reference: Reference) -> None:
    values, pieces = stream(900)
    plain = {"time": "/ts", "segments": {"shop": "/shop"}, "prediction": "/label", "confidence": "/p", "key": "/user"}
    singles = [json.dumps(row).encode() for piece in pieces for row in piece]
    for by_key in (False, True):
        bodies = summaries_of(run(pipeline_of(reference, RECORD, "/inputs/v", by_key=by_key), values, [7]))
        alone = summaries_of(run(pipeline_of(reference, plain, "/v", by_key=by_key), singles, [7]))
        assert {key: blob for key, blob in bodies.items() if key[0]} == {k: b for k, b in alone.items() if k[0]}


def test_rows_are_counted_one_by_one_and_a_record_that_cannot_be_opened_as_one(reference: Reference) -> None:
    values, pieces = stream(900)
    written = run(pipeline_of(reference, RECORD, "/inputs/v"), values, [3, 40])
    letters = [letter for checkpoint in written for letter in checkpoint.dead_letters]
    closed = sum(not piece for piece in pieces)
    assert sum(letter.row < 0 and letter.reason in ("tombstone", "bad_rows") for letter in letters) == closed
    advances = [advance for checkpoint in written for advance in checkpoint.advances]
    assert sum(advance.records for advance in advances) == 900 + closed
    assert sum(advance.dead for advance in advances) == len(letters)
    bad = [
        (offset, row if len(piece) > 1 else -1, "bad_time" if each["ts"] == "noon" else "zero_vector")
        for offset, piece in enumerate(pieces)
        for row, each in enumerate(piece)
        if each["ts"] == "noon" or not any(each["v"])
    ]
    assert [(x.offset, x.row, x.reason) for x in letters if x.reason in ("bad_time", "zero_vector")] == bad
    counts = [RecordCounts.from_bytes(d.blob) for each in written for d in each.summaries if d.space == ""]
    assert sum(count.records for count in counts) == 900 + closed


def test_a_kept_row_says_which_it_is(reference: Reference) -> None:
    values, pieces = stream(900)
    kept = [
        row for checkpoint in run(pipeline_of(reference, RECORD, "/inputs/v"), values, []) for row in checkpoint.kept
    ]
    assert len(kept) > 20 and any(row.row > 0 for row in kept)
    for row in kept:
        piece = pieces[row.offset]
        assert row.id == f"orders/0/{row.offset}" + (f"#{row.row}" if len(piece) > 1 else "")
        assert row.segments == {"shop": piece[row.row]["shop"]}
    assert len({(row.offset, row.row) for row in kept}) == len(kept)


def test_rows_of_a_record_draw_for_themselves_and_the_first_as_a_record_alone() -> None:
    offsets, rows = np.repeat(np.arange(5_000), 4), np.tile(np.arange(4), 5_000)
    draws = position_uniforms("orders", 0, offsets, rows=rows, purpose="sample")
    assert np.array_equal(draws[rows == 0], position_uniforms("orders", 0, np.arange(5_000), purpose="sample"))
    assert len(np.unique(draws)) == len(draws)
    together = draws.reshape(-1, 4)
    assert np.abs(np.corrcoef(together.T) - np.eye(4)).max() < 0.06
    assert np.abs(together.mean(axis=0) - 0.5).max() < 0.02


@pytest.mark.parametrize("cuts", [[], [1, 2, 3], list(range(1, 400))])
def test_a_baseline_ends_behind_the_same_record_however_it_is_cut(cuts: list[int]) -> None:
    values, pieces = stream(3_000)
    embedder = NumberSettings(field="/outputs/p").build()
    settings = ReferenceSettings(collect=1_000)
    collector = Collector(
        "orders",
        decoder=Decoder(RecordSettings.model_validate(RECORD), ["/outputs/p"]),
        embedders={"p": embedder},
        settings=settings,
        block_ms=1_000,
    )
    left = 0
    for first, after in itertools.pairwise([0, *cuts, len(values)]):
        left += len(collector.take(batch_of(values[first:after], first), None))
    usable = np.cumsum([sum(row["ts"] != "noon" for row in piece) for piece in pieces])
    ends = int(np.searchsorted(usable, 1_000)) + 1
    assert left == len(values) - ends
    assert collector.collected == usable[ends - 1]
    assert collector.spans[ORDERS].records == sum(len(piece) or 1 for piece in pieces[:ends])


def test_files_of_bodies_are_read_to_the_database(tmp_path: Path) -> None:
    values, pieces = stream(4_000)
    lines = [value or b"3" for value in values]
    (tmp_path / "bodies.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    model = {
        "source": FilesSettings(path=str(tmp_path / "bodies.jsonl")).model_dump(),
        "record": RECORD | {"format": "auto", "key": None, "keep": {"user": "/inputs/user"}},
        "spaces": {"v": {"embedder": {"kind": "vector", "field": "/inputs/v"}}},
        "reference": {"collect": 2_000},
        "outliers": {"sample": 0.1},
    }
    settings = Settings.model_validate(
        {
            "models": {"m": model},
            "references": tmp_path / "references",
        }
    )
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        worker = Worker("m", settings, store=store, source=settings.models["m"].source.build(client_id="test"))
        worker.start()
        steps = (worker.step(START_MS, float(clock)) for clock in range(1_000))
        assert any(step.finished for step in steps)
        worker.close_blocks_at_end(START_MS)
        worker.source.close()
        (state,) = store.partition_states("m")
        assert state.records == sum(len(piece) or 1 for piece in pieces)
        assert store.pin_format("m", state.partition.topic, "plain", 0) == "v2"
        kept = store.kept("m", limit=10_000)
        assert len({(row.offset, row.row) for row in kept}) == len(kept) > 50
        assert any(row.row > 0 for row in kept)
        for row in kept:
            assert row.kept["user"] == json.loads(_line(lines, row.offset))["inputs"][3]["data"][row.row]


def _line(lines: Sequence[bytes], offset: int) -> bytes:
    """The line that begins at a byte."""
    starts = np.cumsum([0, *(len(line) + 1 for line in lines)])
    return lines[int(np.searchsorted(starts, offset))]


def test_a_full_checkpoint_stops_in_the_middle_of_a_batch_and_the_rest_gives_the_same(
    reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, _ = stream(600)
    whole = run(pipeline_of(reference, RECORD, "/inputs/v"), values, [])
    monkeypatch.setattr("monitor.decode.MAX_ROWS", 50)
    monkeypatch.setattr("monitor.pipeline.MAX_KEPT", 3)
    pipeline, written = pipeline_of(reference, RECORD, "/inputs/v"), []
    left: RawBatch | None = batch_of(values)
    while left is not None:
        left = pipeline.process(left, None, until_full=True)
        written.append(pipeline.checkpoint())
        pipeline.written()
    assert len(written) > 5
    assert max(len(checkpoint.dead_letters) for checkpoint in written) < 50
    assert summaries_of(written) == summaries_of(whole)
    assert [advance.records for advance in whole[0].advances] == [
        sum(advance.records for checkpoint in written for advance in checkpoint.advances)
    ]


def test_a_record_with_one_bad_row_is_not_spoiled(reference: Reference) -> None:
    good, bad = rows_of(3), rows_of(1)[0] | {"v": [0.0] * DIMENSION}
    pipeline = pipeline_of(reference, RECORD, "/inputs/v")
    pipeline.process(batch_of([body_of([*good, bad]), body_of([bad, bad]), None, body_of(good)]), None)
    assert [letter.offset for letter in pipeline.pending_spoiled] == [1, 2]
    assert [letter.offset for letter in pipeline.checkpoint().dead_letters] == [0, 1, 1, 2]
