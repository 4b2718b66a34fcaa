"""What really happened, and whether pages said so: incidents that people know of, beside what settings would have told.

A **true incident** is a stretch of event time in which something was wrong, from a table (`read_truth`) or from what
people said of incidents (`truth_of`: driftd incidents --real ID, --false ID). A **page** is a stretch in which people
knew of something urgent: it begins when they are told, so an incident that comes back is a page again, and an incident
of a segment that the whole traffic speaks for is none.

A page belongs to a true incident if it begins in it, or at most ``tolerance`` before or after it, and is about the same
space and segment, where the true incident names them; what is told of the whole traffic of a space is about its
segments, too. The first page of a true incident catches it, further ones repeat it, and a page that belongs to none is
false. A true incident that begins while a page still stands is caught with a delay of 0; `Found.missed_alone_s` says
what it would be without a false one.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from connectors.database.rows import IncidentRow
from detectors.errors import InvalidInput
from monitor.fraud_settings import FRAUD_SPACE
from monitor.fraud_wording import FLOOD, WAVE
from monitor.incidents import OPERATIONAL
from monitor.times import text_of

if TYPE_CHECKING:
    from monitor.replay import Replayed
    from monitor.settings import ModelSettings

DAYS_A_MONTH = 30.0
CONFIDENCE = 0.95
MOST_TRUTHS = 10_000  # lines of a table
MOST_SHOWN = 10  # problems of a table
COLUMNS = ("start", "end", "name", "space", "segment")
EXAMPLE = "2026-01-31T12:00:00Z,2026-01-31T14:30:00Z,new scanner"
# Times before 1973 are mistakes: seconds instead of milliseconds, or a spreadsheet's count of days.
_EARLIEST_MS, _LATEST_MS = 10**11, 10**14
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class TrueIncident:
    """Something that was wrong.

    Attributes:
        start_ms, end_ms: event time; None while it goes on.
        space, segment: what it is about, "" for anything.
        known: False for an incident of which nobody said whether it was real: pages in it are neither right nor false.
    """

    start_ms: int
    end_ms: int | None
    name: str
    space: str = ""
    segment: str = ""
    known: bool = True

    def concerns(self, space: str, segment: str) -> bool:
        """Whether a page about this space and segment may be about this."""
        return self.space in ("", space) and (self.segment in ("", segment) or segment == "")


@dataclass(frozen=True, slots=True)
class Stretch:
    """From when to when people knew of an incident, and how urgent it was; end_ms is None while it is open."""

    start_ms: int
    end_ms: int | None
    severity: Literal["page", "warn"]
    row: IncidentRow


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one true incident.

    Attributes:
        truth: cut to the period that was judged.
        delay_s: from its start to its first page, event time; None if there was none.
        missed_s: of its time, in which no page stood: until the first one, or all of it.
        missed_alone_s: the same, where a false page that stood already when it began does not count: it helps nobody.
    """

    truth: TrueIncident
    delay_s: float | None
    missed_s: float
    missed_alone_s: float

    @property
    def length_s(self) -> float:
        """How long it lasted within the period, seconds."""
        return ((self.truth.end_ms or self.truth.start_ms) - self.truth.start_ms) / 1000

    @property
    def lingering(self) -> bool:
        """A false page stood when it began."""
        return self.missed_s < self.missed_alone_s


