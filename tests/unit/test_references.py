"""`driftd reference build --vectors` and `driftd score`, without the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detectors.errors import InvalidInput, InvalidReference
from detectors.fold import FoldSettings, Rule
from detectors.reference import Reference
from monitor.checks import diagnose
from monitor.collect import check_block_length
from monitor.references import describe, from_source, from_vectors, seasons_in_days
from monitor.scoring import score_file
from monitor.settings import DriftSettings, Settings, load_settings


def sorted_vectors() -> np.ndarray:
    """20 classes of 400 records, one class after the other."""
    chance = np.random.default_rng(3)
    centres = chance.normal(size=(20, 12)) * 3
    return (np.repeat(centres, 400, axis=0) + chance.normal(size=(8_000, 12))).astype(np.float32)


def build(vectors: Path, output: Path, *, shuffle: bool = False) -> str:
    return from_vectors(
        vectors, output, field="vector", standardised=False, shuffle=shuffle, progress=lambda step, share: None
    )


def test_a_sorted_file_is_noticed_and_shuffle_mends_it(tmp_path: Path) -> None:
    np.save(tmp_path / "X.npy", sorted_vectors())
    assert "--shuffle" in build(tmp_path / "X.npy", tmp_path / "sorted")
    assert "--shuffle" not in build(tmp_path / "X.npy", tmp_path / "mixed", shuffle=True)


def test_a_reference_is_never_overwritten(tmp_path: Path) -> None:
    np.save(tmp_path / "X.npy", sorted_vectors())
    build(tmp_path / "X.npy", tmp_path / "refs")
    with pytest.raises(InvalidReference):
        build(tmp_path / "X.npy", tmp_path / "refs")
    assert describe(tmp_path / "refs")["dimension"] == 12


def test_scores_are_the_same_in_every_format(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = sorted_vectors()
    np.save(tmp_path / "X.npy", vectors)
    pq.write_table(pa.table({"vector": vectors[:100].tolist()}), tmp_path / "Y.parquet")
    (tmp_path / "Y.jsonl").write_text("\n".join(json.dumps({"vector": row}) for row in vectors[:100].tolist()))
    np.save(tmp_path / "Y.npy", vectors[:100])
    build(tmp_path / "X.npy", tmp_path / "refs", shuffle=True)

    def scored(source: str, target: str, *, p_values: bool = False) -> Path:
        rows = score_file(
            tmp_path / "refs", input=tmp_path / source, output=tmp_path / target, p_values=p_values, field="vector"
        )
        assert rows == 100
        return tmp_path / target

    scores = np.load(scored("Y.npy", "a.npy"))
    assert (scores.dtype, scores.shape) == (np.float32, (100,))
    np.testing.assert_array_equal(np.load(scored("Y.parquet", "b.npy")), scores)
    np.testing.assert_array_equal(np.load(scored("Y.jsonl", "c.npy")), scores)
    chances = np.load(scored("Y.npy", "d.npy", p_values=True))
    assert (chances.dtype, bool((chances > 0).all()), bool((chances <= 1).all())) == (np.float64, True, True)
    table = pq.read_table(scored("Y.npy", "e.parquet", p_values=True)).to_pydict()
    np.testing.assert_allclose(table["score"], scores)
    np.testing.assert_allclose(table["p_value"], chances)
    lines = [json.loads(line) for line in scored("Y.npy", "f.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(100))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"not numpy", "not a NumPy array file"), (None, "There is no file"), (np.zeros(5), "expected numbers of shape")],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: bytes | np.ndarray | None, said: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / "X.npy").write_bytes(content)
    elif content is not None:
        np.save(tmp_path / "X.npy", content)
    with pytest.raises(InvalidInput, match=said):
        build(tmp_path / "X.npy", tmp_path / "refs")


def test_vectors_of_another_dimension_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "X.npy", sorted_vectors())
    np.save(tmp_path / "Y.npy", np.ones((4, 7), dtype=np.float32))
    build(tmp_path / "X.npy", tmp_path / "refs")
    with pytest.raises(InvalidInput, match="12"):
        score_file(
            tmp_path / "refs", input=tmp_path / "Y.npy", output=tmp_path / "s.npy", p_values=False, field="vector"
        )
    assert not (tmp_path / "s.npy").exists()


PERIOD = 5_120  # rows, twenty blocks


def seasonal_vectors(*, season: bool = True) -> np.ndarray:
    """Five cycles in which one of five topics swings between rare and common."""
    chance = np.random.default_rng(4)
    centres = chance.normal(size=(5, 8)) * 2
    hour = np.arange(5 * PERIOD) * (2 * np.pi / PERIOD)
    first = chance.random(len(hour)) < 0.3 + (0.2 * np.sin(hour) if season else 0.0)
    topic = np.where(first, 0, chance.integers(1, 5, len(hour)))
    return (centres[topic] + chance.normal(size=(len(hour), 8))).astype(np.float32)


def built_with_season(folder: Path, vectors: np.ndarray, season: float, *, shuffle: bool = False) -> str:
    np.save(folder / "X.npy", vectors)
    return from_vectors(
        folder / "X.npy",
        folder / "refs",
        field="vector",
        standardised=False,
        shuffle=shuffle,
        season=season,
        progress=lambda step, share: None,
    )


def test_a_season_in_a_file_of_vectors_is_followed_and_survives_the_disk(tmp_path: Path) -> None:
    said = built_with_season(tmp_path, seasonal_vectors(), PERIOD)
    assert "follows a season of 5,120 rows, which 5 cycles show" in said
    loaded = Reference.load(tmp_path / "refs")
    rule = Rule(loaded.drift, FoldSettings(1e4, 1e3))
    assert not np.array_equal(rule.mean_at(5), rule.mean_at(15))
    assert np.array_equal(rule.mean_at(5), rule.mean_at(25))
    # The expected mean is that of the baseline's own hours.
    tops = np.arange(4, 100, 20)
    measured = loaded.blocks.s[tops].sum(axis=0) / (loaded.blocks.n[tops].sum() * 2.0**20)
    assert np.linalg.norm(rule.mean_at(4) - measured) < 0.2 * np.linalg.norm(rule.mean_at(4) - rule.mean_at(14))


def test_a_season_that_is_not_there_or_too_long_is_said_to_be_so(tmp_path: Path) -> None:
    for name in ("none", "long"):
        (tmp_path / name).mkdir()
    said = built_with_season(tmp_path / "none", seasonal_vectors(season=False), PERIOD)
    assert "no season of 5,120 rows: none in 5 cycles (p = " in said
    said = built_with_season(tmp_path / "long", seasonal_vectors(), 3 * PERIOD)
    assert "no season of 15,360 rows: it takes 2 whole cycles, and the baseline holds 1" in said


def test_mixed_rows_and_seasons_shorter_than_blocks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="Mixed rows"):
        built_with_season(tmp_path, seasonal_vectors(), PERIOD, shuffle=True)
    with pytest.raises(InvalidInput, match="too short"):
        built_with_season(tmp_path, seasonal_vectors(), 1000)


def test_a_season_counted_in_blocks_of_another_length_is_refused() -> None:
    hours = np.arange(5 * PERIOD) * 3_600_000 // 256  # an hour for each block
    reference = Reference.build(
        seasonal_vectors(), block_ids=hours // 3_600_000, times_ms=hours, seasons=(20.0,), model="m", space="input"
    )
    shifted = replace(
        reference,
        first_ms=10**12,
        blocks=replace(reference.blocks, number=reference.blocks.number + 10**12 // 3_600_000),
    )
    check_block_length(shifted, 3_600_000)
    with pytest.raises(InvalidReference, match=r"m/input follows a season of 20 blocks.*60 s"):
        check_block_length(shifted, 60_000)
    plain = Reference.build(seasonal_vectors(), block_ids=hours // 3_600_000, times_ms=hours)
    check_block_length(plain, 60_000)


def daily_source(folder: Path, days: int = 4, per_hour: int = 150) -> Settings:
    """A file of records with event times whose mix swings with the hour, and settings that read it."""
    chance = np.random.default_rng(5)
    centres = chance.normal(size=(4, 6)) * 2
    hours = np.repeat(np.arange(days * 24), per_hour)
    swings = chance.random(len(hours)) < 0.4 + 0.3 * np.sin(2 * np.pi * hours / 24)
    vectors = centres[np.where(swings, 0, chance.integers(1, 4, len(hours)))] + chance.normal(size=(len(hours), 6))
    midnight, step = 1_760_054_400_000, 3_600_000 // per_hour
    records = [
        {"ts": midnight + row * step, "v": [round(value, 4) for value in vector]}
        for row, vector in enumerate(vectors.tolist())
    ]
    (folder / "x.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    (folder / "driftd.yaml").write_text(
        f"""
