"""No sink shows a secret: not in an error or what hangs on it, not in a log, not in its text, however it fails.

Every kind of the union of settings is here, with secrets that are easy to find; a new kind fails until it is, too.
"""

from __future__ import annotations

import base64
import logging
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from connectors import SinkSettings
from connectors.notification import Group, GroupSink
from detectors.errors import DriftdError, SinkError
from tests.senders import NOTE
from tests.servers.receiver import Answer, Receiver
from tests.servers.smtp import MailServer

KINDS = {model.model_fields["kind"].default for model in get_args(get_args(SinkSettings)[0])}
SECRETS = ("s3cr3tkey", "s3cr3tpath", "s3cr3tquery", "s3cr3tpassword", "s3cr3theader")


def settings_at(port: int, tmp_path: Path, *, scheme: str = "http") -> dict[str, dict[str, Any]]:
    """A sink of every kind and preset, with secrets wherever it takes one, at a port of this machine."""
    url = f"{scheme}://anna:s3cr3tpassword@127.0.0.1:{port}/s3cr3tpath?key=s3cr3tquery"
    http = {"headers": {"X-Token": "s3cr3theader"}, "timeout_s": 0.3}
    keyed = {"kind": "webhook", "url": url, "secret": "s3cr3tkey", **http}
    mail = {"host": "127.0.0.1", "port": port, "user": "anna", "password": "s3cr3tpassword", "timeout_s": 0.3}
    sasl = {"protocol": "SASL_PLAINTEXT", "mechanism": "PLAIN", "username": "anna", "password": "s3cr3tpassword"}
    return {
        "console": {"kind": "console"},
        "jsonl": {"kind": "jsonl", "path": str(tmp_path / "none" / "alerts.jsonl")},
        "webhook": keyed,
        "webhook slack": {"kind": "webhook", "preset": "slack", "url": url, **http},
        "webhook teams": {"kind": "webhook", "preset": "teams", "url": url, **http},
        "webhook pagerduty": {**keyed, "preset": "pagerduty"},
        "webhook opsgenie": {**keyed, "preset": "opsgenie"},
        "alertmanager": {"kind": "alertmanager", "urls": [url, url], **http},
        "email": {"kind": "email", "sender": "a@example.org", "to": ["b@example.org"], "security": "tls", **mail},
        "email starttls": {"kind": "email", "sender": "a@example.org", "to": ["b@example.org"], **mail},
        "kafka": {
            "kind": "kafka",
            "brokers": f"127.0.0.1:{port}",
            "topic": "alerts",
            "security": sasl,
            "timeout_s": 0.3,
        },
        "grafana": {"kind": "grafana", "url": f"{scheme}://127.0.0.1:{port}", "token": "s3cr3tkey", "timeout_s": 0.3},
    }


NAMES = sorted(settings_at(1, Path()))


def everything_in(error: BaseException) -> str:
    """The whole chain of an error, as any logger could print it."""
    text = "".join(traceback.format_exception(error))
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            text += f"{one!r} {one} {vars(one)} {one.args}"
            waiting += [one.__cause__, one.__context__]
    return text


def hidden(text: str) -> None:
    logins = ("anna:s3cr3tpassword", "\0anna\0s3cr3tpassword", "s3cr3tpassword")
    encoded = [base64.b64encode(login.encode()).decode().rstrip("=") for login in logins]
    for secret in (*SECRETS, *encoded):
        assert secret not in text, f"{secret} shows: ...{text[max(text.index(secret) - 200, 0) :][:400]}"


@contextmanager
def refusing() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]


@contextmanager
def talking(answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """A server that answers what it gets with what the function makes of it, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    connection, _ = listening.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(0.2)
                    try:
                        got = connection.recv(65536)
                        connection.sendall(answer(got))
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        over.set()
        thread.join(5)


@contextmanager
def http_answering(status: int, *, hang: bool = False) -> Iterator[int]:
    everything = " ".join(SECRETS)
    answer = Answer(status, {"Location": f"/{everything}", "X-Echo": everything}, everything.encode(), hang=hang)
    with Receiver(answer) as receiver:
        yield receiver.port


@contextmanager
def mail_refusing() -> Iterator[int]:
    with MailServer() as server:
        yield server.port


FAILURES: dict[str, Callable[[], Any]] = {
    "nothing listens": refusing,
    "it repeats what it hears": lambda: talking(lambda got: got),
    "it hangs up": lambda: talking(lambda got: b""),
}
HTTP_FAILURES: dict[str, Callable[[], Any]] = {
    "it answers 403": lambda: http_answering(403),
    "it answers 500": lambda: http_answering(500),
    "it redirects": lambda: http_answering(302),
    "it never answers": lambda: http_answering(200, hang=True),
}
MAIL_FAILURES: dict[str, Callable[[], Any]] = {
    "it repeats it as an answer": lambda: talking(lambda got: b"535 " + got[:100].strip() + b"\r\n"),
    "it has no TLS": mail_refusing,
}


def ways_to_fail(name: str) -> dict[str, Callable[[], Any]]:
    if name in ("console", "jsonl"):
        return {"nothing listens": refusing}
    if name == "kafka":
        return FAILURES
    return FAILURES | (MAIL_FAILURES if name.startswith("email") else HTTP_FAILURES)


def test_every_kind_of_sink_is_here() -> None:
    assert {settings["kind"] for settings in settings_at(1, Path()).values()} == KINDS


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize(("name", "failure"), [(name, failure) for name in NAMES for failure in ways_to_fail(name)])
def test_no_secret_shows_however_a_sink_fails(
    name: str, failure: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, logger="connectors")
    scheme = "https" if failure == "it repeats what it hears" else "http"  # TLS that is none is one more way to fail
    with ways_to_fail(name)[failure]() as port:
        settings: Any = TypeAdapter(SinkSettings).validate_python(settings_at(port, tmp_path, scheme=scheme)[name])
        sink = settings.build()
        texts = [repr(settings), str(settings), repr(sink), str(sink)]
        calls: list[Callable[[], Any]] = [lambda: sink.send(NOTE), sink.check]
        if isinstance(sink, GroupSink):
            calls.append(lambda: sink.send_group(Group.of(NOTE)))
        for call in calls:
            try:
                texts.append(str(call()))
            except SinkError as error:
                texts.append(everything_in(error))
        sink.close()
    texts += [caplog.text, *(str(vars(record)) for record in caplog.records), *capsys.readouterr()]
    caplog.clear()
    hidden("\n".join(texts))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("console", "jsonl", "kafka")])
def test_a_sink_that_nothing_answers_says_where(name: str, tmp_path: Path) -> None:
    with refusing() as port:
        sink: Any = TypeAdapter(SinkSettings).validate_python(settings_at(port, tmp_path)[name]).build()
        with pytest.raises(DriftdError, match=f"127.0.0.1:{port}"):
            sink.send(NOTE)
        sink.close()
