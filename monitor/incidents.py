"""Incidents: from what the closed blocks say, to the few things that a person is told.

One reason to alert, one incident: at most one is open for a (model, kind, space, segment). Its life:

    opened ──► raised (a warning becomes a page) ──► resolved ──► reopened (within the cooldown) ──► ...

with a notification for each step, and one more for every ``repeat_interval_ms`` that it goes on. An incident may have
to last before people are told: for ``min_duration_ms``, and to the end of the grace period after a deployment. Until
then it is held: listed like any other, and told when there is evidence at the end of that time. If it is over before,
nobody is told.

Everything is a pure function of the blocks' evidence, and time is event time, so a replay gives the same incidents and
the same ids.

Incidents of the watching itself (monitor/operations.py) are left alone here, but for gaps, which end like all others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from connectors.database.rows import DeploymentRow, IncidentRow
from connectors.notification import Notification
from monitor import operations_wording
from monitor.deployments import as_known_at, grace_end_ms, nearest
from monitor.evidence import Evidence, Key, Severity
from monitor.priority import priority_of
from monitor.wording import numbers_of, text_of_incident, title_of

CauseOf = Callable[[IncidentRow], Mapping[str, object] | None]
Harm = Literal["low", "normal", "high"]
EventName = Literal["opened", "raised", "repeated", "resolved", "reopened"]

# Of the watching itself, not of what is watched: a worker opens and resolves them (monitor/operations.py).
OPERATIONAL = operations_wording.KINDS - {"gap"}
# Everything that an incident can be of.
KINDS = (
    *("drift", "outlier_rate", "encoder_suspected", "stale", "fraud_wave", "flood", "dead_letters"),
    *sorted(operations_wording.KINDS),
)
# Of what is watched: a new version of the model may be behind these.
_OF_THE_MODEL = frozenset({"drift", "outlier_rate"})

MOST_DOUBLINGS = 3  # an incident that keeps coming back must be quiet for up to 2^3 times as long
MOST_STRETCHES = 100  # of an incident's life that its detail keeps: the newest


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentPolicy:
    """When incidents are told, end and come back. All times are event time, in milliseconds.

    Attributes:
        resolve_after_ms: so long without active evidence, and it is over. Doubles each time that it comes back.
        cooldown_ms: what comes back within this time is the same incident again, not a new one.
        repeat_interval_ms: while it goes on, a notification so often.
        min_duration_ms: so long after it began, or came back, there must still be evidence before people are told.
        deploy_grace_ms: drift and outlier rates that open so soon after a deployment wait for the end of this time.
        harm: what wrong answers of the model cost. With "low" it warns where it would page.
    """

    resolve_after_ms: int = 300_000
    cooldown_ms: int = 3_600_000
    repeat_interval_ms: int = 4 * 3_600_000
    min_duration_ms: int = 0
    deploy_grace_ms: int = 0
    harm: Harm = "normal"


def advance(
    incidents: Sequence[IncidentRow],
    evidence: Iterable[Evidence],
    policy: IncidentPolicy,
    closed_ms: int,
    *,
    deployments: Sequence[DeploymentRow] = (),
    cause: CauseOf = lambda row: None,
) -> tuple[list[IncidentRow], list[Notification]]:
    """Take in newly closed blocks.

    Blocks may come one at a time or many at once: the incidents, the notifications and their ids are the same, as long
    as every closed block that has records brings at least one entry (`dead_letter_evidence` always does). A block that
    shows nothing is what lets an incident resolve; silence shows nothing either way.

    Args:
        incidents: the model's open incidents, and those resolved within the cooldown; older ones are passed over.
        evidence: of the newly closed blocks, in any order, at most one entry for a key and block.
        closed_ms: event time of the end of the last of these blocks.
        deployments: of the model, those of these blocks included, in the order of their blocks.
        cause: asked why an incident is there whenever it is told; must be a function of the blocks up to then. Its
            answer, JSON-compatible, is kept in the incident's detail and put into words.

    Returns:
        The incidents that are new or changed, in their last state, by id; and the notifications in the order of blocks
        and keys.
    """
    board = _Board(incidents, policy, deployments, cause)
    blocks: dict[int, list[Evidence]] = {}
    for entry in evidence:
        blocks.setdefault(entry.end_ms, []).append(entry)
    for end_ms, entries in sorted(blocks.items()):
        for entry in sorted(entries, key=lambda entry: entry.key):
            board.take(entry)
        board.resolve(end_ms)
    board.resolve(closed_ms)
    return sorted(board.changed.values(), key=lambda row: row.id), board.notifications


class _Board:
    """The incidents while blocks are taken in, one after the other."""

    def __init__(
        self,
        incidents: Sequence[IncidentRow],
        policy: IncidentPolicy,
        deployments: Sequence[DeploymentRow],
        cause: CauseOf,
    ) -> None:
        self.changed: dict[str, IncidentRow] = {}
        self.notifications: list[Notification] = []
        self._policy = policy
        self._deployments = deployments
        self._cause = cause
        # The latest incident of each key: only that one can go on or come back.
        self._latest: dict[Key, IncidentRow] = {}
        for row in sorted(incidents, key=lambda row: (row.status == "open", row.opened_ms, row.id)):
            if row.kind not in OPERATIONAL:
                self._latest[_key_of(row)] = row

    def take(self, evidence: Evidence) -> None:
        """One block's evidence for one key."""
        if self._policy.harm == "low" and evidence.severity == "page":
            evidence = replace(evidence, severity="warn", may_not_page=True)
        row = self._latest.get(evidence.key)
        if row is not None and row.status == "open":
            if evidence.active or evidence.severity is not None:
                self._go_on(row, evidence)
        elif evidence.severity is not None:
            resolved_ms = None if row is None else row.resolved_ms
            if row is None or resolved_ms is None or evidence.start_ms - resolved_ms > self._policy.cooldown_ms:
                self._open(evidence, evidence.severity)
            else:
                self._reopen(row, evidence, evidence.severity)

    def resolve(self, end_ms: int) -> None:
        """End what had no evidence for long enough, at the end of a block."""
        for key in sorted(self._latest):
            row = self._latest[key]
            if row.status != "open":
                continue
            wait_ms = self._policy.resolve_after_ms << min(_count(row, "flaps"), MOST_DOUBLINGS)
            if end_ms - _count(row, "last_active_ms") >= wait_ms:
                over = replace(row, status="resolved", resolved_ms=end_ms, updated_ms=end_ms, detail=_over(row, end_ms))
                if is_held(row):
                    # Whoever was told at all was told of its end before it came back.
                    self._count_revision(replace(over, detail={**_released(row.detail), "brief": True}))
                else:
                    self._tell(over, "resolved", end_ms)

    def _open(self, evidence: Evidence, severity: Severity) -> None:
        row = IncidentRow(
            id=incident_id(evidence.key, evidence.block),
            model=evidence.model,
            kind=evidence.kind,
            space=evidence.space,
            segment=evidence.segment,
            severity=severity,
            status="open",
            opened_ms=evidence.end_ms,
            onset_ms=_onset(evidence),
            updated_ms=evidence.end_ms,
            resolved_ms=None,
            revision=0,
            reference=evidence.reference,
            title="",
            text="",
            detail={
                "opening_block": evidence.block,
                "flaps": 0,
                "severity_now": severity,
                **_facts(evidence),
                **_paged({}, severity, evidence.end_ms),
            },
        )
        self._begin(row, "opened", evidence)

    def _reopen(self, row: IncidentRow, evidence: Evidence, severity: Severity) -> None:
        detail = {**row.detail, **_facts(evidence), "flaps": _count(row, "flaps") + 1, "severity_now": severity}
        detail |= _paged(row.detail, severity, evidence.end_ms)
        for name in ("acknowledged", "brief"):  # of the time before it was over
            detail.pop(name, None)
        reopened = replace(
            row,
            status="open",
            severity="page" if "page" in (row.severity, severity) else "warn",
            resolved_ms=None,
            updated_ms=evidence.end_ms,
            detail=detail,
        )
        self._begin(reopened, "reopened", evidence)

    def _begin(self, row: IncidentRow, name: EventName, evidence: Evidence) -> None:
        """Tell that it opened or came back, or hold that until it has lasted."""
        row = self._beside_deployments(replace(row, detail={**row.detail, "harm": self._policy.harm}), evidence.block)
        until_ms = evidence.end_ms + self._policy.min_duration_ms
        if row.kind in _OF_THE_MODEL:
            known = as_known_at(self._deployments, evidence.block)
            until_ms = max(until_ms, grace_end_ms(known, evidence.end_ms, self._policy.deploy_grace_ms) or 0)
        if until_ms <= evidence.end_ms:
            self._tell(row, name, evidence.end_ms)
            return
        quiet = row.detail.get("quiet", name == "opened")
        self._count_revision(
            replace(row, detail={**row.detail, "held": name, "held_until_ms": until_ms, "quiet": quiet})
        )

    def _beside_deployments(self, row: IncidentRow, block: int) -> IncidentRow:
        """The incident with the deployment next to its onset, if there is one near."""
        if row.kind not in _OF_THE_MODEL:
            return row
        detail = {name: value for name, value in row.detail.items() if name != "deployment"}
        found = nearest(as_known_at(self._deployments, block), row.onset_ms)
        if found is not None:
            detail["deployment"] = {"version": found.version, "start_ms": found.start_ms}
        return replace(row, detail=detail)

    def _go_on(self, row: IncidentRow, evidence: Evidence) -> None:
        raised = evidence.severity == "page" and row.detail.get("severity_now") != "page"
        facts: dict[str, object] = {"last_active_ms": evidence.end_ms}
        if raised or (evidence.severity is not None and evidence.n > 0 and _rank(evidence) > _rank_of(row)):
            facts = _facts(evidence)
        if raised:
            facts["severity_now"] = "page"
            facts |= _paged(row.detail, "page", evidence.end_ms)
        following = replace(
            row,
            severity="page" if raised else row.severity,
            onset_ms=min(row.onset_ms, _onset(evidence)) if evidence.severity is not None else row.onset_ms,
            updated_ms=evidence.end_ms,
            detail={**row.detail, **facts},
        )
        if following.onset_ms != row.onset_ms:
            following = self._beside_deployments(following, evidence.block)
        held = row.detail.get("held")
        if held is not None and evidence.end_ms >= _count(row, "held_until_ms"):
            name: EventName = "opened" if held == "opened" else "reopened"
            self._tell(replace(following, detail=_released(following.detail)), name, evidence.end_ms)
        elif raised and held is None:
            self._tell(following, "raised", evidence.end_ms)
        elif held is None and evidence.end_ms - _count(row, "last_told_ms") >= self._policy.repeat_interval_ms:
            self._tell(following, "repeated", evidence.end_ms)
        else:
            # The first blocks rarely hold the whole story: after 1, 4, 16, ... blocks it is told anew, to who asks.
            age = evidence.block - _count(row, "opening_block")
            shown = not row.segment or row.detail.get("quiet") is not True
            again = age & (age - 1) == 0 and age.bit_length() % 2 == 1 and shown
            self._keep(self._worded(following) if again or raised else following)

    def _tell(self, row: IncidentRow, name: EventName, at_ms: int) -> None:
        """Count the revision, write title and text, and notify, unless it was said of the whole traffic already."""
        quiet = row.detail.get("quiet") is True if name == "resolved" else self._is_covered(row)
        if name == "reopened" and row.detail.get("quiet") is True:
            name = "opened"  # to people it is new
        detail = {**row.detail, "last_told_ms": at_ms}
        if row.segment or "quiet" in detail:
            detail["quiet"] = quiet and row.detail.get("quiet", True)  # until it is told for the first time
        if not quiet and name != "resolved":
            detail["told"] = _told(detail, at_ms)
        row = self._count_revision(replace(row, detail=detail))
        if not quiet:
            self.notifications.append(notification_of(row, name))

    def _count_revision(self, row: IncidentRow) -> IncidentRow:
        row = self._worded(replace(row, revision=row.revision + 1))
        self._keep(row)
        return row

    def _worded(self, row: IncidentRow) -> IncidentRow:
        """The incident with its cause, title and text as of now."""
        if (cause := self._cause(row)) is not None:
            row = replace(row, detail={**row.detail, "cause": cause})
        row = replace(row, title=title_of(row))
        return replace(row, text=text_of_incident(row))

    def _is_covered(self, row: IncidentRow) -> bool:
        """Whether the whole traffic of the space has an open incident of the same kind, told and as urgent.

        One change is seen by the whole and by each segment that it touches: people are told once, and find the
        segments in the list, in the cause and in the report.
        """
        whole = self._latest.get((row.model, row.kind, row.space, ""))
        if not row.segment or whole is None or whole.status != "open" or is_held(whole):
            return False
        return whole.detail.get("severity_now") == "page" or row.detail.get("severity_now") != "page"

    def _keep(self, row: IncidentRow) -> None:
        self.changed[row.id] = row
        self._latest[_key_of(row)] = row


