"""Labels as they come: a document says what somebody found out about one record.

    {"id": "txn-4711", "label": "fraud", "time": "2026-01-31T12:00:00Z", "source": "chargeback",
     "confidence": 0.9, "by": "eve", "origin": "case-17", "record": {...}}

Only ``id`` and ``label`` are needed; what else stands in a document is passed over. The same forms serve a topic, an
HTTP request and a file, so that a label is the same however it comes.

A label has an **origin**, which names the saying itself: what has the origin of a label that is there is that label
again, and nothing comes of it. It is the document's own ``origin``; or else, where the document has a ``time``, a hash
of what it says; or else what the way by which it came makes of it, such as a position in a topic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

import msgspec

from connectors.database.columns import clean
from connectors.database.rows import LabelSource, NewLabel
from detectors.errors import InvalidInput
from monitor.decode import MAX_ID_CHARS
from monitor.times import parse_time

LabelReason = Literal[
    "no_value",
    "bad_json",
    "missing_id",
    "bad_id",
    "unknown_label",
    "bad_time",
    "unknown_source",
    "bad_confidence",
    "bad_text",
]
# What else may be wrong with a true answer; see monitor/truths.py.
TruthReason = Literal["bad_truth", "bad_prediction", "bad_weight"]

_FRAUD = "fraud fraudulent true yes 1 confirmed confirmed_fraud true_positive chargeback"
_CLEARED = "cleared clear legit legitimate genuine false no 0 not_fraud no_fraud false_positive false_alarm good"
# What other programs call the two, in lower case, with _ for blanks and hyphens.
WORDS: Final[Mapping[str, Literal["fraud", "cleared"]]] = MappingProxyType(
    {**dict.fromkeys(_FRAUD.split(), "fraud"), **dict.fromkeys(_CLEARED.split(), "cleared")}
)
SOURCES: Final[tuple[LabelSource, ...]] = get_args(LabelSource)

EXAMPLE: Final = 'Expected, for example, {"id": "txn-4711", "label": "fraud"}'
MAX_TEXT_CHARS = 200  # of by and origin
_SECONDS_BELOW = 10_000_000_000  # a number below is a time in seconds: as milliseconds it would be of early 1970
_EARLIEST_MS = 315_532_800_000  # 1980: programs write 0001-01-01, 1900-01-01 or 1970-01-01 for no date
_AHEAD_MS = 86_400_000  # a clock that is a day ahead is wrong


class BadLabel(InvalidInput):
    """A document that is no label, of fraud or of what is true.

    Args:
        reason: one of a short fixed list of words, used as a metric label.
    """

    def __init__(self, reason: LabelReason | TruthReason, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class SaidLabel:
    """A label, and the document of its record where it brought that along; None where not."""

    label: NewLabel
    record: Any | None = None


def parse(text: bytes, *, example: str = EXAMPLE) -> Any:
    """The value of a JSON text.

    Args:
        example: what was expected, in words.

    Raises:
        BadLabel: it is none.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLabel("bad_json", f"Not JSON: {error}.", hint=example) from error


