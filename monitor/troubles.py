"""What a worker itself has to tell people of: everything by which a model is watched less than it should be.

A source that fails or has gone silent, reading that stopped or falls behind, stalled partitions, gaps; records without
vectors, vectors that say nothing, times that cannot be.

Such incidents live by the clock and by what the worker sees, not by blocks: there may be no event time to go by. Of
several workers that see the same trouble, the database lets one tell, and that one says when it is over; where it died
meanwhile, the one that starts next does.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from connectors.database.rows import Checkpoint, IncidentRow, PartitionState, Silences
from connectors.database.store import Store
from connectors.notification import Notification
from connectors.records import Partition, RawBatch
from detectors.errors import StoreError
from monitor.canaries import EncoderChanged
from monitor.fraud_feedback import FraudChange
from monitor.incidents import OPERATIONAL
from monitor.log import event
from monitor.operations import (
    BLIND,
    clock_incident,
    embedder_incident,
    encoder_changed_incident,
    fraud_changed_incident,
    gap_incidents,
    lag_incident,
    resolved,
    silent_incident,
    source_incident,
    stalled_incident,
    vectors_incident,
    wave_incident,
)
from monitor.reader import Reader
from monitor.silence import DAY_S, REMEMBERED_DAYS, TAIL, silence_limit
from monitor.vector_watch import VectorWatch

log = logging.getLogger(__name__)

AGAIN_S = 60.0  # until a trouble that could not be told is told again, and until one that is gone is over
LASTS_S = 60.0  # so long must bad records, vectors and clocks be seen at every look before they are told
GROWTH_S = 300.0  # lag must have grown for so long before it is called growing
FEW = 20  # bad records up to this number are never told, whatever their share
CLOCK_S = 60.0  # clocks may differ by so much

# Reasons of dead letters that an embedder, a vector or a clock is to blame for.
OF_THE_EMBEDDER = frozenset({"embedder_failed", "bad_vector", "wrong_dimension"})
OF_VECTORS = frozenset({"zero_vector", "not_finite"})
OF_CLOCKS = frozenset({"bad_time", "time_past", "time_future"})
AHEAD_OF_BROKER = "ahead_of_broker"

Told = tuple[IncidentRow, Notification]


@dataclass(slots=True)
class Lag:
    """Whether records are read more slowly than they come: waiting for long, and for longer than minutes ago.

    Attributes:
        limit_s: records may wait for so long.
    """

    limit_s: float
    _lags: deque[tuple[float, float]] = field(default_factory=deque)  # (monotonic clock, seconds), one a second at most

    def grows(self, lag_s: float, clock_s: float) -> bool:
        """Take note of the lag in seconds; whether it is above the limit, and more than `GROWTH_S` ago."""
        if not self._lags or clock_s - self._lags[-1][0] >= 1.0:
            self._lags.append((clock_s, lag_s))
        while len(self._lags) > 1 and clock_s - self._lags[1][0] >= GROWTH_S:
            self._lags.popleft()
        then_s, before_s = self._lags[0]
        return lag_s > self.limit_s and clock_s - then_s >= GROWTH_S and lag_s > before_s


class Recent:
    """What was wrong with the last records, by reason.

    Args:
        records: so many are remembered; more where they came at once.
    """

    def __init__(self, records: int) -> None:
        self._size = records
        self._steps: deque[tuple[int, Counter[str]]] = deque()
        self.records = 0
        self.bad: Counter[str] = Counter()

    def push(self, records: int, bad: Mapping[str, int]) -> None:
        """Take note of records, of which some are bad."""
        if records == 0:
            return
        self._steps.append((records, Counter(bad)))
        self.records += records
        self.bad.update(bad)
        while self.records - self._steps[0][0] >= self._size:
            gone, reasons = self._steps.popleft()
            self.records -= gone
            self.bad.subtract(reasons)

    @property
    def full(self) -> bool:
        """It holds as many as it should."""
        return self.records >= self._size

    def of(self, reasons: frozenset[str]) -> dict[str, int]:
        """How many have one of these reasons, by reason; those that none has are left out."""
        return {reason: count for reason in sorted(reasons) if (count := self.bad[reason]) > 0}


class Troubles:
    """The incidents of one worker's own.

    Args:
        model: the model's name.
        sinks: the names of all sinks.
        after_s: a source that may mend by itself is told of when it has failed for so long; records that wait longer,
            and wait longer and longer, are told, and no shorter silence ever is.
        page_every_days: in such a time a silence may be told that was none.
        most_bad: a larger share of records that are bad for one reason is told.
        live: records are expected for ever.
    """

    def __init__(
        self,
        model: str,
        store: Store,
        *,
        sinks: Sequence[str],
        after_s: float,
        page_every_days: float = 90.0,
        most_bad: float = 0.05,
        live: bool = True,
    ) -> None:
        self._model = model
        self._store = store
        self._sinks = tuple(sinks)
        self._after_s = after_s
        self._every_s = page_every_days * DAY_S
        self._most_bad = most_bad
        self._live = live
        self._lag = Lag(after_s)
        self._recent = Recent(math.ceil(FEW / most_bad))
        self._reads_since: float | None = None  # monotonic clock since which the source has answered
        self._limit: tuple[int, float, tuple[Silences, Silences]] | None = None  # since when silent, and the limit
        self._ahead_s = 0.0  # of the brokers' clock, as the last records show it
        self._seen: dict[str, float] = {}  # since when a kind that must last is seen
        self._told: dict[str, IncidentRow] = {}  # open ones, by kind
        self._again: dict[str, float] = {}  # monotonic clock before which a kind is not tried again
        self._well: dict[str, float] = {}  # since when a kind that was told is not seen any more

    @property
    def open(self) -> list[IncidentRow]:
        """Those that this worker told of, and that are not over."""
        return list(self._told.values())

    @property
    def blind(self) -> list[str]:
        """Kinds of those by which what is said of the model cannot be relied on."""
        return sorted(BLIND & self._told.keys())

    def take_over(self, rows: Sequence[IncidentRow]) -> None:
        """Those that were left open by whoever ran before; this worker says when they are over."""
        self._told |= {row.kind: row for row in rows if row.kind in OPERATIONAL}

    def source(self, reader: Reader, now_ms: int, clock_s: float) -> None:
        """After every poll: whether the source has failed for too long, or does no longer."""
        since = reader.failing_since
        if since is None:
            self._over("source", now_ms, clock_s)
        elif reader.lasting or clock_s - since >= self._after_s:
            began_ms = now_ms - round((clock_s - since) * 1000)
            told = source_incident(
                self._model, problem=reader.failure, lasting=reader.lasting, since_ms=began_ms, now_ms=now_ms
            )
            self._tell(told, clock_s)

    def wave(self, why: str, now_ms: int, clock_s: float) -> None:
        """Reading has stopped, because too many records cannot be used."""
        self._tell(wave_incident(self._model, problem=why, now_ms=now_ms), clock_s)

    def no_wave(self, now_ms: int, clock_s: float) -> None:
        """So many records were read that a wave would have been seen."""
        self._over("dead_letter_wave", now_ms, clock_s)

    def encoder_changed(self, error: EncoderChanged, now_ms: int, clock_s: float) -> None:
        """Reading waits, because an encoder makes other vectors than those of the reference."""
        change = error.check.change
        assert change is not None
        told = encoder_changed_incident(
            self._model,
            space=error.space,
            cause=change.cause,
            problem=change.text,
            changed=change.changed,
            canaries=change.canaries,
            now_ms=now_ms,
        )
        self._tell(told, clock_s)

    def encoder_right(self, now_ms: int, clock_s: float) -> None:
        """After every poll: the encoders are those of the references, as far as canaries tell."""
        self._over("encoder_changed", now_ms, clock_s)

    def stalled(
        self, partitions: frozenset[Partition], states: Sequence[PartitionState], now_ms: int, clock_s: float
    ) -> None:
        """After every fold: which partitions stand still, so that blocks are closed without them.

        Where all do, nothing is closed: that is the trouble of a source.
        """
        still = [state for state in states if state.partition in partitions]
        if not still:
            self._over("stalled", now_ms, clock_s)
        elif len(still) < len(states):
            places = {state.partition: state.next_offset for state in still}
            since_ms = min(state.advanced_ms for state in still)
            self._tell(stalled_incident(self._model, places, since_ms=since_ms, now_ms=now_ms), clock_s)

    def silent(self, reader: Reader, states: Sequence[PartitionState], now_ms: int, clock_s: float) -> None:
        """After every fold: whether nothing has come for longer than the stream's past makes likely.

        By what the database holds of all partitions, so that it makes no difference who reads them, or whether driftd
        was started anew. Where something hinders reading, that is the trouble, and silence proves nothing.

        Args:
            states: of every partition that was ever read.
        """
        if not self._live or not states:
            return
        last_ms = max(state.advanced_ms for state in states)
        told = self._told.get("silent")
        if told is not None and last_ms > told.onset_ms:
            self._over("silent", now_ms, clock_s, after_s=0.0)  # records are there: no reason to wait
            return
        reads = reader.failing_since is None and reader.source.state().connected
        at_end = reads and all(state.idle for state in states)
        if not at_end:
            self._reads_since = None
            return
        if self._reads_since is None:
            self._reads_since = clock_s
        silence_s = (now_ms - last_ms) / 1000
        # What waited while nobody read comes in this time, at the latest.
        if told is not None or min(silence_s, clock_s - self._reads_since) < self._after_s:
            return
        if self._limit is None or self._limit[0] != last_ms:
            pasts = self._store.silences(self._model, days=REMEMBERED_DAYS, most=TAIL + 1)
            self._limit = last_ms, silence_limit(pasts, every_s=self._every_s, wait_s=self._after_s), pasts
        _, limit_s, pasts = self._limit
        if silence_s > limit_s:
            longest_s = max((past.longest_s[0] for past in pasts if past.longest_s), default=0.0)
            span_s = max(past.span_s for past in pasts)
            incident = silent_incident(
                self._model,
                since_ms=last_ms,
                now_ms=now_ms,
                limit_s=limit_s,
                longest_s=longest_s,
                span_s=span_s,
                every_s=self._every_s,
            )
            self._tell(incident, clock_s)

    def fraud_changed(self, change: FraudChange | None, now_ms: int, clock_s: float) -> None:
        """After every fold: whether the latest answers of people showed that fraud itself has changed.

        Args:
            change: None if they did not.
        """
        if change is None:
            self._over("fraud_changed", now_ms, clock_s)
            return
        incident = fraud_changed_incident(
            self._model,
            version=change.version,
            answers=change.found.answers,
            foretold=change.found.foretold,
            found=change.found.found,
            since_ms=change.time_ms,
            now_ms=now_ms,
        )
        self._tell(incident, clock_s)

    def lag(self, lag_s: float, records: int, now_ms: int, clock_s: float) -> None:
        """After every poll: whether what waits grows.

        Args:
            lag_s: age of the last record that was read, where more wait; the oldest partition's that is not held back.
            records: how many wait.
        """
        if self._lag.grows(lag_s, clock_s):
            since_ms = now_ms - round(lag_s * 1000)
            incident = lag_incident(
                self._model,
                lag_s=lag_s,
                records=records,
                limit_s=self._lag.limit_s,
                since_ms=since_ms,
                now_ms=now_ms,
            )
            self._tell(incident, clock_s)
        elif lag_s <= self._lag.limit_s:
            self._over("lag", now_ms, clock_s)

    def records(
        self,
        records: int,
        dead: Mapping[str, int],
        *,
        ahead: int,
        zeros: Mapping[str, int],
        watches: Mapping[str, VectorWatch],
        now_ms: int,
        clock_s: float,
    ) -> None:
        """After records were counted: whether too many have no vector, one that says nothing, or a wrong time.

        Args:
            records: how many.
            dead: of them, those that cannot be used, by reason.
            ahead: those that are dated after the broker got them.
            zeros: zero vectors among the others, by space.
            watches: what is known of the vectors of each space.
        """
        bad = Counter(dead)
        bad[AHEAD_OF_BROKER] = ahead
        bad.update({f"zero {space}": count for space, count in zeros.items()})
        recent = self._recent
        recent.push(records, bad)
        self._judge("embedder", self._embedder, recent.full, now_ms, clock_s)
        self._judge(
            "vectors", lambda since_ms, now: self._vectors(watches, since_ms, now), recent.full, now_ms, clock_s
        )

    def clocks(self, batches: Sequence[RawBatch], now_ms: int, clock_s: float) -> None:
        """After every poll: whether the brokers' clock and ours agree, and the events' times can be.

        Brokers that are behind cannot be told from records that waited.
        """
        filled = [batch.timestamps_ms for batch in batches if len(batch)]
        if filled:
            # Of most of them: one producer among many may be wrong.
            self._ahead_s = max(0.0, (max(float(np.median(times)) for times in filled) - now_ms) / 1000)
        self._judge("clock", self._clock, self._recent.full, now_ms, clock_s)

    def _embedder(self, since_ms: int, now_ms: int) -> Told | None:
        reasons = self._recent.of(OF_THE_EMBEDDER)
        if not self._too_many(sum(reasons.values())):
            return None
        return embedder_incident(
            self._model, reasons=reasons, records=self._recent.records, since_ms=since_ms, now_ms=now_ms
        )

    def _vectors(self, watches: Mapping[str, VectorWatch], since_ms: int, now_ms: int) -> Told | None:
        for space, watch in watches.items():
            if watch.same >= watch.too_many_same:
                return vectors_incident(
                    self._model,
                    space=space,
                    what="constant",
                    count=watch.same,
                    records=watch.same,
                    since_ms=since_ms,
                    now_ms=now_ms,
                )
        # Where zero vectors are refused, the reference holds none; elsewhere it says how many are usual.
        found = {"": (sum(self._recent.of(OF_VECTORS).values()), 0.0)}
        found |= {space: (self._recent.bad[f"zero {space}"], watch.usual_zeros) for space, watch in watches.items()}
        for space, (count, usual) in found.items():
            if self._too_many(count, usual=usual):
                return vectors_incident(
                    self._model,
                    space=space,
                    what="zero",
                    count=count,
                    records=self._recent.records,
                    since_ms=since_ms,
                    now_ms=now_ms,
                )
        return None

    def _clock(self, since_ms: int, now_ms: int) -> Told | None:
        if self._ahead_s > CLOCK_S:
            return clock_incident(self._model, ahead_s=self._ahead_s, since_ms=since_ms, now_ms=now_ms)
        reasons = self._recent.of(OF_CLOCKS | {AHEAD_OF_BROKER})
        if not self._too_many(sum(reasons.values())):
            return None
        return clock_incident(
            self._model, reasons=reasons, records=self._recent.records, since_ms=since_ms, now_ms=now_ms
        )

    def _too_many(self, count: int, *, usual: float = 0.0) -> bool:
        return count > FEW and count > (usual + self._most_bad) * self._recent.records

    def _judge(
        self, kind: str, look: Callable[[int, int], Told | None], enough: bool, now_ms: int, clock_s: float
    ) -> None:
        """Tell what is seen at every look for `LASTS_S`. It is over when it is not seen in enough records."""
        since_s = self._seen.get(kind, clock_s)
        told = look(now_ms - round((clock_s - since_s) * 1000), now_ms)
        if told is not None:
            self._seen[kind] = since_s
            if clock_s - since_s >= LASTS_S:
                self._tell(told, clock_s)
            return
        self._seen.pop(kind, None)
        if enough:
            self._over(kind, now_ms, clock_s)

    def with_gaps(self, checkpoint: Checkpoint, now_ms: int) -> Checkpoint:
        """The checkpoint, with the incidents of its gaps."""
        if not checkpoint.gaps:
            return checkpoint
        newest = {advance.partition: advance.max_time_ms for advance in checkpoint.advances}
        dated = []
        for gap in checkpoint.gaps:
            log.error(event("records were lost before they could be read", model=self._model, reason=gap.detail))
            time_ms = newest.get(gap.partition, -1)
            dated.append((gap, time_ms if time_ms >= 0 else now_ms))
        told = gap_incidents(self._model, dated)
        return replace(
            checkpoint,
            incidents=[*checkpoint.incidents, *(row for row, _ in told)],
            outbox=[*checkpoint.outbox, *(pair for _, notice in told for pair in self._pairs(notice))],
        )

    def _tell(self, told: tuple[IncidentRow, Notification], clock_s: float) -> None:
        row, notice = told
        self._well.pop(row.kind, None)
        if row.kind in self._told or clock_s < self._again.get(row.kind, clock_s):
            return
        self._again[row.kind] = clock_s + AGAIN_S
        try:
            if self._store.open_incident(row, self._pairs(notice)):
                self._told[row.kind] = row
                del self._again[row.kind]
        except StoreError as error:  # the work goes on; it is told when the database answers
            log.warning(event("incident waits for the database", kind=row.kind, reason=str(error)))

    def _over(self, kind: str, now_ms: int, clock_s: float, *, after_s: float = AGAIN_S) -> None:
        row = self._told.get(kind)
        # A broker that comes and goes must not page each time.
        well_since = self._well.setdefault(kind, clock_s)
        if row is None or clock_s < max(well_since + after_s, self._again.get(kind, clock_s)):
            return
        over, notice = resolved(row, now_ms)
        try:
            self._store.resolve_incident(over, self._pairs(notice))
        except StoreError as error:
            self._again[kind] = clock_s + AGAIN_S
            log.warning(event("incident waits for the database", kind=kind, reason=str(error)))
            return
        del self._told[kind]

    def _pairs(self, notice: Notification) -> list[tuple[str, Notification]]:
        return [(sink, notice) for sink in self._sinks]
