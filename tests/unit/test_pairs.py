"""Pairs in the pipeline, on a real database: no half is lost or joined twice, whatever cuts, crashes and owners."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.database.store import Store
from connectors.records import Gap, Partition, RawBatch
from detectors.errors import InvalidSettings, OwnershipLost
from detectors.reference import Reference
from detectors.summary import BlockSummary
from monitor.app import build_source, open_store
from monitor.collect import Collector
from monitor.decode import Decoder, RecordSettings
from monitor.embedders import Embedder
from monitor.embedders.vector import VectorSettings
from monitor.pairing import Pairing
from monitor.pipeline import Pipeline, Space
from monitor.record_counts import RecordCounts
from monitor.settings import ModelSettings, ReferenceSettings, Settings
from monitor.worker import Step, Worker
from tests.servers.postgres import PostgresServer

START_MS = 1_772_438_400_000
CALLS = Partition("calls", 0)
TIMEOUT_MS = 1_000
N = 700  # records of the stream
RECORD: dict[str, Any] = {
    "format": "cloudevents",
    "prediction": "/response/label",
    "segments": {"shop": "/request/shop"},
    "keep": ["/request/shop", "/response/label"],
    "pair": {"timeout": "1s"},
}


@pytest.fixture(scope="module")
def reference() -> Reference:
    vectors = np.random.default_rng(3).normal(size=(2_000, 6)).astype(np.float32)
    shops = [("a", "b")[row % 2] for row in range(2_000)]
    return Reference.build(vectors, segments={"shop": ["a", "b"]}, segment_values={"shop": shops})


def embedder() -> Embedder:
    made: Embedder = VectorSettings.model_validate({"field": "/request/v", "encoding": "list"}).build()
    made.embed([[[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]])
    return made


def pipeline_of(reference: Reference, store: Store, record: Mapping[str, Any] = RECORD) -> Pipeline:
    def stored(partitions: Sequence[Partition]) -> Any:
        return {state.partition: state for state in store.partition_states("calls") if state.partition in partitions}

    return Pipeline(
        "calls",
        decoder=Decoder(RecordSettings.model_validate(record), fields=["/request/v"]),
        spaces=[Space("input", embedder(), reference, 1, {"shop": ["a", "b"]})],
        block_ms=1_000,
        lateness_ms=500 + TIMEOUT_MS,
        alpha=0.01,
        sample=0.05,
        stored=stored,
        stored_halves=lambda partition: store.halves("calls", partition),
    )


Record = tuple[bytes, list[tuple[str, bytes]], int]  # value, headers, the broker's time


def half(id_: str | None, role: str, body: Any, time_ms: int) -> Record:
    headers = [("ce_specversion", b"1.0"), ("ce_type", f"org.example.{role}".encode())]
    headers += [("ce_source", b"test"), ("content-type", b"application/json")]
    if id_ is not None:
        headers.append(("ce_id", id_.encode()))
    return (body if isinstance(body, bytes) else json.dumps(body).encode()), headers, time_ms


def stream(seed: int = 5) -> list[Record]:
    """Calls 10 ms apart, answered after up to 300 ms; some never, some too late, some twice, some broken."""
    chance = np.random.default_rng(seed)
    found = []
    for call, vector in enumerate(chance.normal(size=(N, 6)).round(3).tolist()):
        at, name = START_MS + 10 * call, f"c{call}"
        request = {"v": vector, "shop": "abc"[call % 3]} if call % 53 != 9 else b"{broken"
        took = 1_500 if call % 61 == 20 else int(chance.integers(1, 300))
        if call % 31 != 11:
            found.append(half(name, "request", request, at))
        if call % 37 != 5:
            found.append(half(name, "response", {"label": ("yes", "no")[call % 2]}, at + took))
        if call % 71 == 30:
            found.append(half(name, "request", request, at + 1))
        if call % 97 == 40:
            found += [half(None, "request", request, at), half(name, "feedback", {}, at)]
    return sorted(found, key=lambda record: record[2])[:N]


def batch_of(records: Sequence[Record], first: int = 0) -> RawBatch:
    n = len(records)
    return RawBatch(
        partition=CALLS,
        offsets=np.arange(first, first + n, dtype=np.int64),
        timestamps_ms=np.array([time_ms for _, _, time_ms in records], dtype=np.int64),
        keys=[b"k"] * n,
        values=[value for value, _, _ in records],
        headers=[headers for _, headers, _ in records],
        next_offset=first + n,
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with new_store(tmp_path / "driftd.db") as made:
        yield made


def new_store(database: Path) -> Store:
    made = Store.open(f"sqlite:///{database}")
    made.migrate()
    return made


def everything(store: Store) -> dict[str, Any]:
    """What the database holds after all: merged sums, kept records, dead letters, halves that wait, the position."""
    sums: dict[tuple[str, str, int], Any] = {}
    with store.begin_fold("calls") as fold:
        for delta in fold.deltas(below_block=1 << 60):
            kind = BlockSummary if delta.space else RecordCounts
            key, blob = (delta.space, delta.segment, delta.block), kind.from_bytes(delta.blob)
            sums[key] = sums[key].merge(blob) if key in sums else blob
    kept = store.kept("calls", limit=10_000)
    letters = [row.letter for row in store.dead_letters_unpublished(10_000)]
    (state,) = store.partition_states("calls")
    return {
        "sums": {key: value.to_bytes() for key, value in sums.items()},
        "kept": sorted((row.offset, row.row, row.score, row.block, str(row.kept)) for row in kept),
        "dead": sorted((each.offset, each.row, each.reason, each.block or 0, each.payload) for each in letters),
        "halves": [row.offset for row in store.halves("calls", CALLS)],
        "state": (state.next_offset, state.max_time_ms, state.records, state.dead, state.late),
    }


def counts(store: Store) -> RecordCounts:
    """The counts of all blocks together."""
    total = RecordCounts(0, 0, {})
    with store.begin_fold("calls") as fold:
        for delta in fold.deltas(below_block=1 << 60):
            if delta.space == "":
                total = total.merge(RecordCounts.from_bytes(delta.blob))
    return replace(total, norms={})  # lengths of vectors are not what is counted here


def run(
    reference: Reference, store: Store, cuts: Sequence[tuple[int, str]], *, record: Mapping[str, Any] = RECORD
) -> Pipeline:
    """The stream through pipelines that do at each cut what is asked: poll, checkpoint, crash, refusal; to its end."""
    records, at = stream(), 0
    pipeline = pipeline_of(reference, store, record)
    for cut, then in [*sorted(cuts), (len(records), "poll"), (len(records), "end")]:
        if cut > at:
            pipeline.process(batch_of(records[at:cut], at), None)
            at = cut
        if then == "end":
            pipeline.end([CALLS], None)
        if then in ("checkpoint", "end"):
            store.commit(pipeline.checkpoint())
            pipeline.written()
        if then == "crash":
            pipeline = pipeline_of(reference, store, record)
        if then == "refused":
            pipeline.checkpoint()
            pipeline.discard()
        if then in ("crash", "refused"):
            at = store.positions("calls", [CALLS]).get(CALLS, 0)
    return pipeline


def letters(store: Store) -> list[tuple[int, str]]:
    return [(row.letter.offset, row.letter.reason) for row in store.dead_letters_unpublished(10_000)]


def take(pipeline: Pipeline, store: Store, *records: Record, first: int = 0, end: bool = True) -> None:
    """Records through the pipeline into the database."""
    pipeline.process(batch_of(records, first), None)
    if end:
        pipeline.end([CALLS], None)
    store.commit(pipeline.checkpoint())
    pipeline.written()


VECTOR = [0.5, 0.1, -0.2, 0.3, 0.9, -1.0]
REQUEST = {"v": VECTOR, "shop": "a"}


# --- cuts, crashes, owners --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run without any disturbance leaves."""
    with new_store(tmp_path_factory.mktemp("whole") / "driftd.db") as store:
        run(reference, store, [])
        return everything(store)


