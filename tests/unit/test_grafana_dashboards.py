"""The dashboards without a Grafana: the rules of dashboard-linter, the grid, the links, and fresh files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from dashboards.grafana import Dashboard, all_dashboards, sql
from dashboards.grafana.__main__ import DOCUMENT, FOLDER, files
from dashboards.grafana.dashboard import COLUMNS, TAG
from dashboards.grafana.documentation import documentation
from dashboards.grafana.outliers import BITS
from dashboards.grafana.panels import AnyPanel, Panel
from dashboards.grafana.targets import PromQL, Sql
from dashboards.grafana.verdicts import SEEN_KINDS

DASHBOARDS = {dashboard.uid: dashboard for dashboard in all_dashboards()}
PANELS = [(dashboard, panel) for dashboard in DASHBOARDS.values() for panel in dashboard.panels]
ASKING = [(dashboard, panel) for dashboard, panel in PANELS if isinstance(panel, Panel)]

# Ids of Grafana's units that every version since 9.2 knows, as far as they are used; si:TEXT is a unit of one's own.
UNITS = {"short", "none", "sci", "percentunit", "s", "bytes", "dateTimeAsIso"}

every_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)
every_panel = pytest.mark.parametrize(
    ("dashboard", "panel"), PANELS, ids=[f"{dashboard.uid}: {panel.title}" for dashboard, panel in PANELS]
)
every_asking_panel = pytest.mark.parametrize(
    ("dashboard", "panel"), ASKING, ids=[f"{dashboard.uid}: {panel.title}" for dashboard, panel in ASKING]
)


def test_the_committed_files_are_what_the_python_makes() -> None:
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert found == files(), "write them anew: python -m dashboards.grafana"
    written = DOCUMENT.read_text(encoding="utf-8")
    assert written == documentation(all_dashboards()), "write it anew: python -m dashboards.grafana"


def test_titles_and_uids_are_unique_and_prefixed() -> None:
    # Two files of one title in a folder stop Grafana from provisioning any of them.
    assert len({dashboard.title for dashboard in DASHBOARDS.values()}) == len(all_dashboards()) == len(DASHBOARDS)
    for uid in DASHBOARDS:
        assert re.fullmatch(r"driftd-[a-z]+", uid)
        assert len(uid) <= 40


@every_dashboard
def test_a_dashboard_imports_without_ids_of_its_own(dashboard: Dashboard) -> None:
    made = dashboard.to_json()
    assert made["id"] is None
    assert "version" not in made
    assert made["uid"] == dashboard.uid
    assert TAG in made["tags"]
    assert made["editable"] is False
    assert json.loads(json.dumps(made, allow_nan=False)) == made


@every_dashboard
def test_panels_do_not_overlap_and_fill_the_width(dashboard: Dashboard) -> None:
    taken: set[tuple[int, int]] = set()
    made = dashboard.to_json()["panels"]
    for panel in made:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert cells.isdisjoint(taken), panel["title"]
        assert place["x"] + place["w"] <= COLUMNS
        taken |= cells
    rows = Counter(y for _, y in taken)
    assert set(rows) == set(range(max(rows) + 1))
    assert all(width == COLUMNS for width in rows.values()), "a hole beside a panel"
    assert [panel["id"] for panel in made] == list(range(1, len(made) + 1))


@every_dashboard
def test_titles_of_panels_are_unique(dashboard: Dashboard) -> None:
    titles = [panel.title for panel in dashboard.panels] + [row.title for row in dashboard.rows]
    assert len(set(titles)) == len(titles)


@every_panel
def test_a_panel_says_what_it_answers_how_to_read_it_and_what_to_do_next(dashboard: Dashboard, panel: AnyPanel) -> None:
    assert re.fullmatch(r"[A-Z].{2,59}", panel.title)
    assert re.fullmatch(r"[A-Z].{8,80}\?", panel.question)
    assert re.fullmatch(r".{10,300}\.", panel.next_step)
    if isinstance(panel, Panel):
        assert re.fullmatch(r"\S.{20,400}\.", panel.reading)
    made = panel.to_json(1, 0, 0)
    assert panel.question in made["description"]
    assert "Next: " in made["description"]


@every_asking_panel
def test_a_panel_asks_by_variable_with_a_unit(dashboard: Dashboard, panel: Panel) -> None:
    made = panel.to_json(1, 0, 0)
    assert made["targets"]
    for target in made["targets"]:
        assert target["datasource"] == made["datasource"]
        assert target["datasource"]["uid"] in ("${postgres}", "${prometheus}")
    units = [made["fieldConfig"]["defaults"]["unit"], *(column.unit for column in panel.columns if column.unit)]
    for unit in units:
        assert unit in UNITS or re.fullmatch(r"si:[a-z]+(/s)?", unit), unit
    assert made["maxDataPoints"] == 1000  # $__interval_ms follows: a month is never a million points
    steps = panel.steps
    assert not steps or steps[0][0] is None
    assert [value for value, _ in steps[1:]] == sorted(value for value, _ in steps[1:] if value is not None)


@every_asking_panel
def test_sql_is_bounded_and_quotes_what_was_chosen(dashboard: Dashboard, panel: Panel) -> None:
    for target in panel.targets:
        if not isinstance(target, Sql):
            continue
        query = target.to_json("A")["rawSql"]
        for name, form in re.findall(r"\$\{(\w+)(:\w+)?\}", query):
            assert form == ":sqlstring", f"{name} is not quoted"
            assert name in {variable.name for variable in dashboard.variables}
        assert not re.search(r"\$(model|space|segment)\b", query)
        assert "${model:sqlstring}" in query
        if target.format == "time_series":
            assert re.search(r"\bAS time\b", query)
            assert re.search(r"\bORDER BY (time|1|2)\b", query), "Grafana joins series by ascending time"
            if panel.kind != "stat" or "extract(epoch FROM now())" not in query:
                assert "$__unixEpochFrom()" in query
                assert "$__interval_ms" in query, "a month must not be a million points"
        else:
            aggregates = re.search(r"\bAS time\b|GROUP BY|count\(|max\(", query)
            assert re.search(r"\bLIMIT \d+$", query) or (panel.kind == "stat" and aggregates)


@every_asking_panel
def test_promql_takes_rates_of_counters_over_the_rate_interval(dashboard: Dashboard, panel: Panel) -> None:
    for target in panel.targets:
        if not isinstance(target, PromQL):
            continue
        query = target.query
        for name in re.findall(r"\bdriftd_\w+", query):
            if name.endswith(("_total", "_bucket", "_count", "_sum")):
                assert re.search(rf"(rate|increase)\({name}(\{{[^}}]*\}})?\[\$__(rate_interval|range)\]\)", query), name
            else:
                assert not re.search(rf"(rate|increase)\({name}\b", query), name
        assert not re.findall(r"\[(?!\$__rate_interval\]|\$__range\])", query)
        for name in re.findall(r"\$(\w+)", query):
            assert name in {"__rate_interval", "__range", *(variable.name for variable in dashboard.variables)}
        for name in re.findall(r'(\w+)="\$', query):
            pytest.fail(f"{name} may have several values: use =~")


@every_dashboard
def test_variables_follow_the_time_and_are_used(dashboard: Dashboard) -> None:
    made = dashboard.to_json()
    text = json.dumps(made["panels"])
    names = [variable["name"] for variable in made["templating"]["list"]]
    assert names[:2] == ["postgres", "prometheus"]
    for variable in made["templating"]["list"]:
        if variable["type"] == "query":
            assert variable["refresh"] == 2
            assert f"${{{variable['name']}:sqlstring}}" in text or f"${variable['name']}" in text
        assert variable["label"]
        assert variable["description"]


def links(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("url"), str) and value["url"]:
            yield value["url"]
        for part in value.values():
            yield from links(part)
    elif isinstance(value, list):
        for part in value:
            yield from links(part)


@every_dashboard
def test_links_lead_to_dashboards_that_exist_and_keep_time_and_choices(dashboard: Dashboard) -> None:
    made = dashboard.to_json()
    (top,) = made["links"]
    assert top["keepTime"]
    assert top["includeVars"]
    assert top["tags"] == [TAG]
    for panel in made["panels"]:
        if panel["type"] == "row":
            continue
        for url in links(panel):
            target = url.partition("?")[0].removeprefix("/d/")
            columns = re.findall(r"\$\{__data\.fields\.(\w+)", url)
            asked = json.dumps(panel["targets"])
            if target.startswith("$"):
                named = set(re.findall(r"'(driftd-\w+)'", asked))
                assert len(named) > 1
                assert named <= set(DASHBOARDS)
            else:
                assert target in DASHBOARDS
            assert "${__url_time_range}" in url
            assert {"model"} <= set(columns)
            for column in columns:
                assert re.search(rf"\b{column}\b", asked), f"{panel['title']} has no column {column}"


def test_every_kind_of_incident_is_known_to_the_verdict() -> None:
    from monitor.incidents import KINDS
    from monitor.operations import BLIND, DEPLOYMENT

    assert sql.DEPLOYMENT == DEPLOYMENT
    assert set(KINDS) - BLIND - {"sink"} == set(SEEN_KINDS), "the watching itself is in trouble: that is blind"


def test_every_metric_that_is_asked_for_exists() -> None:
    from connectors.prometheus import Metrics
    from connectors.prometheus_workers import SupervisorMetrics

    specs = {spec.name: spec for spec in (*Metrics().specs, *SupervisorMetrics().specs)}
    for dashboard, panel in ASKING:
        for target in panel.targets:
            if not isinstance(target, PromQL):
                continue
            for name, labels in re.findall(r"\b(driftd_\w+)(\{[^}]*\})?", target.query):
                spec = specs.get(name) or specs.get(name.removesuffix("_bucket"))
                assert spec is not None, f"{dashboard.uid}: {panel.title}: {name}"
                assert set(re.findall(r"(\w+)=~", labels)) <= set(spec.labels), name


def test_the_surprise_classes_are_those_of_the_database() -> None:
    from monitor.block_stats import SURPRISE_BELOW

    assert tuple(2.0**-bits for bits in BITS) == SURPRISE_BELOW


def test_commands_that_the_texts_name_exist() -> None:
    from typer.main import get_command

    from monitor.cli import app

    named = set(re.findall(r"`driftd ([^`]+)`", documentation(all_dashboards())))
    named |= set(re.findall(r"'driftd (\w+) '", json.dumps([dashboard.to_json() for dashboard in DASHBOARDS.values()])))
    assert len(named) > 10
    for words in named:
        command: Any = get_command(app)
        for word in words.split():
            if word.startswith("-"):
                assert any(word in option.opts for option in command.params), words
            elif hasattr(command, "commands"):
                command = command.commands[word]
