"""Thinning by key: who votes depends on the offsets alone, whatever cuts, checkpoints, crashes and owners."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.database.rows import Checkpoint, PartitionState, SummaryDelta, ThinnedKeys
from connectors.records import Headers, Partition, RawBatch
from detectors.errors import InvalidInput
from detectors.reference import Reference
from detectors.summary import BlockSummary
from monitor.collect import Collector
from monitor.decode import Decoder, RecordSettings
from monitor.embedders import Embedder
from monitor.embedders.vector import VectorSettings
from monitor.pipeline import Pipeline, Space
from monitor.settings import ReferenceSettings, load_settings
from monitor.thinning import MAX_KEY_CHARS, SeenKeys, key_hashes

START_MS = 1_772_438_400_000
BLOCK_MS, LATENESS_MS = 1_000, 2_000
P0 = Partition("orders", 0)

few = settings(max_examples=60, deadline=None)
texts = st.text(st.characters(exclude_characters="\0"), max_size=40)


# --- hashes -----------------------------------------------------------------------------------------------------------


@few
@given(keys=st.lists(st.none() | texts, max_size=20), others=st.lists(texts, max_size=20))
def test_the_hash_of_a_key_is_its_own_whatever_stands_beside_it(keys: list[str | None], others: list[str]) -> None:
    together = key_hashes([*keys, *others])[: len(keys)].tolist()
    assert together == [int(key_hashes([key])[0]) for key in keys]
    assert [number == 0 for number in together] == [not key for key in keys]
    assert len({*together}) == len({key or "" for key in keys})


def test_hashes_stay_what_they_are_for_they_lie_in_databases() -> None:
    found = key_hashes(["a", "session-17", "økt 3", "0" * 36, None, ""]).tolist()
    assert found == [5213858983301489182, 10641718596897105642, 15485044865264074756, 9580792954481596937, 0, 0]


def test_keys_that_look_alike_do_not_collide() -> None:
    kinds: list[list[str]] = [[form.format(number) for number in range(100_000)] for form in ("{}", "user-{:08d}")]
    kinds.append([f"{number % 317:08x}-0000-4000-8000-{number // 317:012x}" for number in range(100_000)])
    hashes = key_hashes([key for keys in kinds for key in keys])
    assert len(np.unique(hashes)) == 300_000


def test_a_longer_key_than_counts_is_told_by_its_beginning() -> None:
    begin = "k" * MAX_KEY_CHARS
    assert len(np.unique(key_hashes([begin, begin + "a", begin + "b"]))) == 1
    assert len(np.unique(key_hashes([begin[:-1] + "a", begin[:-1] + "b"]))) == 2


# --- votes ------------------------------------------------------------------------------------------------------------


def votes(seen: SeenKeys, records: Sequence[tuple[int, str | None]]) -> list[bool]:
    """Whether each (block, key) enters."""
    blocks = np.array([block for block, _ in records], dtype=np.int64)
    return [bool(enters) for enters in seen.vote(blocks, key_hashes([key for _, key in records])).enters]


def test_the_first_record_of_a_key_in_a_block_votes() -> None:
    seen = SeenKeys()
    assert votes(seen, [(7, "a"), (7, "b"), (7, "a"), (8, "a"), (7, "b"), (8, "a")]) == [1, 1, 0, 1, 0, 0]
    assert votes(seen, [(7, "c"), (7, "a"), (9, "a")]) == [1, 0, 1]


def test_a_record_without_a_key_always_votes() -> None:
    assert votes(SeenKeys(), [(1, None), (1, ""), (1, None), (1, "")]) == [1, 1, 1, 1]


def test_a_new_owner_knows_what_the_former_one_wrote() -> None:
    seen = SeenKeys()
    votes(seen, [(7, "a"), (8, "b")])
    rows = seen.unwritten(P0, 100)
    assert [(row.block, row.first_offset, len(row.hashes)) for row in rows] == [(7, 100, 8), (8, 100, 8)]
    seen.written()
    votes(seen, [(7, "c"), (7, "a")])
    rows += seen.unwritten(P0, 200)
    assert len(rows) == 3, "a key that was written is not written again"
    assert votes(SeenKeys(rows), [(7, "a"), (7, "b"), (7, "c"), (8, "a"), (8, "b")]) == [0, 1, 0, 1, 0]


def test_blocks_that_the_partition_has_passed_are_forgotten() -> None:
    seen = SeenKeys()
    votes(seen, [(7, "a"), (8, "a")])
    seen.close(8)
    assert [row.block for row in seen.unwritten(P0, 0)] == [8]


def test_keys_beyond_those_remembered_vote_and_are_counted() -> None:
    seen = SeenKeys(most=2)
    blocks = np.zeros(6, dtype=np.int64)
    found = seen.vote(blocks, key_hashes(["a", "b", "c", "c", "a", None]))
    assert found.enters.tolist() == [True, True, True, True, False, True]
    assert (found.thinned, found.unchecked) == (1, 2)
    assert votes(seen, [(0, "b"), (0, "c"), (1, "c"), (1, "c")]) == [0, 1, 1, 0], "each block has room of its own"


class Naive:
    """The rule, read aloud."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: dict[int, set[str]] = {}

    def votes(self, block: int, key: str | None) -> bool:
        seen = self._seen.setdefault(block, set())
        if not key or key not in seen:
            if key and len(seen) < self._most:
                seen.add(key)
            return True
        return False


