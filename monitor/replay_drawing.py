"""From replays to their picture: what `dashboards.replay_picture` draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from connectors.database.store import Store
from dashboards.charts import MAX_POINTS
from dashboards.replay_picture import Choice, Lane, ReplayPicture, Told
from dashboards.report_data import Channel, Period, Timeline
from detectors.fold import CHANNELS
from monitor.amounts import duration
from monitor.budget import run_length
from monitor.replay_choice import Scored, Suggestion
from monitor.replay_truth import Judgement, TrueIncident, stretches_of

if TYPE_CHECKING:
    from monitor.replay import Replayed
    from monitor.settings import Settings


def picture_of(
    store: Store,
    model: str,
    settings: Settings,
    replays: Sequence[tuple[Replayed, Judgement]],
    truth: Sequence[TrueIncident],
    *,
    said: Sequence[str] = (),
    suggestion: Suggestion | None = None,
) -> ReplayPicture:
    """What to draw of replays: a lane for each, and one for what is suggested.

    Args:
        settings: as they are now.
        replays: of one model and period, what is set now first, each with how right it was.
        said: sentences to write above, the answer first.
        suggestion: adds its lane and the panel of all that was tried.
    """
    start_ms, end_ms = replays[0][0].judged_ms
    lanes = [_lane(one.name, one, judgement, start_ms, end_ms) for one, judgement in replays]
    chosen = None if suggestion is None else suggestion.chosen
    if chosen is not None and suggestion is not None:
        name = f"suggested: {chosen.candidate.name}"
        lanes.append(_lane(name, chosen.replayed, chosen.second, start_ms, end_ms, part=", second part"))
    happened = tuple(
        Period(max(one.start_ms, start_ms), min(one.end_ms or end_ms, end_ms), one.name)
        for one in truth
        if one.known and one.start_ms < end_ms and (one.end_ms or end_ms) > start_ms
    )
    return ReplayPicture(
        title=f"Replay of {model}",
        start_ms=start_ms,
        end_ms=end_ms,
        said=tuple(said),
        lanes=tuple(lanes),
        truth=happened,
        strength=_strength(store, model, settings, start_ms, end_ms, happened),
        choices=() if suggestion is None else tuple(_choice(one, suggestion) for one in suggestion.scored),
        split_ms=None if suggestion is None else suggestion.split_ms,
    )


def _lane(name: str, replayed: Replayed, judgement: Judgement, start_ms: int, end_ms: int, *, part: str = "") -> Lane:
    said = f"{judgement.pages} page{'s'[: judgement.pages != 1]}"
    if judgement.of:
        said += f", caught {judgement.caught} of {judgement.of}, {judgement.false_pages} false"
        said += f", missed {duration(judgement.missed_s)}"
    told = [
        Told(max(one.start_ms, start_ms), min(one.end_ms or end_ms, end_ms), one.severity)
        for row in replayed.incidents
        for one in stretches_of(row)
        if one.start_ms < end_ms and (one.end_ms or end_ms) > start_ms
    ]
    return Lane(name, said + part, tuple(sorted(told, key=lambda one: (one.start_ms, one.end_ms))))


def _strength(
    store: Store, model: str, settings: Settings, start_ms: int, end_ms: int, truth: Sequence[Period]
) -> Timeline | None:
    """The strongest evidence of any alarm of the whole traffic, on the scale of the run length that is set now."""
    found = store.margins(model, CHANNELS, from_ms=start_ms, to_ms=end_ms, places=MAX_POINTS)
    if not found:
        return None
    block_s = settings.models[model].drift.block
    page = float(np.log10(run_length(settings.page_every_days, block_s)))
    starts, margins, records = (np.array(column) for column in zip(*found, strict=True))
    return Timeline(
        space="any",
        segment="",
        starts_ms=starts.astype(np.int64),
        block_ms=round(block_s * 1000),
        channels=(Channel("strongest", np.maximum(margins + page, 0.0)),),
        n=records.astype(np.int64),
        page=page,
        warn=float(np.log10(run_length(settings.warn_every_days, block_s))),
        truth=tuple(Period(one.start_ms, one.end_ms, "") for one in truth),
    )


def _choice(one: Scored, suggestion: Suggestion) -> Choice:
    return Choice(
        name=one.candidate.name,
        false_a_month=one.first.false_a_month,
        missed_s=one.first.missed_alone_s,
        kind="now" if one is suggestion.now else "suggested" if one is suggestion.chosen else "other",
        on_front=any(one is other for other in suggestion.front),
    )
