"""`driftd backfill`, typed in a hurry: what is wrong is said, nothing counts twice, and dry runs write nothing."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from connectors.database.store import Store
from detectors.errors import DriftdError, InvalidInput
from monitor.cli import app
from tests.servers.grafana import Grafana

START_MS = 1_772_438_400_000
LINES = 12_000
STEP_MS = 100
ALL = ["--from", "2026-03-02T08:10:00Z"]


def lines(count: int, first: int, *, moved: tuple[int, int] = (0, 0)) -> str:
    vectors = np.random.default_rng(first).normal(size=(count, 6)).round(3)
    vectors[moved[0] : moved[1]] += 3.0
    return "".join(
        json.dumps({"id": f"r{row}", "ts": START_MS + STEP_MS * row, "v": vector}) + "\n"
        for row, vector in enumerate(vectors.tolist(), first)
    )


def write_settings(folder: Path, **more: Any) -> None:
    model = {
        "source": {"kind": "files", "path": "day*.jsonl"},
        "record": {"id": "/id", "time": {"path": "/ts", "unit": "ms"}},
        "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
        "reference": {"collect": 3_000},
        "drift": {"season": "none"},
    }
    settings = {"database": f"sqlite:///{folder / 'driftd.db'}", "models": {"orders": model}, **more}
    (folder / "driftd.yaml").write_text(yaml.safe_dump(settings))


def one_thread(patch: pytest.MonkeyPatch) -> None:
    """Else the command would start itself anew in place of this process."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        patch.setenv(name, "1")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with settings, a reference of the first 3,000 lines, and history that changes in the middle."""
    folder = tmp_path_factory.mktemp("built")
    write_settings(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        one_thread(patch)
        (folder / "day0.jsonl").write_text(lines(3_000, 0))
        assert CliRunner().invoke(app, ["reference", "build"]).exit_code == 0
        (folder / "day0.jsonl").unlink()
        (folder / "day1.jsonl").write_text(lines(LINES, 3_000, moved=(5_000, 8_000)))
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it; `nice` is for a process of its own, not for this one."""
    for name in ("day1.jsonl", "driftd.db"):
        (tmp_path / name).write_bytes((built / name).read_bytes())
    write_settings(tmp_path)
    (tmp_path / "references").symlink_to(built / "references")
    monkeypatch.chdir(tmp_path)
    one_thread(monkeypatch)
    monkeypatch.setattr(os, "nice", lambda increment: increment)
    return tmp_path


def backfill(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["backfill", *words])
    if isinstance(result.exception, DriftdError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def printed(*words: str) -> dict[str, Any]:
    return json.loads(backfill(*words, "--json").stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (["--from", "yesterday"], "yesterday", ""),
        (["--from", "2026-03-03", "--to", "2026-03-02"], "is not before", "--from OLD --to NEW"),
        (["--from", "2027-01-01"], "holds no record between these times", "driftd check"),
        (["--model", "payments"], "There is no model payments", "orders"),
        (["--reference", "input=1"], "--reference is for trials", "--into"),
        (["--into", "sqlite:///trial.db", "--reference", "input"], "names no version", "input=2"),
        (["--into", "sqlite:///trial.db", "--reference", "input=9"], "no reference version 9", "driftd reference list"),
        (["--into", "sqlite:///driftd.db"], "holds the live records", "--into sqlite:///trial.db"),
        (["--into", "sqlite:///./x/../driftd.db"], "", ""),
        (["--into", "mysql://x"], "", ""),
    ],
)
def test_what_is_wrong_is_said_with_what_to_type(words: list[str], said: str, hint: str, folder: Path) -> None:
    (folder / "x").mkdir()
    before = digest(folder / "driftd.db")
    with pytest.raises(DriftdError) as caught:
        backfill(*words)
    assert said in caught.value.message
    assert hint in (caught.value.hint or "")
    assert digest(folder / "driftd.db") == before


def test_without_a_reference_it_says_how_to_make_one(folder: Path) -> None:
    (folder / "driftd.db").unlink()
    with pytest.raises(InvalidInput, match="has no reference") as caught:
        backfill()
    assert "driftd reference build" in (caught.value.hint or "")


def digest(path: Path) -> str:
    """Of what a database holds, whatever its pages look like."""
    with closing(sqlite3.connect(path)) as connection:
        return hashlib.sha256("\n".join(connection.iterdump()).encode()).hexdigest()


def test_a_dry_run_writes_nothing_and_knows_how_many(folder: Path) -> None:
    before = digest(folder / "driftd.db")
    expected = printed("--dry-run")
    assert expected["records"] == pytest.approx(LINES, rel=0.05)
    assert expected["rate"] > 0
    printed("--dry-run", "--into", "sqlite:///trial.db")
    assert digest(folder / "driftd.db") == before
    assert not (folder / "trial.db").exists()
    assert printed()["records"] == LINES
    again = printed("--dry-run")
    assert (again["records"], again["backfills"]) == (0, 0)


def test_history_is_scored_once_listed_and_found_in_a_trial_too(folder: Path) -> None:
    first = printed(*ALL, "--to", "2026-03-02T08:20:00Z")
    assert 0 < first["records"] < LINES
    (folder / "day2.jsonl").write_text(lines(600, 3_000 + LINES))
    second = printed()
    assert first["records"] + second["records"] == LINES + 600
    incidents = {row["id"]: row["kind"] for row in first["incidents"] + second["incidents"]}
    assert list(incidents.values()) == ["drift"]
    assert printed()["records"] == 0
    listed = json.loads(backfill("--list", "--json").stdout)
    assert {row["status"] for row in listed} == {"done"}
    assert "begun" in backfill("--list").stdout
    trial = printed("--into", "sqlite:///trial.db")
    assert trial["records"] == LINES + 600
    assert {row["id"]: row["kind"] for row in trial["incidents"]} == incidents
    with Store.open(f"sqlite:///{folder / 'driftd.db'}") as store:
        (row,) = store.references("orders", "input")
        store.add_reference(replace(row, version=2))
    with pytest.raises(InvalidInput, match="holds a trial against version 1"):
        backfill("--into", "sqlite:///trial.db", "--reference", "input=2")


def test_many_small_files_are_history_too(folder: Path) -> None:
    (folder / "day1.jsonl").unlink()
    text = lines(2_000, 3_000).splitlines(keepends=True)
    for number in range(500):
        (folder / f"day{number:04d}.jsonl").write_text("".join(text[4 * number : 4 * number + 4]))
    expected = printed("--dry-run")
    assert expected["records"] == pytest.approx(2_000, rel=0.05)
    assert expected["rate"] > 0
    assert printed()["records"] == 2_000
    assert printed()["records"] == 0


def test_annotations_appear_at_their_own_time_once(folder: Path) -> None:
    with Grafana("11.6.5") as grafana:
        sink = {"kind": "grafana", "url": grafana.url, "token": grafana.token("Editor")}
        page = {"kind": "webhook", "url": "http://127.0.0.1:9/nobody-answers-here"}
        write_settings(folder, sinks={"shown": sink, "called": page})
        (found,) = printed()["incidents"]
        assert [one["time"] for one in grafana.annotations] == [found["onset_ms"]]
        assert printed("--from", "2026-03-02T08:00:00Z")["records"] == 0
        assert len(grafana.annotations) == 1
    with Store.open(f"sqlite:///{folder / 'driftd.db'}") as store:
        assert store.outbox_incidents("called", "pending") == [], "nobody is called because of the past"
        (row,) = store.incidents(model="orders")
        assert all(reading.start_ms < START_MS + STEP_MS * (LINES + 3_000) for reading in store.readings("orders"))
        assert row.status == "resolved"
