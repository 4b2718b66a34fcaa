"""What driftd says of every record, for other programs: the columns, and the contract of what they are written to.

Nothing is lost and, where it is read as intended, nothing is there twice, because writing goes hand in hand with the
transaction that moves past the records:

    write(records) ──► receipt ──► transaction: offsets, sums, receipt ──► publish(receipt)

A writer that can take the same record again under the same key, as a compacted topic can, shows it with `write`, and
its receipts are empty. Another one shows nothing before `publish`; a receipt that is in the database says that the
transaction was committed, so that whoever takes the partition over publishes it, if that was not done.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from connectors.records import Partition

Vectors = Literal[False, "float16", "float32"]


@dataclass(frozen=True, slots=True, eq=False)
class SpaceScores:
    """What the reference of one space says of n records.

    Attributes:
        space: its name.
        reference: the version of the reference.
        score: float32 (n,), a multiple of 1e-5; larger is stranger.
        p_value: float64 (n,).
        candidate: bool (n,), whether the p-value is at most ``outliers.alpha``.
        nearest: int32 (n,), the nearest prototype of the reference.
        vectors: float16 or float32 (n, d), prepared as the reference compares them; None if not asked for.
    """

    space: str
    reference: int
    score: npt.NDArray[np.float32]
    p_value: npt.NDArray[np.float64]
    candidate: npt.NDArray[np.bool_]
    nearest: npt.NDArray[np.int32]
    vectors: npt.NDArray[Any] | None


@dataclass(frozen=True, slots=True, eq=False)
class FraudColumns:
    """What the fraud score says of n records.

    Attributes:
        probability: float32 (n,) in [0, 1], of fraud; NaN before the first confirmed case.
        p_value: float64 (n,), the share of normal records that score as high.
        version: int64 (n,), of the labels that it rests on; 0 without any.
        flood: int32 (n,), near-identical records of its block and partition so far, itself included; 0 for late ones.
    """

    probability: npt.NDArray[np.float32]
    p_value: npt.NDArray[np.float64]
    version: npt.NDArray[np.int64]
    flood: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class ScoredRecords:
    """Rows of one partition in the order of their offsets, as columns of n entries.

    Attributes:
        offsets, rows: int64 (n,), the record, and which row of it, from 0.
        time_ms: int64 (n,), event time in milliseconds since 1970.
        ids: n texts.
        late: bool (n,), too late for its block.
        thinned: bool (n,), in time, but without a vote in the drift summaries, because its key had one.
        predictions: n texts or None each; None altogether if no prediction is mapped.
        confidence: float64 (n,), NaN where absent; None if not mapped.
        segments: for each segment field, n texts.
        spaces: at least one.
        fraud: None where records are not scored as fraud.
    """

    partition: Partition
    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    time_ms: npt.NDArray[np.int64]
    ids: Sequence[str]
    late: npt.NDArray[np.bool_]
    thinned: npt.NDArray[np.bool_]
    predictions: Sequence[str | None] | None
    confidence: npt.NDArray[np.float64] | None
    segments: dict[str, Sequence[str]]
    spaces: tuple[SpaceScores, ...]
    fraud: FraudColumns | None = None

    def __len__(self) -> int:
        return len(self.offsets)


class ScoresWriter(Protocol):
    """Where the scores of one model go. Every method is called from one thread."""

    def check(self) -> str:
        """Connect once; one line on where the scores will go.

        Raises:
            SinkError: it cannot be reached or written.
        """

    def write(self, records: Sequence[ScoredRecords], now_ms: int) -> str:
        """Write the records of one checkpoint; they survive a crash once this returns.

        Args:
            now_ms: wall clock, milliseconds since 1970.

        Returns:
            The receipt, to be stored in the transaction of the checkpoint and then published; "" where nothing is
            left to be done.

        Raises:
            SinkError: some were not written; all of them are handed over again later.
        """

    def publish(self, receipt: str) -> None:
        """The transaction with this receipt was committed: show what was written. May be called again.

        Raises:
            SinkError: it could not be done; it must be tried again before anything else is written.
        """

    def discard(self, receipt: str) -> None:
        """The transaction with this receipt was rolled back. Never raises."""

    def sweep(self, committed: Collection[str], now_ms: int) -> None:
        """Delete what crashes have left behind: old writings whose receipts are not in the database. Never raises."""

    def close(self) -> None:
        """Leave within 5 seconds."""


def cleaned(column: Sequence[Any]) -> list[Any]:
    """Texts without lone surrogates, which have no UTF-8; None stays None."""
    return [None if text is None else text.encode("utf-8", "replace").decode() for text in column]
