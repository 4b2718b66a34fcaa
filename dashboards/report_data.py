"""What a report shows, as typed records. Whoever makes a report fills them; `report.py` and `picture.py` draw them.

Times are milliseconds since 1970, UTC. Arrays are not copied and must not change afterwards. Everything but the
header, the traffic and the references may be empty: the report leaves out what it is not given, and says so where a
reader would miss it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from dashboards.verdict_words import Level
from detectors.errors import InvalidInput

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Header:
    """What the report is about.

    Attributes:
        title: such as "Digit reader".
        start_ms, end_ms: the period.
        status: decides the colour of the verdict.
        verdict: one line in words, such as "Drift in input, scanner south, since 08:30; resolved 08:37".
        version: of driftd, "" to leave it out.
    """

    title: str
    start_ms: int
    end_ms: int
    status: Literal["calm", "warn", "page"]
    verdict: str
    version: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Excerpt:
    """What can be shown of a record: a picture, uint8 (h, w) or (h, w, 3), or a piece of its text, or both."""

    pixels: Pixels | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """How much of a change comes from one segment: its part of the change, and its share of the records, now."""

    segment: str
    part: float
    share: float


@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """A kind of records of which there is more or less than there was.

    Attributes:
        name: such as "prototype 17".
        expected, share: of the records, then and now.
        usual: a record of the reference of this kind.
        now: a record of this kind since the onset, where one was kept.
    """

    name: str
    expected: float
    share: float
    usual: Excerpt | None = None
    now: Excerpt | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Cause:
    """What an incident says of its cause: over so many records since its onset."""

    records: int
    parts: tuple[Part, ...] = ()
    growths: tuple[Growth, ...] = ()


@dataclass(frozen=True, slots=True)
class Incident:
    """One row of the incidents table. ``strength`` is log10 blocks, None where the incident has none."""

    severity: Literal["page", "warn"]
    title: str
    text: str
    space: str
    segment: str
    opened_ms: int
    onset_ms: int | None
    resolved_ms: int | None
    strength: float | None = None
    cause: Cause | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """One kind of evidence for drift.

    Attributes:
        name: "level", "shape", "mix".
        strength: float64 (m,), log10 blocks; NaN where there is none.
        share: the channel's share of the deployment's alarm budget. It is drawn as strength + log10(share), so that one
            threshold, the run length that the user has set, serves every channel of every chart.
    """

    name: str
    strength: Floats
    share: float = 1.0

    @property
    def evidence(self) -> Floats:
        """float64 (m,): the strength within the whole budget, at least 0."""
        adjusted = np.asarray(self.strength, dtype=np.float64) + np.log10(self.share)
        finite: Floats = np.clip(np.nan_to_num(adjusted, nan=0.0, posinf=1e6), 0.0, 1e6)
        return finite


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment on a timeline: when a drift began by driftd's estimate, when it told a person, or when a second opinion
    saw a change."""

    time_ms: int
    kind: Literal["onset", "page", "warn", "resolved", "opinion"]


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of time in which something is known to have happened."""

    start_ms: int
    end_ms: int
    label: str


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """The evidence for drift in one space and segment, block by block.

    Attributes:
        space, segment: "" as the segment means all records.
        starts_ms: int64 (m,), strictly increasing; the blocks' beginnings.
        block_ms: their length.
        channels: at least one, each of length m.
        n: int64 (m,), records in each block.
        page, warn: thresholds: log10 of the run lengths in blocks.
        marks, truth: moments to mark, and periods to shade.
    """

    space: str
    segment: str
    starts_ms: Counts
    block_ms: int
    channels: tuple[Channel, ...]
    n: Counts
    page: float
    warn: float
    marks: tuple[Mark, ...] = ()
    truth: tuple[Period, ...] = ()

    def __post_init__(self) -> None:
        blocks = len(self.starts_ms)
        lengths = {"n": len(self.n)} | {channel.name: len(channel.strength) for channel in self.channels}
        wrong = {name: length for name, length in lengths.items() if length != blocks}
        if wrong or not self.channels:
            raise InvalidInput(
                f"The timeline of space {self.space!r} has {blocks} blocks, but lengths {lengths}.",
                hint="Give at least one channel, and one entry per block to each.",
            )

    @property
    def strongest(self) -> Floats:
        """float64 (m,): the strongest channel's evidence in each block."""
        strongest: Floats = np.max([channel.evidence for channel in self.channels], axis=0)
        return strongest


