"""The drift alarm: one sequential pass over block summaries.

`fold` takes the state, the merged summary of the next block and the rule, and returns the next state and one reading
per channel; `fold_many` does so for many segments at once, to the same bytes. Both are pure: the same summaries in the
same order give the same readings, live or in a backfill. Three channels look at the same windows, which end at the
latest block and begin at every geometric distance (`detectors.windows`):

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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import ceil, exp, inf, log, log10, sqrt
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
GONE_P = 0.01  # an alarm is over when its recent window has a p-value above this, or an e-value below its inverse
LN10 = log(10.0)
# Segments are whitened in products of one and the same shape, however many there are: BLAS rounds others differently.
ROWS_AT_ONCE = 4
# How much less evidence (in nats) than the best start another may have and still be where the change began. Chosen on
# 700 simulated changes so that each channel's interval holds the true onset in more than 90 % when it pages: 0 does for
# independent records (95 % and more); 1 leaves room for others and costs a twentieth of the width (docs/drift.md).
ONSET_DROP = 1.0
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
        contamination: share of the records that may be scattered outliers of any kind, and counts as no change.
        max_blocks: windows are pruned beyond this many blocks (and beyond a quarter of the baseline's records).
        hold_off_blocks: blocks after an alarm from which the next alarm takes no evidence.
        channels: the channels that may alarm; the share of the others stays unused.
    """

    page_run_length_blocks: float
    warn_run_length_blocks: float
    share: float = 1.0
    tolerance: float = 0.0
    contamination: float = 0.0
    max_blocks: int = 8192
    hold_off_blocks: int = 16
    channels: tuple[Channel, ...] = CHANNELS

    def __post_init__(self) -> None:
        problems = [
            text
            for wrong, text in (
                (not self.page_run_length_blocks >= self.warn_run_length_blocks >= 1, "run lengths: page >= warn >= 1"),
                (not 0 < self.share <= 1, "share: above 0, at most 1"),
                (not self.tolerance >= 0, "tolerance: at least 0"),
                (not 0 <= self.contamination < 1, "contamination: at least 0, below 1"),
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
        contamination: float = 0.0,
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
            contamination=contamination,
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
        recent_p: p-value of the window that decides about ``active``; None while no alarm lasts, or too few records
            came since.
        reference: number of the reference that the block was scored against.
        onset_earliest, onset_latest: the stream began to differ in one of these blocks or between them; of the
            intervals at a page, nine in ten say so truly (`ONSET_DROP`). None while no alarm is raised and none lasts.
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
    onset_earliest: int | None = None
    onset_latest: int | None = None


# --- the rule: constants and settings, ready to be applied -----------------------------------------------------------


@dataclass(frozen=True)
class QuadraticNull:
    """The null distribution of T = |sum z|^2 / n for windows of any length.

    Attributes:
        moments: of a single z.
        eta_reference, eta_user: squared whitened mean shift per record that counts as none: the error of the baseline's
            mean (spread like the eigenvalues), and what the user tolerates (in the worst direction).
        inflation: (3, L): records, factor of the mean, factor of the variance.
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

    @cached_property
    def coefficients(self) -> Floats:
        """(8,), what `_cumulants` multiplies powers of n and of the factors with."""
        m = self.moments
        return np.array(
            [
                m.t1,
                self.eta_reference * m.t1 + self.eta_user,
                2.0 * m.t2,
                m.k4,
                4.0 * (self.eta_reference * m.t2 + self.eta_user * m.s1),
                8.0 * m.t3,
                m.c3,
                24.0 * (self.eta_reference * m.t3 + self.eta_user * m.s1**2),
            ]
        )

    @cached_property
    def _length(self) -> Floats:
        return np.asarray(np.log2(self.inflation[0]))

    def factors(self, n: Floats) -> tuple[Floats, Floats]:
        """What dependence makes of the mean and the variance of T over windows of ``n`` records (m,)."""
        length = np.log2(n)
        v1 = np.maximum(np.interp(length, self._length, self.inflation[1]), self.moments.floor)
        return v1, np.interp(length, self._length, self.inflation[2])

    def cumulants(self, n: Floats) -> tuple[Floats, Floats, Floats]:
        """First three cumulants of T over windows of ``n`` records (m,)."""
        return _cumulants(n, *self.factors(n), self.coefficients)

    def log_p(self, t: Floats, n: Floats) -> Floats:
        """Natural log of P(T >= t) under the null, (m,); 0 for values within two standard deviations of the mean.

        Windows shorter than 256 records have no p-value, and get 0.
        """
        return log_tails(t, n, [self], np.zeros(len(t), dtype=np.int64))[0]


def log_tails(t: Floats, n: Floats, nulls: Sequence[QuadraticNull], owner: Ints) -> tuple[Floats, Floats]:
    """`QuadraticNull.log_p` of windows with different null distributions, and the means where there is a p-value.

    Args:
        t, n: (m,), statistic and records of each window.
        nulls: the distributions.
        owner: (m,), index of each window's, ascending.
    """
    log_p, mean = np.zeros(len(t)), np.zeros(len(t))
    # Almost every window of an unchanged stream stops here: no factor and no tolerance makes the law narrower.
    least = np.array([null.least_unusual for null in nulls])
    far = np.flatnonzero((t > least[owner]) & (n >= MIN_RECORDS))
    if len(far) == 0:
        return log_p, mean
    t, n, owner = t[far], n[far], owner[far]
    v1, v2, coefficients = np.empty(len(far)), np.empty(len(far)), np.empty((8, len(far)))
    starts = [0, *(np.flatnonzero(owner[1:] != owner[:-1]) + 1).tolist()]
    for begin, end in zip(starts, [*starts[1:], len(far)], strict=True):
        null = nulls[int(owner[begin])]
        v1[begin:end], v2[begin:end] = null.factors(n[begin:end])
        coefficients[:, begin:end] = null.coefficients[:, None]
    k1, k2, k3 = _cumulants(n, v1, v2, coefficients)
    mean[far] = k1
    unusual = t > k1 + 2.0 * np.sqrt(k2)
    if unusual.any():
        log_p[far[unusual]] = pearson3_log_tail(t[unusual], k1[unusual], k2[unusual], k3[unusual])
    return log_p, mean


def _cumulants(n: Floats, v1: Floats, v2: Floats, coefficients: Floats) -> tuple[Floats, Floats, Floats]:
    """First three cumulants of T over ``n`` records (m,); coefficients: (8,), or (8, m) where laws differ."""
    t1, eta1, t2, k4, eta2, t3, c3, eta3 = coefficients
    square = v1 * v1
    independent = t2 * square
    spread = np.maximum(independent + k4 / n, 0.0) * v2
    k1 = t1 * v1 + n * eta1
    k2 = spread + n * v1 * eta2
    # Where dependence adds variance, it adds it as one more, lopsided, chi-square.
    added = np.maximum(spread - independent, 0.0) * (0.5 * (v2 > 1.0))
    k3 = t3 * (square * v1) + c3 / n + n * square * eta3 + 8.0 * (added * np.sqrt(added))
    # Floors for baselines that hardly vary, where the fixed point alone is left; and a law that never leans left.
    k2 = np.maximum(k2, (1e-3 * k1) ** 2 + 1e-24)
    return k1, k2, np.maximum(k3, 1e-3 * (k2 * np.sqrt(k2)))


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
        self.map_address = int(self.map.__array_interface__["data"][0])  # one for all rules that share the map
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
            contamination=settings.contamination,
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

    def centre(self, summary: Summary, block: int) -> tuple[Floats, Floats]:
        """What block number ``block`` deviates by: its sum of vectors (d,), not yet whitened, and its scaled group
        counts (G,).
        """
        if len(summary.s) != self.dimension or len(summary.c) != len(self.groups):
            raise InvalidReference(
                f"The block holds {len(summary.s)}-dimensional sums and {len(summary.c)} prototypes, "
                f"but the reference has {self.dimension} and {len(self.groups)}.",
                hint="Fold a block with the reference that scored it.",
            )
        n = float(summary.n)
        sums = np.asarray(summary.s, dtype=np.float64) * TICK - n * self.mean_at(block)
        grouped = np.bincount(self.groups, weights=summary.c, minlength=self.group_count)
        return sums, self.scale * (grouped - n * self.shares_at(block))


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
        alarm_records: (3,), per channel: records in the shortest window that raised an alarm, 0 once all are over.
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

    def at(self, block: int) -> FoldState:
        """The same state where the next block is another one: those between had no records."""
        return FoldState(
            self.reference,
            block,
            self.windows,
            self.page_from,
            self.warn_from,
            self.page_wealth,
            self.warn_wealth,
            self.excursion,
            self.excursion_start,
            self.alarm_records,
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
    return fold_many([state], [summary], [rule])[0]


def fold_many(
    states: Sequence[FoldState],
    summaries: Sequence[Summary | None],
    rules: Sequence[Rule],
    *,
    blocks: Sequence[int] = (),
    heard: bool = False,
) -> list[tuple[FoldState, tuple[Reading, ...]]]:
    """Advance many segments by one block each; the same, to the last bit, as `fold` on one after the other.

    Args:
        states, summaries: of each segment, see `fold`. The segments need not be at the same block.
        rules: of each segment, all of one reference: dimension and number of prototype groups are the same, everything
            else may differ.
        blocks: of each segment, how many blocks its summary stands for, the last of which is its state's block; one
            each if not given. They are one step together: sums and p-values are those of the same records, windows
            begin with the first of them, and there are fewer looks, so that false alarms are as rare or rarer.
        heard: give only readings that alarm, or whose alarm lasts.

    Returns:
        What `fold` returns, for each segment.

    Raises:
        InvalidInput: not as many states, summaries and rules.
        InvalidReference: a summary, a state or a rule was made with another reference.
    """
    if not states and not summaries and not rules:
        return []
    spans = blocks or [1] * len(states)
    if not len(states) == len(summaries) == len(rules) == len(spans):
        raise InvalidInput(
            f"{len(states)} states, {len(summaries)} blocks and {len(rules)} rules are not one of each per segment.",
            hint="Pass None for a segment without records.",
        )
    many = _Many.push(states, summaries, rules, spans)
    shape = _Shape.step(states, many, rules)
    found = _quadratic_evidence(many, rules)
    if any("shape" in rule.channels for rule in rules):
        found["shape"] = _shape_evidence(shape, many, rules)
    return [
        _decide(states[index], rules[index], many, shape, found, index, heard=heard) for index in range(len(states))
    ]


@dataclass(frozen=True, slots=True)
class _Many:
    """The segments of one step, S of them, and their windows, W in all, those of a segment beside each other.

    All that is summed up is summed within one segment, by calls whose shapes do not depend on the others; what spans
    segments goes element by element. So a segment's numbers are the same in any company.
    """

    block: Ints  # (S,)
    first_block: Ints  # (S,), the first of those that the summary stands for
    n: Ints  # (S,), records in the block
    since: Ints  # (2, S), the blocks from which evidence for a page, and for a warning, may begin
    histogram: Floats  # (S, 49), p-values in the block
    windows: list[Windows]  # (S,)
    squares: list[tuple[Floats, Floats]]  # (S,), squared length of the sums of each window, for level and for mix
    first: list[int]  # (S,), index of each segment's first window
    segment: Ints  # (W,), index of each window's segment

    @classmethod
    def push(
        cls,
        states: Sequence[FoldState],
        summaries: Sequence[Summary | None],
        rules: Sequence[Rule],
        spans: Sequence[int],
    ) -> _Many:
        """Add each segment's block to its windows."""
        for state, rule in zip(states, rules, strict=True):
            if {state.windows.sums.shape[1], rule.width} != {rules[0].width} or len(state.page_wealth) != len(
                rule.cost
            ):
                raise InvalidReference(
                    f"The drift state is {state.windows.sums.shape[1]} numbers wide, but the reference needs "
                    f"{rule.width}.",
                    hint="Start a new state for a new reference, and fold segments of one reference at once.",
                )
        counts = [0 if summary is None else int(summary.n) for summary in summaries]
        values = _project(states, summaries, rules, spans)
        windows, squares = [], []
        for state, row, n, rule, span in zip(states, values, counts, rules, spans, strict=True):
            pushed = state.windows.push(
                row,
                n,
                block=state.block,
                max_blocks=rule.settings.max_blocks,
                max_records=rule.max_records,
                blocks=span,
            )
            windows.append(pushed)
            # At once, while the sums are still in the processor's cache.
            level, mix = pushed.sums[:, : rule.dimension], pushed.sums[:, rule.dimension : -N_BINS]
            squares.append((np.vecdot(level, level), np.vecdot(mix, mix)))
        block, n, *since = np.array(
            [(state.block, n, state.page_from, state.warn_from) for state, n in zip(states, counts, strict=True)]
        ).T
        lengths = [len(one) for one in windows]
        return cls(
            block=block,
            first_block=block - np.array(spans) + 1,
            n=n,
            since=np.array(since),
            histogram=values[:, -N_BINS:],
            windows=windows,
            squares=squares,
            first=[0, *accumulate(lengths[:-1])],
            segment=np.repeat(np.arange(len(states)), lengths),
        )


def _project(
    states: Sequence[FoldState], summaries: Sequence[Summary | None], rules: Sequence[Rule], spans: Sequence[int]
) -> Floats:
    """What each segment's block adds to its windows, (S, d + G + 49): whitened sum, scaled group counts, histogram."""
    dimension = rules[0].dimension
    values = np.zeros((len(states), rules[0].width))
    by_map: dict[int, list[int]] = {}  # segments that share one map are whitened together
    for index, (state, summary, rule, span) in enumerate(zip(states, summaries, rules, spans, strict=True)):
        if summary is not None and summary.n > 0:
            middle = state.block - span // 2  # of the season, what several blocks have in common
            values[index, :dimension], values[index, dimension:-N_BINS] = rule.centre(summary, middle)
            values[index, -N_BINS:] = summary.h
            by_map.setdefault(rule.map_address, []).append(index)
    for members in by_map.values():
        level_map, tile = rules[members[0]].map, np.zeros((ROWS_AT_ONCE, dimension))
        for first in range(0, len(members), ROWS_AT_ONCE):
            rows = members[first : first + ROWS_AT_ONCE]
            tile[: len(rows)] = values[rows, :dimension]
            values[rows, :dimension] = (tile @ level_map)[: len(rows)]
    return values


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What a channel found in one block, a value for each of S segments, before the thresholds are applied."""

    statistic: list[float]
    log_p: list[float]
    strength: list[float]
    warn_strength: list[float]
    n: list[int]
    effect: list[float]
    seen: list[bool]  # there is evidence, and so a window and an onset
    window_start: list[int]
    onset: list[int]
    window_log_p: Floats | None  # (W,), of every window; None where the channel has no such thing


def _quadratic_evidence(many: _Many, rules: Sequence[Rule]) -> dict[Channel, _Evidence]:
    """The window with the least p-value among those that may page, and the least p-value among those that may warn."""
    names: list[Channel] = [name for name in ("level", "mix") if any(name in rule.channels for rule in rules)]
    if not names:
        return {}
    segments, windows = len(rules), len(many.segment)
    # All windows of one channel after those of the other: W numbers each.
    records = np.concatenate([one.records for one in many.windows] * len(names))
    first_block = np.concatenate([one.first_block for one in many.windows] * len(names))
    owner = np.concatenate([many.segment + row * segments for row in range(len(names))])
    sizes = np.maximum(records, 1).astype(np.float64)
    t = np.concatenate([both[0 if name == "level" else 1] for name in names for both in many.squares]) / sizes
    log_p, mean = log_tails(t, sizes, [_null(rule, name) for name in names for rule in rules], owner)

    least, least_warn = [NO_EVIDENCE] * (segments * len(names)), [NO_EVIDENCE] * (segments * len(names))
    best = [row * windows + first for row in range(len(names)) for first in many.first]
    page_from, warn_from = (many.since.tolist()[kind] * len(names) for kind in range(2))
    unusual = np.flatnonzero(log_p < NO_EVIDENCE)  # few, while nothing changes
    for window, segment, begins, value in zip(
        unusual.tolist(),
        owner[unusual].tolist(),
        first_block[unusual].tolist(),
        log_p[unusual].tolist(),
        strict=True,
    ):
        if begins >= page_from[segment] and value < least[segment]:  # the longest of the best
            least[segment], best[segment] = value, window
        if begins >= warn_from[segment] and value < least_warn[segment]:
            least_warn[segment] = value

    statistic, size = t[best], sizes[best]
    effect = np.sqrt(np.maximum(statistic - mean[best], 0.0) / size).tolist()
    start, n = first_block[best].tolist(), records[best].tolist()
    found: dict[Channel, _Evidence] = {}
    for row, name in enumerate(names):
        prices = [log10(OMEGA[name] / (2.0 * rule.max_windows)) for rule in rules]
        part = slice(row * segments, (row + 1) * segments)
        found[name] = _Evidence(
            statistic=statistic[part].tolist(),
            log_p=least[part],
            strength=[price - value / LN10 for price, value in zip(prices, least[part], strict=True)],
            warn_strength=[price - value / LN10 for price, value in zip(prices, least_warn[part], strict=True)],
            n=n[part],
            effect=effect[part],
            seen=[value < NO_EVIDENCE for value in least[part]],
            window_start=start[part],
            onset=start[part],
            window_log_p=log_p[row * windows : (row + 1) * windows],
        )
    return found


def _null(rule: Rule, name: Channel) -> QuadraticNull:
    return rule.level if name == "level" else rule.mix


@dataclass(frozen=True, slots=True)
class _Shape:
    """The experts of every segment after one block."""

    wealth: Floats  # (2, S, E), for pages and for warnings
    excursion: Floats  # (S, E)
    excursion_start: Ints  # (S, E)

    @classmethod
    def step(cls, states: Sequence[FoldState], many: _Many, rules: Sequence[Rule]) -> _Shape:
        wealth = np.array([[state.page_wealth for state in states], [state.warn_wealth for state in states]])
        excursion = np.array([state.excursion for state in states])
        start = np.array([state.excursion_start for state in states])
        gain = _gains(many.histogram, many.n, rules)
        # A bet on nothing pays one, and a Shiryaev-Roberts sum would grow by one: silence is no evidence.
        some = many.n > 0
        betting = some & (many.first_block >= many.since)
        wealth = np.where(betting[:, :, None], np.logaddexp(wealth, 0.0) + gain, wealth)
        excursion = np.maximum(excursion + gain, 0.0)
        fallen = (excursion <= 0.0) & some[:, None]
        return cls(wealth, excursion, np.where(fallen, many.block[:, None] + 1, start))


def _gains(histograms: Floats, records: Ints, rules: Sequence[Rule]) -> Floats:
    """(S, E), what each expert's stake grew by (log) over a histogram (S, 49) of so many records (S,)."""
    gain = np.empty((len(rules), len(rules[0].cost)))
    for row, histogram, n, rule in zip(gain, histograms, records.tolist(), rules, strict=True):
        np.dot(histogram, rule.gain, out=row)
        row -= n * rule.cost
    return gain


def _shape_evidence(shape: _Shape, many: _Many, rules: Sequence[Rule]) -> _Evidence:
    """The experts' wealth, and since when the richest of them has been winning."""
    price, segments = log10(OMEGA["shape"] / 2.0), len(rules)
    stakes = rules[0].experts.log_weight  # the same for any calibration
    weighted = stakes + shape.wealth
    n, effect, seen, start, onsets = (
        [0] * segments,
        [0.0] * segments,
        [False] * segments,
        [0] * segments,
        [0] * segments,
    )
    for index, (windows, leader) in enumerate(zip(many.windows, weighted[0].argmax(axis=1).tolist(), strict=True)):
        onset = int(shape.excursion_start[index, leader])
        window = int(windows.first_block.searchsorted(onset, side="right")) - 1
        if weighted[0, index, leader] == -inf or onset > many.block[index] or window < 0:
            continue
        n[index], seen[index] = int(windows.records[window]), True
        effect[index] = float(windows.sums[window, -N_BINS:] @ rules[index].normal_score) / max(n[index], 1)
        start[index], onsets[index] = int(windows.first_block[window]), onset
    wealth, warn_wealth = _log_wealth(weighted)
    elapsed = np.maximum(many.block - many.since[0] + 1, 1).astype(np.float64)
    return _Evidence(
        statistic=(wealth / LN10).tolist(),
        # E(sum) is at most the number of blocks, so by Markov's inequality blocks / sum bounds the p-value.
        log_p=np.minimum(np.log(elapsed) - wealth, NO_EVIDENCE).tolist(),
        strength=(price + wealth / LN10).tolist(),
        warn_strength=(price + warn_wealth / LN10).tolist(),
        n=n,
        effect=effect,
        seen=seen,
        window_start=start,
        onset=onsets,
        window_log_p=None,
    )


def _log_wealth(weighted: Floats) -> Floats:
    """Log of the sum of the experts' shares (..., E); that of an empty sum is set to what a bet begins with."""
    greatest = weighted.max(axis=-1)
    empty = np.isneginf(greatest)
    base = np.where(empty, 0.0, greatest)
    total = np.exp(weighted - base[..., None]).sum(axis=-1)
    return np.where(empty, NO_EVIDENCE, base + np.log(np.where(empty, 1.0, total)))


def _recent_log_p(
    windows: Windows, needed: int, block: int, rule: Rule, *, window_log_p: Floats | None
) -> float | None:
    """Log of a p-value over the shortest window with as many records as the alarm took to be seen.

    The evidence that raises an alarm is worth a p-value of 1e-6 or less; the same shift, or one half as strong, has a
    p-value below GONE_P again in as many records.

    None while there is no such window. For the experts, who have no p-value of a window, the inverse of their e-value
    bounds it.
    """
    enough = np.flatnonzero(windows.records >= min(max(needed, MIN_RECORDS), rule.max_records))
    if len(enough):
        window = int(enough[-1])
    elif block - int(windows.first_block[0]) + 1 >= rule.settings.max_blocks:
        window = 0  # traffic so thin that no window will ever hold so many: the longest one decides
    else:
        return None
    if window_log_p is not None:
        return float(window_log_p[window])
    gain = windows.sums[window, -N_BINS:] @ rule.gain - float(windows.records[window]) * rule.cost
    return min(-float(_log_wealth(rule.experts.log_weight + gain)), NO_EVIDENCE)


def _onset_interval(
    name: Channel, state: FoldState, many: _Many, shape: _Shape, index: int, rule: Rule
) -> tuple[int, int]:
    """The first and the last block at which one segment may have begun to differ.

    The logarithm of the evidence of a window, as a function of where it begins, is a profile likelihood of the change
    point: starts with nearly as much evidence as the best one are as good. The change lies between the neighbours of
    those starts, because there are starts on a grid only.
    """
    windows = many.windows[index]
    records = np.maximum(windows.records, 1).astype(np.float64)
    if name == "shape":
        leader = int((rule.experts.log_weight + shape.wealth[0, index]).argmax())
        profile = windows.sums[:, -N_BINS:] @ rule.gain[:, leader] - records * rule.cost[leader]
    else:
        part = slice(0, rule.dimension) if name == "level" else slice(rule.dimension, -N_BINS)
        sums = windows.sums[:, part]
        profile = -pearson3_log_tail(np.vecdot(sums, sums) / records, *_null(rule, name).cumulants(records))
    return onset_interval(profile, windows.first_block, state.block, drop=ONSET_DROP, since=state.page_from)


def onset_interval(profile: Floats, first_block: Ints, block: int, *, drop: float, since: int) -> tuple[int, int]:
    """The blocks between which a change lies.

    Args:
        profile: (m,), log of the evidence of the windows that begin at ``first_block`` (m,), ascending.
        block: the latest block.
        drop: starts with so much less than the greatest evidence are still possible.
        since: starts before this block are not looked at, if there are later ones.
    """
    allowed = first_block >= since if first_block[-1] >= since else np.ones(len(first_block), dtype=bool)
    near = np.flatnonzero(allowed & (profile >= profile[allowed].max() - drop))
    before, after = int(near[0]) - 1, int(near[-1]) + 1
    # The block before may have begun to differ in its course: too little of it to look like a start.
    earliest = int(first_block[max(before, 0)])
    return earliest, int(first_block[after]) - 1 if after < len(first_block) else block


def _p_value(log_p: float) -> float:
    return exp(max(log_p, log(1e-300)))


def _decide(
    state: FoldState,
    rule: Rule,
    many: _Many,
    shape: _Shape,
    found: dict[Channel, _Evidence],
    index: int,
    *,
    heard: bool,
) -> tuple[FoldState, tuple[Reading, ...]]:
    """Apply the thresholds to one segment, and use up the evidence of an alarm."""
    block, settings, windows = state.block, rule.settings, many.windows[index]
    page_threshold, warn_threshold = settings.page_threshold, settings.warn_threshold
    alarm_records = state.alarm_records.copy()
    readings: list[Reading] = []
    paged = warned = False
    for name in rule.channels:
        evidence = found[name]
        channel = CHANNELS.index(name)
        strength, warn_strength, seen = evidence.strength[index], evidence.warn_strength[index], evidence.seen[index]
        n = evidence.n[index] if seen else 0
        page = strength >= page_threshold
        warn = page or warn_strength >= warn_threshold
        needed, recent = int(alarm_records[channel]), None
        if needed:
            first = many.first[index]
            each = None if evidence.window_log_p is None else evidence.window_log_p[first : first + len(windows)]
            recent = _recent_log_p(windows, needed, block, rule, window_log_p=each)
        if warn:
            # The fewest of the episode: what so few records showed, as many show again if it is still there.
            enough = min(max(n, MIN_RECORDS), rule.max_records)
            alarm_records[channel] = min(enough, needed or enough)
        elif recent is not None and recent > log(GONE_P):  # the most recent records show no shift any more
            alarm_records[channel] = 0
        paged, warned = paged or page, warned or warn
        if heard and not (warn or alarm_records[channel] > 0):
            continue
        start, onset = (evidence.window_start[index], evidence.onset[index]) if seen else (block, None)
        earliest = latest = None
        if onset is not None and (warn or alarm_records[channel] > 0):
            earliest, latest = _onset_interval(name, state, many, shape, index, rule)
            earliest, latest = min(earliest, onset), max(latest, onset)
        readings.append(
            Reading(
                channel=name,
                block=block,
                statistic=evidence.statistic[index] if seen or name == "shape" else 0.0,
                strength=strength,
                warn_strength=warn_strength,
                threshold=page_threshold,
                warn_threshold=warn_threshold,
                p_value=_p_value(evidence.log_p[index]),
                n=n,
                effect=evidence.effect[index] if seen else 0.0,
                window_start=start,
                window_blocks=block - start + 1,
                onset=onset,
                page=page,
                warn=warn,
                active=bool(alarm_records[channel] > 0),
                recent_p=None if recent is None else _p_value(recent),
                reference=state.reference,
                onset_earliest=earliest,
                onset_latest=latest,
            )
        )
    experts = len(rule.cost)
    rested = block + 1 + settings.hold_off_blocks
    # Rows are copied, so that no segment's state keeps those of all others alive.
    following = FoldState(
        reference=state.reference,
        block=block + 1,
        windows=Windows.empty(rule.width) if paged else windows,
        page_from=rested if paged else state.page_from,
        warn_from=rested if warned else state.warn_from,
        page_wealth=np.full(experts, -inf) if paged else shape.wealth[0, index].copy(),
        warn_wealth=np.full(experts, -inf) if warned else shape.wealth[1, index].copy(),
        excursion=np.zeros(experts) if paged else shape.excursion[index].copy(),
        excursion_start=np.full(experts, block + 1) if paged else shape.excursion_start[index].copy(),
        alarm_records=alarm_records,
    )
    return following, tuple(readings)
