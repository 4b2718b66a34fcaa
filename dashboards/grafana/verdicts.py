"""The word that is said of a model, in SQL: the newest stored verdict, and what stands above it.

The fold stores a verdict with each block. That nothing comes any more, or that an encoder was exchanged, is seen by the
wall clock and is an open incident: while one is open, the stored verdict rests on nothing. The words themselves are in
`dashboards.verdict_words`.
"""

from __future__ import annotations

from typing import Final

from dashboards.grafana.panels import BLIND, CAUTION, FINE, PAGE, WARN
from dashboards.verdict_words import VERDICTS, Level, rank_of

_COLOURS: Final[dict[Level, str]] = {
    "blind": BLIND,
    "page": PAGE,
    "warn": WARN,
    "caution": CAUTION,
    "neutral": "blue",
    "fine": FINE,
}

# What a cell with such a word looks like.
WORD_COLOURS: Final = tuple((verdict.word, _COLOURS[verdict.level]) for verdict in VERDICTS)

# What a stretch of a timeline looks like: the rank as text, the word, and its colour.
RANKED_WORDS: Final = tuple((str(rank), word, colour) for rank, (word, colour) in enumerate(WORD_COLOURS, 1))

BLIND_RANK, ENCODER_RANK = rank_of("blind"), rank_of("encoder changed")
LEARNING_RANK, TOO_FEW_RANK = rank_of("learning"), rank_of("too few records")

# Incidents about what is watched. All other kinds are about the watching itself: then driftd is blind.
SEEN_KINDS = (
    "encoder_changed",
    "encoder_suspected",
    "drift",
    "outlier_rate",
    "stale",
    "dead_letters",
    "gap",
    "fraud_wave",
    "flood",
    "fraud_changed",
)
_SEEN = ", ".join(f"'{kind}'" for kind in SEEN_KINDS)

# How bad one row of the table incidents is, on the scale of the words: to tell which of several comes first.
RANK_OF_INCIDENT = f"""
CASE WHEN kind NOT IN ({_SEEN}) THEN {BLIND_RANK}
WHEN kind IN ('encoder_changed', 'encoder_suspected') THEN {ENCODER_RANK}
WHEN kind = 'stale' AND severity = 'page' THEN {rank_of("degraded")}
WHEN kind = 'drift' AND severity = 'page' AND detail::json ->> 'channel' IS DISTINCT FROM 'mix'
THEN {rank_of("drifted")}
WHEN kind = 'drift' AND severity = 'page' THEN {rank_of("mix changed")}
ELSE {rank_of("watch")} END
""".strip()

# The rank that incidents of one model give it whatever was judged: an encoder that was exchanged explains that records
# lag and fall silent, so it comes first. An aggregate over rows of the table incidents.
RANK_ABOVE = f"""
CASE WHEN bool_or(kind = 'encoder_changed') THEN {ENCODER_RANK}
WHEN bool_or(kind NOT IN ({_SEEN})) THEN {BLIND_RANK} END
""".strip()


def word_of(rank: str) -> str:
    """SQL: the word for a rank."""
    cases = " ".join(f"WHEN {place} THEN '{verdict.word}'" for place, verdict in enumerate(VERDICTS, 1))
    return f"CASE {rank} {cases} END"


def rank_in_sql(word: str) -> str:
    """SQL: the rank of a word; NULL for NULL."""
    cases = " ".join(f"WHEN '{verdict.word}' THEN {place}" for place, verdict in enumerate(VERDICTS, 1))
    return f"CASE {word} {cases} END"


def as_markdown() -> str:
    """A table of the words."""
    lines = ["| verdict | what it means | what to do next |", "|---|---|---|"]
    lines += [f"| **{verdict.word}** | {verdict.meaning} | {verdict.next_step} |" for verdict in VERDICTS]
    return "\n".join(lines)