@dataclass(frozen=True, slots=True, eq=False)
class ScoreHistogram:
    """Outlier scores of one space: the reference's calibration records beside the stream's.

    Attributes:
        edges: float64 (k + 1,), strictly increasing.
        reference, stream: counts, (k,) each.
        flag_at: records at or above this score were flagged; None if none could be.
    """

    space: str
    edges: Floats
    reference: npt.NDArray[np.generic]
    stream: npt.NDArray[np.generic]
    flag_at: float | None = None

    def __post_init__(self) -> None:
        if not len(self.edges) - 1 == len(self.reference) == len(self.stream) >= 1:
            raise InvalidInput(
                f"The histogram of space {self.space!r} has {len(self.edges)} edges, {len(self.reference)} reference "
                f"counts and {len(self.stream)} stream counts.",
                hint="Give one edge more than counts.",
            )


@dataclass(frozen=True, slots=True, eq=False)
class FlatMap:
    """Vectors of one space on two axes, for the eye; see `flat_map`.

    Attributes:
        reference, recent, flagged: float64 (n, 2) each.
        labels: what to say of each flagged point.
        explained: share of the reference's variance that the two axes hold.
    """

    space: str
    reference: Floats
    recent: Floats
    flagged: Floats
    labels: tuple[str, ...]
    explained: float


