"""What holds for every kind of sink. The kinds come from the union of the settings: a new one joins by being there."""

from __future__ import annotations

import copy
import dataclasses
import json
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

from connectors import SinkSettings
from connectors.kafka_probe import split_address
from connectors.notification import Sink
from detectors.errors import SinkError
from tests import senders
from tests.servers.grafana import PROXY_PAGE, Fault, Grafana
from tests.servers.kafka import KafkaServer
from tests.servers.receiver import Answer, Receiver
from tests.servers.smtp import MailServer

KINDS: dict[str, type[BaseModel]] = {
    model.model_fields["kind"].default: model for model in get_args(get_args(SinkSettings)[0])
}
NOTE = dataclasses.replace(senders.NOTE, title="triage: traffic changed ü")


@dataclasses.dataclass
class Outside:
    """The real other end of one kind of sink: its settings, what arrived, and how to break and mend it."""

    settings: dict[str, Any]
    titles: Callable[[], list[str]]
    fail: Callable[[], None]
    mend: Callable[[], None]


@pytest.fixture
def outside(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Outside]:
    kind = request.param
    if kind == "webhook":
        with Receiver() as receiver:
            yield Outside(
                {"kind": kind, "url": receiver.url, "timeout_s": 2},
                lambda: [got.json["commonAnnotations"]["summary"] for got in receiver.requests],
                lambda: receiver.answer(Answer(503)),
                lambda: (receiver.answer(Answer(200)), receiver.requests.clear())[0],
            )
    elif kind == "alertmanager":
        # A real one keeps alerts by their labels, not what came when: see tests/integration/test_alertmanager.py.
        well = Answer(200, body=b'{"versionInfo": {"version": "0.25.0"}}')
        with Receiver(well) as receiver:
            yield Outside(
                {"kind": kind, "urls": [receiver.url], "timeout_s": 2},
                lambda: [got.json[0]["annotations"]["summary"] for got in receiver.requests if got.body],
                lambda: receiver.answer(Answer(503)),
                lambda: (receiver.answer(well), receiver.requests.clear())[0],
            )
    elif kind == "grafana":
        with Grafana() as grafana:
            yield Outside(
                {"kind": kind, "url": grafana.url, "token": grafana.token("Editor"), "timeout_s": 2},
                lambda: [call.body["text"].splitlines()[0] for call in grafana.writes if call.status == 200],
                lambda: grafana.fail(Fault(503, PROXY_PAGE), times=99),
                lambda: (grafana.mend(), grafana.calls.clear())[0],
            )
    elif kind == "email":
        with MailServer() as server:
            yield Outside(
                {
                    "kind": kind,
                    "host": "127.0.0.1",
                    "port": server.port,
                    "security": "none",
                    "sender": "driftd@example.org",
                    "to": ["anna@example.org"],
                },
                lambda: [mail.message["Subject"].split(" ", 2)[2] for mail in server.mails],
                lambda: server.answers.update(MAIL="451 try later"),
                server.answers.clear,
            )
    elif kind == "kafka":
        broker: KafkaServer = request.getfixturevalue("kafka")
        topic = broker.create_topic(f"contract-{secrets.token_hex(6)}")
        with ExitStack() as frozen:
            yield Outside(
                {"kind": kind, "brokers": broker.brokers, "topic": topic, "timeout_s": 2},
                lambda: [json.loads(value)["title"] for value in values_of(broker, topic)],
                lambda: freeze(broker, frozen),
                frozen.close,
            )
    elif kind == "jsonl":
        path, away = tmp_path / "out" / "alerts.jsonl", tmp_path / "away"
        path.parent.mkdir()
        yield Outside(
            {"kind": kind, "path": str(path)},
            lambda: [json.loads(line)["title"] for line in path.read_text().splitlines()],
            lambda: (path.parent.rename(away), None)[1],
            lambda: (away.rename(path.parent), path.unlink(missing_ok=True))[1],
        )
    elif kind == "console":
        import sys

        printed: list[str] = []

        def titles() -> list[str]:
            printed.extend(line[30:] for line in capsys.readouterr().err.splitlines() if line[:1].isdigit())
            return printed

        class Broken:
            def write(self, text: str) -> int:
                raise BrokenPipeError(32, "Broken pipe")

            def isatty(self) -> bool:
                return False

        yield Outside(
            {"kind": kind},
            titles,
            lambda: monkeypatch.setattr(sys, "stderr", Broken()),
            monkeypatch.undo,
        )
    else:
        pytest.fail(f"sink kind {kind} has no real other end in this test; add one")


