"""The sink `email` against a real mail server: what arrives, threads, refusals, TLS, log-in, secrets."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from connectors.mail import EmailSettings, EmailSink, message_for
from connectors.notification import Group, GroupSink
from detectors.errors import InvalidSettings, SinkError
from tests import senders
from tests.servers.certificates import self_signed, server_context
from tests.servers.smtp import MailServer

NOTE = dataclasses.replace(
    senders.NOTE,
    title="triage: input has drifted (country=DE)",
    text="Since about 2023-11-14 22:12:50Z ... 62 % of the change comes from channel=chat. Next: driftd explain abc123",
    starts_ms=1_699_999_970_000,
    values={"strength": "6.3", "threshold": "5.9"},
)
OTHER = dataclasses.replace(NOTE, id="note-2", incident="def456", severity="warn", title="triage: <b>outliers</b> ü")
ANNA, BOB, CARL = "anna@example.org", "bob@example.org", "carl@example.org"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("tls"))


def settings_for(port: int, **more: Any) -> EmailSettings:
    given: dict[str, Any] = {"host": "127.0.0.1", "security": "none", "sender": "driftd@example.org", "to": [ANNA, BOB]}
    return EmailSettings.model_validate({**given, "port": port, **more})


def sink_for(server: MailServer, **more: Any) -> EmailSink:
    return settings_for(server.port, **more).build()


@contextmanager
def scripted(*answers: bytes) -> Iterator[int]:
    """A server that says these, one for each line that comes, and then hangs up; at an empty one it falls silent."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        over = threading.Event()

        def talk() -> None:
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as lines:
                for answer in answers:
                    if not answer:
                        over.wait(30)
                        return
                    connection.sendall(answer)
                    lines.readline()

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        over.set()
        thread.join(5)


def parts_of(message: Any) -> tuple[str, str]:
    return message.get_body(("plain",)).get_content(), message.get_body(("html",)).get_content()


def test_a_message_says_everything_as_text_and_as_html() -> None:
    with MailServer() as server:
        sink = sink_for(server, external_url="https://driftd.example.org")
        assert isinstance(sink, GroupSink)
        sink.send_group(Group("triage", (OTHER, NOTE), 3, 1))
    (mail,) = server.mails
    assert (mail.sender, mail.to) == ("driftd@example.org", (ANNA, BOB))
    assert mail.message["To"] == f"{ANNA}, {BOB}" and mail.message["From"] == "driftd@example.org"
    assert mail.message["Subject"] == "[driftd] PAGE triage: input has drifted (country=DE), and 1 more"
    assert (mail.message["X-Driftd-Severity"], mail.message["Auto-Submitted"]) == ("page", "auto-generated")
    text, html = parts_of(mail.message)
    for part in (text, html):
        for words in (
            "input has drifted",
            "since 2023-11-14 22:12:50Z",
            "strength 6.3 (alarm from 5.9)",
            "62 % of the change",
            "driftd explain abc123",
            "3 incidents of triage are open, 1 of them a page.",
            "https://driftd.example.org",
        ):
            assert words in part, words
    assert "Next:" in text and "<b>outliers</b> ü" in text
    assert "&lt;b&gt;outliers&lt;/b&gt; ü" in html and "<b>outliers" not in html
    assert mail.raw.isascii(), "some servers take nothing else"


def test_messages_about_a_model_are_a_thread_and_one_that_comes_again_is_the_same() -> None:
    over = dataclasses.replace(NOTE, id="note-3", status="resolved", ends_ms=1_700_000_000_000)
    with MailServer() as server:
        sink = sink_for(server)
        for group in (Group.of(NOTE), Group.of(NOTE), Group("triage", (over, OTHER), 1, 0)):
            sink.send_group(group)
        sink.send(dataclasses.replace(NOTE, id="note-9", model="checkout"))
    first, again, later, other = (mail.message for mail in server.mails)
    assert first["Message-ID"] == again["Message-ID"] != later["Message-ID"]
    assert first["References"] == first["In-Reply-To"] == later["References"] != other["References"]
    assert first["Message-ID"].endswith("@example.org>")


