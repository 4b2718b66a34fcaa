"""Old history in few rows: which summaries become one, and what their sum is (`connectors.database.ageing`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import ceil

from connectors.database.ageing import Aged, AgeRule
from connectors.database.store import Store
from detectors.summary import BlockSummary
from monitor.record_counts import RecordCounts
from monitor.settings import Settings

MOST_ROWS = 2_000  # merged at once, a few tenths of a second
MOST_ROWS_OF_HISTORY = 20_000  # where no live record waits
HISTORY_EVERY_S = 60.0


class HistoryAgeing:
    """Ages what a backfill writes while it goes on: a quarter of history is never stored block by block.

    Args:
        store: the database, or the lane, that the backfill writes to; ages count from its own newest closed block.
    """

    def __init__(self, store: Store, settings: Settings, model: str) -> None:
        self._store = store
        self._settings = settings
        self._model = model
        self._next = float("-inf")

    def step(self, clock_s: float) -> None:
        """Merge what is old, if it is time to look, and go on at the next step where more is left.

        Raises:
            StoreError: the database refuses; what was merged so far stays merged.
        """
        if clock_s >= self._next:
            aged = merge_old_summaries(self._store, self._settings, self._model, most=MOST_ROWS_OF_HISTORY)
            self._next = clock_s if aged.left else clock_s + HISTORY_EVERY_S


def merge_old_summaries(store: Store, settings: Settings, model: str, *, most: int = MOST_ROWS) -> Aged:
    """Merge summaries of a model that are old by event time, as `retention.merge_summaries` says.

    Raises:
        StoreError: the database refuses; what was merged so far stays merged.
    """
    return store.merge_summaries(model, age_rules(settings, model), sum_of_summaries, most=most)


def age_rules(settings: Settings, model: str) -> list[AgeRule]:
    """After how many blocks the summaries of a model are kept as rows of how many."""
    block_s = settings.models[model].drift.block
    return [AgeRule(ceil(age_s / block_s), width) for age_s, width in settings.retention.merge_summaries.items()]


def sum_of_summaries(space: str, blobs: Sequence[bytes]) -> bytes:
    """The sum of stored summaries of one space, segment and reference; space "" holds counts of records."""
    if space == "":
        return reduce(RecordCounts.merge, map(RecordCounts.from_bytes, blobs)).to_bytes()
    return reduce(BlockSummary.merge, map(BlockSummary.from_bytes, blobs)).to_bytes()
