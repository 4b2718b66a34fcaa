"""The fold of one model: closes blocks, advances the alarms, and turns their readings into incidents and notifications.

It is one logical sequence over the closed blocks, whoever runs it: reading the open blocks and writing the result are
bound together by a compare-and-set on the fold's version. Everything is a function of the blocks' summaries, so that
the same records give the same readings, incidents and notification ids, live or again.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import msgspec
import numpy as np

from connectors.database import rows
from connectors.database.folding import Fold
from connectors.database.rows import (
    BlockStatRow,
    Closure,
    DeploymentRow,
    FoldResult,
    FraudHit,
    IncidentRow,
    PartitionState,
    ReadingRow,
    SaidLate,
    SummaryDelta,
    VerdictRow,
)
from connectors.database.store import Store
from connectors.notification import Notification
from connectors.records import Partition
from detectors.conformal import P_EDGES
from detectors.errors import OwnershipLost, StoreError
from detectors.fold import FoldState, Reading, Rule, fold_many
from detectors.rate import RateReading, RateRule, RateState, fold_rates
from detectors.reference import Reference
from detectors.segments import constants_of, measured_segments
from detectors.summary import BlockSummary, score_at_share
from monitor import encoder_jumps, verdicts
from monitor.ageing import age_rules
from monitor.block_stats import block_stats
from monitor.budget import RATE_SHARE, fold_settings, fraud_share, segment_shares, why_only_warns
from monitor.causes import ClosedBlocks, Key, cause_of
from monitor.deployments import MOST_DEPLOYMENTS, present, take_in
from monitor.encoder_jumps import ENCODER, EncoderJumps, SegmentLook, Watched
from monitor.evidence import (
    Evidence,
    dead_letter_evidence,
    drift_evidence,
    flood_evidence,
    fraud_wave_evidence,
    rate_evidence,
)
from monitor.fraud_alerts import STATE, FraudAlerts, FraudReading
from monitor.fraud_build import FraudParts
from monitor.fraud_settings import FRAUD_SPACE, FraudSettings
from monitor.fraud_waves import hits_of
from monitor.fraud_wording import FLOOD, WAVE
from monitor.history_range import HistoryRange, LiveEdge
from monitor.incidents import CauseOf, IncidentPolicy, advance
from monitor.opinions import Opinions, OpinionStream, opinion_streams
from monitor.pipeline import EVERYTHING, Space
from monitor.record_counts import FraudCounts, RecordCounts
from monitor.settings import ModelSettings, Settings
from monitor.verdicts import SaidAnswers, Traffic, TrueAnswers, Verdicts

log = logging.getLogger(__name__)

BLOCKS_AT_A_TIME = 256  # of one transaction; bounds the memory of a fold that has much to catch up with
DEAD_LETTER_BLOCKS = 6  # dead letters are judged over so many blocks
# Flags come from the distribution of earlier scores once those say more than the calibration does.
# The bins of p-values up to 2^-10, about one in a thousand: what the outlier rate counts.
_CANDIDATE_BINS = int(np.searchsorted(P_EDGES, 2.0**-10)) + 1
BUDGET_RECORDS = 50  # over the budget: 50,000 records for a budget of one in a thousand


class Past(TrueAnswers, SaidAnswers, Protocol):
    """What judging reads beside the blocks themselves; `connectors.database.folding.Fold` is one."""

    def states(self) -> list[rows.FoldState]:
        """The states of the alarms; of several of one (space, segment), the last one counts."""

    def fraud_hits(self, space: str, block: int, at_least: float, most: int) -> list[FraudHit]:
        """The candidates of one block with such a surprise, the most surprising first; at most so many."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """What some blocks say of some segments.

    Attributes:
        evidence: by block.
        states: of the alarms after them.
        readings, flag_at: see `FoldResult`; empty where they were not wanted.
        whole: of each space and block, what the verdict needs of its whole traffic.
        looks: by block, those at segments of spaces of ready vectors that end with it.
    """

    evidence: dict[int, list[Evidence]]
    states: list[rows.FoldState]
    readings: list[ReadingRow]
    flag_at: dict[tuple[str, int], float]
    whole: dict[tuple[str, int], Traffic]
    looks: dict[int, list[SegmentLook]]


class _SegmentState(msgspec.Struct, frozen=True):
    """What the alarms of one (space, segment) know of the past."""

    drift: bytes
    rate: bytes
    scores: bytes  # int64 (1024,), histogram of earlier scores; only of the whole traffic
    opinions: dict[str, bytes] = {}  # states of the second opinions, by channel; only of the whole traffic
    look: bytes = b""  # blocks that are no look at the encoder yet; only of ready vectors


@dataclass(slots=True)
class Outcome:
    """What a fold did, for the metrics.

    Attributes:
        late: records that came after their block was closed by the wall clock.
        lost: another worker folded at the same time, so that this one's work was thrown away.
        stalled: partitions that have stood still for so long that blocks were closed without them.
        partitions: how far every partition of what is read now is, as the fold found it.
        flagged: outliers, and fraud alerts, by space.
        unlisted: fraud hits beyond the budget of alerts.
    """

    blocks: int = 0
    late: int = 0
    lost: bool = False
    stalled: frozenset[Partition] = frozenset()
    partitions: list[PartitionState] = field(default_factory=list)
    flagged: Counter[str] = field(default_factory=Counter)
    unlisted: int = 0
    readings: list[ReadingRow] = field(default_factory=list)
    incidents: list[IncidentRow] = field(default_factory=list)
    stats: list[BlockStatRow] = field(default_factory=list)
    next_block: int | None = None


@dataclass(frozen=True, slots=True)
class _Alarm:
    """The rules of one (space, segment). ``only_warns`` says why it may not page, "" if it may."""

    space: Space
    segment: str
    drift: Rule
    rate: RateRule
    only_warns: str
    opinions: tuple[OpinionStream, ...] = ()
    watched: Watched | None = None  # of ready vectors: did their encoder change?


@dataclass(frozen=True, slots=True)
class _FraudAlarm:
    """The rule of waves of fraud, with what fraud scores were fitted on."""

    parts: FraudParts
    rule: RateRule
    only_warns: str


class Folder:
    """Folds the closed blocks of one model.

    Args:
        model: the model's name.
        settings: all settings; the alarm budget is divided over all models.
        spaces: the spaces with their references.
        fraud: what fraud scores were fitted on; None where records are not scored as fraud.
        sinks: the names of those that are told; None: all.
        history: the stretch of history whose blocks are folded; None: live records.
        answers: where true answers come from; None: from where the blocks are.
    """

    def __init__(
        self,
        model: str,
        settings: Settings,
        *,
        spaces: Sequence[Space],
        fraud: FraudParts | None = None,
        sinks: Sequence[str] | None = None,
        history: HistoryRange | None = None,
        answers: TrueAnswers | None = None,
    ) -> None:
        self.model = model
        self._settings = settings.models[model]
        self._block_ms = round(self._settings.drift.block * 1000)
        self._age_rules = age_rules(settings, model)
        self._sinks = tuple(settings.sinks if sinks is None else sinks)
        self._history = history
        self._answers = answers
        self._policy = IncidentPolicy(
            resolve_after_ms=round(settings.incidents.resolve_after * 1000),
            cooldown_ms=round(settings.incidents.cooldown * 1000),
            repeat_interval_ms=round(settings.notify.repeat_interval * 1000),
            min_duration_ms=round(settings.incidents.min_duration * 1000),
            deploy_grace_ms=round(settings.incidents.deploy_grace * 1000),
            harm=self._settings.harm,
        )
        self._alarms: dict[tuple[str, str], _Alarm] = {}
        for space in spaces:
            shares = segment_shares(settings, model, space.name, alarmed_segments(space.reference, self._settings))
            for segment, share in shares.items():
                self._alarms[space.name, segment] = self._alarm(settings, space, segment, share)
        self._fraud = None if fraud is None else self._fraud_alarm(settings, fraud)
        self._verdict = Verdicts(
            model, settings, spaces=spaces, only_warns={s.name: self.only_warns(s.name) for s in spaces}
        )
        self._stood: dict[Partition, tuple[int, float]] = {}  # where a partition stands, and since when, monotonic

    def _alarm(self, settings: Settings, space: Space, segment: str, share: float) -> _Alarm:
        constants = constants_of(space.reference.drift, segment)
        rule = fold_settings(settings, self.model, share * (1.0 - RATE_SHARE))
        rate = RateRule(
            calibration=int(np.asarray(constants["calibration"], dtype=np.float64)[0]),
            alpha=float(P_EDGES[_CANDIDATE_BINS - 1]),
            page_run_length_blocks=rule.page_run_length_blocks,
            warn_run_length_blocks=rule.warn_run_length_blocks,
            share=share * RATE_SHARE,
            tolerance=self._settings.outliers.tolerance,
            constants=constants,
        )
        drift = Rule(constants, rule)
        names = self._settings.drift.second_opinions if segment == EVERYTHING else ()
        only_warns = why_only_warns(constants)
        watched = Watched(space, segment, only_warns) if space.holds_ready_vectors else None
        return _Alarm(space, segment, drift, rate, only_warns, opinion_streams(space, names, drift), watched)

    def _fraud_alarm(self, settings: Settings, parts: FraudParts) -> _FraudAlarm | None:
        chosen = self._settings.fraud
        if chosen is None:
            return None
        share = fraud_share(settings, self.model)
        drift = fold_settings(settings, self.model, share)
        rule = RateRule(
            calibration=max(len(parts.baseline) // 2, 1),  # p-values rank among every second record
            alpha=chosen.alpha,
            page_run_length_blocks=drift.page_run_length_blocks,
            warn_run_length_blocks=drift.warn_run_length_blocks,
            share=share,
            tolerance=chosen.alerts.tolerance,
            constants=parts.reference.drift,
        )
        return _FraudAlarm(parts, rule, why_only_warns(constants_of(parts.reference.drift, EVERYTHING)))

    def only_warns(self, space: str) -> str:
        """Why the alarm of a space's whole traffic may not page, in words; "" if it may."""
        return self._alarms[space, EVERYTHING].only_warns

    def step(
        self, store: Store, now_ms: int, clock_s: float = 0.0, *, partitions: frozenset[Partition] = frozenset()
    ) -> Outcome:
        """Close and fold what can be closed.

        Args:
            now_ms: wall clock, stored with a closure by the wall clock.
            clock_s: monotonic clock, seconds: says how long a partition has stood still.
            partitions: every partition of the topic, whoever reads it; a block waits for all of them.

        Raises:
            StoreError: nothing of the refused transaction was written.
        """
        outcome = Outcome()
        while self._step(store, now_ms, clock_s, partitions, outcome, everything=False):
            pass
        return outcome

    def close_all(self, store: Store, now_ms: int) -> Outcome:
        """A bounded source is at its end: close every block that has records, or that history may close."""
        outcome = Outcome()
        while self._step(store, now_ms, 0.0, frozenset(), outcome, everything=True):
            pass
        return outcome

    def _step(
        self,
        store: Store,
        now_ms: int,
        clock_s: float,
        partitions: frozenset[Partition],
        outcome: Outcome,
        *,
        everything: bool,
    ) -> bool:
        """One transaction. Returns whether there is more to do at once."""
        with store.begin_fold(self.model) as step:
            outcome.next_block = step.next_block
            topics = {partition.topic for partition in partitions}  # the model may have read another one before
            outcome.partitions = [state for state in step.partitions if state.partition.topic in topics]
            late = step.late_deltas()
            first = step.first_pending_block()
            if self._history is not None:
                bound, closure = self._bound_of_history(self._history, step, now_ms, finished=everything)
            elif everything:
                bound, closure = self._end(step.partitions, now_ms)
            else:
                outcome.stalled = self._stalled(outcome.partitions, clock_s)
                bound, closure = self._bound(outcome.partitions, partitions, outcome.stalled, now_ms)
            if first is None or bound is None or first >= bound:
                if late:
                    with contextlib.suppress(OwnershipLost):  # another worker counts them
                        step.commit(
                            FoldResult(
                                *(step.next_block or 0, [], [], [], [], []),
                                closed_late=_late(late),
                                said_late=self._said_late(late),
                            )
                        )
                        outcome.late += _late(late).total()
                return False
            below = min(bound, first + BLOCKS_AT_A_TIME)
            incidents = step.incidents(resolved_since_ms=first * self._block_ms - self._policy.cooldown_ms)
            result, unlisted = self._fold(step, incidents, first, below)
            result = replace(
                result,
                closed_late=Counter(result.closed_late) + _late(late),
                said_late=[*result.said_late, *self._said_late(late)],
            )
            if closure is not None:
                result = replace(result, closure=replace(closure, block=below))
            try:
                outcome.flagged += step.commit(result)
            except OwnershipLost:
                outcome.lost = True  # another worker did this step, and does the next
                return False
            outcome.unlisted += unlisted
            outcome.late += sum(result.closed_late.values())
            outcome.blocks += below - first
            outcome.next_block = below
            outcome.readings += result.readings
            outcome.incidents += result.incidents
            outcome.stats += result.stats
            return True

    def _stalled(self, states: Sequence[PartitionState], clock_s: float) -> frozenset[Partition]:
        """The partitions that have not moved for ``drift.wait``, though they were not read to their end.

        By what this process saw itself: after a night in which nobody read, all partitions look old.
        """
        for state in states:
            offset, _ = self._stood.get(state.partition, (-1, 0.0))
            if offset != state.next_offset or state.idle:
                self._stood[state.partition] = (state.next_offset, clock_s)
        wait_s = self._settings.drift.wait
        return frozenset(state.partition for state in states if clock_s - self._stood[state.partition][1] >= wait_s)

    def _bound(
        self,
        states: Sequence[PartitionState],
        partitions: frozenset[Partition],
        stalled: frozenset[Partition],
        now_ms: int,
    ) -> tuple[int | None, Closure | None]:
        """The block below which all may be closed, and the closure to store if event time alone would not close it.

        Every partition holds the blocks open that it has not passed, but for those that are idle (silent and read to
        their end, as their owner says) and those that have stalled.
        """
        holding = [state for state in states if not state.idle and state.partition not in stalled]
        unread = partitions - {state.partition for state in states}
        if unread or any(state.max_time_ms < 0 for state in holding):
            return None, None  # whoever gets it next tells where it begins, and whether it is empty
        dated = [state for state in states if state.max_time_ms >= 0]
        if not dated:
            return None, None
        offsets = {state.partition: state.next_offset for state in states}
        if not holding:
            # Nobody waits for a stalled partition but the idle ones: where all stand still, there is nothing to close.
            ended = [state.max_time_ms for state in dated if state.idle]
            if not ended:
                return None, None
            newest = max(ended) // self._block_ms + 1
            return newest, Closure(newest, "stalled" if stalled else "idle", offsets, now_ms)
        bound = self._passed(holding)
        if bound <= self._passed(dated):
            return bound, None
        return bound, Closure(bound, "stalled" if stalled else "idle", offsets, now_ms)

    def _bound_of_history(
        self, history: HistoryRange, step: Fold, now_ms: int, *, finished: bool
    ) -> tuple[int | None, Closure | None]:
        """The same for a stretch of history, which is read by one process and has an end."""
        bound = history.closed_below(
            step.partitions,
            finished=finished,
            lateness_ms=self._settings.lateness_ms,
            block_ms=self._block_ms,
            live=_live_edge(step) if history.lane else None,
        )
        dated = [state for state in step.partitions if state.max_time_ms >= 0]
        if bound is None or history.lane or not dated or bound <= self._passed(dated):
            return bound, None
        return bound, Closure(bound, "end", {state.partition: state.next_offset for state in step.partitions}, now_ms)

    def _passed(self, states: Sequence[PartitionState]) -> int:
        """The block below which all of these partitions are over."""
        return min((state.max_time_ms - self._settings.lateness_ms) // self._block_ms for state in states)

    def _end(self, states: Sequence[PartitionState], now_ms: int) -> tuple[int | None, Closure | None]:
        """The block after the last, when a bounded source is at its end."""
        newest = max((state.max_time_ms for state in states), default=-1)
        if newest < 0:
            return None, None
        bound = newest // self._block_ms + 1
        return bound, Closure(bound, "end", {state.partition: state.next_offset for state in states}, now_ms)

    def _fold(
        self,
        step: Fold,
        incidents: Sequence[IncidentRow],
        first: int,
        below: int,
    ) -> tuple[FoldResult, int]:
        """What the step writes, and how many fraud hits are beyond the budget of alerts."""
        history = self._history
        deltas = step.deltas(below)
        cut = [] if history is None else [delta for delta in deltas if history.came_late(delta)]
        if history is not None:
            # Blocks in which live records lie, too, are judged with both.
            step.leave_out(cut, self._said_late(cut))
            before = step.closed_before(first, below)
            if any(delta.blocks > 1 for delta in before):
                raise StoreError(
                    f"Blocks of {self.model} were added up while history came to them.",
                    hint="Nothing was written. Type the same command again: it ends before these blocks.",
                )
            deltas = [delta for delta in deltas if not history.came_late(delta)] + before
        counts, merged = _merge(deltas)
        result, unlisted = self.judge(
            step, ClosedBlocks(step, merged, rules=self._age_rules), counts, merged, incidents, below
        )
        kept = [
            SummaryDelta(space, segment, block, version, Partition("", -1), 0, summary.to_bytes())
            for (space, segment, block, version), summary in sorted(merged.items(), key=lambda item: item[0])
        ]
        kept += [
            SummaryDelta("", EVERYTHING, block, 0, Partition("", -1), 0, count.to_bytes())
            for block, count in sorted(counts.items())
        ]
        stats = list(block_stats(merged, counts, block_ms=self._block_ms))
        result = replace(result, merged=kept, stats=stats, closed_late=_late(cut), said_late=self._said_late(cut))
        if history is not None and history.live_from_block is not None:
            result = _without_told(result, {row.id for row in incidents}, history.live_from_block)
        return result, unlisted

    def _said_late(self, came_late: Sequence[SummaryDelta]) -> list[SaidLate]:
        """The records of these deltas, where records say themselves what is true."""
        if self._settings.record.label is None:
            return []
        firsts: dict[tuple[int, Partition], int] = {}
        for delta in came_late:
            # Below zero lies what came without a record, and what is left of a topic that was made anew.
            if delta.space == "" and delta.first_offset >= 0:
                place = delta.block, delta.partition
                firsts[place] = min(delta.first_offset, firsts.get(place, delta.first_offset))
        return [
            SaidLate(partition, first, block * self._block_ms, (block + 1) * self._block_ms)
            for (block, partition), first in sorted(firsts.items())
        ]

    def judge(
        self,
        past: Past,
        causes: ClosedBlocks | None,
        counts: Mapping[int, RecordCounts],
        merged: Mapping[Key, BlockSummary],
        incidents: Sequence[IncidentRow],
        below: int,
        *,
        widths: Mapping[Key, int] | None = None,
        bare: bool = False,
        elsewhere: Sequence[Weighed] = (),
    ) -> tuple[FoldResult, int]:
        """Fold blocks, stored ones or new ones. Writes nothing.

        Args:
            past: the states as the step before left them, and the fraud hits of the blocks.
            causes: where incidents get their causes from; None: from nowhere, and they have none.
            counts: of each block.
            merged: the summaries of these blocks, by space, segment, block and reference.
            incidents: the open ones, and those resolved within the cooldown.
            below: the block after the last.
            widths: how many blocks a summary stands for, if more than one: the last of them is its block. Of counts,
                the key is ("", "", block, 0).
            bare: what people are told is all that is wanted: no readings, and no levels of flags.
            elsewhere: what other processes found of segments that are not in ``merged``, and whose states they keep.

        Returns:
            What came of it, but for summaries and statistics of blocks; and how many fraud hits are beyond the budget.
        """
        current = {(state.space, state.segment): state for state in past.states()}
        wide = {} if widths is None else widths
        weighed = self.weigh(current, merged, widths=wide, bare=bare)
        readings, evidence, changed = weighed.readings, weighed.evidence, weighed.states
        whole, looks = dict(weighed.whole), weighed.looks
        for other in elsewhere:
            whole |= other.whole
            for block, found in other.looks.items():
                looks.setdefault(block, []).extend(found)
            for block, entries in other.evidence.items():
                evidence.setdefault(block, []).extend(entries)
        window = _WholeState.restored(current.get(("", EVERYTHING)))
        before = window.deployed(block_ms=self._block_ms)
        deployments: list[DeploymentRow] = []
        first = min(counts, default=0)
        first -= wide.get(("", EVERYTHING, first, 0), 1) - 1
        alerts = self._fraud_alerts(current, first)
        watched = [alarm.watched for (_, name), alarm in self._alarms.items() if alarm.watched and name == EVERYTHING]
        encoders = EncoderJumps(self.model, watched, block_ms=self._block_ms, stored=current.get(encoder_jumps.STATE))
        verdict = self._verdict.restored(current.get(verdicts.STATE))
        verdict.hear(past if self._answers is None else self._answers, past, first, below)
        said: list[VerdictRow] = []
        hits: list[FraudHit] = []
        unlisted = 0
        for block, count in sorted(counts.items()):
            span = wide.get(("", EVERYTHING, block, 0), 1)
            deployments += window.push(block, count, block_ms=self._block_ms, span=span)
            evidence.setdefault(block, []).extend(self._dead_letters(block, window))
            if alerts is not None and count.fraud is not None:
                about = alerts.push(block, count.fraud, partial(past.fraud_hits, FRAUD_SPACE, block), span=span)
                hits += about.alerts
                unlisted += about.unlisted
                if not bare:
                    readings.append(self._fraud_row(about))
                evidence[block].extend(self._fraud_evidence(about, count.fraud))
            evidence[block] = encoders.push(block, evidence[block], looks.get(block, []), count.norms)
            seen = {space: whole[space, block] for space in self._verdict.spaces if (space, block) in whole}
            row, stale = verdict.push(block, seen, evidence[block], window.deployed(block_ms=self._block_ms), span=span)
            said += [] if bare else [row]
            evidence[block].extend(stale)
        changed += [window.row(), verdict.row()]
        if watched:
            changed.append(encoders.row())
        if alerts is not None:
            changed.append(alerts.row())
        why = (lambda row: None) if causes is None else self._causes(causes)
        held, notifications = self._incidents(incidents, evidence, below, [*before, *deployments], why)
        outbox = [(sink, notification) for notification in notifications for sink in self._sinks]
        flags = weighed.flag_at
        result = FoldResult(
            below, [], changed, readings, held, outbox, flags, deployments=deployments, hits=hits, verdicts=said
        )
        return result, unlisted

    def weigh(
        self,
        current: Mapping[tuple[str, str], rows.FoldState],
        merged: Mapping[Key, BlockSummary],
        *,
        widths: Mapping[Key, int],
        bare: bool,
    ) -> Weighed:
        """What the summaries of blocks say, each segment by itself: the first part of `judge`, where its time goes.

        Args:
            current: the states as the step before left them, by space and segment.
        """
        readings: list[ReadingRow] = []
        evidence: dict[int, list[Evidence]] = {}
        flag_at: dict[tuple[str, int], float] = {}
        whole: dict[tuple[str, int], Traffic] = {}
        looks: dict[int, list[SegmentLook]] = {}
        advancing: dict[tuple[str, str], _Advancing] = {}
        for (space, block), summaries in sorted(self._by_block(merged).items()):
            spans = []
            for segment in summaries:
                alarm = self._alarms[space, segment]
                spans.append(widths.get((space, segment, block, alarm.space.version), 1))
                if (space, segment) not in advancing:
                    first = block - spans[-1] + 1
                    advancing[space, segment] = _Advancing(alarm, current.get((space, segment)), first)
            # All segments of a space take the step together, which costs a third of one after the other.
            states = [advancing[space, segment] for segment in summaries]
            taken = list(summaries.values())
            drifts = _fold_drift(states, block, taken, spans, heard=bare)
            rates = _fold_rates(states, block, taken, spans, heard=bare)
            said = evidence.setdefault(block, [])
            for state, summary, span, drift, rate in zip(states, taken, spans, drifts, rates, strict=True):
                if drift or rate is not None:
                    said += self._evidence(state.alarm, drift, rate)
                if look := state.look(block, summary, span=span):
                    looks.setdefault(block, []).append(look)
                if state.alarm.segment == EVERYTHING:
                    whole[space, block] = Traffic(summary.n, summary.h, summary.confidence)
                if bare or rate is None:
                    continue
                if state.alarm.segment == EVERYTHING:
                    flag_at[space, block] = state.flag_at(self._settings.outliers.budget)
                    state.count_scores(summary)
                readings += [
                    *(self._reading(state.alarm, reading) for reading in drift),
                    self._row(state.alarm, rate, "outlier_rate", statistic=rate.rate),
                    *state.opinions(block, summary, block_ms=self._block_ms),
                ]
        return Weighed(evidence, [state.row() for state in advancing.values()], readings, flag_at, whole, looks)

    def _fraud_alerts(self, stored: Mapping[tuple[str, str], rows.FoldState], first_block: int) -> FraudAlerts | None:
        settings = self._settings.fraud
        if self._fraud is None or settings is None:
            return None
        return FraudAlerts(
            settings,
            self._fraud.rule,
            version=self._fraud.parts.version,
            block_ms=self._block_ms,
            stored=stored.get(STATE),
            first_block=first_block,
        )

    def _fraud_row(self, said: FraudReading) -> ReadingRow:
        rate, alarm = said.rate, self._fraud
        return ReadingRow(
            space=FRAUD_SPACE,
            segment=EVERYTHING,
            block=rate.block,
            start_ms=rate.block * self._block_ms,
            end_ms=(rate.block + 1) * self._block_ms,
            channel=WAVE,
            statistic=rate.rate,
            strength=rate.strength,
            threshold=rate.threshold,
            warn_threshold=rate.warn_threshold,
            n=rate.n,
            effect=rate.effect,
            window_start_ms=rate.window_start * self._block_ms,
            onset_ms=None if rate.onset is None else rate.onset * self._block_ms,
            reference=0 if alarm is None else alarm.parts.version,
            page=rate.page and alarm is not None and not alarm.only_warns,
            warn=rate.warn,
        )

    def _fraud_evidence(self, said: FraudReading, counts: FraudCounts) -> list[Evidence]:
        """What one block says of waves and floods."""
        settings, alarm = self._settings.fraud, self._fraud
        if settings is None or alarm is None:
            return []
        found = (
            fraud_wave_evidence(
                self.model,
                said.rate,
                block_ms=self._block_ms,
                unlisted=said.period_unlisted,
                alpha=settings.alpha,
                only_warns=alarm.only_warns,
            ),
            flood_evidence(
                self.model,
                block=said.rate.block,
                block_ms=self._block_ms,
                records=counts.n,
                flooded=counts.flooded,
                floods=counts.floods,
                largest=counts.flood_largest,
                least=_least_flood(alarm.parts, settings),
            ),
        )
        return [evidence for evidence in found if evidence is not None]

    def _by_block(
        self, merged: Mapping[tuple[str, str, int, int], BlockSummary]
    ) -> dict[tuple[str, int], dict[str, BlockSummary]]:
        """By space and block, the summary of every segment that has an alarm, in the order of the alarms."""
        found: dict[tuple[str, int], dict[str, BlockSummary]] = {}
        blocks = {block for _, _, block, _ in merged}
        for (space, segment), alarm in self._alarms.items():
            for block in blocks:
                summary = merged.get((space, segment, block, alarm.space.version))
                if summary is not None:
                    found.setdefault((space, block), {})[segment] = summary
        return found

    def _incidents(
        self,
        known: Sequence[IncidentRow],
        evidence: Mapping[int, list[Evidence]],
        below: int,
        deployments: Sequence[DeploymentRow],
        cause: CauseOf,
    ) -> tuple[list[IncidentRow], list[Notification]]:
        """The incidents that changed, and what to tell of them."""
        found = [entry for entries in evidence.values() for entry in entries]
        last = max(evidence) if evidence else below - 1
        end_ms = (last + 1) * self._block_ms
        return advance(known, found, self._policy, end_ms, deployments=deployments, cause=cause)

    def _causes(self, blocks: ClosedBlocks) -> CauseOf:
        """What tells the cause of an incident when it is told."""

        def cause(row: IncidentRow) -> Mapping[str, object] | None:
            if row.kind in (WAVE, FLOOD) and self._fraud is not None:
                parts, settings = self._fraud.parts, self._settings.fraud
                return hits_of(
                    row,
                    blocks.fold,
                    parts.reference,
                    version=parts.version,
                    block_ms=self._block_ms,
                    flood_least=2 if settings is None else _least_flood(parts, settings),
                )
            alarm = None if row.kind == ENCODER else self._alarms.get((row.space, row.segment))
            if alarm is None or alarm.space.version != row.reference:
                return None  # of dead letters, or of a reference that has been replaced
            segments = [name for space, name in self._alarms if space == row.space and name != EVERYTHING]
            return cause_of(row, alarm.space, blocks, segments=segments, block_ms=self._block_ms)

        return cause

    def _reading(self, alarm: _Alarm, reading: Reading) -> ReadingRow:
        return replace(
            self._row(alarm, reading, reading.channel, statistic=reading.statistic),
            onset_from_ms=None if reading.onset_earliest is None else reading.onset_earliest * self._block_ms,
            onset_to_ms=None if reading.onset_latest is None else (reading.onset_latest + 1) * self._block_ms,
        )

    def _row(self, alarm: _Alarm, reading: Reading | RateReading, channel: str, *, statistic: float) -> ReadingRow:
        """What the readings of drift and of the outlier rate have in common."""
        return ReadingRow(
            space=alarm.space.name,
            segment=alarm.segment,
            block=reading.block,
            start_ms=reading.block * self._block_ms,
            end_ms=(reading.block + 1) * self._block_ms,
            channel=channel,
            statistic=statistic,
            strength=reading.strength,
            threshold=reading.threshold,
            warn_threshold=reading.warn_threshold,
            n=reading.n,
            effect=reading.effect,
            window_start_ms=reading.window_start * self._block_ms,
            onset_ms=None if reading.onset is None else reading.onset * self._block_ms,
            reference=alarm.space.version,
            page=reading.page and not alarm.only_warns,
            warn=reading.warn,
        )

    def _evidence(self, alarm: _Alarm, drift: Sequence[Reading], rate: RateReading | None) -> list[Evidence]:
        """What one block says about the two reasons to alert of a (space, segment)."""
        space, segment = alarm.space.name, alarm.segment
        found = (
            drift_evidence(self.model, space, segment, drift, block_ms=self._block_ms, only_warns=alarm.only_warns),
            None
            if rate is None
            else rate_evidence(
                self.model,
                space,
                segment,
                rate,
                block_ms=self._block_ms,
                reference=alarm.space.version,
                only_warns=alarm.only_warns,
            ),
        )
        return [evidence for evidence in found if evidence is not None]

    def _dead_letters(self, block: int, window: _WholeState) -> list[Evidence]:
        """Whether the last blocks hold a wave of records that cannot be used."""
        limits = self._settings.dead_letters
        evidence = dead_letter_evidence(
            self.model,
            block=block,
            block_ms=self._block_ms,
            records=sum(records for _, records, _ in window.blocks),
            dead=dict(sum((Counter(dead) for _, _, dead in window.blocks), Counter[str]())),
            alert_ratio=limits.alert_ratio,
            page_ratio=limits.stop_ratio,
            window_start_ms=window.blocks[0][0] * self._block_ms,
        )
        return [evidence]


class _WholeState(msgspec.Struct):
    """What the fold knows of the past beside the alarms.

    Attributes:
        blocks: records and dead letters of the last blocks: (block, records, dead letters by reason).
        versions: of the watched model, that were seen so far, oldest first.
        deployments: the last ones, as (version, block).
    """

    blocks: list[tuple[int, int, dict[str, int]]] = []
    versions: list[str] = []
    deployments: list[tuple[str, int]] = []

    @classmethod
    def restored(cls, stored: rows.FoldState | None) -> _WholeState:
        return cls() if stored is None else msgspec.msgpack.decode(stored.blob, type=cls)

    def deployed(self, *, block_ms: int) -> list[DeploymentRow]:
        """The last deployments, in the order of their blocks."""
        return [DeploymentRow(version, block, block * block_ms) for version, block in self.deployments]

    def push(self, block: int, count: RecordCounts, *, block_ms: int, span: int = 1) -> list[DeploymentRow]:
        """Take in one block, or so many as one, up to this one. Returns what was deployed in it."""
        self.blocks.append((block, count.records, count.dead))
        self.blocks = [entry for entry in self.blocks if entry[0] > block - DEAD_LETTER_BLOCKS]
        self.versions, new = take_in(self.versions, present(count.versions, count.records))
        first = block - span + 1
        self.deployments = [*self.deployments, *((version, first) for version in new)][-MOST_DEPLOYMENTS:]
        return [DeploymentRow(version, first, first * block_ms) for version in new]

    def row(self) -> rows.FoldState:
        return rows.FoldState("", EVERYTHING, 0, msgspec.msgpack.encode(self))


def alarmed_segments(reference: Reference, model: ModelSettings) -> list[str]:
    """The segments that have an alarm of their own beside the whole traffic: those with a baseline of their own."""
    return [name for name in measured_segments(reference.drift) if name.partition("=")[0] in model.segment_fields]


class _Advancing:
    """The alarms of one (space, segment), block after block."""

    def __init__(self, alarm: _Alarm, stored: rows.FoldState | None, first_block: int) -> None:
        self.alarm = alarm
        version = alarm.space.version
        if stored is not None and stored.reference == version:
            held = msgspec.msgpack.decode(stored.blob, type=_SegmentState)
            self.drift = FoldState.from_bytes(held.drift)
            self.rate = RateState.from_bytes(held.rate)
            self._scores = np.frombuffer(held.scores, dtype="<i8").astype(np.int64)
            self._opinions = Opinions(alarm.opinions, held.opinions)
            self._pool = None if alarm.watched is None else alarm.watched.pool(held.look)
        else:
            # A new reference begins anew: evidence against another one says nothing about it.
            self.drift = FoldState.start(alarm.drift, reference=version, block=first_block)
            self.rate = RateState.start(alarm.rate, block=first_block)
            self._scores = np.zeros(0, dtype=np.int64)
            self._opinions = Opinions(alarm.opinions, {})
            self._pool = None if alarm.watched is None else alarm.watched.pool()

    def count_scores(self, summary: BlockSummary) -> None:
        """Remember the scores of one block, for the flags of later ones."""
        if summary.scores is not None:
            self._scores = summary.scores + (self._scores if len(self._scores) else 0)

    def flag_at(self, budget: float) -> float:
        """The score from which a candidate is flagged: so few earlier records reached it that the budget holds.

        Earlier records only, in the order of the blocks, so that a replay flags the same. Until there are enough, the
        calibration's p-value decides alone. Old scores fade: the counts are halved when there are 20 times enough.
        """
        enough = BUDGET_RECORDS / budget
        total = int(self._scores.sum())
        if total < enough:
            return 0.0
        if total > 20 * enough:
            self._scores = self._scores >> 1
        return score_at_share(self._scores, budget, scale=self.alarm.space.reference.score_scale)

    def opinions(self, block: int, summary: BlockSummary, *, block_ms: int) -> Iterable[ReadingRow]:
        """What the second opinions say after one block; nothing where none were asked for."""
        return self._opinions.push(block, summary, space=self.alarm.space, rule=self.alarm.drift, block_ms=block_ms)

    def look(self, block: int, summary: BlockSummary, *, span: int) -> SegmentLook | None:
        """A look at the encoder of ready vectors, where there are records enough for one."""
        if self._pool is None or self.alarm.watched is None:
            return None
        return self.alarm.watched.look(self._pool, block, summary, span=span)

    def row(self) -> rows.FoldState:
        """The state, to be stored."""
        blob = _SegmentState(
            self.drift.to_bytes(),
            self.rate.to_bytes(),
            self._scores.astype("<i8").tobytes(),
            self._opinions.states(),
            b"" if self._pool is None else self._pool.to_bytes(),
        )
        return rows.FoldState(
            self.alarm.space.name, self.alarm.segment, self.alarm.space.version, msgspec.msgpack.encode(blob)
        )


def _fold_drift(
    states: Sequence[_Advancing],
    block: int,
    summaries: Sequence[BlockSummary],
    spans: Sequence[int],
    *,
    heard: bool,
) -> list[tuple[Reading, ...]]:
    """The drift readings of one block. Blocks without records are passed over: silence is no evidence, ages nothing."""
    folded = fold_many(
        [state.drift.at(block) for state in states],
        summaries,
        [state.alarm.drift for state in states],
        blocks=spans,
        heard=heard,
    )
    for state, (following, _) in zip(states, folded, strict=True):
        state.drift = following
    return [readings for _, readings in folded]


def _fold_rates(
    states: Sequence[_Advancing],
    block: int,
    summaries: Sequence[BlockSummary],
    spans: Sequence[int],
    *,
    heard: bool,
) -> list[RateReading | None]:
    """The readings of the outlier rate of one block."""
    folded = fold_rates(
        [state.rate.at(block) for state in states],
        [summary.n for summary in summaries],
        [int(summary.h[:_CANDIDATE_BINS].sum()) for summary in summaries],
        [state.alarm.rate for state in states],
        blocks=spans,
        heard=heard,
    )
    for state, (following, _) in zip(states, folded, strict=True):
        state.rate = following
    return [reading for _, reading in folded]


def _least_flood(parts: FraudParts, settings: FraudSettings) -> int:
    """Fewest near-identical records that are a flood: what the baseline does not show, and the settings ask for."""
    return max(parts.flood.least, settings.flood.least)


def _merge(
    deltas: Sequence[SummaryDelta],
) -> tuple[dict[int, RecordCounts], dict[tuple[str, str, int, int], BlockSummary]]:
    """The counts of every block, and one summary for every (space, segment, block, reference version)."""
    counts: dict[int, RecordCounts] = {}
    merged: dict[tuple[str, str, int, int], BlockSummary] = {}
    for delta in deltas:
        if delta.space == "":
            count = RecordCounts.from_bytes(delta.blob)
            counts[delta.block] = counts[delta.block].merge(count) if delta.block in counts else count
        else:
            key = (delta.space, delta.segment, delta.block, delta.reference)
            summary = BlockSummary.from_bytes(delta.blob)
            merged[key] = merged[key].merge(summary) if key in merged else summary
    return counts, merged


def _late(deltas: Sequence[SummaryDelta]) -> Counter[Partition]:
    """How many records of closed blocks came too late, by partition; not those that count as late or dead anyway."""
    found: Counter[Partition] = Counter()
    for delta in deltas:
        if delta.space == "":
            counts = RecordCounts.from_bytes(delta.blob)
            found[delta.partition] += counts.records - counts.late - sum(counts.dead.values())
    return found


def _without_told(result: FoldResult, known: Collection[str], live_from_block: int) -> FoldResult:
    """Without incidents that open where people were told already: what they were told stays."""

    def told(row: IncidentRow) -> bool:
        opened = row.detail.get("opening_block")
        return row.id not in known and isinstance(opened, int) and opened >= live_from_block

    gone = {row.id for row in result.incidents if told(row)}
    outbox = [(sink, notification) for sink, notification in result.outbox if notification.incident not in gone]
    return replace(result, incidents=[row for row in result.incidents if row.id not in gone], outbox=outbox)


def _live_edge(step: Fold) -> LiveEdge:
    """How far the live records are, beside a lane."""
    closes = step.live_next_block is not None
    first = step.live_next_block if closes else step.live_first_block
    return LiveEdge(closes, first, {state.partition: state.max_time_ms for state in step.live_partitions})
