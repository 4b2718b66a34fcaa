"""The verdict on a model, block after block: does it still answer rightly, and how does one know?

    alarms of the blocks ──┐
    confidence, calibrated ┼──► facts ──► one word with its reasons (detectors/verdict.py) ──► a row, and an incident
    true answers ──────────┘

Like everything that the fold makes, it is a function of the blocks in their order, and of the true answers in theirs:
each row says which of them it rests on. What hinders watching (a source that fails, a canary that failed) happens
outside of the blocks, and is laid over the verdict where it is shown.

Estimates are over a window that moves by a sixteenth of its length. While there is an alarm they are made anew with
every block, over what came since it began.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Final, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from connectors.database import rows
from connectors.database.rows import DeploymentRow, TruthRow, VerdictRow
from connectors.database.store import Store
from detectors.conformal import N_BINS
from detectors.feedback import SecondOpinion
from detectors.performance import UNKNOWN, ConfidenceCalibration, Estimate, estimate, novel_mass, unsupported
from detectors.realised import Realised, losses
from detectors.risk import RiskRule, RiskState, run_length
from detectors.summary import CONFIDENCE_BINS
from detectors.verdict import Facts, Level, decide, severity
from monitor.amounts import duration
from monitor.evidence import Evidence
from monitor.pipeline import Space
from monitor.settings import DAY_S, Settings
from monitor.verdict_wording import STALE

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

STATE: Final = ("", "verdict")  # space and segment of the stored state
PARTS: Final = 16  # of the window of estimates
# Realised numbers are over the last 1,900 to 2,000 true answers: .95 is then known to .01 (95 %).
LABELS_A_PART, LABEL_PARTS = 100, 20
MOST_TRUTHS: Final = 20_000  # true answers that one step of the fold takes in
STOPPED_AFTER: Final = 3  # times the longest pause so far without a true answer, and a day at least
_ALARMS: Final = ("drift", "outlier_rate", "encoder_suspected")  # kinds of evidence that the verdict hears of
_DAY_MS: Final = round(DAY_S * 1000)


@dataclass(frozen=True, slots=True)
class Traffic:
    """The whole traffic of a space in one block: records, bins of p, int64 (49,), and of confidence, int64 (50,)."""

    n: int
    h: Int64s
    confidence: Int64s | None


class TrueAnswers(Protocol):
    """Where true answers come from; the fold's own transaction is one."""

    def truths(self, after: int, most: int, *, upto: int | None = None) -> list[TruthRow]:
        """The first said of each record, in the order in which they count: after < number <= upto, so many at most."""

    def truths_at(self, from_block: int, below: int) -> dict[int, int] | None:
        """By block, how many counted when it was judged; None: all that are there count from now on."""


class SaidAnswers(Protocol):
    """What records say themselves, where they do (``record.label``); the fold's own transaction is one."""

    def said(self, from_ms: int, to_ms: int) -> list[TruthRow]:
        """Of records on time with from_ms <= event time < to_ms, in an order that does not depend on who read them."""


class AnswersOfThen:
    """True answers as they counted when the live blocks were judged: for a trial in a database of its own.

    Args:
        live: where they are.
        model: the model's name.
    """

    def __init__(self, live: Store, model: str) -> None:
        self._live = live
        self._model = model

    def truths(self, after: int, most: int, *, upto: int | None = None) -> list[TruthRow]:
        """See `TrueAnswers`."""
        return self._live.first_truths(self._model, after, most, upto=upto)

    def truths_at(self, from_block: int, below: int) -> dict[int, int]:
        """See `TrueAnswers`."""
        return self._live.truths_at(self._model, from_block, below)


class _Part(msgspec.Struct):
    """Sums over a part of the window: records and bins of p by space, and bins of confidence of the first space."""

    number: int
    records: dict[str, int] = {}
    h: dict[str, list[int]] = {}
    confidence: list[int] = []


class _Alarmed(msgspec.Struct):
    """A reason to alert that was there lately."""

    kind: str
    space: str
    segment: str
    channels: str
    level: Level
    since_ms: int
    last_ms: int


class _Labelled(msgspec.Struct):
    """A part of the true answers: sums, and event times of the oldest and the newest record; -1 where unknown."""

    stored: bytes  # `Realised.to_bytes`: its whole numbers are of any size, those of a state have 64 bits
    oldest_ms: int = -1
    newest_ms: int = -1

    @property
    def sums(self) -> Realised:
        return _sums(self.stored)


