"""Times as people write and read them: RFC 3339, UTC; durations such as "10s"."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import BeforeValidator, Field

from detectors.errors import InvalidInput

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(value: object) -> object:
    """A duration such as "10s", "5m", "1h" or "2d" in seconds; what is no text stays as it is.

    Raises:
        ValueError: a text that is no duration.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", value)
        if match is None or match[2] not in _UNITS:
            raise ValueError('expected a duration such as "10s", "5m", "1h" or "2d"')
        return float(match[1]) * _UNITS[match[2]]
    return value


Duration = Annotated[float, BeforeValidator(seconds_of), Field(gt=0)]
Wait = Annotated[float, BeforeValidator(seconds_of), Field(ge=0)]  # a duration that may be nothing


def text_of(time_ms: int) -> str:
    """Milliseconds since 1970 as "2026-01-31 12:00:00Z"."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def parse_time(text: str) -> int:
    """RFC 3339, or a date alone, as milliseconds since 1970. A time without a zone is UTC.

    Raises:
        InvalidInput: not a time.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInput(f"{text!r} is not a time.", hint="Expected, for example, 2026-01-31T12:00:00Z") from error
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
