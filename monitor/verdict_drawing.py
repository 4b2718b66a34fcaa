"""From stored verdicts to what the report and `driftd verdict --picture` draw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from connectors.database.rows import VerdictRow
from connectors.database.store import Store
from dashboards.report_data import MeasuredPoint, VerdictSection, WordSpan
from dashboards.verdict_words import verdict_of
from monitor.standing import Standing
from monitor.verdict_wording import numbers

MOST_BLOCKS = 200_000  # that are drawn, the newest


def verdict_section(
    store: Store, standing: Standing, *, from_ms: int | None = None, to_ms: int | None = None
) -> VerdictSection | None:
    """What is drawn of a model, over blocks with from_ms <= start < to_ms; None where none of them has been judged."""
    rows = store.verdicts(standing.model, from_ms=from_ms, to_ms=to_ms, limit=MOST_BLOCKS)
    if not rows:
        return None
    columns = {
        name: np.array([getattr(row, name) for row in rows], dtype=np.float64)
        for name in ("low", "high", "floor", "novel")
    }
    return VerdictSection(
        word=standing.word,
        level=verdict_of(standing.word).level,
        since_ms=standing.since_ms,
        reasons=standing.reasons,
        numbers=tuple((name, text) for name, text in numbers(standing.row or rows[-1])),
        unseen=standing.unseen,
        next_step=standing.next_step,
        spans=tuple(_spans(rows)),
        starts_ms=np.array([row.start_ms for row in rows], dtype=np.int64),
        block_ms=rows[0].end_ms - rows[0].start_ms,
        measured=tuple(_measured(rows)),
        **columns,
    )


def _spans(rows: Sequence[VerdictRow]) -> list[WordSpan]:
    spans: list[WordSpan] = []
    for row in rows:
        if spans and spans[-1].word == row.word:
            spans[-1] = WordSpan(spans[-1].start_ms, row.end_ms, row.word, spans[-1].level)
        else:
            spans.append(WordSpan(row.start_ms, row.end_ms, row.word, verdict_of(row.word).level))
    return spans


def _measured(rows: Sequence[VerdictRow]) -> list[MeasuredPoint]:
    """What labels say, each time that more of them are known: between, nothing new is measured."""
    points: list[MeasuredPoint] = []
    before = (0, 0)
    for row in rows:
        if row.labels and (row.truths, row.labels) != before and row.realised == row.realised:
            points.append(MeasuredPoint(row.end_ms, row.realised, row.realised_low, row.realised_high, row.labels))
        before = (row.truths, row.labels)
    return points
