"""The one word that is said of a model, from its open incidents: what it means, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass

from dashboards.grafana.panels import BLIND, CAUTION, FINE, PAGE, WARN


@dataclass(frozen=True, slots=True)
class Verdict:
    """One word, its colour, and what stands behind it."""

    word: str
    colour: str
    meaning: str
    next_step: str


# The worst first: the place, from 1, is the rank that SQL sorts by.
VERDICTS = (
    Verdict(
        "blind",
        BLIND,
        "driftd cannot see this model: its source fails, stands still, or brings nothing usable",
        "`driftd doctor`, `driftd check`; until then all other numbers of the model rest on nothing",
    ),
    Verdict(
        "encoder changed",
        PAGE,
        "what makes the vectors was replaced: reading waits, and no drift is told of it",
        "roll the encoder back; or `driftd reference build`, then start driftd again",
    ),
    Verdict(
        "drifted",
        PAGE,
        "the records differ from the reference in level or shape, surely enough for a page",
        "the drift dashboard: since when, which segment, which records; ask whether the model still answers rightly",
    ),
    Verdict(
        "mix changed",
        WARN,
        "the kinds of records are known ones, in other shares",
        "often a campaign or a new customer; if it stays, build a new reference: `driftd reference build`",
    ),
    Verdict(
        "watch",
        CAUTION,
        "a warning: weaker evidence, more outliers than usual, records that were lost or cannot be used",
        "nothing at night; look at it in the morning",
    ),
    Verdict(
        "learning",
        "blue",
        "there is no reference yet",
        "wait until enough records came, or `driftd reference build`",
    ),
    Verdict("fresh", FINE, "nothing is open: the stream looks like its reference", "nothing"),
)
LEARNING, FRESH = 6, 7

# What a cell with such a word looks like.
WORD_COLOURS = tuple((verdict.word, verdict.colour) for verdict in VERDICTS)

# Incidents about what is watched. All other kinds are about the watching itself: then driftd is blind.
SEEN_KINDS = (
    "encoder_changed",
    "drift",
    "outlier_rate",
    "stale",
    "dead_letters",
    "gap",
    "fraud_wave",
    "flood",
    "fraud_changed",
)

# The rank of one row of the table incidents.
RANK_OF_INCIDENT = f"""
CASE WHEN kind NOT IN ({", ".join(f"'{kind}'" for kind in SEEN_KINDS)}) THEN 1
WHEN kind = 'encoder_changed' THEN 2
WHEN kind = 'drift' AND severity = 'page' AND detail::json ->> 'channel' IS DISTINCT FROM 'mix' THEN 3
WHEN kind = 'drift' AND severity = 'page' THEN 4
ELSE 5 END
""".strip()


def word_of(rank: str) -> str:
    """SQL: the word for a rank."""
    cases = " ".join(f"WHEN {place} THEN '{verdict.word}'" for place, verdict in enumerate(VERDICTS, 1))
    return f"CASE {rank} {cases} END"


def as_markdown() -> str:
    """A table of the words."""
    lines = ["| verdict | what it means | what to do next |", "|---|---|---|"]
    lines += [f"| **{verdict.word}** | {verdict.meaning} | {verdict.next_step} |" for verdict in VERDICTS]
    return "\n".join(lines)
