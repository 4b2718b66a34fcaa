"""`driftd mute`, and what `driftd incidents` says of mutes and acknowledgements."""

from __future__ import annotations

import getpass
import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from connectors.database.rows import FoldResult, IncidentRow, MuteRow
from connectors.database.store import Store
from detectors.errors import InvalidInput
from monitor.cli import app
from monitor.incident_list import alerted
from monitor.mute_cli import about, interval

NOW = 1_800_000_000_000
SETTINGS = """
database: sqlite:///{folder}/driftd.db
models:
  orders:
    source: {{kind: files, path: orders.jsonl}}
    record: {{segments: {{country: /c}}, prediction: /p}}
    spaces: {{input: {{embedder: {{kind: vector, field: /v}}}}}}
  tickets:
    source: {{kind: files, path: tickets.jsonl}}
    spaces: {{text: {{embedder: {{kind: vector, field: /v}}}}}}
"""


def incident(number: str, **more: Any) -> IncidentRow:
    values: dict[str, Any] = {
        "model": "orders",
        "kind": "drift",
        "space": "input",
        "segment": "",
        "severity": "page",
        "status": "open",
        "opened_ms": 5,
        "onset_ms": 3,
        "updated_ms": 5,
        "resolved_ms": None,
        "revision": 1,
        "reference": 1,
        "title": f"orders: input has drifted ({number})",
        "text": "The level moved.",
        "detail": {"strength": 7.5, "effect": 0.9, "severity_now": "page"},
    }
    return IncidentRow(id=number * 12, **(values | more))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings, and a database with an open page, and a resolved warning that came back twice."""
    (tmp_path / "driftd.yaml").write_text(SETTINGS.format(folder=tmp_path))
    over = incident("b", status="resolved", resolved_ms=9, severity="warn", detail={"flaps": 2})
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        with store.begin_fold("orders") as fold:
            fold.commit(FoldResult(1, [], [], [], [incident("a"), over], []))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Any:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refused(*words: str) -> str:
    error = CliRunner().invoke(app, list(words)).exception
    assert isinstance(error, InvalidInput), error
    return f"{error.message} {error.hint}"


def test_a_mute_is_made_listed_and_ended(folder: Path) -> None:
    before = int(time.time() * 1000)
    words = ("--model", "orders", "--kind", "drift", "--space", "input", "--for", "2h", "--reason", "the topic moves")
    made = run("mute", *words, "--by", "kari")
    assert "drift of orders, space input, from " in made.stderr
    assert "Open now, and told to nobody meanwhile: orders: input has drifted (a)" in made.stderr
    (row,) = json.loads(run("mute", "list", "--json").stdout)
    assert row["until_ms"] - row["from_ms"] == 7_200_000 and before <= row["from_ms"] <= time.time() * 1000
    assert (row["by"], row["reason"], row["segment"]) == ("kari", "the topic moves", "")
    listed = run("mute", "list").stdout
    assert "in force" in listed and row["id"] in listed and "drift of orders, space input" in listed
    assert f"Mute {row['id']} is over" in run("mute", "end", row["id"]).stdout
    assert "No mutes." in run("mute", "list").stderr
    assert "over" in run("mute", "list", "--all").stdout
    assert "is over already" in refused("mute", "end", row["id"])


def test_a_mute_of_a_segment_and_of_everything_and_who_made_it(folder: Path) -> None:
    run("mute", "--segment", "country=de", "--until", "2099-01-01", "--reason", "r")
    run("mute", "--segment", "prediction=yes", "--from", "2098-01-01", "--for", "1d", "--reason", "r")
    run("mute", "--all", "--for", "1m", "--reason", "r")
    run("mute", "--model", "driftd", "--kind", "sink", "--for", "1m", "--reason", "r")
    rows = json.loads(run("mute", "list", "--json").stdout)
    assert {row["segment"] for row in rows} == {"country=de", "prediction=yes", ""}
    assert {row["by"] for row in rows} == {getpass.getuser()}
    assert "to come" in run("mute", "list").stdout and "everything" in run("mute", "list").stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model", "order"], "no model order. Did you mean orders?"),
        (["--kind", "drfit"], "no kind drfit. Did you mean drift?"),
        (["--space", "inputs"], "no space inputs. Did you mean input?"),
        (["--model", "tickets", "--space", "input"], "no space input. There is: text."),
        (["--segment", "land=de"], "no segment field land. There is: country, prediction."),
        (["--model", "tickets", "--segment", "country=de"], "no segment field country. There is none at all."),
        (["--segment", "de"], "Expected field=value"),
        ([], "mute everything: --all"),
        (["--all", "--model", "orders"], "mute everything: --all"),
    ],
)
def test_a_name_that_is_nothing_is_refused_with_the_nearest(folder: Path, words: list[str], expected: str) -> None:
    assert expected in refused("mute", *words, "--for", "2h", "--reason", "r")
    assert json.loads(run("mute", "list", "--json").stdout) == []


def test_a_mute_needs_a_reason_and_a_word_after_it_is_a_command(folder: Path) -> None:
    assert "--reason" in refused("mute", "--all", "--for", "2h")
    assert "driftd mute list --help" in refused("mute", "--model", "orders", "list")


def test_from_when_until_when() -> None:
    day = 1_800_000_000_000 + 86_400_000
    assert interval(NOW, lasting="2h", start=None, end=None) == (NOW, NOW + 7_200_000)
    assert interval(NOW, lasting=None, start="2027-01-16T08:00:00Z", end="2027-01-16T09:00Z") == (day, day + 3_600_000)
    for words in (
        {"lasting": None, "start": None, "end": None},
        {"lasting": "2h", "start": None, "end": "2099-01-01"},
        {"lasting": "two hours", "start": None, "end": None},
        {"lasting": "0s", "start": None, "end": None},
        {"lasting": "1h", "start": "2001-01-01", "end": None},
        {"lasting": None, "start": "2099-01-02", "end": "2099-01-01"},
    ):
        with pytest.raises(InvalidInput):
            interval(NOW, **words)


def test_a_mute_in_words() -> None:
    row = MuteRow("0a", "", "", "", "country=de", 0, 1, "r", "kari", 0)
    assert about(row) == "everything, segment country=de"


def test_the_list_of_incidents_says_what_people_did(folder: Path) -> None:
    lines = run("incidents").stdout.splitlines()
    assert lines[0].split() == ["id", "status", "severity", "priority", "since", "resolved", "flaps", "what"]
    assert [line.split()[3] for line in lines[1:]] == ["P1", "P4"]
    said = run("incidents", "--ack", "aaa", "--by", "kari")
    assert "is acknowledged by kari" in said.stderr
    run("mute", "--model", "orders", "--for", "2h", "--reason", "the topic moves")
    header, first, second = run("incidents").stdout.splitlines()
    assert header.split()[-4:] == ["flaps", "acknowledged", "muted", "what"]
    assert "kari, " in first and "until 2" in first and "until" not in second and "kari" not in second
    shown = run("incidents", "aaaa").stdout
    assert "acknowledged kari, " in shown and ": the topic moves" in shown
    first, second = json.loads(run("incidents", "--json").stdout)
    assert (first["priority"], first["detail"]["acknowledged"]["by"]) == ("P1", "kari")
    assert first["muted"]["reason"] == "the topic moves" and second["muted"] is None
    assert second["detail"]["flaps"] == 2


def test_only_an_open_incident_that_is_there_can_be_acknowledged(folder: Path) -> None:
    assert "resolved already" in refused("incidents", "--ack", "bbb", "--by", "kari")
    assert "no incident" in refused("incidents", "--ack", "zzz")
    assert "--ack ID" in refused("incidents", "--by", "kari")


def test_rules_do_not_alert_on_what_must_last_before_it_is_told() -> None:
    held = incident("b", detail={"held": "opened", "held_until_ms": 9})
    assert alerted([incident("a"), held]) == [("drift", "page", 0.005)]