@dataclass(frozen=True, slots=True)
class Judgement:
    """How right the pages of one choice of settings were.

    Attributes:
        pages, warnings: how often people were told of something as a page, and as a warning.
        found: every true incident of the period, in the order of their beginning.
        false: pages that belong to no true incident.
        repeated: pages of a true incident after its first.
        unsaid: pages in incidents of which nobody said whether they were real.
        outside: true incidents that do not lie in the period.
        days: event time that was judged.
    """

    pages: int
    warnings: int
    found: tuple[Found, ...]
    false: tuple[Stretch, ...]
    repeated: int
    unsaid: int
    outside: int
    days: float

    @property
    def of(self) -> int:
        """How many true incidents lie in the period."""
        return len(self.found)

    @property
    def caught(self) -> int:
        """How many of them had a page."""
        return sum(one.delay_s is not None for one in self.found)

    @property
    def false_pages(self) -> int:
        """How many pages belong to no true incident."""
        return len(self.false)

    @property
    def delay_s(self) -> tuple[float | None, ...]:
        """The delay of each true incident, seconds; None where it was missed."""
        return tuple(one.delay_s for one in self.found)

    @property
    def missed_s(self) -> float:
        """Event time of true incidents in which no page stood, from the start of each to its first page or its end."""
        return sum(one.missed_s for one in self.found)

    @property
    def missed_alone_s(self) -> float:
        """The same, where a false page that stood already when a true incident began does not count as its page."""
        return sum(one.missed_alone_s for one in self.found)

    @property
    def truth_s(self) -> float:
        """How long all true incidents lasted, seconds."""
        return sum(one.length_s for one in self.found)

    @property
    def caught_interval(self) -> tuple[float, float]:
        """95 % interval of the share that is caught: 0 to 1 where nothing was to be caught."""
        return share_interval(self.caught, self.of)

    @property
    def false_a_month(self) -> float:
        """False pages in 30 days; 0 where nothing was judged."""
        return DAYS_A_MONTH * self.false_pages / self.days if self.days > 0 else 0.0

    @property
    def false_a_month_interval(self) -> tuple[float, float]:
        """95 % interval of false pages in 30 days."""
        low, high = count_interval(self.false_pages)
        scale = DAYS_A_MONTH / self.days if self.days > 0 else 0.0
        return low * scale, high * scale


def judge(
    replayed: Replayed,
    truth: Sequence[TrueIncident],
    *,
    tolerance: float | None = None,
    within_ms: tuple[int, int] | None = None,
) -> Judgement:
    """Hold the pages of a replay against what happened.

    Args:
        tolerance: seconds before and after a true incident in which a page still belongs to it; by default
            ``incidents.resolve_after`` of the replay's settings.
        within_ms: judge this part of the replayed period only, from <= t < to: pages that begin in it, and true
            incidents that begin in it, or reach into it from before the replay.
    """
    span = replayed.settings.incidents.resolve_after if tolerance is None else tolerance
    return judge_stretches(
        [stretch for row in replayed.incidents for stretch in stretches_of(row)],
        truth,
        tolerance_ms=round(span * 1000),
        judged_ms=replayed.judged_ms,
        within_ms=within_ms or replayed.judged_ms,
    )


def judge_stretches(
    stretches: Iterable[Stretch],
    truth: Sequence[TrueIncident],
    *,
    tolerance_ms: int,
    judged_ms: tuple[int, int],
    within_ms: tuple[int, int],
) -> Judgement:
    """`judge`, of what people knew of from when to when.

    Args:
        judged_ms: the whole period, from and to.
        within_ms: the part of it to judge.
    """
    told = sorted(stretches, key=lambda one: (one.start_ms, one.row.id))
    pages = [one for one in told if one.severity == "page"]
    cut = [inner for one in truth if (inner := _cut(one, judged_ms)) is not None]
    real = sorted((one for one in cut if one.known), key=lambda one: (one.start_ms, one.name))
    unsure = [one for one in cut if not one.known]
    begins_within = [within_ms[0] <= page.start_ms < within_ms[1] for page in pages]
    of_page = [[at for at, one in enumerate(real) if _begins_in(page, one, tolerance_ms)] for page in pages]
    false, repeated, unsaid = [], 0, 0
    first: dict[int, Stretch] = {}
    for page, mine, counted in zip(pages, of_page, begins_within, strict=True):
        if mine:
            repeated += counted and all(at in first for at in mine)
            for at in mine:
                first.setdefault(at, page)
        elif any(_begins_in(page, one, tolerance_ms) for one in unsure):
            unsaid += counted
        elif counted:
            false.append(page)
    right = [page for page, mine in zip(pages, of_page, strict=True) if mine]
    stray = [page for page, mine in zip(pages, of_page, strict=True) if not mine]
    found = [
        _found(one, first.get(at), right, stray)
        for at, one in enumerate(real)
        if within_ms[0] <= one.start_ms < within_ms[1]
    ]
    return Judgement(
        pages=sum(begins_within),
        warnings=sum(one.severity == "warn" and within_ms[0] <= one.start_ms < within_ms[1] for one in told),
        found=tuple(found),
        false=tuple(false),
        repeated=repeated,
        unsaid=unsaid,
        outside=sum(one.known and _cut(one, judged_ms) is None for one in truth),
        days=max(within_ms[1] - within_ms[0], 0) / _DAY_MS,
    )


