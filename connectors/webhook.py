"""Sink `webhook`: POSTs to whoever takes webhooks, in the format that the preset names.

The preset `alertmanager` has the body that Alertmanager sends (version "4"), so whatever reads Alertmanager's webhooks
reads ours. Three headers come with it:

* ``Idempotency-Key``: the notification's id, or a hash of the ids of several; what comes again has the same one.
* ``X-Driftd-Timestamp``: seconds since 1970 at which this attempt was sent.
* ``X-Driftd-Signature``: ``sha256=`` and the HMAC-SHA256 (RFC 2104) of timestamp + "." + body, in hexadecimal, where a
  secret is set.

The other presets are one file each: connectors/webhook_slack.py, webhook_teams.py, webhook_pagerduty.py and
webhook_opsgenie.py.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from connectors.alert import annotations_of, fingerprint, labels_of, rfc3339
from connectors.http_sink import HttpClient, HttpSettings, http_address, read_secret
from connectors.message import group_id
from connectors.notification import Group, Notification
from connectors.webhook_opsgenie import OPSGENIE_URL, opsgenie_request
from connectors.webhook_pagerduty import PAGERDUTY_URL, pagerduty_event
from connectors.webhook_slack import slack_body
from connectors.webhook_teams import teams_body
from detectors.errors import InvalidSettings

Preset = Literal["alertmanager", "slack", "teams", "pagerduty", "opsgenie"]

NO_END = "0001-01-01T00:00:00Z"  # how Alertmanager writes the end of an alert that is still firing
_URLS: dict[Preset, str] = {"pagerduty": PAGERDUTY_URL, "opsgenie": OPSGENIE_URL}


class WebhookSettings(HttpSettings, frozen=True, extra="forbid"):
    """POSTs to a URL: as Alertmanager does, signed if a secret is set, or for Slack, Teams, PagerDuty or Opsgenie."""

    kind: Literal["webhook"] = "webhook"
    preset: Preset = Field("alertmanager", description="the receiver's format")
    url: SecretStr | None = Field(
        None, description="http:// or https:// address that gets the POST; never shown. PagerDuty and Opsgenie have one"
    )
    secret: SecretStr | None = Field(
        None, description="key of the HMAC-SHA256 signature; PagerDuty's routing key; Opsgenie's API key"
    )
    secret_file: Path | None = Field(None, description="file that holds the key, instead of secret")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: SecretStr | None) -> SecretStr | None:
        return None if value is None else http_address(value)

    @model_validator(mode="after")
    def _suits_the_preset(self) -> WebhookSettings:
        if self.secret is not None and self.secret_file is not None:
            raise ValueError("secret and secret_file are both set; keep one")
        keyed = self.secret is not None or self.secret_file is not None
        if self.url is None and self.preset not in _URLS:
            raise ValueError(f"preset {self.preset} needs url")
        if self.preset in _URLS and not keyed:
            raise ValueError(f"preset {self.preset} needs secret or secret_file, which holds its {_KEYS[self.preset]}")
        if self.preset in ("slack", "teams") and keyed:
            raise ValueError(f"preset {self.preset} takes no secret: its url is one")
        return self

    def build(self) -> WebhookSink:
        """The sink. Reads ``secret_file``.

        Raises:
            InvalidSettings: a file that is named cannot be read, or the key is empty or not of this preset's kind.
        """
        secret = read_secret(self.secret, self.secret_file, what="webhook")
        if self.preset in _KEYS and not (secret and secret.isascii() and secret.decode().isprintable()):
            raise InvalidSettings(
                f"The webhook's secret is no {_KEYS[self.preset]}: expected printable ASCII characters on one line.",
                hint="Copy it anew from the integration's page: sinks.NAME.secret",
            )
        url = _URLS[self.preset] if self.url is None else self.url.get_secret_value()
        return WebhookSink(
            self.client("webhook", url), preset=self.preset, secret=secret, external_url=self.external_url
        )


_KEYS: dict[Preset, str] = {"pagerduty": "routing key", "opsgenie": "API key"}


@dataclass(frozen=True, slots=True)
class Post:
    """One request.

    Attributes:
        body: JSON.
        path: below the URL.
        headers: of this request; never shown.
    """

    body: bytes = field(repr=False)
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class WebhookSink:
    """Delivers over HTTP. Called from one thread.

    Args:
        client: where to POST.
        preset: in which format.
        secret: key of the signature, None for none; of the receiver, where the preset needs one.
        external_url: goes into what is sent.

    Attributes:
        runbooks: address of the runbooks; "" for their path in the sources.
    """

    def __init__(
        self,
        client: HttpClient,
        *,
        preset: Preset = "alertmanager",
        secret: bytes | None = None,
        external_url: str = "",
    ) -> None:
        self._client = client
        self._preset = preset
        self._secret = secret
        self._external_url = external_url
        self.runbooks = ""
        self._taken: set[str] = set()  # requests of a group that the receiver took before one of them failed

    def __repr__(self) -> str:
        return f"WebhookSink({self._preset}, {self._client.place})"

    def send(self, notification: Notification) -> None:
        """POST one notification; see `send_group`."""
        self.send_group(Group.of(notification))

    def send_group(self, group: Group) -> None:
        """POST a group: in one request, or in one for each model where the receiver keeps an alert of each.

        Raises:
            SinkError: as `HttpClient.post`. What the receiver took is not sent to it again with the rest.
        """
        for post in self._posts(group):
            digest = hashlib.sha256(post.path.encode() + post.body).hexdigest()
            if digest not in self._taken:
                self._client.post(post.body, post.headers, path=post.path, hints=_HINTS[self._preset])
                self._taken.add(digest)
        self._taken.clear()

    def check(self) -> str:
        """Connect (and greet by TLS), but send nothing.

        Raises:
            SinkError: nothing answers there, or its certificate is refused.
        """
        found = self._client.check()
        if self._preset == "alertmanager":
            place, comma, notes = found.partition(", ")
            return f"webhook {place}, {'signed' if self._secret else 'not signed'}{comma}{notes}"
        return f"webhook {self._preset} {found}"

    def close(self) -> None:
        """Release the connections."""
        self._client.close()

    def _posts(self, group: Group) -> Iterator[Post]:
        url = self._external_url
        if self._preset == "alertmanager":
            body = _json(alertmanager_body(group, external_url=url, runbooks=self.runbooks))
            yield Post(body, headers=self._signed(group, body))
        elif self._preset == "slack":
            yield Post(_json(slack_body(group, external_url=url)))
        elif self._preset == "teams":
            yield Post(_json(teams_body(group, external_url=url)))
        else:
            for part in group.parts or (group,):
                yield from self._of_a_model(part)

    def _of_a_model(self, group: Group) -> Iterator[Post]:
        key = (self._secret or b"").decode()
        if self._preset == "pagerduty":
            event = pagerduty_event(group, routing_key=key, external_url=self._external_url)
            if event is not None:
                yield Post(_json(event))
        elif (request := opsgenie_request(group, external_url=self._external_url)) is not None:
            path, body = request
            yield Post(_json(body), path, {"Authorization": f"GenieKey {key}"})

    def _signed(self, group: Group, body: bytes) -> dict[str, str]:
        timestamp = str(int(self._client.clock()))
        headers = {"Idempotency-Key": group_id(group), "X-Driftd-Timestamp": timestamp}
        if self._secret is not None:
            headers["X-Driftd-Signature"] = sign(self._secret, timestamp, body)
        return headers


def alertmanager_body(group: Group, *, external_url: str = "", runbooks: str = "") -> dict[str, Any]:
    """The webhook body of Alertmanager, version "4", with one alert for each incident.

    Labels name the reason and never an event, so that receivers can group and silence by them; the fingerprint is a
    hash of the reason, hence the same from the first warning to the last "resolved". The notification's id, to dedupe
    by, is the annotation ``notification_id``.
    """
    alerts = [
        {
            "status": notification.status,
            "labels": labels_of(notification),
            "annotations": annotations_of(notification, runbooks=runbooks),
            "startsAt": rfc3339(notification.starts_ms),
            "endsAt": NO_END if notification.ends_ms is None else rfc3339(notification.ends_ms),
            "generatorURL": external_url,
            "fingerprint": fingerprint(notification),
        }
        for notification in group.latest
    ]
    models = {notification.model for notification in group.latest}
    return {
        "version": "4",
        "groupKey": group.key,
        "truncatedAlerts": 0,
        "status": group.status,
        "receiver": "driftd",
        "groupLabels": {"model": models.pop()} if len(models) == 1 else {},
        "commonLabels": _common([labels_of(notification) for notification in group.latest]),
        "commonAnnotations": _common(
            [annotations_of(notification, runbooks=runbooks) for notification in group.latest]
        ),
        "externalURL": external_url,
        "alerts": alerts,
    }


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """The signature header's value: "sha256=" and HMAC-SHA256 of timestamp + "." + body (RFC 2104), hexadecimal."""
    return "sha256=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _common(mappings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {name: value for name, value in mappings[0].items() if all(one.get(name) == value for one in mappings)}