def test_nothing_in_a_record_can_write_a_header() -> None:
    evil = "a\r\nBcc: victim@example.org\r\n\r\nhello \x00\x1b[31m \u202e \ud800"
    note = dataclasses.replace(
        NOTE, model=evil, title=evil, segment=evil, text=evil * 2000, id=evil, incident=evil, values={"strength": evil}
    )
    with MailServer() as server:
        sink_for(server).send_group(Group(evil, (note,), 1, 1))
    (mail,) = server.mails
    assert mail.to == (ANNA, BOB) and mail.message["Bcc"] is None
    assert mail.message["Subject"].startswith("[driftd] PAGE a\\u000d Bcc: victim")
    assert set(mail.message.keys()) == set(message_for(Group.of(NOTE), sender="a@b", to=["c@d"], now_s=0).keys())


@pytest.mark.parametrize(("answer", "retryable"), [("451 try later", True), ("550 go away", False), ("421 busy", True)])
@pytest.mark.parametrize("where", ["MAIL", "DATA", ANNA])
def test_answers_of_4xx_are_tried_again_and_5xx_are_not(where: str, answer: str, retryable: bool) -> None:
    with MailServer() as server:
        server.answers[where] = answer
        sink = sink_for(server, to=[ANNA])
        with pytest.raises(SinkError, match=answer[:3]) as got:
            sink.send(NOTE)
        assert got.value.retryable is retryable
        server.answers.clear()
        sink.send(NOTE)
    assert len(server.mails) == 1


def test_a_message_that_is_put_off_for_some_goes_again_to_those_only() -> None:
    with MailServer() as server:
        server.answers[BOB] = "452 mailbox full"
        sink = sink_for(server, to=[ANNA, BOB, CARL])
        with pytest.raises(SinkError, match=r"bob@example.org \(452 mailbox full\)") as got:
            sink.send(NOTE)
        assert got.value.retryable and "anna" not in str(got.value)
        server.answers.clear()
        sink.send(NOTE)
        sink.send(dataclasses.replace(NOTE, id="another"))
    assert [mail.to for mail in server.mails] == [(ANNA, CARL), (BOB,), (ANNA, BOB, CARL)]
    assert server.mails[0].message["To"] == server.mails[1].message["To"] == f"{ANNA}, {BOB}, {CARL}"


def test_who_is_refused_for_good_is_named_in_the_log_where_others_took_it(caplog: pytest.LogCaptureFixture) -> None:
    with MailServer() as server:
        server.answers[BOB] = "550 no such user"
        sink = sink_for(server)
        sink.send(NOTE)
        assert "bob@example.org (550 no such user)" in caplog.text
        server.answers[ANNA] = "450 later"
        with pytest.raises(SinkError) as got:
            sink.send(NOTE)
        assert got.value.retryable, "somebody may take it later"
        server.answers[ANNA] = "550 gone"
        with pytest.raises(SinkError, match=r"refuses anna.*; bob") as got:
            sink.send(NOTE)
        assert not got.value.retryable
    assert [mail.to for mail in server.mails] == [(ANNA,)]


