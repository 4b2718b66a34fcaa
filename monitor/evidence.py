"""What the closed blocks say of each reason to alert, for `monitor.incidents.advance`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from detectors.encoder_jump import Look
    from detectors.fold import Reading
    from detectors.rate import RateReading

Key = tuple[str, str, str, str]  # model, kind, space, segment
Severity = Literal["page", "warn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one closed block says about one reason to alert.

    Attributes:
        model, kind, space, segment: the reason; space and segment may be "".
        block, start_ms, end_ms: the block, and its event time; all blocks of a model are equally long.
        severity: an alarm is raised in this block, this urgently; None if not.
        active: what an earlier alarm saw is still there. It opens no incident, and keeps an open one from resolving.
        strength, threshold: log10 of the blocks in which such evidence appears once by chance, and from which on it
            alarms.
        channel: which statistic saw it.
        onset_ms: since when, as far as one can say.
        onset_from_ms, onset_to_ms: it began between these two; None where nothing is known of that.
        n: records behind it.
        effect: how large the change is, in the channel's own unit.
        reference: number of the reference that was compared with; 0 if none was.
        may_not_page: it would be a page, if the model's harm were not low.
        values: more numbers and words for people; JSON-compatible scalars.
    """

    model: str
    kind: str
    space: str = ""
    segment: str = ""
    block: int
    start_ms: int
    end_ms: int
    severity: Severity | None
    active: bool
    strength: float = 0.0
    threshold: float = 0.0
    channel: str = ""
    onset_ms: int | None = None
    onset_from_ms: int | None = None
    onset_to_ms: int | None = None
    n: int = 0
    effect: float = 0.0
    reference: int = 0
    may_not_page: bool = False
    values: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """The reason to alert."""
        return self.model, self.kind, self.space, self.segment


def drift_evidence(
    model: str,
    space: str,
    segment: str,
    readings: Sequence[Reading],
    *,
    block_ms: int,
    only_warns: str = "",
) -> Evidence | None:
    """What the channels of one (space, segment) say together after one block; None if nothing alarms or lasts.

    Args:
        readings: one for each channel, all of the same block.
        only_warns: why the baseline is too small to page, in words: pages become warnings. "" if it may page.
    """
    heard = [reading for reading in readings if reading.page or reading.warn or reading.active]
    if not heard:
        return None
    # Several channels may see the same change: the most urgent one speaks, of those one that has records to show, of
    # those the clearest. The shape's wealth stays high for a while where its window holds no record any more.
    first = max(
        heard, key=lambda reading: (reading.page and not only_warns, reading.warn, reading.n > 0, *_clearness(reading))
    )
    severity, strength, threshold = _alarm(first, may_page=not only_warns)
    return Evidence(
        model=model,
        kind="drift",
        space=space,
        segment=segment,
        block=first.block,
        start_ms=first.block * block_ms,
        end_ms=(first.block + 1) * block_ms,
        severity=severity,
        active=any(reading.active for reading in readings),
        strength=strength,
        threshold=threshold,
        channel=first.channel,
        onset_ms=None if first.onset is None else first.onset * block_ms,
        onset_from_ms=None if first.onset_earliest is None else first.onset_earliest * block_ms,
        onset_to_ms=None if first.onset_latest is None else (first.onset_latest + 1) * block_ms,
        n=first.n,
        effect=first.effect,
        reference=first.reference,
        values={"channels": " ".join(sorted(reading.channel for reading in heard)), **_said(only_warns)},
    )


def rate_evidence(
    model: str,
    space: str,
    segment: str,
    reading: RateReading,
    *,
    block_ms: int,
    reference: int,
    only_warns: str = "",
) -> Evidence | None:
    """What the outlier rate of one (space, segment) says after one block; None if it says nothing."""
    found = _of_rate(model, "outlier_rate", reading, block_ms=block_ms, only_warns=only_warns)
    if found is None:
        return None
    values = {"rate": reading.rate, "expected": reading.expected, **found.values}
    return replace(found, space=space, segment=segment, reference=reference, values=values)


def fraud_wave_evidence(
    model: str, reading: RateReading, *, block_ms: int, unlisted: int, alpha: float, only_warns: str = ""
) -> Evidence | None:
    """What the rate of fraud candidates says after one block; None if it says nothing.

    Args:
        unlisted: hits of the last period that are beyond the budget of alerts.
        alpha: largest p-value of a candidate.
    """
    found = _of_rate(model, "fraud_wave", reading, block_ms=block_ms, only_warns=only_warns)
    if found is None:
        return None
    values = {
        "hits": reading.count,
        "usual": reading.expected * reading.n,
        "alpha": alpha,
        "window_s": reading.window_blocks * block_ms / 1000,
        **({"unlisted": unlisted} if unlisted else {}),
        **found.values,
    }
    return replace(found, values=values)


