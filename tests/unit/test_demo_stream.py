"""The demo's data: the same each time, clean where it says so, and true to its own account of what happened."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from detectors.errors import InvalidInput
from monitor import demo_stream
from monitor.demo_stream import DAMAGES, DemoTruth, make_demo


def _small(directory: Path, *, seed: int = 7, baseline_records: int = 4_000) -> DemoTruth:
    return make_demo(
        directory,
        seed=seed,
        baseline_records=baseline_records,
        clean_blocks=20,
        drift_blocks=10,
        ramp_blocks=2,
        recovery_blocks=5,
        damaged_share=0.005,
    )


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> DemoTruth:
    return _small(tmp_path_factory.mktemp("demo"))


def _records(path: Path) -> list[dict[str, Any] | None]:
    def one(line: bytes) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = msgspec.json.decode(line)
        except msgspec.DecodeError:
            return None
        return record

    return [one(line) for line in path.read_bytes().splitlines()]


def _images(path: Path) -> np.ndarray[Any, Any]:
    raw = [base64.b64decode(record["pixels"]) for record in _records(path) if record and "pixels" in record]
    return np.array([np.frombuffer(pixels, np.uint8) for pixels in raw if len(pixels) == 64])


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(truth: DemoTruth, tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    again, other = _small(tmp_path / "again"), _small(tmp_path / "other", seed=8)
    for name in ("baseline", "stream"):
        assert digest(getattr(again, name)) == digest(getattr(truth, name))
        assert digest(getattr(other, name)) != digest(getattr(truth, name))


def test_a_longer_baseline_leaves_the_stream_as_it_is(truth: DemoTruth, tmp_path: Path) -> None:
    assert _small(tmp_path, baseline_records=5_000).stream.read_bytes() == truth.stream.read_bytes()


def test_every_block_of_event_time_holds_the_stated_number_of_records(truth: DemoTruth) -> None:
    step = truth.block_ms / truth.block_records
    times = np.array([record["ts"] for record in _records(truth.stream) if record])
    expected = truth.start_ms + (np.arange(truth.stream_records) * step).astype(np.int64)
    assert set(times) <= set(expected.tolist())
    blocks, counts = np.unique(expected // truth.block_ms, return_counts=True)
    assert set(counts) == {truth.block_records}
    assert truth.end_ms == (blocks[-1] + 1) * truth.block_ms
    assert truth.start_ms % truth.block_ms == 0


def test_the_lines_counted_are_the_lines_written(truth: DemoTruth) -> None:
    assert len(truth.baseline.read_bytes().splitlines()) == truth.baseline_records == 4_000
    assert len(truth.stream.read_bytes().splitlines()) == truth.stream_records == 35 * 256


def test_ids_are_unique_and_the_baseline_lies_before_the_stream(truth: DemoTruth) -> None:
    baseline = [record for record in _records(truth.baseline) if record]
    stream = [record for record in _records(truth.stream) if record]
    assert len({record["id"] for record in baseline + stream}) == len(baseline) + len(stream)
    assert max(record["ts"] for record in baseline) < truth.start_ms == min(record["ts"] for record in stream)


def test_probabilities_prediction_and_confidence_agree(truth: DemoTruth) -> None:
    records = [record for record in _records(truth.baseline) if record]
    probabilities = np.array([record["probabilities"] for record in records])
    assert probabilities.shape == (4_000, 8)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=5e-4)
    assert [record["confidence"] for record in records] == probabilities.max(axis=1).tolist()
    assert [record["prediction"] for record in records] == [str(best) for best in probabilities.argmax(axis=1)]


def test_the_reader_reads_digits_that_it_never_saw_and_no_unknown_one(truth: DemoTruth) -> None:
    clean, drifted = truth.accuracy
    assert 0.90 < clean < 1.0
    assert drifted == pytest.approx(clean * (1 - truth.unknown_digit.share), abs=0.03)


def test_people_type_a_tenth_of_the_baseline_and_a_fiftieth_of_the_stream(truth: DemoTruth) -> None:
    baseline = [record for record in _records(truth.baseline) if record]
    typed = [record for record in baseline if "typed" in record]
    assert len(typed) == pytest.approx(0.1 * len(baseline), rel=0.2)
    right = sum(record["typed"] == record["prediction"] for record in typed) / len(typed)
    assert right == pytest.approx(truth.accuracy[0], abs=0.04)
    by_id = {record["id"]: record for record in _records(truth.stream) if record}
    assert not any("typed" in record for record in by_id.values()), "what is true of the stream comes later"
    assert len(truth.typed) == pytest.approx(0.02 * len(by_id), rel=0.2)
    assert all(by_id[record]["ts"] == at_ms for record, at_ms, _ in truth.typed)
    said = [by_id[record]["prediction"] == digit for record, _, digit in truth.typed]
    assert 0.85 < sum(said) / len(said) < 1.0


def test_broken_lines_are_as_many_as_stated_and_of_the_stated_kinds(truth: DemoTruth) -> None:
    records = _records(truth.stream)
    found = {
        "line cut off": sum(record is None for record in records),
        "pixels missing": sum(record is not None and "pixels" not in record for record in records),
        "half of the pixels": sum(
            len(base64.b64decode(record.get("pixels", ""))) == 32 for record in records if record is not None
        ),
        "probability is null": sum(None in record["probabilities"] for record in records if record is not None),
    }
    assert found == truth.broken
    assert all(found.values())


def test_damaged_scans_are_listed_and_lie_outside_the_drift(truth: DemoTruth) -> None:
    by_id = {record["id"]: record for record in _records(truth.stream) if record}
    drift = truth.unknown_digit
    assert {scan.damage for scan in truth.damaged} == set(DAMAGES)
    assert len(truth.damaged) == round(0.005 * 25 * 256)
    for scan in truth.damaged:
        assert by_id[scan.id]["ts"] == scan.time_ms
        assert not drift.start_ms <= scan.time_ms < drift.end_ms


def test_the_clean_stretch_has_the_baseline_s_distribution_and_the_drift_has_not(truth: DemoTruth) -> None:
    baseline = _images(truth.baseline).astype(float)
    drift = truth.unknown_digit
    not_normal = {scan.id for scan in truth.damaged} | set(truth.forged) | set(truth.ring.forged)

    def shift(start_ms: int, end_ms: int) -> float:
        """Greatest z value among the 64 pixels' means, of the scans of one scanner that nobody spoilt or altered."""
        raw = [
            base64.b64decode(record["pixels"])
            for record in _records(truth.stream)
            if record and "pixels" in record and start_ms <= record["ts"] < end_ms
            if record["scanner"] == drift.scanner and record["id"] not in not_normal
        ]
        part = np.array([np.frombuffer(pixels, np.uint8) for pixels in raw if len(pixels) == 64]).astype(float)
        error = np.sqrt(part.var(axis=0) / len(part) + baseline.var(axis=0) / len(baseline))
        return float(np.abs((part.mean(axis=0) - baseline.mean(axis=0)) / error).max())

    assert shift(truth.start_ms, drift.start_ms) < 4.5  # the greatest of 64: 3.3 is usual
    assert shift(drift.full_ms, drift.end_ms) > 6.0
    assert shift(drift.end_ms, truth.end_ms) < 4.5


