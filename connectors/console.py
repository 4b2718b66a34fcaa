"""Sink `console`: notifications as lines for a person at a terminal, on standard error.

A terminal gets colours, anything else plain lines. Control characters are shown as escapes: a segment's value comes out
of the records, and must not be able to repaint a terminal or fake a line.
"""

from __future__ import annotations

import re
import sys
from datetime import datetime, timedelta
from typing import Literal, TextIO

from pydantic import BaseModel

from connectors.notification import Notification
from detectors.errors import SinkError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_COLOURS = {"PAGE": "bold red", "WARN": "bold yellow", "RESOLVED": "bold green"}


class ConsoleSettings(BaseModel, frozen=True, extra="forbid"):
    """Prints each notification on standard error, in colour on a terminal."""

    kind: Literal["console"] = "console"

    def build(self) -> ConsoleSink:
        """The sink, on standard error."""
        return ConsoleSink()


class ConsoleSink:
    """Prints two lines for each notification: when, how urgent and what; then the details.

    Args:
        stream: where to print; standard error by default, as it is at that moment.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def send(self, notification: Notification) -> None:
        """Print it.

        Raises:
            SinkError: the stream is closed, or its other end is gone.
        """
        stream = self._stream or sys.stderr
        urgency = "RESOLVED" if notification.status == "resolved" else notification.severity.upper()
        time = _utc(notification.starts_ms if notification.ends_ms is None else notification.ends_ms)
        title, text = printable(notification.title.removeprefix("Resolved: ")), printable(notification.text)
        # Padding makes the titles stand below each other; RESOLVED is the longest of the three.
        head = (f"{time} ", f"{urgency:<8}", f" {title}\n")
        try:
            if stream.isatty():
                from rich.console import Console
                from rich.text import Text

                line = Text.assemble((head[0], "dim"), (head[1], _COLOURS[urgency]), (head[2], "bold"), f"    {text}")
                Console(file=stream, soft_wrap=True).print(line)
            else:
                stream.write(f"{''.join(head)}    {text}\n")
            stream.flush()
        except UnicodeEncodeError as error:
            raise SinkError(
                f"Standard error cannot show a character (its encoding is {stream.encoding}).",
                retryable=False,
                hint="Set PYTHONIOENCODING=utf-8",
            ) from error
        except (OSError, ValueError) as error:  # ValueError: the file object is closed
            reason = getattr(error, "strerror", None) or "it is closed"
            raise SinkError(f"Standard error cannot be written: {reason}.", retryable=True) from error

    def check(self) -> str:
        """One line; there is nothing that could fail."""
        return "console: standard error"

    def close(self) -> None:
        """Nothing to release: the stream is not ours."""


def printable(text: str) -> str:
    """``text`` on one line, with control characters and marks that turn the writing direction as escapes."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text.replace("\n", " "))


def _utc(time_ms: int) -> str:
    clamped = min(max(time_ms, -62_135_596_800_000), 253_402_300_799_999)
    return f"{datetime(1970, 1, 1) + timedelta(seconds=clamped // 1000):%Y-%m-%d %H:%M:%S}Z"