database: sqlite:///{folder}/driftd.db
references: {folder}/references
models:
  m:
    source: {{kind: files, path: {folder}/x.jsonl}}
    record: {{time: {{path: /ts, unit: ms}}}}
    reference: {{collect: {len(records)}}}
    drift: {{block: 1h}}
    spaces: {{input: {{embedder: {{kind: vector, field: /v, encoding: list}}}}}}
"""
    )
    return load_settings(folder / "driftd.yaml")


def test_the_hour_of_a_source_is_followed_and_the_doctor_says_so(tmp_path: Path) -> None:
    settings = daily_source(tmp_path)
    quiet = {"start_ms": None, "end_ms": None, "progress": lambda step, share: None}
    (row,) = from_source(settings, "m", **quiet)
    reference = Reference.load(row.path)
    said = seasons_in_days(reference, settings.models["m"].drift)
    assert said == (
        "follows a season of 1 day, which 4 cycles show; no season of 7 days: it takes 2 whole cycles, and the "
        "baseline holds 0"
    )
    assert any(said in finding.detail for finding in diagnose(settings))
    first = int(reference.blocks.number[0])
    rule = Rule(reference.drift, FoldSettings(1e4, 1e3))
    peak, trough = rule.shares_at(first + 24 * 100 + 6), rule.shares_at(first + 24 * 100 + 18)
    swinging = int(np.argmax(peak - trough))
    assert peak[swinging] > 1.5 * trough[swinging]
    (row,) = from_source(settings, "m", season="none", **quiet)
    assert seasons_in_days(Reference.load(row.path), settings.models["m"].drift) == ""
    with pytest.raises(InvalidInput, match=r"--season weekly: expected .auto., .none. or a duration"):
        from_source(settings, "m", season="weekly", **quiet)


def test_a_day_and_a_week_are_tried_unless_the_settings_say_otherwise() -> None:
    assert DriftSettings(block="1h").season_blocks == (24.0, 168.0)
    assert DriftSettings(block="6h").season_blocks == (28.0,)  # a day of four blocks shows nothing
    assert DriftSettings(block="10m", season="12h").season_blocks == (72.0,)
    assert DriftSettings(season="none").season_blocks == ()
