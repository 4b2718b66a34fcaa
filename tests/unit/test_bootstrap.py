"""The baseline of a bootstrap, the settings it writes, and the whole command on files."""

from __future__ import annotations

import json
import re
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from connectors.database.store import Store
from connectors.records import Partition
from detectors.errors import DriftdError, InvalidInput, InvalidSettings
from monitor.bootstrap_baseline import PAGE_RECORDS, Baseline, choose_baseline
from monitor.bootstrap_look import Decoded
from monitor.bootstrap_settings import block_of, lateness_of, model_name_of, source_of
from monitor.cli import app
from monitor.settings import ModelSettings, load_settings

DAY_MS = 86_400_000
START_MS = 1_767_225_600_000
N = 4_000
TOPICS = 12
MODEL = ModelSettings.model_validate(
    {
        "source": {"kind": "files", "path": "x.jsonl"},
        "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v"}}},
    }
)


def centres() -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(7).normal(size=(TOPICS + 1, 16))


def sample(*, days: float = 14.0, changed: float | None = None, burst: float | None = None, seed: int = 0) -> Decoded:
    """A sample of a stream that changes on a day, or has 40 records that are alike within half an hour."""
    random = np.random.default_rng(seed)
    at = random.integers(0, round(days * DAY_MS), N)
    if burst is not None:
        at[:40] = round(burst * DAY_MS) + random.integers(0, 1_800_000, 40)
    at.sort()
    topics = random.integers(0, TOPICS, N)
    if changed is not None:
        topics[(at > changed * DAY_MS) & (random.random(N) < 0.4)] = TOPICS
    if burst is not None:
        first = int(np.searchsorted(at, round(burst * DAY_MS)))
        topics[first : first + 40] = TOPICS
    vectors = (centres()[topics] + random.normal(scale=0.3, size=(N, 16))).astype(np.float32)
    place = Partition("x", 0)
    ids = [f"r{row}" for row in range(N)]
    return Decoded(START_MS + at, np.arange(N), [place] * N, ids, {"input": vectors}, 0, {})


def chosen(*, records: int = 1_000_000, without: list[tuple[int, int]] | None = None, **options: Any) -> Baseline:
    return choose_baseline(
        sample(**options), MODEL, records=records, without=without or [], progress=lambda step, share: None
    )


def days_of(baseline: Baseline) -> tuple[float, float]:
    begin, end = ((time - START_MS) / DAY_MS for time in baseline.chosen)
    return begin, end


def test_a_quiet_history_gives_whole_days_and_leaves_its_newest_part_as_a_test() -> None:
    begin, end = days_of(chosen())
    assert end == pytest.approx(14 * 0.7, abs=0.1)
    assert end - begin == pytest.approx(9.0)


