"""Columns of raw values to texts, numbers and times; what does not fit is a problem of its row."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from monitor.pointers import parse_place
from monitor.record import TimeUnit

Int64s = npt.NDArray[np.int64]

END_OF_TIME_MS: Final = 253_402_300_800_000  # the year 10000, where RFC 3339 ends
_AwareDatetime = Annotated[datetime, msgspec.Meta(tz=True)]
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)
_MOMENT: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}\S*", re.ASCII)
_WHOLE_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)


class Problems:
    """The first problem of each row that has one."""

    def __init__(self) -> None:
        self.problems: dict[int, tuple[str, str]] = {}

    def add(self, row: int, reason: str, detail: str) -> None:
        self.problems.setdefault(row, (reason, detail))


def to_texts(name: str, values: list[Any], *, kinds: tuple[type, ...], found: Problems) -> list[str | None]:
    """Short texts out of a column; values of other types than text and ``kinds`` are a problem."""
    present = set(map(type, values))
    if not present <= {str, type(None)}:
        if present == {int} and int in kinds:
            values = _each(name, values, kinds, found) if any(abs(v) >> 64 for v in values) else list(map(str, values))
        else:
            values = _each(name, values, kinds, found)
    # PostgreSQL takes no text with a NUL in it.
    if "\0" in "".join(filter(None, values)):
        return [text and text.replace("\0", "\ufffd") for text in values]
    return values


def _each(name: str, values: list[Any], kinds: tuple[type, ...], found: Problems) -> list[str | None]:
    texts: list[str | None] = list(values)
    for row in [row for row, value in enumerate(values) if value is not None and type(value) is not str]:
        value = values[row]
        text: str | None = None
        if type(value) not in kinds or (type(value) is int and abs(value) >> 64):
            expected = "text or a whole number" if float not in kinds else "text, a number, true or false"
            found.add(row, "bad_value", f"{name} is {_kind_of(value)}; expected {expected}.")
        elif type(value) is bool:
            text = "true" if value else "false"
        else:
            text = str(value)
        texts[row] = text
    return texts


def _kind_of(value: object) -> str:
    """What a value is, in the words of JSON."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "an array"}
    return names.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)


def to_numbers(name: str, values: list[Any], *, found: Problems) -> npt.NDArray[np.float64]:
    """A column of numbers as float64, NaN where absent."""
    is_text = parse_place(name).kind != "pointer"
    if set(map(type, values)) == {float}:
        numbers = np.array(values, dtype=np.float64)
    else:
        others = [row for row, value in enumerate(values) if type(value) is not float]
        plain = list(values)
        for row in others:
            plain[row] = math.nan
        numbers = np.array(plain, dtype=np.float64)
        for row in others:
            value = values[row]
            if value is None:
                continue
            if (is_text and type(value) is str and _NUMBER.fullmatch(value)) or (
                type(value) is int and not abs(value) >> 64
            ):
                numbers[row] = float(value)
            else:
                found.add(row, "bad_value", f"{name} is {_kind_of(value)}; expected a number.")
    for row in np.flatnonzero(~np.isfinite(numbers)).tolist():
        if values[row] is not None:
            found.add(row, "bad_value", f"{name} is not a finite number.")
    return numbers


# Nanoseconds do not fit the 53 bits of a float, and seconds have fractions: whole numbers and others go apart.
_PER_UNIT: Final[dict[str, tuple[int, int]]] = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}


