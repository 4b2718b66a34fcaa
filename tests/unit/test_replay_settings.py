"""Settings to be tried: how people name them, what a replay can answer of them, and what comes of them in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from connectors.database.rows import IncidentRow
from connectors.database.store import Store
from detectors.errors import InvalidInput, InvalidSettings
from monitor.cli import app
from monitor.replay_cli import mark_of, resolution_in_words
from monitor.replay_settings import needs_vectors, variants_of, without_effect
from monitor.settings import Settings, load_settings

MODEL: dict[str, Any] = {
    "source": {"kind": "kafka", "brokers": "localhost:1", "topic": "cards"},
    "record": {"id": "/id", "segments": {"country": "/country"}},
    "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
    "fraud": {"alerts": {"most": 20, "segments": {"country=de": 5}}},
}


def settings(**more: Any) -> Settings:
    return Settings.model_validate({"models": {"cards": MODEL}, **more})


def tried(text: str, before: Settings | None = None) -> Settings:
    return variants_of(before or settings(), "cards", [text], [])[1].settings


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    files = [tmp_path / folder / "x.yaml" for folder in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        file.write_text(yaml.safe_dump({"models": {"cards": MODEL}}))
    assert [one.name for one in variants_of(settings(), "cards", [], files)] == ["as now", "x.yaml", str(files[1])]


def test_the_first_variant_is_what_is_set_now() -> None:
    now = settings()
    (first, second) = variants_of(now, "cards", ["harm=low"], [])
    assert (first.name, first.settings) == ("as now", now)
    assert (second.name, second.settings.models["cards"].harm) == ("harm=low", "low")


def test_one_variant_may_change_several_keys_with_and_without_the_name_of_the_model() -> None:
    found = tried(
        "alarms.page_every_days=30, models.cards.drift.tolerance=.1, drift.channels={mix: false, shape: true}"
    )
    assert found.page_every_days == 30
    assert found.models["cards"].drift.tolerance == 0.1
    assert found.models["cards"].drift.channels == {"mix": False, "shape": True}
    assert found.models["cards"].record == settings().models["cards"].record


def test_the_budget_is_stated_in_one_place_also_when_it_is_tried() -> None:
    model = {**MODEL, "drift": {"page_every_days": 60}}
    before = settings(models={"cards": model})
    assert tried("alarms.page_every_days=30", before).page_every_days == 30
    assert tried("drift.page_every_days=30", settings(alarms={"page_every_days": 60})).page_every_days == 30


def test_the_environment_does_not_win_over_what_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTD_ALARMS__PAGE_EVERY_DAYS", "40")
    assert settings().page_every_days == 40
    assert tried("alarms.page_every_days=30").page_every_days == 30
    assert tried("harm=low").page_every_days == 40


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alarm.page_every_days=30", "Did you mean alarms?"),
        ("drift.tolerence=1", "models.cards.drift.tolerence: unknown key. Did you mean tolerance?"),
        ("drft.tolerance=1", "models.cards.drft: unknown key. Did you mean drift?"),
        ("drift.tolerance=-1", "models.cards.drift.tolerance: input should be greater than or equal to 0"),
        ("alarms.page_every_days=.1", "pages (0.1 days) must be rarer than warnings"),
    ],
)
def test_a_key_that_is_not_known_or_does_not_fit_is_named(text: str, said: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        tried(text)
    assert said in caught.value.problems[0]


@pytest.mark.parametrize("text", ["drift.tolerance", "=3", "harm: low"])
def test_what_changes_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="KEY=VALUE"):
        tried(text)


def test_a_file_without_the_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump({"models": {"triage": {**MODEL, "fraud": None}}}))
    with pytest.raises(InvalidInput, match=r"has no model cards; it has triage"):
        variants_of(settings(), "cards", [], [path])


@pytest.mark.parametrize(
    "text",
    [
        "alarms.page_every_days=30",
        "alarms.warn_every_days=3",
        "incidents.resolve_after=10m",
        "notify.repeat_interval=1h",
        "weight=2",
        "spaces.input.weight=2",
        "harm=low",
        "performance.floor=.9",
        "performance.tolerance=.05",
        "performance.window=10m",
        "performance.least=100",
        "performance.trained=2026-01-31T12:00:00Z",
        "performance.max_age=30d",
        "performance.scale=2",
        "drift.page_every_days=30",
        "drift.channels={mix: false}",
        "drift.segment_weights={country: 2}",
        "drift.tolerance=.2",
        "drift.second_opinions=[adwin]",
        "outliers.budget=.01",
        "outliers.tolerance=5",
        "fraud.alerts.most=3",
        "fraud.alerts.segments={country=de: 9}",
        "fraud.alerts.segments={}",
        "dead_letters.alert_ratio=.2",
    ],
)
def test_what_is_decided_when_blocks_are_folded_can_be_answered(text: str) -> None:
    before, after = settings(), tried(text)
    assert after != before
    assert needs_vectors(before, after, "cards") == []
    assert without_effect(before, after, "cards") == []


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("spaces.input.embedder.dimension=3", "models.cards.spaces.input.embedder.dimension"),
        ("record.key=/card", "models.cards.record.key"),
        ("reference.segments=3", "models.cards.reference.segments"),
        ("performance.calibration=x.csv", "models.cards.performance.calibration"),
        ("drift.block=20", "models.cards.drift.block"),
        ("drift.lateness=20", "models.cards.drift.lateness"),
        ("drift.season=none", "models.cards.drift.season"),
        ("outliers.alpha=.01", "models.cards.outliers.alpha"),
        ("fraud.alpha=.01", "models.cards.fraud.alpha"),
        ("fraud.alerts.segments={country=fr: 9}", "models.cards.fraud.alerts.segments.country=fr"),
    ],
)
def test_what_takes_the_records_is_named_with_the_reason_and_the_command(text: str, key: str) -> None:
    *said, command = needs_vectors(settings(), tried(text), "cards", period=("2026-01-01", "T"))
    assert any(line.startswith(f"{key}: ") for line in said)
    assert "driftd backfill --model cards --from 2026-01-01 --to T --into sqlite:///" in command


def test_keys_that_no_alarm_depends_on_are_told_apart() -> None:
    after = tried("notify.group_wait=1s, source.topic=other, alarms.page_every_days=30")
    assert needs_vectors(settings(), after, "cards") == []
    assert without_effect(settings(), after, "cards") == ["models.cards.source.topic", "notify.group_wait"]


# --- in words ---------------------------------------------------------------------------------------------------------


def test_the_resolution_is_said_from_the_newest_on() -> None:
    day = 86_400_000
    assert resolution_in_words([(0, day, 10.0)]) == "blocks of 10 seconds"
    assert resolution_in_words([(0, day, 640.0), (day, 2 * day, 80.0), (2 * day, 3 * day, 10.0)]) == (
        "blocks of 10 seconds since 1970-01-03 00:00:00Z, 80 seconds before, 11 minutes before that"
    )


def test_an_incident_is_the_same_new_gone_or_of_another_urgency() -> None:
    row = IncidentRow("a", "m", "drift", "", "", "page", "open", 1, 1, 1, None, 1, 1, "", "", {})
    warns = replace(row, severity="warn")
    assert mark_of(row, row) == "same" and mark_of(row, warns) == "lowered" and mark_of(warns, row) == "raised"
    assert mark_of(row, None) == "gone" and mark_of(None, row) == "new" and mark_of(None, None) == ""


def test_the_command_refuses_what_it_cannot_answer_and_says_where_nothing_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "driftd.yaml"
    path.write_text(yaml.safe_dump({"database": f"sqlite:///{tmp_path}/driftd.db", "models": {"cards": MODEL}}))
    with Store.open(load_settings(path).database) as store:
        store.migrate()

    def refused(*words: str) -> Exception:
        done = CliRunner().invoke(app, ["replay", "--settings", str(path), *words])
        assert isinstance(done.exception, Exception), done.output
        return done.exception

    needs = refused("--try", "drift.block=20")
    assert isinstance(needs, InvalidSettings) and "driftd backfill" in needs.problems[-1]
    assert "No summaries of cards are stored" in str(refused())
    assert "There is no model" in str(refused("--model", "triage"))
    assert "what really happened" in str(refused("--suggest"))
    assert "ends before it begins" in str(refused("--from", "2026-01-02", "--to", "2026-01-01"))
    assert "tried twice" in str(refused("--try", "harm=low", "--try", "harm=low"))
    other = tmp_path / "other.db"
    assert "There is no database" in str(refused("--database", f"sqlite:///{other}"))
    assert not other.exists()
