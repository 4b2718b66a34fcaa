"""Sink `grafana`: each incident as one annotation, a region from its onset to its end, on driftd's Drift dashboard.

An annotation is found again by the tag ``driftd-incident:ID``, which no other has. So a notification that comes twice,
or a crash after Grafana took it and before that was noted, never makes a second one. While the incident goes on, its
annotation gets the newest text; when it is over, its end. Incidents are few: nothing is ever written for a record.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from connectors.grafana import Access, GrafanaClient, token_of
from connectors.http_sink import http_address
from connectors.notification import Notification
from detectors.errors import GrafanaError, InvalidSettings, SinkError

INCIDENT_TAG = "driftd-incident:"
MOST_OF_TAGS = 500  # characters that Grafana takes for all tags together, as JSON
LONGEST_TAG = 100  # characters that its database takes for a tag
LONGEST_TEXT = 4_000
LATEST_MS = 253_402_300_799_999  # the end of the year 9999
# Beside what any call may try again: a database that is busy with others, and a page that a proxy puts up meanwhile.
_PASSING = frozenset({200, 408, 500})


class GrafanaSettings(BaseModel, frozen=True, extra="forbid"):
    """Annotations in Grafana: a region from each incident's onset to its end."""

    kind: Literal["grafana"] = "grafana"
    url: SecretStr = Field(description="address of Grafana, such as http://localhost:3000; never shown")
    token: SecretStr | None = Field(None, description="token of a service account with the role Editor")
    token_file: Path | None = Field(None, description="file that holds the token, instead of token")
    org_id: int | None = Field(None, gt=0, description="organisation, where the token does not say it")
    dashboard: str = Field("driftd-drift", description="uid of the dashboard that is marked; without it, all are")
    # Short: a call that hangs may hold a lock of Grafana's database, and nothing is lost by trying again later.
    timeout_s: float = Field(5.0, gt=0, le=10, description="seconds to wait for the connection, and for an answer")
    verify_tls: bool = Field(True, description="check the server's certificate")
    ca_file: Path | None = Field(None, description="file with the certificate authorities to trust (PEM)")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: SecretStr) -> SecretStr:
        return http_address(value)

    @model_validator(mode="after")
    def _has_one_token(self) -> GrafanaSettings:
        if (self.token is None) == (self.token_file is None):
            raise ValueError("set either token or token_file")
        return self

    def build(self) -> GrafanaSink:
        """The sink. Reads ``token_file``.

        Raises:
            InvalidSettings: a file that is named cannot be read, or the token cannot be one.
        """
        if self.ca_file is not None and not self.ca_file.is_file():
            raise InvalidSettings(
                f"Grafana's ca_file {self.ca_file} does not exist.", hint="Name a PEM file: sinks.NAME.ca_file"
            )
        token = None if self.token is None else self.token.get_secret_value()
        access = Access(
            url=self.url.get_secret_value(),
            token=token_of(token, self.token_file, where="sinks.NAME"),
            org_id=self.org_id,
            timeout_s=self.timeout_s,
            verify=str(self.ca_file) if self.verify_tls and self.ca_file is not None else self.verify_tls,
            retries=0,  # the outbox tries again
        )
        return GrafanaSink(GrafanaClient(access), dashboard=self.dashboard)


