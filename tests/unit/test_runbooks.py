"""docs/runbooks.md: a section for every rule and every kind of incident, commands and panels that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from connectors.alert import RUNBOOKS, alert_name
from connectors.notification import Notification
from connectors.prometheus import Metrics
from connectors.prometheus_workers import SupervisorMetrics
from dashboards.grafana import all_dashboards
from dashboards.rules import BLIND_KINDS, RULES
from monitor.app import build_sinks
from monitor.cli import app
from monitor.operations_wording import KINDS
from monitor.settings import Settings
from tests.servers.receiver import Receiver

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / RUNBOOKS).read_text()
ANCHORS = {
    *(heading.strip().lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)),
    *re.findall(r'<a id="([a-z-]+)"></a>', TEXT),
}

NOTE = Notification(
    id="note-1",
    incident="abc123",
    group_key="m/drift/input/",
    status="firing",
    severity="page",
    model="m",
    kind="drift",
    space="input",
    segment="",
    title="m: its records have changed",
    text="Next: driftd explain abc123",
    starts_ms=1_700_000_000_000,
    ends_ms=None,
    values={},
)


def test_every_rule_leads_to_a_section() -> None:
    for rule in RULES:
        page, _, anchor = rule.runbook_url().partition("#")
        assert page == "docs/runbooks.md" and anchor in ANCHORS, rule.name


@pytest.mark.parametrize("kind", sorted({*KINDS, "drift", "outlier_rate", "dead_letters"}))
def test_every_kind_of_incident_has_a_section_named_like_its_alert(kind: str) -> None:
    assert alert_name(kind).lower() in ANCHORS
    assert f"`{kind}`" in TEXT


def test_every_section_says_what_it_means_where_to_look_what_to_do_and_when_to_mute() -> None:
    sections = re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]
    assert len(sections) > 20
    for section in sections:
        title = section.partition("\n")[0]
        wanted = (
            {"**Look first**", "**Mute**"} if title == "MonitorBlind" else {"**Means**", "**Look first**", "**Do**"}
        )
        assert all(word in section for word in {*wanted, "**Mute**"}), title


def test_every_reason_to_be_blind_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    (rule,) = [rule for rule in RULES if rule.name == "MonitorBlind"]
    literal = re.findall(r'"reason", "(\w+)"', rule.query)
    assert set(rows) == {*literal, *BLIND_KINDS}


def test_links_within_the_page_and_to_other_pages_lead_somewhere() -> None:
    for page, anchor in re.findall(r"\]\(([\w.]*)(?:#([\w-]+))?\)", TEXT):
        if not page:
            assert anchor in ANCHORS, anchor
            continue
        other = (ROOT / "docs" / page).read_text()
        headings = {line.strip("# ").lower().replace(" ", "-") for line in other.splitlines() if line.startswith("#")}
        assert not anchor or anchor in headings, f"{page}#{anchor}"


def test_the_commands_that_it_names_are_there() -> None:
    import typer

    commands = typer.main.get_command(app)
    found = re.findall(r"`(driftd [a-z][^`]*)`", TEXT)
    assert len(found) > 15
    for line in found:
        command, words = commands, line.split()[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert command is not commands, line
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_the_panels_and_metrics_that_it_names_are_there() -> None:
    titles = {panel["title"] for dashboard in all_dashboards() for panel in dashboard.to_json()["panels"]}
    named = re.findall(r"Dashboard\s+\*[\w ]+\*,?:?\s+((?:\"[^\"]+\"(?:, )?)+)", TEXT, re.IGNORECASE)
    panels = [" ".join(title.split()) for group in named for title in re.findall(r'"([^"]+)"', group)]
    assert len(panels) >= 12
    for panel in panels:
        assert any(title == panel or title.startswith(f"{panel}:") for title in titles), panel
    metrics = {spec.name for spec in [*Metrics().specs, *SupervisorMetrics().specs]}
    assert set(re.findall(r"`(driftd_\w+)`", TEXT)) <= metrics


def test_alerts_link_to_the_page_where_the_settings_say_that_people_read_it(tmp_path: Path) -> None:
    page = "https://docs.example.org/driftd/runbooks"
    with Receiver() as receiver:
        given = {
            "models": {
                "m": {
                    "source": {"kind": "files", "path": str(tmp_path)},
                    "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v"}}},
                }
            },
            "sinks": {
                "hook": {"kind": "webhook", "url": receiver.url},
                "cluster": {"kind": "alertmanager", "urls": [receiver.url]},
            },
        }
        settings = Settings.model_validate({**given, "notify": {"runbooks": page}})
        for sink in build_sinks(settings).values():
            sink.send(NOTE)
            sink.close()
        hook, (alert,) = (request.json for request in receiver.requests)
    links = [one["annotations"]["runbook_url"] for one in (*hook["alerts"], alert)]
    assert links == [f"{page}#embeddingdrift"] * 2
    with pytest.raises(ValidationError, match="runbooks"):
        Settings.model_validate({**given, "notify": {"runbooks": "docs/runbooks.md"}})
