"""The client of Grafana's API: every version, and everything that can go wrong with every call."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.grafana import Access, GrafanaClient, token_of
from connectors.grafana_alerting import GrafanaAlerting
from detectors.errors import DriftdError, GrafanaError, InvalidInput, InvalidSettings
from tests.servers.grafana import PASSWORD, PROXY_PAGE, VERSIONS, Fault, Grafana

every_version = pytest.mark.parametrize("version", VERSIONS)
SECRET = "hunter2hunter2"


@pytest.fixture
def version() -> str:
    return VERSIONS[0]


@pytest.fixture
def grafana(version: str) -> Iterator[Grafana]:
    with Grafana(version) as server:
        yield server


class Sleeps(list[float]):
    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def sleeps() -> Sleeps:
    return Sleeps()


def client_of(grafana: Grafana, role: str = "Admin", *, sleep: Callable[[float], None] = lambda s: None, **access: Any):  # type: ignore[no-untyped-def]
    return GrafanaClient(Access(url=grafana.url, token=grafana.token(role), **access), sleep=sleep)


@pytest.fixture
def client(grafana: Grafana, sleeps: Sleeps) -> Iterator[GrafanaClient]:
    made = client_of(grafana, sleep=sleeps)
    yield made
    made.close()


def rule(uid: str, *, title: str = "", expression: str = "$A > 1", **more: Any) -> dict[str, Any]:
    return {
        "uid": uid,
        "title": title or f"Rule {uid}",
        "condition": "C",
        "data": [
            {"refId": "A", "datasourceUid": "prom", "model": {"expr": "up"}},
            {"refId": "C", "datasourceUid": "__expr__", "model": {"type": "math", "expression": expression}},
        ],
        "for": "5m",
        "noDataState": "OK",
        "execErrState": "Error",
        "labels": {"severity": "critical"},
        "annotations": {"summary": "Something."},
        **more,
    }  # fmt: skip


def group(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"title": "driftd", "folderUid": "driftd", "interval": 60, "rules": list(rules), **more}


SOURCE = {"uid": "prom", "name": "prom", "type": "prometheus", "access": "proxy", "url": "http://localhost:9090"}
POINT = {"uid": "driftd-contact", "name": "driftd", "type": "webhook", "settings": {"url": f"http://x/{SECRET}"}}


def furnish(grafana: Grafana) -> None:
    """One of everything."""
    if grafana.version not in FURNISHED:
        with Grafana(grafana.version) as server:
            client = client_of(server)
            client.create_folder("driftd", "driftd")
            client.save_dashboard({"uid": "driftd-a", "title": "A"}, folder_uid="driftd", version=None)
            client.save_data_source(SOURCE)
            GrafanaAlerting(client).save_rule_group(group(rule("r1"), rule("r2")))
            GrafanaAlerting(client).save_contact_point(POINT)
            GrafanaAlerting(client).set_route("driftd")
            client.add_annotation(
                time_ms=1000, end_ms=None, tags=["driftd-incident:1"], text="T", dashboard_uid="driftd-a"
            )
            client.close()
            FURNISHED[grafana.version] = server.state()
    grafana.load(FURNISHED[grafana.version])


FURNISHED: dict[str, dict[str, Any]] = {}


# name -> (what is called, the path of its first call, statuses that mean "not there" and no error)
Operation = tuple[Callable[[GrafanaClient], object], str, str, tuple[int, ...]]
OPERATIONS: dict[str, Operation] = {
    "version": (lambda c: c.version, "GET", "/api/health", ()),
    "organisation": (lambda c: c.organisation, "GET", "/api/org", ()),
    "actions": (lambda c: c.actions(), "GET", "/api/access-control/user/permissions", (403, 404, 500)),
    "folder": (lambda c: c.folder("driftd"), "GET", "/api/folders/driftd", (403, 404)),
    "create_folder": (lambda c: c.create_folder("new", "New"), "POST", "/api/folders", ()),
    "dashboard": (lambda c: c.dashboard("driftd-a"), "GET", "/api/dashboards/uid/driftd-a", (403, 404)),
    "save_dashboard": (
        lambda c: c.save_dashboard({"uid": "driftd-a", "title": "B"}, folder_uid="driftd", version=1),
        "POST",
        "/api/dashboards/db",
        (),
    ),
    "data_source_types": (lambda c: c.data_source_types(), "GET", "/api/plugins", ()),
    "data_source": (lambda c: c.data_source("prom"), "GET", "/api/datasources/uid/prom", (404,)),
    "save_data_source, new": (
        lambda c: c.save_data_source({**SOURCE, "uid": "two", "name": "two"}),
        "POST",
        "/api/datasources",
        (),
    ),
    "save_data_source, again": (lambda c: c.save_data_source(SOURCE), "PUT", "/api/datasources/uid/prom", ()),
    "ask_data_source": (lambda c: c.ask_data_source("prom", "prometheus"), "POST", "/api/ds/query", ()),
    "rule_group": (
        lambda c: GrafanaAlerting(c).rule_group("driftd", "driftd"),
        "GET",
        "/api/v1/provisioning/folder/driftd/rule-groups/driftd",
        (404,),
    ),
    "rule": (lambda c: GrafanaAlerting(c).rule("r1"), "GET", "/api/v1/provisioning/alert-rules/r1", (404, 500)),
    "save_rule_group": (
        lambda c: GrafanaAlerting(c).save_rule_group(group(rule("r1"), rule("r2"))),
        "PUT",
        "/api/v1/provisioning/folder/driftd/rule-groups/driftd",
        (),
    ),
    "save_rule_group, new rule": (
        lambda c: GrafanaAlerting(c).save_rule_group(group(rule("r1"), rule("r3"))),
        "POST",
        "/api/v1/provisioning/alert-rules",
        (),
    ),
    "save_rule_group, one less": (
        lambda c: GrafanaAlerting(c).save_rule_group(group(rule("r1"))),
        "PUT",
        "/api/v1/provisioning/folder/driftd/rule-groups/driftd",
        (),
    ),
    "contact_points": (lambda c: GrafanaAlerting(c).contact_points(), "GET", "/api/v1/provisioning/contact-points", ()),
    "save_contact_point, new": (
        lambda c: GrafanaAlerting(c).save_contact_point({**POINT, "uid": "two", "name": "two"}),
        "POST",
        "/api/v1/provisioning/contact-points",
        (),
    ),
    "save_contact_point, again": (
        lambda c: GrafanaAlerting(c).save_contact_point(POINT),
        "PUT",
        "/api/v1/provisioning/contact-points/driftd-contact",
        (),
    ),
    "delete_contact_point": (
        lambda c: GrafanaAlerting(c).delete_contact_point("driftd-contact"),
        "DELETE",
        "/api/v1/provisioning/contact-points/driftd-contact",
        (404,),
    ),
    "route": (lambda c: GrafanaAlerting(c).route(), "GET", "/api/v1/provisioning/policies", ()),
    "set_route": (lambda c: GrafanaAlerting(c).set_route("driftd"), "PUT", "/api/v1/provisioning/policies", ()),
    "remove_route": (lambda c: GrafanaAlerting(c).remove_route(), "PUT", "/api/v1/provisioning/policies", ()),
    "annotations": (lambda c: c.annotations("driftd-incident:1"), "GET", "/api/annotations", ()),
    "add_annotation": (
        lambda c: c.add_annotation(time_ms=1, end_ms=2, tags=["t"], text="x", dashboard_uid=""),
        "POST",
        "/api/annotations",
        (),
    ),
    "change_annotation": (
        lambda c: c.change_annotation(_annotation(c), text="y", end_ms=9),
        "PATCH",
        "/api/annotations/[0-9]+",
        (404,),
    ),
    "delete_annotation": (
        lambda c: c.delete_annotation(_annotation(c)),
        "DELETE",
        "/api/annotations/[0-9]+",
        (404,),
    ),
}
every_operation = pytest.mark.parametrize("name", OPERATIONS)
READS_A_LIST_OR_OBJECT = {name for name, (_, verb, *_more) in OPERATIONS.items() if verb == "GET"} | {"ask_data_source"}


def _annotation(client: GrafanaClient) -> int:
    return client.annotations("driftd-incident:1")[0].id


def failed(action: Callable[[], object]) -> GrafanaError:
    with pytest.raises(GrafanaError) as caught:
        action()
    _has_no_secrets(caught.value)
    return caught.value


def _has_no_secrets(error: BaseException | None) -> None:
    while error is not None:
        assert isinstance(error, DriftdError), "the HTTP library's errors may hold a secret"
        assert not any(secret in str(error) for secret in ("glsa_", SECRET, PASSWORD))
        error = error.__cause__ or error.__context__


@every_version
@every_operation
def test_every_operation_works_and_can_be_repeated(name: str, grafana: Grafana, client: GrafanaClient) -> None:
    furnish(grafana)
    act = OPERATIONS[name][0]
    act(client)
    if name not in ("save_dashboard", "change_annotation", "delete_annotation"):  # of which the object moved on
        act(client)
    assert client.dashboard("driftd-a") is not None


class Run:
    """One operation on a furnished server that fails in one way, by a client of its own."""

    def __init__(self, grafana: Grafana, name: str, fault: Fault, *, times: int = 99) -> None:
        furnish(grafana)
        grafana.mend()
        self.act, verb, path, self.fine = OPERATIONS[name]
        self.sleeps: list[float] = []
        self.client = client_of(grafana, sleep=self.sleeps.append)
        grafana.fail(fault, verb=verb, path=path, times=times)

    def __call__(self) -> object:
        with self.client:
            return self.act(self.client)


@every_version
@every_operation
def test_a_refusal_is_our_error_with_its_status_and_is_not_repeated(name: str, grafana: Grafana) -> None:
    body = b'{"message": "no such luck with glsa_admin_0123456789abcdef"}'
    for status in (400, 401, 403, 404, 409, 412, 422, 500):
        run = Run(grafana, name, Fault(status, body))
        if status in run.fine:
            run()
            continue
        error = failed(run)
        assert error.status == status and not error.retryable and run.sleeps == []
        assert "no such luck" in str(error)
        assert status not in (401, 403) or error.hint


@every_version
@every_operation
def test_what_passes_is_tried_again(name: str, grafana: Grafana) -> None:
    for status in (429, 502, 503, 504):
        headers = {"Retry-After": "7"} if status == 429 else {}
        run = Run(grafana, name, Fault(status, PROXY_PAGE, headers), times=1)
        if name == "add_annotation":  # which cannot be told from a second one
            error = failed(run)
            assert error.retryable and error.retry_after_s == (7.0 if status == 429 else None)
            continue
        run()
        assert run.sleeps == [7.0 if status == 429 else 0.5]


@every_version
@every_operation
def test_what_does_not_pass_is_an_error_after_the_last_attempt(name: str, grafana: Grafana) -> None:
    run = Run(grafana, name, Fault(503, b'{"msg": "starting"}'))
    error = failed(run)
    assert error.status == 503 and error.retryable and "starting" in error.message
    assert run.sleeps == ([] if name == "add_annotation" else [0.5, 1.0, 2.0])


@every_version
@every_operation
def test_an_answer_that_is_no_json_or_another_json_is_our_error_or_does_no_harm(name: str, grafana: Grafana) -> None:
    for body in (PROXY_PAGE, b"", b"null", b"[]", b'"text"', b"17", b"\xff\xfe", b"[" * 100_000):
        run = Run(grafana, name, Fault(200, body, done=True))
        try:
            run()
        except GrafanaError as error:
            assert error.status == 200 and not error.retryable and error.hint
            _has_no_secrets(error)
        else:
            a_list = body == b"[]" and name in ("annotations", "data_source_types", "contact_points")
            assert a_list or name not in READS_A_LIST_OR_OBJECT or name == "actions"
            assert body not in (PROXY_PAGE, b"\xff\xfe", b"[" * 100_000)


@every_operation
def test_an_error_without_a_proper_body_keeps_its_status(name: str, grafana: Grafana) -> None:
    for body in (PROXY_PAGE, b"", b"null", b"[]", b'[{"message": "a"}, {"error": "b"}]', b'"text"'):
        error = failed(Run(grafana, name, Fault(422, body)))
        assert error.status == 422 and "422" in error.message


@every_version
@every_operation
def test_a_connection_that_is_reset_is_tried_again_and_nothing_is_made_twice(name: str, grafana: Grafana) -> None:
    run = Run(grafana, name, Fault(reset=True, done=True), times=1)
    if name == "add_annotation":
        error = failed(run)
        assert error.status is None and error.retryable
    else:
        run()
        assert run.sleeps == [0.5]
    titles = [entry["content"]["title"] for entry in grafana.dashboards.values()]
    assert len(titles) == len(set(titles)) == 1
    assert len({point["uid"] for point in grafana.contact_points}) == len(grafana.contact_points)


@every_operation
@pytest.mark.parametrize("fault", [Fault(hang=True), Fault(trickle=True)], ids=["hang", "trickle"])
def test_a_server_that_is_slow_is_given_up_in_time(name: str, fault: Fault, grafana: Grafana) -> None:
    furnish(grafana)
    client = client_of(grafana, timeout_s=0.1, retries=0)
    act, verb, path, _ = OPERATIONS[name]
    grafana.fail(fault, verb=verb, path=path, times=99)
    error = failed(lambda: act(client))
    assert error.status is None and error.retryable and "no answer within 0.1 s" in error.message
    client.close()


def test_nothing_listening_is_our_error_in_the_systems_words() -> None:
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{placeholder.getsockname()[1]}"
        error = failed(lambda: GrafanaClient(Access(url=url, token="x", retries=0)).version)
    assert error.retryable and "connection refused" in error.message


def test_a_server_that_asks_for_an_hour_is_not_waited_for(
    grafana: Grafana, client: GrafanaClient, sleeps: Sleeps
) -> None:
    grafana.fail(Fault(429, b"{}", {"Retry-After": "3600"}), times=99)
    error = failed(lambda: client.version)
    assert error.retry_after_s == 3600.0 and sleeps == []


# Who is there, and who are we?


@every_version
def test_the_version_is_asked_once_and_found_where_it_is_hidden(grafana: Grafana, client: GrafanaClient) -> None:
    grafana.hides_version = True
    assert client.version == client.version == grafana.version
    assert [call.path for call in grafana.calls] == ["/api/health", "/api/frontend/settings"]
    assert GrafanaAlerting(client).rules_name_receivers == (grafana.numbers >= (11, 0))


def test_a_version_that_nobody_tells_counts_as_old(grafana: Grafana, client: GrafanaClient) -> None:
    grafana.hides_version = True
    grafana.fail(Fault(403, b"{}"), path="/api/frontend/settings")
    assert client.version == "" and client.major is None and not GrafanaAlerting(client).rules_name_receivers


@pytest.mark.parametrize("body", [b"{}", b'"ok"', b'{"status": "up"}'])
def test_what_is_no_grafana_is_told(body: bytes, grafana: Grafana, client: GrafanaClient) -> None:
    grafana.fail(Fault(200, body), path="/api/health")
    assert "no Grafana" in failed(lambda: client.version).message


def test_a_redirect_to_the_login_page_is_not_followed(grafana: Grafana, client: GrafanaClient) -> None:
    grafana.fail(Fault(302, b"", {"Location": "/login"}), path="/api/org")
    error = failed(lambda: client.organisation)
    assert error.status == 302 and "login" in error.message and len(grafana.calls) == 0


@every_version
@pytest.mark.parametrize(("role", "may"), [("Viewer", 0), ("Editor", 1), ("Admin", 2)])
def test_what_a_role_may_do_is_known_and_enforced(version: str, role: str, may: int, grafana: Grafana) -> None:
    client = client_of(grafana, role)
    furnish(grafana)
    actions = client.actions()
    assert actions is not None
    assert ("dashboards:create" in actions, "alert.provisioning:write" in actions) == (may >= 1, may >= 2)
    for level, name in ((1, "create_folder"), (1, "add_annotation"), (2, "save_data_source, new"), (2, "set_route")):
        if may >= level:
            OPERATIONS[name][0](client)
        else:
            error = failed(lambda name=name: OPERATIONS[name][0](client))  # type: ignore[misc]
            assert error.status == 403 and "Editor" in error.hint
    client.close()


def test_a_server_that_does_not_tell_rights_gives_none(grafana: Grafana, client: GrafanaClient) -> None:
    grafana.tells_rights = False
    assert client.actions() is None


def test_a_password_works_and_a_wrong_one_is_told(grafana: Grafana) -> None:
    host = grafana.url.removeprefix("http://")
    client = GrafanaClient(Access(url=f"http://admin:{PASSWORD.replace(' ', '%20')}@{host}", org_id=3))
    assert client.organisation["name"] == "Main Org." and PASSWORD not in repr(client) + client.place
    assert grafana.calls[-1].headers["X-Grafana-Org-Id"] == "3"
    assert grafana.calls[-1].headers["User-Agent"] == "driftd"
    client.close()
    wrong = GrafanaClient(Access(url=f"http://admin:{SECRET}@{host}"))
    assert failed(lambda: wrong.organisation).status == 401
    wrong.close()


def test_a_grafana_below_a_path_is_reached() -> None:
    with Grafana("10.4.19", prefix="/tools/grafana") as grafana:
        client = client_of(grafana)
        assert client.version == "10.4.19" and client.place.endswith("/tools/grafana")
        client.close()


@pytest.mark.parametrize("url", ["", "grafana:3000", "ftp://host", "http://", "http://h:99999", "http://h?org=1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        GrafanaClient(Access(url=url, token="x"))


def test_without_a_token_or_a_password_nothing_is_tried() -> None:
    with pytest.raises(InvalidInput, match="service account"):
        GrafanaClient(Access(url="http://localhost:3000"))


def test_a_token_comes_from_a_file_and_must_look_like_one(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("glsa_abc\n")
    assert token_of(None, tmp_path / "token", where="x") == "glsa_abc"
    assert token_of("t", None, where="x") == "t" and token_of(None, None, where="x") is None
    for bad in ("", "two words", "line\nbreak", "ü"):
        with pytest.raises(InvalidSettings, match="token"):
            token_of(bad, None, where="x")
    for token, file in (("t", tmp_path / "token"), (None, tmp_path / "missing")):
        with pytest.raises(InvalidSettings):
            token_of(token, file, where="x")


# Folders and dashboards


@every_version
def test_a_folder_that_somebody_made_at_the_same_moment_is_fine(grafana: Grafana, client: GrafanaClient) -> None:
    client.create_folder("driftd", "driftd")
    client.create_folder("driftd", "driftd")
    assert [call.status for call in grafana.writes] == [200, 412 if version_is_old(grafana) else 409]


def version_is_old(grafana: Grafana) -> bool:
    return grafana.numbers < (10, 0)


@every_version
def test_a_folder_whose_uid_a_dashboard_has_is_an_error(grafana: Grafana, client: GrafanaClient) -> None:
    client.save_dashboard({"uid": "driftd", "title": "A"}, folder_uid="", version=None)
    assert "cannot be changed to a folder" in failed(lambda: client.create_folder("driftd", "driftd")).message


@every_version
def test_a_dashboard_that_was_saved_in_between_is_never_written_over(grafana: Grafana, client: GrafanaClient) -> None:
    client.save_dashboard({"uid": "d", "title": "A"}, folder_uid="", version=None)
    grafana.edit_dashboard("d", title="By hand")
    error = failed(lambda: client.save_dashboard({"uid": "d", "title": "B"}, folder_uid="", version=1))
    assert error.status == 412 and "in the meantime" in error.hint
    error = failed(lambda: client.save_dashboard({"uid": "d", "title": "B"}, folder_uid="", version=None))
    assert error.status == 412
    saved = client.dashboard("d")
    assert saved is not None and saved.content["title"] == "By hand" and saved.version == 2
    client.save_dashboard({"uid": "d", "title": "B", "id": 99, "version": 7}, folder_uid="", version=2)
    assert grafana.dashboards["d"]["content"]["title"] == "B"


@pytest.mark.parametrize("version", VERSIONS[:2])
def test_another_dashboard_of_the_same_title_is_left_alone(grafana: Grafana, client: GrafanaClient) -> None:
    client.save_dashboard({"uid": "theirs", "title": "Overview"}, folder_uid="", version=None)
    error = failed(lambda: client.save_dashboard({"uid": "ours", "title": "Overview"}, folder_uid="", version=None))
    assert error.status == 412 and "same title" in error.hint and list(grafana.dashboards) == ["theirs"]


@every_version
def test_a_dashboard_in_an_unknown_folder_or_from_a_file_is_an_error(grafana: Grafana, client: GrafanaClient) -> None:
    error = failed(lambda: client.save_dashboard({"uid": "d", "title": "A"}, folder_uid="nowhere", version=None))
    assert error.status in (400, 404) and "older not found" in error.message
    client.save_dashboard({"uid": "d", "title": "A"}, folder_uid="", version=None)
    grafana.dashboards["d"]["provisioned"] = True
    saved = client.dashboard("d")
    assert saved is not None and saved.provisioned
    assert failed(lambda: client.save_dashboard({"uid": "d", "title": "B"}, folder_uid="", version=1)).status == 400


@pytest.mark.parametrize("uid", ["", "x" * 41, "a b", "a/b", "ü"])
def test_a_uid_that_grafana_would_refuse_is_not_sent(uid: str, grafana: Grafana, client: GrafanaClient) -> None:
    with pytest.raises(InvalidInput, match="uid"):
        client.create_folder(uid, "x")
    with pytest.raises(InvalidInput, match="uid"):
        client.save_dashboard({"uid": uid, "title": "x"}, folder_uid="", version=None)
    assert grafana.calls == []


def test_a_part_of_a_path_is_quoted(grafana: Grafana, client: GrafanaClient) -> None:
    assert client.folder("a/../../org?x=1&y#z") is None
    assert [call.path for call in grafana.calls] == ["/api/folders/a%2F..%2F..%2Forg%3Fx%3D1%26y%23z"]


# Data sources


@every_version
def test_a_data_source_is_made_once_and_then_replaced(grafana: Grafana, client: GrafanaClient) -> None:
    source = {**SOURCE, "secureJsonData": {"password": SECRET}}
    client.save_data_source(source)
    client.save_data_source({**source, "url": "http://other:9090"})
    assert [(call.verb, call.status) for call in grafana.writes] == [("POST", 200), ("PUT", 200)]
    shown = client.data_source("prom")
    assert shown is not None and shown["url"] == "http://other:9090" and SECRET not in str(shown)


def test_a_data_source_whose_name_is_taken_is_an_error(grafana: Grafana, client: GrafanaClient) -> None:
    client.save_data_source(SOURCE)
    assert failed(lambda: client.save_data_source({**SOURCE, "uid": "other"})).status == 409


@every_version
def test_postgres_has_the_id_that_this_version_knows(grafana: Grafana, client: GrafanaClient) -> None:
    expected = "postgres" if version_is_old(grafana) else "grafana-postgresql-datasource"
    assert client.postgres_type() == expected
    grafana.fail(Fault(200, b'[{"id": "prometheus"}]'), path="/api/plugins")
    with pytest.raises(InvalidInput, match="PostgreSQL"):
        client.postgres_type()


@every_version
@pytest.mark.parametrize("kind", ["prometheus", "postgres", "grafana-postgresql-datasource"])
def test_a_data_source_that_does_not_answer_is_told(kind: str, grafana: Grafana, client: GrafanaClient) -> None:
    client.save_data_source(SOURCE)
    client.ask_data_source("prom", kind)
    grafana.broken_data_sources.add("prom")
    assert "connection refused" in failed(lambda: client.ask_data_source("prom", kind)).message


# Alert rules


@every_version
def test_a_rule_group_becomes_what_it_should_be_whatever_was_there(grafana: Grafana, client: GrafanaClient) -> None:
    furnish(grafana)
    assert set(grafana.rules) == {"r1", "r2"} and grafana.intervals["driftd", "driftd"] == 60
    GrafanaAlerting(client).save_rule_group(group(rule("r2", expression="$A > 2"), rule("r3"), interval=30))
    assert set(grafana.rules) == {"r2", "r3"} and grafana.intervals["driftd", "driftd"] == 30
    assert grafana.rules["r2"]["data"][1]["model"]["expression"] == "$A > 2"
    GrafanaAlerting(client).save_rule_group(group(rule("r2", title="Renamed"), rule("r3")))
    assert grafana.rules["r2"]["title"] == "Renamed"
    # The whole group's PUT changes it at 9.2.
    assert {entry["for"] for entry in grafana.rules.values()} == {"5m"}
    if grafana.numbers >= (9, 5):  # before, what is locked stays so
        calls = [call for call in grafana.calls if "/v1/prov" in call.path]
        assert all(call.headers.get("X-Disable-Provenance") == "true" for call in calls)


@every_version
def test_a_rule_that_somebody_moved_comes_back(grafana: Grafana, client: GrafanaClient) -> None:
    furnish(grafana)
    grafana.folders["theirs"] = {"uid": "theirs", "title": "theirs"}
    grafana.rules["r2"]["folderUID"] = "theirs"
    GrafanaAlerting(client).save_rule_group(group(rule("r1"), rule("r2")))
    assert {entry["folderUID"] for entry in grafana.rules.values()} == {"driftd"}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (group(rule("r1"), interval=7), "multiple of 10"),
        (group(rule("r1"), interval=0), "multiple of 10"),
        (group(), "no rules"),
        (group(rule("r1"), folderUid="nowhere"), "folder"),
        (group(rule("r1"), rule("r1", title="x")), "same uid"),
        (group(rule("r1", title="x"), rule("r2", title="x")), "same title"),
        (group(rule("r1", condition="Z")), "condition"),
        (group(rule("r1", expression="$A > $B")), "names B"),
        (group(rule("r1", expression="${B} > 1")), "names B"),
        (group(rule("x" * 41)), "uid"),
        (group(rule("r1", title="x" * 191)), "title"),
        (group({**rule("r1"), "data": [{"refId": "C", "datasourceUid": "nothere", "model": {}}]}), "nothere"),
        (
            group(
                {
                    **rule("r1"),
                    "data": [
                        {"refId": "C", "datasourceUid": "__expr__", "model": {"type": "reduce", "expression": "Q"}}
                    ],
                }
            ),
            "names Q",
        ),
    ],
)
def test_rules_that_the_server_would_take_but_that_cannot_work_are_not_sent(
    bad: dict[str, Any], said: str, grafana: Grafana, client: GrafanaClient
) -> None:
    client.create_folder("driftd", "driftd")
    client.save_data_source(SOURCE)
    before = len(grafana.writes)
    with pytest.raises(InvalidInput, match=said):
        GrafanaAlerting(client).save_rule_group(bad)
    assert len(grafana.writes) == before


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_what_cannot_be_edited_in_the_browser_is_written_all_the_same_and_stays_so(
    grafana: Grafana, client: GrafanaClient
) -> None:
    """An old Grafana marks all that is provisioned by calls; after its update a call without the mark is refused."""
    furnish(grafana)
    grafana.policies_provenance = "api"
    locked = [*grafana.rules.values(), grafana.contact_points[1]]
    for entry in locked:
        entry["provenance"] = "api"
    alerting = GrafanaAlerting(client)
    alerting.save_contact_point({**POINT, "disableResolveMessage": True})
    alerting.set_route("grafana-default-email")
    alerting.remove_route()
    assert grafana.contact_points[1]["disableResolveMessage"] and alerting.route() is None
    assert grafana.policies_provenance == grafana.contact_points[1]["provenance"] == "api"
    grafana.folders["theirs"] = {"uid": "theirs", "title": "theirs"}
    grafana.rules["r2"]["folderUID"] = "theirs"
    alerting.save_rule_group(group(rule("r1"), rule("r2", expression="$A > 3")))
    assert {entry["folderUID"] for entry in grafana.rules.values()} == {"driftd"}
    assert grafana.rules["r2"]["data"][1]["model"]["expression"] == "$A > 3"


# Contact points and routes


@every_version
def test_our_route_is_first_and_the_rest_of_the_tree_stays(grafana: Grafana, client: GrafanaClient) -> None:
    before = {**grafana.policies, "routes": list(grafana.policies["routes"])}
    GrafanaAlerting(client).save_contact_point(POINT)
    assert GrafanaAlerting(client).route() is None
    GrafanaAlerting(client).set_route("driftd")
    GrafanaAlerting(client).set_route("driftd")
    assert GrafanaAlerting(client).route() == "driftd"
    [ours, *others] = grafana.policies["routes"]
    assert ours == {"receiver": "driftd", "object_matchers": [["source", "=", "driftd"]]} and others == before["routes"]
    GrafanaAlerting(client).set_route("grafana-default-email")
    assert GrafanaAlerting(client).route() == "grafana-default-email" and len(grafana.policies["routes"]) == 2
    GrafanaAlerting(client).remove_route()
    GrafanaAlerting(client).remove_route()
    assert grafana.policies == before


@every_version
def test_a_contact_point_is_deleted_with_our_route_to_it(grafana: Grafana, client: GrafanaClient) -> None:
    GrafanaAlerting(client).save_contact_point(POINT)
    GrafanaAlerting(client).set_route("driftd")
    GrafanaAlerting(client).delete_contact_point("driftd-contact")
    GrafanaAlerting(client).delete_contact_point("driftd-contact")
    assert GrafanaAlerting(client).route() is None and [
        point["name"] for point in GrafanaAlerting(client).contact_points()
    ] == ["grafana-default-email"]


@every_version
def test_a_contact_point_that_others_use_is_not_taken_from_them(grafana: Grafana, client: GrafanaClient) -> None:
    GrafanaAlerting(client).save_contact_point(POINT)
    grafana.policies["routes"].append({"receiver": "driftd", "object_matchers": [["team", "=", "a"]]})
    assert (
        "notification policy" in failed(lambda: GrafanaAlerting(client).delete_contact_point("driftd-contact")).message
    )
    assert len(grafana.policies["routes"]) == 2


def test_a_route_to_nobody_is_an_error(grafana: Grafana, client: GrafanaClient) -> None:
    assert "does not exist" in failed(lambda: GrafanaAlerting(client).set_route("nobody")).message


# Annotations


@every_version
@pytest.mark.parametrize("tag", ["a b", "c&d", "x=1#y?z", "50 %", "ü+ü", "driftd-incident:abc"])
def test_a_tag_is_found_whatever_is_in_it(tag: str, client: GrafanaClient) -> None:
    client.add_annotation(time_ms=1, end_ms=None, tags=["other"], text="another", dashboard_uid="")
    for text in ("first", "second"):
        client.add_annotation(time_ms=1, end_ms=5, tags=[tag, "other"], text=text, dashboard_uid="")
    found = client.annotations(tag)
    assert [(one.text, one.time_ms, one.end_ms) for one in found] == [("first", 1, 5), ("second", 1, 5)]


@every_version
def test_more_annotations_are_found_than_the_server_gives_unasked(client: GrafanaClient) -> None:
    for number in range(101):
        client.add_annotation(time_ms=1, end_ms=None, tags=["t"], text=str(number), dashboard_uid="")
    assert len(client.annotations("t")) == 101, "the server's own limit is 100"


@every_version
def test_an_annotation_changes_its_text_and_end_and_never_its_tags(grafana: Grafana, client: GrafanaClient) -> None:
    client.add_annotation(time_ms=1000, end_ms=None, tags=["t"], text="open", dashboard_uid="")
    [one] = client.annotations("t")
    assert client.change_annotation(one.id, text="still", end_ms=None)
    assert client.change_annotation(one.id, text="over", end_ms=5000)
    assert not client.change_annotation(10_000, text="x", end_ms=None)
    [changed] = client.annotations("t")
    assert (changed.text, changed.time_ms, changed.end_ms, changed.tags) == ("over", 1000, 5000, ("t",))
    assert not any("tags" in call.body for call in grafana.calls if call.verb == "PATCH")
    client.delete_annotation(one.id)
    client.delete_annotation(one.id)
    assert grafana.annotations == []


def test_what_was_sent_as_a_secret_is_not_quoted_back(grafana: Grafana, client: GrafanaClient) -> None:
    body = f'{{"message": "cannot use {SECRET} at http://x/{SECRET}"}}'.encode()
    grafana.fail(Fault(422, body), verb="POST", times=9)
    with_password = {**SOURCE, "secureJsonData": {"password": SECRET}}
    assert "cannot use ***" in failed(lambda: client.save_data_source(with_password)).message
    body = f'{{"message": "cannot reach http://x/{SECRET}"}}'.encode()
    grafana.mend()
    grafana.fail(Fault(422, body), verb="POST")
    with client_of(grafana) as another:
        assert "cannot reach ***" in failed(lambda: GrafanaAlerting(another).save_contact_point(POINT)).message


def test_secrets_are_not_shown() -> None:
    access = Access(url=f"http://admin:{SECRET}@localhost", token=SECRET)
    client = GrafanaClient(access)
    assert SECRET not in f"{access!r} {client!r} {client.place}"
