"""Drift for people who hold vectors in memory: `DriftMonitor` scores, sums up and folds in one call.

It is the same rule, to the byte, that the service applies to a stream; blocks are counted in records instead of time.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import numpy as np
import numpy.typing as npt

from detectors.baseline import measure_reference
from detectors.errors import InvalidInput
from detectors.fold import BASELINE_SHARE, MIN_RECORDS, FoldSettings, FoldState, Reading, Rule, fold
from detectors.reference import Reference
from detectors.seasons import Season
from detectors.summary import BlockSummary, summarise

__all__ = ["DriftMonitor", "Reading"]

_TILE = 4096  # vectors scored at once; bounds the memory that a long array takes


class DriftMonitor:
    """Watches a sequence of vectors for drift away from a reference.

    However the sequence is cut into calls of `update`, the readings are the same to the last bit.

    Args:
        reference: what normal looks like.
        block: records per block; a shift cannot be seen before a block is full.
        page_every, warn_every: average number of records between two false pages (false warnings) while nothing
            changes.

    Where the reference follows a season (`Reference.build(..., seasons=...)`), the first vector must lie a whole number
    of cycles after the baseline's first one, and blocks must be as long as the reference's.

    Raises:
        InvalidInput: a block below 1, or run lengths that are not at least a block, page >= warn; a block of another
            length than the reference's season was counted in.

    Example:
        >>> import numpy as np
        >>> from detectors import DriftMonitor, Reference
        >>> random = np.random.default_rng(0)
        >>> reference = Reference.build(random.standard_normal((20_000, 16)).astype(np.float32))
        >>> monitor = DriftMonitor(reference, block=256)
        >>> any(reading.page for reading in monitor.update(random.standard_normal((10_000, 16))))
        False
        >>> shifted = random.standard_normal((10_000, 16)) + 0.3
        >>> page = next(reading for reading in monitor.update(shifted) if reading.page)
        >>> page.channel, 9_000 < page.onset < 11_000
        ('level', True)
    """

    def __init__(
        self, reference: Reference, block: int = 256, page_every: float = 1e7, warn_every: float = 2e4
    ) -> None:
        if block < 1 or not page_every >= warn_every >= block:
            raise InvalidInput(
                f"A drift monitor needs block >= 1 and page_every >= warn_every >= block, all in records, but got "
                f"{block}, {page_every} and {warn_every}.",
                hint="Use smaller blocks or longer run lengths.",
            )
        self._reference = reference
        self._block = block
        constants = reference.drift or measure_reference(reference)
        if Season.read(constants) is not None and block != reference.block_records:
            raise InvalidInput(
                f"The reference follows a season that was counted in blocks of {reference.block_records} records, "
                f"not of {block}.",
                hint=f"DriftMonitor(reference, block={reference.block_records})",
            )
        longest = max(MIN_RECORDS, reference.n_records * BASELINE_SHARE)
        settings = FoldSettings(
            page_run_length_blocks=page_every / block,
            warn_run_length_blocks=warn_every / block,
            max_blocks=ceil(longest / block),
        )
        self._rule = Rule(constants, settings)
        self._state = FoldState.start(self._rule)
        self._partial = BlockSummary.empty(reference.dimension, len(reference.prototypes))
        self._seen = 0

    @property
    def records(self) -> int:
        """Vectors seen so far; the index of the next one."""
        return self._seen

    def update(self, vectors: npt.ArrayLike) -> list[Reading]:
        """Take the next vectors of the sequence; vectors of a block that is not full yet wait for the next call.

        Args:
            vectors: (n, d), finite; n may be 0.

        Returns:
            For every block that became full, a reading of each channel: level, shape, mix. `onset`, its interval from
            `onset_earliest` to `onset_latest`, and `window_start` are indices of records, counted from the first
            vector ever given; `block` counts blocks.

        Raises:
            InvalidInput: vectors that the reference cannot score; then none of this call were taken.
        """
        rows = np.asarray(vectors)
        if rows.ndim == 2 and len(rows) == 0:
            return []
        scored = [self._reference.score(rows[start : start + _TILE]) for start in range(0, max(len(rows), 1), _TILE)]
        readings: list[Reading] = []
        for part in scored:
            blocks = (self._seen + np.arange(len(part), dtype=np.int64)) // self._block
            for summary in summarise(blocks, part).values():
                self._partial = self._partial.merge(summary)
                self._seen += summary.n
                if self._partial.n == self._block:
                    self._state, found = fold(self._state, self._partial, self._rule)
                    readings += [self._in_records(reading) for reading in found]
                    self._partial = BlockSummary.empty(self._reference.dimension, len(self._reference.prototypes))
        return readings

    def _in_records(self, reading: Reading) -> Reading:
        def record(block: int | None) -> int | None:
            return None if block is None else block * self._block

        return replace(
            reading,
            onset=record(reading.onset),
            onset_earliest=record(reading.onset_earliest),
            onset_latest=None if reading.onset_latest is None else (reading.onset_latest + 1) * self._block - 1,
            window_start=reading.window_start * self._block,
        )
