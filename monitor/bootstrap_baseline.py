"""Which stretch of the history becomes the baseline, and what is left as a test.

The sample is cut where the stream changed. Of the stretches between, the latest one that is half as long as the
longest and has enough records is taken; its newest part is left for the test where it can be spared, and it is cut to
whole days (whole weeks, from two on), so that each hour weighs the same. If it holds bursts, a part without them is
taken where that has enough records; else they are told.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from detectors.contamination import Burst, Contamination, find_contamination
from detectors.errors import InvalidInput
from detectors.seasons import Trial
from detectors.stretches import Change, Stretches, features_of, find_changes
from monitor.bootstrap_look import Decoded, Progress
from monitor.embedders import Embedder
from monitor.settings import DAY_S, ModelSettings
from monitor.times import text_of

Interval = tuple[int, int]  # milliseconds since 1970: from, up to and without

PAGE_RECORDS: Final = 110_000  # of a baseline that may page: docs/drift.md
MOST_RECORDS: Final = 200_000  # of a baseline: half of them calibrate, and more than 100,000 are not used for that
FEWEST: Final = 1_000  # as reference.collect
TEST_SHARE: Final = 0.3  # of the history, left for the test
_DAY_MS: Final = round(DAY_S * 1000)
_MOVES: Final = 3  # times that the baseline is moved away from bursts
_FEW: Final = 200  # of a sample: fewer say nothing of changes


@dataclass(frozen=True)
class Baseline:
    """What was chosen, and why.

    Attributes:
        chosen: the stretch.
        without: what is left out of it.
        whole: event times of the whole history that was looked at.
        records: of the baseline, about.
        changes: of each space, where the stream changed.
        trials: of each space, which seasons its sample shows.
        contamination: of each space, of the chosen stretch.
        reasons: sentences on how the choice came to be.
    """

    chosen: Interval
    without: tuple[Interval, ...]
    whole: Interval
    records: int
    changes: Mapping[str, Sequence[Change]]
    trials: Mapping[str, Sequence[Trial]]
    contamination: Mapping[str, Contamination]
    reasons: tuple[str, ...]

    @property
    def change_times(self) -> list[int]:
        """When any space changed, ascending."""
        return sorted({change.time_ms for changes in self.changes.values() for change in changes})

    def holds(self, time_ms: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which event times belong to the baseline: in the stretch, and not left out."""
        inside = (time_ms >= self.chosen[0]) & (time_ms < self.chosen[1])
        for begin, end in self.without:
            inside &= (time_ms < begin) | (time_ms >= end)
        return inside


def choose_baseline(
    sample: Decoded,
    model: ModelSettings,
    *,
    records: int,
    without: Sequence[Interval] = (),
    progress: Progress,
) -> Baseline:
    """Choose from a sample of the history.

    Args:
        records: in the history, of which the sample is a part.
        without: stretches that a person wants left out.

    Raises:
        InvalidInput: too few records, or nothing in them that varies.
    """
    embedders = {space: entry.embedder.build() for space, entry in model.spaces.items()}
    each = records / max(len(sample.time_ms), 1)
    if records < FEWEST:
        raise InvalidInput(
            f"There are only {records:,} usable records; a reference takes at least {FEWEST:,}.",
            hint="Look further back (--days), or let driftd run collect them: driftd init, driftd run",
        )
    kept = np.ones(len(sample.time_ms), dtype=np.bool_)
    for begin, end in without:
        kept &= (sample.time_ms < begin) | (sample.time_ms >= end)
    if not kept.any():
        raise InvalidInput("--without leaves nothing.", hint="Leave out less.")
    usable = sample.rows(kept)
    whole = int(sample.time_ms[0]), int(sample.time_ms[-1]) + 1
    found = _changes(usable, model, embedders, progress)
    changes = {space: stretches.changes for space, stretches in found.items()}
    edges = [whole[0], *sorted({one.time_ms for each_of in changes.values() for one in each_of}), whole[1]]
    pieces = [(begin, end) for begin, end in itertools.pairwise(edges) if end > begin]

    chooser = _Chooser(usable.time_ms, each, whole)
    reasons: list[str] = []
    piece = chooser.latest_long_one(pieces)
    if len(pieces) > 1:
        times = "once" if len(pieces) == 2 else f"{len(pieces) - 1} times"
        which = "the newest" if piece == pieces[-1] else "not the newest, which is too short, or has too few records"
        reasons.append(f"The stream changed {times}; the baseline is from the stretch {_in_words(piece)}: {which}.")
    chosen = chooser.whole_days(chooser.spare(piece))
    chosen, contamination = _clean(usable, embedders, chosen, chooser, reasons, progress)
    if chooser.count(chosen) < FEWEST:
        chosen = whole
        contamination = _contamination(usable, embedders, chosen, progress)
        reasons.append("There are too few records to leave some for a test: the baseline is all of them.")
    return Baseline(
        chosen,
        tuple(without),
        whole,
        chooser.count(chosen),
        changes,
        {space: stretches.trials for space, stretches in found.items()},
        contamination,
        tuple(reasons),
    )