def test_starttls_and_tls_check_the_certificate_and_log_in(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3same\n")
    login = {"user": "anna", "password_file": str(tmp_path / "password"), "ca_file": str(certificate[0])}
    for security in ("starttls", "tls"):
        with MailServer(
            tls=server_context(certificate), from_the_start=security == "tls", users={"anna": "s3same"}
        ) as server:
            sink = sink_for(server, security=security, **login)
            sink.send(NOTE)
            how = "STARTTLS" if security == "starttls" else "TLS"
            line = f"email 127.0.0.1:{server.port}, {how}, logged in as anna, to 2 addresses"
            assert sink.check() == line
            stranger = sink_for(server, security=security, **{**login, "ca_file": None})
            with pytest.raises(SinkError, match="certificate is refused") as got:
                stranger.send(NOTE)
            assert got.value.retryable and "ca_file" in got.value.hint
            wrong = sink_for(server, security=security, **{**login, "password_file": None, "password": "wr0ng"})
            for call in (wrong.check, lambda: wrong.send(NOTE)):  # noqa: B023
                with pytest.raises(SinkError, match="535 to our log-in") as got:
                    call()
                assert not got.value.retryable and "password" in got.value.hint
            assert len(server.mails) == 1 and set(server.logged_in) == {"anna"}


def test_a_server_without_starttls_gets_no_message() -> None:
    with MailServer() as server:
        sink = sink_for(server, security="starttls")
        for call in (sink.check, lambda: sink.send(NOTE)):
            with pytest.raises(SinkError, match="does not offer STARTTLS") as got:
                call()
            assert not got.value.retryable
    assert server.mails == []


def test_tls_at_the_wrong_port_says_which_belong_together() -> None:
    with MailServer() as server, pytest.raises(SinkError, match="TLS fails") as got:
        sink_for(server, security="tls").check()
    assert "587" in got.value.hint


def test_a_server_that_is_not_there_hangs_or_hangs_up_is_tried_again() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(SinkError, match="connection refused") as got:
            settings_for(free.getsockname()[1]).build().send(NOTE)
        assert got.value.retryable
    hello = b"220 here\r\n", b"250 hello\r\n"
    cases: list[tuple[tuple[bytes, ...], str]] = [
        ((b"",), r"no answer within 0\.3 s"),
        ((*hello, b""), r"no answer within 0\.3 s"),
        ((*hello, b"250 OK\r\n"), "ends the connection"),
        ((b"421 too busy\r\n",), "421 to our connection: too busy"),
    ]
    for answers, words in cases:
        with scripted(*answers) as port, pytest.raises(SinkError, match=words) as got:
            settings_for(port, timeout_s=0.3).build().send(NOTE)
        assert got.value.retryable, words


def test_a_slow_server_is_given_up_in_the_middle_of_many_recipients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.smtp.LONGEST_S", 1.0)
    with MailServer() as server:
        server.delay_s = 0.1
        sink = sink_for(server, to=[f"p{n}@example.org" for n in range(100)])
        before = time.monotonic()
        with pytest.raises(SinkError, match="no answer") as got:
            sink.send(NOTE)
        assert got.value.retryable and time.monotonic() - before < 8, "of ten seconds"
    assert server.mails == []


def test_what_is_no_mail_server_is_not_tried_for_ever() -> None:
    with scripted(b"554 no\r\n") as port, pytest.raises(SinkError, match="554") as got:
        settings_for(port).build().send(NOTE)
    assert not got.value.retryable


def test_the_check_sends_nothing() -> None:
    with MailServer() as server:
        line = sink_for(server, to=[ANNA]).check()
        assert line == f"email 127.0.0.1:{server.port}, no TLS, without log-in, to 1 address"
    assert server.mails == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"to": []}, "at least 1"),
        ({"to": ["anna"]}, "expected an address"),
        ({"to": ["a@b.org\r\nBcc: c@d.org"]}, "expected an address"),
        ({"sender": "driftd <driftd@example.org>"}, "expected an address"),
        ({"host": "smtp example"}, "name of a mail server"),
        ({"user": "anna"}, "needs one of password and password_file"),
        ({"password": "x"}, "neither is used without user"),
        ({"user": "anna", "password": "x", "security": "none"}, "plain text"),
        ({"user": "anna", "password": "x", "password_file": "y"}, "needs one of"),
        ({"external_url": "here"}, "expected an address"),
        ({"port": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object], words: str) -> None:
    given = {"host": "smtp.example.org", "sender": "driftd@example.org", "to": [ANNA], **wrong}
    with pytest.raises(ValidationError, match=words):
        EmailSettings.model_validate(given)


def test_files_and_passwords_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    (tmp_path / "ümlaut").write_text("pässword")
    given: dict[str, Any] = {"security": "tls", "user": "anna"}
    for more, words in (
        ({"password_file": tmp_path / "none"}, "password_file .*none cannot be read"),
        ({"password_file": tmp_path / "ümlaut"}, "beyond ASCII"),
        ({"password": "x", "ca_file": tmp_path / "none"}, "ca_file .*none cannot be used"),
        ({"password": "x", "ca_file": tmp_path / "no.pem"}, "ca_file .*no.pem cannot be used"),
    ):
        with pytest.raises(InvalidSettings, match=words) as got:
            settings_for(1, **given, **more).build()
        assert "pässword" not in str(got.value)


def test_ports_follow_from_the_security() -> None:
    for security, port in (("starttls", 587), ("tls", 465), ("none", 25)):
        given = {"host": "127.0.0.1", "security": security, "sender": "driftd@example.org", "to": [ANNA]}
        sink = EmailSettings.model_validate(given).build()
        assert repr(sink) == f"EmailSink(127.0.0.1:{port})"
