"""How often the model was right in the baseline: what records say of it, and what a file does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detectors.errors import InvalidInput, InvalidSettings
from detectors.performance import ConfidenceCalibration
from detectors.reference import Reference
from monitor.calibration import read_calibration
from monitor.checks import check_everything
from monitor.references import from_source
from monitor.settings import Settings


def settings_of(folder: Path, *, record: dict[str, Any], **performance: Any) -> Settings:
    """Settings of a model with two spaces, and 1,000 records: of four in five the answer is right."""
    chance = np.random.default_rng(0)
    with (folder / "records.jsonl").open("w") as file:
        for n, vector in enumerate(chance.normal(size=(1_000, 6)).round(3).tolist()):
            said = {"answer": "3", "truth": 3.4 if n % 5 else "none", "sure": 0.9}
            if performance.get("scale") is None:
                said["truth"] = "dog" if n % 5 == 0 else 3
            if n % 10 == 9:
                del said["truth"]  # of some, nobody knows
            file.write(json.dumps({"v": vector, "ts": 1_000 * n, **said}) + "\n")
    spaces = {name: {"embedder": {"kind": "vector", "field": "/v"}} for name in ("input", "output")}
    model = {
        "source": {"kind": "files", "path": f"{folder}/records.jsonl"},
        "record": {
            "time": {"path": "/ts", "unit": "ms"},
            "max_past_days": 100_000,
            "prediction": "/answer",
            "label": "/truth",
            **record,
        },
        "spaces": spaces,
        "reference": {"collect": 1_000},
        "performance": performance,
    }
    return Settings.model_validate(
        {"database": f"sqlite:///{folder}/d.db", "references": f"{folder}/refs", "models": {"m": model}}
    )


def built(settings: Settings) -> list[ConfidenceCalibration | None]:
    """The calibration of each space's reference."""
    rows = from_source(settings, None, start_ms=None, end_ms=None, progress=lambda step, share: None)
    return [ConfidenceCalibration.from_arrays(Reference.load(Path(row.path)).performance) for row in rows]


def test_records_of_the_baseline_that_say_what_is_true_calibrate_every_space(tmp_path: Path) -> None:
    first, second = built(settings_of(tmp_path, record={"confidence": "/sure"}))
    assert first is not None and second is not None
    assert (first.n, first.accuracy) == (second.n, second.accuracy) == (900, pytest.approx(700 / 900))
    assert first.counts[45] == 900


def test_without_a_confidence_the_share_of_right_answers_is_known_all_the_same(tmp_path: Path) -> None:
    first, _ = built(settings_of(tmp_path, record={}))
    assert first is not None and first.accuracy == pytest.approx(700 / 900)


def test_answers_that_are_numbers_are_as_right_as_they_are_near(tmp_path: Path) -> None:
    first, _ = built(settings_of(tmp_path, record={"confidence": "/sure"}, scale=2.0))
    # .4 off on a scale of 2; what is no number is not counted.
    assert first is not None and (first.n, first.accuracy) == (700, pytest.approx(0.8))


def test_a_file_takes_the_place_of_what_records_say(tmp_path: Path) -> None:
    path = tmp_path / "held_out.csv"
    path.write_text("confidence,correct\n0.9,1\n0.9,true\n0.7,0\n0.1,false\n")
    settings = settings_of(tmp_path, record={"confidence": "/sure"}, calibration=str(path))
    assert [None if one is None else (one.n, one.accuracy) for one in built(settings)] == [(4, 0.5)] * 2
    said = {finding.name: finding for finding in check_everything(settings)}["model m, calibration"]
    assert said.ok and said.detail == "4 records, of which 50.0% were answered rightly"


def test_a_file_may_say_answers_and_weights_in_every_format(tmp_path: Path) -> None:
    rows = [
        {"confidence": 0.9, "prediction": "1", "label": 1, "weight": 3.0},
        {"confidence": 0.2, "prediction": "true", "label": True, "weight": 1.0},
        {"confidence": 0.2, "prediction": "a", "label": "b", "weight": 1.0},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.csv").write_text(
        "confidence;prediction;label;weight\n"
        + "".join(f"{r['confidence']};{r['prediction']};{str(r['label']).lower()};{r['weight']}\n" for r in rows)
    )
    columns = {name: [str(row[name]).lower() if name == "label" else row[name] for row in rows] for name in rows[0]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = [
        read_calibration(tmp_path / f"a.{kind}", scale=None, confidence=True) for kind in ("jsonl", "csv", "parquet")
    ]
    assert {(one.n, round(one.accuracy, 6)) for one in found} == {(found[0].n, round(found[0].accuracy, 6))}
    # Three, one and one in the scale of evenly drawn records: four fifths are right.
    assert found[0].accuracy == pytest.approx(0.8, abs=0.1)
    plain = read_calibration(tmp_path / "a.jsonl", scale=None, confidence=False)
    assert np.flatnonzero(plain.counts).tolist() == [49]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("confidence,correct\n", "holds no record"),
        ("confidence,correct\n0.5,maybe\n", "Line 2 .* correct is 'maybe'"),
        ("confidence,correct\n1.5,1\n", "Line 2 .* confidence is '1.5'"),
        ("confidence,correct,weight\n0.5,1,0\n", "weight is '0'"),
        ("confidence,prediction\n0.5,a\n", "neither correct, nor prediction and label"),
        ("correct\n1\n", "expected confidence among them"),
        ('{"confidence": 0.5, "correct": 1}\nnonsense\n', "Line 2 .* Not JSON"),
        ('{"confidence": 0.5, "correct": 1}\n3\n', "Line 2 .* no object"),
    ],
)
def test_a_file_that_is_none_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "held_out.csv" if "," in text.split("\n")[0] and "{" not in text else tmp_path / "held_out"
    if text.startswith("correct"):
        path = tmp_path / "held_out.csv"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=problem) as caught:
        read_calibration(path, scale=None, confidence=True)
    assert "txn" not in caught.value.hint


def test_a_file_that_is_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="cannot be read"):
        read_calibration(tmp_path / "gone.csv", scale=None, confidence=True)