class GrafanaSink:
    """Keeps one annotation for each incident. Called from one thread.

    Args:
        client: that does not repeat calls by itself.
        dashboard: uid of the dashboard to mark; where Grafana has none with it, the annotation is the organisation's,
            which every dashboard can show by its tags.
    """

    def __init__(self, client: GrafanaClient, *, dashboard: str) -> None:
        self._client = client
        self._dashboard = dashboard

    def __repr__(self) -> str:
        return f"GrafanaSink({self._client.place})"

    def send(self, notification: Notification) -> None:
        """Make the incident's annotation, or bring it up to date.

        Raises:
            SinkError: retryable for 408, 429, 500, 502 to 504, and when there is no connection or no answer.
        """
        try:
            self._tell(notification)
        except GrafanaError as error:
            raise _as_sink_error(error) from error

    def check(self) -> str:
        """Ask for the version, and whether annotations may be written; writes nothing.

        Raises:
            SinkError: Grafana does not answer, or not to us.
        """
        try:
            version = self._client.version
            organisation = self._client.organisation.get("name", "")
            actions = self._client.actions()
            known = self._client.dashboard(self._dashboard) is not None
        except GrafanaError as error:
            raise _as_sink_error(error) from error
        if actions is not None and "annotations:create" not in actions:
            raise SinkError(
                f"The token for Grafana at {self._client.place} may not write annotations.",
                retryable=False,
                hint="Give its service account the role Editor.",
            )
        where = (
            f"dashboard {self._dashboard}" if known else f"all dashboards, as there is none called {self._dashboard}"
        )
        shown = f"version {version}" if version else "version hidden"
        return f"grafana {self._client.place} ({shown}), organisation {_plain(str(organisation))}, {where}"

    def close(self) -> None:
        """Release the connections."""
        self._client.close()

    def _tell(self, notification: Notification) -> None:
        starts_ms = _held(notification.starts_ms)
        ends_ms = None if notification.ends_ms is None else max(_held(notification.ends_ms), starts_ms)
        text = text_of(notification)
        # Two processes may have made one each at the same moment: the first is kept.
        found = self._client.annotations(INCIDENT_TAG + notification.incident)
        for extra in found[1:]:
            self._client.delete_annotation(extra.id)
        if found and self._client.change_annotation(found[0].id, text=text, end_ms=ends_ms):
            return
        tags = tags_of(notification)
        try:
            self._client.add_annotation(
                time_ms=starts_ms, end_ms=ends_ms, tags=tags, text=text, dashboard_uid=self._dashboard
            )
        except GrafanaError as error:
            # 9.2 makes it the organisation's by itself, later versions refuse it; an Editor is told that it may not.
            if error.status not in (400, 403, 404) or self._client.dashboard(self._dashboard) is not None:
                raise
            self._client.add_annotation(time_ms=starts_ms, end_ms=ends_ms, tags=tags, text=text, dashboard_uid="")


def text_of(notification: Notification) -> str:
    """Title and text. Grafana shows it as HTML, of which nothing may come out of a record."""
    title = " ".join(_plain(notification.title).split())
    text = f"{title}\n{notification.text}\ndriftd explain {notification.incident}"
    if len(text) > LONGEST_TEXT:
        text = text[: LONGEST_TEXT - 1] + "…"
    return html.escape(text, quote=False)


def tags_of(notification: Notification) -> list[str]:
    """What to find it by: first its own tag, then as many of the others as Grafana has room for."""
    pairs = {
        "model": notification.model,
        "kind": notification.kind,
        "severity": notification.severity,
        "space": notification.space,
        "segment": notification.segment,
    }
    tags = [INCIDENT_TAG + notification.incident, "driftd"]
    for name, value in pairs.items():
        tag = f"{name}:{' '.join(_plain(value).split())}"[:LONGEST_TAG].strip()
        if value and _size([*tags, tag]) <= MOST_OF_TAGS:
            tags.append(tag)
    return tags


def _size(tags: list[str]) -> int:
    """Never less than Grafana counts: bytes of JSON, in which it writes three more characters as \\u003c."""
    text = json.dumps(tags)
    return len(text) + 5 * sum(text.count(c) for c in "<>&")


def _plain(text: str) -> str:
    """Without line breaks, terminal controls and marks that turn the direction of writing."""
    return "".join(c if c.isprintable() else " " for c in text)


def _held(time_ms: int) -> int:
    return min(max(time_ms, 1), LATEST_MS)  # 0 would be now


def _as_sink_error(error: GrafanaError) -> SinkError:
    return SinkError(
        error.message,
        retryable=error.retryable or error.status in _PASSING,
        retry_after_s=error.retry_after_s,
        hint=error.hint,
    )
