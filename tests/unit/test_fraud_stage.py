"""The fraud stage: what it says depends on the records and on the labels in force, not on how the records were cut."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from connectors.database.rows import (
    Checkpoint,
    EntityRow,
    KeptRecord,
    LabelledRecord,
    NewLabel,
    PartitionState,
    ReferenceRow,
)
from connectors.database.store import Store
from connectors.records import Gap, Partition, RawBatch
from connectors.scores import ScoredRecords
from detectors.flood import FloodPlan
from detectors.fraud_baseline import FraudBaseline, Signal
from detectors.pyod_models import PyODSettings
from detectors.reference import Reference
from monitor.decode import Decoder, RecordSettings
from monitor.embedders import Embedder
from monitor.embedders.vector import VectorSettings
from monitor.fraud import FraudStage
from monitor.fraud_build import FraudColumns as BaselineColumns
from monitor.fraud_build import FraudParts, build_fraud, load_fraud
from monitor.fraud_learner import MOST_WEIGHT, Learner, fit_scorer, in_force, weight_of
from monitor.fraud_settings import EntitySettings, FraudSettings, RelationSettings
from monitor.fraud_signals import made_anew, made_with, surprise_of
from monitor.history import NothingStored, OneVersion
from monitor.joining import hashes_of
from monitor.pipeline import Pipeline, Space
from monitor.record_counts import RecordCounts
from monitor.remembered import Remembered
from monitor.scores import Scores
from monitor.thinning import key_hashes

START_MS = 1_772_438_400_000
CARDS = Partition("cards", 0)
D = 6
SETTINGS = FraudSettings.model_validate(
    {
        "fields": {"amount": "/amount"},
        "alpha": 0.02,
        "review": 0.02,
        "rules": {"large": {"field": "amount", "above": 900.0}},
        "alerts": {"segments": {"shop=b": 5}},
    }
)


@pytest.fixture(scope="module")
def parts() -> FraudParts:
    chance = np.random.default_rng(3)
    vectors = chance.normal(size=(2_000, D)).astype(np.float32)
    reference = Reference.build(vectors[:1_500], segments={})
    normal = vectors[1_500:]
    signals = np.column_stack([surprise_of(reference.score(normal).p_value), chance.exponential(50.0, len(normal))])
    columns = (Signal("outlier", "surprise"), Signal("amount", "number"))
    baseline = FraudBaseline(normal, signals.astype(np.float32), columns)
    flood = FloodPlan.measure(reference, vectors, np.arange(2_000) // 100)
    return FraudParts(7, reference, baseline, scorers={}, entities=None, relations=None, flood=flood)


WHOLE = SETTINGS.model_copy(
    update={
        "entity": EntitySettings(field="/card", last=4, most=100),
        "relation": RelationSettings(of="/card", to="/merchant", most=100),
        "scorers": {"forest": PyODSettings(model="iforest")},
    }
)


@pytest.fixture(scope="module")
def whole(parts: FraudParts, tmp_path_factory: pytest.TempPathFactory) -> FraudParts:
    """Parts with all kinds of signals, built as `driftd reference build` does."""
    chance, n = np.random.default_rng(4), 2_000
    names = [f"c{card}" for card in chance.integers(0, 239, n)]
    columns = BaselineColumns(
        WHOLE,
        numbers=[chance.exponential(50.0, (n, 1)).astype(np.float32)],
        entities=[key_hashes(names)],
        lefts=[key_hashes(names)],
        rights=[key_hashes([f"m{merchant}" for merchant in chance.integers(0, 13, n)])],
    )
    row = build_fraud(
        tmp_path_factory.mktemp("whole"),
        parts.reference,
        row=ReferenceRow("cards", "input", 1, "", n, D, parts.reference.checksum, 0, True),
        version=7,
        vectors=chance.normal(size=(n, D)).astype(np.float32),
        blocks=np.arange(n) // 100,
        columns=columns,
        order=np.arange(n),
        progress=lambda step, share: None,
    )
    return load_fraud(row, parts.reference, WHOLE)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(f"sqlite:///{tmp_path / 'driftd.db'}")
    store.migrate()
    return store


class Written:
    """A writer of scores that remembers them."""

    def __init__(self) -> None:
        self.records: list[ScoredRecords] = []

    def write(self, records: Sequence[ScoredRecords], now_ms: int) -> str:
        self.records += records
        return ""


def stream(n: int, *, partition: Partition = CARDS, seed: int = 5, step: int = 1) -> RawBatch:
    """Records 5 ms apart; every 20th is fraud, some are far behind, some broken."""
    chance = np.random.default_rng(seed)
    values: list[bytes | None] = []
    for row, vector in enumerate(chance.normal(size=(n, D)).round(3).tolist()):
        if row % 20 == 3:
            vector = [value + 2.0 for value in vector]
        late = 6_000 if row % 97 == 50 else 0
        record: dict[str, Any] = {"id": f"r{row}", "ts": START_MS + 5 * row - late, "v": vector, "shop": "ab"[row % 2]}
        record |= {"card": f"c{row * row % 239}" if row % 11 else None, "merchant": f"m{row * 7 % 13}"}
        if row % 7:
            record["amount"] = 40.0 if row % 20 != 3 else 1_000.0
        values.append(b"{" if row % 173 == 9 else json.dumps(record).encode())
    offsets = np.arange(0, n * step, step, dtype=np.int64)
    return RawBatch(partition, offsets, np.full(n, -1, np.int64), [None] * n, values, [()] * n, n * step)


class Watched:
    """A pipeline with its fraud stage, over a store."""

    def __init__(
        self,
        parts: FraudParts,
        store: Store,
        *,
        history: bool = False,
        labels: Literal["then", "all"] = "then",
        settings: FraudSettings = SETTINGS,
    ) -> None:
        embedder: Embedder = VectorSettings.model_validate({"field": "/v", "encoding": "list"}).build()
        embedder.embed([[[0.0] * (D - 1) + [1.0]]])
        record = RecordSettings.model_validate({"id": "/id", "time": "/ts", "segments": {"shop": "/shop"}})
        self.store = store
        self.learner = Learner("cards", store=store, parts=parts, prevalence=settings.prevalence)
        self.scores = Scores("cards", Written())  # type: ignore[arg-type]
        stage = FraudStage(
            "cards",
            settings,
            space="input",
            parts=parts,
            versions=OneVersion(self.learner, store.label_version("cards")) if labels == "all" else self.learner,
            stored=NothingStored() if history else store,
            history=store.label_spans("cards") if history and labels == "then" else None,
        )
        self.stage = stage
        self.columns: list[ScoredRecords] = []
        self.checkpoints: list[Checkpoint] = []
        self.dropped = 0
        self._history = history
        self.pipeline = Pipeline(
            "cards",
            decoder=Decoder(record, fields=["/v", *settings.record_fields]),
            spaces=[Space("input", embedder, parts.reference, 1, {})],
            block_ms=1_000,
            lateness_ms=2_000,
            alpha=0.01,
            sample=0.0,
            stored=self._stored,
            scores=self.scores,
            fraud=stage,
        )

    def _stored(self, partitions: Sequence[Partition]) -> dict[Partition, PartitionState]:
        states = [] if self._history else self.store.partition_states("cards")
        return {state.partition: state for state in states if state.partition in partitions}

    def take(self, batch: RawBatch) -> None:
        self.pipeline.process(batch, None)

    def checkpoint(self) -> Checkpoint:
        checkpoint = self.pipeline.checkpoint()
        self.columns += self.scores.pending
        self.dropped += self.stage.dropped
        if not self._history:
            self.store.commit(checkpoint)
        self.pipeline.written()
        self.checkpoints.append(checkpoint)
        return checkpoint

    @property
    def kept(self) -> list[KeptRecord]:
        rows = [row for checkpoint in self.checkpoints for row in checkpoint.kept if row.space == "fraud"]
        return sorted(rows, key=lambda row: (row.partition, row.offset))

    def said(self) -> dict[str, np.ndarray]:
        pieces = [(each.offsets, each.fraud) for each in self.columns if each.fraud is not None]
        return {
            "offsets": np.concatenate([offsets for offsets, _ in pieces]),
            **{
                name: np.concatenate([getattr(fraud, name) for _, fraud in pieces])
                for name in ("probability", "p_value", "version", "flood")
            },
        }

    def counts(self) -> dict[int, bytes]:
        total: dict[int, RecordCounts] = {}
        for delta in (delta for checkpoint in self.checkpoints for delta in checkpoint.summaries if delta.space == ""):
            counts = RecordCounts.from_bytes(delta.blob)
            total[delta.block] = total[delta.block].merge(counts) if delta.block in total else counts
        return {block: counts.to_bytes() for block, counts in total.items()}

    def known(self, record_id: str) -> LabelledRecord:
        """What is remembered of a record."""
        for row in (row for checkpoint in self.checkpoints for row in checkpoint.remembered):
            places = np.flatnonzero(hashes_of(row.ids) == key_hashes([record_id])[0])
            if len(places):
                return Remembered(row).record(int(places[0]))
        raise AssertionError(f"nothing is remembered of {record_id}")

    def label(self, *rows: int, label: Literal["fraud", "cleared"] = "fraud", source: Any = "analyst") -> None:
        self.store.add_labels(
            "cards",
            [
                NewLabel(f"r{row}", label, START_MS, source, 1.0, "", f"{source}/{label}/{row}", self.known(f"r{row}"))
                for row in rows
            ],
        )


def signals_of(watched: Watched) -> np.ndarray:
    """Of every record that was remembered, in order."""
    rows = [row for checkpoint in watched.checkpoints for row in checkpoint.remembered]
    return np.stack(
        [
            np.frombuffer(packed.record(place).signals, "<f4")
            for packed in map(Remembered, rows)
            for place in range(len(packed))
        ]
    )


def assert_same(again: Watched, live: Watched) -> None:
    for name, column in live.said().items():
        assert np.array_equal(again.said()[name], column, equal_nan=True), name
    assert again.kept == live.kept
    assert again.counts() == live.counts()


def live_with_labels(parts: FraudParts, store: Store, batch: RawBatch, settings: FraudSettings = SETTINGS) -> Watched:
    """A run in checkpoints of 100 records, with labels that come in at four moments."""
    watched = Watched(parts, store, settings=settings)
    for first in range(0, len(batch), 100):
        watched.take(batch.rows(first, min(first + 100, len(batch))))
        watched.checkpoint()
        if first == 200:
            watched.label(3, 23)
        if first == 300:
            watched.label(63, 83, 103, 123, 143, 163)
        if first == 600:
            watched.label(64, 65, 66, label="cleared")
            watched.label(23, label="cleared", source="chargeback")
        # As the learner's thread would: the version that is ready when the next checkpoint begins.
        watched.learner._look()
    return watched


def test_history_is_scored_with_the_labels_that_were_in_force(parts: FraudParts, store: Store) -> None:
    batch = stream(1_000)
    live = live_with_labels(parts, store, batch)
    spans = store.label_spans("cards")
    assert [(span.from_offset, span.version, span.reference) for span in spans] == [
        (0, 0, 7),
        (300, 2, 7),
        (400, 8, 7),
        (700, 12, 7),
    ]
    for cuts in ([], [1, 2, 299, 300, 301, 555, 999], list(range(13, 1_000, 71))):
        again = Watched(parts, store, history=True)
        for first, after in itertools.pairwise([0, *cuts, len(batch)]):
            again.take(batch.rows(first, after))
            if first % 3 == 0:
                again.checkpoint()
        again.checkpoint()
        assert_same(again, live)
    everything = Watched(parts, store, history=True, labels="all")
    everything.take(batch)
    everything.checkpoint()
    said = everything.said()
    assert set(said["version"]) == {12}
    early = said["offsets"] < 300
    assert not np.array_equal(said["p_value"][early], live.said()["p_value"][early])
    assert np.isnan(live.said()["probability"][early]).any() and not np.isnan(said["probability"]).any()


def test_entities_pairs_and_models_of_pyod_are_the_same_in_history(whole: FraudParts, store: Store) -> None:
    batch = stream(1_000, step=17)  # offsets that pass several times where entities may be dropped
    live = live_with_labels(whole, store, batch, settings=WHOLE)
    signals = np.array([list(row.detail["signals"].values()) for row in live.kept], np.float64)  # type: ignore[attr-defined]
    assert live.kept[0].detail["signals"].keys() == set(whole.baseline.names)  # type: ignore[attr-defined]
    assert all(len(np.unique(column[np.isfinite(column)])) > 3 for column in signals.T[:-1])
    assert {row.kind for row in store.entity_states("cards", CARDS)} == {"entity/7", "relation/7"}
    known = [row.detail["entity_records"] for row in live.kept if "entity" in row.detail]
    assert len(set(known)) > 3 and len(known) < len(live.kept)
    for row in live.kept:
        detail: Any = row.detail
        amount = detail["signals"]["amount"]
        normal = whole.baseline.signals[:, -1]
        wanted = {} if amount is None else {"amount": pytest.approx(float(np.mean(normal < amount)), abs=1e-4)}
        assert detail.get("usual", {}) == wanted
    dropped = [row for checkpoint in live.checkpoints for row in checkpoint.entities if not row.blob]
    assert 0 < len(dropped) <= live.dropped  # one that came again at once is not deleted
    moved = Watched(whole, store, settings=WHOLE, history=True)
    for first, after in itertools.pairwise([0, 1, 7, 450, 451, 800, 1_000]):
        moved.take(batch.rows(first, after))
    moved.checkpoint()
    assert_same(moved, live)
    assert np.array_equal(signals_of(moved), signals_of(live), equal_nan=True)


def test_a_worker_that_takes_over_goes_on_with_the_same_entities(
    whole: FraudParts, store: Store, tmp_path: Path
) -> None:
    batch, alone = stream(1_000, step=17), Watched(whole, store, settings=WHOLE)
    for first in range(0, 1_000, 250):
        alone.take(batch.rows(first, first + 250))
        alone.checkpoint()
    with Store.open(f"sqlite:///{tmp_path / 'other.db'}") as other:
        other.migrate()
        several = []
        for first in range(0, 1_000, 250):
            several.append(Watched(whole, other, settings=WHOLE))
            several[-1].take(batch.rows(first, first + 250))
            if first == 500:
                several[-1].pipeline.checkpoint()  # dies before its transaction
                several[-1] = Watched(whole, other, settings=WHOLE)
                several[-1].take(batch.rows(first, first + 250))
            several[-1].checkpoint()
        found = np.concatenate([signals_of(watched) for watched in several])
        assert other.entity_states("cards", CARDS) == store.entity_states("cards", CARDS)
    assert np.array_equal(found, signals_of(alone), equal_nan=True)


def with_a_burst(batch: RawBatch, rows: range) -> RawBatch:
    """The batch with every other of some records nearly the same."""
    chance, values = np.random.default_rng(6), list(batch.values)
    burst = np.array([0.5, -1.0, 0.3, 1.2, -0.4, 0.9])
    for row in rows[::2]:
        if len(values[row] or b"") > 1:
            near = burst + 0.002 * chance.normal(size=D)
            values[row] = json.dumps(json.loads(values[row] or b"") | {"v": near.tolist()}).encode()
    return replace(batch, values=values)


@pytest.mark.parametrize("seed", [1, 2])
def test_workers_that_die_at_any_moment_leave_what_history_says(whole: FraudParts, store: Store, seed: int) -> None:
    batch, chance = with_a_burst(stream(1_000, step=17), range(400, 600)), random.Random(seed)
    runs, first, begins, deaths = [Watched(whole, store, settings=WHOLE)], 0, 0, 0
    while first < len(batch) or begins < first:
        after = min(first + chance.randint(1, 60), len(batch))
        runs[-1].take(batch.rows(first, after))
        first, draw = after, chance.random()
        if draw < 0.4:
            runs[-1].checkpoint()
            if readable := [row for row in range(begins, first) if row % 173 != 9]:
                said: Literal["fraud", "cleared"] = "fraud" if chance.random() < 0.7 else "cleared"
                runs[-1].label(*sorted({chance.choice(readable) for _ in range(3)}), label=said)
            runs[-1].learner._look()
            begins = first
        elif draw < 0.6:
            if chance.random() < 0.5:
                runs[-1].pipeline.checkpoint()  # it dies before the transaction
            runs.append(Watched(whole, store, settings=WHOLE))
            first, deaths = begins, deaths + 1
    written = [run for run in runs if run.checkpoints]
    again = Watched(whole, store, settings=WHOLE, history=True)
    for start, stop in itertools.pairwise([0, *sorted(chance.sample(range(1, 1_000), 9)), 1_000]):
        again.take(batch.rows(start, stop))
    again.checkpoint()
    for name, column in again.said().items():
        assert np.array_equal(np.concatenate([run.said()[name] for run in written]), column, equal_nan=True), name
    assert deaths >= 2 and len(set(again.said()["version"])) >= 4 and max(again.said()["flood"]) > 20
    assert np.array_equal(np.concatenate([signals_of(run) for run in written]), signals_of(again), equal_nan=True)
    assert [row for run in written for row in run.kept] == again.kept
    rows = [row for row in again.checkpoints[0].entities if row.blob]
    assert sorted(store.entity_states("cards", CARDS), key=_entity) == sorted(rows, key=_entity)


def _entity(row: EntityRow) -> tuple[str, int]:
    return row.kind, row.entity


def test_a_burst_of_near_identical_records_is_a_flood_live_in_history_and_through_owners(
    parts: FraudParts, store: Store, tmp_path: Path
) -> None:
    batch = with_a_burst(stream(1_000), range(400, 600))  # all in one block
    live = live_with_labels(parts, store, batch)
    flood, offsets = live.said()["flood"], live.said()["offsets"]
    least = max(parts.flood.least, SETTINGS.flood.least)
    assert 0 < least <= 30
    of_burst = np.isin(offsets, range(400, 600, 2))
    assert flood[of_burst].max() > 60
    assert flood[~of_burst].max() < least
    begun = [(row.reason, row.detail["flood"]) for row in live.kept if row.detail and "flood" in row.detail]
    begun = [(reason, size) for reason, size in begun if isinstance(size, int) and size >= least]
    assert [size for reason, size in begun if reason == "flood"][:1] == [least]
    assert len(begun) < 12, "examples of a flood, not the flood"
    counts = [RecordCounts.from_bytes(blob).fraud for blob in live.counts().values()]
    assert sum(each.flooded for each in counts if each) == (flood >= least).sum()
    assert max(each.flood_largest for each in counts if each) == flood.max()
    assert 1 <= sum(each.floods for each in counts if each) <= 3
    again = Watched(parts, store, history=True)
    for first, after in itertools.pairwise([0, 1, 450, 451, 470, 1_000]):
        again.take(batch.rows(first, after))
    again.checkpoint()
    assert_same(again, live)
    with Store.open(f"sqlite:///{tmp_path / 'other.db'}") as other:
        other.migrate()
        sizes = []
        for first in range(0, 1_000, 50):
            owner = Watched(parts, other)
            owner.take(batch.rows(first, first + 20))
            owner.pipeline.discard()
            owner.take(batch.rows(first, first + 50))
            owner.checkpoint()
            sizes.append(owner.said()["flood"])
        assert np.array_equal(np.concatenate(sizes), flood)


def test_counts_of_floods_of_another_baseline_are_not_read(parts: FraudParts, store: Store) -> None:
    batch = with_a_burst(stream(200), range(200))
    first = Watched(parts, store)
    first.take(batch)
    first.checkpoint()
    newer = Watched(replace(parts, version=8), store)
    newer.take(replace(batch, offsets=batch.offsets + 200, next_offset=400))
    newer.checkpoint()
    assert newer.said()["flood"].max() == first.said()["flood"].max() > 90


def test_states_of_an_older_model_are_deleted(whole: FraudParts, store: Store) -> None:
    watched, batch = Watched(whole, store, settings=WHOLE), stream(400)
    watched.take(batch.rows(0, 200))
    watched.checkpoint()
    newer = Watched(replace(whole, version=8), store, settings=WHOLE)
    newer.take(batch.rows(200, 400))
    newer.checkpoint()
    assert {row.kind for row in store.entity_states("cards", CARDS)} == {"entity/8", "relation/8"}
    spans = [(span.from_offset, span.reference) for span in store.label_spans("cards")]
    assert spans == [(0, 7), (200, 8)]


def test_labels_put_fraud_first(parts: FraudParts, store: Store) -> None:
    said = live_with_labels(parts, store, stream(1_000)).said()
    fraud, late_part = said["offsets"] % 20 == 3, said["offsets"] >= 700
    surprise = -np.log10(said["p_value"])
    assert np.median(surprise[fraud & late_part]) > 2 > np.median(surprise[~fraud & late_part])
    assert set(said["version"]) == {0, 2, 8, 12}


def test_a_new_version_waits_for_the_next_checkpoint(parts: FraudParts, store: Store) -> None:
    watched, batch = Watched(parts, store), stream(400)
    watched.take(batch.rows(0, 200))
    watched.checkpoint()
    watched.take(batch.rows(200, 250))
    watched.label(3, 23, 43)
    assert not watched.stage.outdated
    watched.learner._look()
    assert watched.learner.latest().version == 3
    assert watched.stage.outdated
    watched.take(batch.rows(250, 300))
    assert watched.checkpoint().spans == []
    assert not watched.stage.outdated
    watched.take(batch.rows(300, 400))
    assert [(span.from_offset, span.version) for span in watched.checkpoint().spans] == [(300, 3)]
    said = watched.said()
    assert set(said["version"][said["offsets"] < 300]) == {0}
    assert set(said["version"][said["offsets"] >= 300]) == {3}


def test_a_label_that_comes_while_nothing_does_counts_for_the_next_record(parts: FraudParts, store: Store) -> None:
    watched, batch = Watched(parts, store), stream(300)
    watched.take(batch.rows(0, 200))
    watched.checkpoint()
    watched.label(3)
    watched.learner._look()
    watched.take(batch.rows(200, 300))
    assert [(span.from_offset, span.version) for span in watched.checkpoint().spans] == [(200, 1)]


def test_what_was_discarded_is_scored_again_with_the_newest_version(parts: FraudParts, store: Store) -> None:
    watched, batch = Watched(parts, store), stream(300)
    watched.take(batch.rows(0, 100))
    watched.checkpoint()
    watched.label(3)
    watched.take(batch.rows(100, 200))
    watched.pipeline.checkpoint()  # refused by the database
    watched.pipeline.discard()
    watched.learner._look()
    watched.take(batch.rows(100, 300))
    checkpoint = watched.checkpoint()
    assert [(span.from_offset, span.version) for span in checkpoint.spans] == [(100, 1)]
    assert sorted(set(watched.said()["offsets"].tolist())) == watched.said()["offsets"].tolist()


def test_another_worker_goes_on_without_a_span_of_the_same_version(parts: FraudParts, store: Store) -> None:
    batch = stream(300)
    for first in (0, 100, 200):
        watched = Watched(parts, store)
        watched.take(batch.rows(first, first + 100))
        watched.checkpoint()
    assert [(span.from_offset, span.version) for span in store.label_spans("cards")] == [(0, 0)]


def test_offsets_that_begin_anew_get_a_span_of_their_own(parts: FraudParts, store: Store) -> None:
    watched, batch = Watched(parts, store), stream(100)
    watched.take(batch)
    watched.checkpoint()
    gap = Gap(CARDS, 100, 0, "recreated", "made anew")
    nothing = batch.rows(0, 0)
    watched.take(replace(nothing, next_offset=0, gap=gap))
    watched.checkpoint()
    watched.take(batch)
    assert [(span.from_offset, span.version) for span in watched.checkpoint().spans] == [(0, 0)]


def test_a_topic_made_anew_is_scored_again_as_it_was(whole: FraudParts, store: Store) -> None:
    old, batch = stream(500, seed=9, step=17), stream(500, step=17)
    live = Watched(whole, store, settings=WHOLE)
    live.take(old)
    live.take(replace(old.rows(0, 0), next_offset=0, gap=Gap(CARDS, old.next_offset, 0, "recreated", "made anew")))
    live.checkpoint()
    assert store.entity_states("cards", CARDS) == []
    live.columns.clear()
    live.checkpoints.clear()
    for first in range(0, len(batch), 100):
        live.take(batch.rows(first, first + 100))
        live.checkpoint()
    again = Watched(whole, store, settings=WHOLE, history=True)
    again.take(batch)
    again.checkpoint()
    assert np.array_equal(signals_of(again), signals_of(live), equal_nan=True)
    for name, column in live.said().items():
        assert np.array_equal(again.said()[name], column, equal_nan=True), name


def test_hits_come_with_their_evidence(parts: FraudParts, store: Store) -> None:
    live = live_with_labels(parts, store, stream(1_000))
    hits = [row for row in live.kept if row.reason == "fraud" and row.labels == 12]
    assert len(hits) > 5
    for row in hits:
        detail: Any = row.detail
        assert detail["basis"] == "contrast and model"
        assert detail["interval"][0] <= detail["probability"] <= detail["interval"][1]
        assert {case["record"] for case in detail["nearest_cases"]} <= {
            "r3", "r63", "r83", "r103", "r123", "r143", "r163"
        }  # fmt: skip
        assert row.exemplar == detail["nearest_normal"]["exemplar"] >= 0
        assert detail["rules"]["large"] is bool((detail["signals"]["amount"] or 0.0) > 900.0)
        assert set(detail["contributions"]) == {"usual", "contrast", "model", "outlier", "amount", "cleared"}
        assert row.vector is not None and len(row.vector) == 4 * D
        odds = np.log(detail["probability"] / (1.0 - detail["probability"]))
        assert sum(detail["contributions"].values()) == pytest.approx(odds, abs=0.01)
        json.dumps(detail, allow_nan=False)
    without = [row for row in live.kept if row.labels == 0]
    assert without and all(row.detail["basis"] == "outlier" and "interval" not in row.detail for row in without)
    assert any(row.reason == "review" and row.detail["review"] is True for row in live.kept)


def test_late_records_are_scored_and_not_kept(parts: FraudParts, store: Store) -> None:
    everything = SETTINGS.model_copy(update={"alpha": 1.0})
    watched = Watched(parts, store, settings=everything)
    watched.take(stream(1_000))
    watched.checkpoint()
    late = np.concatenate([each.offsets[each.late] for each in watched.columns])
    assert len(late) and not set(late.tolist()) & {row.offset for row in watched.kept}
    assert set(late.tolist()) <= set(watched.said()["offsets"].tolist())
    counted = sum((RecordCounts.from_bytes(blob).fraud or pytest.fail()).n for blob in watched.counts().values())
    assert counted == len(watched.said()["offsets"]) - len(late) == len(watched.kept)


def test_segments_with_alerts_of_their_own_are_counted(parts: FraudParts, store: Store) -> None:
    watched = Watched(parts, store)
    watched.take(stream(400))
    watched.checkpoint()
    for blob in watched.counts().values():
        fraud = RecordCounts.from_bytes(blob).fraud
        assert fraud is not None and 0 < fraud.segments["shop=b"].n < fraud.n


def test_labels_find_what_was_remembered(parts: FraudParts, store: Store) -> None:
    watched, batch = Watched(parts, store), stream(200)
    watched.take(batch)
    watched.checkpoint()
    known = watched.known("r25")
    vector = json.loads(batch.values[25] or b"")["v"]
    assert np.array_equal(np.frombuffer(known.vector, "<f4"), np.array(vector, np.float32))
    assert known.partition == CARDS and known.offset == 25 and known.scored_with == 0
    said = watched.said()
    assert np.isnan(known.probability)  # no case is known yet
    assert known.p_value == float(said["p_value"][said["offsets"] == 25][0])
    signals = np.frombuffer(known.signals, "<f4")
    assert signals.shape == (2,) and signals[1] == 40.0


def test_a_record_that_a_label_brings_is_described_like_any_other(parts: FraudParts, store: Store) -> None:
    watched, batch = Watched(parts, store), stream(200)
    watched.take(batch)
    watched.checkpoint()
    events = watched.pipeline._decoder.decode(batch.rows(25, 26), None)
    vectors = np.array([json.loads(batch.values[25] or b"")["v"]], np.float32)
    (described,) = watched.stage.describe(events, vectors)
    known = watched.known("r25")
    assert (described.vector, described.signals) == (known.vector, known.signals)
    assert described.offset == -1 and np.isnan(described.probability)


def test_the_stronger_source_wins_then_the_later_time_then_the_later_label(parts: FraudParts, store: Store) -> None:
    def said(number: int, label: Literal["fraud", "cleared"], source: Any, time_ms: int) -> NewLabel:
        record = LabelledRecord(CARDS, 1, 0, START_MS, "", b"\0" * 4 * D, b"", 0.0, 1.0, 0, "", float("nan"))
        return NewLabel("a" if number < 6 else "b", label, time_ms, source, 0.5, "", str(number), record)

    store.add_labels(
        "cards",
        [
            said(1, "cleared", "rule", 90),
            said(2, "fraud", "chargeback", 10),
            said(3, "cleared", "analyst", 80),
            said(4, "fraud", "chargeback", 20),
            said(5, "cleared", "chargeback", 20),
            said(6, "fraud", "rule", 1),
        ],
    )
    rows = store.labels("cards")
    assert [row.said.origin for row in in_force(rows)] == ["5", "6"]
    assert [row.said.origin for row in in_force(rows[:4])] == ["4"]
    assert [row.said.origin for row in in_force(rows[:1])] == ["1"]


def test_a_label_weighs_what_it_stands_for_up_to_a_limit(store: Store) -> None:
    def weight(chance: float, confidence: float) -> float:
        record = LabelledRecord(CARDS, 1, 0, 0, "", b"", b"", 0.0, 1.0, 0, "", chance)
        store.add_labels(
            "cards", [NewLabel("a", "fraud", 0, "analyst", confidence, "", f"{chance} {confidence}", record)]
        )
        return weight_of(store.labels("cards")[-1])

    assert weight(float("nan"), 0.5) == 0.5
    assert weight(1.0, 1.0) == 1.0
    assert weight(0.25, 0.5) == 2.0
    assert weight(0.0005, 1.0) == MOST_WEIGHT


def test_labels_of_an_older_baseline_are_used_as_far_as_their_vectors_go(parts: FraudParts, store: Store) -> None:
    watched, batch = Watched(parts, store), stream(200)
    watched.take(batch)
    watched.checkpoint()
    known = watched.known("r3")
    others = {
        "as it is": known,
        "other signals": replace(known, signals=known.signals + b"\0" * 4),
        "other vectors": replace(known, vector=known.vector[4:]),
    }
    store.add_labels(
        "cards",
        [NewLabel(name, "fraud", START_MS, "analyst", 1.0, "", name, record) for name, record in others.items()],
    )
    rows = store.labels("cards")
    _, used = fit_scorer(parts, rows, prevalence=0.01)
    assert [row.said.record_id for row in used] == ["as it is", "other signals"]
    fitted = watched.learner.at(3)
    assert fitted.dropped == 1 and fitted.records == ("as it is", "other signals")


def test_a_database_that_was_restored_from_a_copy_is_read_anew_by_a_running_learner(
    parts: FraudParts, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor.fraud_learner.MOST_LABELS", 5)
    watched, batch = Watched(parts, store), stream(200)
    watched.take(batch)
    watched.checkpoint()
    watched.label(3, 23)
    learner = watched.learner
    assert learner._fit_newest(2).records == ("r3", "r23")
    with Store.open(f"sqlite:///{tmp_path / 'copy.db'}") as copy:
        copy.migrate()
        known = [watched.known(f"r{row}") for row in (43, 63, 83, 103, 123, 143)]
        said = [
            NewLabel(f"c{place}", "fraud", START_MS, "analyst", 1.0, "", f"c{place}", record)
            for place, record in enumerate(known)
        ]
        copy.add_labels("cards", said[:3])
        learner._store = copy
        assert learner._fit_newest(3).records == ("c0", "c1", "c2")  # and not those of the other database
        copy.add_labels("cards", said[3:])
        fitted = learner._fit_newest(6)
        assert fitted.records == ("c1", "c2", "c3", "c4", "c5")  # the last ones that count
        anew = Learner("cards", store=copy, parts=parts, prevalence=SETTINGS.prevalence).at(6)
        scores = [each.scorer.score(parts.baseline.vectors, signals=parts.baseline.signals) for each in (fitted, anew)]
        assert anew.records == fitted.records and np.array_equal(*scores)


def test_labels_of_another_embedder_of_the_same_dimension_are_left_out(parts: FraudParts, store: Store) -> None:
    watched, batch = Watched(parts, store), stream(200)
    watched.take(batch)
    watched.checkpoint()
    known = watched.known("r3")
    assert known.made_with == made_with(parts)
    embedder, _, columns = known.made_with.rpartition("/")
    others = {
        "as it is": known,
        "not known": replace(known, made_with=""),
        "other columns": replace(known, made_with=f"{embedder}/01234567"),
        "other embedder": replace(known, made_with=f"0123456789abcdef/{columns}"),
    }
    store.add_labels(
        "cards",
        [NewLabel(name, "fraud", START_MS, "analyst", 1.0, "", name, record) for name, record in others.items()],
    )
    fitted = watched.learner.at(4)
    assert fitted.dropped == 1 and fitted.records == ("as it is", "not known", "other columns")
    (anew,) = made_anew(parts, np.frombuffer(known.vector, "<f4").reshape(1, -1))
    assert np.isnan(anew[1])  # the amount, which a vector does not tell
    only = replace(known, made_with=f"{embedder}/01234567")
    rows = [replace(row, said=replace(row.said, known=only)) for row in store.labels("cards", upto=1)]
    told = [replace(row, said=replace(row.said, known=replace(only, signals=anew.tobytes()))) for row in rows]
    scores = [
        fit_scorer(parts, each, prevalence=0.01)[0].score(parts.baseline.vectors, signals=parts.baseline.signals)
        for each in (rows, told)
    ]
    assert np.array_equal(*scores)


def test_a_scorer_that_cannot_be_fitted_leaves_the_older_one_in_force(
    parts: FraudParts, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, batch = Watched(parts, store), stream(200)
    watched.take(batch)
    watched.checkpoint()
    before = watched.learner.latest()
    watched.label(3, 23)
    monkeypatch.setattr("monitor.fraud_learner.fit_scorer", lambda *given, **named: 1 / 0)
    watched.learner._look()
    assert watched.learner.latest() is before and watched.learner.failures == 1
    monkeypatch.undo()
    watched.learner._look()
    assert watched.learner.latest().version == 2