@settings(max_examples=8, deadline=None)
@given(
    cuts=st.lists(
        st.tuples(st.integers(1, N - 1), st.sampled_from(["poll", "checkpoint", "crash", "refused"])), max_size=12
    )
)
def test_any_cuts_checkpoints_and_crashes_give_the_same_bytes(
    reference: Reference,
    whole: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    cuts: list[tuple[int, str]],
) -> None:
    with new_store(tmp_path_factory.mktemp("cut") / "driftd.db") as store:
        run(reference, store, cuts)
        assert everything(store) == whole


def test_a_crash_after_every_checkpoint_gives_the_same_bytes(
    reference: Reference, whole: dict[str, Any], store: Store
) -> None:
    cuts = [(at, then) for at in range(23, N, 23) for then in ("checkpoint", "crash")]
    run(reference, store, cuts)
    assert everything(store) == whole


@pytest.mark.postgres
def test_a_crash_after_every_checkpoint_gives_the_same_bytes_on_postgresql(
    reference: Reference, whole: dict[str, Any], postgres: PostgresServer
) -> None:
    with Store.open(postgres.new_database()) as store:
        store.migrate()
        cuts = [(at, then) for at in range(61, N, 61) for then in ("poll", "checkpoint", "crash")]
        run(reference, store, [*cuts, (400, "refused")])
        assert everything(store) == whole


