"""A scored record, as a row that a person may want to see."""

from __future__ import annotations

from typing import Literal

import numpy as np

from connectors.database.rows import KeptRecord
from monitor.event import EventBatch


def kept_record(
    events: EventBatch,
    row: int,
    *,
    space: str,
    block: int,
    reason: Literal["outlier", "sample", "fraud", "review", "flood"],
    score: float,
    p_value: float,
    reference: int,
    vector: bytes | None,
    labels: int = 0,
) -> KeptRecord:
    """Row ``row`` of a batch, with what the scores of a space say of it."""
    confidence = None if events.confidence is None else float(events.confidence[row])
    return KeptRecord(
        partition=events.partition,
        offset=int(events.offsets[row]),
        time_ms=int(events.time_ms[row]),
        space=space,
        block=block,
        id=events.ids[row],
        reason=reason,
        score=score,
        p_value=p_value,
        reference=reference,
        exemplar=-1,
        prediction=None if events.predictions is None else events.predictions[row],
        confidence=None if confidence is None or np.isnan(confidence) else confidence,
        segments={name: values[row] for name, values in events.segments.items()},
        kept={} if events.kept is None else events.kept[row],
        vector=vector,
        row=int(events.rows[row]),
        labels=labels,
    )
