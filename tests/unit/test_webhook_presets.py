"""The webhook's presets: the bodies as they stand in tests/unit/golden/webhook, their limits, who is asked what.

``UPDATE_GOLDEN=1 pytest tests/unit/test_webhook_presets.py`` writes the files anew; read the difference.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from connectors.message import MOST_ENTRIES, message_of, shortened_json
from connectors.notification import Group, Notification
from connectors.webhook import WebhookSettings, WebhookSink, alertmanager_body
from connectors.webhook_opsgenie import OPSGENIE_URL, opsgenie_request
from connectors.webhook_pagerduty import PAGERDUTY_URL, model_key, pagerduty_event
from connectors.webhook_slack import escaped, slack_body
from connectors.webhook_teams import teams_body
from detectors.errors import InvalidSettings, SinkError
from tests.servers.receiver import Answer, Receiver

GOLDEN = Path(__file__).parent / "golden" / "webhook"
STATUS_PAGE = "https://driftd.example.org"

DRIFT = Notification(
    id="0c5f1be84d2f3a7790aa6f4b1f6b2c9d",
    incident="3f2a91c0de11",
    group_key="support_triage/drift/input/country=DE",
    status="firing",
    severity="page",
    model="support_triage",
    kind="drift",
    space="input",
    segment="country=DE",
    title="support_triage: input has drifted (country=DE)",
    text="Since about 2023-11-14 22:12:50Z the average record of space input, segment country=DE lies 0.42 standard "
    "deviations away from reference 3, seen in 5,120 records. 62 % of the change comes from channel=chat; prototype 17 "
    "(like record r-81) grew from 1.2 % to 9.8 %. By chance, such evidence appears once in 4 years. "
    "Next: driftd explain 3f2a91c0de11",
    starts_ms=1_699_999_970_000,
    ends_ms=None,
    values={"event": "opened", "strength": "8.1", "threshold": "5.9", "priority": "P2", "n": "5120"},
)
RATE = dataclasses.replace(
    DRIFT,
    id="5d1a2b3c4d5e6f708192a3b4c5d6e7f8",
    incident="77aa01b2c3d4",
    group_key="support_triage/outlier_rate/input/",
    severity="warn",
    kind="outlier_rate",
    segment="",
    title="support_triage: too many outliers in input",
    text="Since about 2023-11-14 22:20:00Z 0.9 % of the records of space input are as strange as the strangest 0.1 % "
    "of reference 3: 9.0 times as many as usual, in 2,048 records. Next: driftd explain 77aa01b2c3d4",
    starts_ms=1_700_000_400_000,
    values={"event": "opened", "strength": "4.4", "threshold": "4.1"},
)
OVER = dataclasses.replace(
    DRIFT,
    id="91e2d3c4b5a697887766554433221100",
    incident="00ff11ee22dd",
    group_key="support_triage/drift/output/",
    status="resolved",
    space="output",
    segment="",
    title="Resolved: support_triage: output has drifted",
    text="Last seen at 2023-11-14 22:25:00Z; resolved at 2023-11-14 22:30:00Z. Next: driftd explain 00ff11ee22dd",
    ends_ms=1_700_001_000_000,
    values={"event": "resolved"},
)
GAP = dataclasses.replace(
    DRIFT,
    id="aa11bb22cc33dd44ee55ff6600778899",
    incident="c0ffee123456",
    group_key="checkout/gap//orders",
    model="checkout",
    kind="gap",
    space="",
    segment="",
    title="checkout: up to 1,200 records of orders deleted before they were read",
    text="They are in no count, no score and no alarm, and cannot be had any more. Next: driftd doctor lists them",
    values={},
)
ONE = Group.of(DRIFT)
MANY = Group("support_triage", (DRIFT, RATE, OVER), 3, 2)
STORM = Group(
    "*",
    (DRIFT, RATE, GAP, *(dataclasses.replace(DRIFT, id=f"{n:032x}", incident=f"{n:012x}") for n in range(12))),
    40,
    31,
    parts=(Group("support_triage", (DRIFT, RATE), 39, 30), Group("checkout", (GAP,), 1, 1)),
)
RESOLVED = Group("support_triage", (OVER,), 0, 0)
GROUPS = {"one": ONE, "many": MANY, "storm": STORM, "resolved": RESOLVED}
NASTY = "a<!channel>&\x1b[31m\u202e [x](http://evil.example) *b* `c`\r\n😀 \ud800" + "ü<&>" * 40_000


def nasty_group(count: int) -> Group:
    notes = tuple(
        dataclasses.replace(
            DRIFT, incident=str(n), model=NASTY, space=NASTY, segment=NASTY, title=NASTY, text=f"{NASTY} Next: {NASTY}"
        )
        for n in range(count)
    )
    return Group(NASTY, notes, count, count)


def pagerduty(group: Group) -> dict[str, Any] | None:
    return pagerduty_event(group, routing_key="ROUTING-KEY", external_url=STATUS_PAGE)


def opsgenie(group: Group) -> dict[str, Any] | None:
    request = opsgenie_request(group, external_url=STATUS_PAGE)
    return None if request is None else {"path": request[0], "body": request[1]}


BODIES: dict[str, Callable[[Group], dict[str, Any] | None]] = {
    "alertmanager": lambda group: alertmanager_body(group, external_url=STATUS_PAGE),
    "slack": lambda group: slack_body(group, external_url=STATUS_PAGE),
    "teams": lambda group: teams_body(group, external_url=STATUS_PAGE),
    "pagerduty": pagerduty,
    "opsgenie": opsgenie,
}


@pytest.mark.parametrize("preset", sorted(BODIES))
@pytest.mark.parametrize("name", ["one", "many", "resolved"])
def test_the_body_is_the_one_in_the_golden_file(preset: str, name: str) -> None:
    body = BODIES[preset](GROUPS[name])
    path = GOLDEN / f"{preset}_{name}.json"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == body


@pytest.mark.parametrize("preset", ["slack", "teams", "pagerduty", "opsgenie"])
@pytest.mark.parametrize("name", ["one", "many", "storm"])
def test_each_message_says_what_since_when_how_strong_why_and_what_to_type(preset: str, name: str) -> None:
    text = json.dumps(BODIES[preset](GROUPS[name]), ensure_ascii=False)
    for words in (
        "input has drifted (country=DE)",
        "since 2023-11-14 22:12:50Z",
        "strength 8.1 (alarm from 5.9)",
        "62 % of the change comes from channel=chat",
        "driftd explain 3f2a91c0de11",
        STATUS_PAGE,
    ):
        assert words in text, words


def test_ten_incidents_are_told_in_words_and_the_others_counted() -> None:
    message = message_of(STORM)
    assert len(message.entries) == MOST_ENTRIES == 10
    assert message.more == "and 5 more: driftd incidents"
    assert message.headline == "2 models: 14 pages, 1 warning"
    assert message.state == "40 incidents of these models are open, 31 of them pages."
    for preset in ("slack", "teams"):
        assert "and 5 more" in json.dumps(BODIES[preset](STORM))


def test_pages_come_first_and_the_headline_counts() -> None:
    message = message_of(Group("support_triage", (OVER, RATE, DRIFT), 3, 2))
    assert [entry.urgency for entry in message.entries] == ["PAGE", "WARN", "RESOLVED"]
    assert message.headline == "support_triage: 1 page, 1 warning, 1 resolved" and message.urgency == "PAGE"


@pytest.mark.parametrize("count", [1, 2, 10, 500])
def test_slack_takes_the_longest_and_strangest_message(count: int) -> None:
    body = slack_body(nasty_group(count), external_url=STATUS_PAGE)
    blocks = body["blocks"]
    texts = [block["text"]["text"] for block in blocks[:-1]] + [blocks[-1]["elements"][0]["text"]]
    assert len(blocks) <= 50 and all(len(text) <= 3_000 for text in texts) and len(texts[0]) <= 150
    assert sum(map(len, texts)) < 12_500
    marked = [*texts[1:], body["text"]]
    link = f"<{STATUS_PAGE}|driftd>"
    assert all("<" not in text.replace(link, "") and ">" not in text.replace(link, "") for text in marked)
    for text in marked:
        assert text.count("&") == sum(text.count(entity) for entity in ("&amp;", "&lt;", "&gt;")), "half an entity"
    json.dumps(body).encode()


@pytest.mark.parametrize("room", range(1, 14))
def test_escaping_never_leaves_half_an_entity(room: int) -> None:
    text = escaped("a&b<c>d&", room)
    assert len(text) <= room and text.count("&") == text.count(";")


@pytest.mark.parametrize("count", [1, 2, 10, 500])
def test_teams_takes_the_longest_and_strangest_message(count: int) -> None:
    body = teams_body(nasty_group(count), external_url=STATUS_PAGE)
    assert len(json.dumps(body)) < 21_000
    blocks = body["attachments"][0]["content"]["body"]
    assert {block["type"] for block in blocks} == {"RichTextBlock"}, "a TextBlock would read Markdown"


@pytest.mark.parametrize("count", [1, 10, 500])
def test_pagerduty_and_opsgenie_take_the_longest_and_strangest_message(count: int) -> None:
    event = pagerduty(nasty_group(count))
    assert event is not None and len(json.dumps(event)) < 512_000
    assert len(event["payload"]["summary"]) <= 1_024 and len(event["dedup_key"]) <= 255
    request = opsgenie(nasty_group(count))
    assert request is not None
    assert len(request["body"]["message"]) <= 130 and len(request["body"]["alias"]) <= 512
    assert len(request["body"]["description"]) <= 15_000 and len(request["body"]["entity"]) <= 512
    json.dumps(request).encode()


def test_text_is_shortened_by_its_length_in_json() -> None:
    for text in ("ü" * 100, "a" * 100, "😀" * 100, '"' * 100):
        assert len(json.dumps(shortened_json(text, 60))) - 2 <= 60
    assert shortened_json("ü", 6) == "ü"


# --- receivers that keep an alert of each model -----------------------------------------------------------------------


def sink_of(preset: str, url: str) -> WebhookSink:
    settings = {"preset": preset, "url": url, **({} if preset in ("slack", "teams") else {"secret": "the-key"})}
    return WebhookSettings.model_validate(settings).build()


def test_pagerduty_is_triggered_while_something_is_open_and_resolved_after_the_last() -> None:
    also_over = dataclasses.replace(OVER, incident="other")
    with Receiver(Answer(202)) as receiver:
        sink = sink_of("pagerduty", receiver.url)
        sink.send_group(MANY)
        sink.send_group(Group("support_triage", (OVER,), 1, 0))  # another one is open: no news for PagerDuty
        sink.send_group(Group("support_triage", (OVER, also_over), 0, 0))
        sink.close()
    trigger, resolve = (request.json for request in receiver.requests)
    assert (trigger["event_action"], trigger["payload"]["severity"]) == ("trigger", "critical")
    assert resolve == {"routing_key": "the-key", "dedup_key": trigger["dedup_key"], "event_action": "resolve"}


def test_opsgenie_is_told_of_an_alert_and_closes_it_by_its_alias() -> None:
    with Receiver(Answer(202)) as receiver:
        sink = sink_of("opsgenie", receiver.url + "?a=b")
        sink.send_group(MANY)
        sink.send_group(Group("support_triage", (OVER,), 1, 0))
        sink.send_group(RESOLVED)
        sink.close()
    create, close = receiver.requests
    assert create.path == "/hook?a=b" and create.json["alias"] == "driftd:support_triage"
    assert close.path == "/hook/driftd%3Asupport_triage/close?identifierType=alias"
    assert {request.headers["Authorization"] for request in receiver.requests} == {"GenieKey the-key"}


@pytest.mark.parametrize(
    ("values", "severity", "priority"),
    [({"priority": "P4"}, "page", "P4"), ({}, "page", "P1"), ({}, "warn", "P3"), ({"priority": "high"}, "warn", "P3")],
)
def test_opsgenies_priority_is_the_incidents_own(values: dict[str, str], severity: Any, priority: str) -> None:
    request = opsgenie_request(Group.of(dataclasses.replace(DRIFT, values=values, severity=severity)))
    assert request is not None and request[1]["priority"] == priority


@pytest.mark.parametrize("preset", ["pagerduty", "opsgenie"])
def test_a_storm_over_several_models_is_one_alert_for_each_and_goes_on_where_it_failed(preset: str) -> None:
    with Receiver(Answer(202), Answer(429, {"Retry-After": "2"}), Answer(202)) as receiver:
        sink = sink_of(preset, receiver.url)
        with pytest.raises(SinkError) as got:
            sink.send_group(STORM)
        assert got.value.retryable and got.value.retry_after_s == 2
        sink.send_group(STORM)
        sink.send_group(STORM)  # a later group says it all anew
        sink.close()
    names = [request.json.get("dedup_key") or request.json.get("alias") for request in receiver.requests]
    triage, checkout = "driftd:support_triage", "driftd:checkout"
    assert names == [triage, checkout, checkout, triage, checkout]


@pytest.mark.parametrize("preset", ["slack", "teams"])
def test_a_storm_over_several_models_is_one_message(preset: str) -> None:
    with Receiver(Answer(202)) as receiver:
        sink_of(preset, receiver.url).send_group(STORM)
    assert len(receiver.requests) == 1
    assert "X-Driftd-Signature" not in receiver.requests[0].headers


def test_the_key_of_a_model_is_its_name_or_ends_with_a_hash() -> None:
    assert model_key("triage", 255) == "driftd:triage"
    long, other = model_key("x" * 300, 255), model_key("x" * 301, 255)
    assert len(long) == 255 and long != other


def test_pagerduty_and_opsgenie_have_addresses_of_their_own() -> None:
    for preset, url in (("pagerduty", PAGERDUTY_URL), ("opsgenie", OPSGENIE_URL)):
        sink = WebhookSettings.model_validate({"preset": preset, "secret": "k"}).build()
        assert repr(sink) == f"WebhookSink({preset}, {url.rpartition('/v2')[0]})"
    with pytest.raises(InvalidSettings, match="no routing key"):
        WebhookSettings(preset="pagerduty", secret=SecretStr("two\nlines")).build()


@pytest.mark.parametrize(("preset", "status"), [("slack", 404), ("teams", 401), ("pagerduty", 400), ("opsgenie", 403)])
def test_a_refusal_says_what_to_do_at_this_receiver(preset: str, status: int) -> None:
    with Receiver(Answer(status)) as receiver, pytest.raises(SinkError) as got:
        sink_of(preset, receiver.url).send_group(ONE)
    assert not got.value.retryable and got.value.hint and "the-key" not in str(got.value)


def test_the_most_urgent_comes_first_the_whole_traffic_before_its_segments() -> None:
    minor, segment, whole = (
        dataclasses.replace(
            DRIFT, incident=name, title=name, segment=part, severity="warn", values={"priority": priority}
        )
        for name, part, priority in (("minor", "", "P4"), ("segment", "a=b", "P3"), ("whole", "", "P3"))
    )
    message = message_of(Group("support_triage", (minor, segment, whole), 3, 0))
    assert [entry.title for entry in message.entries] == ["whole", "segment", "minor"]
    assert message.subject == "WARN whole, and 2 more"


def test_what_is_over_is_not_called_so_twice() -> None:
    over = dataclasses.replace(OVER, title="Resolved: support_triage: input has drifted")
    message = message_of(Group("support_triage", (over,), 0, 0))
    assert message.subject == message.entries[0].headline == "RESOLVED support_triage: input has drifted"


def test_a_next_step_that_is_more_than_a_command_stays_in_the_text() -> None:
    alone, more = (
        message_of(Group.of(dataclasses.replace(DRIFT, text=f"It changed. Next: {step}"))).entries[0]
        for step in ("driftd explain 3f2a91", "driftd check; then mend the receiver")
    )
    assert (alone.text, alone.next) == ("It changed.", "driftd explain 3f2a91")
    assert (more.text, more.next) == ("It changed. Next: driftd check; then mend the receiver", "")