@dataclass(frozen=True)
class _Chooser:
    """Stretches of a sample.

    Attributes:
        time_ms: int64 (n,), ascending.
        each: records that one of the sample stands for.
        whole: the history.
    """

    time_ms: npt.NDArray[np.int64]
    each: float
    whole: Interval

    def count(self, interval: Interval) -> int:
        """Records in a stretch, about."""
        first, after = np.searchsorted(self.time_ms, interval)
        return round(self.each * int(after - first))

    def latest_long_one(self, pieces: Sequence[Interval]) -> Interval:
        """The latest that is half as long as the longest and has enough records; else the one with the most."""
        records = {piece: self.count(piece) for piece in pieces}
        longest = max(end - begin for begin, end in pieces)
        enough = min(PAGE_RECORDS, max(records.values()) / 2)
        good = [piece for piece in pieces if 2 * (piece[1] - piece[0]) >= longest and records[piece] >= enough]
        return good[-1] if good else max(pieces, key=lambda piece: records[piece])

    def spare(self, piece: Interval) -> Interval:
        """Without its newest part, where that is missing for a test; what a page needs stays, and half of it."""
        begin, end = piece
        missing = TEST_SHARE * (self.whole[1] - self.whole[0]) - (self.whole[1] - end)
        if missing <= 0:
            return piece
        cut = max(round(end - missing), begin + (end - begin) // 2)
        if self.count((begin, cut)) < PAGE_RECORDS <= self.count(piece):
            first = int(np.searchsorted(self.time_ms, begin))
            place = min(first + int(np.ceil(PAGE_RECORDS * 1.02 / self.each)), len(self.time_ms) - 1)
            cut = min(int(self.time_ms[place]), end)
        return begin, cut

    def whole_days(self, piece: Interval) -> Interval:
        """The newest whole days of it, whole weeks from two on; as it is where that would cost its pages."""
        begin, end = piece
        days = (end - begin) // _DAY_MS
        if days < 2:
            return piece
        days -= days % 7 if days >= 14 else 0
        cut = end - days * _DAY_MS, end
        return piece if self.count(cut) < PAGE_RECORDS <= self.count(piece) else cut


def _in_words(interval: Interval) -> str:
    return f"{text_of(interval[0])} to {text_of(interval[1])}"


def _changes(
    sample: Decoded, model: ModelSettings, embedders: Mapping[str, Embedder], progress: Progress
) -> dict[str, Stretches]:
    found: dict[str, Stretches] = {}
    seasons = tuple(blocks * model.drift.block * 1000 for blocks in model.drift.season_blocks)
    constant = []
    for number, (space, embedder) in enumerate(embedders.items()):
        progress(f"{space}: changes", number / len(embedders))
        found[space] = Stretches((), ())
        vectors = sample.vectors[space]
        if len(vectors) and (vectors == vectors[0]).all():
            constant.append(space)
        if len(vectors) < _FEW:
            continue
        features = features_of(vectors, sample.time_ms, geometry=embedder.geometry)
        if features is not None:
            found[space] = find_changes(features, seasons_ms=seasons, tolerance=model.drift.tolerance)
    if constant:
        raise InvalidInput(
            f"All {len(sample.time_ms):,} records that were looked at are equal in: {', '.join(constant)}. There is "
            "nothing to compare with.",
            hint="Is this the right topic, and the right field?",
        )
    return found


def _contamination(
    sample: Decoded, embedders: Mapping[str, Embedder], chosen: Interval, progress: Progress
) -> dict[str, Contamination]:
    inside = sample.rows((sample.time_ms >= chosen[0]) & (sample.time_ms < chosen[1]))
    found: dict[str, Contamination] = {}
    for number, (space, embedder) in enumerate(embedders.items()):
        progress(f"{space}: contamination", number / len(embedders))
        if len(inside.time_ms) < _FEW or embedder.kind in ("number", "category"):
            continue  # few values: equal ones are no copies
        features = features_of(inside.vectors[space], inside.time_ms, geometry=embedder.geometry)
        if features is not None:
            found[space] = find_contamination(features)
    return found


def _bursts(found: Mapping[str, Contamination]) -> list[Burst]:
    return [burst for one in found.values() for burst in one.bursts]


def _clean(
    sample: Decoded,
    embedders: Mapping[str, Embedder],
    chosen: Interval,
    chooser: _Chooser,
    reasons: list[str],
    progress: Progress,
) -> tuple[Interval, dict[str, Contamination]]:
    """The stretch, moved to a part without bursts where there is one."""
    found = _contamination(sample, embedders, chosen, progress)
    for _ in range(_MOVES):
        bursts = sorted(_bursts(found), key=lambda burst: burst.first_ms)
        if not bursts:
            break
        edges = [chosen[0], *(time for burst in bursts for time in (burst.first_ms, burst.last_ms + 1)), chosen[1]]
        parts = [(begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=True) if end > begin]
        wanted = min(PAGE_RECORDS, chooser.count(chosen) / 2)
        good = [part for part in parts if chooser.count(part) >= max(wanted, FEWEST)]
        if not good:
            break
        moved = chooser.whole_days(chooser.latest_long_one(good))
        reasons.append(
            f"Records that are alike came in bursts, {sum(burst.share for burst in bursts):.2%} of the stretch: the "
            f"baseline was moved to {_in_words(moved)}."
        )
        chosen, found = moved, _contamination(sample, embedders, moved, progress)
    return chosen, found
