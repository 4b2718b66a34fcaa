"""A decoded batch: columns, one entry per usable record, in the order of the offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from connectors.records import DeadLetter, Partition


@dataclass(slots=True)
class EventBatch:
    """Events of one partition. Records that could not be decoded are in ``dead`` and in no column.

    Attributes:
        offsets: int64 (n,).
        time_ms: int64 (n,), event time in milliseconds since 1970.
        ids: n texts; "topic/partition/offset" where no id is mapped.
        keys: n texts, or None where a record has no key; None altogether if no key is mapped.
        segments: for each configured segment field, n texts.
        predictions: n texts or None each; None altogether if no prediction is mapped.
        confidence: float64 (n,), NaN where absent; None if not mapped.
        labels: n texts or None each; None if not mapped.
        kept: n small dicts of the fields that settings allow to keep, redaction applied; None if nothing is kept.
        fields: for each embedder field (its pointer as in the settings), n raw values: Python objects, or for
            the body of a raw record its bytes.
    """

    partition: Partition
    offsets: npt.NDArray[np.int64]
    time_ms: npt.NDArray[np.int64]
    ids: Sequence[str]
    keys: Sequence[str | None] | None
    segments: dict[str, Sequence[str]]
    predictions: Sequence[str | None] | None
    confidence: npt.NDArray[np.float64] | None
    labels: Sequence[str | None] | None
    kept: Sequence[dict[str, Any]] | None
    fields: dict[str, Sequence[Any]]
    dead: list[DeadLetter] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.offsets)
