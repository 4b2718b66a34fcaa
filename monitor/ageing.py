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
