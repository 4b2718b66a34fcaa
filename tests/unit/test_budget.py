"""The alarm budget: shares that add up to one, whatever is watched, and what the settings make of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.database.rows import Checkpoint, IncidentRow, ReferenceRow
from detectors.errors import InvalidInput
from detectors.fold import FoldState, Rule, fold
from detectors.reference import STANDARD, Reference
from detectors.segments import constants_of
from detectors.summary import summarise
from monitor.app import build_workers, open_store
from monitor.budget import (
    DAY_S,
    budget_so_far,
    call_incident,
    channels_in_use,
    fold_settings,
    fraud_share,
    observed,
    observed_by_model,
    run_length,
    segment_shares,
    shares,
    smallest_shift,
    threshold,
    together,
    why_only_warns,
)
from monitor.checks import Finding, budget_table, diagnose
from monitor.settings import Settings


def settings_of(models: dict[str, dict[str, Any]], **more: Any) -> Settings:
    """Settings with a source and, for each space, an embedder filled in."""
    filled = {
        name: {
            "source": {"kind": "files", "path": "x.jsonl"},
            **model,
            "spaces": {
                space: {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}, **entry}
                for space, entry in model.get("spaces", {"input": {}}).items()
            },
        }
        for name, model in models.items()
    }
    return Settings(models=filled, **more)


WEIGHT = st.sampled_from([0.001, 0.5, 1.0, 4.0, 1000.0])
NAMES = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True)


@st.composite
def deployments(draw: st.DrawFn) -> tuple[Settings, dict[tuple[str, str], list[str]]]:
    """Any models, spaces, segments, weights, muted channels and block lengths."""
    models: dict[str, dict[str, Any]] = {}
    segments: dict[tuple[str, str], list[str]] = {}
    for model in draw(NAMES):
        values = draw(st.lists(st.integers(0, 30), max_size=25, unique=True))
        names = [f"country={value}" for value in values]
        spaces = {space: {"weight": draw(WEIGHT)} for space in draw(NAMES)}
        weighted = draw(st.lists(st.sampled_from(["country", *names]), max_size=5, unique=True))
        muted = draw(st.sampled_from([{}, {"mix": False}, {"level": False, "shape": False}]))
        models[model] = {
            "weight": draw(WEIGHT),
            "spaces": spaces,
            "record": {"segments": {"country": "/country"}},
            "drift": {
                "block": draw(st.sampled_from([1.0, 10.0, 3600.0])),
                "segment_weights": {name: draw(WEIGHT) for name in weighted},
                "channels": muted,
            },
            **({"fraud": {"space": draw(st.sampled_from(sorted(spaces)))}} if draw(st.booleans()) else {}),
        }
        for space in spaces:
            if draw(st.booleans()):
                segments[model, space] = names
    return settings_of(models), segments


@given(deployments())
def test_the_shares_of_any_deployment_add_up_to_one(made: tuple[Settings, dict[tuple[str, str], list[str]]]) -> None:
    settings, segments = made
    found = shares(settings, segments)
    assert all(entry.share > 0 for entry in found)
    assert math.fsum(entry.share for entry in found) == pytest.approx(1.0, abs=1e-12)
    alarms = sum(
        1 + len(segments.get((model, space), ())) for model in settings.models for space in _spaces(settings, model)
    )
    waves = sum(model.fraud is not None for model in settings.models.values())
    assert len(found) == 4 * alarms + waves == len({(e.model, e.space, e.segment, e.channel) for e in found})


@given(deployments())
def test_the_thresholds_of_any_deployment_allow_one_false_page_in_the_stated_days(
    made: tuple[Settings, dict[tuple[str, str], list[str]]],
) -> None:
    settings, segments = made
    per_day = []
    for entry in shares(settings, segments):
        if entry.muted:
            continue
        block = settings.models[entry.model].drift.block
        # Strength s comes by chance once in 10^s blocks.
        blocks = 10.0 ** threshold(settings.page_every_days, block, entry.share)
        per_day.append(DAY_S / block / blocks)
    assert math.fsum(per_day) <= 1.0 / settings.page_every_days * (1 + 1e-9)


def _spaces(settings: Settings, model: str) -> list[str]:
    return list(settings.models[model].spaces)


def test_without_weights_every_space_and_every_segment_get_the_same() -> None:
    settings = settings_of({"a": {"spaces": {"input": {}, "output": {}}}, "b": {}})
    found = segment_shares(settings, "a", "input", ["s=x", "s=y"])
    assert found == pytest.approx({"": 1 / 6, "s=x": 1 / 12, "s=y": 1 / 12})
    assert segment_shares(settings, "b", "input", []) == pytest.approx({"": 1 / 3})


def test_weights_steer_models_spaces_fields_and_values() -> None:
    settings = settings_of(
        {
            "a": {
                "weight": 3,
                "spaces": {"input": {"weight": 4}, "output": {}},
                "record": {"segments": {"country": "/c", "shop": "/s"}},
                "drift": {"segment_weights": {"country": 2, "country=de": 6}},
            },
            "b": {},
        }
    )
    assert segment_shares(settings, "b", "input", []) == pytest.approx({"": 1 / 16})
    found = segment_shares(settings, "a", "input", ["country=de", "country=fr", "shop=1"])
    assert sum(found.values()) == pytest.approx(12 / 16)
    assert found["country=de"] == pytest.approx(3 * found["country=fr"]) == pytest.approx(6 * found["shop=1"])


def test_a_segment_gets_nothing_of_one_that_is_muted_or_silent() -> None:
    plain = settings_of({"a": {}, "b": {}})
    muted = settings_of({"a": {"drift": {"channels": {"mix": False}}}, "b": {}})
    assert [entry.share for entry in shares(plain, {})] == [entry.share for entry in shares(muted, {})]
    assert [entry.channel for entry in shares(muted, {}) if entry.muted] == ["mix"]
    assert channels_in_use(muted.models["a"]) == ("level", "shape")


def test_waves_of_fraud_take_a_tenth_of_the_space_that_is_scored_and_nothing_of_any_other() -> None:
    spaces: dict[str, Any] = {"spaces": {"input": {}, "output": {}}}
    plain = settings_of({"a": spaces, "b": {}})
    scored = settings_of({"a": {**spaces, "fraud": {"space": "output"}}, "b": {}})
    assert fraud_share(plain, "a") == 0
    assert fraud_share(scored, "a") == pytest.approx(1 / 30)
    assert segment_shares(scored, "a", "output", []) == pytest.approx({"": 0.9 / 3})
    for model, space in (("a", "input"), ("b", "input")):
        assert segment_shares(scored, model, space, []) == segment_shares(plain, model, space, [])
    waves = [entry for entry in shares(scored, {}) if entry.channel == "fraud_wave"]
    assert [(entry.model, entry.space, entry.share) for entry in waves] == [("a", "fraud", pytest.approx(1 / 30))]


def test_a_larger_share_alarms_earlier_and_the_run_length_is_in_days() -> None:
    assert run_length(90.0, 10.0) == 90 * 8640
    assert threshold(90.0, 10.0, 1.0) == pytest.approx(math.log10(777_600))
    assert threshold(90.0, 10.0, 0.1) == pytest.approx(threshold(90.0, 10.0, 1.0) + 1)


def test_the_budget_is_one_number_wherever_it_is_stated() -> None:
    assert settings_of({"a": {}, "b": {}}).page_every_days == 90.0
    assert settings_of({"a": {}, "b": {}}, alarms={"page_every_days": 30}).page_every_days == 30.0
    assert settings_of({"a": {"drift": {"page_every_days": 7}}, "b": {}}).page_every_days == 7.0
    assert (
        settings_of({"a": {"drift": {"warn_every_days": 0.5}}}, alarms={"warn_every_days": 0.5}).warn_every_days == 0.5
    )
    with pytest.raises(ValueError, match="one number for the whole deployment"):
        settings_of({"a": {"drift": {"page_every_days": 7}}, "b": {}}, alarms={"page_every_days": 30})


# --- what driftd doctor says of it ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> Reference:
    chance = np.random.default_rng(3)
    vectors = chance.normal(size=(20_000, 4)).astype(np.float32)
    shops = chance.choice(["a", "b", "c"], size=20_000).tolist()
    return Reference.build(vectors, geometry=STANDARD, segments={"shop": ["a", "b"]}, segment_values={"shop": shops})


def watched(folder: Path, reference: Reference, **drift: Any) -> Settings:
    """A deployment of two models, the first of which has a reference already."""
    settings = settings_of(
        {"orders": {"record": {"segments": {"shop": "/shop"}}, "drift": drift}, "returns": {}},
        database=f"sqlite:///{folder / 'driftd.db'}",
        references=folder / "references",
    )
    path = folder / "references" / "orders" / "input" / "1"
    row = ReferenceRow("orders", "input", 1, str(path), reference.n_records, 4, reference.save(path), 0, active=True)
    with open_store(settings) as store:
        store.commit(Checkpoint("orders", [], references=[row]))
    return settings


def budget_of(settings: Settings) -> Finding:
    (found,) = [finding for finding in diagnose(settings) if finding.name == "alarm budget"]
    return found


def test_the_doctor_shows_every_share_and_what_follows_from_it(tmp_path: Path, reference: Reference) -> None:
    found = budget_of(watched(tmp_path, reference, channels={"mix": False}, segment_weights={"shop=a": 3, "shop=z": 9}))
    assert "one false page in 90 days" in found.detail and "9% of that is left unused" in found.detail
    assert math.fsum(alarm.share for alarm in found.alarms) == pytest.approx(1.0)
    assert {alarm.may_page for alarm in found.alarms if alarm.model == "orders"} == {False}
    assert {alarm.may_page for alarm in found.alarms if alarm.model == "returns"} == {None}
    assert "orders: no alarm of its own, so a weight in vain: shop=z" in found.detail
    columns, rows = budget_table(found.alarms)
    assert [row[:3] for row in rows] == [
        ["orders", "input", "all records"],
        ["orders", "input", "shop=a"],
        ["orders", "input", "shop=b"],
        ["orders", "input", "shop=(other)"],
        ["returns", "input", "all records"],
    ]
    by_name = [dict(zip(columns, row, strict=True)) for row in rows]
    assert by_name[0]["share"] == "0.2500" and by_name[1]["share"] == "0.1500" and by_name[4]["share"] == "0.5000"
    assert by_name[0]["mix"] == "muted" and by_name[4]["mix"] != "muted"
    assert by_name[0]["finds in 1,000"].endswith("sigma") and by_name[4]["finds in 1,000"] == "-"
    assert float(by_name[0]["pages at"]) < float(by_name[1]["pages at"]) < float(by_name[2]["pages at"])


def test_the_thresholds_that_the_doctor_shows_are_those_of_the_readings(tmp_path: Path, reference: Reference) -> None:
    settings = watched(tmp_path, reference)
    shown = [alarm for alarm in budget_of(settings).alarms if alarm.segment == "shop=a" and alarm.channel == "level"]
    share = segment_shares(settings, "orders", "input", ["shop=a", "shop=b", "shop=(other)"])["shop=a"]
    rule = Rule(constants_of(reference.drift, "shop=a"), fold_settings(settings, "orders", share * 0.9))
    assert shown[0].pages_at == pytest.approx(rule.settings.page_threshold)
    assert shown[0].warns_at == pytest.approx(rule.settings.warn_threshold)


def test_the_smallest_shift_is_the_one_that_pages_on_average(reference: Reference) -> None:
    settings = settings_of({"a": {}})
    rule = Rule(constants_of(reference.drift, ""), fold_settings(settings, "a", 0.9))
    sigmas = smallest_shift(rule, 1000)
    assert sigmas is not None and smallest_shift(rule, 4000) < sigmas  # type: ignore[operator]
    assert smallest_shift(rule, 100) is None and smallest_shift(rule, 1_000_000) is None
    strengths = []
    for factor in (0.5, 1.0, 2.0):
        chance = np.random.default_rng(11)
        found = []
        for _ in range(20):
            x = chance.normal(size=(1000, 4)).astype(np.float32)
            x[:, 0] += factor * sigmas * math.sqrt(1.3)  # whitened by the root of 1 + .3
            (summary,) = summarise(np.zeros(1000, np.int64), reference.score(x)).values()
            (level, *_) = fold(FoldState.start(rule), summary, rule)[1]
            found.append(level.strength)
        strengths.append(float(np.mean(found)))
    assert (
        strengths[0] < rule.settings.page_threshold - 2 < strengths[1] < rule.settings.page_threshold + 2 < strengths[2]
    )


# --- what came of the budget ------------------------------------------------------------------------------------------

DAY_MS = round(DAY_S * 1000)


def page(number: int, day: float, **changes: Any) -> IncidentRow:
    """A page at a day of event time."""
    at = round(day * DAY_MS)
    values: dict[str, Any] = {
        "model": "orders",
        "kind": "drift",
        "space": "input",
        "segment": "",
        "severity": "page",
        "status": "resolved",
        "opened_ms": at,
        "onset_ms": at,
        "updated_ms": at,
        "resolved_ms": at,
        "revision": 1,
        "reference": 1,
        "title": "",
        "text": "",
        "detail": {"paged_ms": at},
    }
    return IncidentRow(id=f"i{number}", **(values | changes))


def test_pages_of_the_window_are_counted_beside_the_expected() -> None:
    rows = [
        page(0, 5.0),
        page(1, 20.0, detail={"paged_ms": 20 * DAY_MS, "verdict": "false"}),
        page(2, 21.0, severity="warn"),
        page(3, 22.0, kind="dead_letters"),
    ]
    seen = observed(rows, judged_ms=(0, 31 * DAY_MS), window_days=90.0)
    assert (seen.days, seen.pages, seen.called_false) == (31.0, 2, 1)
    assert seen.pages_per_day == pytest.approx(2 / 31) and seen.false_per_day == pytest.approx(1 / 31)
    said = budget_so_far(settings_of({"a": {}}), seen)
    assert said == "expected at most 1 false page in 90 days; 2 pages in 31 days, 1 called false"


def test_pages_before_the_window_are_forgotten_and_nothing_judged_is_no_rate() -> None:
    rows = [page(0, 5.0), page(1, 99.0)]
    seen = observed(rows, judged_ms=(0, 100 * DAY_MS), window_days=90.0)
    assert (seen.days, seen.pages, seen.called_false) == (90.0, 1, 0)
    nothing = observed([], judged_ms=None, window_days=90.0)
    assert (nothing.pages_per_day, nothing.false_per_day) == (0.0, 0.0)
    assert together([seen, nothing]) == seen


def test_a_baseline_says_why_it_may_not_page(reference: Reference) -> None:
    whole = dict(constants_of(reference.drift, ""))
    assert why_only_warns(whole) == (
        f"it holds 20,000 records, {reference.n_calibration:,} of them for calibration; a page needs 50,000, which a "
        "baseline of 110,000 records would give"
    )
    moments = np.array(whole["level_moments"])
    moments[7] = 200_000
    large = whole | {"level_moments": moments, "calibration": np.array([100_000.0, 100_000.0])}
    assert why_only_warns(large) == ""
    said = why_only_warns(large | {"calibration": np.array([100_000.0, 8_000.0])})
    assert "worth only 200,000 and 8,000 independent ones" in said and "a page needs 10,000" in said
    inflated = np.array(whole["level_inflation"]).copy()
    inflated[1, -1] = 25.0
    assert "worth only 8,000 and" in why_only_warns(large | {"level_inflation": inflated})


def test_a_small_baseline_warns_from_end_to_end_and_says_why(tmp_path: Path) -> None:
    chance = np.random.default_rng(4)
    vectors = chance.normal(size=(9_000, 4))
    vectors[6_000:, 0] += 2.0
    start_ms = 1_772_438_400_000
    with (tmp_path / "stream.jsonl").open("w") as file:
        for row, vector in enumerate(vectors.round(3).tolist()):
            file.write(json.dumps({"id": str(row), "ts": start_ms + 40 * row, "v": vector}) + "\n")
    settings = settings_of(
        {
            "orders": {
                "source": {"kind": "files", "path": str(tmp_path / "stream.jsonl")},
                "record": {"id": "/id", "time": "/ts"},
                "reference": {"collect": 4_000},
            }
        },
        database=f"sqlite:///{tmp_path / 'driftd.db'}",
        references=tmp_path / "references",
    )
    with open_store(settings) as store:
        (worker,) = build_workers(settings, store)
        worker.start()
        clock = 0.0
        while not worker.step(start_ms + 10_000_000, clock).finished:
            clock += 1.0
        worker.close_blocks_at_end(start_ms)
        worker.source.close()
        assert worker.cautions and "pages of input turn into warnings: it holds 4,000 records" in worker.cautions[0]
        readings = store.readings("orders")
        assert any(row.strength > row.threshold and row.warn for row in readings)
        assert not any(row.page for row in readings)
        rows = store.incidents(model="orders")
        assert rows and {row.severity for row in rows} == {"warn"}
        assert all("This alarm may only warn, because its baseline is small" in row.text for row in rows)
        assert observed_by_model(settings, store)["orders"].pages == 0
        assert call_incident(store, rows[0].id[:8], false=True) == rows[0].id
        with pytest.raises(InvalidInput, match="no incident whose id begins with zz"):
            call_incident(store, "zz", false=True)
    found = {finding.name: finding.detail for finding in diagnose(settings)}
    assert "pages turn into warnings: it holds 4,000 records" in found["model orders, reference input"]
    assert "expected at most 1 false page in 90 days; 0 pages in 0.00" in found["alarms so far"]