@settings(max_examples=150, deadline=None)
@given(
    records=st.lists(st.tuples(st.integers(0, 2), st.none() | st.sampled_from("abcdefgh")), max_size=60),
    cuts=st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["poll", "checkpoint", "owner"])), max_size=8),
    most=st.integers(1, 6),
)
def test_any_cut_gives_the_votes_of_the_rule_read_aloud(
    records: list[tuple[int, str | None]], cuts: list[tuple[int, str]], most: int
) -> None:
    naive = Naive(most)
    expected = [naive.votes(block, key) for block, key in records]
    seen, found, at = SeenKeys(most=most), [], 0
    stored: list[ThinnedKeys] = []
    for cut, then in [*sorted(cuts), (len(records), "poll")]:
        found += votes(seen, records[at:cut])
        at = max(at, min(cut, len(records)))
        if then != "poll":
            stored += seen.unwritten(P0, at)
            seen.written()
        if then == "owner":
            seen = SeenKeys(stored, most=most)
    assert found == expected


# --- the key of a record ----------------------------------------------------------------------------------------------


def batch_of(
    values: Sequence[bytes | None],
    first: int = 0,
    *,
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Headers] | None = None,
    time_ms: int = -1,
) -> RawBatch:
    n = len(values)
    return RawBatch(
        partition=P0,
        offsets=np.arange(first, first + n, dtype=np.int64),
        timestamps_ms=np.full(n, time_ms, dtype=np.int64),
        keys=[None] * n if keys is None else keys,
        values=values,
        headers=[()] * n if headers is None else headers,
        next_offset=first + n,
    )


def test_a_key_stands_in_a_field_a_header_or_the_key_of_the_record() -> None:
    def keys_of(name: str) -> Any:
        values = [json.dumps({"user": user}).encode() for user in ("ann", 7, None)]
        headers: list[Headers] = [[("session", b"\xff\x00")], [], [("session", "økt".encode())]]
        batch = batch_of(values, keys=[b"k\x80", None, b""], headers=headers, time_ms=START_MS)
        events = Decoder(RecordSettings.model_validate({"key": name}), []).decode(batch, None)
        assert not events.dead
        return events.keys

    assert keys_of("/user") == ["ann", "7", None]
    assert keys_of("header:session") == ["\udcff\x00", None, "økt"], "any bytes: they are compared, not read"
    assert keys_of("key") == ["k\udc80", None, ""]
    assert key_hashes(["k\udc80", "k\udc81"]).tolist()[0] != 0


def test_a_key_that_is_no_text_or_number_is_a_dead_letter_and_the_others_keep_theirs() -> None:
    values = [json.dumps({"user": user}).encode() for user in ("ann", ["bob"], "cid")]
    events = Decoder(RecordSettings.model_validate({"key": "/user"}), []).decode(
        batch_of(values, time_ms=START_MS), None
    )
    assert [(letter.offset, letter.reason) for letter in events.dead] == [(1, "bad_value")]
    assert events.keys == ["ann", "cid"]


# --- the pipeline -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.build(np.random.default_rng(3).normal(size=(2_000, 6)).astype(np.float32))


RECORD = RecordSettings.model_validate(
    {"id": "/id", "time": "/ts", "key": "/session", "segments": {"shop": "/shop"}, "prediction": "/p"}
)


