"""The one word that is said of a model: what it means, and what to do next.

Grafana, the report and `driftd verdict` share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Level = Literal["blind", "page", "warn", "caution", "neutral", "fine"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One word, how bad it is, what stands behind it, and what a person does; commands stand in backquotes."""

    word: str
    level: Level
    meaning: str
    next_step: str


# The worst first: the place, from 1, is the rank that lists sort by.
VERDICTS: Final = (
    Verdict(
        "blind",
        "blind",
        "driftd cannot see this model: its source fails, stands still, or brings nothing usable",
        "`driftd doctor`, `driftd check`; until then all other numbers of the model rest on nothing",
    ),
    Verdict(
        "encoder changed",
        "page",
        "the encoder is another one, or runs otherwise: fixed inputs have other vectors than the reference holds of "
        "them, and reading waits; or ready vectors jumped",
        "put the encoder back as it was, or build a reference with the new one: `driftd reference build`",
    ),
    Verdict(
        "degraded",
        "page",
        "fewer answers are right than the floor allows: true answers prove it, or new content makes it likely",
        "roll back or train anew; what to train with: `driftd verdict --retrain-hint lacking.jsonl`",
    ),
    Verdict(
        "drifted",
        "page",
        "the records differ from the reference in level or shape, surely enough for a page; whether the answers are "
        "still right, nothing says",
        "the drift dashboard, `driftd incidents`: since when, which segment, which records; get true answers",
    ),
    Verdict(
        "drifted, holding",
        "warn",
        "the records differ from the reference, and still enough of the answers are right, by estimate or by labels",
        "nothing at night; if it stays, build a new reference: `driftd reference build`",
    ),
    Verdict(
        "mix changed",
        "warn",
        "the kinds of records are known ones, in other shares",
        "often a campaign or a new customer; if it stays, build a new reference: `driftd reference build`",
    ),
    Verdict(
        "watch",
        "caution",
        "weaker evidence: a warning, an estimate below the floor without new content, or a model of great age",
        "nothing at night; look at it in the morning: `driftd verdict`",
    ),
    Verdict(
        "too few records",
        "neutral",
        "too few records came, or the reference is too small, to say anything",
        "wait; performance.window and performance.least say how many are needed",
    ),
    Verdict(
        "learning",
        "neutral",
        "there is no reference yet",
        "wait until enough records came, or `driftd reference build`",
    ),
    Verdict("fresh", "fine", "nothing is open, and the estimate is above the floor where there is one", "nothing"),
)
WORDS: Final = tuple(verdict.word for verdict in VERDICTS)

# Words for which somebody must come.
ALARMING: Final = frozenset(verdict.word for verdict in VERDICTS if verdict.level in ("blind", "page"))


def rank_of(word: str) -> int:
    """Its place, from 1 for the worst; a word that is none comes after all."""
    return WORDS.index(word) + 1 if word in WORDS else len(WORDS) + 1


def verdict_of(word: str) -> Verdict:
    """What is known of a word.

    Raises:
        ValueError: it is none.
    """
    return VERDICTS[WORDS.index(word)]