def _key_of(row: IncidentRow) -> Key:
    # Those of several topics and hours may be open at once; none has evidence, and none comes back.
    return row.model, row.kind, row.space, row.id if row.kind == "gap" else row.segment


_PREFIX = {
    "opened": "",
    "raised": "Now a page: ",
    "repeated": "Still so: ",
    "reopened": "Back again: ",
    "resolved": "Resolved: ",
}


def notification_of(row: IncidentRow, name: EventName) -> Notification:
    """What to tell about an incident that just changed."""
    return Notification(
        id=_digest(row.id, name, row.revision)[:32],
        incident=row.id,
        group_key="/".join((row.model, row.kind, row.space, row.segment)),
        status="resolved" if row.status == "resolved" else "firing",
        severity="page" if row.detail.get("severity_now") == "page" else "warn",
        model=row.model,
        kind=row.kind,
        space=row.space,
        segment=row.segment,
        title=_PREFIX[name] + row.title,
        text=row.text,
        starts_ms=row.onset_ms,
        ends_ms=row.resolved_ms,
        values={"event": name, "revision": str(row.revision), "priority": priority_of(row), **numbers_of(row)},
    )


def is_held(row: IncidentRow) -> bool:
    """Whether an open incident must last before people are told."""
    return "held" in row.detail


