"""How long a stream may be silent: as long as its own past makes likely.

A stream says nothing for a while now and then: by chance where records are few, between two batches, in each night, at
each weekend. Its longest silence in a past of ``span`` seconds is what comes about once in ``span``. Beyond the longest
ones seen, silences are taken to thin out like those of a Poisson process, at a rate of their own: one that is longer by
the mean excess ``m`` is rarer by the factor 2.718 (the exponential tail of extreme value theory: Pickands 1975). So
what comes once in ``every`` seconds is

    limit = longest + m * log(1 + every / span)

The 1 pays for what the tail is estimated with: for Poisson processes of any rate, also where records come in bursts,
the mean of false alarms in ``every`` is just below one. (The longest of many exponential silences follows Gumbel's law,
under which exp(-(longest - its place) / m) has the mean 1.) Seasons need no model: silences of the night are the
longest ones, and it is their tail that is continued.

Until a whole day has been seen, the limit is at least as long as all that has been seen, and six times the usual wait:
ten minutes of records do not tell what a night looks like, or when the next batch comes.

Silences are measured twice, from the begin of one block that holds records to the begin of the next: in event time,
which tells of the past that a topic still held when driftd began to read it; and in the time at which they were closed,
which tells of records that come in batches. Where both say something, the longer limit holds. A time in which driftd
itself did not run is a silence of the second kind: it can only make the limit longer, for as long as it is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from connectors.database.rows import Silences

TAIL = 32  # the longest silences, from which the mean excess is taken
REMEMBERED_DAYS = 28.0
DAY_S = 86_400.0
FIRST_DAY_WAITS = 6


def silence_limit(pasts: Sequence[Silences], *, every_s: float, wait_s: float) -> float:
    """Seconds of silence that are expected once in ``every_s``; at least ``wait_s``.

    Args:
        pasts: the past, measured in several ways; of each the `TAIL` + 1 longest silences, all where there were fewer.
        every_s: time in which one false alarm may come.
    """
    seen_s = max((past.span_s for past in pasts), default=0.0)
    least_s = wait_s if seen_s >= DAY_S else max(seen_s, FIRST_DAY_WAITS * wait_s)
    return max(least_s, *(_tail_limit(past, every_s) for past in pasts))


def _tail_limit(past: Silences, every_s: float) -> float:
    if not past.longest_s:
        return 0.0
    tail = past.longest_s[:TAIL]
    threshold_s = past.longest_s[TAIL] if len(past.longest_s) > TAIL else 0.0
    mean_excess_s = sum(tail) / len(tail) - threshold_s
    return past.longest_s[0] + mean_excess_s * math.log1p(every_s / max(past.span_s, 1.0))
