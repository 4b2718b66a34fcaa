"""Sink `webhook`: one POST per notification, with the body that Alertmanager sends (version "4").

Whatever reads Alertmanager's webhooks reads ours. Three headers come with it:

* ``Idempotency-Key``: the notification's id; the same notification may arrive more than once, always with the same id.
* ``X-Driftd-Timestamp``: seconds since 1970 at which this attempt was sent.
* ``X-Driftd-Signature``: ``sha256=`` and the HMAC-SHA256 (RFC 2104) of timestamp + "." + body, in hexadecimal, where a
  secret is set.

A URL may be a secret altogether (many receivers put a token into the path), so errors and logs name the host only, and
exceptions of the HTTP library, which quote the URL, are not kept as causes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from connectors.notification import Notification
from detectors.errors import InvalidSettings, SinkError

if TYPE_CHECKING:
    import requests

# What a person's rules match on, in the style of other alert rules: CamelCase, the symptom first.
ALERT_NAMES = {
    "drift": "EmbeddingDrift",
    "outlier_rate": "OutlierRateHigh",
    "dead_letters": "DeadLettersHigh",
    "source": "SourceUnreadable",
    "dead_letter_wave": "ReadingStopped",
    "stalled": "PartitionsStalled",
    "gap": "RecordsLost",
}
NO_END = "0001-01-01T00:00:00Z"  # how Alertmanager writes the end of an alert that is still firing
RETRYABLE = frozenset({408, 429, *range(500, 600)}) - {501, 505}
LONGEST_RETRY_AFTER_S = 3600.0  # a receiver that asks for more is asked again after an hour
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_OURS = frozenset({"content-type", "content-length", "host", "transfer-encoding", "idempotency-key"})


class WebhookSettings(BaseModel, frozen=True, extra="forbid"):
    """POSTs each notification to a URL, with Alertmanager's webhook body, signed if a secret is set."""

    kind: Literal["webhook"] = "webhook"
    url: SecretStr = Field(description="http:// or https:// address that gets the POST; never shown")
    secret: SecretStr | None = Field(None, description="key of the HMAC-SHA256 signature")
    secret_file: Path | None = Field(None, description="file that holds the key, instead of secret")
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="more headers, such as Authorization")
    # Both waits together stay below the time after which another process sends the notification (monitor/outbox.py).
    timeout_s: float = Field(5.0, gt=0, le=25, description="seconds to wait for the connection, and for an answer")
    verify_tls: bool = Field(True, description="check the server's certificate")
    ca_file: Path | None = Field(None, description="file with the certificate authorities to trust (PEM)")
    external_url: str = Field("", description="address of driftd's status page, for the links in the body")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(value.get_secret_value())
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("expected an address such as https://example.org/hook")
        return value

    @field_validator("headers")
    @classmethod
    def _are_headers(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, text in value.items():
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError("a header's name has letters, digits and - only")
            if name.lower() in _OURS or name.lower().startswith("x-driftd-"):
                raise ValueError(f"the header {name} is set by driftd; leave it out")
            if not text.get_secret_value().isprintable() or not text.get_secret_value().isascii():
                raise ValueError(f"the header {name} needs a value of printable ASCII characters on one line")
        return value

    @model_validator(mode="after")
    def _has_one_secret(self) -> WebhookSettings:
        if self.secret is not None and self.secret_file is not None:
            raise ValueError("secret and secret_file are both set; keep one")
        return self

    def build(self) -> WebhookSink:
        """The sink. Reads ``secret_file``.

        Raises:
            InvalidSettings: a file that is named cannot be read, or the key is empty.
        """
        secret = None if self.secret is None else self.secret.get_secret_value().encode()
        if self.secret_file is not None:
            try:
                secret = self.secret_file.read_bytes().strip()
            except OSError as error:
                raise InvalidSettings(
                    f"The webhook's secret_file {self.secret_file} cannot be read: {error.strerror}.",
                    hint="Put the key there, or name another file: sinks.NAME.secret_file",
                ) from error
        if secret == b"":
            raise InvalidSettings("The webhook's secret is empty.", hint="Set it, or leave secret and secret_file out.")
        if self.ca_file is not None and not self.ca_file.is_file():
            raise InvalidSettings(
                f"The webhook's ca_file {self.ca_file} does not exist.", hint="Name a PEM file: sinks.NAME.ca_file"
            )
        return WebhookSink(
            self.url.get_secret_value(),
            secret=secret,
            headers={name: text.get_secret_value() for name, text in self.headers.items()},
            timeout_s=self.timeout_s,
            verify=str(self.ca_file) if self.verify_tls and self.ca_file is not None else self.verify_tls,
            external_url=self.external_url,
        )


def alertmanager_body(notification: Notification, *, external_url: str = "") -> dict[str, Any]:
    """The webhook body of Alertmanager, version "4", for one notification.

    Labels name the reason and never an event, so that receivers can group and silence by them; the fingerprint is a
    hash of the group key, hence the same from the first warning to the last "resolved". The notification's id, to
    dedupe by, is the annotation ``notification_id``.
    """
    labels = {
        "alertname": ALERT_NAMES.get(notification.kind, notification.kind),
        "model": notification.model,
        "kind": notification.kind,
        "severity": notification.severity,
        "space": notification.space,
        "segment": notification.segment,
    }
    labels = {name: value for name, value in labels.items() if value}
    annotations = {
        **notification.values,
        "summary": notification.title,
        "description": notification.text,
        "incident": notification.incident,
        "notification_id": notification.id,
    }
    return {
        "version": "4",
        "groupKey": notification.group_key,
        "truncatedAlerts": 0,
        "status": notification.status,
        "receiver": "driftd",
        "groupLabels": {name: labels[name] for name in ("alertname", "model") if name in labels},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": external_url,
        "alerts": [
            {
                "status": notification.status,
                "labels": labels,
                "annotations": annotations,
                "startsAt": rfc3339(notification.starts_ms),
                "endsAt": NO_END if notification.ends_ms is None else rfc3339(notification.ends_ms),
                "generatorURL": external_url,
                "fingerprint": hashlib.sha256(notification.group_key.encode(errors="replace")).hexdigest()[:16],
            }
        ],
    }


def rfc3339(time_ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 text in UTC, held within the years 1 to 9999."""
    clamped = min(max(time_ms, -62_135_596_800_000), 253_402_300_799_999)
    seconds, milliseconds = divmod(clamped, 1000)
    # A sum of integers, since fromtimestamp() of a float may round into the next millisecond.
    return f"{_utc(seconds)}.{milliseconds:03d}Z"


def _utc(seconds: int) -> str:
    return (datetime(1970, 1, 1) + timedelta(seconds=seconds)).isoformat()


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """The signature header's value: "sha256=" and HMAC-SHA256 of timestamp + "." + body (RFC 2104), hexadecimal."""
    return "sha256=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def retry_after_s(header: str | None, now_s: float) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3: seconds, or a date); None if it says nothing."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), LONGEST_RETRY_AFTER_S)
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    wait = date.timestamp() - now_s
    return min(max(wait, 0.0), LONGEST_RETRY_AFTER_S) if math.isfinite(wait) else None


