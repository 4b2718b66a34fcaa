"""The scores of every record, on their way from the pipeline to other programs.

The pipeline hands over the columns of each batch that it has scored; the worker writes those of a checkpoint before
the checkpoint's transaction, and shows them after it (`connectors.scores`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from connectors.database.rows import PartitionState
from connectors.scores import FraudColumns, ScoredRecords, ScoresWriter, SpaceScores, Vectors
from detectors.errors import SinkError
from monitor.event import EventBatch
from monitor.log import RepeatingFailure, describe

if TYPE_CHECKING:
    from detectors.reference import Scored
    from monitor.pipeline import Space

log = logging.getLogger(__name__)

MOST_ROWS = 50_000  # of a checkpoint; the caller writes it before more are collected
MOST_VECTOR_BYTES = 64 << 20  # likewise
RETRY_MS = 5_000  # after a failure, before the next attempt
REMEMBER_MS = 60_000  # between attempts it is still a failure
RETRY_DROPPED_MS = 60_000  # likewise, where scoring goes on: an attempt may take 10 s, in which nothing is scored


class TakenScores:
    """Collects the scores of one model's records.

    Args:
        vectors: the type of the vectors to collect; False without them.
    """

    def __init__(self, *, vectors: Vectors = False) -> None:
        self._dtype = np.dtype(vectors) if vectors else None
        self.clear()

    def clear(self) -> None:
        """Forget what was not written: it is scored again."""
        self._records: list[ScoredRecords] = []
        self._rows = self._bytes = 0

    @property
    def pending(self) -> Sequence[ScoredRecords]:
        """What was taken since `clear`."""
        return self._records

    @property
    def full(self) -> bool:
        """The checkpoint should be written before more records are taken in."""
        return self._rows >= MOST_ROWS or self._bytes >= MOST_VECTOR_BYTES

    def take(
        self,
        events: EventBatch,
        scored: Sequence[tuple[Space, Scored]],
        *,
        late: npt.NDArray[np.bool_],
        voting: npt.NDArray[np.int64],
        alpha: float,
        fraud: FraudColumns | None = None,
    ) -> None:
        """Take note of a batch.

        Args:
            scored: what the reference of each space says of the events.
            late: bool (n,), the events that came too late for their block.
            voting: the rows that enter the drift summaries, ascending.
            alpha: p-value up to which a record is a candidate outlier.
            fraud: what the fraud score says of the events.
        """
        if len(events) == 0:
            return
        thinned = ~late
        thinned[voting] = False
        spaces = tuple(
            SpaceScores(
                space=space.name,
                reference=space.version,
                score=found.distance,
                p_value=found.p_value,
                candidate=found.p_value <= alpha,
                nearest=found.nearest,
                vectors=None if self._dtype is None else found.x.astype(self._dtype),
            )
            for space, found in scored
        )
        self._rows += len(events)
        self._bytes += sum(each.vectors.nbytes for each in spaces if each.vectors is not None)
        self._records.append(
            ScoredRecords(
                partition=events.partition,
                offsets=events.offsets,
                rows=events.rows,
                time_ms=events.time_ms,
                ids=events.ids,
                late=late,
                thinned=thinned,
                predictions=events.predictions,
                confidence=events.confidence,
                segments=events.segments,
                spaces=spaces,
                fraud=fraud,
            )
        )


class Scores(TakenScores):
    """Writes the scores of one model's records with the checkpoints.

    Args:
        model: the model's name.
        writer: where they go.
        vectors: the type of the vectors to write; False without them.
        required: without the scores, no checkpoint; otherwise they are dropped where they cannot be written.

    Attributes:
        written, dropped: records of the checkpoint that is being written; see `write`.
    """

    def __init__(self, model: str, writer: ScoresWriter, *, vectors: Vectors = False, required: bool = True) -> None:
        super().__init__(vectors=vectors)
        self.written = self.dropped = 0
        self._model = model
        self._writer = writer
        self._required = required
        self._failed_ms: int | None = None
        self._reason = ""
        self._log = RepeatingFailure(log, "scores wait" if required else "scores dropped")

    def waits(self, now_ms: int) -> bool:
        """Whether an attempt has failed just now, so that no record need be scored yet."""
        return self._required and self._cools_down(now_ms, RETRY_MS)

    def failure(self, now_ms: int) -> str:
        """Why no checkpoint can be written, in words; "" if one can, or if none was tried for a minute."""
        return self._reason if self._required and self._cools_down(now_ms, REMEMBER_MS) else ""

    def write(self, now_ms: int) -> str:
        """Write what was taken since `clear`. Returns the receipt for the transaction; "" where there is none.

        Raises:
            SinkError: they are required, and cannot be written.
        """
        self.written = self.dropped = 0
        if not self._required and self._cools_down(now_ms, RETRY_DROPPED_MS):
            self.dropped = self._rows
            return ""
        try:
            receipt = self._writer.write(self._records, now_ms)
        except SinkError as error:
            self._fail(error, now_ms)
            self.dropped = self._rows
            return ""
        self.written = self._rows
        self._over()
        return receipt

    def publish(self, receipt: str, now_ms: int) -> None:
        """The transaction with this receipt was committed.

        Raises:
            SinkError: they are required, and cannot be shown: `settle` must do it before the next `write`.
        """
        if receipt:
            try:
                self._writer.publish(receipt)
            except SinkError as error:
                self._fail(error, now_ms)
                self.written, self.dropped = 0, self.written

    def discard(self, receipt: str) -> None:
        """The transaction with this receipt was rolled back."""
        if receipt:
            self._writer.discard(receipt)

    def settle(self, states: Sequence[PartitionState], now_ms: int) -> None:
        """Show what was committed, and perhaps not shown: by a worker that was killed, or by this one.

        Args:
            states: of all partitions of the model, as they are stored.

        Raises:
            SinkError: they are required, and cannot be shown.
        """
        receipts = {state.scores for state in states if state.scores}
        for receipt in sorted(receipts):
            self.publish(receipt, now_ms)
        self._writer.sweep(receipts, now_ms)

    def check(self) -> str:
        """Connect once; one line on where the scores will go.

        Raises:
            SinkError: it cannot be reached or written.
        """
        try:
            return self._writer.check()
        finally:
            self._writer.close()

    def close(self) -> None:
        """Leave within 5 seconds. Nothing is waiting: `write` has waited for all."""
        self._writer.close()

    def _cools_down(self, now_ms: int, pause_ms: int) -> bool:
        return self._failed_ms is not None and 0 <= now_ms - self._failed_ms < pause_ms

    def _fail(self, error: SinkError, now_ms: int) -> None:
        self._failed_ms = now_ms
        self._reason = str(error)
        self._log.happened(describe(error), model=self._model)
        if self._required:
            raise error

    def _over(self) -> None:
        self._failed_ms = None
        self._log.over(model=self._model)
