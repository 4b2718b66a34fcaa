"""What merging of stored summaries does to a replay: false alarms of a stream that does not change, and delays.

The same blocks are folded one by one, and added up in eights and in sixty-fours, as they are when they have aged. Run
lengths are short, so that there is something to count: the rule promises no more false alarms than blocks / run length,
whatever it folds. A change is a constant added to every vector, from a block on that no multiple of 64 lies at.

    python tests/benchmarks/replay_merged.py --blocks 200000
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from detectors.conformal import P_EDGES
from detectors.fold import FoldSettings, FoldState, Rule, fold_many
from detectors.rate import RateRule, RateState, fold_rate
from tests.streams import Baseline, Block, Topics

BLOCK = 50  # records
WIDTHS = (1, 8, 64)
PAGE_EVERY, WARN_EVERY = 5_000.0, 500.0  # blocks
PIECE = 1_024  # blocks that are drawn at a time
BEFORE = 4_096 + 37  # blocks before a change
BIAS = (0.05, 0.1, 0.2)


def main() -> None:
    """Print a line of JSON for each width, and one for each width and change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=20_000)
    parser.add_argument("--changes", type=int, default=4, help="streams of each change")
    options = parser.parse_args()
    topics = Topics()
    baseline = Baseline(topics.draw(60_000, np.random.default_rng(1)), np.random.default_rng(2), block=BLOCK)
    rule = Rule(baseline.constants, FoldSettings(PAGE_EVERY, WARN_EVERY))
    watches = [_Watch(rule, width) for width in WIDTHS]
    random = np.random.default_rng(3)
    for start in range(0, options.blocks, PIECE):
        blocks = baseline.summaries(topics.draw(PIECE * BLOCK, random), BLOCK)
        for watch in watches:
            watch.take(start, blocks)
    total = -(-options.blocks // PIECE) * PIECE
    for watch in watches:
        _say(
            benchmark="replay_merged",
            blocks_of_one=watch.width,
            value=watch.pages,
            unit=f"false pages in {total} blocks",
            expected_at_most=round(total / PAGE_EVERY, 1),
            warnings=watch.warnings,
            warnings_expected_at_most=round(total / WARN_EVERY, 1),
            rate_pages=watch.rate_pages,
        )
    for bias in BIAS:
        delays: dict[int, list[int]] = {width: [] for width in WIDTHS}
        for seed in range(options.changes):
            random = np.random.default_rng(100 + seed)
            blocks = baseline.summaries(topics.draw(BEFORE * BLOCK, random), BLOCK)
            blocks += baseline.summaries(topics.draw(4_096 * BLOCK, random, bias=bias), BLOCK)
            for width in WIDTHS:
                watch = _Watch(rule, width)
                watch.take(0, blocks[: len(blocks) // 64 * 64])
                after = [at for at in watch.paged_at if at >= BEFORE]
                delays[width].append(after[0] - BEFORE if after else -1)
        for width in WIDTHS:
            _say(
                benchmark="replay_merged_delay",
                bias=bias,
                blocks_of_one=width,
                value=float(np.median(delays[width])),
                unit="blocks until the page, median",
                delays=delays[width],
            )


class _Watch:
    """The rules of drift and of the outlier rate over blocks that are added up in ``width``."""

    def __init__(self, rule: Rule, width: int) -> None:
        self.width = width
        self.pages = self.warnings = self.rate_pages = 0
        self.paged_at: list[int] = []
        self._rule = rule
        self._state = FoldState.start(rule)
        self._rate_rule = RateRule(
            calibration=30_000,
            alpha=float(P_EDGES[int(np.searchsorted(P_EDGES, 2.0**-10))]),
            page_run_length_blocks=PAGE_EVERY,
            warn_run_length_blocks=WARN_EVERY,
        )
        self._candidates = int(np.searchsorted(P_EDGES, 2.0**-10)) + 1
        self._rate = RateState.start(self._rate_rule)

    def take(self, start: int, blocks: list[Block]) -> None:
        for first in range(0, len(blocks), self.width):
            some = blocks[first : first + self.width]
            one = Block(
                sum(block.n for block in some),
                np.sum([block.s for block in some], axis=0),
                np.sum([block.h for block in some], axis=0),
                np.sum([block.c for block in some], axis=0),
            )
            last = start + first + len(some) - 1
            ((self._state, readings),) = fold_many([self._state.at(last)], [one], [self._rule], blocks=[len(some)])
            page = any(reading.page for reading in readings)
            self.pages += page
            self.warnings += any(reading.warn for reading in readings)
            if page:
                self.paged_at.append(last)
            count = int(one.h[: self._candidates].sum())
            self._rate, rate = fold_rate(self._rate.at(last), one.n, count, self._rate_rule, blocks=len(some))
            self.rate_pages += rate.page


def _say(**line: object) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