class WebhookSink:
    """Delivers over HTTP. Called from one thread.

    Args:
        url: where to POST; user name and password in it become basic authentication.
        secret: key of the signature; None sends none.
        headers: more headers.
        timeout_s: for the connection, and for each wait for bytes of the answer.
        verify: check the certificate; or a file of certificate authorities.
        external_url: goes into the body.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 5.0,
        verify: bool | str = True,
        external_url: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = url
        self._secret = secret
        self._headers = dict(headers or {})
        self._timeout_s = timeout_s
        self._verify = verify
        self._external_url = external_url
        self._clock = clock
        self._session: requests.Session | None = None

    def __repr__(self) -> str:
        return f"WebhookSink({self.place})"

    @property
    def place(self) -> str:
        """Scheme, host and port: as much of the URL as may be shown."""
        parts = urlsplit(self._url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}{'' if parts.port is None else f':{parts.port}'}"

    def send(self, notification: Notification) -> None:
        """POST one notification. An answer of 2xx counts as delivered; its body is not read.

        Raises:
            SinkError: retryable for 408, 429, 5xx (but 501 and 505), and when there is no connection or no answer.
        """
        body = json.dumps(alertmanager_body(notification, external_url=self._external_url)).encode()
        timestamp = str(int(self._clock()))
        headers = {
            "User-Agent": "driftd",
            **self._headers,
            "Content-Type": "application/json",
            "Idempotency-Key": notification.id,
            "X-Driftd-Timestamp": timestamp,
        }
        if self._secret is not None:
            headers["X-Driftd-Signature"] = sign(self._secret, timestamp, body)
        status, asked = self._post(body, headers)
        if 200 <= status < 300:
            return
        if 300 <= status < 400:
            raise SinkError(
                f"The webhook at {self.place} answers {status}: it redirects, which driftd does not follow.",
                retryable=False,
                hint="Set url to the address that it redirects to: curl -sI URL",
            )
        raise SinkError(
            f"The webhook at {self.place} answers {status}.",
            retryable=status in RETRYABLE,
            retry_after_s=retry_after_s(asked, self._clock()) if status in RETRYABLE else None,
            hint=_HINTS.get(status, ""),
        )

    def check(self) -> str:
        """Connect (and greet by TLS), but send nothing.

        Raises:
            SinkError: nothing answers there, or its certificate is refused.
        """
        import socket
        import ssl

        from certifi import where
        from requests.utils import select_proxy

        session = self._open()
        merged = session.merge_environment_settings(self._url, {}, None, self._verify, None)
        described = f"webhook {self.place}, {'signed' if self._secret else 'not signed'}"
        if urlsplit(self._url).scheme == "https" and not merged["verify"]:
            described += ", certificate not checked"
        if select_proxy(self._url, merged["proxies"]):
            return f"{described}, through a proxy (not tried)"
        parts = urlsplit(self._url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        problem, hint = "", ""
        try:
            with socket.create_connection((parts.hostname or "", port), timeout=self._timeout_s) as connection:
                if parts.scheme == "https" and merged["verify"]:
                    trusted = Path(merged["verify"] if isinstance(merged["verify"], str) else where())
                    context = ssl.create_default_context(
                        cafile=None if trusted.is_dir() else str(trusted),
                        capath=str(trusted) if trusted.is_dir() else None,
                    )
                    context.wrap_socket(connection, server_hostname=parts.hostname).close()
        except ssl.SSLError as error:
            problem, hint = f"refused by TLS: {error.reason or type(error).__name__}", _TLS_HINT
        except TimeoutError:
            problem = f"no answer within {self._timeout_s:g} s"
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be encoded
            problem = getattr(error, "strerror", None) or type(error).__name__
        if problem:
            raise SinkError(f"The webhook at {self.place} cannot be reached: {problem}.", retryable=True, hint=hint)
        return described

    def close(self) -> None:
        """Release the connections."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _open(self) -> requests.Session:
        if self._session is None:
            import requests

            self._session = requests.Session()
            if not urlsplit(self._url).username:
                self._session.auth = _keep_headers  # or an entry in ~/.netrc would replace our Authorization header
            if self._verify is False:
                import warnings

                from urllib3.exceptions import InsecureRequestWarning

                # `check` says so once; the library would say it at every request.
                warnings.filterwarnings("ignore", category=InsecureRequestWarning)
        return self._session

    def _post(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, str | None]:
        """Status and Retry-After. The error is raised outside of the except clauses: its context would hold the URL."""
        import requests

        session = self._open()
        hint, retryable = "", True
        try:
            with session.post(
                self._url,
                data=body,
                headers=headers,
                timeout=self._timeout_s,
                verify=self._verify,
                allow_redirects=False,
                stream=True,  # the answer's body is never read, however long it is
            ) as response:
                return response.status_code, response.headers.get("Retry-After")
        except requests.exceptions.SSLError:
            problem, hint = "its certificate or TLS version is refused", _TLS_HINT
        except requests.exceptions.ProxyError:
            problem, hint = "the proxy does not let us through", "See HTTPS_PROXY and NO_PROXY in the environment."
        except requests.exceptions.ConnectTimeout:
            problem = f"no connection within {self._timeout_s:g} s"
        except requests.exceptions.Timeout:
            problem = f"no answer within {self._timeout_s:g} s"
        except requests.exceptions.ConnectionError as error:
            problem = _connection_problem(error)
        except (requests.exceptions.RequestException, OSError, ValueError) as error:
            problem, retryable = f"the request cannot be made ({type(error).__name__})", False
            hint = "Check url, headers and ca_file of this sink."
        self.close()  # the next attempt starts with a new connection
        raise SinkError(f"The webhook at {self.place} got nothing: {problem}.", retryable=retryable, hint=hint)


_TLS_HINT = "Name its certificate authority: sinks.NAME.ca_file"
_HINTS = {
    400: "The receiver does not take Alertmanager's webhook body.",
    401: "Check headers.Authorization, or the user name and password in url.",
    403: "Check headers.Authorization, and the secret that the receiver verifies the signature with.",
    404: "Check the path in url.",
    405: "The receiver does not take POST at this path; check url.",
    413: "The receiver takes shorter bodies only.",
}


def _keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _connection_problem(error: BaseException) -> str:
    """Why there is no connection, in the words of the operating system, from the depths of the library's error."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        cause = waiting.pop(0)
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        if type(cause).__name__ == "NameResolutionError":
            return "its host name is unknown"
        if isinstance(cause, OSError) and cause.strerror and type(cause).__module__ == "builtins":
            return cause.strerror.lower()
        waiting += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]
    return "no connection"
