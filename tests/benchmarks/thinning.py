"""Microseconds per record of thinning by key, in polls of 4,096, beside a plain loop over records."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from monitor.thinning import SeenKeys, key_hashes

POLL = 4096
POLLS = 48
POLLS_OF_A_BLOCK = 16
ROUNDS = 7


def main() -> None:
    random = np.random.default_rng(0)
    for records_of_a_key in (1, 8):
        # UUIDs as text: as long as keys get. Neighbouring polls share keys, as sessions go on.
        polls = [
            [
                str(uuid.UUID(int=int(number) * 0x9E3779B97F4A7C15))
                for number in random.integers(first, first + span, POLL)
            ]
            for span in [2 * POLL // records_of_a_key]
            for first in range(1, POLLS * POLL // records_of_a_key, POLL // records_of_a_key)
        ]
        ours, votes = best_of(polls, Vectorised)
        loop, same = best_of(polls, Looped)
        assert votes == same
        print(
            json.dumps(
                {
                    "benchmark": f"thinning_{records_of_a_key}_records_of_a_key",
                    "value": round(ours / POLL / POLLS * 1e6, 3),
                    "unit": "us/record",
                    "ratio": round(loop / ours, 2),
                    "against": "a loop over records with blake2b and a set for each block",
                    "poll": POLL,
                    "votes": round(votes / POLL / POLLS, 3),
                }
            )
        )


def best_of(polls: Sequence[list[str]], way: type[Vectorised] | type[Looped]) -> tuple[float, int]:
    """Seconds of all polls, each at its best: other work on the machine slows some polls of every round."""
    best, votes = np.full(len(polls), np.inf), 0
    for _ in range(ROUNDS):
        one, votes = way(), 0
        for number, keys in enumerate(polls):
            began = time.perf_counter()
            votes += one.votes(number // POLLS_OF_A_BLOCK, keys)
            best[number] = min(best[number], time.perf_counter() - began)
    return float(best.sum()), votes


class Vectorised:
    """As the pipeline does it."""

    def __init__(self) -> None:
        self._seen = SeenKeys()

    def votes(self, block: int, keys: list[str]) -> int:
        self._seen.close(block - 1)
        return int(np.count_nonzero(self._seen.vote(np.full(len(keys), block), key_hashes(keys)).enters))


class Looped:
    """The same without arrays."""

    def __init__(self) -> None:
        self._seen: dict[int, set[bytes]] = {}

    def votes(self, block: int, keys: list[str]) -> int:
        self._seen.pop(block - 1, None)
        seen = self._seen.setdefault(block, set())
        before = len(seen)
        for key in keys:
            seen.add(blake2b(key.encode(), digest_size=8).digest())
        return len(seen) - before


if __name__ == "__main__":
    main()
