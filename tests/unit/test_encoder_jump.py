"""A changed encoder of ready vectors: found in two blocks, told once, and never seen in a world that changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from connectors.database.rows import Advance, Checkpoint, IncidentRow, SummaryDelta
from connectors.database.store import Store
from connectors.records import Partition
from detectors.encoder_jump import Pool, Usual, look_at
from detectors.norms import Norms, log_norms
from detectors.reference import ANGULAR, Reference
from detectors.segments import constants_of
from detectors.summary import BlockSummary, summarise
from monitor.embedders.vector import VectorSettings
from monitor.folding import Folder
from monitor.pipeline import Space
from monitor.record_counts import RecordCounts, norms_of
from monitor.settings import Settings

FILE = Partition("vectors.jsonl", 0)
BLOCK_MS = 10_000
RECORDS = 300  # in a block
BLOCKS, CHANGED_IN = 18, 9
NOW_MS = 1_800_000_000_000
DIMENSION = 24
Floats = npt.NDArray[np.float32]
_RANDOM = np.random.default_rng(5)
CENTRES = _RANDOM.normal(size=(50, DIMENSION)) + 0.5  # of what the world is about; as real encoders', with a mean
ROTATION = np.linalg.qr(_RANDOM.normal(size=(DIMENSION, DIMENSION)))[0].astype(np.float32)


def unit(x: npt.NDArray[Any]) -> Floats:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def usual(n: int, random: np.random.Generator) -> Floats:
    return unit(CENTRES[random.integers(0, 50, size=n)] + random.normal(scale=0.5, size=(n, DIMENSION)))


def one_topic(n: int, random: np.random.Generator) -> Floats:
    """A topic that the baseline does not have."""
    return unit(-1.5 * CENTRES[0] + random.normal(scale=0.5, size=(n, DIMENSION)))


def partly(other: Callable[[int, np.random.Generator], Floats], share: float) -> Callable[..., Floats]:
    def mixed(n: int, random: np.random.Generator) -> Floats:
        new = random.random(n) < share
        return np.where(new[:, None], other(n, random), usual(n, random))

    return mixed


@pytest.fixture(scope="module")
def reference() -> Reference:
    random = np.random.default_rng(0)
    countries = random.choice(["no", "se"], size=102_000).tolist()
    return Reference.build(
        usual(102_000, random),
        geometry=ANGULAR,
        block=RECORDS,
        prototypes=100,
        segments={"country": ["no", "se"]},
        segment_values={"country": countries},
    )


def settings(**drift: Any) -> Settings:
    model: dict[str, Any] = {
        "source": {"kind": "files", "path": "vectors.jsonl"},
        "record": {"segments": {"country": "/country"}},
        "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v"}}},
        "drift": {"block": "10s", **drift},
    }
    return Settings.model_validate({"models": {"m": model}})


def space_of(reference: Reference) -> Space:
    embedder = VectorSettings(field="/v").build()
    return Space("input", embedder, reference, 1, {"country": ["no", "se"]})


def checkpoints(
    reference: Reference, after: Callable[[int, Floats, np.random.Generator], Floats], *, records: int = RECORDS
) -> list[Checkpoint]:
    """A stream whose records ``after`` changes, given block and usual vectors; one checkpoint for each block."""
    written = []
    for block in range(BLOCKS):
        random = np.random.default_rng(block + 100)
        vectors = after(block, usual(records, random), random)
        country = random.integers(0, 2, size=records)
        scored = reference.score(vectors)
        deltas = []
        for segment, rows in (("", None), ("country=no", country == 0), ("country=se", country == 1)):
            part = scored if rows is None else reference.score(vectors[rows])
            summary = summarise(np.zeros(len(part), np.int64), part)[0]
            deltas.append(SummaryDelta("input", segment, block, 1, FILE, block * records, summary.to_bytes()))
        blocks = np.full(records, block)
        counts = RecordCounts(records, 0, {}).merge(norms_of("input", vectors, blocks, blocks < 0)[block])
        deltas.append(SummaryDelta("", "", block, 0, FILE, block * records, counts.to_bytes()))
        advance = Advance(
            FILE, block * records if block else None, (block + 1) * records, (block + 1) * BLOCK_MS - 1, records, 0, 0
        )
        written.append(Checkpoint("m", [advance], deltas))
    return written


def incidents(
    folder: Path, reference: Reference, stream: list[Checkpoint], *, restart_every: int = BLOCKS
) -> list[IncidentRow]:
    with Store.open(f"sqlite:///{folder}/driftd.db") as store:
        store.migrate()
        for first in range(0, len(stream), restart_every):
            for checkpoint in stream[first : first + restart_every]:
                store.commit(checkpoint)
            Folder("m", settings(), spaces=[space_of(reference)]).step(store, NOW_MS, partitions=frozenset({FILE}))
        Folder("m", settings(), spaces=[space_of(reference)]).close_all(store, NOW_MS)
        return [row for row in store.incidents(model="m") if row.kind != "stale"]


def swapped(encode: Callable[[Floats], Floats], *, part: float = 1.0) -> Callable[..., Floats]:
    """Another encoder from the middle of the stream on; of the first of its blocks only the last ``part``."""

    def after(block: int, vectors: Floats, random: np.random.Generator) -> Floats:
        if block < CHANGED_IN:
            return vectors
        first = round(len(vectors) * (1.0 - part)) if block == CHANGED_IN else 0
        return np.concatenate([vectors[:first], encode(vectors[first:])])

    return after


@pytest.mark.parametrize("part", [1.0, 0.04])
def test_another_encoder_is_one_page_and_no_drift(tmp_path: Path, reference: Reference, part: float) -> None:
    stream = checkpoints(reference, swapped(lambda x: x @ ROTATION, part=part))
    (row,) = incidents(tmp_path, reference, stream)
    assert (row.kind, row.severity, row.space, row.segment, row.status) == (
        "encoder_suspected",
        "page",
        "input",
        "",
        "open",
    )
    found_in = row.opened_ms // BLOCK_MS - 1
    assert found_in == CHANGED_IN + (part < 1.0)
    assert CHANGED_IN * BLOCK_MS <= row.onset_ms <= found_in * BLOCK_MS
    assert dict(cast(dict[str, Any], row.detail["values"]))["why"] == "far"
    assert "the encoder behind input has changed, as it seems" in row.title
    assert "stranger than 63 in 64" in row.text and "build a reference" in row.text
    assert "cause" not in row.detail and "By chance" not in row.text


@pytest.mark.parametrize("records", [RECORDS, 90])
def test_it_does_not_matter_how_many_blocks_a_step_takes(tmp_path: Path, reference: Reference, records: int) -> None:
    stream = checkpoints(reference, swapped(lambda x: x @ ROTATION, part=0.5), records=records)
    (tmp_path / "whole").mkdir()
    whole = incidents(tmp_path / "whole", reference, stream)
    assert [row.kind for row in whole] == ["encoder_suspected"]
    assert incidents(tmp_path, reference, stream, restart_every=2) == whole


def test_an_encoder_that_is_put_back_is_over_and_no_drift(tmp_path: Path, reference: Reference) -> None:
    def after(block: int, vectors: Floats, random: np.random.Generator) -> Floats:
        return vectors @ ROTATION if 5 <= block < 8 else vectors

    rows = incidents(tmp_path, reference, checkpoints(reference, after))
    assert [row.kind for row in rows] == ["encoder_suspected"]
    assert rows[0].detail["last_active_ms"] == 8 * BLOCK_MS


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_flood_of_one_topic_is_drift_as_ever(tmp_path: Path, reference: Reference, share: float) -> None:
    flood = partly(one_topic, share)

    def after(block: int, vectors: Floats, random: np.random.Generator) -> Floats:
        return flood(len(vectors), random) if block >= CHANGED_IN else vectors

    rows = incidents(tmp_path, reference, checkpoints(reference, after))
    assert {row.kind for row in rows} <= {"drift", "outlier_rate"}
    drift = next(row for row in rows if row.kind == "drift" and not row.segment)
    assert drift.severity == "page"
    assert drift.onset_ms == CHANGED_IN * BLOCK_MS
    assert drift.opened_ms <= (CHANGED_IN + 2) * BLOCK_MS  # it waited for one look at the encoder


def test_drift_that_grows_waits_for_nothing(tmp_path: Path, reference: Reference) -> None:
    """Until all of the traffic is new: a world may go so far, but not at once."""

    def after(block: int, vectors: Floats, random: np.random.Generator) -> Floats:
        return partly(one_topic, min(max(block - 3, 0) / 10.0, 1.0))(len(vectors), random)

    rows = incidents(tmp_path, reference, checkpoints(reference, after))
    assert rows and {row.kind for row in rows} <= {"drift", "outlier_rate"}


def test_an_encoder_that_changes_for_one_segment_only_is_drift_of_that_segment(
    tmp_path: Path, reference: Reference
) -> None:
    def after(block: int, vectors: Floats, random: np.random.Generator) -> Floats:
        if block < CHANGED_IN:
            return vectors
        ahead = np.random.default_rng(block + 100)
        usual(len(vectors), ahead)  # the same draws as the stream's, up to the countries
        norway = ahead.integers(0, 2, size=len(vectors)) == 0
        return np.where(norway[:, None], vectors @ ROTATION, vectors)

    rows = incidents(tmp_path, reference, checkpoints(reference, after))
    assert "drift" in {row.kind for row in rows} and "encoder_suspected" not in {row.kind for row in rows}


def test_no_encoder_is_suspected_while_nothing_changes(tmp_path: Path, reference: Reference) -> None:
    assert incidents(tmp_path, reference, checkpoints(reference, lambda block, vectors, random: vectors)) == []


# --- a single look --------------------------------------------------------------------------------------------------


def looked(reference: Reference, vectors: Floats) -> str:
    scored = reference.score(vectors)
    summary = summarise(np.zeros(len(vectors), np.int64), scored)[0]
    return look_at(Usual(reference, constants_of(reference.drift, "")), summary, Norms.of(log_norms(vectors))).why


def test_eight_changes_of_an_encoder_are_seen_in_one_look(reference: Reference) -> None:
    random = np.random.default_rng(9)
    vectors = usual(512, random)
    mean = usual(20_000, random).mean(axis=0)
    signs = random.choice([-1.0, 1.0], size=DIMENSION).astype(np.float32)
    weights = random.normal(size=(DIMENSION, DIMENSION)).astype(np.float32)
    cut = np.concatenate([vectors[:, : DIMENSION // 2], np.zeros((512, DIMENSION // 2), np.float32)], axis=1)
    changes = {
        "rotated": vectors @ ROTATION,
        "dimensions in another order": vectors[:, random.permutation(DIMENSION)],
        "signs flipped": vectors * signs,
        "not of length one": vectors * 5.8 * random.uniform(0.9, 1.1, size=(512, 1)).astype(np.float32),
        "cut off, and filled with zeros": cut,
        "cut off, and of length one": unit(cut),
        "centred": unit(vectors - mean),
        "another model": unit(np.tanh(vectors @ weights)),
    }
    assert {
        name: looked(reference, changed) for name, changed in changes.items() if not looked(reference, changed)
    } == {}
    assert looked(reference, vectors) == ""


def test_small_numeric_changes_are_not_seen(reference: Reference) -> None:
    vectors = usual(512, np.random.default_rng(9))
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    assert looked(reference, np.rint(vectors * 127 / largest) * largest / 127) == ""
    assert looked(reference, vectors.astype(np.float16).astype(np.float32)) == ""


def test_a_reference_from_before_lengths_were_kept_goes_on_without_them(reference: Reference) -> None:
    old = Usual(reference, constants_of(reference.drift, ""))
    old.norms = None
    vectors = usual(512, np.random.default_rng(9))
    summary = summarise(np.zeros(512, np.int64), reference.score(vectors))[0]
    assert look_at(old, summary, Norms.of(log_norms(vectors * 7))).why == ""


def test_lengths_add_up_and_are_read_off_the_bits() -> None:
    vectors = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32) * 100
    logs = log_norms(vectors)
    exact = np.log2(np.linalg.norm(vectors.astype(np.float64), axis=1))
    error = exact - logs / 4096
    assert error.min() > -0.001 and error.max() < 0.088
    whole = Norms.of(logs)
    assert Norms.of(logs[:300]).merge(Norms.of(logs[300:])) == whole
    assert whole.mean == pytest.approx(logs.mean() / 4096) and whole.variance == pytest.approx(logs.var() / 4096**2)
    assert log_norms(np.full((1, 3), 3e38, np.float32))[0] == 128 * 4096  # beyond what a float holds


def test_counts_of_a_block_hold_the_lengths_of_its_vectors_and_are_read_as_before_without() -> None:
    vectors = np.ones((4, 3), np.float32)
    blocks, late = np.array([7, 7, 8, 7]), np.array([False, False, False, True])
    found = norms_of("input", vectors, blocks, late)
    assert {block: counts.norms["input"].n for block, counts in found.items()} == {7: 2, 8: 1}
    counts = RecordCounts(3, 1, {}).merge(found[7])
    assert RecordCounts.from_bytes(counts.to_bytes()) == counts
    assert RecordCounts.from_bytes(counts.to_bytes()).merge(counts).norms["input"].n == 4
    assert RecordCounts(3, 1, {}).to_bytes() == b"[3,1,[]]"


def test_blocks_are_pooled_until_they_hold_enough_for_a_look_across_restarts() -> None:
    def block(n: int) -> BlockSummary:
        h = np.zeros(49, np.int64)
        h[30] = n
        return BlockSummary(n, np.full(2, n), h, np.array([n]))

    pool = Pool(256)
    assert pool.push(3, block(100)) is None
    pool = Pool(256, pool.to_bytes())
    assert pool.push(5, block(100), span=2) is None
    found = Pool(256, pool.to_bytes()).push(6, block(100))
    assert found is not None and found[0] == 3 and found[1].n == 300
    assert Pool(256).to_bytes() == b"" and Pool(256).push(9, block(300), span=4) == (6, block(300))
