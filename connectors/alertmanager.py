"""Sink `alertmanager`: alerts for Prometheus's Alertmanager, which groups, silences and routes them itself.

An alert is told again every minute for as long as it fires, as Alertmanager wants it, each time with an end four
minutes ahead: should driftd be gone, it ends by itself. One that is over is told with its end, and for a while again,
so that an Alertmanager that was restarted meanwhile hears of it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator

from connectors.alert import annotations_of, labels_of, rfc3339
from connectors.http_sink import HttpClient, HttpSettings, http_address
from connectors.notification import Notification
from detectors.errors import SinkError

_log = logging.getLogger(__name__)

ENDS_AFTER_MS = 4 * 60_000  # without a word from us; four refreshes
_MOST_AT_ONCE = 500  # alerts of one request; about 1 KB each
_HINTS = {
    400: "Alertmanager refuses the alert; its log says why.",
    404: "Is this Alertmanager? urls holds its address and --web.route-prefix, without /api/v2/alerts.",
}


class AlertmanagerSettings(HttpSettings, frozen=True, extra="forbid"):
    """Alerts for Prometheus's Alertmanager, told again while they fire."""

    kind: Literal["alertmanager"] = "alertmanager"
    urls: list[SecretStr] = Field(
        min_length=1, description="address of Alertmanager, of each one of a cluster, such as http://localhost:9093"
    )

    @field_validator("urls")
    @classmethod
    def _are_addresses(cls, value: list[SecretStr]) -> list[SecretStr]:
        return [http_address(url) for url in value]

    def build(self) -> AlertmanagerSink:
        """The sink.

        Raises:
            InvalidSettings: ``ca_file`` does not exist.
        """
        clients = [self.client("Alertmanager", url.get_secret_value()) for url in self.urls]
        return AlertmanagerSink(clients, external_url=self.external_url)


class AlertmanagerSink:
    """POSTs to ``/api/v2/alerts`` of each Alertmanager of a cluster; one that takes them is enough. One thread.

    Args:
        clients: one for each of them.
        external_url: where an alert comes from.
        clock: seconds since 1970.

    Attributes:
        runbooks: address of the runbooks; "" for their path in the sources.
    """

    refresh_every_s: ClassVar[float] = 60.0

    def __init__(
        self, clients: Sequence[HttpClient], *, external_url: str = "", clock: Callable[[], float] = time.time
    ) -> None:
        self._clients = list(clients)
        self._external_url = external_url
        self.runbooks = ""
        self._clock = clock
        self._failing: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"AlertmanagerSink({', '.join(client.place for client in self._clients)})"

    def send(self, notification: Notification) -> None:
        """Tell of one.

        Raises:
            SinkError: none of them took it; retryable where one of them may later.
        """
        self.refresh([notification])

    def refresh(self, notifications: Sequence[Notification]) -> None:
        """Tell of several at once.

        Raises:
            SinkError: as `send`.
        """
        now_ms = int(self._clock() * 1000)
        alerts = [
            alert_of(one, now_ms, external_url=self._external_url, runbooks=self.runbooks) for one in notifications
        ]
        for first in range(0, len(alerts), _MOST_AT_ONCE):
            self._post(json.dumps(alerts[first : first + _MOST_AT_ONCE]).encode())

    def check(self) -> str:
        """Ask each for its version.

        Raises:
            SinkError: none of them answers as Alertmanager does.
        """
        found, errors = [], []
        for client in self._clients:
            try:
                answer = client.get("/api/v2/status", hints=_HINTS)
                found.append(f"{client.place} (version {_version(answer, client)})")
            except SinkError as error:
                errors.append(error)
        if not found:
            raise errors[0]
        return "; ".join([f"alertmanager {', '.join(found)}", *(error.message for error in errors)])

    def close(self) -> None:
        """Release the connections."""
        for client in self._clients:
            client.close()

    def _post(self, body: bytes) -> None:
        errors: list[SinkError] = []
        failing = set()
        for client in self._clients:
            try:
                client.post(body, {}, path="/api/v2/alerts", hints=_HINTS)
            except SinkError as error:
                errors.append(error)
                failing.add(client.place)
                if client.place not in self._failing and len(self._clients) > 1:
                    _log.warning("one Alertmanager of several does not take alerts: %s", error)
        for place in self._failing - failing:
            _log.info("Alertmanager takes alerts again: place=%s", place)
        self._failing = frozenset(failing)
        if len(errors) == len(self._clients):
            # What may pass is worth another try, whatever the others say.
            raise min(errors, key=lambda error: not error.retryable)


def alert_of(notification: Notification, now_ms: int, *, external_url: str = "", runbooks: str = "") -> dict[str, Any]:
    """An alert of Alertmanager's API, version 2.

    Args:
        now_ms: wall clock. Times in the records may be ahead of it, but no alert begins, or was over, in the future,
            and none ends before it begins: Alertmanager would refuse it.
    """
    starts_ms = min(notification.starts_ms, now_ms)
    if notification.ends_ms is None:
        ends_ms = now_ms + ENDS_AFTER_MS
    else:
        ends_ms = min(notification.ends_ms, now_ms)
        starts_ms = min(starts_ms, ends_ms)
    return {
        "labels": labels_of(notification),
        "annotations": {
            name: value for name, value in annotations_of(notification, runbooks=runbooks).items() if value
        },
        "startsAt": rfc3339(starts_ms),
        "endsAt": rfc3339(ends_ms),
        "generatorURL": external_url,
    }


def _version(answer: bytes, client: HttpClient) -> str:
    try:
        version = json.loads(answer)["versionInfo"]["version"]
    except (ValueError, LookupError, TypeError):
        version = None
    if not isinstance(version, str):
        raise SinkError(f"{client.place} answers, but not as Alertmanager does.", retryable=False, hint=_HINTS[404])
    return version