def documents(body: bytes, *, example: str = EXAMPLE) -> Iterator[Any]:
    """The documents of a body that holds one, a list of them, or one in each line.

    Args:
        example: what was expected, in words.

    Raises:
        BadLabel: it holds something else, said with the line.
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        lines = [(number, line) for number, line in enumerate(body.splitlines(), start=1) if line.strip()]
        if len(lines) < 2:
            parse(body, example=example)
        for number, line in lines:
            try:
                yield parse(line, example=example)
            except BadLabel as error:
                raise BadLabel(error.reason, f"Line {number}: {error.message}", hint=error.hint) from error
        return
    if isinstance(value, list):
        yield from value
    else:
        yield value


def read_label(document: Any, now_ms: int, *, origin: str, default_ms: int | None = None) -> SaidLabel:
    """The label that a document says.

    Args:
        now_ms: wall clock; a time that lies a day ahead is none.
        default_ms: the time of a label that names none; now by default.
        origin: of a label that names neither its origin nor its time.

    Raises:
        BadLabel: what is wrong, and what was expected.
    """
    document = object_of(document)
    record_id = record_id_of(document)
    word = _word(document.get("label"))
    stated = document.get("time")
    time_ms = (now_ms if default_ms is None else default_ms) if stated in (None, "") else time_of(stated, now_ms)
    source = document.get("source")
    source = "analyst" if source in (None, "") else source.strip().lower() if isinstance(source, str) else source
    if source not in SOURCES:
        raise BadLabel(
            "unknown_source", f"source of {record_id} is {named(source)}; expected one of {', '.join(SOURCES)}."
        )
    confidence = _confidence(document.get("confidence"), record_id)
    by, own = (text_of(document, name, record_id) for name in ("by", "origin"))
    if own:
        origin = f"own:{own}"
    elif stated not in (None, ""):
        said = msgspec.json.encode([clean(record_id), word, time_ms, source, confidence, clean(by)])
        origin = f"said:{hashlib.sha256(said).hexdigest()[:32]}"
    label = NewLabel(record_id, word, time_ms, source, confidence, by, origin)
    record = document.get("record")
    return SaidLabel(label, record if record not in (None, "") else None)


def object_of(document: Any, *, example: str = EXAMPLE) -> dict[str, Any]:
    """A document that is an object.

    Raises:
        BadLabel: it is something else.
    """
    if isinstance(document, dict):
        return document
    found = "null" if document is None else named(document)
    raise BadLabel("bad_json", f"A label is an object, found {found}.", hint=example)


def record_id_of(document: Mapping[str, Any], *, example: str = EXAMPLE) -> str:
    """The id of the record that a document is about.

    Raises:
        BadLabel: there is none, or it is none.
    """
    value = document.get("id")
    if value in (None, ""):
        raise BadLabel("missing_id", "A label names no record: its id is missing.", hint=example)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or len(value) > MAX_ID_CHARS:
        raise BadLabel(
            "bad_id", f"id is {named(value)}; expected text of at most {MAX_ID_CHARS} characters, or a whole number."
        )
    return clean(value)


def _word(value: Any) -> Literal["fraud", "cleared"]:
    words = {True: "true", False: "false"}
    text = words.get(value, value) if isinstance(value, bool) else value
    if isinstance(text, int | str):
        found = WORDS.get(str(text).strip().lower().replace(" ", "_").replace("-", "_"))
        if found is not None:
            return found
    raise BadLabel(
        "unknown_label",
        f"label is {named(value)}; expected fraud or cleared.",
        hint=f"These are understood too: {', '.join(word for word in WORDS if word not in ('fraud', 'cleared'))}",
    )


def time_of(value: Any, now_ms: int, *, name: str = "time") -> int:
    """A time that a document states, in milliseconds since 1970.

    Args:
        now_ms: wall clock; a time that lies a day ahead is none.
        name: under which it stands in the document.

    Raises:
        BadLabel: it is none.
    """
    expected = "expected RFC 3339, such as 2026-01-31T12:00:00Z, or milliseconds since 1970"
    if isinstance(value, str) and value.strip().lstrip("-").isdigit():
        value = int(value.strip()[:20])
    if isinstance(value, str):
        try:
            time_ms = parse_time(value.strip())
        except (InvalidInput, OverflowError) as error:
            raise BadLabel("bad_time", f"{name} is {named(value)}; {expected}.") from error
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**62:
        time_ms = round(value)
        if time_ms < _SECONDS_BELOW:
            raise BadLabel("bad_time", f"{name} is {named(value)}, which looks like seconds; {expected}.")
    else:
        raise BadLabel("bad_time", f"{name} is {named(value)}; {expected}.")
    if time_ms < _EARLIEST_MS:
        raise BadLabel("bad_time", f"{name} is {named(value)}, before 1980: a date that stands for none; leave it out.")
    if time_ms > now_ms + _AHEAD_MS:
        raise BadLabel("bad_time", f"{name} is {named(value)}, more than a day ahead of the clock here.")
    return time_ms


def _confidence(value: Any, record_id: str) -> float:
    if value in (None, ""):
        return 1.0
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else 0.0
    except (ValueError, OverflowError):
        number = 0.0
    if not 0.0 < number <= 1.0:
        raise BadLabel(
            "bad_confidence",
            f"confidence of {record_id} is {named(value)}; expected a number above 0 and at most 1.",
        )
    return number


def text_of(document: Mapping[str, Any], name: str, record_id: str) -> str:
    """A short text of a document; "" where it has none.

    Raises:
        BadLabel: it is longer, or something else.
    """
    value = document.get(name)
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS:
        raise BadLabel(
            "bad_text",
            f"{name} of {record_id} is {named(value)}; expected at most {MAX_TEXT_CHARS} characters of text.",
        )
    return value


def named(value: Any) -> str:
    """A value in words, short: what a person needs to find it."""
    if value is None:
        return "missing"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