def test_an_owner_that_lost_the_partition_touches_no_half(reference: Reference, store: Store) -> None:
    records = stream()
    zombie, owner = pipeline_of(reference, store), pipeline_of(reference, store)
    take(zombie, store, *records[:200], end=False)
    take(owner, store, *records[200:300], first=200, end=False)
    left = [row.offset for row in store.halves("calls", CALLS)]
    zombie.process(batch_of(records[200:400], 200), None)
    with pytest.raises(OwnershipLost):
        store.commit(zombie.checkpoint())
    assert [row.offset for row in store.halves("calls", CALLS)] == left
    zombie.discard()
    take(zombie, store, *records[300:], first=300)
    assert store.halves("calls", CALLS) == []


def test_every_record_is_accounted_for(reference: Reference, store: Store) -> None:
    """Records in = both halves of the joined + halves alone + dead letters of halves + those that wait."""
    pipeline = pipeline_of(reference, store)
    records = stream()
    pipeline.process(batch_of(records[:500]), None)
    waiting, found = pipeline.pending_halves, pipeline.pairs
    assert waiting > 0 and found.joined > 100 and found.timed_out > 0
    oldest = pipeline.oldest_half_ms
    assert oldest is not None and records[499][2] - TIMEOUT_MS <= oldest <= records[499][2]
    store.commit(pipeline.checkpoint())
    pipeline.written()
    assert pipeline.pairs.joined == 0, "counted with their checkpoint"
    dead = Counter(reason for _, reason in letters(store))
    assert set(dead) == {"missing_field", "bad_value", "duplicate_half", "bad_event", "bad_json"}
    # Responses alone lack the field that is embedded: dead letters, too, but of halves that came out.
    refused = dead.total() - dead["missing_field"]
    assert 2 * found.joined + found.timed_out + refused + waiting == 500
    (state,) = store.partition_states("calls")
    total = counts(store)
    assert state.records == total.records == found.joined + found.timed_out + refused
    assert (state.dead, dict(total.dead)) == (dead.total(), dict(dead))
    assert len(store.halves("calls", CALLS)) == waiting


def test_pairs_that_wait_for_each_other_are_not_late(whole: dict[str, Any]) -> None:
    """Halves that timed out come when others of their time are long gone: the lateness allows for it."""
    assert whole["state"][-1] == 0


def test_the_settings_keep_blocks_open_for_halves_that_wait() -> None:
    model: dict[str, Any] = {
        "source": {"kind": "files", "path": "x.jsonl"},
        "spaces": {"input": {"embedder": {"kind": "vector", "field": "/request/v", "encoding": "list"}}},
        "drift": {"lateness": "20s"},
    }
    assert ModelSettings.model_validate(model).lateness_ms == 20_000
    assert ModelSettings.model_validate(model | {"record": {"pair": {"timeout": "2m"}}}).lateness_ms == 140_000


# --- what becomes of halves -------------------------------------------------------------------------------------------


def test_a_pair_is_one_record_with_both_sides_at_the_time_of_its_request(reference: Reference, store: Store) -> None:
    pipeline = pipeline_of(reference, store, RECORD | {"keep": ["/request/shop", "/response/label", "header:ce_id"]})
    answer = half("a", "response", {"label": "yes"}, START_MS + 900)
    events = Decoder(RecordSettings.model_validate(RECORD), fields=["/request/v"]).decode(
        batch_of([half("a", "request", REQUEST, START_MS), answer], first=7), None, Pairing(TIMEOUT_MS)
    )
    assert (events.offsets.tolist(), events.time_ms.tolist(), events.broker_ms.tolist()) == (
        [8],
        [START_MS],
        [START_MS],
    )
    assert (list(events.ids), events.predictions, events.fields) == (["a"], ["yes"], {"/request/v": [VECTOR]})
    take(pipeline, store, half("a", "request", REQUEST, START_MS), answer, first=7)
    assert counts(store).records == 1


