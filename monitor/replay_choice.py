"""Which settings would have been better: few candidates, chosen on the first part of history, reported on the second.

Every candidate is one fold of the stored summaries. They are compared by false pages and by missed time
(`Judgement.missed_alone_s`) on the first part alone, which is cut so that it ends in no true incident. A candidate is
suggested if on that part it is better in one of the two beyond chance, and in the other not worse: of false pages not
one more, of true incidents not one missed more, and of their time at most `TRADED` more without a page. What is said
of it is said of the second part, which had no voice in the choice, whether it holds there or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detectors.errors import InvalidInput
from monitor.amounts import duration
from monitor.budget import channels_in_use
from monitor.replay_truth import Judgement, TrueIncident, judge
from monitor.settings import Settings, with_changes
from monitor.times import text_of

if TYPE_CHECKING:
    from connectors.database.store import Store
    from monitor.replay import Replayed

FIRST_SHARE = 0.6  # of the judged time: where it is cut, but for true incidents in the way
BEYOND_CHANCE = 0.05  # one-sided; of each candidate by itself, because the second part is the test
TRADED = 0.05  # of the time of the true incidents: so much more may be missed for fewer false pages
# With fewer true incidents the share that is caught may be below a half although all were: 0.025^(1/6) is 0.54.
ENOUGH_TRUTHS = 6
AS_NOW = "as now"

_BUDGET_FACTOR = 10.0
_DRIFT_FACTORS = (0.5, 2.0, 4.0)
_DRIFT_STEPS = [0.05, 0.1, 0.2]  # where it is 0
_RATE_FACTORS = (2.0, 4.0)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings that may be better.

    Attributes:
        name: what differs, such as "drift.tolerance 0.1".
        changes: key below the settings of all, such as "models.triage.drift.tolerance", to its value.
        mutes: the channel of drift that it switches off; "" if none.
    """

    name: str
    settings: Settings
    changes: Mapping[str, object]
    mutes: str = ""


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate, what it would have done, and how right it was in both parts of history."""

    candidate: Candidate
    replayed: Replayed
    first: Judgement
    second: Judgement


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What a search found.

    Attributes:
        scored: all candidates; the first is what is set now.
        front: of them, those that no other one beats in false pages and missed time, on the first part; fewest false
            pages first.
        chosen: what is suggested; None if nothing is better than what is set now beyond chance.
        holds: it is no worse on the second part; None where that part holds no true incident.
        why: in a sentence, why it is suggested, or why nothing is.
        judged_ms, split_ms: the period, and where it is cut.
        model: whose settings they are.
    """

    scored: tuple[Scored, ...]
    front: tuple[Scored, ...]
    chosen: Scored | None
    holds: bool | None
    why: str
    judged_ms: tuple[int, int]
    split_ms: int
    model: str

    @property
    def now(self) -> Scored:
        """What is set now."""
        return self.scored[0]