def embedder() -> Embedder:
    made: Embedder = VectorSettings.model_validate({"field": "/v", "encoding": "list"}).build()
    made.embed([[[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]])
    return made


class Memory:
    """What the database holds of partition 0, as far as it matters here."""

    def __init__(self) -> None:
        self.state: PartitionState | None = None
        self.keys: list[ThinnedKeys] = []
        self.summaries: dict[tuple[str, int], BlockSummary] = {}

    def write(self, checkpoint: Checkpoint) -> None:
        for advance in checkpoint.advances:
            assert advance.expected == (self.state.next_offset if self.state else None)
            self.state = PartitionState(P0, advance.next_offset, advance.max_time_ms, 0, 0, 0)
        self.keys += checkpoint.thinned_keys
        for delta in checkpoint.summaries:
            if delta.space:
                self.add(delta)

    def add(self, delta: SummaryDelta) -> None:
        summary = BlockSummary.from_bytes(delta.blob)
        before = self.summaries.get((delta.segment, delta.block))
        self.summaries[delta.segment, delta.block] = summary if before is None else before.merge(summary)

    def fold(self) -> None:
        """Close what event time closes."""
        if self.state is not None:
            below = (self.state.max_time_ms - LATENESS_MS) // BLOCK_MS
            self.keys = [row for row in self.keys if row.block >= below]

    def blobs(self) -> dict[tuple[str, int], bytes]:
        return {key: summary.to_bytes() for key, summary in self.summaries.items()}


def pipeline_of(reference: Reference, memory: Memory, *, thin: bool = True) -> Pipeline:
    return Pipeline(
        "orders",
        decoder=Decoder(RECORD, fields=["/v"]),
        spaces=[Space("input", embedder(), reference, 1, {"shop": ["a", "b"]})],
        block_ms=BLOCK_MS,
        lateness_ms=LATENESS_MS,
        alpha=0.01,
        sample=0.05,
        stored=lambda partitions: {P0: memory.state} if memory.state else {},
        stored_keys=(lambda partition: memory.keys) if thin else None,
    )


def stream(n: int = 900, seed: int = 5) -> list[dict[str, Any] | None]:
    """Records 5 ms apart of some thirty sessions; some have none, some are broken, some late."""
    chance = np.random.default_rng(seed)
    rows: list[dict[str, Any] | None] = []
    for row, vector in enumerate(chance.normal(size=(n, 6)).round(3).tolist()):
        session = None if row % 41 == 3 else f"s{row // 200 * 7 + int(chance.integers(30))}"
        late = 6_000 if row % 97 == 50 else int(chance.integers(1_500))
        record = {"id": f"r{row}", "ts": START_MS + 5 * row - late, "v": vector, "shop": "abc"[row % 3], "p": "yes"}
        rows.append(None if row % 211 == 7 else record | {"session": session})
        if row % 301 == 11:
            rows[-1] = record | {"session": session, "v": [0.0] * 6}
    return rows


def encoded(rows: Sequence[dict[str, Any] | None]) -> list[bytes | None]:
    return [None if row is None else json.dumps(row).encode() for row in rows]


def run(reference: Reference, cuts: Sequence[tuple[int, str]]) -> Memory:
    """The stream through pipelines that do at each cut what is asked: poll, checkpoint, crash, fold."""
    values, memory, at = encoded(stream()), Memory(), 0
    pipeline = pipeline_of(reference, memory)
    for cut, then in [*sorted(cuts), (len(values), "checkpoint")]:
        if cut > at:
            pipeline.process(batch_of(values[at:cut], at), None)
            at = cut
        if then in ("checkpoint", "fold"):
            memory.write(pipeline.checkpoint())
            pipeline.written()
        if then == "fold":
            memory.fold()
        if then == "crash":
            pipeline = pipeline_of(reference, memory)
        if then == "refused":
            pipeline.checkpoint()
            pipeline.discard()
        if then in ("crash", "refused"):
            at = memory.state.next_offset if memory.state else 0
    if at < len(values):
        pipeline.process(batch_of(values[at:], at), None)
        memory.write(pipeline.checkpoint())
    return memory


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(
        st.tuples(st.integers(1, 899), st.sampled_from(["poll", "checkpoint", "fold", "crash", "refused"])), max_size=12
    )
)
def test_any_cuts_checkpoints_and_crashes_give_the_same_bytes(
    reference: Reference, cuts: list[tuple[int, str]]
) -> None:
    assert run(reference, cuts).blobs() == run(reference, []).blobs()


def test_a_block_counts_each_session_once(reference: Reference) -> None:
    expected: dict[int, int] = {}
    seen, newest = set(), -1
    for row in stream():
        if row is None or not any(row["v"]):
            continue
        block = row["ts"] // BLOCK_MS
        late = (block + 1) * BLOCK_MS <= newest - LATENESS_MS
        newest = max(newest, row["ts"])
        if late or (row["session"] and (block, row["session"]) in seen):
            continue
        seen.add((block, row["session"]))
        expected[block] = expected.get(block, 0) + 1
    found = run(reference, []).summaries
    assert {block: summary.n for (segment, block), summary in found.items() if segment == ""} == expected
    by_shop: dict[int, int] = {}
    for (segment, block), summary in found.items():
        by_shop[block] = by_shop.get(block, 0) + (summary.n if segment else 0)
    assert by_shop == expected, "a record that votes votes in its segment, too"