def test_a_half_alone_has_null_on_the_other_side(reference: Reference, store: Store) -> None:
    pipeline = pipeline_of(reference, store)
    take(pipeline, store, half("a", "request", REQUEST, START_MS), half("b", "response", {"label": "yes"}, START_MS))
    # The request can be embedded; the response lacks the field that the space needs.
    assert letters(store) == [(1, "missing_field")]
    assert counts(store) == RecordCounts(2, 0, {"missing_field": 1})
    assert pipeline.pending_halves == 0 and store.halves("calls", CALLS) == []


def test_halves_alone_become_dead_letters_where_the_settings_say_so(reference: Reference, store: Store) -> None:
    record = RECORD | {"pair": {"timeout": "1s", "on_timeout": "dead_letter"}}
    pipeline = pipeline_of(reference, store, record)
    take(pipeline, store, half("a", "request", REQUEST, START_MS), end=False)
    assert letters(store) == []
    take(pipeline, store, half("b", "request", REQUEST, START_MS + 1_001), first=1, end=False)
    (row,) = store.dead_letters_unpublished(10)
    assert (row.letter.offset, row.letter.reason) == (0, "unpaired")
    assert json.loads(row.letter.payload) == REQUEST, "the letter shows its own record, not the one that came later"


def test_a_record_that_does_not_say_which_half_it_is_is_a_dead_letter(reference: Reference, store: Store) -> None:
    pipeline = pipeline_of(reference, store)
    late = half("a", "request", b"not json", START_MS)
    take(
        pipeline,
        store,
        half("a", "feedback", {}, START_MS),
        half(None, "request", REQUEST, START_MS),
        half("i" * 1_025, "request", REQUEST, START_MS),
        late,
        (b"", [], START_MS),
    )
    assert letters(store) == [(0, "bad_value"), (1, "bad_event"), (2, "bad_value"), (3, "bad_json"), (4, "bad_json")]


def test_halves_in_different_partitions_never_meet(reference: Reference, store: Store) -> None:
    pipeline = pipeline_of(reference, store)
    other = Partition("calls", 1)
    pipeline.process(batch_of([half("a", "request", REQUEST, START_MS)]), None)
    pipeline.process(replace(batch_of([half("a", "response", {}, START_MS)]), partition=other), None)
    assert (pipeline.pending_halves, pipeline.pairs.joined) == (2, 0)
    pipeline.end([CALLS, other], None)
    assert (pipeline.pending_halves, pipeline.pairs.timed_out) == (0, 2)


def test_rows_of_a_request_pair_with_those_of_its_response(reference: Reference, store: Store) -> None:
    record = RecordSettings.model_validate(
        {"format": "cloudevents", "pair": {}, "prediction": "/response/predictions", "keep": ["/request/instances"]}
    )
    decoder = Decoder(record, fields=["/request/instances"])
    kserve = "org.kubeflow.serving.inference."

    def logged(id_: str, role: str, body: Any) -> Record:
        value, headers, time_ms = half(id_, role, body, START_MS)
        return value, [(name, (kserve + role).encode() if name == "ce_type" else old) for name, old in headers], time_ms

    v2 = {"outputs": [{"name": "out", "shape": [2], "datatype": "BYTES", "data": ["yes", "no"]}]}
    events = decoder.decode(
        batch_of(
            [
                logged("a", "request", {"instances": [VECTOR, VECTOR]}),
                logged("a", "response", {"predictions": ["yes", "no"]}),
                logged("b", "request", {"instances": [VECTOR, VECTOR, VECTOR]}),
                logged("b", "response", v2),
            ]
        ),
        None,
        Pairing(TIMEOUT_MS),
    )
    assert (events.offsets.tolist(), events.rows.tolist(), events.predictions) == ([1, 1], [0, 1], ["yes", "no"])
    assert list(events.ids) == ["a#0", "a#1"]
    (letter,) = events.dead
    assert (letter.offset, letter.reason) == (3, "bad_rows")
    assert letter.detail == "The request has 3 rows, the response 2."