def suggest(
    store: Store,
    model: str,
    settings: Settings,
    truth: Sequence[TrueIncident],
    *,
    tolerance: float | None = None,
    from_ms: int | None = None,
    to_ms: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Suggestion:
    """Replay candidates in one pass, choose on the first part of the time, and report on the second.

    Args:
        tolerance: see `judge`; the same for all candidates, by default ``incidents.resolve_after`` as it is now.
        from_ms, to_ms, progress: see `monitor.replay.replay`.

    Raises:
        InvalidInput: no true incident is known; or see `monitor.replay.replay`.
    """
    from monitor.replay import replay
    from monitor.replay_processes import Variant

    if not any(one.known for one in truth):
        raise InvalidInput(
            "Nothing can be suggested while no true incident is known: whoever misses more has fewer pages.",
            hint="Say which incidents were real: driftd incidents --real ID, or give a table: --truth incidents.csv",
        )
    chosen = candidates(settings, model)
    variants = [Variant(one.name, one.settings) for one in chosen]
    replayed = replay(store, model, variants, from_ms=from_ms, to_ms=to_ms, progress=progress)
    span = settings.incidents.resolve_after if tolerance is None else tolerance
    return choose(list(zip(chosen, replayed, strict=True)), truth, tolerance=span, model=model)


def choose(
    replayed: Sequence[tuple[Candidate, Replayed]], truth: Sequence[TrueIncident], *, tolerance: float, model: str
) -> Suggestion:
    """The suggestion from what candidates would have done; the first of them is what is set now.

    Args:
        tolerance: seconds around a true incident in which a page belongs to it.
    """
    start_ms, end_ms = replayed[0][1].judged_ms
    split_ms = split_of(truth, (start_ms, end_ms), tolerance_ms=round(tolerance * 1000))
    scored = tuple(
        Scored(
            candidate,
            one,
            judge(one, truth, tolerance=tolerance, within_ms=(start_ms, split_ms)),
            judge(one, truth, tolerance=tolerance, within_ms=(split_ms, end_ms)),
        )
        for candidate, one in replayed
    )
    now = scored[0]
    admitted = [one for one in scored if not one.candidate.mutes or _makes_all_false(one.candidate.mutes, now.first)]
    better = [one for one in admitted[1:] if now.first.of and _is_better(one.first, now.first)]
    best = min(better, key=lambda one: (*_cost(one.first), len(one.candidate.changes)), default=None)
    return Suggestion(
        scored=scored,
        front=front_of(admitted),
        chosen=best,
        holds=None if best is None or not best.second.of else _no_worse(best.second, now.second),
        why=_why(now.first, best),
        judged_ms=(start_ms, end_ms),
        split_ms=split_ms,
        model=model,
    )


# --- candidates -------------------------------------------------------------------------------------------------------


def candidates(settings: Settings, model: str) -> list[Candidate]:
    """What is set now, and settings to be tried: at most 13.

    The tolerance of drift, from a half to four times, with the alarm budget as it is and ten times as long; the
    tolerance of the outlier rate; one channel less. A shorter run length is not tried: that the false pages which it
    allows did not come in some weeks says little. Nor is that of warnings: of pages it changes only how long they
    stand.
    """
    entry = settings.models[model]
    budget, drift, rate = settings.page_every_days, entry.drift.tolerance, entry.outliers.tolerance
    tolerances = _DRIFT_STEPS if drift == 0 else [_rounded(min(drift * factor, 5.0)) for factor in _DRIFT_FACTORS]
    tried: list[tuple[dict[str, object], str]] = []
    for days in (budget, _rounded(budget * _BUDGET_FACTOR)):
        places: dict[str, object] = {} if days == budget else dict.fromkeys(_places_of_budget(settings), days)
        for tolerance in dict.fromkeys((drift, *tolerances)):
            own = {} if tolerance == drift else {f"models.{model}.drift.tolerance": tolerance}
            tried.append((places | own, ""))
    rates = dict.fromkeys(_rounded(min(max(rate, 0.5) * factor, 100.0)) for factor in _RATE_FACTORS)
    tried += [({f"models.{model}.outliers.tolerance": value}, "") for value in rates if value != rate]
    heard = channels_in_use(entry)
    if len(heard) > 1:
        muted = {name: {**entry.drift.channels, name: False} for name in heard}
        tried += [({f"models.{model}.drift.channels": channels}, name) for name, channels in muted.items()]
    return [_candidate(settings, model, changes, mutes=mutes) for changes, mutes in tried]


def _candidate(settings: Settings, model: str, changes: Mapping[str, object], *, mutes: str) -> Candidate:
    numbers = {key.removeprefix(f"models.{model}."): value for key, value in changes.items() if not mutes}
    parts = [f"without {mutes}"] if mutes else [f"{key} {value:g}" for key, value in numbers.items()]
    paths = {tuple(key.split(".")): value for key, value in changes.items()}
    changed = with_changes(settings, paths, named="a candidate") if paths else settings
    return Candidate(", ".join(parts) or AS_NOW, changed, changes, mutes)


def _places_of_budget(settings: Settings) -> list[str]:
    """Where the run length of pages is stated: it must be the same everywhere."""
    models = [name for name, entry in settings.models.items() if entry.drift.page_every_days is not None]
    here = "page_every_days" in settings.alarms.model_fields_set or not models
    return [*(["alarms.page_every_days"] if here else []), *(f"models.{name}.drift.page_every_days" for name in models)]


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


# --- the choice -------------------------------------------------------------------------------------------------------


def split_of(truth: Sequence[TrueIncident], judged_ms: tuple[int, int], *, tolerance_ms: int = 0) -> int:
    """Where to cut the judged time: nearest to `FIRST_SHARE` of it, in no true incident, with some on both sides.

    Where all overlap or there is one, no cut has some on both sides, and the nearest one that cuts none is taken.
    """
    start_ms, end_ms = judged_ms
    wanted = start_ms + round(FIRST_SHARE * (end_ms - start_ms))
    busy: list[list[int]] = []
    for one in sorted((one for one in truth if one.known), key=lambda one: one.start_ms):
        begin, end = one.start_ms - tolerance_ms, (one.end_ms or end_ms) + tolerance_ms
        if end <= start_ms or begin >= end_ms:
            continue
        if busy and begin <= busy[-1][1]:
            busy[-1][1] = max(busy[-1][1], end)
        else:
            busy.append([begin, end])
    edges = [start_ms, *(edge for stretch in busy for edge in stretch), end_ms]
    gaps = [(max(edges[at], start_ms), min(edges[at + 1], end_ms)) for at in range(0, len(edges), 2)]
    between = [gap for gap in gaps[1:-1] if gap[0] < gap[1]] or [gap for gap in gaps if gap[0] < gap[1]]
    return min((min(max(wanted, low), high) for low, high in between), key=lambda at: abs(at - wanted), default=wanted)


def front_of(scored: Sequence[Scored]) -> tuple[Scored, ...]:
    """Those that no other one beats in both false pages and missed time, on the first part; fewest false pages first.

    Of equals, the first one, so that what is set now stands for all that are as good.
    """
    found: list[Scored] = []
    for one in sorted(scored, key=lambda one: _cost(one.first)):  # stable: equals in their order
        if not found or _cost(one.first)[1] < _cost(found[-1].first)[1]:
            found.append(one)
    return tuple(found)


def _cost(judgement: Judgement) -> tuple[int, float]:
    return judgement.false_pages, judgement.missed_alone_s


def _is_better(one: Judgement, now: Judgement) -> bool:
    """Better beyond chance in one of false pages and missed time, and no worse in the other."""
    if not _no_worse(one, now):
        return False
    fewer = chance_of(one.false_pages, now.false_pages) <= BEYOND_CHANCE
    pairs = [(mine.missed_alone_s, theirs.missed_alone_s) for mine, theirs in zip(one.found, now.found, strict=True)]
    sooner = chance_of(sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)) <= BEYOND_CHANCE
    return fewer or (sooner and one.missed_alone_s < now.missed_alone_s)


