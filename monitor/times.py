"""Times as people write and read them: RFC 3339, UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from detectors.errors import InvalidInput


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
