"""Sink `grafana`: one annotation for an incident, whatever happens on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.grafana import GrafanaClient
from connectors.grafana_annotations import GrafanaSettings, GrafanaSink, tags_of, text_of
from connectors.notification import GroupSink, Notification
from detectors.errors import InvalidSettings, SinkError
from tests.servers.grafana import PROXY_PAGE, VERSIONS, Fault, Grafana

every_version = pytest.mark.parametrize("version", VERSIONS)
OPENED = Notification(
    id="n1",
    incident="3f2a91c0de11",
    group_key="triage/drift/input/country=DE",
    status="firing",
    severity="warn",
    model="triage",
    kind="drift",
    space="input",
    segment="country=DE",
    title="triage: input may be drifting (country=DE)",
    text="Since about 2023-11-14 the average record has moved.",
    starts_ms=1_700_000_000_000,
    ends_ms=None,
    values={"event": "opened"},
)
RAISED = replace(OPENED, id="n2", severity="page", title="Now a page: triage: input has drifted", text="More of it.")
RESOLVED = replace(OPENED, id="n3", status="resolved", title="Resolved: triage", ends_ms=1_700_000_600_000)


@pytest.fixture
def version() -> str:
    return VERSIONS[0]


@pytest.fixture
def grafana(version: str) -> Iterator[Grafana]:
    with Grafana(version) as server:
        server.folders["driftd"] = {"uid": "driftd", "title": "driftd"}
        server.dashboards["driftd-drift"] = {
            "id": 1, "folder": "driftd", "version": 1, "provisioned": False, "content": {"title": "Drift"}
        }  # fmt: skip
        yield server


def sink_of(grafana: Grafana, role: str = "Editor", **more: Any) -> GrafanaSink:
    return GrafanaSettings.model_validate(
        {"url": grafana.url, "token": grafana.token(role), "timeout_s": 2, **more}
    ).build()


@pytest.fixture
def sink(grafana: Grafana) -> Iterator[GrafanaSink]:
    made = sink_of(grafana)
    yield made
    made.close()


def refused(sink: GrafanaSink, notification: Notification = OPENED) -> SinkError:
    with pytest.raises(SinkError) as caught:
        sink.send(notification)
    assert "glsa_" not in str(caught.value) + repr(caught.value.__cause__)
    return caught.value


@every_version
def test_an_incident_is_one_region_from_its_onset_to_its_end(grafana: Grafana, sink: GrafanaSink) -> None:
    sink.send(OPENED)
    sink.send(RAISED)
    [open_one] = grafana.annotations
    assert open_one["time"] == open_one["timeEnd"] == OPENED.starts_ms and open_one["text"].startswith("Now a page")
    sink.send(RESOLVED)
    [over] = grafana.annotations
    assert (over["time"], over["timeEnd"], over["dashboardUID"]) == (OPENED.starts_ms, RESOLVED.ends_ms, "driftd-drift")
    assert over["text"].splitlines() == ["Resolved: triage", OPENED.text, "driftd explain 3f2a91c0de11"]
    assert over["tags"] == [
        "driftd-incident:3f2a91c0de11",
        "driftd",
        "model:triage",
        "kind:drift",
        "severity:warn",
        "space:input",
        "segment:country=DE",
    ]
    assert not any("tags" in call.body for call in grafana.calls if call.verb == "PATCH")


@every_version
@pytest.mark.parametrize("notification", [OPENED, RESOLVED])
def test_a_lost_answer_or_a_crash_before_the_mark_makes_no_second_annotation(
    notification: Notification, grafana: Grafana, sink: GrafanaSink
) -> None:
    grafana.fail(Fault(reset=True, done=True), verb="POST", path="/api/annotations")
    assert refused(sink, notification).retryable
    sink_of(grafana).send(notification)  # another process, after a crash
    sink.send(notification)
    assert len(grafana.annotations) == 1


def test_among_many_other_annotations_the_incidents_own_is_found(grafana: Grafana, sink: GrafanaSink) -> None:
    for number in range(120):
        sink.send(replace(OPENED, incident=f"other{number}"))
    sink.send(OPENED)
    for number in range(120, 240):
        sink.send(replace(OPENED, incident=f"other{number}"))
    sink.send(RESOLVED)
    assert len(grafana.annotations) == 241
    assert [one["time"] for one in grafana.annotations if one["timeEnd"] != one["time"]] == [OPENED.starts_ms]


def test_two_that_were_made_at_the_same_moment_become_one(grafana: Grafana, sink: GrafanaSink) -> None:
    sink.send(OPENED)
    grafana.annotations.append({**grafana.annotations[0], "id": 999})
    sink.send(RESOLVED)
    assert [(one["id"] == 999, one["timeEnd"]) for one in grafana.annotations] == [(False, RESOLVED.ends_ms)]


def test_an_annotation_that_somebody_deleted_meanwhile_is_made_again(grafana: Grafana, sink: GrafanaSink) -> None:
    sink.send(OPENED)
    grafana.annotations.clear()
    sink.send(RAISED)
    assert len(grafana.annotations) == 1
    grafana.fail(Fault(404, b'{"message": "Annotation not found"}'), verb="PATCH")  # deleted after it was found
    sink.send(RESOLVED)
    assert grafana.annotations[-1]["timeEnd"] == RESOLVED.ends_ms


@every_version
def test_without_the_dashboard_the_annotation_is_the_organisations(grafana: Grafana, sink: GrafanaSink) -> None:
    grafana.dashboards.clear()
    sink.send(OPENED)
    sink.send(RESOLVED)
    assert [one["dashboardUID"] for one in grafana.annotations] == [""]
    assert "all dashboards" in sink.check()


@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        (status, status in (408, 429, 500, 502, 503, 504))
        for status in (400, 401, 403, 408, 409, 422, 429, 500, 502, 503)
    ],
)
@pytest.mark.parametrize("verb", ["GET", "POST", "PATCH"])
def test_a_refusal_says_whether_to_try_again(
    verb: str, status: int, retryable: bool, grafana: Grafana, sink: GrafanaSink
) -> None:
    if verb == "PATCH":
        sink.send(OPENED)
    fault = Fault(status, b'{"message": "no"}', {"Retry-After": "30"} if status == 429 else {})
    grafana.fail(fault, verb=verb, path="/api/annotations.*")
    error = refused(sink)
    assert error.retryable is retryable and error.retry_after_s == (30.0 if status == 429 else None)
    assert str(status) in error.message
    sink.send(OPENED)
    assert len(grafana.annotations) == 1


@pytest.mark.parametrize(
    "fault", [Fault(200, PROXY_PAGE), Fault(200, b""), Fault(200, b"{}"), Fault(reset=True)], ids=str
)
def test_a_page_in_between_or_a_broken_answer_is_tried_again(fault: Fault, grafana: Grafana, sink: GrafanaSink) -> None:
    grafana.fail(fault, verb="GET")
    assert refused(sink).retryable
    sink.send(OPENED)
    assert len(grafana.annotations) == 1


def test_a_grafana_that_hangs_is_left_in_time(grafana: Grafana) -> None:
    sink = sink_of(grafana, timeout_s=0.1)
    sink.send(OPENED)
    grafana.fail(Fault(hang=True), verb="PATCH", path="/api/annotations/[0-9]+")
    assert "no answer within 0.1 s" in refused(sink, RESOLVED).message
    sink.send(RESOLVED)
    assert [one["timeEnd"] for one in grafana.annotations] == [RESOLVED.ends_ms]
    sink.close()


def test_a_viewer_is_told_at_once_what_it_lacks(grafana: Grafana) -> None:
    sink = sink_of(grafana, "Viewer")
    with pytest.raises(SinkError, match="Editor"):
        sink.check()
    assert not refused(sink).retryable
    sink.close()


@every_version
def test_check_names_place_version_and_dashboard(grafana: Grafana, sink: GrafanaSink) -> None:
    line = sink.check()
    assert grafana.url in line and grafana.version in line and "dashboard driftd-drift" in line
    assert grafana.writes == []


def test_it_gets_each_notification_at_once(sink: GrafanaSink) -> None:
    assert not isinstance(sink, GroupSink)


@given(st.text(max_size=300), st.text(max_size=300), st.text(max_size=5000))
def test_whatever_a_record_holds_tags_and_text_fit_and_are_no_html(segment: str, title: str, text: str) -> None:
    odd = replace(OPENED, segment=segment, space=segment, model=segment, title=title, text=text)
    tags = tags_of(odd)
    as_go_writes_it = json.dumps(tags, ensure_ascii=False)
    for character in "<>&":
        as_go_writes_it = as_go_writes_it.replace(character, "\\u003c")
    assert len(as_go_writes_it.encode(errors="replace")) <= 500 and all(0 < len(tag) <= 100 for tag in tags)
    assert tags[0] == "driftd-incident:3f2a91c0de11"
    shown = text_of(odd)
    assert "<" not in shown and len(shown) <= 5 * 4000 and "\n" in shown


@pytest.mark.parametrize("settings", [{}, {"token": "a", "token_file": "b"}, {"token": "a", "timeout_s": 11}])
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"token|timeout_s"):
        GrafanaSettings.model_validate({"url": "http://localhost:3000", **settings})
    with pytest.raises(ValueError, match="address"):
        GrafanaSettings.model_validate({"url": "localhost:3000", "token": "a"})


def test_a_token_file_and_a_ca_file_are_looked_at_when_it_is_built(tmp_path: Path, grafana: Grafana) -> None:
    with pytest.raises(InvalidSettings, match="token_file"):
        sink_of(grafana, token=None, token_file=tmp_path / "none")
    with pytest.raises(InvalidSettings, match="ca_file"):
        sink_of(grafana, ca_file=tmp_path / "none")
    (tmp_path / "token").write_text(grafana.token("Editor") + "\n")
    sink = sink_of(grafana, token=None, token_file=tmp_path / "token")
    sink.send(OPENED)
    assert len(grafana.annotations) == 1 and "glsa_" not in repr(sink)
    sink.close()


def test_each_send_makes_few_calls(grafana: Grafana, sink: GrafanaSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GrafanaClient, "version", property(lambda self: pytest.fail("not needed to send")))
    sink.send(OPENED)
    sink.send(RESOLVED)
    assert [call.verb for call in grafana.calls] == ["GET", "POST", "GET", "PATCH"]
