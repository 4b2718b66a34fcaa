"""What fraud scores need to know of the baseline: built with the reference, saved, checked and loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from connectors.database.rows import ReferenceRow
from connectors.database.store import Store
from detectors.errors import InvalidReference
from detectors.reference import Reference
from monitor.app import open_store
from monitor.checks import diagnose
from monitor.fraud_build import (
    FraudParts,
    describe_fraud,
    fraud_in_words,
    fraud_row_in_use,
    fraud_row_of,
    load_fraud,
)
from monitor.fraud_settings import FRAUD_SPACE, FraudSettings
from monitor.references import from_source
from monitor.settings import Settings


def _stream(path: Path, *, seed: int = 0, records: int = 4000) -> None:
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, 6))
    with path.open("w") as file:
        for row in range(records):
            card = int(chance.integers(0, 80))
            document = {
                "ts": 1_700_000_000_000 + row * 50,
                "card": f"c{card}",
                "shop": f"s{(card + int(chance.integers(0, 3))) % 30}",
                "amount": round(float(np.exp(chance.normal(3, 1))), 2) if row % 10 else None,
                "v": [round(float(value), 4) for value in centres[card % 20] + 0.3 * chance.normal(size=6)],
            }
            file.write(json.dumps(document) + "\n")


def _settings(folder: Path, **fraud: object) -> Settings:
    return Settings(
        database=f"sqlite:///{folder / 'driftd.db'}",
        references=folder / "references",
        models={
            "cards": {
                "source": {"kind": "files", "path": str(folder / "stream.jsonl")},
                "record": {"time": "/ts"},
                "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
                "fraud": {
                    "fields": {"amount": "/amount"},
                    "entity": "/card",
                    "relation": {"of": "/card", "to": "/shop"},
                    "scorers": {"forest": {"kind": "pyod", "model": "iforest"}},
                    **fraud,
                },
            }
        },
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Settings, list[ReferenceRow]]:
    folder = tmp_path_factory.mktemp("fraud")
    _stream(folder / "stream.jsonl")
    settings = _settings(folder)
    rows = from_source(settings, "cards", start_ms=None, end_ms=None, progress=lambda step, share: None)
    return folder, settings, rows


def _fraud_settings(settings: Settings) -> FraudSettings:
    fraud = settings.models["cards"].fraud
    assert fraud is not None
    return fraud


def _load(settings: Settings, rows: list[ReferenceRow]) -> FraudParts:
    return load_fraud(rows[1], Reference.load(rows[0].path), _fraud_settings(settings))


def test_it_is_built_with_the_reference_and_numbered_beside_it(
    built: tuple[Path, Settings, list[ReferenceRow]],
) -> None:
    _, settings, rows = built
    assert [(row.space, row.version, row.active) for row in rows] == [("input", 1, True), (FRAUD_SPACE, 1, True)]

    parts = _load(settings, rows)

    assert parts.baseline.names == ("outlier", "forest", "entity_self", "entity_peers", "relation", "amount")
    assert parts.entities is not None
    assert parts.relations is not None
    assert parts.flood.dimension == 6
    assert len(parts.baseline) == pytest.approx(Reference.load(rows[0].path).n_calibration / 2, abs=200)
    # The surprise of an outlier is a calibrated one, also here; a tenth of the amounts is missing.
    assert np.mean(parts.baseline.signals[:, 0] >= 1.0) == pytest.approx(0.1, abs=0.02)
    assert np.mean(np.isnan(parts.baseline.signals[:, 5])) == pytest.approx(0.1, abs=0.02)


def test_its_records_are_those_that_calibrate(built: tuple[Path, Settings, list[ReferenceRow]]) -> None:
    """Whatever stands in an index could not stand for new ones."""
    _, settings, rows = built
    parts, reference = _load(settings, rows), Reference.load(rows[0].path)

    prepared = reference.prepare(parts.baseline.vectors)

    assert {row.tobytes() for row in prepared} <= {row.tobytes() for row in reference.calibration_vectors}


def test_the_same_baseline_gives_the_same_bytes(built: tuple[Path, Settings, list[ReferenceRow]]) -> None:
    folder, settings, rows = built
    again = folder / "again"
    again.mkdir()
    other = settings.model_copy(update={"database": f"sqlite:///{again / 'driftd.db'}", "references": again})
    repeated = from_source(other, "cards", start_ms=None, end_ms=None, progress=lambda step, share: None)

    def sums(row: ReferenceRow) -> dict[str, str]:
        files: dict[str, str] = json.loads((Path(row.path) / "fraud.json").read_text())["files"]
        # How many seconds a fit took is never the same.
        return {name: checksum for name, checksum in files.items() if not name.endswith(".json")}

    assert sums(repeated[1]) == sums(rows[1])
    assert len(sums(rows[1])) >= 4


@pytest.mark.parametrize(
    ("changed", "words"), [({"entity": None}, "fraud.entity"), ({"fields": {"sum": "/amount"}}, "fraud.fields")]
)
def test_other_settings_are_refused_by_name(
    built: tuple[Path, Settings, list[ReferenceRow]], changed: dict[str, object], words: str
) -> None:
    folder, _, rows = built
    with pytest.raises(InvalidReference, match=words) as refused:
        _load(_settings(folder, **changed), rows)
    assert "driftd reference build" in str(refused.value.hint)


def test_a_changed_byte_is_noticed(built: tuple[Path, Settings, list[ReferenceRow]], tmp_path: Path) -> None:
    _, settings, rows = built
    copy = tmp_path / "1"
    copy.mkdir()
    (copy / "scorer-forest").mkdir()
    original = Path(rows[1].path)
    for file in [path for path in original.rglob("*") if path.is_file()]:
        content = bytearray(file.read_bytes())
        if file.name == "fraud_baseline.npz":
            content[len(content) // 2] ^= 1
        (copy / file.relative_to(original)).write_bytes(bytes(content))
    with pytest.raises(InvalidReference, match=r"fraud_baseline\.npz is missing or damaged"):
        _load(settings, [rows[0], replace(rows[1], path=str(copy))])


def test_an_older_reference_gets_back_what_belongs_to_it(
    built: tuple[Path, Settings, list[ReferenceRow]], tmp_path: Path
) -> None:
    _, settings, _ = built
    again = settings.model_copy(
        update={"database": f"sqlite:///{tmp_path / 'driftd.db'}", "references": tmp_path / "references"}
    )

    def build() -> list[ReferenceRow]:
        return from_source(again, "cards", start_ms=None, end_ms=None, progress=lambda step, share: None)

    first = build()
    stream = Path(again.models["cards"].source.path)  # type: ignore[union-attr]
    lines = stream.read_text().splitlines(keepends=True)
    try:
        stream.write_text("".join(lines[:3000]))
        second = build()
    finally:
        stream.write_text("".join(lines))
    store: Store = open_store(again)
    with store:
        known = store.references("cards", FRAUD_SPACE)
        assert [row.version for row in known] == [1, 2]
        assert fraud_row_of(known, second[0]) == known[1]
        assert fraud_row_of(known, first[0]) == known[0]
        assert fraud_row_of(known, replace(first[0], checksum="another")) is None
        assert fraud_row_in_use(store, "cards", "input") == known[1]
        store.activate_reference("cards", "input", 1, now_ms=2)
        # The pointer of the pseudo-space still says 2: labels and doctor must not go by it, as scores do not.
        assert store.active_reference("cards", FRAUD_SPACE) == known[1]
        assert fraud_row_in_use(store, "cards", "input") == replace(known[0], active=False)
        assert fraud_row_in_use(store, "cards", "another") is None


def test_a_reference_that_was_built_without_fraud_has_none(
    built: tuple[Path, Settings, list[ReferenceRow]], tmp_path: Path
) -> None:
    _, settings, _ = built
    again = settings.model_copy(
        update={"database": f"sqlite:///{tmp_path / 'driftd.db'}", "references": tmp_path / "references"}
    )
    cards = again.models["cards"]
    without = again.model_copy(update={"models": {"cards": cards.model_copy(update={"fraud": None})}})
    for each in (again, without):
        from_source(each, "cards", start_ms=None, end_ms=None, progress=lambda step, share: None)
    with open_store(again) as store:
        assert store.active_reference("cards", FRAUD_SPACE) is not None
        assert fraud_row_in_use(store, "cards", "input") is None
    (finding,) = [found for found in diagnose(again) if found.name == "model cards, fraud scores"]
    assert not finding.ok and "no fraud baseline" in finding.detail


def test_what_it_holds_is_told(built: tuple[Path, Settings, list[ReferenceRow]]) -> None:
    _, _, rows = built
    facts = describe_fraud(Path(rows[1].path))
    assert facts["for"] == "fraud scores of the space input, reference 1"
    assert facts["signals"]["relation"] == "surprise"
    assert facts["signals"]["amount"] == "number"
    assert facts["parts"][0].startswith("forest: iforest: learned from")


def test_a_field_that_no_record_has_is_named(tmp_path: Path) -> None:
    _stream(tmp_path / "stream.jsonl", records=1000)
    settings = _settings(tmp_path, fields={"amount": "/amount", "total": "/total"}, scorers={}, relation=None)
    rows = from_source(settings, "cards", start_ms=None, end_ms=None, progress=lambda step, share: None)
    words = fraud_in_words(Path(rows[1].path))
    assert "no record has a number in total: check fraud.fields.total" in words
    assert "number in amount" not in words
