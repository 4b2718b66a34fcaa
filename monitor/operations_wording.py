"""What incidents of the watching itself say: what happened, what it means for the numbers, what to type.

All of it comes out of the incident's ``detail``, as `monitor.operations` wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from connectors.database.rows import IncidentRow
from monitor.amounts import duration, percent
from monitor.times import text_of

KINDS = frozenset(
    {
        "source",
        "dead_letter_wave",
        "stalled",
        "gap",
        "silent",
        "lag",
        "embedder",
        "encoder_changed",
        "vectors",
        "clock",
        "sink",
        "fraud_changed",
    },
)

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
    if row.kind in _WORDED:
        return _WORDED[row.kind].title(row)
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
    if row.kind in _WORDED:
        words = _WORDED[row.kind]
        return [f"Since {since} {words.what(row)}", words.meaning]
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
    if row.kind in _WORDED:
        return _WORDED[row.kind].next_step
    return {
        "retention": "driftd doctor lists them; give the topic a longer retention.ms, or driftd more workers: "
        "driftd run --workers N",
        "recreated": "nothing, if it was on purpose; otherwise ask who deleted the topic",
        "truncated": "ask who runs the brokers; unclean.leader.election.enable should be false",
        "damaged": "driftd doctor lists their offsets; ask who writes the topic",
    }.get(str(_of_gap(row, "reason")), "driftd doctor")


def _title_of_vectors(row: IncidentRow) -> str:
    where = f" of {row.detail['vectors_space']}" if row.detail.get("vectors_space") else ""
    if row.detail.get("what") == "constant":
        return f"all vectors{where} are the same"
    return f"{_share(row, _number(row, 'count'))} of the vectors{where} are zero or not finite"


def _title_of_clock(row: IncidentRow) -> str:
    if _number(row, "ahead_s"):
        return f"its records come from {duration(_number(row, 'ahead_s'))} ahead of our clock"
    return f"{_share(row, _total(row))} of the records have a wrong time"


def _silent(row: IncidentRow) -> str:
    span, longest, limit, every = (
        duration(_number(row, name)) for name in ("span_s", "longest_s", "limit_s", "every_s")
    )
    return (
        f"no record has come, though the source answers and all that is in it was read. In {span} before, the longest "
        f"silence was {longest}; one of more than {limit} should come less than once in {every}."
    )


def _lag(row: IncidentRow) -> str:
    return (
        f"more records come than are read: {round(_number(row, 'records')):,} waited when this was opened, and the "
        f"last one that was read was {duration(_number(row, 'lag_s'))} old (limit {duration(_number(row, 'limit_s'))})."
    )


def _embedder(row: IncidentRow) -> str:
    return (
        f"{_total(row):,} of {round(_number(row, 'records')):,} records have no vector that can be used: "
        f"{_reasons(row)}."
    )


def _encoder_changed(row: IncidentRow) -> str:
    changed, canaries = round(_number(row, "changed")), round(_number(row, "canaries"))
    return (
        f"the encoder of {row.detail.get('encoder_space', '')} makes other vectors than when the reference was built: "
        f"of {changed:,} of {canaries:,} canaries. {_sentence(str(row.detail.get('problem', '')))}"
    )


_CAUSES = {
    "dimension": "another number of dimensions",
    "refused": "it refuses inputs that it took",
    "normalisation": "another normalisation",
    "rotation": "its space was turned",
    "preprocessing": "another tokenizer or preprocessing",
    "numeric": "rounded weights or another arithmetic",
    "model": "another model, pooling or prefix",
}


def _vectors(row: IncidentRow) -> str:
    records, count = round(_number(row, "records")), round(_number(row, "count"))
    if row.detail.get("what") == "constant":
        return f"{records:,} records in a row have the very same vector; in the reference they differ."
    return f"{count:,} of {records:,} vectors are zero or not finite, far more than in the reference."


def _clock(row: IncidentRow) -> str:
    if ahead_s := _number(row, "ahead_s"):
        return (
            f"most records carry a time of the broker that is {duration(ahead_s)} ahead of this machine's clock. It is "
            "the broker's own, or that of who writes, as message.timestamp.type says."
        )
    return f"{_total(row):,} of {round(_number(row, 'records')):,} records have a time that cannot be: {_reasons(row)}."


def _sink(row: IncidentRow) -> str:
    given_up = " A notification was given up: it will not arrive there." if row.detail.get("given_up") else ""
    return f"a sink does not take notifications. {_sentence(str(row.detail.get('problem', '')))}{given_up}"


def _fraud_changed(row: IncidentRow) -> str:
    return (
        f"answers no longer follow from the features as they did: of the latest {round(_number(row, 'answers'))}, "
        f"{percent(_number(row, 'found'))} are fraud, where {percent(_number(row, 'foretold'))} were expected."
    )


class _Words(NamedTuple):
    title: Callable[[IncidentRow], str]
    what: Callable[[IncidentRow], str]
    meaning: str
    next_step: str


_WORDED = {
    "sink": _Words(
        lambda row: "alerts do not get through",
        _sink,
        "Who listens there hears nothing new. What can be tried again is tried for about a day; scoring and the other "
        "sinks go on.",
        "driftd check; then mend the receiver, or the sink in the settings",
    ),
    "fraud_changed": _Words(
        lambda row: "fraud itself seems to have changed",
        _fraud_changed,
        "A new kind of fraud, a new policy of what is called fraud, or a field that changed its meaning: the score "
        "learns from each answer, but what it knew is worth less.",
        "look at the latest labels, and at who gave them; label more of the review sample",
    ),
    "silent": _Words(
        lambda row: "no records come any more",
        _silent,
        "What is shown of this model is from before; what it does now is not seen, and silence is no evidence that all "
        "is well.",
        "driftd check; then see whether what writes the records runs, and still writes them there. If it stopped for "
        "good, take the model out of the settings",
    ),
    "lag": _Words(
        lambda row: "it falls behind",
        _lag,
        "What is shown is true of then, not of now: drift and outliers are told late by as much, and records that the "
        "broker deletes first are never seen.",
        "driftd run --workers N with more workers, up to the number of partitions; if the processors are not busy, "
        "look at the database: driftd doctor",
    ),
    "embedder": _Words(
        lambda row: f"{_share(row, _total(row))} of the records cannot be embedded",
        _embedder,
        "These records are dead letters: they are stored, and not scored. Drift is judged by the others, which may be "
        "a selection.",
        "driftd deadletters list; see whether what writes the vectors, or the encoder, was changed. When it is mended: "
        "driftd deadletters retry",
    ),
    "encoder_changed": _Words(
        lambda row: (
            f"the encoder of {row.detail.get('encoder_space', '')} was changed: "
            f"{_CAUSES.get(str(row.detail.get('cause')), 'other vectors')}"
        ),
        _encoder_changed,
        "The world did not change, so no drift is told of it. Reading waits: nothing is scored and nothing is lost, as "
        "long as the broker keeps it. It goes on by itself when the canaries have their vectors again.",
        "roll the encoder back; or, if it is the new one for good: driftd reference build, then start driftd again. "
        "driftd check shows the canaries",
    ),
    "vectors": _Words(
        _title_of_vectors,
        _vectors,
        "Vectors that do not follow their records show no drift, or only their own defect: do not rely on scores and "
        "drift of this model until it is over.",
        "look at the field that the embedder reads in a fresh record; ask who runs the encoder what it gives when it "
        "fails",
    ),
    "clock": _Words(
        _title_of_clock,
        _clock,
        "Blocks of event time hold other records than they should: onsets and rates may be wrong, records may count as "
        "late, and those out of bounds are dead letters.",
        "compare the clocks (timedatectl, on the brokers too) and the unit in record.time; driftd deadletters list "
        "shows what was refused",
    ),
}


def _reasons(row: IncidentRow) -> str:
    found = row.detail.get("reasons")
    counts = sorted(found.items(), key=lambda item: (-item[1], item[0])) if isinstance(found, Mapping) else []
    return ", ".join(f"{count:,} {_WORDS.get(reason, reason)}" for reason, count in counts)


_WORDS = {
    "embedder_failed": "on which the embedder failed",
    "bad_vector": "with something else than numbers",
    "wrong_dimension": "of another length than the reference's",
    "not_finite": "with NaN or infinity",
    "bad_time": "in another unit than the settings say",
    "time_past": "too far back",
    "time_future": "too far ahead",
    "ahead_of_broker": "more than a minute after the broker's time",
}


def _total(row: IncidentRow) -> int:
    found = row.detail.get("reasons")
    return sum(found.values()) if isinstance(found, Mapping) else 0


def _share(row: IncidentRow, count: float) -> str:
    """Of the records that the incident is about."""
    return percent(count / max(_number(row, "records"), 1.0))


def _number(row: IncidentRow, name: str) -> float:
    value = row.detail.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


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
