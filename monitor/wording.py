"""What incidents say, for a person who was asleep a minute ago: what, since when, how strong, what to do next.

All numbers come out of the incident's ``detail``, so that a stored incident can be told again at any time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from connectors.database.rows import IncidentRow, MuteRow
from monitor import fraud_wording, operations_wording, verdict_wording
from monitor.amounts import duration, percent
from monitor.priority import priority_of
from monitor.times import text_of

_FOREVER_S = 1_000 * 365.25 * 86_400


def chance(strength: float, block_ms: int) -> str:
    """ "once in 90 days": how often evidence of this strength (log10 blocks) appears by chance."""
    if not math.isfinite(strength) or strength + math.log10(max(block_ms, 1) / 1000) >= math.log10(_FOREVER_S):
        return "less than once in 1,000 years"
    return f"once in {duration(10.0**strength * block_ms / 1000)}"


def title_of(row: IncidentRow) -> str:
    """One line: the model, what is wrong, and where."""
    where = f" ({row.segment})" if row.segment else ""
    sure = row.severity == "page" or row.detail.get("may_not_page") is True
    if row.kind == "drift":
        what = f"{row.space} has drifted" if sure else f"{row.space} may be drifting"
    elif row.kind == "outlier_rate":
        what = f"{'far too' if sure else 'too'} many outliers in {row.space}"
    elif row.kind == "encoder_suspected":
        what = f"the encoder behind {row.space} has changed, as it seems"
    elif row.kind in fraud_wording.KINDS:
        what = fraud_wording.title(row)
    elif row.kind == verdict_wording.STALE:
        what = verdict_wording.title(row)
    elif row.kind == "dead_letters":
        what = f"{percent(_number(row.detail, 'effect'))} of the records cannot be used"
    elif row.kind in operations_wording.KINDS:
        what = operations_wording.title(row)
    else:
        what = f"{row.kind} in {row.space}" if row.space else row.kind
    return f"{row.model}: {what}{where}"


def text_of_incident(row: IncidentRow) -> str:
    """A few sentences."""
    if row.kind in operations_wording.KINDS:
        over = f"Over since {text_of(row.resolved_ms)}." if row.resolved_ms is not None else ""
        following = f"Next: {operations_wording.next_step(row)}" if row.status == "open" else ""
        return " ".join(part for part in (*operations_wording.sentences(row), over, following) if part)
    detail = row.detail
    n, effect = round(_number(detail, "n")), _number(detail, "effect")
    place = f"space {row.space}, segment {row.segment}" if row.segment else f"space {row.space}"
    since = f"Since about {text_of(row.onset_ms)}{_between(row)}"
    values = detail.get("values")
    values = values if isinstance(values, Mapping) else {}
    if row.kind == "drift":
        what = f"{since} {_shift(str(detail.get('channel', '')), effect, place, row.reference)}, seen in {n:,} records."
    elif row.kind == "outlier_rate":
        usual = _number(values, "expected")
        what = (
            f"{since} {percent(_number(values, 'rate'))} of the records of {place} are as strange as the strangest "
            f"{percent(usual)} of reference {row.reference}: {effect:.1f} times as many as usual, in {n:,} records."
        )
    elif row.kind == "encoder_suspected":
        what = _jumped(since, values, row, n)
    elif row.kind in fraud_wording.KINDS:
        what = f"{since} {fraud_wording.what(row)}"
    elif row.kind == verdict_wording.STALE:
        what = f"{since} {' '.join(verdict_wording.sentences(row))}"
    elif row.kind == "dead_letters":
        reason = values.get("reason")
        what = (
            f"{since} {percent(effect)} of {n:,} records cannot be used (limit {percent(_number(values, 'limit'))})"
            f"{f'; most of them: {reason}' if reason else ''}. They are counted and stored, and not scored."
        )
    else:
        what = f"{since}: {row.kind}."
    sentences = [what]
    if after := _beside_deployment(row):
        sentences.append(after)
    cause = detail.get("cause")
    if isinstance(cause, Mapping):
        in_words = (
            fraud_wording.groups(cause) if row.kind in fraud_wording.KINDS else cause_in_words(cause, row.segment)
        )
        sentences += [in_words] if in_words else []
    if row.kind not in ("dead_letters", "encoder_suspected", fraud_wording.FLOOD, verdict_wording.STALE):
        strength, block_ms = _number(detail, "strength"), round(_number(detail, "block_ms"))
        sentences.append(f"By chance, such evidence appears {chance(strength, block_ms)}.")
    if values.get("only_warns"):
        sentences.append(f"This alarm may only warn, because its baseline is small: {values['only_warns']}.")
    if detail.get("may_not_page") is True:
        sentences.append(f"It would page, but models.{row.model}.harm is low, so it only warns.")
    flaps = round(_number(detail, "flaps"))
    if flaps:
        sentences.append(f"It came back {'once' if flaps == 1 else f'{flaps} times'} after it had resolved.")
    if row.status == "resolved" and row.resolved_ms is not None:
        last = text_of(round(_number(detail, "last_active_ms", row.resolved_ms)))
        sentences.append(f"Last seen at {last}; resolved at {text_of(row.resolved_ms)}.")
    if row.kind == verdict_wording.STALE:
        sentences.append(f"Next: driftd verdict --model {row.model}")
    else:
        sentences.append(f"Next: driftd {'incidents' if cause is None else 'explain'} {row.id}")
    return " ".join(sentences)


def cause_in_words(cause: Mapping[str, object], segment: str = "") -> str:
    """One sentence of a stored cause: where the change comes from, and what there is more of now; "" if unknown.

    Args:
        cause: as `monitor.causes.cause_of` gives it.
        segment: of the incident; "" for the whole traffic.
    """
    parts = []
    # A segment is named where it carries clearly more than its share of the traffic would.
    for row in _rows(cause, "segments")[:1]:
        part, share = _number(row, "part"), _number(row, "share")
        if part >= 0.3 and part >= share + 0.1:
            whose = "the change of the whole traffic" if segment else "the change"
            size = whose if part >= 0.95 else f"{percent(part)} of {whose}"
            parts.append(f"{size} comes from {'here' if segment else row.get('segment')}")
            if abs(_number(row, "moved")) > abs(_number(row, "own")):
                parts[-1] += f", which went from {percent(_number(row, 'before'))} to {percent(share)} of the records"
    prototypes = _rows(cause, "prototypes")
    grown = [row for row in prototypes if _number(row, "z") > 0]
    for row in (grown or prototypes)[:1]:
        exemplar = row.get("exemplar")
        like = str(exemplar.get("id") or "") if isinstance(exemplar, Mapping) else ""
        went = "grew" if grown else "shrank"
        parts.append(
            f"prototype {row.get('prototype')}{f' (like record {like})' if like else ''} {went} from "
            f"{percent(_number(row, 'expected'))} to {percent(_number(row, 'share'))}"
        )
    strangest = [str(row.get("id")) for row in _rows(cause, "strangest")[:3]]
    if not prototypes and strangest:
        parts.append(f"the strangest records since then: {', '.join(strangest)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def status_of(row: IncidentRow) -> str:
    """ "open" or "resolved", and what people said of it or were not told."""
    return ", ".join((row.status, *notes_of(row)))


def notes_of(row: IncidentRow) -> list[str]:
    """Why people were not told of it, and what they said of it: "over before it was told", "called false"."""
    notes = []
    if "held" in row.detail:
        notes.append(f"not told before {text_of(round(_number(row.detail, 'held_until_ms')))}")
    elif row.detail.get("brief") is True:
        notes.append("over before it was told")
    elif row.segment and row.detail.get("quiet") is True:
        notes.append("told with the whole traffic")
    if "verdict" in row.detail:
        notes.append(f"called {row.detail['verdict']}")
    return notes


def acknowledged_by(row: IncidentRow) -> str:
    """Who takes care of it and since when, by the wall clock: "kari, 2026-01-31 12:00:00Z"; "" if nobody said so."""
    said = row.detail.get("acknowledged")
    return f"{said.get('by')}, {text_of(round(_number(said, 'at_ms')))}" if isinstance(said, Mapping) else ""


def muted_until(mute: MuteRow) -> str:
    """Until when, who said so, and why: "2026-01-31 12:00:00Z by kari: the topic moves"."""
    return f"{text_of(mute.until_ms)} by {mute.by}: {mute.reason}"


def describe(row: IncidentRow, mute: MuteRow | None = None) -> str:
    """Everything about one incident, as lines for a terminal.

    Args:
        mute: that covers it now; None where none does.
    """
    facts: list[tuple[str, str]] = [
        ("incident", row.id),
        ("status", status_of(row)),
        ("severity", row.severity),
        ("priority", priority_of(row)),
        ("since", text_of(row.onset_ms)),
        ("opened", text_of(row.opened_ms)),
    ]
    if row.kind not in operations_wording.KINDS:
        facts.append(("last seen", text_of(round(_number(row.detail, "last_active_ms", row.updated_ms)))))
    if row.resolved_ms is not None:
        facts.append(("resolved", text_of(row.resolved_ms)))
    if acknowledged := acknowledged_by(row):
        facts.append(("acknowledged", acknowledged))
    if mute is not None and row.status == "open":
        facts.append(("muted", muted_until(mute)))
    facts += [("model", row.model), ("kind", row.kind)]
    facts += [(name, value) for name, value in (("space", row.space), ("segment", row.segment)) if value]
    if row.reference:
        facts.append(("reference", str(row.reference)))
    facts += [(name, value) for name, value in numbers_of(row).items() if name not in ("reference", "onset")]
    lines = [row.title, "", *(f"  {name.replace('_', ' '):<12} {value}" for name, value in facts), "", row.text]
    if row.kind == "dead_letters":
        lines += ["Look at them: driftd deadletters list"]
    elif row.kind in operations_wording.KINDS:
        pass  # the text ends with what to do
    elif row.status == "open":
        lines += [f"See the records behind it: driftd report --model {row.model}"]
    return "\n".join(lines)


def numbers_of(row: IncidentRow) -> dict[str, str]:
    """The numbers of an incident as texts, for the fields of a notification."""
    numbers: dict[str, str] = {"onset": text_of(row.onset_ms)}
    if row.reference:
        numbers["reference"] = str(row.reference)
    for name in ("channel", "strength", "threshold", "effect", "n", "flaps"):
        value = row.detail.get(name)
        if value not in (None, "", 0):
            numbers[name] = _plain(value)
    deployment = row.detail.get("deployment")
    if isinstance(deployment, Mapping):
        numbers["deployed"] = str(deployment.get("version"))
    values = row.detail.get("values")
    if isinstance(values, Mapping):
        known = {name: value for name, value in values.items() if value is not None and value == value}
        numbers |= {str(name): _plain(value) for name, value in known.items()}
    return numbers


def _beside_deployment(row: IncidentRow) -> str:
    """Where the onset lies beside the deployment next to it: a sentence, or "" where none is near."""
    found = row.detail.get("deployment")
    if not isinstance(found, Mapping):
        return ""
    start_ms, version = round(_number(found, "start_ms")), found.get("version")
    lag_s = (row.onset_ms - start_ms) / 1000
    if abs(lag_s) <= _number(row.detail, "block_ms") / 1000:
        return f"That is about when version {version} was deployed ({text_of(start_ms)})."
    side = "after" if lag_s > 0 else "before"
    return f"That is since about {duration(abs(lag_s))} {side} version {version} was deployed ({text_of(start_ms)})."


def _between(row: IncidentRow) -> str:
    """The interval of the onset, where the detail holds one that the onset lies in."""
    begin, end = (row.detail.get(name) for name in ("onset_from_ms", "onset_to_ms"))
    if not (isinstance(begin, int) and isinstance(end, int) and begin <= row.onset_ms <= end):
        return ""
    return f", between {text_of(begin)} and {text_of(end)},"


def _shift(channel: str, effect: float, place: str, reference: int) -> str:
    against = f"reference {reference}"
    if channel == "level":
        return f"the average record of {place} lies {effect:.2f} standard deviations away from {against}"
    if channel == "shape":
        where = "further out than" if effect >= 0 else "closer to the centre than"
        return f"the records of {place} lie {where} those of {against} (mean normal score {effect:+.2f})"
    if channel == "mix":
        return f"the mix of kinds of records of {place} differs from {against} by {effect:.2f} standard deviations"
    return f"the records of {place} differ from {against}"


_JUMPS = {
    "norms": "have lengths that the baseline does not have",
    "far": "are stranger than 63 in 64 of the baseline",
    "moved": "lie at another distance than those of the baseline, spread over the same kinds as ever",
    "shifted": "have moved the same way, spread over the same kinds as ever",
}


def _jumped(since: str, values: Mapping[str, object], row: IncidentRow, n: int) -> str:
    """What is seen of ready vectors that another encoder seems to have made."""
    how = _JUMPS.get(str(values.get("why")), "differ from the baseline")
    return (
        f"{since} nearly all vectors of space {row.space} {how} (reference {row.reference}; {n:,} records), all at "
        "once. A world that changes leaves some records as they were; another encoder, or another preparation of its "
        "inputs, does not. Drift and outlier rates of this space are not told until it is over. Put the old encoder "
        "back, or build a reference with the new one."
    )


def _number(values: Mapping[str, object], name: str, default: float = 0.0) -> float:
    value = values.get(name, default)
    return float(value) if isinstance(value, int | float) else default


def _rows(values: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    rows = values.get(name)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
