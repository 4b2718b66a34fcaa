"""The outlier-rate alarm: are there more strange records than the calibration says?

Counts of records with p <= alpha are summed over the same windows as in the drift rule (`detectors.windows`). Each
window's count is tested against the upper confidence bound of the calibrated rate (Clopper and Pearson, 1934) by the
exact upper tail of the binomial law, so that a window of any length may speak. The strength is log10(1 / (2 K p)),
with K the greatest number
of windows: an alarm at log10(T) comes once in T blocks at most, on average, while nothing changes. A page and a
warning are the same rule at two run lengths, and use up evidence as in `detectors.fold`.

scipy.special is used for the regularised incomplete beta function (betainc) and its inverse.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import log, log10

import numpy as np
import numpy.typing as npt

from detectors.baseline import Constants, payoff_inflation
from detectors.conformal import P_EDGES
from detectors.errors import InvalidInput
from detectors.payoffs import calibration_bound
from detectors.windows import Windows, most_windows

Floats = npt.NDArray[np.float64]

BOUND_FAILURE = 0.001  # one calibration set in a thousand has a true rate above the bound
LN10 = log(10.0)
GONE_P = 0.01  # an alarm is over when its recent window has a p-value above this
# The window that raised an alarm holds few counts and was a lucky one: one twice as long shows whether it persists.
RECENT_FACTOR = 2


class RateRule:
    """The calibrated rate and the run lengths, ready for `fold_rate`.

    Args:
        calibration: number of calibration scores behind the p-values.
        alpha: a record counts if its p-value is at most this; in (0, 1).
        page_run_length_blocks, warn_run_length_blocks: average number of blocks between two false pages (warnings).
        share: part of the deployment's one budget of false alarms that this alarm may spend.
        tolerance: rates up to (1 + tolerance) times the calibrated one count as no change.
        max_blocks: windows are pruned beyond this many blocks.
        hold_off_blocks: blocks after an alarm from which the next alarm takes no evidence.
        constants: from `detectors.baseline.measure`; with them, what sessions do to the rate is measured on the
            baseline's blocks. Without, records are taken to be independent.

    Raises:
        InvalidInput: values out of range.
    """

    def __init__(
        self,
        *,
        calibration: int,
        alpha: float,
        page_run_length_blocks: float,
        warn_run_length_blocks: float,
        share: float = 1.0,
        tolerance: float = 0.0,
        max_blocks: int = 8192,
        hold_off_blocks: int = 16,
        constants: Constants | None = None,
    ) -> None:
        if not (calibration >= 1 and 0 < alpha < 1 and 0 < share <= 1 and tolerance >= 0):
            raise InvalidInput(
                "The outlier-rate alarm needs calibration >= 1, 0 < alpha < 1, 0 < share <= 1 and tolerance >= 0, "
                f"but got {calibration}, {alpha}, {share} and {tolerance}.",
                hint="Change them.",
            )
        if not (page_run_length_blocks >= warn_run_length_blocks >= 1 and max_blocks >= 1 and hold_off_blocks >= 0):
            raise InvalidInput(
                "The outlier-rate alarm needs run lengths page >= warn >= 1, max_blocks >= 1 and hold_off_blocks >= 0.",
                hint="Change them.",
            )
        self.inflation, effective = 1.0, float(calibration)
        if constants is not None:
            counted = (alpha * (1.0 + 1e-12) >= P_EDGES).astype(np.float64)[None, :]
            factors, _ = payoff_inflation(constants["block_histogram"], counted)
            self.inflation = float(factors[0])
            effective /= self.inflation
        _, upper = calibration_bound(
            np.array([alpha]), size=float(calibration), effective=effective, failure=BOUND_FAILURE
        )
        self.expected, self.tolerance = alpha, tolerance
        self.bound = min(float(upper[0]) * (1.0 + tolerance), 1.0 - 1e-12)
        self.max_blocks, self.hold_off_blocks = max_blocks, hold_off_blocks
        self.price = -log10(2.0 * most_windows(max_blocks))
        self.page_threshold = log10(page_run_length_blocks / share)
        self.warn_threshold = log10(warn_run_length_blocks / share)

    def against(self, usual: float, *, records: float) -> RateRule:
        """The same rule where ``usual`` is the rate that the stream itself has had in so many records, if that is more.

        Its upper confidence bound takes the place of the calibrated one where it is larger: what the stream always had
        is no wave.
        """
        if not usual > self.expected or records < 1.0:
            return self
        effective = records / self.inflation
        _, upper = calibration_bound(np.array([usual]), size=records, effective=effective, failure=BOUND_FAILURE)
        following = copy.copy(self)
        following.expected = usual
        following.bound = max(self.bound, min(float(upper[0]) * (1.0 + self.tolerance), 1.0 - 1e-12))
        return following

    def log_p(self, counts: Floats, records: Floats) -> Floats:
        """Natural log of P(count or more of so many records) at the bounded rate, (m,); 0 up to the expected count.

        With an inflation v, n records are worth n / v independent ones.
        """
        from scipy.special import betainc

        result = np.zeros(len(counts))
        high = np.flatnonzero(counts > records * self.bound)
        k, n = counts[high] / self.inflation, records[high] / self.inflation
        tail = np.asarray(betainc(k, n - k + 1.0, self.bound))
        # Where floats end, Chernoff's bound (1952) goes on: it is larger than the tail, so still a p-value.
        share = np.minimum(k / np.maximum(n, 1e-300), 1.0)
        rest = np.maximum(1.0 - share, 1e-300)
        divergence = share * np.log(share / self.bound) + (1.0 - share) * np.log(rest / (1.0 - self.bound))
        result[high] = np.where(tail > 1e-280, np.log(np.maximum(tail, 1e-280)), -n * divergence)
        return np.minimum(result, 0.0)


@dataclass(frozen=True, slots=True)
class RateReading:
    """What the outlier-rate alarm says after one block.

    Attributes:
        block: index of the block just folded.
        rate: share of counted records in the strongest window.
        expected: the calibrated share.
        effect: rate / expected.
        count, n: counted records and all records in that window.
        strength: log10 of the blocks in which such evidence appears once by chance, over what came since the last page.
        warn_strength: the same over what came since the last warning.
        threshold, warn_threshold: strengths from which on it pages and warns.
        p_value: of the strongest window, at least 1e-300.
        window_start, window_blocks: index of that window's first block, and its length.
        onset: the same index where there is evidence, else None.
        page, warn: an alarm is raised at this block. A page is a warning, too.
        active: an alarm was raised, now or before, and the most recent records still show it.
    """

    block: int
    rate: float
    expected: float
    effect: float
    count: int
    n: int
    strength: float
    warn_strength: float
    threshold: float
    warn_threshold: float
    p_value: float
    window_start: int
    window_blocks: int
    onset: int | None
    page: bool
    warn: bool
    active: bool


@dataclass(frozen=True, slots=True)
class RateState:
    """Everything that the next step needs to know of the past; about 40 windows of one number.

    Attributes:
        block: index of the next block.
        windows: running counts since every start.
        page_from, warn_from: only windows that begin at this block or later may page (warn).
        alarm_records: records in the shortest window that raised an alarm, 0 once all are over.
    """

    block: int
    windows: Windows
    page_from: int
    warn_from: int
    alarm_records: int

    @classmethod
    def start(cls, rule: RateRule, *, block: int = 0) -> RateState:
        """The state before the first block, whose index is ``block``."""
        del rule  # the state of every rule begins alike; the argument keeps the call in step with FoldState.start
        return cls(block, Windows.empty(1), block, block, 0)

    def at(self, block: int) -> RateState:
        """The same state where the next block is another one: those between had no records."""
        return RateState(block, self.windows, self.page_from, self.warn_from, self.alarm_records)

    def to_bytes(self) -> bytes:
        """Bytes of a fixed layout: same state, same bytes, and `from_bytes` gives the same state to the last bit."""
        head = _HEAD.pack(_MAGIC, _VERSION, self.block, self.page_from, self.warn_from, self.alarm_records)
        return head + self.windows.pack()

    @classmethod
    def from_bytes(cls, blob: bytes) -> RateState:
        """The state that `to_bytes` wrote.

        Raises:
            InvalidInput: bytes that are cut off, or of another format.
        """
        hint = "Fold again from the first stored block: the summaries hold all that the state was made of."
        if len(blob) < _HEAD.size or not blob.startswith(_MAGIC):
            raise InvalidInput(f"These {len(blob)} bytes are no state of the outlier-rate alarm.", hint=hint)
        _, version, block, page_from, warn_from, alarm_records = _HEAD.unpack_from(blob)
        if version != _VERSION:
            raise InvalidInput(f"The outlier-rate state has format {version}, expected {_VERSION}.", hint=hint)
        try:
            windows = Windows.unpack(blob[_HEAD.size :])
        except InvalidInput as error:
            raise InvalidInput(f"The outlier-rate state is damaged: {error}", hint=hint) from error
        return cls(block, windows, page_from, warn_from, alarm_records)


_MAGIC = b"driftrate"
_VERSION = 1
_HEAD = struct.Struct("<9sHqqqq")


def fold_rate(
    state: RateState, n: int, count: int, rule: RateRule, *, blocks: int = 1
) -> tuple[RateState, RateReading]:
    """Advance by one block of ``n`` records, ``count`` of which have p <= alpha. Pure.

    Args:
        state: before block number ``state.block``.
        blocks: so many blocks are folded as one, the last of which is ``state.block``.

    Raises:
        InvalidInput: counts that cannot be.
    """
    ((following, reading),) = fold_rates([state], [n], [count], [rule], blocks=[blocks])
    assert reading is not None
    return following, reading


def fold_rates(
    states: Sequence[RateState],
    records: Sequence[int],
    counts: Sequence[int],
    rules: Sequence[RateRule],
    *,
    blocks: Sequence[int],
    heard: bool = False,
) -> list[tuple[RateState, RateReading | None]]:
    """Advance many segments by one block each; the same, to the last bit, as `fold_rate` on one after the other.

    Args:
        states, records, counts, rules, blocks: of each segment, see `fold_rate`.
        heard: give only readings that alarm, or whose alarm lasts; None in place of the others.

    Raises:
        InvalidInput: counts that cannot be.
    """
    pushed = []
    for state, n, count, rule, span in zip(states, records, counts, rules, blocks, strict=True):
        if not 0 <= count <= n:
            raise InvalidInput(f"A block of {n} records cannot hold {count} counted ones.", hint="Count records once.")
        added = np.array([float(count)])
        pushed.append(
            state.windows.push(added, n, block=state.block, max_blocks=rule.max_blocks, max_records=2**62, blocks=span)
        )
    # Mostly no window of a segment holds more than the bound: then none has a p-value below 1.
    lengths = [len(windows) for windows in pushed]
    owner = np.repeat(np.arange(len(pushed)), lengths)
    bounds = np.array([rule.bound for rule in rules])[owner]
    found = np.concatenate([windows.sums[:, 0] for windows in pushed])
    high = set(owner[found > np.concatenate([windows.records for windows in pushed]) * bounds].tolist())
    return [
        _decide(state, windows, rule, may_be=place in high, heard=heard)
        for place, (state, windows, rule) in enumerate(zip(states, pushed, rules, strict=True))
    ]


def _decide(
    state: RateState, windows: Windows, rule: RateRule, *, may_be: bool, heard: bool
) -> tuple[RateState, RateReading | None]:
    """Apply the thresholds to one segment.

    Args:
        may_be: some window holds more than the bound.
    """
    block = state.block
    least = least_warn = 0.0
    best = len(windows) - 1
    log_p = None
    if may_be:
        log_p = rule.log_p(windows.sums[:, 0], windows.records.astype(np.float64))
        may_page = windows.first_block >= state.page_from
        least = float(log_p[may_page].min(initial=0.0))
        least_warn = float(log_p[windows.first_block >= state.warn_from].min(initial=0.0))
        if least < 0.0:
            best = int(np.flatnonzero(may_page & (log_p == least))[0])
    strength = rule.price - least / LN10
    warn_strength = rule.price - least_warn / LN10
    page = strength >= rule.page_threshold
    warn = page or warn_strength >= rule.warn_threshold

    alarm_records = state.alarm_records
    if warn:
        # The fewest of the episode: what so few records showed, twice as many show again if it is still there.
        size = int(windows.records[best])
        alarm_records = min(size, alarm_records or size)
    elif alarm_records > 0:
        long_enough = np.flatnonzero(windows.records >= RECENT_FACTOR * alarm_records)
        whole_past = block - int(windows.first_block[0]) + 1 >= rule.max_blocks
        recent = int(long_enough[-1]) if len(long_enough) else 0 if whole_past else None
        if recent is not None and (log_p is None or log_p[recent] > log(GONE_P)):
            alarm_records = 0
    rearmed = block + 1 + rule.hold_off_blocks
    following = RateState(
        block=block + 1,
        windows=Windows.empty(1) if page else windows,
        page_from=rearmed if page else state.page_from,
        warn_from=rearmed if warn else state.warn_from,
        alarm_records=alarm_records,
    )
    if heard and not (warn or alarm_records > 0):
        return following, None
    size, count, start = int(windows.records[best]), int(windows.sums[best, 0]), int(windows.first_block[best])
    reading = RateReading(
        block=block,
        rate=count / size if size else 0.0,
        expected=rule.expected,
        effect=count / size / rule.expected if size else 0.0,
        count=count,
        n=size,
        strength=strength,
        warn_strength=warn_strength,
        threshold=rule.page_threshold,
        warn_threshold=rule.warn_threshold,
        p_value=float(np.exp(max(least, log(1e-300)))),
        window_start=start,
        window_blocks=block - start + 1,
        onset=start if least < 0.0 else None,
        page=page,
        warn=warn,
        active=alarm_records > 0,
    )
    return following, reading