@dataclass(frozen=True, slots=True, eq=False)
class StrangeRecord:
    """A flagged record beside the normal one that is nearest to it. ``note`` is a word of truth, where it is known."""

    id: str
    time_ms: int
    space: str
    segment: str
    score: float
    p_value: float
    record: Excerpt
    nearest: Excerpt | None
    prediction: str | None = None
    confidence: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What happened against what was reported. ``right`` is None where there is nothing to judge."""

    happened: str
    reported: str
    right: bool | None


@dataclass(frozen=True, slots=True)
class Traffic:
    """Counts of the whole period. ``dead`` counts records that could not be used, by reason."""

    records: int
    flagged: int
    late: int = 0
    dead: dict[str, int] = field(default_factory=dict)
    flag_budget: float | None = None


@dataclass(frozen=True, slots=True)
class ReferenceIdentity:
    """What the records were compared with."""

    space: str
    version: int
    records: int
    dimension: int
    checksum: str
    created_ms: int
    embedder: str = ""


@dataclass(frozen=True, slots=True)
class AlarmShare:
    """What one alarm may spend of the budget. ``only_warns`` says why it may not page, "" if it may."""

    space: str
    segment: str
    share: float
    pages_at: float  # strength, log10 blocks
    only_warns: str = ""


@dataclass(frozen=True, slots=True)
class AlarmBudget:
    """What the alarm budget promised, and what came.

    Attributes:
        said: in words, such as "expected at most 1 false page in 90 days; 2 pages in 31 days, 1 called false".
        shares: of the model's drift alarms; the whole deployment's add up to one at most.
    """

    said: str
    shares: tuple[AlarmShare, ...] = ()


@dataclass(frozen=True, slots=True)
class SharePoint:
    """A share over a stretch of time, with its interval; ``value`` is None where nothing is known."""

    start_ms: int
    end_ms: int
    value: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ShareSeries:
    """A share over time, such as the precision of the alerts; ``whole`` is that of all the time."""

    name: str
    whole: SharePoint
    points: tuple[SharePoint, ...]


@dataclass(frozen=True, slots=True, eq=False)
class FraudHit:
    """An alert beside what speaks for it.

    Attributes:
        low, high: ends of the probability's interval; None where there is none.
        answer: "fraud", "cleared" or "".
        cases: ids of the nearest confirmed cases, with their distances.
        distance_to_normal: in the same unit; None where no case is known.
        opinion: probability by the second opinion; None where it has none.
        missed_by: rules in use that would not have spoken.
        record, case, normal: what can be shown of the alert, of the nearest confirmed case, and of the nearest normal
            record.
        note: a word of truth.
    """

    id: str
    time_ms: int
    probability: float
    low: float | None
    high: float | None
    p_value: float
    answer: str
    cases: tuple[tuple[str, float], ...] = ()
    distance_to_normal: float | None = None
    opinion: float | None = None
    missed_by: tuple[str, ...] = ()
    record: Excerpt | None = None
    case: Excerpt | None = None
    normal: Excerpt | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class EntityRow:
    """Of the entities that were alerted in a stretch of time: how many were fraud, were cleared, have no answer."""

    start_ms: int
    entities: int
    fraud: int
    cleared: int


@dataclass(frozen=True, slots=True)
class FraudIncident:
    """A wave, a flood, or fraud itself that changed."""

    title: str
    severity: Literal["page", "warn"]
    onset_ms: int
    resolved_ms: int | None


@dataclass(frozen=True, slots=True)
class MarkRow:
    """A false-alarm mark, and what it moved: kept records, alerts among them, and log odds at most."""

    id: str
    by: str
    time_ms: int
    records: int
    hits: int
    most: float
    withdrawn: bool


@dataclass(frozen=True, slots=True, eq=False)
class FraudSection:
    """What became of fraud scores.

    Attributes:
        said: the state in words, the most important first.
        labels: source, labels that say fraud, labels that say cleared.
        states: what else is known of the labels, with numbers.
    """

    said: tuple[str, ...]
    labels: tuple[tuple[str, int, int], ...]
    states: tuple[tuple[str, int], ...]
    series: tuple[ShareSeries, ...] = ()
    entities: tuple[EntityRow, ...] = ()
    hits: tuple[FraudHit, ...] = ()
    incidents: tuple[FraudIncident, ...] = ()
    marks: tuple[MarkRow, ...] = ()


@dataclass(frozen=True, slots=True)
class WordSpan:
    """From when to when one word was said of the model. ``level`` as of `dashboards.verdict_words`."""

    start_ms: int
    end_ms: int
    word: str
    level: Level


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """Share of right answers among labelled records, as it was known then, with its interval; NaN where unknown."""

    time_ms: int
    value: float
    low: float
    high: float
    labels: int


@dataclass(frozen=True, slots=True, eq=False)
class VerdictSection:
    """Whether the model is still good, now and over time. Shares of right answers, 0 to 1; NaN where not known.

    Attributes:
        word, level: said now; ``since_ms``: since when.
        reasons: sentences, the weightiest first.
        numbers: names and texts.
        unseen: what nobody can see; "" to leave it out.
        next_step: what to do, commands in backquotes.
        spans: what was said when.
        starts_ms: int64 (m,), strictly increasing; the blocks' beginnings.
        block_ms: their length.
        low, high, floor, novel: float64 (m,): ends of the estimate, the floor, and the share of new content.
        measured: where labels are known.
    """

    word: str
    level: Level
    since_ms: int | None
    reasons: tuple[str, ...]
    numbers: tuple[tuple[str, str], ...]
    unseen: str
    next_step: str
    spans: tuple[WordSpan, ...]
    starts_ms: Counts
    block_ms: int
    low: Floats
    high: Floats
    floor: Floats
    novel: Floats
    measured: tuple[MeasuredPoint, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Everything that a report shows. ``settings`` holds (key, value) as texts, without secrets."""

    header: Header
    traffic: Traffic
    references: tuple[ReferenceIdentity, ...]
    incidents: tuple[Incident, ...] = ()
    timelines: tuple[Timeline, ...] = ()
    histograms: tuple[ScoreHistogram, ...] = ()
    maps: tuple[FlatMap, ...] = ()
    strangest: tuple[StrangeRecord, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    budget: AlarmBudget | None = None
    fraud: FraudSection | None = None
    verdict: VerdictSection | None = None


def flat_map(
    space: str,
    reference: npt.NDArray[np.floating],
    *,
    recent: npt.NDArray[np.floating],
    flagged: npt.NDArray[np.floating],
    labels: tuple[str, ...] = (),
) -> FlatMap:
    """Project vectors onto the two directions in which the reference spreads most (principal components, Pearson 1901).

    Args:
        space: its name.
        reference: float (n, d), n >= 2, such as the exemplars; they alone choose the directions.
        recent, flagged: float (m, d); m may be 0.
        labels: one text for each flagged vector, or none.
    """
    base = np.asarray(reference, dtype=np.float64)
    if base.ndim != 2 or len(base) < 2 or base.shape[1] < 1:
        raise InvalidInput(f"The map's reference has shape {base.shape}.", hint="Give at least two vectors, (n, d).")
    centre = base.mean(axis=0)
    values, directions = np.linalg.eigh(np.cov(base.T).reshape(base.shape[1], base.shape[1]))
    values, axes = values[::-1], directions[:, ::-1][:, :2]
    # An eigenvector's sign is open; the largest entry is made positive, so that the same data give the same map.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])

    def project(vectors: npt.NDArray[np.floating]) -> Floats:
        flat = (np.asarray(vectors, dtype=np.float64).reshape(-1, base.shape[1]) - centre) @ axes
        return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))

    total = float(np.maximum(values, 0).sum())
    return FlatMap(
        space=space,
        reference=project(base),
        recent=project(recent),
        flagged=project(flagged),
        labels=labels,
        explained=float(np.maximum(values[:2], 0).sum()) / total if total > 0 else 0.0,
    )
