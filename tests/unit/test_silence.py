"""How long a stream may be silent: seldom wrong on streams of all kinds, and no longer than needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from connectors.database.rows import Silences
from monitor.silence import DAY_S, REMEMBERED_DAYS, TAIL, silence_limit

Times = npt.NDArray[np.float64]
BLOCK_S = 10.0
EVERY_S = 90 * DAY_S
WAIT_S = 600.0
AHEAD_DAYS = 90.0


def poisson(chance: np.random.Generator, days: float, every_s: float = 300.0) -> Times:
    return np.cumsum(chance.exponential(every_s, int(1.2 * days * DAY_S / every_s) + 100))


def bursts(chance: np.random.Generator, days: float) -> Times:
    """Sessions of about twenty records within a minute, twenty minutes apart."""
    begins = poisson(chance, days, 1200.0)
    return np.sort((begins[:, None] + chance.exponential(60.0, (len(begins), 20))).ravel())


def quiet_nights(chance: np.random.Generator, days: float) -> Times:
    """One record a minute at noon, one in two hours at midnight."""
    times = poisson(chance, days, 60.0)
    rate = 0.5 + 0.4917 * np.sin(2 * np.pi * times / DAY_S)
    return times[chance.random(len(times)) < rate]


def office_hours(chance: np.random.Generator, days: float) -> Times:
    """Nothing at all but from eight to six, from Monday to Friday."""
    times = poisson(chance, days, 60.0)
    day, second = np.divmod(times, DAY_S)
    return times[(day % 7 < 5) & (second > 8 * 3600) & (second < 18 * 3600)]


def batches(chance: np.random.Generator, days: float) -> Times:
    """A batch an hour, give or take some minutes."""
    begins = np.arange(0, days * DAY_S, 3600.0)
    return np.sort(begins + chance.normal(0.0, 120.0, len(begins)))


STREAMS = [poisson, bursts, quiet_nights, office_hours, batches]


def past(times: Times) -> Silences:
    blocks = np.unique(times // BLOCK_S) * BLOCK_S
    longest = np.sort(np.diff(blocks))[::-1][: TAIL + 1]
    return Silences(tuple(longest.tolist()), float(blocks[-1] - blocks[0]))


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_that_goes_on_is_called_silent_no_more_than_once_in_the_time_that_is_allowed(
    stream: Callable[[np.random.Generator, float], Times],
) -> None:
    alarms = []
    for seed in range(40):
        times = stream(np.random.default_rng(seed), REMEMBERED_DAYS + AHEAD_DAYS)
        before, after = times[times < REMEMBERED_DAYS * DAY_S], times[times >= REMEMBERED_DAYS * DAY_S]
        after = after[after < (REMEMBERED_DAYS + AHEAD_DAYS) * DAY_S]
        limit_s = silence_limit([past(before)], every_s=EVERY_S, wait_s=WAIT_S)
        alarms.append(int(np.count_nonzero(np.diff(after) > limit_s)))
    mean, error = np.mean(alarms), np.std(alarms) / np.sqrt(len(alarms))
    assert mean - 2 * error <= 1.0, (mean, error)


def test_a_poisson_stream_has_the_limit_of_its_rate() -> None:
    """The silence that comes once in 90 days where a record comes every 300 s: 300 s * log(records in 90 days)."""
    limits = [
        silence_limit([past(poisson(np.random.default_rng(seed), REMEMBERED_DAYS))], every_s=EVERY_S, wait_s=WAIT_S)
        for seed in range(20)
    ]
    assert np.mean(limits) == pytest.approx(300 * np.log(EVERY_S / 300), rel=0.1)


def test_a_busy_stream_may_be_silent_for_the_wait() -> None:
    assert silence_limit([past(np.arange(0.0, 10 * DAY_S))], every_s=EVERY_S, wait_s=WAIT_S) == WAIT_S
    assert silence_limit([past(np.arange(0.0, 10 * DAY_S))], every_s=EVERY_S, wait_s=1.0) == BLOCK_S


def test_what_was_seen_for_less_than_a_day_tells_nothing_of_the_night() -> None:
    seen = [Silences((10.0, 5.0), 3600.0), Silences((), 7200.0)]
    assert silence_limit(seen, every_s=EVERY_S, wait_s=WAIT_S) == 7200.0
    assert silence_limit([Silences((), DAY_S)], every_s=EVERY_S, wait_s=WAIT_S) == WAIT_S
    for nothing in (Silences((), 0.0), Silences((), 1_800.0)):
        assert silence_limit([nothing], every_s=EVERY_S, wait_s=WAIT_S) == 3600.0, "the next batch may come in an hour"


def test_the_longer_of_two_pasts_holds() -> None:
    batch = Silences((3_600.0, 3_500.0), 10 * DAY_S)
    assert silence_limit([Silences((), 10 * DAY_S), batch], every_s=EVERY_S, wait_s=WAIT_S) > 3_600.0