def _whole_to_ms(numbers: Int64s, unit: str) -> Int64s:
    times, divided_by = _PER_UNIT[unit]
    limit = END_OF_TIME_MS * divided_by // times
    limit = min(limit, int(np.iinfo(np.int64).max) - 1)
    return np.asarray(np.clip(numbers, -limit, limit) * times // divided_by, dtype=np.int64)


def _float_to_ms(numbers: npt.NDArray[np.float64], unit: str) -> Int64s:
    """To the nearest microsecond, because 0.001 has no exact float, then down to the millisecond."""
    times, divided_by = _PER_UNIT[unit]
    ratio = times / divided_by
    limit = 2.0 * END_OF_TIME_MS / ratio
    micros = np.rint(np.clip(numbers, -limit, limit) * ratio * 1000.0)
    return np.asarray(np.floor(micros / 1000.0), dtype=np.int64)


def to_times_ms(name: str, values: list[Any], *, unit: TimeUnit, found: Problems) -> Int64s:
    """Event times in milliseconds since 1970, rounded down; 0 in rows with a problem."""
    is_text = parse_place(name).kind != "pointer"
    kinds = set(map(type, values))
    kind = next(iter(kinds)) if len(kinds) == 1 else _commonest(map(type, values))
    if kind not in ((str,) if unit == "rfc3339" or is_text else (int, float)):
        return _mixed_times_ms(name, values, unit, is_text, found)
    if len(kinds) == 1 and (unit == "rfc3339" or kind is not str or all(map(_WHOLE_NUMBER.fullmatch, values))):
        times = _alike_to_ms(values, unit)
        if times is not None:
            return times
    # A few that are not like the others must not make all of them slow: they are converted by themselves.
    if kind is str:
        matches = (_MOMENT if unit == "rfc3339" else _WHOLE_NUMBER).fullmatch
        others = [row for row, value in enumerate(values) if type(value) is not str or matches(value) is None]
    else:
        others = [row for row, value in enumerate(values) if type(value) is not kind]
    alike = list(values)
    for row in others:
        alike[row] = "1970-01-01T00:00:00Z" if unit == "rfc3339" else kind(0)
    times = _alike_to_ms(alike, unit)
    if times is None:
        return _mixed_times_ms(name, values, unit, is_text, found)
    inside = Problems()
    times[others] = _mixed_times_ms(name, [values[row] for row in others], unit, is_text, inside)
    for row, problem in inside.problems.items():
        found.add(others[row], *problem)
    return times


def _commonest(kinds: Iterable[type]) -> type:
    counts = Counter(kinds)
    return max(counts, key=lambda kind: counts[kind], default=type(None))


def _alike_to_ms(values: list[Any], unit: TimeUnit) -> Int64s | None:
    """The times of values of one type, at least one; None where one of them is no time after all."""
    if unit == "rfc3339":
        try:
            return _moments_to_ms(msgspec.convert(values, list[_AwareDatetime]))
        except msgspec.ValidationError:
            return None
    kind = type(values[0])
    if kind is float:
        numbers = np.array(values, dtype=np.float64)
        return _float_to_ms(numbers, unit) if np.isfinite(numbers).all() else None
    try:
        return _whole_to_ms(np.array(values if kind is int else list(map(int, values)), dtype=np.int64), unit)
    except OverflowError:
        return None


def _moments_to_ms(moments: Sequence[datetime]) -> Int64s:
    return _float_to_ms(np.array([moment.timestamp() for moment in moments], dtype=np.float64), "s")


def _mixed_times_ms(name: str, values: list[Any], unit: TimeUnit, is_text: bool, found: Problems) -> Int64s:
    """Times of any types: taken apart by type, and converted by the functions that convert whole columns."""
    whole: dict[int, int] = {}
    broken: dict[int, float] = {}
    moments: dict[int, datetime] = {}
    for row, value in enumerate(values):
        time = _as_time(value, unit, is_text)
        if isinstance(time, datetime):
            moments[row] = time
        elif type(time) is int:
            whole[row] = max(min(time, (1 << 63) - 1), -(1 << 63) + 1)
        elif type(time) is float:
            broken[row] = time
        elif value is None:
            found.add(row, "missing_field", f"{name} (time) is missing.")
        else:
            expected = "RFC 3339 text such as 2026-03-01T12:00:00Z" if unit == "rfc3339" else f"a number of {unit}"
            found.add(row, "bad_time", f"{name} is {_kind_of(value)} that is no time; expected {expected}.")
    times = np.zeros(len(values), dtype=np.int64)
    times[list(moments)] = _moments_to_ms(list(moments.values()))
    if unit != "rfc3339":
        times[list(whole)] = _whole_to_ms(np.array(list(whole.values()), dtype=np.int64), unit)
        times[list(broken)] = _float_to_ms(np.array(list(broken.values()), dtype=np.float64), unit)
    return times


def _as_time(value: Any, unit: TimeUnit, is_text: bool) -> datetime | float | None:
    """A moment, or a finite number of the unit; None for what is neither."""
    if isinstance(value, datetime):  # MessagePack has a type for it, which says the unit
        return None if value.tzinfo is None else value
    if unit == "rfc3339":
        try:
            return msgspec.convert(value, _AwareDatetime)
        except msgspec.ValidationError:
            return None
    if is_text and type(value) is str and _NUMBER.fullmatch(value):
        value = int(value) if _WHOLE_NUMBER.fullmatch(value) else float(value)
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value
    return None