def stretches_of(row: IncidentRow) -> list[Stretch]:
    """From when to when people knew of an incident; nothing where they were never told."""
    told = row.detail.get("told")
    found: list[Stretch] = []
    for start, end, severity in told if isinstance(told, list) else []:
        found.append(Stretch(start, end, "page" if severity == "page" else "warn", row))
    return found


def _cut(truth: TrueIncident, judged_ms: tuple[int, int]) -> TrueIncident | None:
    """The part of a true incident within the judged period; None where there is none."""
    start, end = max(truth.start_ms, judged_ms[0]), min(truth.end_ms or judged_ms[1], judged_ms[1])
    if start >= end:
        return None
    return TrueIncident(start, end, truth.name, truth.space, truth.segment, truth.known)


def _begins_in(page: Stretch, truth: TrueIncident, tolerance_ms: int) -> bool:
    assert truth.end_ms is not None
    near = truth.start_ms - tolerance_ms <= page.start_ms <= truth.end_ms + tolerance_ms
    return near and truth.concerns(_space_of(page.row), page.row.segment)


def _found(truth: TrueIncident, first: Stretch | None, right: Sequence[Stretch], stray: Sequence[Stretch]) -> Found:
    """What became of a true incident.

    Args:
        first: the first page that belongs to it.
        right: pages that belong to true incidents; those of another one may still stand when it begins.
        stray: pages that belong to none.
    """
    assert truth.end_ms is not None
    length_s = (truth.end_ms - truth.start_ms) / 1000
    delay_s = None if first is None else max(first.start_ms - truth.start_ms, 0) / 1000
    if any(_stands_at(page, truth) for page in right):
        delay_s = 0.0
    alone_s = length_s if delay_s is None else min(delay_s, length_s)
    if any(_stands_at(page, truth) for page in stray):
        return Found(truth, 0.0, 0.0, alone_s)
    return Found(truth, delay_s, alone_s, alone_s)


def _space_of(row: IncidentRow) -> str:
    """What an incident is about; those of fraud name no space."""
    return FRAUD_SPACE if row.kind in (WAVE, FLOOD) else row.space


def _stands_at(page: Stretch, truth: TrueIncident) -> bool:
    """Whether a page stands when a true incident begins."""
    before = page.start_ms <= truth.start_ms and (page.end_ms is None or page.end_ms > truth.start_ms)
    return before and truth.concerns(_space_of(page.row), page.row.segment)


def share_interval(successes: int, of: int) -> tuple[float, float]:
    """95 % interval of a share from ``successes`` among ``of`` (Clopper and Pearson, 1934): it holds for small counts.

    >>> low, high = share_interval(5, 6)
    >>> round(low, 2), round(high, 2)
    (0.36, 1.0)
    """
    from scipy.special import betaincinv

    tail = (1.0 - CONFIDENCE) / 2.0
    low = 0.0 if successes == 0 else float(betaincinv(successes, of - successes + 1, tail))
    high = 1.0 if successes == of else float(betaincinv(successes + 1, of - successes, 1.0 - tail))
    return low, high


def count_interval(count: int) -> tuple[float, float]:
    """95 % interval of the mean of a Poisson count (Garwood, 1936).

    >>> low, high = count_interval(0)
    >>> low, round(high, 2)
    (0.0, 3.69)
    """
    from scipy.special import gammaincinv

    tail = (1.0 - CONFIDENCE) / 2.0
    low = 0.0 if count == 0 else float(gammaincinv(count, tail))
    return low, float(gammaincinv(count + 1, 1.0 - tail))


