"""What a dashboard draws of each closed block: how many records, how strange, how sure the model was.

The numbers stand inside the summaries, where SQL cannot see them; so the fold writes them out, a row for each space and
one for the whole block. They are a function of the summaries, like everything that the fold writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from connectors.database.rows import BlockStatRow
from detectors.conformal import P_EDGES
from detectors.summary import BlockSummary
from monitor.pipeline import EVERYTHING
from monitor.record_counts import RecordCounts

# Upper ends of the classes of p-values: a record of the last class is stranger than all but one in 131,072 of the
# reference. Each of them is an edge of the summaries' own bins.
SURPRISE_BELOW = (1.0, *(2.0**-bits for bits in (1, 2, 4, 6, 8, 10, 12, 14, 17)))


def block_stats(
    merged: Mapping[tuple[str, str, int, int], BlockSummary], counts: Mapping[int, RecordCounts], *, block_ms: int
) -> Iterable[BlockStatRow]:
    """A row for every closed block and space, and one of space "" for what came in, in the order of spaces and blocks.

    Args:
        merged: the summaries, by space, segment, block and reference; those of the whole traffic are taken.
        counts: by block.
    """
    for block, count in sorted(counts.items()):
        dead = sum(count.dead.values())
        yield BlockStatRow(
            "",
            block,
            block * block_ms,
            (block + 1) * block_ms,
            0,
            count.records,
            count.late,
            dead,
            math.nan,
            (0,) * len(SURPRISE_BELOW),
        )
    for (space, segment, block, reference), summary in sorted(merged.items(), key=lambda item: item[0]):
        if segment == EVERYTHING:
            yield BlockStatRow(
                space,
                block,
                block * block_ms,
                (block + 1) * block_ms,
                reference,
                summary.n,
                0,
                0,
                mean_confidence(summary.confidence),
                surprise(summary.h),
            )


def surprise(h: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """Records in each class of `SURPRISE_BELOW`, from the 49 bins of p."""
    below = np.concatenate([np.cumsum(h), [0]])
    ends = [int(below[np.searchsorted(P_EDGES, edge)]) for edge in SURPRISE_BELOW]
    return tuple(more - less for more, less in zip(ends, [*ends[1:], 0], strict=True))


def mean_confidence(counts: npt.NDArray[np.int64] | None) -> float:
    """Mean of the confidences in bins of equal width over [0, 1], each taken at its middle; NaN where there is none."""
    if counts is None or not counts.any():
        return math.nan
    middles = (np.arange(len(counts)) + 0.5) / len(counts)
    return float(counts @ middles / counts.sum())
