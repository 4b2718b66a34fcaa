"""What is said of a model at the moment of asking: its stored verdict, and what stands above it.

The fold judges blocks by event time. That nothing comes any more, that a source fails or an encoder was exchanged, is
seen by the wall clock and is an open incident; while one is open, the last verdict rests on nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from connectors.database.rows import IncidentRow, VerdictRow
from connectors.database.store import Store
from dashboards.verdict_words import ALARMING, rank_of, verdict_of
from monitor.incidents import OPERATIONAL, is_held
from monitor.operations import BLIND
from monitor.settings import Settings
from monitor.verdict_wording import STALE, unseen

ENCODER_CHANGED = "encoder_changed"  # the kind of incidents of an encoder that was exchanged
MOST_DELAYS = 500  # true answers whose delay is looked at, the newest


@dataclass(frozen=True, slots=True)
class Standing:
    """How a model stands.

    Attributes:
        word: a `connectors.database.rows.VerdictWord`, or "learning" where there is no reference yet.
        since_ms: since when; None where that is not known.
        row: the newest verdict of the fold, with all numbers; None where no block has been judged.
        reasons: sentences, the weightiest first.
        incidents: open ones, the worst first: the evidence.
        unseen: what nobody can see with what is known now; "" where no block has been judged.
        next_step: what to do, commands in backquotes.
    """

    model: str
    word: str
    since_ms: int | None
    row: VerdictRow | None
    reasons: tuple[str, ...]
    incidents: tuple[IncidentRow, ...]
    unseen: str
    next_step: str

    @property
    def alarming(self) -> bool:
        """Somebody must come."""
        return self.word in ALARMING

    def data(self) -> dict[str, Any]:
        """Everything, for a program; numbers that are not known are null."""
        return {
            "model": self.model,
            "verdict": self.word,
            "since_ms": self.since_ms,
            "alarming": self.alarming,
            "reasons": self.reasons,
            "incidents": [
                {
                    name: getattr(row, name)
                    for name in ("id", "kind", "severity", "space", "segment", "title", "onset_ms")
                }
                for row in self.incidents
            ],
            "unseen": self.unseen,
            "next": self.next_step,
            "judged": None if self.row is None else dataclasses.asdict(self.row),
        }


def standing_of(settings: Settings, store: Store, model: str, *, at_ms: int | None = None) -> Standing:
    """How a model of the settings stands; of the past, if ``at_ms`` (milliseconds since 1970) is given."""
    found = store.incidents(model=model, status="open" if at_ms is None else None)
    if at_ms is not None:
        found = [
            row for row in found if row.opened_ms <= at_ms and (row.resolved_ms is None or row.resolved_ms > at_ms)
        ]
    row = store.verdict(model, at_ms=at_ms)
    word, since_ms, reasons = _judged(settings, store, model, row)
    above = overlay(found)
    if above:
        word = above
        causes = [one for one in found if speaks_for(one, word)]
        since_ms = min(one.onset_ms for one in causes)
        reasons = tuple(_as_sentence(one.title.removeprefix(f"{model}: ")) for one in causes)
    open_now = sorted((one for one in found if not is_held(one)), key=lambda one: _rank(one, word))
    return Standing(
        model=model,
        word=word,
        since_ms=since_ms,
        row=row,
        reasons=reasons,
        incidents=tuple(open_now),
        unseen="" if row is None else unseen(row, delay_s=_delay_s(store, model, row)),
        next_step=verdict_of(word).next_step,
    )


def word_now(settings: Settings, store: Store, model: str) -> tuple[str, int | None, VerdictRow | None]:
    """What is said of a model now, since when (milliseconds since 1970), and the newest verdict of the fold."""
    found = store.incidents(model=model, status="open")
    row = store.verdict(model)
    word = overlay(found)
    if word:
        return word, min(one.onset_ms for one in found if speaks_for(one, word)), row
    said, since_ms, _ = _judged(settings, store, model, row)
    return said, since_ms, row


def overlay(open_now: Sequence[IncidentRow]) -> str:
    """ "encoder changed" or "blind", where an open incident makes the last verdict worthless; else "".

    An encoder that was exchanged comes first: reading waits for it, so that records lag and fall silent, too.
    """
    kinds = {row.kind for row in open_now}
    if ENCODER_CHANGED in kinds:
        return "encoder changed"
    return "blind" if kinds & BLIND else ""


def speaks_for(row: IncidentRow, word: str) -> bool:
    """Whether such an incident is the reason for "blind" or "encoder changed"."""
    return row.kind == ENCODER_CHANGED if word == "encoder changed" else word == "blind" and row.kind in BLIND


def _judged(
    settings: Settings, store: Store, model: str, row: VerdictRow | None
) -> tuple[str, int | None, tuple[str, ...]]:
    if row is not None:
        return row.word, row.since_ms, row.reasons[:-1]  # the last one says what is not seen
    waits = [space for space in settings.models[model].spaces if store.active_reference(model, space) is None]
    if waits:
        return "learning", None, (f"There is no reference of {', '.join(waits)} yet.",)
    return "too few records", None, ("No block of records has been judged yet.",)


def _as_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _rank(row: IncidentRow, word: str) -> tuple[bool, bool, bool, bool, int, str]:
    urgent = not speaks_for(row, word), row.severity != "page"
    return (*urgent, row.kind != STALE, row.kind in OPERATIONAL, row.onset_ms, row.id)


def _delay_s(store: Store, model: str, row: VerdictRow) -> float | None:
    """How long the newest true answers took, as the median; None where it is not known."""
    if not row.truths:
        return None
    delays = sorted(
        (truth.said.time_ms - truth.said.event_ms) / 1000
        for truth in store.truths(model, after=max(row.truths - MOST_DELAYS, 0), upto=row.truths)
        if truth.said.event_ms is not None
    )
    return max(delays[len(delays) // 2], 0.0) if delays else None


def worst_first(standings: Sequence[Standing]) -> list[Standing]:
    """In the order in which a person should look at them."""
    return sorted(standings, key=lambda one: (rank_of(one.word), one.since_ms or 0, one.model))
