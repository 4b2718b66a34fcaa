"""`driftd demo`, as a user starts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.acceptance.command import ROOT, driftd


@pytest.mark.timeout(400)
def test_the_demo_reports_what_happened_and_is_the_same_every_time(tmp_path: Path) -> None:
    first = driftd("demo", "--json", "--output", "one", cwd=tmp_path, timeout=300)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    wrong = [fact for fact in result["facts"] if not fact["right"]]
    assert len(result["facts"]) >= 10
    assert not wrong
    html = (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    assert "http://" not in html.replace("http://www.w3.org/", "")
    assert len(html) < 3_000_000
    assert (tmp_path / "one" / "report.png").read_bytes().startswith(b"\x89PNG")

    replayed_is_what_was_told(tmp_path)

    # Which records are drawn by chance depends on where the stream lies, so the second one lies in the same place.
    (tmp_path / "one").rename(tmp_path / "first")
    second = driftd("demo", "--output", "one", cwd=tmp_path, timeout=300)
    assert second.returncode == 0, second.stderr
    table = second.stdout.splitlines()
    for line, fact in zip(table[1:], result["facts"], strict=False):
        assert fact["happened"] in line
        assert fact["reported"] in line
    assert (tmp_path / "first" / "notifications.jsonl").read_text() == (
        tmp_path / "one" / "notifications.jsonl"
    ).read_text()

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n".join(line.rstrip() for line in table[: len(result["facts"]) + 1]) in readme, "make the README say this"


def replayed_is_what_was_told(folder: Path) -> None:
    """`driftd replay` gives the incidents of the demo again, and holds them against what happened."""
    named = ("--settings", "one/driftd.yaml", "--json")
    stored = json.loads(driftd("incidents", *named, cwd=folder).stdout)
    done = driftd(
        "replay", *named, "--truth", "one/truth.csv", "--try", "incidents.min_duration=2m", cwd=folder, timeout=120
    )
    assert done.returncode == 0, done.stderr
    replayed = json.loads(done.stdout)
    now, held = replayed["settings"]
    assert [(row["id"], row["severity"], row["opened_ms"], row["resolved_ms"]) for row in now["incidents"]] == [
        (row["id"], row["severity"], row["opened_ms"], row["resolved_ms"])
        for row in sorted(stored, key=lambda row: (row["opened_ms"], row["id"]))
    ]
    told = (folder / "one" / "notifications.jsonl").read_text().splitlines()
    assert sorted(now["notifications"]) == sorted(json.loads(line)["id"] for line in told)
    assert (now["caught"], now["of"], now["false_pages"]) == (2, 2, 0)
    assert held["warnings"] < now["warnings"] and held["missed_s"] > now["missed_s"]


def test_the_demo_leaves_other_peoples_files_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = driftd("demo", "--output", "mine", cwd=tmp_path)
    assert done.returncode == 2
    assert "driftd demo --output" in done.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