def incident_id(key: Key, block: int) -> str:
    """The id of the incident that this block opens: 12 hexadecimal digits, short enough to type at night."""
    return _digest(*key, block)[:12]


def _facts(evidence: Evidence) -> dict[str, object]:
    """What the strongest evidence said; kept in the incident's detail."""
    return {
        "last_active_ms": evidence.end_ms,
        "severity_seen": evidence.severity,
        "block_ms": evidence.end_ms - evidence.start_ms,
        "channel": evidence.channel,
        "strength": evidence.strength,
        "threshold": evidence.threshold,
        "n": evidence.n,
        "effect": evidence.effect,
        "onset_from_ms": evidence.onset_from_ms,
        "onset_to_ms": evidence.onset_to_ms,
        "may_not_page": evidence.may_not_page,
        "values": dict(evidence.values),
    }


def _released(detail: Mapping[str, object]) -> dict[str, object]:
    """The detail of an incident that is held no more."""
    return {name: value for name, value in detail.items() if name not in ("held", "held_until_ms")}


def _paged(detail: Mapping[str, object], severity: Severity, at_ms: int) -> dict[str, object]:
    """When the incident first was a page, in event time; nothing for a warning."""
    return {"paged_ms": detail.get("paged_ms", at_ms)} if severity == "page" else {}


