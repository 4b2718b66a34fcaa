"""In the fold: did the encoder of ready vectors change? One incident then, in place of drift in every segment.

Where driftd embeds by itself, canaries tell (monitor/canaries.py). Ready vectors come without anything that could be
embedded again, so their geometry is looked at, block after block (detectors/encoder_jump.py).

A block that lies across the change holds records of both encoders, and drifts already. So an alarm about a change that
has only just begun waits until a later block is as before, or for the next look, for eight blocks at most; if that says
that the encoder changed, it is not told, and neither is any other while that lasts. An alarm about what drifts in over
a longer time waits for nothing. Readings are as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import msgspec

from connectors.database import rows
from detectors.encoder_jump import LEAST, LEAST_OF_SEGMENT, Jump, Look, Pool, Stage, Usual, look_at
from detectors.norms import Norms
from detectors.segments import constants_of
from detectors.summary import BlockSummary
from monitor.evidence import Evidence, Key, encoder_evidence
from monitor.pipeline import EVERYTHING, Space

STATE: Final = ("", "encoders")  # space and segment of the stored state
ENCODER: Final = "encoder_suspected"  # kind of the incident
HELD: Final = frozenset({"drift", "outlier_rate"})  # kinds of evidence that a changed encoder explains
MOST_WAITING = 8  # blocks that an alarm waits for a look, where records are few


@dataclass(frozen=True, slots=True)
class SegmentLook:
    """What a look at one segment said.

    Attributes:
        first, last: its blocks.
        pooled: it holds records enough to suspect an encoder; if not, it is one block's, to end a wait.
    """

    space: str
    segment: str
    first: int
    last: int
    look: Look
    pooled: bool = True


@dataclass(frozen=True)
class Watched:
    """A segment of a space of ready vectors, or its whole traffic; ``only_warns`` as in `monitor.folding`."""

    space: Space
    segment: str
    only_warns: str = ""

    @cached_property
    def usual(self) -> Usual:
        """What its reference says; measured when it is first needed."""
        constants = constants_of(self.space.reference.drift, self.segment)
        return Usual(self.space.reference, constants, sessions=self.segment == EVERYTHING)

    def pool(self, held: bytes = b"") -> Pool:
        """Blocks that are no look yet."""
        return Pool(LEAST if self.segment == EVERYTHING else LEAST_OF_SEGMENT, held)

    def look(self, pool: Pool, block: int, summary: BlockSummary, *, span: int) -> SegmentLook | None:
        """Take in a block, and look where there are records enough."""
        found = pool.push(block, summary, span=span)
        if found is None:
            if self.segment != EVERYTHING or summary.n < LEAST_OF_SEGMENT:
                return None
            alone = look_at(self.usual, summary)
            return SegmentLook(self.space.name, self.segment, block - span + 1, block, alone, pooled=False)
        first, summed = found
        return SegmentLook(self.space.name, self.segment, first, block, look_at(self.usual, summed))


class _SpaceState(msgspec.Struct):
    """What is known of one space.

    Attributes:
        reference: its number; another one begins anew.
        stage, since, why: of `Jump`.
        norms: lengths since the last look: `Norms`.
        last: first block of the last look; None before the first one.
        as_before: by segment, the first block of its last look that was as before.
        held: alarms that wait for the next look, or are not told while the encoder is suspected; the last of each kind
            and segment.
        back: where the encoder was suspected and is as before again: first block of either. Alarms about what began in
            between are explained, however late they come.
    """

    reference: int
    stage: Stage = "usual"
    since: int = 0
    why: str = ""
    norms: tuple[int, int, int] = (0, 0, 0)
    last: int | None = None
    as_before: dict[str, int] = {}
    held: list[Evidence] = []
    back: tuple[int, int] | None = None

    @property
    def jump(self) -> Jump:
        return Jump(self.stage, self.since, self.why)


class EncoderJumps:
    """Follows the looks at every watched space, block after block.

    Args:
        watched: the whole traffic of every space that is looked at.
        stored: as `row` gave it.
    """

    def __init__(self, model: str, watched: Sequence[Watched], *, block_ms: int, stored: rows.FoldState | None) -> None:
        self._model = model
        self._block_ms = block_ms
        self._watched = {one.space.name: one for one in watched}
        known = {} if stored is None else msgspec.msgpack.decode(stored.blob, type=dict[str, _SpaceState])
        self._states = {
            name: known[name]
            if name in known and known[name].reference == one.space.version
            else _SpaceState(one.space.version)
            for name, one in self._watched.items()
        }

    def row(self) -> rows.FoldState:
        """The state, to be stored."""
        return rows.FoldState(*STATE, 0, msgspec.msgpack.encode(self._states))

    def push(
        self,
        block: int,
        evidence: Sequence[Evidence],
        looks: Sequence[SegmentLook],
        norms: Mapping[str, Norms],
    ) -> list[Evidence]:
        """Take in one block, or several that were added up.

        Args:
            evidence: all that the block says.
            looks: those that end with it.
            norms: lengths of its vectors, by space.

        Returns:
            What is left of the evidence, with what waited and what is said of encoders.
        """
        said = list(evidence)
        for name, one in self._watched.items():
            mine = [look for look in looks if look.space == name]
            said = self._of_space(one, block, said, mine, norms.get(name, Norms()))
        return said

    def _of_space(
        self,
        one: Watched,
        block: int,
        evidence: Sequence[Evidence],
        looks: Sequence[SegmentLook],
        norms: Norms,
    ) -> list[Evidence]:
        state = self._states[one.space.name]
        sums = Norms(*state.norms).merge(norms)
        state.norms = (sums.n, sums.total, sums.squares)
        for segment in looks:
            if segment.segment != EVERYTHING and segment.look.as_before:
                state.as_before[segment.segment] = segment.first
        latest = next((look for look in looks if look.segment == EVERYTHING), None)
        whole = latest if latest is not None and latest.pooled else None
        before = after = state.jump
        found = None
        if whole is not None:
            found = whole.look.with_norms(one.usual, sums)
            since = before.since if before.stage == "changed" else whole.first
            # A segment that was looked at since the change, and not across it.
            alike = [first for first in state.as_before.values() if first > since or first == since == whole.first]
            after = before.push(found, whole.first, some_as_before=bool(alike))
            state.stage, state.since, state.why = after.stage, after.since, after.why
            state.norms = (0, 0, 0)
            if before.stage == "changed" and after.stage != "changed":
                state.back = (before.since, whole.first) if after.stage == "usual" else None
        told = self._told(one, state, block, evidence, latest)
        if whole is not None:
            state.last = whole.first
        if after.stage == "changed":
            told.append(
                encoder_evidence(
                    self._model,
                    one.space.name,
                    block=block,
                    block_ms=self._block_ms,
                    since=after.since,
                    why=after.why,
                    look=found,
                    reference=one.space.version,
                    only_warns=one.only_warns,
                )
            )
        return told

    def _told(
        self, one: Watched, state: _SpaceState, block: int, evidence: Sequence[Evidence], latest: SegmentLook | None
    ) -> list[Evidence]:
        """The evidence that is told now, and what has waited long enough; what has to wait is put aside."""
        mine = [entry for entry in evidence if entry.space == one.space.name and entry.kind in HELD]
        told = [entry for entry in evidence if entry.space != one.space.name or entry.kind not in HELD]
        if state.stage == "changed":
            state.held = _one_each([*state.held, *(entry for entry in mine if entry.severity is not None)])
            # What was open before goes on, and nothing new begins.
            return told + [replace(entry, severity=None) for entry in mine if entry.active]
        mine = [replace(entry, severity=None) if self._explained(entry, state) else entry for entry in mine]
        waiting = [entry for entry in state.held if not self._explained(entry, state)]
        # A look that began after the alarm holds nothing of the time before the change.
        over = block - MOST_WAITING + 1
        if latest is not None and (latest.pooled or latest.look.as_before):
            over = latest.first
        released = waiting if state.stage == "other" else [entry for entry in waiting if entry.block < over]
        begin: list[Evidence] = []
        if state.stage != "other":
            begin = [entry for entry in mine if entry.severity is not None and self._begins(entry, state)]
        state.held = _one_each([*(entry for entry in waiting if entry not in released), *begin])
        start_ms = block * self._block_ms
        now = [replace(each, block=block, start_ms=start_ms, end_ms=start_ms + self._block_ms) for each in released]
        return told + _one_each([*now, *(entry for entry in mine if entry not in begin)])

    def _explained(self, entry: Evidence, state: _SpaceState) -> bool:
        """It is about records of an encoder that is no longer there."""
        if state.back is None:
            return False
        since, until = state.back
        if entry.onset_ms is None:
            return entry.block - until < MOST_WAITING
        return (since - 1) * self._block_ms <= entry.onset_ms < until * self._block_ms

    def _begins(self, entry: Evidence, state: _SpaceState) -> bool:
        """The change began with the look before, or later: it may be the encoder's."""
        return state.last is None or entry.onset_ms is None or entry.onset_ms >= state.last * self._block_ms


def _one_each(entries: Sequence[Evidence]) -> list[Evidence]:
    """One entry for each reason: the most urgent, of these the last."""
    urgency = {None: 0, "warn": 1, "page": 2}
    found: dict[Key, Evidence] = {}
    for entry in entries:
        if entry.key not in found or urgency[entry.severity] >= urgency[found[entry.key].severity]:
            found[entry.key] = entry
    return list(found.values())
