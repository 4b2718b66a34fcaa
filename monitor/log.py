"""Structured logging: events with fields, through the standard library's loggers.

    log = logging.getLogger(__name__)
    log.info(event("reference built", model="support_triage", version=1, records=50_000))

gives, as text or with ``--log-format json``::

    2026-11-21T07:12:30.512Z info reference built model=support_triage version=1 records=50000
    {"time": "2026-11-21T07:12:30.512Z", "level": "info", "event": "reference built", "model": "support_triage", ...}

A log line never holds a payload or a secret. So a field takes numbers, short texts and paths as they are; bytes,
arrays and unknown objects appear as their type and size, fields named like a secret as ``***``, and credentials in URLs
are cut out. An exception that is not ours appears as its type and stack only: its text may quote what it choked on.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from types import TracebackType
from typing import Literal, TextIO

from detectors.errors import DriftdError

MAX_TEXT = 500  # characters of one text field; a payload that slipped in stays short
MAX_ITEMS = 20  # entries of one list or mapping
_SECRET_NAME = re.compile(r"secret|password|passwd|token|authorization|api_?key|credential", re.IGNORECASE)
_USERINFO = re.compile(r"(\b[a-z][a-z0-9+.\-]*://)[^/\s@]*@", re.IGNORECASE)
_PLAIN = re.compile(r"[^\s\"=\x00-\x1f\x7f-\x9f]+")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_RESERVED = ("time", "level", "event", "logger", "error", "stack")

Scalar = bool | int | float | str | None
FieldValue = Scalar | list["FieldValue"] | dict[str, "FieldValue"]


@dataclass(frozen=True, slots=True)
class Event:
    """What happened, in a few fixed words, and the fields that vary."""

    text: str
    fields: Mapping[str, FieldValue]

    def __str__(self) -> str:
        pairs = [f"{name}={_quoted(value)}" for name, value in self.fields.items()]
        return " ".join([_one_line(self.text), *pairs])


def event(text: str, /, **fields: object) -> Event:
    """An event to give to a logger: ``log.warning(event("sink refused", sink=name, attempts=3))``."""
    return Event(scrubbed(text), {name: _safe(name, value) for name, value in fields.items()})


def scrubbed(text: str) -> str:
    """``text`` without the user name and password of any URL in it, and of bounded length."""
    clean = _USERINFO.sub(r"\1***@", text)
    return clean if len(clean) <= MAX_TEXT else f"{clean[:MAX_TEXT]}... ({len(clean)} characters)"


def describe(error: BaseException) -> str:
    """An error in words that are safe to log: our own errors as they are, foreign ones without their text."""
    if isinstance(error, DriftdError):
        return scrubbed(str(error))
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}"
    return type(error).__name__


def configure(
    log_format: Literal["text", "json"] = "text",
    *,
    level: str = "info",
    stream: TextIO | None = None,
    worker: int | None = None,
) -> None:
    """Send all logging to ``stream`` (standard error by default) in the given format.

    ``worker``: the ordinal of this process, to stand in each line.

    Calling it again replaces the earlier handler. Other libraries speak from "warning" on; from "error" on
    urllib3, whose warnings quote whole URLs, and kafka-python's loop, which warns when it was busy for 0.1 seconds.
    """
    handler = _Handler(stream)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    if worker is not None:
        handler.addFilter(_Worker(worker))
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old, _Handler):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in ("monitor", "connectors", "dashboards", "detectors"):
        logging.getLogger(name).setLevel(level.upper())
    for name in ("urllib3", "kafka.net.selector"):
        logging.getLogger(name).setLevel(logging.ERROR)


class TextFormatter(logging.Formatter):
    """One line for people: time, level, event, key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        what = _event_of(record)
        fields = dict(what.fields)
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = describe(record.exc_info[1])
            fields["stack"] = _stack(record.exc_info[2])
        return f"{_time(record)} {record.levelname.lower()} {Event(what.text, fields)}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line. A field whose name is taken (time, level, event, ...) gets a trailing underscore."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        what = _event_of(record)
        line: dict[str, FieldValue] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": what.text,
            "logger": record.name,
        }
        for name, value in what.fields.items():
            line[f"{name}_" if name in _RESERVED and name != "error" else name] = value
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = describe(record.exc_info[1])
            line["stack"] = _stack(record.exc_info[2])
        return json.dumps(line)


class RepeatingFailure:
    """Logs a failure when its text changes, and counts it while it stays the same.

        failure = RepeatingFailure(log, "database unreachable")
        failure.happened(str(error), model=name)    # a line the first time, and whenever the text is another
        failure.over(model=name)                    # one line with the count, if it had happened

    Not thread-safe: each thread has its own.
    """

    def __init__(self, logger: logging.Logger, text: str, *, level: int = logging.WARNING) -> None:
        self._logger = logger
        self._text = text
        self._level = level
        self._last: str | None = None
        self.count = 0

    def happened(self, reason: str, **fields: object) -> None:
        """It failed (again), for this reason."""
        self.count += 1
        if reason != self._last:
            self._last = reason
            self._logger.log(self._level, event(self._text, reason=reason, count=self.count, **fields))

    def over(self, **fields: object) -> None:
        """It works."""
        if self._last is not None:
            self._logger.info(event(f"{self._text}: over", failures=self.count, **fields))
        self._last, self.count = None, 0


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that `configure` can find it; asks for sys.stderr at each line unless a stream was given."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream or sys.stderr)
        self._follow_stderr = stream is None

    def emit(self, record: logging.LogRecord) -> None:
        if self._follow_stderr:
            self.stream = sys.stderr
        super().emit(record)


class _Worker(logging.Filter):
    """Lets every record pass, and writes the worker into it."""

    def __init__(self, ordinal: int) -> None:
        super().__init__()
        self._ordinal = ordinal

    def filter(self, record: logging.LogRecord) -> bool:
        what = _event_of(record)
        record.msg, record.args = Event(what.text, {"worker": self._ordinal, **what.fields}), None
        return True


def _event_of(record: logging.LogRecord) -> Event:
    if isinstance(record.msg, Event):
        return record.msg
    return Event(scrubbed(record.getMessage()), {})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _stack(trace: TracebackType | None) -> str:
    frames = traceback.extract_tb(trace)[-8:]
    return " < ".join(f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))


def _safe(name: str, value: object) -> FieldValue:
    if value is not None and _SECRET_NAME.search(name):
        return "***"
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return scrubbed(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, BaseException):
        return describe(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        pairs = list(value.items())[:MAX_ITEMS]
        return {str(key): _safe(str(key), item) for key, item in pairs}
    if isinstance(value, list | tuple | set | frozenset):
        return [_safe(name, item) for item in list(value)[:MAX_ITEMS]]
    shape = getattr(value, "shape", None)
    if shape == () and hasattr(value, "item"):  # a NumPy scalar
        return _safe(name, value.item())
    return f"<{type(value).__name__}{'' if shape is None else f' {shape}'}>"


def _quoted(value: FieldValue) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if _PLAIN.fullmatch(text) and not _UNPRINTABLE.search(text) else json.dumps(text)


def _one_line(text: str) -> str:
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