_HINTS: dict[Preset, dict[int, str]] = {
    "alertmanager": {
        400: "The receiver does not take Alertmanager's webhook body: sinks.NAME.preset",
        403: "Check headers.Authorization, and the secret that the receiver verifies the signature with.",
    },
    "slack": {
        403: "Slack does not let this webhook post: make a new one at https://api.slack.com/apps",
        404: "The webhook or its channel is gone: make a new one at https://api.slack.com/apps",
        410: "The channel is archived: make a webhook for another one at https://api.slack.com/apps",
    },
    "teams": {
        400: "Does the workflow begin with 'When a Teams webhook request is received'?",
        401: "Copy url anew from the workflow: its signature is wrong or over.",
        404: "The workflow is gone or switched off: make one in Teams, and set url.",
    },
    "pagerduty": {
        400: "Check the routing key: it is that of an integration 'Events API v2' of a service.",
        403: "Check the routing key: it is that of an integration 'Events API v2' of a service.",
        404: "Check url: https://events.pagerduty.com/v2/enqueue, or events.eu.pagerduty.com",
    },
    "opsgenie": {
        401: "Check the API key: it is that of an integration 'API' that may create and update alerts.",
        403: "Check the API key, and that url is that of your region: https://api.eu.opsgenie.com/v2/alerts",
        404: "Check url: https://api.opsgenie.com/v2/alerts, or api.eu.opsgenie.com",
        422: "Check the API key, and that url is that of your region: https://api.eu.opsgenie.com/v2/alerts",
    },
}