# --- what people said of incidents ------------------------------------------------------------------------------------


def truth_of(incidents: Iterable[IncidentRow]) -> list[TrueIncident]:
    """What people said of incidents, as truth: those called real, and as unknown those of which nobody said anything.

    It is only about what driftd told: what all settings up to now have missed is not in it. A true incident names its
    space and no segment, because the same change may be told of another one.
    """
    watched = [row for row in incidents if row.kind not in OPERATIONAL and row.kind != "gap"]
    called_false = [_as_truth(row, known=True) for row in watched if row.detail.get("verdict") == "false"]
    found = [_as_truth(row, known=True) for row in watched if row.detail.get("verdict") == "real"]
    for row in watched:
        if "verdict" in row.detail or row.detail.get("quiet") is True:
            continue
        unsaid = _as_truth(row, known=False)
        if not any(_overlap(unsaid, one) for one in called_false):
            found.append(unsaid)
    return sorted(found, key=lambda one: (one.start_ms, one.name))


def _as_truth(row: IncidentRow, *, known: bool) -> TrueIncident:
    last = row.detail.get("last_active_ms")
    end_ms = None if row.resolved_ms is None else last if isinstance(last, int) else row.resolved_ms
    if end_ms is not None:
        end_ms = max(end_ms, row.opened_ms, row.onset_ms + 1)
    return TrueIncident(row.onset_ms, end_ms, row.title, _space_of(row), "", known)


def _overlap(one: TrueIncident, other: TrueIncident) -> bool:
    before = one.end_ms is not None and one.end_ms <= other.start_ms
    after = other.end_ms is not None and other.end_ms <= one.start_ms
    return one.space == other.space and not before and not after


# --- a table of incidents ---------------------------------------------------------------------------------------------


def read_truth(path: Path, *, model: ModelSettings | None = None) -> list[TrueIncident]:
    """The true incidents of a table: CSV with the columns start, end, name, space, segment, the last three optional.

    Times are RFC 3339 with a zone, or milliseconds since 1970; an empty end means that it still goes on. Commas,
    semicolons or tabs separate, as spreadsheets write them.

    Args:
        model: checks spaces and segments against its settings.

    Raises:
        InvalidInput: what cannot be read, with line and column.
    """
    header, rows = _table(path)
    problems: list[str] = []
    found: list[TrueIncident] = []
    seen: dict[TrueIncident, int] = {}
    for line, cells in rows:
        if len(found) + len(problems) >= MOST_TRUTHS:
            raise InvalidInput(
                f"{path} has more than {MOST_TRUTHS:,} lines.", hint="Keep those of the replayed period."
            )
        try:
            truth = _line(dict(zip(header, cells, strict=False)), cells, header, model)
        except _BadCell as bad:
            problems.append(f"line {line}, column {bad.column}: {bad.problem}")
            continue
        if truth in seen:
            problems.append(f"line {line}: says the same as line {seen[truth]}")
            continue
        seen[truth] = line
        found.append(truth)
    if problems:
        shown = "\n  ".join(problems[:MOST_SHOWN])
        more = f"\n  and {len(problems) - MOST_SHOWN:,} more" if len(problems) > MOST_SHOWN else ""
        raise InvalidInput(
            f"{path} cannot be used as truth:\n  {shown}{more}",
            hint=f"Mend these lines. A line that is right: {EXAMPLE}",
        )
    if not found:
        raise InvalidInput(f"{path} names no incident.", hint=f"Write a line for each: {EXAMPLE}")
    return sorted(found, key=lambda one: (one.start_ms, one.name))


