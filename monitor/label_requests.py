"""POST /labels and POST /truths: who may, what a body may be, and what is answered.

One process takes them in itself (`LabelRequests`); the supervisor of several passes them on to one of them
(`PassedOnLabels`). Both ask for the token, so that nothing of a stranger goes further than here.
"""

from __future__ import annotations

import hmac
import http.client
import json
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote

from connectors.database.connection import wall_clock_ms
from detectors.errors import InvalidSettings, SourceError, StoreError
from monitor.labels import BadLabel, documents

if TYPE_CHECKING:
    from monitor.document_reader import DocumentReader
    from monitor.settings import HttpSettings

LABELS: Final = "/labels"
TRUTHS: Final = "/truths"
MAX_BODY = 8 << 20  # bytes
RETRY_AFTER_S = 5
_PASS_ON_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered.

    Attributes:
        code: of HTTP.
        body: as JSON.
    """

    code: int
    body: Mapping[str, object]
    headers: Mapping[str, str] = field(default_factory=dict)


class TakesLabels(Protocol):
    """Who answers POST /labels, or POST /truths; called from several threads at once."""

    def allowed(self, authorization: str) -> Answer | None:
        """None if a request with this header may go on, otherwise what it is answered."""

    def answer(self, model: str, body: bytes, authorization: str) -> Answer:
        """Take what is in a body in, all or none of it."""


class Token:
    """The bearer token of the settings. A file is read at each request, so that a token can be changed while we run."""

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings

    def allowed(self, authorization: str) -> Answer | None:
        """See `TakesLabels.allowed`."""
        try:
            token = self.read()
        except InvalidSettings as error:
            return _refused(403, error.message, error.hint)
        if token is None:
            return _refused(
                403,
                "Labels are not taken here: there is no token.",
                "Set http.token_file, or DRIFTD_HTTP__TOKEN in the environment of driftd run.",
            )
        kind, _, given = authorization.partition(" ")
        # In constant time: how long a comparison takes would tell the token, byte by byte.
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
            return Answer(
                401,
                {"error": "The bearer token is missing or wrong.", "hint": "Send: Authorization: Bearer TOKEN"},
                {"www-authenticate": 'Bearer realm="driftd"'},
            )
        return None

    def read(self) -> str | None:
        """The token; None where none is set.

        Raises:
            InvalidSettings: its file cannot be read, or is empty.
        """
        file = self._settings.token_file
        if file is None:
            return None if self._settings.token is None else self._settings.token.get_secret_value()
        try:
            text = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise InvalidSettings(
                f"http.token_file {file} cannot be read: {reason}.",
                hint="Put the token there, for driftd's user to read.",
            ) from error
        if not text:
            raise InvalidSettings(f"http.token_file {file} is empty.", hint=f"Type: openssl rand -hex 32 > {file}")
        return text


class LabelRequests:
    """Takes labels in, or true answers, in the process that watches the models.

    Args:
        settings: of HTTP, which hold the token.
        path: under which it is asked.
        needs: what a model must have to be asked, in words.
    """

    def __init__(self, settings: HttpSettings, *, path: str = LABELS, needs: str = "fraud settings") -> None:
        self._token = Token(settings)
        self._path = path
        self._needs = needs
        self._lock = threading.Lock()
        self._readers: dict[str, DocumentReader[Any]] | None = None  # None before the database is open

    def open(self, readers: Mapping[str, DocumentReader[Any]]) -> None:
        """From now on take documents of these models."""
        with self._lock:
            self._readers = dict(readers)

    def close(self) -> None:
        """Take no more: the database is about to be closed."""
        with self._lock:
            self._readers = None

    def allowed(self, authorization: str) -> Answer | None:
        """See `TakesLabels`."""
        return self._token.allowed(authorization)

    def answer(self, model: str, body: bytes, authorization: str) -> Answer:
        """See `TakesLabels`."""
        with self._lock:
            readers = self._readers
        if readers is None:
            return _later("driftd is starting or stopping.")
        if not model and len(readers) == 1:
            model = next(iter(readers))
        reader = readers.get(model)
        if reader is None:
            known = ", ".join(readers) or "none"
            return _refused(
                404 if model else 400,
                f"There is no model {model} with {self._needs}." if model else "Of which model?",
                f"Name one in the address: {self._path}?model=NAME. There is: {known}",
            )
        found: list[Any] = []
        now_ms = wall_clock_ms()
        try:
            found.extend(
                reader.read_document(document, now_ms, origin=f"post:{secrets.token_hex(16)}")
                for document in documents(body, example=reader.example)
            )
        except BadLabel as error:
            reader.refused(error.reason)
            # extend keeps what came before the error.
            wrong = {"error": error.message, "hint": error.hint, "reason": error.reason, "row": len(found) + 1}
            return Answer(400, wrong | {"taken": 0})
        try:
            took = reader.take(found)
        except (SourceError, StoreError) as error:  # a record that a label brings along may be embedded by a server
            return _later(error.message)
        return Answer(200, took.counts())


class PassedOnLabels:
    """Passes labels, or true answers, on to a worker that runs.

    Args:
        settings: of HTTP, which hold the token.
        ports: of the workers that answer now.
        path: under which they are asked.
    """

    def __init__(self, settings: HttpSettings, ports: Callable[[], list[int]], *, path: str = LABELS) -> None:
        self._token = Token(settings)
        self._ports = ports
        self._path = path

    def allowed(self, authorization: str) -> Answer | None:
        """See `TakesLabels`."""
        return self._token.allowed(authorization)

    def answer(self, model: str, body: bytes, authorization: str) -> Answer:
        """See `TakesLabels`. What a worker cannot take now, another one may."""
        last = _later("No worker answers.")
        for port in self._ports():
            answer = _passed_on(port, self._path, model, body, authorization)
            if answer is not None and answer.code != 503:
                return answer
            last = answer or last
        return last


def _passed_on(port: int, path: str, model: str, body: bytes, authorization: str) -> Answer | None:
    """What the worker at a port answers; None where it does not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PASS_ON_WITHIN_S)
    try:
        headers = {"authorization": authorization, "content-type": "application/json", "connection": "close"}
        connection.request("POST", f"{path}?model={quote(model)}", body=body, headers=headers)
        answer = connection.getresponse()
        said = json.loads(answer.read())
        kept = {
            name: value for name, value in answer.getheaders() if name.lower() in ("retry-after", "www-authenticate")
        }
        return Answer(answer.status, said, kept)
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def too_large() -> Answer:
    """What a body of more than `MAX_BODY` bytes is answered."""
    return _refused(
        413, f"The body has more than {MAX_BODY >> 20} MiB.", "Send it in parts, or as a file: driftd label FILE"
    )


def _refused(code: int, message: str, hint: str) -> Answer:
    return Answer(code, {"error": message, "hint": hint})


def _later(message: str) -> Answer:
    return Answer(
        503,
        {"error": message, "hint": f"Nothing was taken. Send it again in {RETRY_AFTER_S} s."},
        {"retry-after": str(RETRY_AFTER_S)},
    )
