"""The drift alarm: one sequential pass over block summaries.

`fold` takes the state, the merged summary of the next block and the rule, and returns the next state and one reading
per channel. It is pure: the same summaries in the same order give the same readings, live or in a backfill. Three
channels look at the same windows, which end at the latest block and begin at every geometric distance
(`detectors.windows`):

* level: the mean of the vectors moved. T = |A sum(x - mean)|^2 / n, a regularised Hotelling statistic (Hotelling, 1931;
  Chen, Paul, Prentice and Wang, 2011).
* mix: the shares of the prototype groups moved. The same statistic on one-hot vectors.
* shape: the distances to the prototypes have another distribution. Experts bet on the histogram of p-values
  (`detectors.payoffs`); a Shiryaev-Roberts sum of their e-values (Shin, Ramdas and Rinaldo, 2024) replaces windows.

The null distribution of T is a weighted sum of chi-squares plus what the finite baseline, the user's tolerance and
dependent records add; its upper tail is that of the Pearson III law with the same three cumulants. The strength of a
channel is log10(omega / (2 K p)), with K the greatest number of windows and omega the channel's share, so that

    P(some alarm within t blocks) <= t / (2 T) for the threshold log10(T), hence an average run length of at least T
    blocks,

whatever the dependence between overlapping windows. "10^strength blocks is the time in which such evidence appears
once by chance." A page and a warning are the same rule at two run lengths. After an alarm the evidence is used up:
the next alarm of that kind looks only at windows that begin later. A page drops all windows; a warning does not, so
that evidence for a page keeps growing behind it. scipy.special is used for the regularised incomplete gamma function
(gammaincc) and log-gamma.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from math import ceil, inf, log, log10, sqrt
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from detectors.baseline import TICK, Constants, Moments, check_format, payoff_inflation
from detectors.conformal import N_BINS, P_EDGES
from detectors.errors import InvalidInput, InvalidReference
from detectors.payoffs import build_experts
from detectors.seasons import Season, widened
from detectors.windows import Windows, most_windows

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Channel = Literal["level", "shape", "mix"]

CHANNELS: tuple[Channel, ...] = ("level", "shape", "mix")
OMEGA: dict[Channel, float] = {"level": 0.4, "shape": 0.4, "mix": 0.2}
# Rare topics that arrive in bursts give short windows a heavier tail than three cumulants carry: on real sentence
# vectors the observed tail is 2 to 5 times the nominal one at 64 records and below 2 at 256.
MIN_RECORDS = 256
# Windows longer than a quarter of the baseline measure the error of the baseline's mean more than the stream.
BASELINE_SHARE = 0.25
REFERENCE_QUANTILE = 3.09  # normal quantile of 0.999: one baseline in a thousand lies further from the truth
# Before a baseline is this large, its own error hides weak shifts and fakes strong ones; callers should only warn.
MIN_BASELINE_TO_PAGE = 50_000
# The window that raised an alarm was a lucky one: one twice as long shows whether the shift persists.
RECENT_FACTOR = 2
GONE_P = 0.01  # an alarm is over when its recent window has a p-value above this, or an e-value below its inverse
LN10 = log(10.0)
NO_EVIDENCE = 0.0  # log of 1: what a p-value, or a bet that has not begun, stands at


class Summary(Protocol):
    """What the fold needs of a block; `detectors.summary.BlockSummary` is one."""

    @property
    def n(self) -> int:
        """Records."""

    @property
    def s(self) -> npt.NDArray[np.int64]:
        """(d,), sum of the vectors in fixed point 2^-20."""

    @property
    def h(self) -> npt.NDArray[np.int64]:
        """(49,), records per bin of p-values."""

    @property
    def c(self) -> npt.NDArray[np.int64]:
        """(K,), records per nearest prototype."""


@dataclass(frozen=True, slots=True)
class FoldSettings:
    """How sure to be before saying something.

    Attributes:
        page_run_length_blocks, warn_run_length_blocks: average number of blocks between two false pages (false
            warnings) on a stream that does not change.
        share: part of the deployment's one budget of false alarms that this (model, space, segment) may spend.
        tolerance: shifts of the mean below so many whitened standard deviations count as no change.
        tail_tolerance: tail shares up to (1 + tail_tolerance) times the calibrated ones count as no change.
        max_blocks: windows are pruned beyond this many blocks (and beyond a quarter of the baseline's records).
        hold_off_blocks: blocks after an alarm from which the next alarm takes no evidence.
        channels: the channels that may alarm; the share of the others stays unused.
    """

    page_run_length_blocks: float
    warn_run_length_blocks: float
    share: float = 1.0
    tolerance: float = 0.0
    tail_tolerance: float = 0.0
    max_blocks: int = 8192
    hold_off_blocks: int = 16
    channels: tuple[Channel, ...] = CHANNELS

    def __post_init__(self) -> None:
        problems = [
            text
            for wrong, text in (
                (not self.page_run_length_blocks >= self.warn_run_length_blocks >= 1, "run lengths: page >= warn >= 1"),
                (not 0 < self.share <= 1, "share: above 0, at most 1"),
                (not (self.tolerance >= 0 and self.tail_tolerance >= 0), "tolerances: at least 0"),
                (self.max_blocks < 1, "max_blocks: at least 1"),
                (self.hold_off_blocks < 0, "hold_off_blocks: at least 0"),
                (not self.channels or set(self.channels) - set(CHANNELS), f"channels: some of {', '.join(CHANNELS)}"),
            )
            if wrong
        ]
        if problems:
            raise InvalidInput(
                f"The settings of the drift rule do not hold: {'; '.join(problems)}.", hint="Change them."
            )

    @classmethod
    def in_days(
        cls,
        page_every_days: float,
        warn_every_days: float,
        *,
        block_s: float,
        share: float = 1.0,
        tolerance: float = 0.0,
        tail_tolerance: float = 0.0,
        max_blocks: int = 8192,
        hold_off_blocks: int = 16,
        channels: tuple[Channel, ...] = CHANNELS,
    ) -> FoldSettings:
        """Settings for event-time blocks of ``block_s`` seconds with run lengths in days of event time."""
        return cls(
            page_run_length_blocks=page_every_days * 86_400 / block_s,
            warn_run_length_blocks=warn_every_days * 86_400 / block_s,
            share=share,
            tolerance=tolerance,
            tail_tolerance=tail_tolerance,
            max_blocks=max_blocks,
            hold_off_blocks=hold_off_blocks,
            channels=channels,
        )

    @property
    def page_threshold(self) -> float:
        """Strength from which on a channel pages, log10 of blocks."""
        return log10(self.page_run_length_blocks / self.share)

    @property
    def warn_threshold(self) -> float:
        """Strength from which on a channel warns, log10 of blocks."""
        return log10(self.warn_run_length_blocks / self.share)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one channel says after one block.

    Attributes:
        channel: level, shape or mix.
        block: index of the block just folded.
        statistic: T of the strongest window (level, mix); log10 of the experts' wealth (shape).
        strength: log10 of the blocks in which such evidence appears once by chance, over what came since the last page.
        warn_strength: the same over what came since the last warning.
        threshold, warn_threshold: strengths from which on the channel pages and warns.
        p_value: of the strongest window (level, mix); a bound on it (shape). At least 1e-300.
        n: records in that window.
        effect: size of the shift there: whitened standard deviations (level, mix); mean normal score of the p-values,
            positive where records lie further out (shape).
        window_start, window_blocks: index of that window's first block, and its length.
        onset: index of the block from which on the stream differs, as far as one can say; None without evidence.
        page, warn: an alarm is raised at this block. A page is a warning, too.
        active: an alarm was raised, now or before, and the most recent records still show the shift.
        recent_p: p-value of the window that decides about ``active``; None while too few records came.
        reference: number of the reference that the block was scored against.
    """

    channel: Channel
    block: int
    statistic: float
    strength: float
    warn_strength: float
    threshold: float
    warn_threshold: float
    p_value: float
    n: int
    effect: float
    window_start: int
    window_blocks: int
    onset: int | None
    page: bool
    warn: bool
    active: bool
    recent_p: float | None
    reference: int


# --- the rule: constants and settings, ready to be applied -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QuadraticNull:
    """The null distribution of T = |sum z|^2 / n for windows of any length.

    Attributes:
        moments: of a single z.
        eta_reference, eta_user: squared whitened mean shift per record that counts as none: the error of the baseline's
            mean (spread like the eigenvalues), and what the user tolerates (in the worst direction).
        inflation: (3, W): records, factor of the mean, factor of the variance.
        least_unusual: no window has a smaller T and lies two standard deviations above the mean.
    """

    moments: Moments
    eta_reference: float
    eta_user: float
    inflation: Floats
    least_unusual: float

    @classmethod
    def build(cls, moments: Moments, inflation: Floats, *, tolerance: float, rounding: float) -> QuadraticNull:
        """Combine the measured constants with a tolerance in whitened standard deviations.

        ``rounding``: squared whitened shift that fixed-point sums alone may cause.
        """
        last = max(float(inflation[1, -1]), moments.floor)
        relative = REFERENCE_QUANTILE * sqrt(2.0 * moments.t2) / moments.t1 if moments.t1 > 0 else 0.0
        eta_reference = (1.0 + relative) * last / moments.n
        eta_user = tolerance**2 + 2.0 * tolerance * sqrt(eta_reference * moments.t1) + rounding
        narrowest = max(2.0 * moments.t2 + min(moments.k4, 0.0) / MIN_RECORDS, 0.0)
        return cls(moments, eta_reference, eta_user, inflation, moments.t1 + 2.0 * sqrt(narrowest))

    def cumulants(self, n: Floats) -> tuple[Floats, Floats, Floats]:
        """First three cumulants of T over windows of ``n`` records (m,)."""
        m, length = self.moments, np.log2(self.inflation[0])
        v1 = np.maximum(np.interp(np.log2(n), length, self.inflation[1]), m.floor)
        v2 = np.interp(np.log2(n), length, self.inflation[2])
        plain = np.maximum(2.0 * m.t2 * v1**2 + m.k4 / n, 0.0)
        spread = plain * v2
        k1 = m.t1 * v1 + n * (self.eta_reference * m.t1 + self.eta_user)
        k2 = spread + 4.0 * n * v1 * (self.eta_reference * m.t2 + self.eta_user * m.s1)
        # Where dependence adds variance, it adds it as one more, lopsided, chi-square.
        added = np.where(v2 > 1.0, np.maximum(spread - 2.0 * m.t2 * v1**2, 0.0) / 2.0, 0.0)
        k3 = (
            8.0 * m.t3 * v1**3
            + m.c3 / n
            + 8.0 * added**1.5
            + 24.0 * n * v1**2 * (self.eta_reference * m.t3 + self.eta_user * m.s1**2)
        )
        # Floors for baselines that hardly vary, where the fixed point alone is left; and a law that never leans left.
        k2 = np.maximum(k2, (1e-3 * k1) ** 2 + 1e-24)
        return k1, k2, np.maximum(k3, 1e-3 * k2**1.5)

    def log_p(self, t: Floats, n: Floats) -> Floats:
        """Natural log of P(T >= t) under the null, (m,); 0 for values within two standard deviations of the mean.

        Windows shorter than 256 records have no p-value, and get 0.
        """
        result = np.zeros(len(t))
        # Almost every window of an unchanged stream stops here: no factor and no tolerance makes the law narrower.
        far = np.flatnonzero((t > self.least_unusual) & (n >= MIN_RECORDS))
        if len(far):
            t, n = t[far], n[far]
            k1, k2, k3 = self.cumulants(n)
            unusual = t > k1 + 2.0 * np.sqrt(k2)
            if unusual.any():
                tail = pearson3_log_tail(t[unusual], k1[unusual], k2[unusual], k3[unusual])
                result[far[unusual]] = tail
        return result


def pearson3_log_tail(t: Floats, k1: Floats, k2: Floats, k3: Floats) -> Floats:
    """Natural log of the upper tail at ``t`` of the Pearson III law (Pearson, 1895) with three given cumulants, k3 > 0.

    Below 1e-280 the leading terms of the incomplete gamma function's asymptotic series go on where floats end, so that
    longer windows of an overwhelming shift still rank above shorter ones.
    """
    from scipy.special import gammaincc, gammaln

    shape = 4.0 * k2**3 / k3**2
    x = np.maximum((t - k1 + 2.0 * k2**2 / k3) * 2.0 * k2 / k3, 0.0)
    tail = np.asarray(gammaincc(shape, x))
    beyond = tail < 1e-280
    with np.errstate(divide="ignore", invalid="ignore"):
        series = shape * np.log(x) - x - gammaln(shape) - np.log(x - shape + 1.0)
        return np.where(beyond, series, np.log(np.where(beyond, 1.0, tail)))


class Rule:
    """The constants of one baseline under one choice of settings, ready for `fold`. Build it once and keep it.

    Args:
        constants: from `detectors.baseline.measure`.
        settings: see `FoldSettings`.

    Raises:
        InvalidReference: constants of another format.
    """

    def __init__(self, constants: Constants, settings: FoldSettings) -> None:
        check_format(constants)
        self.settings = settings
        self.mean = np.asarray(constants["level_mean"], dtype=np.float64)
        self.map = np.asarray(constants["level_map"], dtype=np.float64)
        self.groups = np.asarray(constants["mix_groups"], dtype=np.int64)
        self.shares = np.asarray(constants["mix_shares"], dtype=np.float64)
        self.scale = np.asarray(constants["mix_scale"], dtype=np.float64)
        level, mix = Moments.from_array(constants["level_moments"]), Moments.from_array(constants["mix_moments"])
        # Each coordinate of a fixed-point sum is off by half a step per record at most.
        rounding = float((self.map**2).sum()) * (TICK / 2.0) ** 2
        self.level = QuadraticNull.build(
            level,
            np.asarray(constants["level_inflation"], dtype=np.float64),
            tolerance=settings.tolerance,
            rounding=rounding,
        )
        self.mix = QuadraticNull.build(
            mix, np.asarray(constants["mix_inflation"], dtype=np.float64), tolerance=0.0, rounding=0.0
        )
        self.season = Season.read(constants)
        if self.season is not None:
            self.level = _with_season(self.level, self.season)
            self.mix = _with_season(self.mix, self.season)
        size, effective = (float(value) for value in np.asarray(constants["calibration"], dtype=np.float64))
        usable = {"level": True, "mix": mix.t1 > 0, "shape": size >= 1}
        chosen = [name for name in CHANNELS if name in settings.channels and usable[name]]
        self.channels: tuple[Channel, ...] = tuple(chosen)
        self.experts = build_experts(
            size=max(size, 1.0),
            effective=max(effective, 1.0),
            tolerance=settings.tail_tolerance,
            above=np.asarray(constants["calibration_above"], dtype=np.int64),
        )
        inflation, _ = payoff_inflation(constants["block_histogram"], self.experts.phi)
        # A rare tail cannot show its own inflation in a short baseline: it has at least what the typical expert has.
        inflation = np.maximum(inflation, np.median(inflation))
        self.gain = self.experts.phi.T / inflation  # (49, E)
        self.cost = self.experts.psi / inflation  # (E,)
        self.normal_score = _normal_scores()
        self.max_records = max(MIN_RECORDS, ceil(level.n * BASELINE_SHARE))
        self.max_windows = most_windows(settings.max_blocks)
        self.dimension, self.group_count = len(self.mean), len(self.shares)
        self.width = self.dimension + self.group_count + N_BINS
        self.inflation_measured = bool(np.all(constants["inflation_measured"]))
        self.supports_page = level.n >= MIN_BASELINE_TO_PAGE and size >= MIN_BASELINE_TO_PAGE

    def mean_at(self, block: int) -> Floats:
        """(d,), the mean of the vectors that block number ``block`` is compared with."""
        return self.mean if self.season is None else self.season.level_at(block)

    def shares_at(self, block: int) -> Floats:
        """(G,), the shares of the prototype groups that block number ``block`` is compared with."""
        return self.shares if self.season is None else self.season.shares_at(block)

    def project(self, summary: Summary, block: int) -> Floats:
        """What block number ``block`` adds to every window: whitened sum (d,), scaled group counts (G,), histogram
        (49,), in one row.
        """
        if len(summary.s) != self.dimension or len(summary.c) != len(self.groups):
            raise InvalidReference(
                f"The block holds {len(summary.s)}-dimensional sums and {len(summary.c)} prototypes, "
                f"but the reference has {self.dimension} and {len(self.groups)}.",
                hint="Fold a block with the reference that scored it.",
            )
        n = float(summary.n)
        values = np.empty(self.width)
        values[: self.dimension] = (np.asarray(summary.s, dtype=np.float64) * TICK - n * self.mean_at(block)) @ self.map
        grouped = np.bincount(self.groups, weights=summary.c, minlength=self.group_count)
        values[self.dimension : -N_BINS] = self.scale * (grouped - n * self.shares_at(block))
        values[-N_BINS:] = summary.h
        return values


def _with_season(null: QuadraticNull, season: Season) -> QuadraticNull:
    """The law of what the season's forecast leaves over, with the error of that forecast."""
    return replace(null, inflation=widened(null.inflation, season.error, null.eta_reference * null.moments.n))


def _normal_scores() -> Floats:
    """Normal score of the middle of each bin of p-values, positive for small p."""
    from scipy.special import ndtri

    return np.asarray(ndtri(1.0 - (P_EDGES + np.append(0.0, P_EDGES[:-1])) / 2.0))


# --- state -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FoldState:
    """Everything that the next step needs to know of the past. Bounded: about 40 windows of d + 256 + 49 numbers.

    Attributes:
        reference: number of the reference that the blocks are scored against.
        block: index of the next block.
        windows: running sums since every start.
        page_from, warn_from: only windows that begin at this block or later may page (warn).
        page_wealth, warn_wealth: (E,), log of each expert's Shiryaev-Roberts sum.
        excursion: (E,), each expert's log-likelihood since it last fell to zero (Page, 1954).
        excursion_start: (E,), index of the block after that fall.
        alarm_records: (3,), per channel: records in the window that raised its latest alarm, 0 once that is over.
    """

    reference: int
    block: int
    windows: Windows
    page_from: int
    warn_from: int
    page_wealth: Floats
    warn_wealth: Floats
    excursion: Floats
    excursion_start: Ints
    alarm_records: Ints

    @classmethod
    def start(cls, rule: Rule, *, reference: int = 0, block: int = 0) -> FoldState:
        """The state before the first block, whose index is ``block``."""
        experts = len(rule.cost)
        return cls(
            reference=reference,
            block=block,
            windows=Windows.empty(rule.width),
            page_from=block,
            warn_from=block,
            page_wealth=np.full(experts, -inf),
            warn_wealth=np.full(experts, -inf),
            excursion=np.zeros(experts),
            excursion_start=np.full(experts, block, dtype=np.int64),
            alarm_records=np.zeros(len(CHANNELS), dtype=np.int64),
        )

    def to_bytes(self) -> bytes:
        """Bytes of a fixed layout: same state, same bytes, and `from_bytes` gives the same state to the last bit."""
        head = _HEAD.pack(
            _MAGIC, _VERSION, self.reference, self.block, self.page_from, self.warn_from, len(self.page_wealth)
        )
        arrays = b"".join(getattr(self, name).astype(kind).tobytes() for name, kind in _ARRAYS.items())
        return head + arrays + self.windows.pack()

    @classmethod
    def from_bytes(cls, blob: bytes) -> FoldState:
        """The state that `to_bytes` wrote.

        Raises:
            InvalidInput: bytes that are cut off, or of another format.
        """
        hint = "Fold again from the first stored block: the summaries hold all that the state was made of."
        if len(blob) < _HEAD.size or not blob.startswith(_MAGIC):
            raise InvalidInput(f"These {len(blob)} bytes are no state of the drift rule.", hint=hint)
        _, version, reference, block, page_from, warn_from, experts = _HEAD.unpack_from(blob)
        if version != _VERSION:
            raise InvalidInput(f"The drift state has format {version}, expected {_VERSION}.", hint=hint)
        position, arrays = _HEAD.size, {}
        try:
            for name, kind in _ARRAYS.items():
                size = len(CHANNELS) if name == "alarm_records" else experts
                arrays[name] = np.frombuffer(blob, kind, size, position).astype(kind[1:])
                position += 8 * size
            windows = Windows.unpack(blob[position:])
        except (ValueError, InvalidInput) as error:
            raise InvalidInput(f"The drift state of {len(blob)} bytes is damaged: {error}", hint=hint) from error
        return cls(reference, block, windows, page_from, warn_from, **arrays)


_MAGIC = b"driftfold"
_VERSION = 1
_HEAD = struct.Struct("<9sHqqqqI")
_ARRAYS = {
    "page_wealth": "<f8",
    "warn_wealth": "<f8",
    "excursion": "<f8",
    "excursion_start": "<i8",
    "alarm_records": "<i8",
}


# --- one step --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What a channel found in one block, before the thresholds are applied."""

    statistic: float
    log_p: float
    strength: float
    warn_strength: float
    n: int
    effect: float
    window: int  # index of the window, -1 without evidence
    onset: int | None


def fold(state: FoldState, summary: Summary | None, rule: Rule) -> tuple[FoldState, tuple[Reading, ...]]:
    """Advance by one block.

    Args:
        state: after the block before; not changed.
        summary: the block's records of all partitions, merged; None, or n = 0, for a block without records, which
            ages the windows and does nothing else.
        rule: see `Rule`.

    Returns:
        The next state and one reading for each channel of the rule, in the order level, shape, mix.

    Raises:
        InvalidReference: the summary or the state was made with another reference.
    """
    if state.windows.sums.shape[1] != rule.width or len(state.page_wealth) != len(rule.cost):
        raise InvalidReference(
            f"The drift state is {state.windows.sums.shape[1]} numbers wide, but the reference needs {rule.width}.",
            hint="Start a new state for a new reference.",
        )
    block, n = state.block, 0 if summary is None else int(summary.n)
    values = np.zeros(rule.width) if summary is None or n == 0 else rule.project(summary, block)
    windows = state.windows.push(
        values, n, block=block, max_blocks=rule.settings.max_blocks, max_records=rule.max_records
    )
    shape = _Shape.step(state, values[-N_BINS:], n, rule)

    found: dict[Channel, _Evidence] = {}
    recent: dict[Channel, tuple[bool, float | None]] = {}
    for name in rule.channels:
        needed = int(state.alarm_records[CHANNELS.index(name)])
        if name == "shape":
            found[name] = shape.evidence(windows, state, rule)
            recent[name] = _recent_shape(windows, needed, block, rule)
        else:
            null, part = _part(name, rule)
            sizes = np.maximum(windows.records, 1).astype(np.float64)
            t = np.einsum("ij,ij->i", windows.sums[:, part], windows.sums[:, part]) / sizes
            log_p = null.log_p(t, sizes)
            found[name] = _strongest(name, t, log_p, windows, state, null, rule)
            recent[name] = _recent_quadratic(log_p, windows, needed, block, rule)
    return _decide(state, windows, shape, found, recent, rule)


def _part(name: Channel, rule: Rule) -> tuple[QuadraticNull, slice]:
    """A quadratic channel's null distribution and its columns in the window sums."""
    if name == "level":
        return rule.level, slice(0, rule.dimension)
    return rule.mix, slice(rule.dimension, rule.dimension + rule.group_count)


def _strongest(
    name: Channel, t: Floats, log_p: Floats, windows: Windows, state: FoldState, null: QuadraticNull, rule: Rule
) -> _Evidence:
    """The window with the least p-value among those that may page, and the least p-value among those that may warn."""
    may_page, may_warn = windows.first_block >= state.page_from, windows.first_block >= state.warn_from
    price = log10(OMEGA[name] / (2.0 * rule.max_windows))
    least = float(log_p[may_page].min(initial=NO_EVIDENCE))
    warn_strength = price - float(log_p[may_warn].min(initial=NO_EVIDENCE)) / LN10
    if least == NO_EVIDENCE:
        return _Evidence(0.0, least, price, warn_strength, 0, 0.0, -1, None)
    best = int(np.flatnonzero(may_page & (log_p == least))[0])
    n = int(windows.records[best])
    expected = float(null.cumulants(np.array([float(n)]))[0][0])
    effect = sqrt(max(float(t[best]) - expected, 0.0) / n)
    return _Evidence(
        statistic=float(t[best]),
        log_p=least,
        strength=price - least / LN10,
        warn_strength=warn_strength,
        n=n,
        effect=effect,
        window=best,
        onset=int(windows.first_block[best]),
    )


@dataclass(frozen=True, slots=True)
class _Shape:
    """The experts after one block."""

    page_wealth: Floats
    warn_wealth: Floats
    excursion: Floats
    excursion_start: Ints

    @classmethod
    def step(cls, state: FoldState, histogram: Floats, n: int, rule: Rule) -> _Shape:
        if n == 0:
            # A bet on nothing pays one, and a Shiryaev-Roberts sum would grow by one: silence is no evidence.
            return cls(state.page_wealth, state.warn_wealth, state.excursion, state.excursion_start)
        gain = histogram @ rule.gain - n * rule.cost
        page = np.logaddexp(state.page_wealth, 0.0) + gain if state.block >= state.page_from else state.page_wealth
        warn = np.logaddexp(state.warn_wealth, 0.0) + gain if state.block >= state.warn_from else state.warn_wealth
        excursion = np.maximum(state.excursion + gain, 0.0)
        return cls(page, warn, excursion, np.where(excursion > 0.0, state.excursion_start, state.block + 1))

    def evidence(self, windows: Windows, state: FoldState, rule: Rule) -> _Evidence:
        weighted = rule.experts.log_weight + self.page_wealth
        wealth = _log_wealth(weighted)
        price = log10(OMEGA["shape"] / 2.0)
        strength = price + wealth / LN10
        warn_strength = price + _log_wealth(rule.experts.log_weight + self.warn_wealth) / LN10
        leader = int(weighted.argmax())
        elapsed = state.block - state.page_from + 1
        # E(sum) is at most the number of blocks, so by Markov's inequality blocks / sum bounds the p-value.
        log_p = min(log(max(elapsed, 1)) - wealth, NO_EVIDENCE)
        onset = int(self.excursion_start[leader])
        earlier = np.flatnonzero(windows.first_block <= onset)
        if weighted[leader] == -inf or onset > state.block or not len(earlier):
            return _Evidence(wealth / LN10, log_p, strength, warn_strength, 0, 0.0, -1, None)
        window = int(earlier[-1])
        n = int(windows.records[window])
        effect = float(windows.sums[window, -N_BINS:] @ rule.normal_score) / max(n, 1)
        return _Evidence(wealth / LN10, log_p, strength, warn_strength, n, effect, window, onset)


def _log_wealth(weighted: Floats) -> float:
    """Log of the sum of the experts' shares; that of an empty sum is set to what a bet begins with."""
    greatest = float(weighted.max())
    return NO_EVIDENCE if greatest == -inf else greatest + log(float(np.exp(weighted - greatest).sum()))


def _recent_window(windows: Windows, needed: int, block: int, rule: Rule) -> int | None:
    """The shortest window with twice the records that the alarm took to be seen; None while there is none."""
    enough = np.flatnonzero(windows.records >= min(max(RECENT_FACTOR * needed, MIN_RECORDS), rule.max_records))
    if len(enough):
        return int(enough[-1])
    # Traffic so thin that no window will ever hold so many: the longest one decides.
    whole_past = block - int(windows.first_block[0]) + 1 >= rule.settings.max_blocks
    return 0 if whole_past else None


def _recent_quadratic(
    log_p: Floats, windows: Windows, needed: int, block: int, rule: Rule
) -> tuple[bool, float | None]:
    """Whether the most recent records still show a shift, and their p-value. Unknown counts as yes."""
    window = _recent_window(windows, needed, block, rule)
    if window is None:
        return True, None
    return bool(log_p[window] <= log(GONE_P)), _p_value(float(log_p[window]))


def _recent_shape(windows: Windows, needed: int, block: int, rule: Rule) -> tuple[bool, float | None]:
    """The same for the experts: the inverse of their e-value over the most recent records bounds the p-value."""
    window = _recent_window(windows, needed, block, rule)
    if window is None:
        return True, None
    gain = windows.sums[window, -N_BINS:] @ rule.gain - float(windows.records[window]) * rule.cost
    log_p = min(-_log_wealth(rule.experts.log_weight + gain), NO_EVIDENCE)
    return log_p <= log(GONE_P), _p_value(log_p)


def _p_value(log_p: float) -> float:
    return float(np.exp(max(log_p, log(1e-300))))


def _decide(
    state: FoldState,
    windows: Windows,
    shape: _Shape,
    found: dict[Channel, _Evidence],
    recent: dict[Channel, tuple[bool, float | None]],
    rule: Rule,
) -> tuple[FoldState, tuple[Reading, ...]]:
    """Apply the thresholds, and use up the evidence of an alarm."""
    settings, block = rule.settings, state.block
    page_threshold, warn_threshold = settings.page_threshold, settings.warn_threshold
    alarm_records = state.alarm_records.copy()
    readings: list[Reading] = []
    for name, evidence in found.items():
        channel = CHANNELS.index(name)
        page = evidence.strength >= page_threshold
        warn = page or evidence.warn_strength >= warn_threshold
        persists, recent_p = recent[name]
        if warn:
            alarm_records[channel] = min(max(evidence.n, MIN_RECORDS), rule.max_records)
        elif not persists:
            alarm_records[channel] = 0
        start = int(windows.first_block[evidence.window]) if evidence.window >= 0 else block
        readings.append(
            Reading(
                channel=name,
                block=block,
                statistic=evidence.statistic,
                strength=evidence.strength,
                warn_strength=evidence.warn_strength,
                threshold=page_threshold,
                warn_threshold=warn_threshold,
                p_value=_p_value(evidence.log_p),
                n=evidence.n,
                effect=evidence.effect,
                window_start=start,
                window_blocks=block - start + 1,
                onset=evidence.onset,
                page=page,
                warn=warn,
                active=bool(alarm_records[channel] > 0),
                recent_p=recent_p,
                reference=state.reference,
            )
        )
    page_wealth, warn_wealth = shape.page_wealth, shape.warn_wealth
    excursion, excursion_start = shape.excursion, shape.excursion_start
    page_from, warn_from = state.page_from, state.warn_from
    if any(reading.warn for reading in readings):
        warn_from = block + 1 + settings.hold_off_blocks
        warn_wealth = np.full(len(warn_wealth), -inf)
    if any(reading.page for reading in readings):
        page_from = block + 1 + settings.hold_off_blocks
        page_wealth = np.full(len(page_wealth), -inf)
        excursion, excursion_start = np.zeros(len(excursion)), np.full(len(excursion), block + 1, dtype=np.int64)
        windows = Windows.empty(rule.width)
    following = FoldState(
        reference=state.reference,
        block=block + 1,
        windows=windows,
        page_from=page_from,
        warn_from=warn_from,
        page_wealth=page_wealth,
        warn_wealth=warn_wealth,
        excursion=excursion,
        excursion_start=excursion_start,
        alarm_records=alarm_records,
    )
    return following, tuple(readings)