def _of_rate(model: str, kind: str, reading: RateReading, *, block_ms: int, only_warns: str) -> Evidence | None:
    """What an alarm of a rate says after one block, whatever it counts; None if it says nothing."""
    if not (reading.page or reading.warn or reading.active):
        return None
    severity, strength, threshold = _alarm(reading, may_page=not only_warns)
    return Evidence(
        model=model,
        kind=kind,
        block=reading.block,
        start_ms=reading.block * block_ms,
        end_ms=(reading.block + 1) * block_ms,
        severity=severity,
        active=reading.active,
        strength=strength,
        threshold=threshold,
        channel=kind,
        onset_ms=None if reading.onset is None else reading.onset * block_ms,
        n=reading.n,
        effect=reading.effect,
        values=_said(only_warns),
    )


def flood_evidence(
    model: str, *, block: int, block_ms: int, records: int, flooded: int, floods: int, largest: int, least: int
) -> Evidence | None:
    """Whether the block holds a burst of near-identical records; None if not. A flood only warns.

    Args:
        flooded: records that came when so many like them had come, that they are a flood.
        floods: groups of them; ``largest``: records of the largest one.
        least: fewest near-identical records that are a flood.
    """
    if not floods:
        return None
    return Evidence(
        model=model,
        kind="flood",
        block=block,
        start_ms=block * block_ms,
        end_ms=(block + 1) * block_ms,
        severity="warn",
        active=True,
        strength=float(largest),  # here the size itself: the larger flood is the one to show
        threshold=float(least),
        channel="flood",
        n=records,
        effect=largest / least,
        values={"groups": floods, "largest": largest, "flooded": flooded},
    )


def encoder_evidence(
    model: str,
    space: str,
    *,
    block: int,
    block_ms: int,
    since: int,
    why: str,
    look: Look | None,
    reference: int,
    only_warns: str = "",
) -> Evidence:
    """That the vectors of a space jumped as only another encoder makes them; an entry for every block while that lasts.

    Args:
        since: block from which on they differ.
        why: see `detectors.encoder_jump.Look.why`.
        look: what was seen in the blocks up to this one; None where they held too few records for a look.
    """
    severity: Severity = "warn" if only_warns else "page"
    seen = {} if look is None else {"unchanged": min(look.unchanged, look.norms), "far": look.far, "shift": look.shift}
    return Evidence(
        model=model,
        kind="encoder_suspected",
        space=space,
        block=block,
        start_ms=block * block_ms,
        end_ms=(block + 1) * block_ms,
        severity=None if look is None else severity,
        active=True,
        strength=1.0 if look is None else 1.0 - min(look.unchanged, look.norms),  # here the share that must be new
        threshold=0.0,
        channel="encoder",
        onset_ms=since * block_ms,
        n=0 if look is None else look.n,
        effect=0.0 if look is None else 1.0 - min(look.unchanged, look.norms),
        reference=reference,
        values={"why": why, **seen, **_said(only_warns)},
    )


def dead_letter_evidence(
    model: str,
    *,
    block: int,
    block_ms: int,
    records: int,
    dead: Mapping[str, int],
    alert_ratio: float,
    page_ratio: float,
    min_dead: int = 3,
    window_start_ms: int | None = None,
) -> Evidence:
    """Whether too many records cannot be used. An entry for every block, so that `advance` sees each one.

    Args:
        records: in the window that ends with this block, unusable ones included.
        dead: of them, how many could not be used, for each reason.
        alert_ratio: a larger share of dead letters is a warning.
        page_ratio: a larger share is a page.
        min_dead: fewer dead letters than this are never a wave, whatever their share.
        window_start_ms: where the window begins; with this block by default.
    """
    count = sum(dead.values())
    share = count / records if records else 0.0
    too_many = count >= min_dead and share > alert_ratio
    severity: Severity | None = ("page" if share > page_ratio else "warn") if too_many else None
    return Evidence(
        model=model,
        kind="dead_letters",
        block=block,
        start_ms=block * block_ms,
        end_ms=(block + 1) * block_ms,
        severity=severity,
        active=too_many,
        strength=share,  # here the share itself: there is no "by chance" about a record that is no JSON
        threshold=alert_ratio,
        onset_ms=window_start_ms,
        n=records,
        effect=share,
        values={"reason": max(sorted(dead), key=lambda name: dead[name]), "dead": count, "limit": alert_ratio}
        if too_many
        else {},
    )


def _alarm(reading: Reading | RateReading, *, may_page: bool) -> tuple[Severity | None, float, float]:
    """Severity, and the strength that it was judged by with its threshold."""
    if reading.page and may_page:
        return "page", reading.strength, reading.threshold
    # What may not page has no page's evidence to use up, so the stronger of the two is what is known.
    strength = max(reading.warn_strength, reading.strength) if reading.page else reading.warn_strength
    return ("warn" if reading.warn or reading.page else None), strength, reading.warn_threshold


def _said(only_warns: str) -> dict[str, str]:
    return {"only_warns": only_warns} if only_warns else {}


def _clearness(reading: Reading) -> tuple[float, str]:
    return max(reading.strength - reading.threshold, reading.warn_strength - reading.warn_threshold), reading.channel
