"""True answers as they come: a document says what turned out to be right for one record.

    {"id": "txn-4711", "label": "genuine", "time": "2026-01-31T12:00:00Z", "weight": 20,
     "prediction": "fraud", "confidence": 0.8, "event_time": "2026-01-29T08:00:00Z", "origin": "case-17"}

Only ``id`` and ``label`` are needed; what else stands in a document is passed over. ``label`` is what the model should
have answered, in the words in which it answers: a class, true or false, or a number. ``prediction`` is what it did
answer, with its ``confidence`` and the record's ``event_time``, for records that driftd does not remember. ``weight``
says how many records this one stands for where people looked at a sample; ``chance``, of being in the sample, says the
same the other way round: the weight is one over it.

The same forms serve a topic, an HTTP request and a file. The origin names the saying itself, as of a label of fraud:
see monitor/labels.py, which the forms are shared with.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from connectors.database.columns import clean
from connectors.database.rows import NewTruth
from monitor.decode import MAX_LABEL_CHARS
from monitor.labels import BadLabel, TruthReason, named, object_of, record_id_of, text_of, time_of

EXAMPLE: Final = 'Expected, for example, {"id": "txn-4711", "label": "cat"}'
MOST_WEIGHT: Final = 1e6  # one record that stands for more would drown all others


def read_truth(document: Any, now_ms: int, *, origin: str, default_ms: int | None = None) -> NewTruth:
    """The truth that a document says.

    Args:
        now_ms: wall clock; a time that lies a day ahead is none.
        default_ms: the time of a truth that names none; now by default.
        origin: of a truth that names neither its origin nor its time.

    Raises:
        BadLabel: what is wrong, and what was expected.
    """
    document = object_of(document, example=EXAMPLE)
    record_id = record_id_of(document, example=EXAMPLE)
    truth = _answer(document, "label", record_id, "bad_truth")
    if truth is None:
        raise BadLabel("bad_truth", f"label of {record_id} is missing: what is the right answer?", hint=EXAMPLE)
    answer = _answer(document, "prediction", record_id, "bad_prediction")
    weight = _weight(document, record_id)
    stated, of_record = document.get("time"), document.get("event_time")
    time_ms = (now_ms if default_ms is None else default_ms) if _blank(stated) else time_of(stated, now_ms)
    event_ms = None if _blank(of_record) else time_of(of_record, now_ms, name="event_time")
    confidence = math.nan if answer is None else _confidence(document.get("confidence"), record_id)
    own = text_of(document, "origin", record_id)
    if own:
        origin = f"own:{own}"
    elif not _blank(stated):
        said = [clean(record_id), clean(truth), time_ms, weight, None if answer is None else clean(answer)]
        origin = f"said:{hashlib.sha256(msgspec.json.encode(said)).hexdigest()[:32]}"
    return NewTruth(record_id, truth, time_ms, weight, origin, answer, confidence, event_ms)


def _blank(value: Any) -> bool:
    return value is None or value == ""


def _answer(document: Mapping[str, Any], name: str, record_id: str, reason: TruthReason) -> str | None:
    """An answer in the words in which the decoder gives the model's; None where there is none."""
    value = document.get(name)
    if _blank(value):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) or (isinstance(value, int) and not abs(value) >> 64):
        return str(value)[:MAX_LABEL_CHARS].replace("\0", "\ufffd")
    if isinstance(value, float) and math.isfinite(value):
        return str(value)
    raise BadLabel(
        reason, f"{name} of {record_id} is {named(value)}; expected text, a number, true or false.", hint=EXAMPLE
    )


def _number(value: Any) -> float:
    """A number, also one in text, as a table has it; NaN if it is none."""
    try:
        return float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def _weight(document: Mapping[str, Any], record_id: str) -> float:
    weight, chance = document.get("weight"), document.get("chance")
    if not _blank(weight) and not _blank(chance):
        raise BadLabel(
            "bad_weight", f"{record_id} has a weight and a chance; expected one of them: weight is one over chance."
        )
    if not _blank(chance):
        number = _number(chance)
        if not 1.0 / MOST_WEIGHT <= number <= 1.0:
            raise BadLabel(
                "bad_weight",
                f"chance of {record_id} is {named(chance)}; expected {1.0 / MOST_WEIGHT:g} to 1: how probable it was "
                "that its true answer would be looked for.",
            )
        return 1.0 / number
    if _blank(weight):
        return 1.0
    number = _number(weight)
    if not 0.0 < number <= MOST_WEIGHT:
        raise BadLabel(
            "bad_weight",
            f"weight of {record_id} is {named(weight)}; expected a number above 0 and at most {MOST_WEIGHT:,.0f}.",
        )
    return number


def _confidence(value: Any, record_id: str) -> float:
    """What the model said of its own answer; NaN where that is not said."""
    if _blank(value):
        return math.nan
    number = _number(value)
    if not 0.0 <= number <= 1.0:
        raise BadLabel("bad_confidence", f"confidence of {record_id} is {named(value)}; expected a number from 0 to 1.")
    return number
