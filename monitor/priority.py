"""How urgent an incident is beside others, as one of four priorities: severity, then harm and the size of the change.

    severity   large change, or harm: high   otherwise   harm: low
    page       P1                            P2          (only of the watching itself) P2
    warn       P3                            P4          P4

Severity comes first, because it is what the alarm budget speaks for: it says how sure the alarm is, and nothing makes a
page of a warning. Harm and the size say what it costs to be right and late, so they order what is equally sure.
"""

from __future__ import annotations

from typing import Final, Literal

from connectors.database.rows import IncidentRow

Priority = Literal["P1", "P2", "P3", "P4"]

# From which effect on a change is large, by kind of incident.
LARGE: Final = {
    "drift": 0.8,  # standard deviations: what Cohen (1988) calls large
    "outlier_rate": 10.0,  # times as many as usual
    "fraud_wave": 10.0,  # likewise
    "flood": 10.0,  # times as many near-identical records as are a flood
    "dead_letters": 0.5,  # of the records: half of the traffic is not watched
}


def priority_of(row: IncidentRow) -> Priority:
    """The priority of an incident, open or resolved, as it was told last."""
    effect, harm = row.detail.get("effect"), row.detail.get("harm", "normal")
    size = abs(effect) if isinstance(effect, int | float) else 0.0
    more = harm == "high" or (harm != "low" and size >= LARGE.get(row.kind, float("inf")))
    if row.detail.get("severity_now", row.severity) == "page":
        return "P1" if more else "P2"
    return "P3" if more else "P4"