def test_structured_events_pair_as_well() -> None:
    decoder = Decoder(RecordSettings.model_validate(RECORD), fields=["/request/v"])

    def structured(id_: str, role: str, data: Any) -> Record:
        event = {"specversion": "1.0", "id": id_, "type": f"org.example.{role}", "source": "test", "data": data}
        moment = {"time": "2026-03-02T08:00:00Z"} if role == "request" else {}
        return json.dumps(event | moment).encode(), [("content-type", b"application/cloudevents+json")], START_MS

    records = [structured("a", "request", REQUEST), structured("a", "response", {"label": "no"})]
    events = decoder.decode(batch_of(records), None, Pairing(TIMEOUT_MS))
    assert (list(events.ids), events.predictions) == (["a"], ["no"])
    assert events.time_ms.tolist() == [START_MS]


def test_a_format_that_shows_itself_pairs_and_is_known_after_a_restart(reference: Reference, store: Store) -> None:
    record = {key: value for key, value in RECORD.items() if key != "format"} | {"format": "auto"}
    take(pipeline_of(reference, store, record), store, half("a", "request", REQUEST, START_MS), end=False)
    again = pipeline_of(reference, store, record)
    again.end([CALLS], None)  # before any record has shown the format to this decoder
    store.commit(again.checkpoint())
    assert (counts(store), letters(store)) == (RecordCounts(1, 0, {}), [])


def test_plain_records_pair_by_the_fields_that_the_settings_name() -> None:
    record = RecordSettings.model_validate(
        {
            "pair": {"by": "/call", "role": "/kind"},
            "redact": ["/request/secret"],
            "keep": ["/request"],
            "key": "key",
            "segments": {"shop": "/response/shop"},
        }
    )
    decoder = Decoder(record, fields=["/request/v"])

    def plain(**body: Any) -> Record:
        return json.dumps(body).encode(), [], START_MS

    events = decoder.decode(
        batch_of(
            [
                plain(call=17, kind="response", shop="a"),
                plain(call=17, kind="request", v=VECTOR, secret="s3"),
                plain(call=18.5, kind="request", secret="s3"),
                plain(kind="request", secret="s3"),
            ]
        ),
        None,
        Pairing(TIMEOUT_MS),
    )
    assert (list(events.ids), events.offsets.tolist(), list(events.segments["shop"])) == (["17"], [1], ["a"])
    assert events.keys == ["k"] and events.kept is not None
    assert events.kept[0] == {"/request": {"call": 17, "kind": "request", "v": VECTOR, "secret": "[redacted]"}}
    assert [(letter.offset, letter.reason) for letter in events.dead] == [(2, "bad_value"), (3, "missing_field")]
    assert not any(b"s3" in letter.payload for letter in events.dead)


def test_an_embedder_needs_a_field_of_one_side() -> None:
    with pytest.raises(InvalidSettings, match="/request/v or /response/v"):
        Decoder(RecordSettings.model_validate({"pair": {}}), fields=["/v"])


def test_a_topic_made_anew_leaves_the_halves_of_the_old_one_alone(reference: Reference, store: Store) -> None:
    pipeline = pipeline_of(reference, store)
    take(pipeline, store, half("a", "request", REQUEST, START_MS), first=50, end=False)
    gap = Gap(CALLS, 51, 0, "recreated", "another topic")
    pipeline.process(replace(batch_of([]), gap=gap), None)
    assert (pipeline.pairs.timed_out, pipeline.pending_halves) == (1, 0)
    store.commit(pipeline.checkpoint())
    pipeline.written()
    take(pipeline, store, half("a", "response", {"label": "no"}, START_MS), end=False)
    assert pipeline.pending_halves == 1
    assert [row.offset for row in store.halves("calls", CALLS)] == [0]


def test_the_end_of_a_source_comes_once(reference: Reference, store: Store) -> None:
    pipeline = pipeline_of(reference, store)
    take(pipeline, store, half("a", "request", REQUEST, START_MS), end=False)
    again = pipeline_of(reference, store)
    for _ in range(2):
        again.end([CALLS], None)
        store.commit(again.checkpoint())
        again.written()
    assert counts(store).records == 1
    # More of the same block, later: its sums go beside those that the end left.
    take(again, store, half("b", "request", REQUEST, START_MS), first=1)
    assert counts(store).records == 2