def test_records_without_a_vote_are_scored_kept_and_counted(reference: Reference) -> None:
    values = encoded(stream())
    written = {}
    for thin in (True, False):
        pipeline = pipeline_of(reference, Memory(), thin=thin)
        pipeline.process(batch_of(values), None)
        assert (pipeline.thinned > 300) == thin
        written[thin] = pipeline.checkpoint()
    assert [row.offset for row in written[True].kept] == [row.offset for row in written[False].kept]
    assert written[True].advances == written[False].advances
    counts = [[delta for delta in written[thin].summaries if delta.space == ""] for thin in (True, False)]
    assert counts[0] == counts[1]
    assert not written[False].thinned_keys
    n = {
        thin: sum(BlockSummary.from_bytes(d.blob).n for d in written[thin].summaries if d.space and not d.segment)
        for thin in (True, False)
    }
    assert n[True] < n[False] - 300


# --- the baseline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poll", [100, 733, 4_000])
def test_a_baseline_is_thinned_as_its_stream_will_be(tmp_path: Path, poll: int) -> None:
    chance = np.random.default_rng(8)
    rows = [
        {"id": str(row), "ts": START_MS + 5 * row, "v": vector, "session": f"s{row // 6}", "shop": "a", "p": "yes"}
        for row, vector in enumerate(chance.normal(size=(8_000, 6)).round(3).tolist())
    ]
    values, at = encoded(rows), 0
    collector = Collector(
        "orders",
        decoder=Decoder(RECORD, fields=["/v"]),
        embedders={"input": embedder()},
        settings=ReferenceSettings(collect=1_000),
        block_ms=BLOCK_MS,
        thin_by_key=True,
    )
    while collector.collected < collector.wanted:
        left = collector.take(batch_of(values[at : at + poll], at), None)
        at += poll - len(left)
    # Sessions of six cut by blocks of two hundred records: 34 of 200 records vote.
    votes_of = np.unique(
        [(row["ts"] // BLOCK_MS) * 10_000 + int(row["session"][1:]) for row in rows], return_index=True
    )[1]
    last = int(np.sort(votes_of)[999])
    assert (collector.collected, at) == (1_000, last + 1)
    assert collector.thinned == last + 1 - 1_000
    (span,) = collector.spans.values()
    assert (span.records, span.next_offset, span.max_time_ms) == (last + 1, last + 1, START_MS + 5 * last)
    (row,) = collector.build(tmp_path, versions={"input": 1}, now_ms=0)
    reference = Reference.load(Path(row.path))
    assert row.records == 1_000
    assert reference.blocks.n.sum() == reference.n_fit + reference.n_calibration == 1_000
    assert set(reference.blocks.n[:-1].tolist()) == {34}


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "drift", "thins"),
    [
        ("{id: /id}", "{}", False),
        ("{id: /id, key: /session}", "{}", True),
        ("{id: /id, key: key}", "{thin_by_key: true}", True),
        ("{id: /id, key: /session}", "{thin_by_key: false}", False),
        ("{id: /id}", "{thin_by_key: false}", False),
    ],
)
def test_a_mapped_key_thins_unless_told_otherwise(tmp_path: Path, record: str, drift: str, thins: bool) -> None:
    assert load_settings(settings_file(tmp_path, record, drift)).models["m"].thins_by_key == thins


def settings_file(folder: Path, record: str, drift: str) -> Path:
    path = folder / "driftd.yaml"
    path.write_text(f"""
models:
  m:
    source: {{kind: files, path: "data/*.jsonl"}}
    record: {record}
    spaces: {{input: {{embedder: {{kind: vector, field: /v, encoding: list}}}}}}
    drift: {drift}
""")
    return path


def test_a_baseline_without_a_usable_record_says_what_is_wrong_with_one(tmp_path: Path) -> None:
    collector = Collector(
        "orders",
        decoder=Decoder(RECORD, fields=["/v"]),
        embedders={"input": embedder()},
        settings=ReferenceSettings(collect=1_000),
        block_ms=BLOCK_MS,
    )
    with pytest.raises(InvalidInput, match="the source is empty"):
        collector.build(tmp_path, versions={"input": 1}, now_ms=0)
    rows = [{"id": "1", "ts": START_MS, "v": "text", "session": "s", "shop": "a", "p": "yes"}]
    collector.take(batch_of(encoded(rows), 0), None)
    with pytest.raises(InvalidInput, match=r"1 bad_vector. The first: .*/v") as caught:
        collector.build(tmp_path, versions={"input": 1}, now_ms=0)
    assert "spaces of the model's settings" in caught.value.hint