class _BadCell(Exception):
    """A cell that says nothing that could be used."""

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(problem)
        self.column = column
        self.problem = problem


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and every line that is not empty with its number."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be read: {error.strerror or error}.", hint="Name a table: --truth incidents.csv"
        ) from error
    if data.startswith((b"PK", b"\xff\xfe", b"\xfe\xff")):
        what = "an Excel workbook" if data.startswith(b"PK") else "text in UTF-16"
        raise InvalidInput(f"{path} is {what}.", hint='Save it as "CSV UTF-8".')
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InvalidInput(f"{path}, line {line}: not UTF-8.", hint='Save it as "CSV UTF-8".') from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise InvalidInput(f"{path} is empty.", hint=f"Begin with: start,end,name; then a line for each: {EXAMPLE}")
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise InvalidInput(f"{path}, line {reader.line_num}: {error}.", hint='Save it as "CSV UTF-8".') from error
    header = [name.lower() for name in lines[0][1]]
    while header and not header[-1]:
        header.pop()
    missing = [name for name in COLUMNS[:2] if name not in header]
    if missing:
        raise InvalidInput(
            f"{path}, line {lines[0][0]}: it must name the columns, and {' and '.join(missing)} is not among them.",
            hint=f"Begin with: {','.join(COLUMNS)} (the last three may be left out)",
        )
    for name in header:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.5)
            meant = f"; did you mean {near[0]}?" if near else "."
            raise InvalidInput(
                f"{path}, line {lines[0][0]}: there is no column {name!r}{meant}",
                hint=f"The columns are: {', '.join(COLUMNS)}.",
            )
        if header.count(name) > 1:
            raise InvalidInput(f"{path}, line {lines[0][0]}: column {name} is there twice.", hint="Keep one.")
    return header, lines[1:]


def _line(
    values: dict[str, str], cells: Sequence[str], header: Sequence[str], model: ModelSettings | None
) -> TrueIncident:
    if any(cells[len(header) :]):
        raise _BadCell(
            str(len(header) + 1), "more cells than the header names; put a text that holds the separator in quotes"
        )
    start_ms = _time("start", values.get("start", ""))
    end = values.get("end", "")
    end_ms = _time("end", end) if end else None
    if end_ms is not None and end_ms <= start_ms:
        raise _BadCell(
            "end",
            f"it ends ({text_of(end_ms)}) before it starts ({text_of(start_ms)}), or as it does; swap or mend them",
        )
    space, segment = values.get("space", ""), values.get("segment", "")
    if model is not None:
        _check_names(space, segment, model)
    name = values.get("name", "") or f"incident of {text_of(start_ms)}"
    return TrueIncident(start_ms, end_ms, name, space, segment)


def _time(column: str, text: str) -> int:
    """Milliseconds since 1970 of a cell."""
    if not text:
        raise _BadCell(column, "is empty; write when it began, such as 2026-01-31T12:00:00Z")
    if text.isdecimal() and len(text) < 20:
        number = int(text)
        if _EARLIEST_MS <= number <= _LATEST_MS:
            return number
        seconds = _EARLIEST_MS <= number * 1000 <= _LATEST_MS
        cure = f"; if it is in seconds, write {number}000" if seconds else ""
        raise _BadCell(column, f"{text} is no time in milliseconds since 1970{cure}")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _BadCell(column, f"{text[:40]!r} is no time; write 2026-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        said = moment.isoformat(timespec="seconds")
        raise _BadCell(column, f"{text!r} has no time zone; write {said}Z if that is UTC, or {said}+02:00 and the like")
    found = round(moment.timestamp() * 1000)
    if not _EARLIEST_MS <= found <= _LATEST_MS:
        raise _BadCell(column, f"{text!r} lies before 1973 or after 5138; mend the year")
    return found


def _check_names(space: str, segment: str, model: ModelSettings) -> None:
    spaces = model.reference_spaces
    if space and space not in spaces:
        near = difflib.get_close_matches(space, spaces, n=1, cutoff=0.5)
        known = f"there is: {', '.join(spaces)}"
        raise _BadCell("space", f"there is no space {space!r}; {f'did you mean {near[0]}?' if near else known}")
    field, is_value, _ = segment.partition("=")
    fields = list(model.segment_fields)
    if segment and (not is_value or field not in fields or space == FRAUD_SPACE):
        near = difflib.get_close_matches(field, fields, n=1, cutoff=0.5)
        cure = f"write it as {near[0]}=VALUE" if near else f"fields: {', '.join(fields) or 'none'}, as FIELD=VALUE"
        raise _BadCell("segment", f"there is no segment {segment!r}; {cure}")
