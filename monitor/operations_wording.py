"""What incidents of the watching itself say: what happened, what it means for the numbers, what to type.

All of it comes out of the incident's ``detail``, as `monitor.operations` wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping

from connectors.database.rows import IncidentRow
from monitor.times import text_of

KINDS = frozenset({"source", "dead_letter_wave", "stalled", "gap"})

_MOST_NAMED = 5  # partitions


def title(row: IncidentRow) -> str:
    """What is wrong, without the model's name."""
    if row.kind == "source":
        return "its source cannot be read"
    if row.kind == "dead_letter_wave":
        return "reading stopped, too many records cannot be used"
    if row.kind == "stalled":
        count = len(_places(row))
        return f"{count} partition{'s stand' if count != 1 else ' stands'} still"
    topic, reason = _of_gap(row, "topic"), _of_gap(row, "reason")
    if reason == "recreated":
        return f"topic {topic} was made anew"
    if reason == "truncated":
        return f"topic {topic} has lost its newest records"
    if reason == "damaged":
        return f"{_lost(row)} of {topic} cannot be read"
    return f"{_lost(row)} of {topic} deleted before they were read"


def sentences(row: IncidentRow) -> list[str]:
    """What happened, and what it means; what to do is `next_step`."""
    since, problem = text_of(row.onset_ms), _sentence(str(row.detail.get("problem", "")))
    if row.kind == "source":
        tries = "This does not mend by itself." if row.detail.get("lasting") else "driftd tries again by itself."
        return [
            f"Since {since} a worker of driftd cannot read.",
            problem,
            tries,
            "What it should read is not scored, and no drift is seen in it; records stay on the broker as long as it "
            "keeps them, and reading goes on where it stopped.",
        ]
    if row.kind == "dead_letter_wave":
        return [
            f"At {since} driftd stopped reading this model.",
            problem,
            "It reads no more, so that the topic is not drained into the dead letters. Nothing is scored and no drift "
            "is seen; what was not read stays on the broker as long as it keeps it.",
        ]
    if row.kind == "stalled":
        return [
            f"Since {since} nothing was read of {_named(row)}, which hold{'s' * (len(_places(row)) == 1)} records that "
            "wait.",
            "Blocks are closed without them: drift and rates rest on the other partitions, and these records will be "
            "counted as late.",
        ]
    count = row.detail.get("more")
    more = f"So it was in {count} more place{'s' * (count != 1)}." if count else ""
    seen = f"That was at {since} of the stream's time; more of it within the hour is not told again, but listed."
    return [problem, more, _MEANING.get(str(_of_gap(row, "reason")), ""), seen]


_MEANING = {
    "retention": "They are in no count, no score and no alarm, and cannot be had any more.",
    "recreated": "What was not read of the old topic is lost, and it is not known how much. Results of the old topic "
    "stay; the new one is read from its beginning.",
    "truncated": "Records that were counted are gone, and other ones come under their offsets.",
    "damaged": "They are in no count, no score and no alarm; they still lie on the broker.",
}


def next_step(row: IncidentRow) -> str:
    """What to type, or to look at."""
    if row.kind == "source":
        return "driftd check"
    if row.kind == "dead_letter_wave":
        return f"driftd deadletters list; mend models.{row.model}.record, and restart driftd"
    if row.kind == "stalled":
        return "driftd check; then see that every worker runs, or add one: driftd run --workers N"
    return {
        "retention": "driftd doctor lists them; give the topic a longer retention.ms, or driftd more workers: "
        "driftd run --workers N",
        "recreated": "nothing, if it was on purpose; otherwise ask who deleted the topic",
        "truncated": "ask who runs the brokers; unclean.leader.election.enable should be false",
        "damaged": "driftd doctor lists their offsets; ask who writes the topic",
    }.get(str(_of_gap(row, "reason")), "driftd doctor")


def _of_gap(row: IncidentRow, name: str) -> object:
    values = row.detail.get("values")
    return values.get(name) if isinstance(values, Mapping) else None


def _places(row: IncidentRow) -> list[list[object]]:
    places = row.detail.get("partitions")
    return [list(place) for place in places] if isinstance(places, list) else []


def _named(row: IncidentRow) -> str:
    places = _places(row)
    topics = sorted({str(place[0]) for place in places})
    named = ", ".join(str(place[1]) for place in places[:_MOST_NAMED])
    more = f" and {len(places) - _MOST_NAMED} more" if len(places) > _MOST_NAMED else ""
    return f"partition{'s' * (len(places) != 1)} {named}{more} of {', '.join(topics)}"


def _lost(row: IncidentRow) -> str:
    count = _of_gap(row, "lost")
    # Up to: offsets of compacted and transactional topics have holes.
    return "a record" if count == 1 else f"up to {count:,} records" if isinstance(count, int) else "records"


def _sentence(text: str) -> str:
    text = text.strip()
    return f"{text[0].upper()}{text[1:]}{'' if text[-1] in '.!?' else '.'}" if text else ""
