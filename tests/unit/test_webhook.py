"""The webhook sink against a real HTTP server: body, signature, errors, secrets."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import logging
import re
import socket
import traceback
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from connectors.alert import ALERT_NAMES, RUNBOOKS, rfc3339, runbook_url
from connectors.http_sink import HttpClient, retry_after_s
from connectors.notification import Group, Notification
from connectors.webhook import WebhookSettings, WebhookSink, alertmanager_body
from detectors.errors import InvalidSettings, SinkError
from tests.senders import NOTE
from tests.servers.certificates import self_signed, server_context
from tests.servers.receiver import Answer, Receiver

SECRETS = ("t0psecret", "hunter2", "pathtoken", "querytoken", "bearer-xyz")


def sink_for(url: str, *, secret: bytes | None = None, external_url: str = "", **connection: Any) -> WebhookSink:
    return WebhookSink(HttpClient("webhook", url, **connection), secret=secret, external_url=external_url)


def everything_in(error: BaseException) -> str:
    """The whole chain of an error, as any logger could print it."""
    text = "".join(traceback.format_exception(error))
    context: BaseException | None = error
    while context is not None:
        text += f"{context!r} {context} {vars(context)}"
        context = context.__cause__ or context.__context__
    return text


def test_the_body_is_alertmanagers_version_4_with_the_notification_id() -> None:
    with Receiver() as receiver:
        sink_for(receiver.url, external_url="http://127.0.0.1:9464").send(NOTE)
    request = receiver.requests[0]
    labels = {
        "alertname": "EmbeddingDrift",
        "model": "triage",
        "kind": "drift",
        "severity": "page",
        "space": "input",
        "segment": "country=DE",
    }
    annotations = {
        "strength": "6.3",
        "summary": "triage: traffic changed",
        "description": "It changed.",
        "runbook_url": "docs/runbooks.md#embeddingdrift",
        "incident": "abc123",
        "notification_id": "note-1",
    }
    assert request.json == {
        "version": "4",
        "groupKey": "triage",
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "driftd",
        "groupLabels": {"model": "triage"},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "http://127.0.0.1:9464",
        "alerts": [
            {
                "status": "firing",
                "labels": labels,
                "annotations": annotations,
                "startsAt": "2023-11-14T22:13:20.123Z",
                "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "http://127.0.0.1:9464",
                "fingerprint": hashlib.sha256(b"triage/drift/input/country=DE").hexdigest()[:16],
            }
        ],
    }
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Idempotency-Key"] == "note-1"
    assert "X-Driftd-Signature" not in request.headers


def test_a_resolved_body_has_its_end_and_the_same_fingerprint_and_no_empty_label() -> None:
    resolved = dataclasses.replace(
        NOTE, status="resolved", severity="warn", ends_ms=1_700_000_100_000, values={"x": "1"}
    )
    with Receiver() as receiver:
        sink = sink_for(receiver.url)
        sink.send(NOTE)
        sink.send(resolved)
        sink.send(dataclasses.replace(NOTE, space="", segment=""))
        sink.close()
    first, second, third = (request.json["alerts"][0] for request in receiver.requests)
    assert second["status"] == "resolved" and second["endsAt"] == "2023-11-14T22:15:00.000Z"
    assert first["fingerprint"] == second["fingerprint"]
    assert "space" not in third["labels"] and "segment" not in third["labels"]


def test_a_group_is_one_request_with_an_alert_for_each_incident_and_what_they_have_in_common() -> None:
    again = dataclasses.replace(NOTE, id="note-2", title="Still so: triage: traffic changed")
    other = dataclasses.replace(
        NOTE, id="note-3", incident="def456", group_key="triage/gap//", kind="gap", space="", segment="", title="gap"
    )
    group = Group("triage", (NOTE, other, again), 2, 2)
    with Receiver() as receiver:
        sink = sink_for(receiver.url)
        sink.send_group(group)
        sink.send_group(group)
        sink.send_group(dataclasses.replace(group, notifications=(NOTE, other)))
    first, repeated, less = receiver.requests
    assert [alert["annotations"]["notification_id"] for alert in first.json["alerts"]] == ["note-3", "note-2"]
    assert first.json["groupKey"] == "triage" and first.json["groupLabels"] == {"model": "triage"}
    assert first.json["commonLabels"] == {"model": "triage", "severity": "page"}
    assert first.json["commonAnnotations"] == {"description": "It changed.", "strength": "6.3"}
    assert first.headers["Idempotency-Key"] == repeated.headers["Idempotency-Key"]
    assert first.headers["Idempotency-Key"] != less.headers["Idempotency-Key"]
    assert "note" not in first.headers["Idempotency-Key"]


def test_a_group_of_several_models_names_none() -> None:
    body = alertmanager_body(Group("*", (NOTE, dataclasses.replace(NOTE, incident="b", model="other")), 2, 2))
    assert body["groupKey"] == "*" and body["groupLabels"] == {} and "model" not in body["commonLabels"]


def test_a_group_is_resolved_when_nothing_of_it_is_open_any_more() -> None:
    over = dataclasses.replace(NOTE, status="resolved", ends_ms=1_700_000_100_000)
    assert alertmanager_body(Group("triage", (over,), 1, 0))["status"] == "firing"
    assert alertmanager_body(Group("triage", (over,), 0, 0))["status"] == "resolved"


def test_the_signature_covers_timestamp_and_body() -> None:
    with Receiver() as receiver:
        sink_for(receiver.url, secret=b"t0psecret", clock=lambda: 1234.9).send(NOTE)
    request = receiver.requests[0]
    assert request.headers["X-Driftd-Timestamp"] == "1234"
    expected = hmac.new(b"t0psecret", b"1234." + request.body, hashlib.sha256).hexdigest()
    assert request.headers["X-Driftd-Signature"] == f"sha256={expected}"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_an_answer_that_may_change_is_retryable(status: int) -> None:
    with Receiver(Answer(status, {"Retry-After": "7"})) as receiver, pytest.raises(SinkError, match=str(status)) as got:
        sink_for(receiver.url).send(NOTE)
    assert got.value.retryable and got.value.retry_after_s == 7.0


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 403, 404, 410, 413, 422, 501])
def test_an_answer_that_will_not_change_is_final(status: int) -> None:
    answer = Answer(status, {"Retry-After": "7", "Location": "/elsewhere?token=querytoken"})
    with Receiver(answer) as receiver, pytest.raises(SinkError, match=str(status)) as got:
        sink_for(receiver.url).send(NOTE)
    assert not got.value.retryable and got.value.retry_after_s is None
    assert len(receiver.requests) == 1, "a redirect was followed"
    assert "querytoken" not in everything_in(got.value)


def test_retry_after_is_read_as_seconds_and_as_a_date() -> None:
    assert retry_after_s("12", 0.0) == 12.0
    assert retry_after_s(formatdate(1000.0, usegmt=True), 940.0) == 60.0
    assert retry_after_s(formatdate(1000.0, usegmt=True), 2000.0) == 0.0
    assert retry_after_s("99999999999999999999", 0.0) == 3600.0
    for nonsense in ("soon", "-5", "1.5", "", "²", "Wed, 99 Foo 2020 00:00:00 GMT"):
        assert retry_after_s(nonsense, 0.0) is None, nonsense
    assert retry_after_s(None, 0.0) is None


def test_a_receiver_that_does_not_answer_is_given_up_after_the_time_out() -> None:
    with Receiver(Answer(hang=True)) as receiver, pytest.raises(SinkError, match=r"no answer within 0\.2 s") as got:
        sink_for(receiver.url, timeout_s=0.2).send(NOTE)
    assert got.value.retryable


def test_a_receiver_that_is_not_there_is_retryable_and_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        sink = sink_for(f"http://127.0.0.1:{free.getsockname()[1]}/")
        for call in (lambda: sink.send(NOTE), sink.check):
            with pytest.raises(SinkError, match=r"[Cc]onnection refused") as got:
                call()
            assert got.value.retryable


def test_a_huge_answer_is_not_read() -> None:
    with Receiver(Answer(200, body=b"x" * (64 << 20))) as receiver:
        sink_for(receiver.url, timeout_s=2).send(NOTE)


def test_an_answer_whose_body_never_comes_is_an_answer() -> None:
    with Receiver(Answer(200, body=b"x" * 1000, stall=True)) as receiver:
        sink_for(receiver.url, timeout_s=0.5).send(NOTE)


def test_a_sink_works_again_after_the_connection_broke() -> None:
    with Receiver() as receiver:
        sink = sink_for(receiver.url)
        sink.send(NOTE)
        sink.close()
        sink.send(NOTE)
        sink.close()
    assert len(receiver.requests) == 2


def test_no_secret_shows_in_errors_logs_repr_or_descriptions(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = free.getsockname()[1]
        with Receiver(Answer(403, body=b"t0psecret hunter2 bearer-xyz")) as receiver:
            for port in (dead, receiver.port):
                settings = WebhookSettings(
                    url=SecretStr(f"http://anna:hunter2@127.0.0.1:{port}/pathtoken?key=querytoken"),
                    secret=SecretStr("t0psecret"),
                    headers={"X-Token": SecretStr("bearer-xyz")},
                )
                sink = settings.build()
                with pytest.raises(SinkError) as got:
                    sink.send(NOTE)
                described = [repr(settings), str(settings), repr(sink), everything_in(got.value), caplog.text]
                if port != dead:
                    described.append(sink.check())
                for secret in SECRETS:
                    assert secret not in "".join(described), f"{secret} shows"
        request = receiver.requests[-1]
    assert request.headers["X-Token"] == "bearer-xyz" and request.path == "/pathtoken?key=querytoken"
    assert request.headers["Authorization"].startswith("Basic ")


def test_an_authorization_header_of_the_settings_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with Receiver() as receiver:
        sink_for(receiver.url, headers={"Authorization": "Bearer mine"}).send(NOTE)
    assert receiver.requests[0].headers["Authorization"] == "Bearer mine"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("tls"))


def test_a_certificate_is_checked_unless_it_is_known_or_checking_is_off(certificate: tuple[Path, Path]) -> None:
    with Receiver(tls=server_context(certificate)) as receiver:
        stranger = WebhookSettings(url=SecretStr(receiver.url)).build()
        for call in (lambda: stranger.send(NOTE), stranger.check):
            with pytest.raises(SinkError) as got:
                call()
            assert got.value.retryable and "ca_file" in got.value.hint
        assert receiver.requests == []
        known = WebhookSettings(url=SecretStr(receiver.url), ca_file=certificate[0]).build()
        known.send(NOTE)
        assert known.check() == f"webhook https://127.0.0.1:{receiver.port}, not signed"
        known.close()
        trusting = WebhookSettings(url=SecretStr(receiver.url), verify_tls=False).build()
        trusting.send(NOTE)
        assert "certificate not checked" in trusting.check()
        trusting.close()
    assert len(receiver.requests) == 2


def test_the_key_is_read_from_a_file_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("t0psecret\n")
    with Receiver() as receiver:
        WebhookSettings(url=SecretStr(receiver.url), secret_file=tmp_path / "key").build().send(NOTE)
    request = receiver.requests[0]
    signed = request.headers["X-Driftd-Timestamp"].encode() + b"." + request.body
    assert request.headers["X-Driftd-Signature"].endswith(hmac.new(b"t0psecret", signed, hashlib.sha256).hexdigest())


def test_files_that_are_missing_or_empty_are_named(tmp_path: Path) -> None:
    url = SecretStr("https://example.org/")
    (tmp_path / "empty").write_text("\n")
    for settings, words in (
        (WebhookSettings(url=url, secret_file=tmp_path / "none"), "secret_file .*none cannot be read"),
        (WebhookSettings(url=url, secret_file=tmp_path / "empty"), "secret is empty"),
        (WebhookSettings(url=url, ca_file=tmp_path / "none"), "ca_file .*none does not exist"),
    ):
        with pytest.raises(InvalidSettings, match=words):
            settings.build()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"url": "example.org/hook"}, "expected an address"),
        ({"url": "ftp://example.org"}, "expected an address"),
        ({"url": "http://"}, "expected an address"),
        ({"url": "http://example.org:99999"}, "expected an address"),
        ({"secret": "a", "secret_file": "b"}, "both set"),
        ({"headers": {"X-A": "one\r\nX-B: two"}}, "one line"),
        ({"headers": {"X A": "one"}}, "name"),
        ({"headers": {"X-Driftd-Signature": "one"}}, "set by driftd"),
        ({"timeout_s": 0}, "greater than 0"),
        ({"colour": "red"}, "extra"),
        ({"preset": "slack", "secret": "hunter2"}, "takes no secret"),
        ({"preset": "pagerduty"}, "needs secret or secret_file, which holds its routing key"),
        ({"preset": "opsgenie"}, "its API key"),
        ({"preset": "teams", "url": None}, "preset teams needs url"),
        ({"url": None}, "preset alertmanager needs url"),
        ({"preset": "telegraph"}, "alertmanager"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as got:
        WebhookSettings.model_validate({"url": "https://hunter2@example.org/", **wrong})
    assert "hunter2" not in str(got.value.errors(include_input=False))


def test_every_alert_has_its_section_in_the_runbooks() -> None:
    text = (Path(__file__).resolve().parents[2] / RUNBOOKS).read_text()
    sections = {line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")}
    assert {runbook_url(kind).partition("#")[2] for kind in ALERT_NAMES} <= sections


def test_times_are_written_exactly_and_within_the_calendar() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(-1) == "1969-12-31T23:59:59.999Z"
    assert rfc3339(1_700_000_000_999) == "2023-11-14T22:13:20.999Z"
    assert rfc3339(10**18) == "9999-12-31T23:59:59.999Z"
    assert rfc3339(-(10**18)) == "0001-01-01T00:00:00.000Z"


# --- docs/sinks.md ---------------------------------------------------------------------------------------------------

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "sinks.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def test_the_body_in_the_document_is_what_is_sent() -> None:
    (shown,) = [json.loads(block) for block in blocks("json") if block.startswith("{")]
    alert = shown["alerts"][0]
    annotations = dict(alert["annotations"])
    assert annotations.pop("runbook_url") == "docs/runbooks.md#embeddingdrift"
    note = Notification(
        id=annotations.pop("notification_id"),
        incident=annotations.pop("incident"),
        group_key="support_triage/drift/input/country=DE",
        status=shown["status"],
        severity=alert["labels"]["severity"],
        model=alert["labels"]["model"],
        kind=alert["labels"]["kind"],
        space=alert["labels"]["space"],
        segment=alert["labels"]["segment"],
        title=annotations.pop("summary"),
        text=annotations.pop("description"),
        starts_ms=1_699_999_970_000,
        ends_ms=None,
        values=annotations,
    )
    assert alertmanager_body(Group.of(note), external_url=shown["externalURL"]) == shown


def test_the_verification_in_the_document_accepts_ours_and_nothing_else() -> None:
    (program,) = blocks("python")
    names: dict[str, Any] = {}
    exec(program, names)
    verify = names["is_from_driftd"]
    with Receiver() as receiver:
        sink_for(receiver.url, secret=b"key", clock=lambda: 1000.0).send(NOTE)
    request = receiver.requests[0]
    assert verify(request.headers, request.body, b"key", 1010.0)
    assert not verify(request.headers, request.body + b" ", b"key", 1010.0)
    assert not verify(request.headers, request.body, b"other", 1010.0)
    assert not verify(request.headers, request.body, b"key", 2000.0)
    later = {**request.headers, "X-Driftd-Timestamp": "1500"}
    assert not verify(later, request.body, b"key", 1510.0), "an old request must not pass with a new timestamp"