class _State(msgspec.Struct):
    """What the verdict knows of the past.

    Attributes:
        references: version of each space's reference that the parts were judged with.
        truths: number of the last true answer that counts here.
        labels: how many counted; first_ms: end of the block that knew the first, last_ms: of the one with the last;
            pause_ms: the longest time without one so far.
        risk, losses: states of the two detectors that look at true answers, in their order; proven: the first one's
            evidence was enough for a page, and has not fallen to a tenth of that since.
        worse_at: true answers after which the second opinion last found the losses changed, if they are greater since;
            -1 if not.
        word, since_ms, reasons, severity, numbers: of the last decision, as in `_Numbers`; decided_part: its part.
    """

    references: dict[str, int] = {}
    parts: list[_Part] = []
    alarms: list[_Alarmed] = []
    truths: int = 0
    labels: int = 0
    first_ms: int = -1
    last_ms: int = -1
    pause_ms: int = 0
    risk: bytes = b""
    proven: bool = False
    losses: bytes = b""
    worse_at: int = -1
    realised: list[_Labelled] = []
    word: rows.VerdictWord = "too few records"
    since_ms: int = -1
    reasons: tuple[str, ...] = ()
    severity: Literal["page", "warn"] | None = None
    numbers: tuple[float, ...] = ()
    decided_part: int = -1


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What a decision rests on, as `VerdictRow` has it."""

    records: float
    confidence: float
    estimated: float
    low: float
    high: float
    atc: float
    novel: float
    unsupported: float
    floor: float
    realised: float
    realised_low: float
    realised_high: float
    metric: float
    labels: float
    evidence: float


class Verdicts:
    """The verdict on one model: what it is judged by.

    Args:
        model: its name.
        settings: all settings.
        spaces: its spaces with their references.
        only_warns: by space, why its alarms may not page; "" if they may.
    """

    def __init__(
        self, model: str, settings: Settings, *, spaces: Sequence[Space], only_warns: Mapping[str, str]
    ) -> None:
        chosen = settings.models[model]
        self.model = model
        self.settings = chosen.performance
        self.harm = chosen.harm
        self.block_ms = round(chosen.drift.block * 1000)
        self.part_blocks = max(1, round(chosen.performance.window * 1000 / self.block_ms / PARTS))
        self.resolve_after_ms = round(settings.incidents.resolve_after * 1000)
        self.page_every_days, self.warn_every_days = settings.page_every_days, settings.warn_every_days
        self.models = len(settings.models)
        self.spaces = {space.name: space for space in spaces}
        self.sides = {space: chosen.side_of(space) for space in self.spaces}
        self.references = {name: space.version for name, space in self.spaces.items()}
        small = [f"Alarms of {name} may only warn: {why}." for name, why in only_warns.items() if why]
        self.too_small = " ".join(small)
        found = (ConfidenceCalibration.from_arrays(space.reference.performance) for space in spaces)
        self.calibration = next((one for one in found if one is not None), None)
        self.floor = self._floor()
        self.metric_name = "" if chosen.performance.metric == "accuracy" else chosen.performance.metric
        self.records_say = chosen.record.label is not None
        trained = chosen.performance.trained
        self.trained_ms = None if trained is None else round(trained.timestamp() * 1000)

    def _floor(self) -> float:
        if self.settings.floor is not None:
            return self.settings.floor
        return math.nan if self.calibration is None else self.calibration.floor(self.settings.tolerance)

    def restored(self, stored: rows.FoldState | None) -> Judge:
        """Go on from a stored state."""
        state = _State() if stored is None else msgspec.msgpack.decode(stored.blob, type=_State)
        if state.references != self.references:
            # Bins of p of another reference say other things.
            state.parts, state.references = [], self.references
        if any(part.sums.scale != self.settings.scale for part in state.realised):
            # How wrong an answer was is another number now: what labels say is said of those that come.
            state.realised, state.risk, state.losses, state.worse_at, state.proven = [], b"", b"", -1, False
        return Judge(self, state)


class Judge:
    """Takes in the blocks of one step of the fold, in their order."""

    def __init__(self, rules: Verdicts, state: _State) -> None:
        self._rules = rules
        self._state = state
        self._answers: TrueAnswers | None = None
        self._said: SaidAnswers | None = None
        self._at: dict[int, int] | None = None

    def hear(self, answers: TrueAnswers, said: SaidAnswers, first: int, below: int) -> None:
        """Where true answers come from, for blocks first <= block < below."""
        self._answers, self._at = answers, answers.truths_at(first, below)
        self._said = said if self._rules.records_say else None

    def row(self) -> rows.FoldState:
        """The state, to be stored."""
        return rows.FoldState(*STATE, 0, msgspec.msgpack.encode(self._state))

    def push(
        self,
        block: int,
        traffic: Mapping[str, Traffic],
        evidence: Sequence[Evidence],
        deployments: Sequence[DeploymentRow],
        *,
        span: int = 1,
    ) -> tuple[VerdictRow, list[Evidence]]:
        """What is said of the model after one block, or so many as one, up to this one.

        Args:
            traffic: by space.
            evidence: what the block says of each reason to alert.
            deployments: of the model, so far, in the order of their blocks.

        Returns:
            The row to store, and the evidence for an incident of kind "stale"; empty where that says nothing.
        """
        state, rules = self._state, self._rules
        end_ms = (block + 1) * rules.block_ms
        part = block // rules.part_blocks
        moved = bool(state.parts) and state.parts[-1].number != part
        heard = self._alarms(evidence, end_ms)
        labelled = self._labels(block, end_ms, span)
        self._count(part, traffic)
        if heard or labelled or moved or state.alarms or state.decided_part < 0:
            self._decide(part, end_ms, deployments)
        start_ms = (block - span + 1) * rules.block_ms
        if state.since_ms < 0:
            state.since_ms = start_ms
        return self._row(block, start_ms, end_ms, deployments), self._evidence(block, end_ms)

    # --- taking in ------------------------------------------------------------------------------------------------

    def _count(self, part: int, traffic: Mapping[str, Traffic]) -> None:
        state = self._state
        if not state.parts or state.parts[-1].number != part:
            state.parts = [one for one in state.parts if one.number > part - PARTS] + [_Part(part)]
        into = state.parts[-1]
        for space, seen in traffic.items():
            into.records[space] = into.records.get(space, 0) + seen.n
            into.h[space] = _added(into.h.get(space, ()), seen.h)
        confidence = next((seen.confidence for seen in traffic.values() if seen.confidence is not None), None)
        if confidence is not None:
            into.confidence = _added(into.confidence, confidence)

    def _alarms(self, evidence: Sequence[Evidence], end_ms: int) -> bool:
        """Remember what alarms, for as long as an incident of it would last. Returns whether anything changed."""
        state = self._state
        known = {(one.kind, one.space, one.segment): one for one in state.alarms}
        changed = False
        for entry in evidence:
            if entry.kind not in _ALARMS:
                continue
            before = known.get((entry.kind, entry.space, entry.segment))
            level: Level = entry.severity or ""
            if before is None and level:
                since_ms = entry.start_ms if entry.onset_ms is None else min(entry.onset_ms, entry.start_ms)
                channels = str(entry.values.get("channels", entry.channel))
                made = _Alarmed(entry.kind, entry.space, entry.segment, channels, level, since_ms, end_ms)
                known[entry.kind, entry.space, entry.segment] = made
                changed = True
            elif before is not None and (level or entry.active):
                before.last_ms = end_ms
                if level == "page" and before.level != "page":
                    before.level, changed = "page", True
                more = {*before.channels.split(), *str(entry.values.get("channels", entry.channel)).split()}
                before.channels = " ".join(sorted(more))
        kept = [one for _, one in sorted(known.items()) if end_ms - one.last_ms < self._rules.resolve_after_ms]
        changed |= len(kept) != len(known)
        state.alarms = kept
        return changed

    def _labels(self, block: int, end_ms: int, span: int) -> bool:
        """Take in true answers: those of others in the order in which they count, then those of the block's records.

        Returns:
            Whether there were any.
        """
        found = self._of_others(block, span)
        if found:
            self._state.truths = found[-1].version
        if self._said is not None:
            found = [*found, *self._said.said(end_ms - span * self._rules.block_ms, end_ms)]
        if found:
            self._learn(found, end_ms)
        return bool(found)

    def _of_others(self, block: int, span: int) -> list[TruthRow]:
        if self._answers is None:
            return []
        upto = None
        if self._at is not None:
            counted = [number for at, number in self._at.items() if block - span < at <= block]
            if not counted or max(counted) <= self._state.truths:
                return []
            upto = max(counted)
        found = self._answers.truths(self._state.truths, MOST_TRUTHS, upto=upto)
        if self._at is None:
            self._answers = None  # one look for each step, at its first block: the row says how far it went
        return found

    def _learn(self, found: Sequence[TruthRow], end_ms: int) -> None:
        state, rules = self._state, self._rules
        told = [(row.said.truth, row.said.answer or "", row.said.weight, row.said.event_ms) for row in found]
        wrong = losses([one[0] for one in told], [one[1] for one in told], scale=rules.settings.scale)
        readable = np.isfinite(wrong)
        weights = np.array([one[2] for one in told])[readable]
        self._add_realised([one for one, good in zip(told, readable.tolist(), strict=True) if good])
        state.pause_ms = max(state.pause_ms, end_ms - state.last_ms if state.last_ms >= 0 else 0)
        state.first_ms = end_ms if state.first_ms < 0 else state.first_ms
        state.last_ms = end_ms
        state.labels += int(readable.sum())
        opinion = SecondOpinion.from_bytes("adwin", state.losses)
        changed = [opinion.push(loss) for loss in wrong[readable].tolist()]
        if True in changed:
            # ADWIN says that the losses changed, not in which direction.
            *before, newest = [part.sums for part in state.realised]
            state.worse_at = state.labels if newest.accuracy() < _merged(before, newest.scale).accuracy() else -1
        state.losses = opinion.to_bytes()
        if (rule := self._rule(rules.page_every_days, end_ms)) is not None:
            risk = RiskState.from_bytes(state.risk) if state.risk else RiskState.start()
            state.risk = risk.push(wrong[readable], weights, rule=rule).to_bytes()

    def _add_realised(self, told: Sequence[tuple[str, str, float, int | None]]) -> None:
        state = self._state
        rest = list(told)
        while rest:
            if not state.realised or state.realised[-1].sums.n >= LABELS_A_PART:
                state.realised.append(_Labelled(Realised(scale=self._rules.settings.scale).to_bytes()))
            part = state.realised[-1]
            taken, rest = rest[: LABELS_A_PART - part.sums.n], rest[LABELS_A_PART - part.sums.n :]
            sums = part.sums.add(
                [one[0] for one in taken], [one[1] for one in taken], np.array([one[2] for one in taken])
            )
            part.stored = sums.to_bytes()
            times = [one[3] for one in taken if one[3] is not None] + [ms for ms in (part.oldest_ms,) if ms >= 0]
            if times:
                part.oldest_ms, part.newest_ms = min(times), max(*times, part.newest_ms)
        state.realised = state.realised[-LABEL_PARTS:]

    def _rule(self, every_days: float, end_ms: int) -> RiskRule | None:
        """What true answers are held against; None where no floor is known."""
        state, rules = self._state, self._rules
        if not 0.0 < rules.floor < 1.0:
            return None
        days = max((end_ms - state.first_ms) / _DAY_MS, 1.0)
        # One such alarm for each model, so that together they keep to the time between false alarms.
        return RiskRule(1.0 - rules.floor, run_length(state.labels, days, every_days=every_days * rules.models))

    # --- deciding -------------------------------------------------------------------------------------------------

    def _decide(self, part: int, end_ms: int, deployments: Sequence[DeploymentRow]) -> None:
        state, rules = self._state, self._rules
        parts, records = self._window()
        found = self._estimate(parts) if records >= rules.settings.least else UNKNOWN
        facts = self._facts(found, records, end_ms, deployments)
        decision = decide(facts)
        if decision.word != state.word or state.since_ms < 0:
            state.word, state.since_ms = decision.word, end_ms - rules.block_ms
        state.reasons = decision.reasons
        state.severity = severity(facts, rules.harm)
        state.decided_part = part
        state.numbers = astuple(
            _Numbers(
                float(facts.records),
                found.confidence,
                found.estimated,
                found.low,
                found.high,
                found.atc,
                found.novel,
                found.unsupported,
                rules.floor,
                facts.realised,
                facts.realised_low,
                facts.realised_high,
                self._metric(),
                float(facts.labels),
                facts.evidence,
            )
        )

    def _window(self) -> tuple[list[_Part], int]:
        """The parts that are judged, and their records: while there is an alarm, those since it began, if they do."""
        state, rules = self._state, self._rules
        since_ms = min((one.since_ms for one in state.alarms), default=0)
        since = [one for one in state.parts if (one.number + 1) * rules.part_blocks * rules.block_ms > since_ms]
        records = _records(since, rules.spaces)
        if records >= rules.settings.least:
            return since, records
        return state.parts, _records(state.parts, rules.spaces)

    def _estimate(self, parts: Sequence[_Part]) -> Estimate:
        """Over parts of the window; of novelty, what the input space says that sees most of it."""
        rules = self._rules
        h, n_calibration, novel = np.zeros(N_BINS, np.int64), 0, -1.0
        for name, space in rules.spaces.items():
            if rules.sides[name] != "input":
                continue
            of_space = _sum([one.h[name] for one in parts if name in one.h], N_BINS)
            mass = novel_mass(of_space, space.reference.n_calibration)
            if mass > novel:
                h, n_calibration, novel = of_space, space.reference.n_calibration, mass
        confidence = _sum([one.confidence for one in parts if one.confidence], CONFIDENCE_BINS)
        if rules.calibration is not None and confidence.any():
            return estimate(rules.calibration, confidence, h, n_calibration=n_calibration)
        nan = math.nan
        return Estimate(0, nan, nan, nan, nan, nan, novel_mass(h, n_calibration), unsupported(h, n_calibration))

    def _shown(self) -> tuple[Realised, bool]:
        """The true answers that are shown, and whether all of them came since the alarms began: those, if they do."""
        state, scale = self._state, self._rules.settings.scale
        if not state.alarms:
            return _merged([part.sums for part in state.realised], scale), True
        since_ms = min(one.since_ms for one in state.alarms)
        since = _merged([part.sums for part in state.realised if part.oldest_ms >= since_ms], scale)
        if since.n >= LABELS_A_PART:
            return since, True
        return _merged([part.sums for part in state.realised], scale), False

    def _metric(self) -> float:
        """What `performance.metric` asks for beside the share of right answers."""
        shown, settings = self._shown()[0], self._rules.settings
        if not self._rules.metric_name or not shown.n:
            return math.nan
        return shown.metric(settings.metric, settings.positive)

    def _facts(self, found: Estimate, records: int, end_ms: int, deployments: Sequence[DeploymentRow]) -> Facts:
        state, rules = self._state, self._rules
        drift = [one for one in state.alarms if one.kind == "drift"]
        shown, covers = self._shown()
        low, high = shown.interval() if shown.n else (math.nan, math.nan)
        page, warn = self._rule(rules.page_every_days, end_ms), self._rule(rules.warn_every_days, end_ms)
        risk = RiskState.from_bytes(state.risk) if state.risk else RiskState.start()
        proven: Level = ""
        if page is not None and warn is not None and risk.n:
            # Proven stays proven until the evidence has fallen to a tenth: a label more or less takes nothing back.
            held = state.proven and risk.evidence >= math.log10(page.run_length) - 1
            proven = "page" if held or risk.degraded(page) else "warn" if risk.degraded(warn) else ""
        state.proven = proven == "page"
        newest_ms = max((part.newest_ms for part in state.realised), default=-1)
        return Facts(
            encoder_suspected=self._suspected(),
            too_small=rules.too_small,
            records=records,
            least=rules.settings.least,
            input_drift=_level(one for one in drift if rules.sides.get(one.space) == "input"),
            output_drift=_level(one for one in drift if rules.sides.get(one.space) == "output"),
            channels=frozenset(name for one in drift for name in one.channels.split()),
            outlier_rate=_level(one for one in state.alarms if one.kind == "outlier_rate"),
            estimate=found,
            floor=rules.floor,
            labels=shown.n,
            realised=shown.accuracy() if shown.n else math.nan,
            realised_low=low,
            realised_high=high,
            labels_cover_drift=covers,
            risk=proven,
            evidence=risk.evidence if risk.n else math.nan,
            labels_age="" if newest_ms < 0 else duration(max(end_ms - newest_ms, 0) / 1000),
            labels_stopped=self._stopped(end_ms),
            losses_changed=state.worse_at >= 0 and state.labels - state.worse_at < LABELS_A_PART * LABEL_PARTS,
            too_old=self._too_old(end_ms, deployments),
        )

    def _suspected(self) -> str:
        spaces = [one.space for one in self._state.alarms if one.kind == "encoder_suspected"]
        if not spaces:
            return ""
        return (
            f"From one block to the next nearly every vector of {' and '.join(spaces)} changed, in every segment: that "
            "is most probably another encoder, and no other world."
        )

    def _stopped(self, end_ms: int) -> str:
        state = self._state
        quiet_ms = end_ms - state.last_ms
        if state.labels == 0 or quiet_ms <= STOPPED_AFTER * max(state.pause_ms, _DAY_MS):
            return ""
        return (
            f"No true answer has come for {duration(quiet_ms / 1000)}; the longest pause before was "
            f"{duration(state.pause_ms / 1000)}."
        )

    def _age_s(self, end_ms: int, deployments: Sequence[DeploymentRow]) -> float:
        """Since the model was trained, or its version was first seen; NaN where neither is known."""
        since_ms = self._rules.trained_ms
        if since_ms is None and deployments:
            since_ms = deployments[-1].start_ms
        return math.nan if since_ms is None else max(end_ms - since_ms, 0) / 1000

    def _too_old(self, end_ms: int, deployments: Sequence[DeploymentRow]) -> str:
        most, age_s = self._rules.settings.max_age, self._age_s(end_ms, deployments)
        if most is None or not age_s > most:
            return ""
        return f"The model is {duration(age_s)} old; performance.max_age allows {duration(most)}."

    # --- what comes of it -----------------------------------------------------------------------------------------

    def _row(self, block: int, start_ms: int, end_ms: int, deployments: Sequence[DeploymentRow]) -> VerdictRow:
        state, numbers = self._state, _Numbers(*self._state.numbers)
        return VerdictRow(
            block=block,
            start_ms=start_ms,
            end_ms=end_ms,
            word=state.word,
            since_ms=state.since_ms,
            records=int(numbers.records),
            confidence=numbers.confidence,
            estimated=numbers.estimated,
            low=numbers.low,
            high=numbers.high,
            atc=numbers.atc,
            novel=numbers.novel,
            unsupported=numbers.unsupported,
            floor=numbers.floor,
            realised=numbers.realised,
            realised_low=numbers.realised_low,
            realised_high=numbers.realised_high,
            metric_name=self._rules.metric_name,
            metric=numbers.metric,
            labels=int(numbers.labels),
            evidence=numbers.evidence,
            truths=state.truths,
            age_s=self._age_s(end_ms, deployments),
            reasons=state.reasons,
        )

    def _evidence(self, block: int, end_ms: int) -> list[Evidence]:
        """What an incident of kind "stale" is made of, as long as there is reason for one."""
        state, numbers = self._state, _Numbers(*self._state.numbers)
        if state.severity is None:
            return []
        names = ("estimated", "low", "high", "novel", "floor", "realised", "evidence")
        values = {name: float(getattr(numbers, name)) for name in names}
        return [
            Evidence(
                model=self._rules.model,
                kind=STALE,
                block=block,
                start_ms=end_ms - self._rules.block_ms,
                end_ms=end_ms,
                severity=state.severity,
                active=True,
                channel="labels" if numbers.realised < numbers.floor else "estimate",
                onset_ms=min([state.since_ms, *(one.since_ms for one in state.alarms)]),
                n=int(numbers.records),
                effect=numbers.floor - (numbers.realised if numbers.realised < numbers.floor else numbers.estimated),
                values={
                    "word": state.word,
                    "labels": int(numbers.labels),
                    "why": state.reasons[0],
                    **{name: value for name, value in values.items() if math.isfinite(value)},
                },
            )
        ]


def _records(parts: Sequence[_Part], spaces: Iterable[str]) -> int:
    """In the space that has most."""
    return max((sum(part.records.get(space, 0) for part in parts) for space in spaces), default=0)


def _level(alarms: Iterable[_Alarmed]) -> Level:
    levels = {one.level for one in alarms}
    return "page" if "page" in levels else "warn" if "warn" in levels else ""


@functools.lru_cache(maxsize=4 * LABEL_PARTS)
def _sums(stored: bytes) -> Realised:
    return Realised.from_bytes(stored)


def _merged(sums: Sequence[Realised], scale: float | None) -> Realised:
    merged = Realised(scale=scale)
    for one in sums:
        merged = merged.merge(one)
    return merged


def _added(sums: Sequence[int], more: Int64s) -> list[int]:
    return list((np.array(sums) + more if sums else more).tolist())


def _sum(parts: Sequence[Sequence[int]], length: int) -> Int64s:
    return np.sum(parts, axis=0, dtype=np.int64) if parts else np.zeros(length, np.int64)
