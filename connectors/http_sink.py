"""The HTTP of the sinks that POST: time-outs, TLS, proxies, and errors that say what to do and hold no secret.

A URL may be a secret altogether (many receivers put a token into the path), so errors and logs name the host only, and
exceptions of the HTTP library, which quote the URL, are not kept as causes.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, field_validator

from detectors.errors import InvalidSettings, SinkError

if TYPE_CHECKING:
    import requests

RETRYABLE = frozenset({408, 429, *range(500, 600)}) - {501, 505}
LONGEST_RETRY_AFTER_S = 3600.0  # a receiver that asks for more is asked again after an hour
LARGEST_ANSWER = 256 << 10  # bytes of an answer that are read, where one is read at all
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_OURS = frozenset({"content-type", "content-length", "host", "transfer-encoding", "idempotency-key"})


class HttpSettings(BaseModel, frozen=True, extra="forbid"):
    """What all sinks that POST have in common."""

    headers: dict[str, SecretStr] = Field(default_factory=dict, description="more headers, such as Authorization")
    # Both waits together stay below the time after which another process sends the notification (monitor/outbox.py).
    timeout_s: float = Field(5.0, gt=0, le=25, description="seconds to wait for the connection, and for an answer")
    verify_tls: bool = Field(True, description="check the server's certificate")
    ca_file: Path | None = Field(None, description="file with the certificate authorities to trust (PEM)")
    external_url: str = Field("", description="address of driftd's status page, for the links in what is sent")

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

    @field_validator("external_url")
    @classmethod
    def _is_a_link(cls, value: str) -> str:
        return value and http_address(SecretStr(value)).get_secret_value()

    def client(self, what: str, url: str) -> HttpClient:
        """A client for one address.

        Args:
            what: the receiver in errors: "The {what} at https://example.org answers 503."

        Raises:
            InvalidSettings: ``ca_file`` does not exist.
        """
        if self.ca_file is not None and not self.ca_file.is_file():
            raise InvalidSettings(
                f"The {what}'s ca_file {self.ca_file} does not exist.", hint="Name a PEM file: sinks.NAME.ca_file"
            )
        return HttpClient(
            what,
            url,
            headers={name: text.get_secret_value() for name, text in self.headers.items()},
            timeout_s=self.timeout_s,
            verify=str(self.ca_file) if self.verify_tls and self.ca_file is not None else self.verify_tls,
        )


def http_address(value: SecretStr) -> SecretStr:
    """The same address, for a validator of settings; ValueError, which does not quote it, where it is none."""
    try:
        parts = urlsplit(value.get_secret_value())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("expected an address such as https://example.org/hook")
    return value


def read_secret(
    secret: SecretStr | None, file: Path | None, *, what: str, key: str = "secret", section: str = "sinks.NAME"
) -> bytes | None:
    """A secret of the settings, or of the file that they name, without its line end; None where there is neither.

    Args:
        what, key: whose it is and what the settings call it, for the errors.
        section: where in the settings the key stands.

    Raises:
        InvalidSettings: the file cannot be read, or the secret is empty.
    """
    value = None if secret is None else secret.get_secret_value().encode()
    if file is not None:
        try:
            value = file.read_bytes().strip()
        except OSError as error:
            raise InvalidSettings(
                f"The {what}'s {key}_file {file} cannot be read: {error.strerror}.",
                hint=f"Put the {key} there, or name another file: {section}.{key}_file",
            ) from error
    if value == b"":
        raise InvalidSettings(f"The {what}'s {key} is empty.", hint=f"Set it, or leave {key} and {key}_file out.")
    return value


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


class HttpClient:
    """Talks to one server. Called from one thread.

    Args:
        what: the receiver in errors.
        url: where to POST; user name and password in it become basic authentication.
        headers: go with every request.
        timeout_s: for the connection, and for each wait for bytes of the answer.
        verify: check the certificate; or a file of certificate authorities.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        what: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 5.0,
        verify: bool | str = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.clock = clock
        self._what = what
        self._url = url
        self._headers = dict(headers or {})
        self._timeout_s = timeout_s
        self._verify = verify
        self._session: requests.Session | None = None

    @property
    def place(self) -> str:
        """Scheme, host and port: as much of the URL as may be shown."""
        parts = urlsplit(self._url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}{'' if parts.port is None else f':{parts.port}'}"

    def __repr__(self) -> str:
        return f"HttpClient({self._what}, {self.place})"

    def post(
        self, body: bytes, headers: Mapping[str, str], *, path: str = "", hints: Mapping[int, str] | None = None
    ) -> None:
        """POST JSON. An answer of 2xx counts as taken; its body is not read.

        Args:
            path: what comes after the URL's own path, with its own query if it has one.
            hints: what to do about an answer, by its status.

        Raises:
            SinkError: retryable for 408, 429, 5xx (but 501 and 505), and when there is no connection or no answer.
        """
        sent = {"User-Agent": "driftd", **self._headers, "Content-Type": "application/json", **headers}
        status, asked, _ = self._request("POST", self._address(path), body, sent, read=0)
        self._judge(status, asked, hints or {})

    def ask(self, body: bytes, *, path: str, most: int) -> tuple[int, float | None, bytes]:
        """POST JSON, and what is answered: the status, the seconds that Retry-After asks for, at most ``most`` bytes.

        Raises:
            SinkError: there is no answer.
        """
        sent = {"User-Agent": "driftd", **self._headers, "Content-Type": "application/json"}
        status, asked, answer = self._request("POST", self._address(path), body, sent, read=most)
        return status, retry_after_s(asked, self.clock()), answer

    def get(self, path: str, *, hints: Mapping[int, str] | None = None) -> bytes:
        """The body of an answer of 2xx, at most ``LARGEST_ANSWER`` bytes of it.

        Raises:
            SinkError: as `post`.
        """
        sent = {"User-Agent": "driftd", **self._headers}
        status, asked, body = self._request("GET", self._address(path), None, sent, read=LARGEST_ANSWER)
        self._judge(status, asked, hints or {})
        return body

    def check(self) -> str:
        """Connect (and greet by TLS), but send nothing. The address, and what is worth knowing of the way there.

        Raises:
            SinkError: nothing answers there, or its certificate is refused.
        """
        import socket
        import ssl

        from certifi import where
        from requests.utils import select_proxy

        session = self._open()
        merged = session.merge_environment_settings(self._url, {}, None, self._verify, None)
        described = self.place
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
        except ssl.SSLCertVerificationError as error:
            problem, hint = f"its certificate is refused: {error.verify_message}", TLS_HINT
        except ssl.SSLError as error:
            problem = f"refused by TLS: {error.reason or type(error).__name__}"
            hint = "Where it speaks plain HTTP, its address begins with http://"
        except TimeoutError:
            problem = f"no answer within {self._timeout_s:g} s"
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be encoded
            problem = getattr(error, "strerror", None) or type(error).__name__
        if problem:
            raise SinkError(
                f"The {self._what} at {self.place} cannot be reached: {problem}.", retryable=True, hint=hint
            )
        return described

    def close(self) -> None:
        """Release the connections."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _address(self, path: str) -> str:
        if not path:
            return self._url
        parts = urlsplit(self._url)
        more, _, query = path.partition("?")
        return parts._replace(path=parts.path.rstrip("/") + more, query=query or parts.query).geturl()

    def _judge(self, status: int, asked: str | None, hints: Mapping[int, str]) -> None:
        if 200 <= status < 300:
            return
        if 300 <= status < 400:
            raise SinkError(
                f"The {self._what} at {self.place} answers {status}: it redirects, which driftd does not follow.",
                retryable=False,
                hint="Set url to the address that it redirects to: curl -sI URL",
            )
        raise SinkError(
            f"The {self._what} at {self.place} answers {status}.",
            retryable=status in RETRYABLE,
            retry_after_s=retry_after_s(asked, self.clock()) if status in RETRYABLE else None,
            hint=hints.get(status, _HINTS.get(status, "")),
        )

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

    def _request(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], *, read: int
    ) -> tuple[int, str | None, bytes]:
        """Status, Retry-After and the body's first bytes.

        The error is raised outside of the except clauses: its context would hold the URL.
        """
        import requests

        session = self._open()
        hint, retryable = "", True
        try:
            with session.request(
                method,
                url,
                data=body,
                headers=headers,
                timeout=self._timeout_s,
                verify=self._verify,
                allow_redirects=False,
                stream=True,  # no more of the answer is read than asked for, however long it is
            ) as response:
                text = bytearray()
                if read:
                    for part in response.iter_content(1 << 16):
                        text += part
                        if len(text) >= read:
                            break
                return response.status_code, response.headers.get("Retry-After"), bytes(text[:read])
        except requests.exceptions.SSLError:
            problem, hint = "its certificate or TLS version is refused", TLS_HINT
        except requests.exceptions.ProxyError:
            problem, hint = "the proxy does not let us through", "See HTTPS_PROXY and NO_PROXY in the environment."
        except requests.exceptions.ConnectTimeout:
            problem = f"no connection within {self._timeout_s:g} s"
        except requests.exceptions.Timeout:
            problem = f"no answer within {self._timeout_s:g} s"
        except requests.exceptions.ChunkedEncodingError:
            problem = "the answer broke off"
        except requests.exceptions.ConnectionError as error:
            problem = connection_problem(error)
        except (requests.exceptions.RequestException, OSError, ValueError) as error:
            problem, retryable = f"the request cannot be made ({type(error).__name__})", False
            hint = "Check url, headers and ca_file of this sink."
        self.close()  # the next attempt starts with a new connection
        raise SinkError(f"The {self._what} at {self.place} got nothing: {problem}.", retryable=retryable, hint=hint)


TLS_HINT = "Name its certificate authority: sinks.NAME.ca_file"
_HINTS = {
    401: "Check headers.Authorization, or the user name and password in url.",
    403: "Check headers.Authorization, and the secret.",
    404: "Check the path in url.",
    405: "The receiver does not take POST at this path; check url.",
    413: "The receiver takes shorter bodies only.",
}


def _keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def connection_problem(error: BaseException) -> str:
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