def test_it_is_said_once_when_halves_do_not_meet(
    reference: Reference, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = pipeline_of(reference, store)
    strangers = [half(f"c{call}", "request", REQUEST, START_MS + 100 * call) for call in range(1_100)]
    take(pipeline, store, *strangers[:1_000])
    assert "do not meet" in caplog.text and "alone=1000" in caplog.text
    caplog.clear()
    take(pipeline, store, *strangers[1_000:], first=1_000)
    assert not caplog.records


# --- the first reference, and the end of a file -----------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, N - 1), max_size=10))
def test_the_baseline_is_the_same_for_any_cut(cuts: list[int]) -> None:
    def collected(cuts: Sequence[int]) -> tuple[list[str], int, list[int], int]:
        collector = Collector(
            "calls",
            decoder=Decoder(RecordSettings.model_validate(RECORD), fields=["/request/v"]),
            embedders={"input": embedder()},
            settings=ReferenceSettings().model_copy(update={"collect": 200}),  # fewer than a user may
            block_ms=1_000,
        )
        records = stream()
        for first, after in itertools.pairwise([0, *sorted({*cuts}), N]):
            if len(collector.take(batch_of(records[first:after], first), None)):
                break
        (span,), (pairing,) = collector.spans.values(), collector.pairings.values()
        assert pairing is not None
        waiting = [row.offset for row in pairing.unwritten(CALLS)]
        return collector._ids, span.next_offset, waiting, span.records

    ids, next_offset, waiting, counted = collected([])
    assert len(ids) == 200 and waiting and counted >= 200
    assert collected(cuts) == (ids, next_offset, waiting, counted)


def files_of_calls(folder: Path, calls: int) -> int:
    """Requests and answers in two files, a record every 10 ms; how many calls have no answer."""
    vectors = np.random.default_rng(4).normal(size=(calls, 6)).round(3).tolist()
    lines: list[list[tuple[int, str]]] = [[], []]
    for call, vector in enumerate(vectors):
        body: dict[str, Any] = {"id": call, "role": "request", "v": vector}
        lines[call % 2].append((2 * call, json.dumps(body)))
        if call % 40 != 39:
            answer = {"id": call, "role": "response", "label": "yes"}
            lines[call % 2].append((2 * call + 7, json.dumps(answer)))
    folder.mkdir()
    for number, entries in enumerate(lines):
        (folder / f"{number}.jsonl").write_text("".join(line + "\n" for _, line in sorted(entries)))
    return calls // 40


def run_worker(folder: Path, data: Path, *, poll: int, crash_after: int) -> Store:
    """Read the files to their end with workers that each stop in the middle after so many steps."""
    folder.mkdir()
    settings = Settings.model_validate(
        {
            "database": f"sqlite:///{folder / 'driftd.db'}",
            "references": folder / "references",
            "checkpoint": {"poll_records": poll},
            "models": {
                "calls": {
                    "source": {
                        "kind": "files",
                        "path": f"{data}/*.jsonl",
                        "time": {"start": "2026-03-02T08:00:00Z", "interval_ms": 10},
                    },
                    "record": {"pair": {"by": "/id", "role": "/role", "timeout": "5s"}},
                    "spaces": {"input": {"embedder": {"kind": "vector", "field": "/request/v", "encoding": "list"}}},
                    "reference": {"collect": 1_000},
                }
            },
        }
    )
    store, clock_s, workers = open_store(settings), 0.0, 0
    step = Step(0, finished=False)
    while not step.finished:
        worker = Worker("calls", settings, store=store, source=build_source("calls", settings.models["calls"]))
        worker.start()
        workers += 1
        for _ in range(crash_after):
            clock_s += 0.4
            step = worker.step(START_MS, clock_s, wait_s=0.0)
            if step.finished:
                worker.close_blocks_at_end(START_MS)
                break
        worker.source.close()
    assert (workers > 2) == (crash_after < 1_000)
    return store


def test_files_of_requests_and_answers_are_read_to_their_end_whatever_crashes(tmp_path: Path) -> None:
    unanswered = files_of_calls(tmp_path / "data", 2_400)

    def result(store: Store) -> tuple[list[tuple[int, int, int]], int, dict[str, int]]:
        states = [(state.records, state.dead, state.max_time_ms) for state in store.partition_states("calls")]
        waiting = sum(len(store.halves("calls", state.partition)) for state in store.partition_states("calls"))
        return states, waiting, store.dead_letter_counts("calls")

    with run_worker(tmp_path / "whole", tmp_path / "data", poll=500, crash_after=1_000) as store:
        whole = result(store)
    assert (sum(records for records, _, _ in whole[0]), whole[1], whole[2]) == (2_400, 0, {}), "requests alone, too"
    assert unanswered == 60
    with run_worker(tmp_path / "crashed", tmp_path / "data", poll=300, crash_after=9) as store:
        assert result(store) == whole