def _no_worse(one: Judgement, now: Judgement) -> bool:
    lost = any(a.delay_s is None and b.delay_s is not None for a, b in zip(one.found, now.found, strict=True))
    within = one.missed_alone_s <= now.missed_alone_s + TRADED * now.truth_s
    return one.false_pages <= now.false_pages and within and not lost


def chance_of(fewer: int, more: int) -> float:
    """How probable a split at least so uneven is if both counts have the same mean: P(Bin(fewer + more, 1/2) <= fewer).

    Two Poisson counts are compared in this way given their sum (Przyborowski and Wilenski, 1940), and pairs by how many
    went either way (the sign test). Pages come in bunches, which makes it too sure; so the second part is the test.

    >>> chance_of(0, 5), chance_of(0, 4)
    (0.03125, 0.0625)
    """
    from scipy.special import bdtr

    return float(bdtr(fewer, fewer + more, 0.5))


def _makes_all_false(channel: str, now: Judgement) -> bool:
    """Whether all false pages of what is set now are of drift and come from one channel."""
    seen = {(page.row.kind, page.row.detail.get("channel")) for page in now.false}
    return seen == {("drift", channel)}


def _why(now: Judgement, best: Scored | None) -> str:
    if best is not None:
        return (
            f"In the first part {best.candidate.name} had {_pages(best.first.false_pages)} instead of "
            f"{now.false_pages} and missed {duration(best.first.missed_alone_s)} instead of "
            f"{duration(now.missed_alone_s)}, the best of what is better beyond chance."
        )
    if now.of == 0:
        return "Nothing is suggested: no true incident lies in the first part, so missed time cannot be compared."
    few = " Fewer than 5 can be no better by more than chance." if now.false_pages < 5 else ""
    if now.unsaid:
        few += f" Of {now.unsaid} of its {now.pages} pages nobody said whether they were real:"
        few += " driftd incidents --false ID."
    return (
        f"Nothing is suggested: in the first part no candidate is better beyond chance than what is set now, which had "
        f"{_pages(now.false_pages)}, caught {now.caught} of {now.of} and missed {duration(now.missed_alone_s)}.{few}"
    )


def _pages(count: int) -> str:
    return f"{count} false page{'s'[: count != 1]}"