def test_no_scan_of_the_stream_repeats_one_of_the_baseline(truth: DemoTruth) -> None:
    baseline = {bytes(image) for image in _images(truth.baseline)}
    repeated = sum(bytes(image) in baseline for image in _images(truth.stream))
    assert repeated == 0


def test_the_unknown_digit_reaches_its_share_in_one_scanner_only(truth: DemoTruth) -> None:
    drift = truth.unknown_digit
    plateau = (drift.end_ms - drift.full_ms) // truth.block_ms * truth.block_records
    ramp = (drift.full_ms - drift.start_ms) // truth.block_ms * truth.block_records
    expected = drift.share * (plateau + ramp / 2)
    assert abs(drift.records - expected) < 4 * np.sqrt(expected)

    def confidence(scanner: str, *, in_drift: bool) -> float:
        return float(
            np.mean(
                [
                    record["confidence"]
                    for record in _records(truth.stream)
                    if record
                    and record["scanner"] == scanner
                    and (drift.full_ms <= record["ts"] < drift.end_ms) == in_drift
                ]
            )
        )

    others = next(scanner for scanner in demo_stream.SCANNERS if scanner != drift.scanner)
    assert confidence(drift.scanner, in_drift=True) < confidence(drift.scanner, in_drift=False) - 0.02
    assert abs(confidence(others, in_drift=True) - confidence(others, in_drift=False)) < 0.02


def test_a_share_beyond_one_scanner_s_traffic_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"share is 0\.6"):
        make_demo(tmp_path, share=0.6)
    with pytest.raises(InvalidInput, match="ramp_blocks is 50"):
        make_demo(tmp_path, ramp_blocks=50)


def test_altered_scans_are_as_many_as_stated_and_lie_where_it_says(truth: DemoTruth) -> None:
    by_id = {record["id"]: record for record in _records(truth.stream) if record}
    ring, (disputed_ms, cleared_ms, _) = truth.ring, truth.answers_ms
    assert (len(truth.forged), len(ring.forged)) == (8, 100)
    assert not {scan.id for scan in truth.damaged} & {*truth.forged, *ring.forged}
    assert all(truth.start_ms <= by_id[scan]["ts"] < disputed_ms for scan in truth.forged)
    for scan in ring.forged:
        assert ring.start_ms <= by_id[scan]["ts"] < ring.end_ms
        assert by_id[scan]["scanner"] == ring.scanner
    assert disputed_ms <= ring.start_ms < ring.end_ms <= truth.unknown_digit.start_ms
    assert truth.unknown_digit.full_ms < cleared_ms < truth.unknown_digit.end_ms
    assert all(time_ms % truth.block_ms == 0 for time_ms in truth.answers_ms)


def test_an_altered_scan_has_more_ink_and_the_reader_mistakes_many(truth: DemoTruth) -> None:
    by_id = {record["id"]: record for record in _records(truth.stream) if record}

    def ink(records: list[dict[str, Any]]) -> float:
        return float(np.mean([sum(base64.b64decode(record["pixels"])) for record in records]))

    altered = [by_id[scan] for scan in truth.ring.forged]
    ones = [record for record in _records(truth.baseline) if record and record["prediction"] == "1"]
    assert ink(altered) > 1.1 * ink(ones)
    assert sum(record["prediction"] == "4" for record in altered) >= 15
    assert sum(record["prediction"] == "1" for record in altered) < 80


def test_altered_scans_change_nothing_else_of_the_stream(truth: DemoTruth, tmp_path: Path) -> None:
    honest = make_demo(
        tmp_path,
        baseline_records=10,
        clean_blocks=20,
        drift_blocks=10,
        ramp_blocks=2,
        recovery_blocks=5,
        damaged_share=0.005,
        forged=0,
        ring=0,
    )
    lines = zip(honest.stream.read_bytes().splitlines(), truth.stream.read_bytes().splitlines(), strict=True)
    assert sum(ours != theirs for ours, theirs in lines) == 108


def test_more_altered_scans_than_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="5000 altered scans"):
        make_demo(tmp_path, baseline_records=10, clean_blocks=20, ring=5_000)
