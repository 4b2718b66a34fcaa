"""Publishing into Grafana: what is there, what would change, what is left alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from typer.testing import CliRunner, Result

from connectors.database.reader_role import make_reader_role, reader_role_sql
from connectors.database.schema import metadata
from connectors.database.store import Store
from connectors.grafana import Access, GrafanaClient
from connectors.grafana_alerting import GrafanaAlerting
from detectors.errors import GrafanaError, InvalidInput, StoreError
from monitor.cli import app
from monitor.dashboards_cli import _dashboards, _rules, dashboards_app
from monitor.publishing import Change, Publisher, Wanted, postgres_source, prometheus_source
from tests.servers.grafana import VERSIONS, Fault, Grafana
from tests.servers.postgres import PostgresServer

every_version = pytest.mark.parametrize("version", VERSIONS)
SECRET = "hunter2hunter2"
POSTGRES = f"postgresql://grafana_reader:{SECRET}@db.example.org:5433/driftd?sslmode=verify-full"
PROMETHEUS = "http://prometheus:9090"
HOOK = f"https://hooks.example.org/{SECRET}"


@pytest.fixture
def version() -> str:
    return VERSIONS[0]


@pytest.fixture
def grafana(version: str) -> Iterator[Grafana]:
    with Grafana(version) as server:
        yield server


@pytest.fixture
def client(grafana: Grafana) -> Iterator[GrafanaClient]:
    with GrafanaClient(Access(url=grafana.url, token=grafana.token("Admin")), sleep=lambda s: None) as made:
        yield made


# Two dashboards and three rules do for most tests.
ALL = _dashboards()
SOME = [content for content in ALL if content["uid"] in ("driftd-drift", "driftd-stale")]
ALL_RULES = _rules("FOLDER", "PROMETHEUS")
PUBLISHED: dict[str, dict[str, Any]] = {}


def all_rules(folder_uid: str, prometheus_uid: str) -> dict[str, Any]:
    text = json.dumps(ALL_RULES).replace("FOLDER", folder_uid).replace("PROMETHEUS", prometheus_uid)
    group: dict[str, Any] = json.loads(text)
    return group


def rules(folder_uid: str, prometheus_uid: str) -> dict[str, Any]:
    group = all_rules(folder_uid, prometheus_uid)
    return {**group, "rules": group["rules"][:3]}


def begin(grafana: Grafana) -> None:
    """As after a first publishing, of which one is enough for each version."""
    if grafana.version not in PUBLISHED:
        with Grafana(grafana.version) as server:
            with GrafanaClient(Access(url=server.url, token=server.token("Admin"))) as client:
                published(client)
            PUBLISHED[grafana.version] = server.state()
    grafana.load(PUBLISHED[grafana.version])


def wanted(**more: Any) -> Wanted:
    given: dict[str, Any] = {"postgres": POSTGRES, "prometheus": PROMETHEUS, "contact_point": HOOK} | more
    return Wanted(**{"dashboards": SOME, "rules": rules, **given})


def published(client: GrafanaClient, *, overwrite: bool = False, **more: Any) -> dict[str, Change]:
    publisher = Publisher(client, wanted(**more), overwrite=overwrite)
    changes = publisher.plan()
    publisher.apply(changes)
    return {f"{change.kind} {change.uid}": change for change in changes}


def states(changes: dict[str, Change]) -> set[str]:
    return {change.state for change in changes.values()}


@every_version
def test_all_of_ours_is_published_and_a_second_time_changes_nothing(grafana: Grafana, client: GrafanaClient) -> None:
    everything: dict[str, Any] = {"dashboards": ALL, "rules": all_rules}
    first = published(client, **everything)
    assert states(first) == {"new"}
    assert set(grafana.dashboards) == {content["uid"] for content in ALL}
    assert set(grafana.data_sources) == {"driftd-postgres", "driftd-prometheus"}
    assert len(grafana.rules) == len(ALL_RULES["rules"]) and list(grafana.folders) == ["driftd"]
    lengths = {rule["title"]: rule["for"] for rule in grafana.rules.values()}
    assert (lengths["MonitorDown"], lengths["ReferenceMissing"], lengths["EmbeddingDriftPage"]) == ("5m", "23h", "0s")
    before = len(grafana.writes)
    for more in ({}, {"postgres": None, "prometheus": None, "contact_point": None}):
        again = published(client, **everything, **more)
        assert states(again) == {"unchanged"} and not any(change.diff for change in again.values())
    assert len(grafana.writes) == before
    assert all(200 <= call.status < 300 for call in grafana.writes)


@every_version
def test_a_dry_run_writes_nothing_and_shows_what_would_be_written(grafana: Grafana, client: GrafanaClient) -> None:
    changes = Publisher(client, wanted()).plan()
    assert grafana.writes == [] and {change.state for change in changes} == {"new"}
    shown = "".join(change.diff for change in changes)
    assert SECRET not in shown and "+ EmbeddingDriftPage" in shown and "db.example.org:5433" in shown


@every_version
def test_a_dashboard_that_was_edited_by_hand_is_left_alone_until_that_is_allowed(
    grafana: Grafana, client: GrafanaClient
) -> None:
    begin(grafana)
    grafana.edit_dashboard("driftd-drift", title="Mine")
    before = len(grafana.writes)
    left = published(client)["dashboard driftd-drift"]
    assert left.state == "edited" and '-  "title": "Mine"' in left.diff
    assert len(grafana.writes) == before and grafana.dashboards["driftd-drift"]["content"]["title"] == "Mine"
    published(client, overwrite=True)
    assert grafana.dashboards["driftd-drift"]["content"]["title"] != "Mine"
    assert states(published(client)) == {"unchanged"}


@every_version
def test_a_newer_dashboard_is_a_change_with_its_diff_and_no_edit(grafana: Grafana, client: GrafanaClient) -> None:
    begin(grafana)
    newer = copy.deepcopy(SOME)
    newer[0]["description"] = "A newer one."
    changes = published(client, dashboards=newer)
    changed = changes.pop(f"dashboard {newer[0]['uid']}")
    assert changed.state == "changed" and '+  "description": "A newer one."' in changed.diff
    assert states(changes) == {"unchanged"}
    assert states(published(client, dashboards=newer)) == {"unchanged"}


@every_version
def test_a_dashboard_that_was_moved_stays_where_it_is(grafana: Grafana, client: GrafanaClient) -> None:
    begin(grafana)
    grafana.folders["theirs"] = {"uid": "theirs", "title": "theirs"}
    grafana.dashboards["driftd-drift"]["folder"] = "theirs"
    newer = [{**content, "description": "x"} for content in SOME]
    published(client, dashboards=newer)
    assert grafana.dashboards["driftd-drift"]["folder"] == "theirs"


def test_a_dashboard_that_was_imported_as_it_is_becomes_ours(grafana: Grafana, client: GrafanaClient) -> None:
    [content, *_] = SOME
    client.create_folder("driftd", "driftd")
    client.save_dashboard(content, folder_uid="driftd", version=None)
    changes = published(client, dashboards=[content], postgres=None, prometheus=None, contact_point=None)
    assert changes[f"dashboard {content['uid']}"].state == "changed"
    assert grafana.dashboards[content["uid"]]["version"] == 2


def test_a_dashboard_from_a_file_is_an_error_with_a_cure(grafana: Grafana, client: GrafanaClient) -> None:
    begin(grafana)
    grafana.dashboards["driftd-drift"]["provisioned"] = True
    with pytest.raises(InvalidInput, match="file provisioning"):
        published(client)


@every_version
def test_a_dashboard_knows_the_data_sources_of_this_grafana(grafana: Grafana, client: GrafanaClient) -> None:
    begin(grafana)
    kind = "postgres" if grafana.numbers < (10, 0) else "grafana-postgresql-datasource"
    for saved in grafana.dashboards.values():
        variables = {one["name"]: one for one in saved["content"]["templating"]["list"]}
        assert variables["postgres"]["query"] == kind
        assert variables["postgres"]["current"]["value"] == "driftd-postgres"
        assert variables["prometheus"]["current"]["value"] == "driftd-prometheus"
        other = "grafana-postgresql-datasource" if kind == "postgres" else "postgres"
        assert f'"type": "{other}"' not in json.dumps(saved["content"])
    assert grafana.data_sources["driftd-postgres"]["type"] == kind


# Data sources


@every_version
def test_a_data_source_that_somebody_changed_comes_back_and_keeps_what_is_beside_ours(
    grafana: Grafana, client: GrafanaClient
) -> None:
    begin(grafana)
    source = grafana.data_sources["driftd-postgres"]
    source["jsonData"] |= {"tlsAuth": True, "sslmode": "disable"}
    change = published(client)["data source driftd-postgres"]
    assert change.state == "changed" and '+    "sslmode": "verify-full"' in change.diff and SECRET not in change.diff
    saved = grafana.data_sources["driftd-postgres"]
    assert saved["jsonData"]["tlsAuth"] is True and saved["secureJsonData"] == {"password": SECRET}
    assert saved["url"] == "db.example.org:5433" and saved["user"] == "grafana_reader"


def test_a_password_is_sent_again_only_when_that_is_asked_for(grafana: Grafana, client: GrafanaClient) -> None:
    begin(grafana)
    other = POSTGRES.replace(SECRET, "another")
    assert states(published(client, postgres=other)) == {"unchanged"}
    changes = published(client, postgres=other, overwrite=True)
    assert changes["data source driftd-postgres"].state == "changed"
    assert grafana.data_sources["driftd-postgres"]["secureJsonData"] == {"password": "another"}


@every_version
def test_a_data_source_of_theirs_is_used_and_not_touched(grafana: Grafana, client: GrafanaClient) -> None:
    client.save_data_source({"uid": "mine", "name": "Mine", "type": "prometheus", "url": PROMETHEUS})
    changes = published(client, prometheus="mine")
    assert not any("prometheus" in name for name in changes if name.startswith("data source"))
    assert {query["datasourceUid"] for rule in grafana.rules.values() for query in rule["data"]} == {"mine", "__expr__"}
    [variable] = [
        one
        for one in grafana.dashboards["driftd-stale"]["content"]["templating"]["list"]
        if one["name"] == "prometheus"
    ]
    # Before 10.1 the name counts, then the uid.
    assert variable["current"] == {"selected": False, "text": "Mine", "value": "mine"}
    with pytest.raises(InvalidInput, match="no data source with the uid nothere"):
        published(client, prometheus="nothere")


def test_without_prometheus_rules_are_left_out_and_that_is_said(grafana: Grafana, client: GrafanaClient) -> None:
    publisher = Publisher(client, wanted(postgres=None, prometheus=None, contact_point=None))
    publisher.apply(publisher.plan())
    assert grafana.rules == {} and len(grafana.dashboards) == len(SOME)
    assert any("Rules are left out" in note for note in publisher.notes)
    assert any("--postgres" in note for note in publisher.notes)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql+psycopg://u:p%40ss@h/d", ("h:5432", "u", "d", "require", "p@ss")),
        ("postgres://u@localhost:1/d", ("localhost:1", "u", "d", "disable", None)),
        ("postgresql://u@/d?host=/var/run/postgresql", ("/var/run/postgresql", "u", "d", "disable", None)),
        ("postgresql://u@[::1]/d", ("[::1]:5432", "u", "d", "disable", None)),
        ("postgresql://u@h/d?sslmode=verify-ca", ("h:5432", "u", "d", "verify-ca", None)),
    ],
)
def test_a_database_address_becomes_a_data_source(url: str, expected: tuple[str | None, ...]) -> None:
    body = postgres_source(url, kind="postgres")
    found = body["url"], body["user"], body["database"], body["jsonData"]["sslmode"]
    assert (*found, body.get("secureJsonData", {}).get("password")) == expected


@pytest.mark.parametrize("url", ["mysql://u@h/d", "postgresql://h/d", "postgresql://u@h", "postgresql://u@h:x/d"])
def test_a_database_address_that_cannot_be_used_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(InvalidInput, match="Expected: postgresql") as caught:
        postgres_source(url, kind="postgres")
    assert url not in str(caught.value)


def test_a_prometheus_address_may_hold_a_password() -> None:
    body = prometheus_source(f"https://reader:{SECRET}@prometheus/path")
    assert body["url"] == "https://prometheus/path" and body["basicAuthUser"] == "reader"
    assert body["secureJsonData"] == {"basicAuthPassword": SECRET}
    for bad in ("prometheus:9090", "ftp://x", "http://"):
        with pytest.raises(InvalidInput, match="Prometheus"):
            prometheus_source(bad)


# Rules and who is told


@every_version
def test_our_rules_reach_our_contact_point_and_nobody_elses_do(grafana: Grafana, client: GrafanaClient) -> None:
    theirs = copy.deepcopy(grafana.policies)
    published(client)
    publisher = Publisher(client, wanted())
    publisher.plan()
    assert any("in the browser" in note for note in publisher.notes) == bool(grafana.policies_provenance)
    [_, ours] = grafana.contact_points
    assert (ours["uid"], ours["type"], ours["settings"]["url"]) == ("driftd-contact", "webhook", HOOK)
    if grafana.numbers >= (11, 0):
        assert {rule["notification_settings"]["receiver"] for rule in grafana.rules.values()} == {"driftd"}
        assert grafana.policies == theirs
    else:
        assert {rule["labels"]["source"] for rule in grafana.rules.values()} == {"driftd"}
        assert grafana.policies["routes"][1:] == theirs["routes"] and len(grafana.policies["routes"]) == 2


@every_version
def test_another_contact_point_takes_over_and_ours_goes(grafana: Grafana, client: GrafanaClient) -> None:
    begin(grafana)
    changes = published(client, contact_point="grafana-default-email")
    assert changes["contact point driftd-contact"].diff == "- driftd\n"
    assert [point["name"] for point in grafana.contact_points] == ["grafana-default-email"]
    assert GrafanaAlerting(client).route() == (None if grafana.numbers >= (11, 0) else "grafana-default-email")
    assert states(published(client, contact_point="grafana-default-email")) == {"unchanged"}
    with pytest.raises(InvalidInput, match="grafana-default-email"):
        published(client, contact_point="nobody")


@every_version
def test_a_contact_point_with_another_address_is_changed_without_showing_it(
    grafana: Grafana, client: GrafanaClient
) -> None:
    begin(grafana)
    change = published(client, contact_point=f"https://hooks.example.org/other/{SECRET}")[
        "contact point driftd-contact"
    ]
    assert change.state == "changed" and change.diff and SECRET not in change.diff
    change = published(client, contact_point="oncall@example.org")["contact point driftd-contact"]
    assert change.state == "changed" and grafana.contact_points[1]["settings"]["addresses"] == "oncall@example.org"


def test_after_an_update_of_grafana_the_route_is_taken_out_of_the_tree(grafana: Grafana, client: GrafanaClient) -> None:
    """9.2 marks contact point, route and rules as provisioned, whatever we say; they must still be ours to change."""
    begin(grafana)
    assert GrafanaAlerting(client).route() == "driftd" and grafana.policies_provenance == "api"
    with Grafana("11.6.5") as updated:
        updated.load(grafana.state())
        with GrafanaClient(Access(url=updated.url, token=updated.token("Admin"))) as newer:
            changes = published(newer, postgres=None, prometheus=None, contact_point=None)
            assert changes["route driftd"].diff == "- driftd\n" and GrafanaAlerting(newer).route() is None
            assert {rule["notification_settings"]["receiver"] for rule in updated.rules.values()} == {"driftd"}
            assert states(published(newer, postgres=None, prometheus=None, contact_point=None)) == {"unchanged"}
            change = published(newer, contact_point="oncall@example.org")["contact point driftd-contact"]
            assert change.state == "changed" and states(published(newer, contact_point=None)) == {"unchanged"}


@every_version
def test_rules_that_were_edited_by_hand_are_left_alone_until_that_is_allowed(
    grafana: Grafana, client: GrafanaClient
) -> None:
    begin(grafana)
    uid = next(iter(grafana.rules))
    grafana.rules[uid]["noDataState"] = "Alerting"
    before = len(grafana.writes)
    change = published(client)["rules driftd"]
    assert change.state == "edited" and "noDataState" in change.diff and len(grafana.writes) == before
    assert published(client, overwrite=True)["rules driftd"].state == "edited"
    assert grafana.rules[uid]["noDataState"] == "OK" and states(published(client)) == {"unchanged"}


@every_version
def test_a_rule_that_is_new_gone_or_changed_is_brought_up_to_date(grafana: Grafana, client: GrafanaClient) -> None:
    begin(grafana)

    def others(folder_uid: str, prometheus_uid: str) -> dict[str, Any]:
        group = rules(folder_uid, prometheus_uid)
        first, second, *rest = group["rules"]
        extra = {**copy.deepcopy(first), "uid": "driftd-extra", "title": "Extra"}
        return {**group, "rules": [{**second, "for": "7m"}, *rest, extra], "interval": 120}

    gone = rules("driftd", "x")["rules"][0]["uid"]
    assert published(client, rules=others)["rules driftd"].state == "changed"
    assert gone not in grafana.rules and "driftd-extra" in grafana.rules
    assert set(grafana.intervals.values()) == {120}
    assert states(published(client, rules=others)) == {"unchanged"}


@every_version
def test_rules_that_came_without_our_uids_keep_theirs(grafana: Grafana, client: GrafanaClient) -> None:
    begin(grafana)
    renamed = {f"x{number}": {**rule, "uid": f"x{number}"} for number, rule in enumerate(grafana.rules.values())}
    grafana.rules = renamed
    published(client, overwrite=True)
    assert set(grafana.rules) == set(renamed) and states(published(client)) == {"unchanged"}


def test_every_rule_carries_a_mark_that_no_notification_shows(grafana: Grafana, client: GrafanaClient) -> None:
    begin(grafana)
    for rule in grafana.rules.values():
        [mark] = [name for name in rule["annotations"] if name not in rules("driftd", "x")["rules"][0]["annotations"]]
        assert mark.startswith("__") and mark.endswith("__")


# Rights, faults, versions


@every_version
def test_an_editor_publishes_dashboards_and_is_told_what_it_lacks(grafana: Grafana) -> None:
    with GrafanaClient(Access(url=grafana.url, token=grafana.token("Editor"))) as editor:
        publisher = Publisher(editor, wanted(postgres=None, prometheus=None, contact_point=None))
        publisher.apply(publisher.plan())
        assert len(grafana.dashboards) == len(SOME) and grafana.rules == {}
        assert any("Admin" in note for note in publisher.notes)
        with pytest.raises(InvalidInput, match="Admin"):
            Publisher(editor, wanted()).plan()
    grafana.dashboards.clear()
    with GrafanaClient(Access(url=grafana.url, token=grafana.token("Viewer"))) as viewer:
        publisher = Publisher(viewer, wanted(postgres=None, prometheus=None, contact_point=None))
        with pytest.raises(GrafanaError, match="403"):
            publisher.apply(publisher.plan())


@every_version
def test_a_run_that_broke_in_the_middle_is_finished_by_the_next(grafana: Grafana, client: GrafanaClient) -> None:
    group = "/api/v1/provisioning/folder/.*"
    for verb, path in (("POST", "/api/datasources"), ("POST", "/api/dashboards/db"), ("PUT", group)):
        grafana.fail(Fault(500, b'{"message": "database is locked"}'), path=path, verb=verb)
        with pytest.raises(GrafanaError, match="locked"):
            published(client)
    published(client)
    assert states(published(client)) == {"unchanged"}


@every_version
def test_lost_answers_do_no_harm(grafana: Grafana, client: GrafanaClient) -> None:
    for path in ("/api/folders", "/api/datasources", "/api/dashboards/db", "/api/v1/.*"):
        for verb in ("POST", "PUT"):
            grafana.fail(Fault(reset=True, done=True), verb=verb, path=path)
    published(client)
    assert states(published(client)) == {"unchanged"}
    assert len(grafana.dashboards) == len(SOME)


def test_somebody_who_publishes_at_the_same_time_is_noticed(grafana: Grafana, client: GrafanaClient) -> None:
    publisher = Publisher(client, wanted())

    def meanwhile(change: Change) -> None:
        if change.kind == "rules":
            grafana.data_sources["driftd-prometheus"]["url"] = "http://other:9090"

    with pytest.raises(GrafanaError, match="another data source driftd-prometheus"):
        publisher.apply(publisher.plan(), meanwhile)


def test_an_old_grafana_is_refused(client: GrafanaClient, grafana: Grafana) -> None:
    grafana.version = "8.5.1"
    with pytest.raises(InvalidInput, match="too old"):
        Publisher(client, wanted()).plan()


# The commands


def run(*arguments: str, grafana: Grafana | None = None, role: str = "Admin", **environment: str) -> Result:
    token = {} if grafana is None else {"DRIFTD_GRAFANA_TOKEN": grafana.token(role), "DRIFTD_GRAFANA_URL": grafana.url}
    return CliRunner().invoke(app, ["dashboards", *arguments], env={**token, **environment})


FULL = ("publish", "--prometheus", PROMETHEUS, "--contact-point", "oncall@example.org")


def test_the_command_shows_publishes_and_then_has_nothing_to_do(grafana: Grafana) -> None:
    dry = run(*FULL, "--dry-run", grafana=grafana, DRIFTD_GRAFANA_POSTGRES=POSTGRES)
    assert dry.exit_code == 0 and grafana.writes == [] and "+ EmbeddingDriftPage" in dry.stdout
    assert "Nothing was written" in dry.stderr
    done = run(*FULL, grafana=grafana, DRIFTD_GRAFANA_POSTGRES=POSTGRES)
    assert done.exit_code == 0 and "Published dashboard driftd-drift." in done.stderr
    again = run("publish", "--json", grafana=grafana)
    assert {entry["state"] for entry in json.loads(again.stdout)} == {"unchanged"}
    for result in (dry, done, again):
        assert SECRET not in result.output and "glsa_" not in result.output


def test_the_command_refuses_to_write_over_an_edit_and_says_what_to_type(grafana: Grafana) -> None:
    run(*FULL, grafana=grafana)
    grafana.edit_dashboard("driftd-drift", title="Mine")
    left = run(*FULL, grafana=grafana)
    assert left.exit_code == 1 and "--overwrite" in left.stderr and '-  "title": "Mine"' in left.stdout
    assert grafana.dashboards["driftd-drift"]["content"]["title"] == "Mine"
    assert run(*FULL, "--overwrite", grafana=grafana).exit_code == 0
    assert run(*FULL, grafana=grafana).exit_code == 0


@every_version
def test_check_says_what_is_there_and_what_is_missing(grafana: Grafana) -> None:
    before = run("check", "--json", grafana=grafana)
    found = {entry["name"]: entry for entry in json.loads(before.stdout)}
    assert before.exit_code == 1 and found["Grafana"]["ok"] and grafana.version in found["Grafana"]["detail"]
    assert "--postgres" in found["data source driftd-postgres"]["detail"]
    run(*FULL, grafana=grafana, DRIFTD_GRAFANA_POSTGRES=POSTGRES)
    after = run("check", grafana=grafana)
    assert after.exit_code == 0 and "FAILED" not in after.stdout
    grafana.broken_data_sources.add("driftd-postgres")
    broken = run("check", grafana=grafana)
    assert broken.exit_code == 1 and "connection refused" in broken.stdout
    editor = run("check", grafana=grafana, role="Editor")
    assert editor.exit_code == 1 and "FAILED right to data sources" in editor.stdout


def test_check_stops_where_it_cannot_go_on(grafana: Grafana) -> None:
    wrong = run("check", grafana=grafana, DRIFTD_GRAFANA_TOKEN="glsa_wrong")
    assert wrong.exit_code == 1 and "FAILED organisation" in wrong.stdout and "right to" not in wrong.stdout
    grafana.fail(Fault(200, b"<html>"), path="/api/health")
    assert "FAILED Grafana" in run("check", grafana=grafana).stdout


def test_a_token_is_needed_and_comes_from_a_file(grafana: Grafana, tmp_path: Path) -> None:
    assert isinstance(run("check").exception, InvalidInput)
    (tmp_path / "token").write_text(grafana.token("Admin"))
    done = run("check", "--grafana", grafana.url, "--token-file", str(tmp_path / "token"))
    assert "ok     organisation" in done.stdout


def test_build_writes_a_folder_that_grafana_can_read(tmp_path: Path) -> None:
    done = run("build", str(tmp_path / "out"), "--postgres", POSTGRES, "--at", "/srv/provisioning/")
    assert done.exit_code == 0 and (tmp_path / "out/prometheus/driftd.yml").read_text().startswith("# Made by")
    written = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*.*")}
    assert SECRET not in "".join(path.read_text() for path in written.values())
    sources = yaml.safe_load(written["datasources/driftd.yaml"].read_text())["datasources"]
    assert [source["uid"] for source in sources] == ["driftd-postgres", "driftd-prometheus"]
    assert sources[0]["secureJsonData"]["password"] == "$DRIFTD_GRAFANA_POSTGRES_PASSWORD"
    [provider] = yaml.safe_load(written["dashboards/driftd.yaml"].read_text())["providers"]
    assert provider["options"]["path"] == "/srv/provisioning/dashboards/driftd"
    titles = [json.loads(path.read_text())["title"] for name, path in written.items() if name.endswith(".json")]
    assert len(titles) == len(set(titles)) == len(ALL)
    [group] = yaml.safe_load(written["alerting/driftd.yaml"].read_text())["groups"]
    assert group["interval"] == "60s" and group["folder"] == "driftd"
    assert {query["datasourceUid"] for rule in group["rules"] for query in rule["data"]} == {
        "driftd-prometheus",
        "__expr__",
    }
    assert all(rule["annotations"]["__panelId__"] == str(rule["panelId"]) for rule in group["rules"])
    # Grafana puts its environment into files: everywhere but into queries and annotations, and there into ${NAME}.
    plain = [{name: part for name, part in rule.items() if name != "data"} for rule in group["rules"]]
    assert "$labels" in str(plain) and "${" not in str(plain)


def test_alerts_link_to_the_runbooks_where_people_read_them(tmp_path: Path) -> None:
    page = "https://docs.example.org/driftd/runbooks"
    assert run("build", str(tmp_path), "--runbooks", page).exit_code == 0
    [group] = yaml.safe_load((tmp_path / "alerting/driftd.yaml").read_text())["groups"]
    told = yaml.safe_load((tmp_path / "prometheus/driftd.yml").read_text())["groups"]
    links = {rule["alert"]: rule["annotations"]["runbook_url"] for each in told for rule in each["rules"]}
    assert links["MonitorDown"] == f"{page}#monitordown" and len(links) == len(group["rules"])
    assert links == {rule["title"]: rule["annotations"]["runbook_url"] for rule in group["rules"]}
    for bad in ("docs/runbooks.md", f"{page}#x", "https://x/${HOME}", "https://x/{{ . }}"):
        assert isinstance(run("build", str(tmp_path), "--runbooks", bad).exception, InvalidInput)


def test_build_refuses_what_grafana_would_not_load(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert isinstance(run("build", str(tmp_path / "file")).exception, InvalidInput)
    bad = run("build", str(tmp_path), "--prometheus", f"http://u:{SECRET}@prometheus:9090")
    assert isinstance(bad.exception, InvalidInput) and SECRET not in str(bad.exception)


def test_the_documented_commands_have_the_options_that_they_show() -> None:
    from typer.main import get_command

    text = (Path(__file__).resolve().parents[2] / "docs/grafana.md").read_text()
    lines = [line.partition("#")[0].split() for line in text.splitlines() if line.startswith("driftd dashboards ")]
    commands = get_command(dashboards_app).commands  # type: ignore[attr-defined]
    assert {words[2] for words in lines} == set(commands)
    for words in lines:
        options = {option for parameter in commands[words[2]].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options


# The role that may only read


def test_grants_are_printed_without_a_password() -> None:
    done = run("grants", "--role", "dashboards")
    statements = done.stdout.splitlines()
    assert all(statement.endswith(";") for statement in statements) and "PASSWORD" not in done.stdout
    assert all(f'"{table.name}"' in done.stdout for table in metadata.sorted_tables)
    assert isinstance(run("grants", "--role", "a; DROP TABLE kept").exception, InvalidInput)


@pytest.mark.postgres
def test_the_role_reads_every_table_and_writes_none(postgres: PostgresServer, tmp_path: Path) -> None:
    url = postgres.new_database()
    with Store.open(url) as store:
        store.migrate()
    password = "it's 100 % \\secret"
    for _ in range(2):  # it can be repeated
        make_reader_role(url, "reader_of_test", password=password)
    reader = create_engine(make_url(url).set(username="reader_of_test", password=password))
    try:
        for table in metadata.sorted_tables:
            with reader.connect() as connection:
                connection.execute(table.select().limit(1)).all()
            for statement in (
                f'DELETE FROM "{table.name}"',
                f'TRUNCATE "{table.name}"',
                f'DROP TABLE "{table.name}"',
                f'ALTER TABLE "{table.name}" ADD COLUMN more int',
            ):
                with pytest.raises(SQLAlchemyError), reader.begin() as connection:
                    # Not only because its transactions are read-only at first, which it may change.
                    connection.execute(text("SET TRANSACTION READ WRITE"))
                    connection.execute(text(statement))
        with pytest.raises(SQLAlchemyError), reader.begin() as connection:
            connection.execute(text("SET TRANSACTION READ WRITE"))
            connection.execute(text("CREATE TABLE mine (a int)"))
        owner = create_engine(url)
        with owner.begin() as connection:
            connection.execute(text("CREATE TABLE of_a_later_version (a int)"))
        owner.dispose()
        with reader.connect() as connection:
            connection.execute(text("SELECT * FROM of_a_later_version")).all()
    finally:
        reader.dispose()


@pytest.mark.postgres
def test_a_role_that_cannot_be_made_is_told_without_its_password(postgres: PostgresServer) -> None:
    url = postgres.new_database()  # without tables
    with pytest.raises(StoreError) as caught:
        make_reader_role(url, "reader_without_tables", password=SECRET)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__
    assert "does not exist" in str(caught.value)


def test_sqlite_has_no_roles(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="PostgreSQL only"):
        make_reader_role(f"sqlite:///{tmp_path}/driftd.db")
    assert len(reader_role_sql(password="x")) == len(reader_role_sql()) + 1