# --- for people -------------------------------------------------------------------------------------------------------


def in_words(suggestion: Suggestion) -> list[str]:
    """The answer in sentences: what it was chosen on, what the other part says of it, and how sure that is."""
    start_ms, end_ms = suggestion.judged_ms
    cut = f"Chosen on {text_of(start_ms)} to {text_of(suggestion.split_ms)}"
    words = [f"{cut}, reported on {text_of(suggestion.split_ms)} to {text_of(end_ms)}.", suggestion.why]
    chosen, now = suggestion.chosen, suggestion.now.second
    if chosen is None:
        return words
    said = {
        True: "It holds in the second part, which had no voice in the choice",
        False: "It does not hold in the second part, so leave the settings as they are",
        None: "The second part holds no true incident, so whether it would miss more is not known",
    }[suggestion.holds]
    one = chosen.second
    told = f"{_pages(one.false_pages)} instead of {now.false_pages}"
    if one.of:
        told += f", caught {one.caught} of {one.of} instead of {now.caught}"
        told += f", missed {duration(one.missed_alone_s)} instead of {duration(now.missed_alone_s)}"
    words.append(f"{said}: {told}.")
    if 0 < one.of < ENOUGH_TRUTHS:
        low, _ = one.caught_interval
        words.append(
            f"{one.of} true incident{'s'[: one.of != 1]} say little: that at least {low:.0%} are caught, at 95 %."
        )
    if chosen.candidate.mutes:
        words.append(f"Without {chosen.candidate.mutes}, a change that only this channel sees is told by nobody.")
    if len(chosen.candidate.settings.models) > 1 and "alarms.page_every_days" in chosen.candidate.changes:
        words.append("alarms.page_every_days holds for all models, of which only this one was looked at.")
    return words


def table_of(suggestion: Suggestion) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of what is set now and what is suggested, on the second part alone."""
    shown = [suggestion.now, *([] if suggestion.chosen is None else [suggestion.chosen])]
    columns = ["settings", "pages", "false pages a month", "caught", "missed time"]
    return columns, [[one.candidate.name, *_cells(one.second)] for one in shown]


def _cells(judgement: Judgement) -> list[str]:
    low, high = judgement.false_a_month_interval
    share_low, share_high = judgement.caught_interval
    caught = f"{judgement.caught} of {judgement.of} ({share_low:.0%} to {share_high:.0%})" if judgement.of else "-"
    return [
        str(judgement.pages),
        f"{judgement.false_a_month:.3g} ({low:.2g} to {high:.2g})",
        caught,
        duration(judgement.missed_alone_s) if judgement.of else "-",
    ]


def yaml_of(candidate: Candidate) -> str:
    """The lines of driftd.yaml that make the settings what the candidate says; "" for what is set now."""
    import yaml

    tree: dict[str, Any] = {}
    for key, value in candidate.changes.items():
        *path, last = key.split(".")
        inner = tree
        for name in path:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return str(yaml.safe_dump(tree, sort_keys=False)) if tree else ""


def data_of(suggestion: Suggestion) -> dict[str, Any]:
    """All of it for a program; what is said of the first part says so."""

    def part(judgement: Judgement) -> dict[str, Any]:
        return {
            "days": judgement.days,
            "pages": judgement.pages,
            "false_pages": judgement.false_pages,
            "false_pages_a_month": judgement.false_a_month,
            "false_pages_a_month_interval": judgement.false_a_month_interval,
            "repeated": judgement.repeated,
            "unsaid": judgement.unsaid,
            "caught": judgement.caught,
            "of": judgement.of,
            "caught_interval": judgement.caught_interval,
            "missed_s": judgement.missed_alone_s,
        }

    def whole(one: Scored) -> dict[str, Any]:
        changes = dict(one.candidate.changes)
        return {
            "name": one.candidate.name,
            "changes": changes,
            "chosen_on": part(one.first),
            "reported_on": part(one.second),
        }

    chosen = suggestion.chosen
    return {
        "judged_ms": suggestion.judged_ms,
        "split_ms": suggestion.split_ms,
        "now": whole(suggestion.now),
        "suggested": None if chosen is None else whole(chosen),
        "holds": suggestion.holds,
        "why": suggestion.why,
        "yaml": "" if chosen is None else yaml_of(chosen.candidate),
        "candidates": [whole(one) for one in suggestion.scored],
        "front": [one.candidate.name for one in suggestion.front],
    }