def freeze(broker: KafkaServer, until: ExitStack) -> None:
    """Returns when it stands still: a moment passes until the kernel has stopped all of its threads."""
    until.enter_context(broker.frozen())
    with socket.create_connection(split_address(broker.brokers), timeout=0.2) as connection:
        while True:
            try:
                connection.sendall(bytes.fromhex("0000000c 0012 0000 00000001 0002 6162"))  # "which versions?"
                connection.recv(1000)
            except TimeoutError:
                return


def values_of(broker: KafkaServer, topic: str) -> list[bytes]:
    """All that is in a topic of one partition."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=broker.brokers, auto_offset_reset="earliest")
    place = TopicPartition(topic, 0)
    consumer.assign([place])
    end, got = consumer.end_offsets([place])[place], []
    while consumer.position(place) < end:
        got += [message.value for messages in consumer.poll(1000).values() for message in messages]
    consumer.close()
    return got


every_kind = pytest.mark.parametrize(
    "outside",
    [pytest.param(kind, marks=pytest.mark.kafka) if kind == "kafka" else kind for kind in sorted(KINDS)],
    indirect=True,
)


def build(outside: Outside) -> Sink:
    settings: Any = TypeAdapter(SinkSettings).validate_python(outside.settings)
    sink: Sink = settings.build()
    return sink


@every_kind
def test_notifications_arrive_once_each_in_order(outside: Outside) -> None:
    sink = build(outside)
    for name in ("one", "two", "three"):
        sink.send(dataclasses.replace(NOTE, title=name))
    sink.close()
    assert outside.titles() == ["one", "two", "three"]


@every_kind
def test_sending_leaves_the_notification_as_it_was(outside: Outside) -> None:
    given = copy.deepcopy(NOTE)
    sink = build(outside)
    sink.send(given)
    sink.close()
    assert given == NOTE


@every_kind
def test_every_shape_of_notification_is_taken(outside: Outside) -> None:
    sink = build(outside)
    shapes: list[dict[str, Any]] = [
        {"status": "resolved", "ends_ms": 1_700_000_050_000},
        {"severity": "warn"},
        {"kind": "a_kind_of_tomorrow"},
        {"space": "", "segment": "", "values": {}},
        {"segment": "country=\x1b[31m\u202e\r\n", "text": "a\nb"},
        {"starts_ms": 0},
        {"starts_ms": 10**17, "text": "x" * 100_000},
    ]
    for shape in shapes:
        sink.send(dataclasses.replace(NOTE, **shape))
    sink.close()
    assert outside.titles() == [NOTE.title] * len(shapes)


@every_kind
def test_an_outage_is_a_retryable_error_and_the_sink_works_afterwards(outside: Outside) -> None:
    sink = build(outside)
    sink.send(NOTE)
    outside.fail()
    with pytest.raises(SinkError) as got:
        sink.send(NOTE)
    assert got.value.retryable
    outside.mend()
    sink.send(dataclasses.replace(NOTE, title="after"))
    sink.close()
    assert outside.titles()[-1] == "after"


@every_kind
def test_check_is_one_line_that_names_the_kind_and_sends_nothing(outside: Outside) -> None:
    sink = build(outside)
    line = sink.check()
    sink.close()
    assert outside.settings["kind"] in line and "\n" not in line
    if outside.settings["kind"] != "jsonl":
        assert outside.titles() == []


@every_kind
def test_closing_twice_and_before_the_first_notification_is_fine(outside: Outside) -> None:
    sink = build(outside)
    sink.close()
    sink.close()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_settings_are_frozen_described_and_refuse_unknown_keys(kind: str) -> None:
    model = KINDS[kind]
    assert model.model_config.get("frozen") and model.model_config.get("extra") == "forbid"
    assert (model.__doc__ or "").strip().splitlines()[0].endswith(".")
    for name, spec in model.model_fields.items():
        assert name == "kind" or spec.description, f"{kind}.{name} has no description"
    with pytest.raises(ValidationError, match="extra"):
        TypeAdapter(SinkSettings).validate_python({"kind": kind, "colour": "red"})


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_fields_that_may_be_secret_never_show(kind: str) -> None:
    names = ("secret", "password", "token", "url", "key")
    for name, spec in KINDS[kind].model_fields.items():
        if name in names:
            assert SecretStr in (spec.annotation, *get_args(spec.annotation)), f"{kind}.{name} is not a SecretStr"