def test_the_newest_stretch_is_not_taken_where_it_has_changed() -> None:
    baseline = chosen(changed=11.0)
    assert baseline.change_times == [pytest.approx(START_MS + 11 * DAY_MS, abs=DAY_MS // 4)]
    assert days_of(baseline)[1] <= 11.2
    assert "not the newest" in baseline.reasons[0]


def test_after_an_old_change_the_newer_stretch_is_taken() -> None:
    baseline = chosen(changed=3.0)
    assert days_of(baseline)[0] >= 2.8


def test_a_page_is_worth_more_than_a_long_test() -> None:
    baseline = chosen(records=130_000)
    assert baseline.records >= PAGE_RECORDS
    assert days_of(baseline)[1] < 13.5


def test_the_baseline_moves_away_from_a_burst() -> None:
    baseline = chosen(burst=2.0)
    assert days_of(baseline)[0] >= 2.0
    assert any("came in bursts" in reason for reason in baseline.reasons)
    assert baseline.contamination["input"].bursts == ()


def test_a_burst_in_the_middle_of_little_is_told_and_can_be_left_out() -> None:
    baseline = chosen(burst=0.4, days=1.0, records=1_500)
    assert len(baseline.contamination["input"].bursts) == 1
    (burst,) = baseline.contamination["input"].bursts
    left = chosen(burst=0.4, days=1.0, records=1_500, without=[(burst.first_ms, burst.last_ms + 1)])
    assert left.contamination["input"].bursts == ()
    assert not left.holds(np.array([burst.first_ms]))[0]


def test_few_records_are_refused() -> None:
    with pytest.raises(InvalidInput, match="only 300 usable records"):
        chosen(records=300)


def test_a_source_is_a_topic_unless_it_looks_like_files() -> None:
    assert source_of("requests", "b:9092") == {"kind": "kafka", "brokers": "b:9092", "topic": "requests"}
    for place in ("data/*.parquet", "s3://bucket/x", "x.jsonl"):
        assert source_of(place, "b:9092") == {"kind": "files", "path": place}
    assert model_name_of("data/Card-Payments.jsonl") == "card_payments"
    assert model_name_of("2026.requests") == "model_2026_requests"


def test_blocks_hold_some_twenty_records_and_late_ones_are_waited_for() -> None:
    assert block_of(14 * 86_400 * 5, 14 * 86_400.0) == 10.0
    assert block_of(14 * 86_400 // 3, 14 * 86_400.0) == 60.0
    assert block_of(10, 14 * 86_400.0) == 3600.0
    assert lateness_of(4_000) == 30.0
    assert lateness_of(50_000) == 120.0


# --- the whole command ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else the command begins anew, with it set
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    return tmp_path


def lines(count: int = 3_000, *, days: float = 4.0) -> list[str]:
    random = np.random.default_rng(1)
    at = np.sort(random.integers(0, round(days * DAY_MS), count))
    vectors = centres()[random.integers(0, TOPICS, count)] + random.normal(scale=0.3, size=(count, 16))
    return [
        json.dumps({"id": f"r{row}", "ts": int(START_MS + at[row]), "v": vectors[row].round(4).tolist()})
        for row in range(count)
    ]


def bootstrap(*words: str) -> Result:
    return CliRunner().invoke(app, ["bootstrap", *words])


def test_one_command_makes_settings_a_reference_and_a_test(folder: Path) -> None:
    broken = ['{"id": "x", "ts": 17', "nonsense"]
    (folder / "requests.jsonl").write_text("\n".join([*broken, *lines()]) + "\n")
    result = bootstrap("--from", "./requests.jsonl", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    settings = load_settings(folder / "driftd.yaml")
    model = settings.models["requests"]
    assert model.record.id == "/id"
    assert "; unique" in (folder / "driftd.yaml").read_text()
    with Store.open(settings.database) as store:
        active = store.active_reference("requests", "v")
        assert active is not None
        assert Path(active.path).is_dir()
        assert active.records == found["baseline"]["records"]
        # What was looked at is over: driftd run begins behind it, and a backfill may count it.
        size = (folder / "requests.jsonl").stat().st_size
        (state,) = store.partition_states("requests")
        assert (state.from_offset, state.next_offset, state.records) == (size, size, 0)
        assert store.incidents() == []
    after = next(test for test in found["tests"] if test["where"] == "after")
    assert after["pages"] == {"7": 0, "30": 0, "90": 0, "365": 0}
    assert after["records"] > 500
    assert bootstrap("--from", "./requests.jsonl").exit_code != 0
    again = bootstrap("--settings", "driftd.yaml")
    assert isinstance(again.exception, InvalidInput)
    assert "has a reference already" in again.exception.message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "There are no records"),
        ("\n".join(lines(300)), "only 300 usable records"),
        ("\n".join([lines(300)[0]] * 2_000), "are equal"),
        ("\n".join(json.dumps({"v": [row % 7, row % 5] * 8}) for row in range(2_000)), "300 no_time|2000 no_time"),
    ],
    ids=["empty", "few", "equal", "timeless"],
)
def test_what_cannot_become_a_baseline_is_refused_and_leaves_nothing(folder: Path, content: str, said: str) -> None:
    (folder / "x.jsonl").write_text(content + "\n" if content else "")
    result = bootstrap("--from", "./x.jsonl")
    assert isinstance(result.exception, DriftdError), result.output

    assert re.search(said, result.exception.message), result.exception.message
    assert result.exception.hint
    assert not (folder / "driftd.yaml").exists()
    assert not (folder / "driftd.db").exists()


def test_nothing_is_written_over_and_options_that_make_no_sense_are_refused(folder: Path) -> None:
    (folder / "driftd.yaml").write_text("mine")
    for words, said in (
        (["--from", "x.jsonl"], "exists already"),
        ([], "Where are the records"),
        (["--from", "x", "--settings", "driftd.yaml"], "Where are the records"),
        (["--from", "x", "--output", "y.yaml", "--without", "2026-01-01"], "expected two times"),
        (["--from", "x", "--output", "y.yaml", "--without", "2026-01-02/2026-01-01"], "ends before it begins"),
        (["--from", "x", "--output", "y.yaml", "--registry", "nowhere"], "--registry"),
    ):
        result = bootstrap(*words)
        assert isinstance(result.exception, InvalidInput), (words, result.output)
        assert said in result.exception.message
    assert (folder / "driftd.yaml").read_text() == "mine"


def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_read(folder: Path) -> None:
    for output in ("nowhere/driftd.yaml", "."):
        result = bootstrap("--from", "./nothing.jsonl", "--output", output, "--force")
        assert isinstance(result.exception, InvalidSettings), result.output
        assert "cannot be written" in result.exception.message


def test_what_fails_at_the_last_step_leaves_no_reference_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "x.jsonl").write_text("\n".join(lines(2_000)) + "\n")
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "made"))
    (folder / "made").mkdir()

    def copied_in_part(place: str, target: Path, **options: object) -> None:
        (target / "vectors").write_bytes(b"some")
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(shutil, "copytree", copied_in_part)
    result = bootstrap("--from", "./x.jsonl")
    assert isinstance(result.exception, KeyboardInterrupt | SystemExit), result.output
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert left <= {"x.jsonl", "driftd.db"}
    with Store.open("sqlite:///driftd.db") as store:
        assert store.references("x", "v") == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_brokers_that_do_not_answer_are_an_error_with_a_hint(folder: Path) -> None:
    result = bootstrap("--from", "requests", "--brokers", "127.0.0.1:1")
    assert isinstance(result.exception, DriftdError)
    assert "127.0.0.1:1" in result.exception.message
    assert list(folder.iterdir()) == []