def _told(detail: Mapping[str, object], at_ms: int) -> Sequence[object]:
    """The stretches of event time in which people knew of it: [from, to or None, "page" or "warn"], oldest first."""
    stretches = _stretches(detail)
    severity = detail.get("severity_now")
    if stretches and stretches[-1][1] is None:
        if stretches[-1][2] == severity:
            return stretches
        stretches[-1] = [stretches[-1][0], at_ms, stretches[-1][2]]
    return [*stretches, [at_ms, None, severity]][-MOST_STRETCHES:]


def _over(row: IncidentRow, end_ms: int) -> dict[str, object]:
    """The detail of an incident that is over: what people knew of ends there."""
    stretches = _stretches(row.detail)
    if not stretches or stretches[-1][1] is not None:
        return row.detail
    return {**row.detail, "told": [*stretches[:-1], [stretches[-1][0], end_ms, stretches[-1][2]]]}


def _stretches(detail: Mapping[str, object]) -> list[list[object]]:
    found = detail.get("told")
    return [stretch for stretch in found if isinstance(stretch, list)] if isinstance(found, list) else []


def _rank(evidence: Evidence) -> tuple[bool, float]:
    return evidence.severity == "page" or evidence.may_not_page, evidence.strength


def _rank_of(row: IncidentRow) -> tuple[bool, float]:
    strength, paged = row.detail.get("strength"), row.detail.get("severity_seen") == "page"
    pages = paged or row.detail.get("may_not_page") is True
    return pages, float(strength) if isinstance(strength, int | float) else 0.0


def _onset(evidence: Evidence) -> int:
    return evidence.start_ms if evidence.onset_ms is None else min(evidence.onset_ms, evidence.start_ms)


def _count(row: IncidentRow, name: str) -> int:
    value = row.detail.get(name, 0)
    return value if isinstance(value, int) else 0


def _digest(*parts: str | int) -> str:
    # JSON keeps the parts apart: ("a", "bc") and ("ab", "c") differ.
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
