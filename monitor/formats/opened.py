"""What opening a record gives: the bytes or the rows inside, and the attributes that came with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol

import msgspec

Kind = Literal["request", "response", ""]
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


@dataclass(frozen=True, slots=True)
class Envelope:
    """The attributes of a CloudEvent that driftd itself uses.

    Attributes:
        id: unique for its source; a request and its response share it where a model server logs them.
        type: what kind of event, such as "org.kubeflow.serving.inference.request".
        kind: which half of a request and its response; "" for all other events.
        time: as the event says it, None where it does not.
    """

    id: str
    type: str
    kind: Kind
    time: bytes | None

    @property
    def time_ms(self) -> int | None:
        """Milliseconds since 1970; None where there is no time, or none that can be read."""
        if self.time is None:
            return None
        try:
            return round(msgspec.convert(str(self.time, "utf-8"), _Moment).timestamp() * 1e6) // 1000
        except (msgspec.ValidationError, UnicodeDecodeError, OverflowError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class Opened:
    """One record without its wrapping.

    Attributes:
        value: what is inside, still encoded by the record's codec; None where ``documents`` hold it.
        documents: what is inside, decoded: one document for each row of the record.
        headers: the record's headers, with the attributes of its envelope as ``ce_NAME``.
        event: the envelope, where there is one.
    """

    value: bytes | None
    documents: Sequence[Any]
    headers: Mapping[str, bytes]
    event: Envelope | None = None


class Format(Protocol):
    """How records are wrapped. Everything that a record needs to be opened is in the record and the settings."""

    def open(self, value: bytes, headers: Mapping[str, bytes]) -> Opened:
        """Open one record.

        Raises:
            BrokenValue: it is not what the format says; with the reason and the detail of its dead letter.
            SourceError: what is needed to open it cannot be reached now; the record is as good as any other.
        """
