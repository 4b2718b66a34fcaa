"""Second opinions in the fold: their readings, and that it does not matter how often a worker starts again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from connectors.database.rows import Advance, Checkpoint, ReadingRow, SummaryDelta
from connectors.database.store import Store
from connectors.records import Partition
from detectors.reference import STANDARD, Reference
from detectors.summary import summarise
from monitor.embedders.number import NumberEmbedder, NumberSettings
from monitor.folding import Folder
from monitor.opinions import is_opinion
from monitor.pipeline import Space
from monitor.record_counts import RecordCounts
from monitor.settings import Settings

FILE = Partition("scores.jsonl", 0)
BLOCK_MS = 10_000
RECORDS = 100  # in a block
BLOCKS, SHIFTED_FROM = 160, 80
CHANNELS = {"adwin", "page_hinkley", "adwin_value", "page_hinkley_value"}
NOW_MS = 1_800_000_000_000


def settings_with(opinions: list[str]) -> Settings:
    model: dict[str, Any] = {
        "source": {"kind": "files", "path": "scores.jsonl"},
        "spaces": {"confidence": {"embedder": {"kind": "number", "field": "/score"}}},
        "drift": {"block": "10s", "second_opinions": opinions},
    }
    return Settings.model_validate({"models": {"m": model}})


@pytest.fixture(scope="module")
def space() -> Space:
    embedder: NumberEmbedder = NumberSettings(field="/score").build()
    baseline = np.random.default_rng(0).beta(8, 2, size=20_000).tolist()
    embedder.fit([baseline])
    vectors = embedder.embed([baseline]).vectors
    return Space("confidence", embedder, Reference.build(vectors, geometry=STANDARD, block=RECORDS), 1, {})


@pytest.fixture(scope="module")
def checkpoints(space: Space) -> list[Checkpoint]:
    """A stream whose mean falls from 0.80 to 0.75, one checkpoint for each block."""
    random, written = np.random.default_rng(1), []
    for block in range(BLOCKS):
        values = random.beta(8, 2, size=RECORDS) if block < SHIFTED_FROM else random.beta(7.5, 2.5, size=RECORDS)
        scored = space.reference.score(space.embedder.embed([values.tolist()]).vectors)
        summary = summarise(np.zeros(RECORDS, np.int64), scored)[0]
        offset = block * RECORDS
        advance = Advance(
            FILE, offset if block else None, offset + RECORDS, (block + 1) * BLOCK_MS - 1, RECORDS, dead=0, late=0
        )
        deltas = [
            SummaryDelta("confidence", "", block, 1, FILE, offset, summary.to_bytes()),
            SummaryDelta("", "", block, 0, FILE, offset, RecordCounts(RECORDS, 0, {}).to_bytes()),
        ]
        written.append(Checkpoint("m", [advance], deltas))
    return written


def folded(
    folder: Path, space: Space, checkpoints: list[Checkpoint], *, opinions: list[str], restart_every: int
) -> tuple[list[ReadingRow], int]:
    """The readings after the whole stream, with a new fold after so many blocks, and how many incidents there are."""
    with Store.open(f"sqlite:///{folder}/driftd.db") as store:
        store.migrate()
        for first in range(0, len(checkpoints), restart_every):
            for checkpoint in checkpoints[first : first + restart_every]:
                store.commit(checkpoint)
            fold = Folder("m", settings_with(opinions), spaces=[space])
            fold.step(store, NOW_MS, partitions=frozenset({FILE}))
        Folder("m", settings_with(opinions), spaces=[space]).close_all(store, NOW_MS)
        return store.readings("m"), len(store.incidents(model="m"))


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, space: Space, checkpoints: list[Checkpoint]
) -> tuple[list[ReadingRow], int]:
    folder = tmp_path_factory.mktemp("whole")
    return folded(folder, space, checkpoints, opinions=["adwin", "page_hinkley"], restart_every=BLOCKS)


def test_each_detector_has_a_reading_for_each_block(whole: tuple[list[ReadingRow], int]) -> None:
    readings = [reading for reading in whole[0] if is_opinion(reading.channel)]
    assert {reading.channel for reading in readings} == CHANNELS
    assert len(readings) == BLOCKS * len(CHANNELS)
    values = [reading.statistic for reading in readings if reading.channel == "adwin_value"]
    assert np.mean(values[:SHIFTED_FROM]) == pytest.approx(0.80, abs=0.005)  # in the unit of the field
    assert np.mean(values[SHIFTED_FROM:]) == pytest.approx(0.75, abs=0.005)


def test_a_change_warns_and_never_pages(whole: tuple[list[ReadingRow], int]) -> None:
    heard = [reading for reading in whole[0] if is_opinion(reading.channel) and reading.warn]
    assert {"adwin_value", "page_hinkley_value"} <= {reading.channel for reading in heard}
    assert min(reading.block for reading in heard) >= SHIFTED_FROM
    assert max(reading.block for reading in heard if reading.channel.endswith("_value")) < SHIFTED_FROM + 20
    for reading in whole[0]:
        if is_opinion(reading.channel):
            assert reading.strength == (reading.warn_threshold if reading.warn else 0.0)
            assert not reading.page and reading.onset_ms is None


@pytest.mark.parametrize("restart_every", [1, 7])
def test_a_worker_that_starts_again_reads_the_same(
    tmp_path: Path, space: Space, checkpoints: list[Checkpoint], whole: tuple[list[ReadingRow], int], restart_every: int
) -> None:
    opinions = ["adwin", "page_hinkley"]
    assert folded(tmp_path, space, checkpoints, opinions=opinions, restart_every=restart_every) == whole


def test_second_opinions_change_no_other_reading_and_open_no_incident(
    tmp_path: Path, space: Space, checkpoints: list[Checkpoint], whole: tuple[list[ReadingRow], int]
) -> None:
    readings, incidents = folded(tmp_path, space, checkpoints, opinions=[], restart_every=BLOCKS)
    assert readings == [reading for reading in whole[0] if not is_opinion(reading.channel)]
    assert incidents == whole[1]
