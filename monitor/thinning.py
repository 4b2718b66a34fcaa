"""Thinning by key: at most one record of a key (a session, a user, a device) enters the drift summaries of a block.

Near-duplicates are not independent: eight records of one session say little more than one, and a retry storm says
nothing. So the first record of a key in a block, by offset within its partition, is the key's vote, and the others are
scored, kept and counted without one. Whether a record votes depends on the records before it in its partition, and so
on the offsets alone: not on polls, checkpoints, restarts or owners.

Keys are remembered as 64-bit hashes, for each block that is still open in the partition. A collision of two keys costs
one vote: among the 65,536 keys that are remembered of a block, one pair in 2^33 blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from connectors.database.rows import ThinnedKeys
from connectors.records import Partition
from detectors.conformal import hash64

Int64s = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

MAX_KEYS = 65_536  # keys remembered of one block and partition, in 8 bytes each
MAX_KEY_CHARS = 1024  # of a longer key, so many decide

StoredKeys = Callable[[Partition], Sequence[ThinnedKeys]]

_ROWS = 2048  # keys hashed at once, each as wide as the longest: what fits the cache takes half the time
# Odd factors of the finaliser of splitmix64 (Steele, Lea, Flood 2014).
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_NOTHING = np.zeros(0, dtype=np.uint64)


def key_hashes(keys: Sequence[str | None]) -> Hashes:
    """64 bits of every key, uint64 (n,); 0 where there is none. The same key has the same hash in every process.

    An empty text is no key: records of unknown origin are not one session.
    """
    return np.concatenate([_NOTHING, *(_hashes(keys[start : start + _ROWS]) for start in range(0, len(keys), _ROWS))])


def _hashes(keys: Sequence[str | None]) -> Hashes:
    """The key's 8-byte words, each mixed with its place, added up, and mixed again with the key's length."""
    texts = [key or "" for key in keys]
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    if lengths.max() > MAX_KEY_CHARS:
        texts = [text[:MAX_KEY_CHARS] for text in texts]
        lengths = np.minimum(lengths, MAX_KEY_CHARS)
    joined = "".join(texts)
    content = joined.encode("utf-8", "surrogatepass")
    if len(content) > len(joined):  # not ASCII: characters of several bytes
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(texts))
    width = -(-max(int(lengths.max()), 1) // 8)
    padded = np.zeros((len(texts), 8 * width), np.uint8)
    padded[np.arange(8 * width) < lengths[:, None]] = np.frombuffer(content, np.uint8)
    words = padded.view("<u8").astype(np.uint64, copy=False)
    mixed = words ^ hash64(np.arange(width))
    mixed *= _FIRST
    mixed ^= mixed >> np.uint64(32)
    mixed *= _SECOND
    mixed[words == 0] = 0  # padding: how long the other keys of a batch are must not change a hash
    total = mixed.sum(axis=1, dtype=np.uint64)
    return np.where(lengths == 0, np.uint64(0), hash64(total ^ hash64(lengths, seed=1)))


@dataclass(frozen=True, slots=True)
class Votes:
    """Which records of a batch enter the summaries.

    Attributes:
        enters: bool (n,).
        thinned: records that do not, because their key had its vote.
        unchecked: records that do, because the block has more keys than are remembered.
    """

    enters: npt.NDArray[np.bool_]
    thinned: int
    unchecked: int


class SeenKeys:
    """The keys that one partition has shown in each of its open blocks.

    Args:
        stored: what former checkpoints wrote of the open blocks.
        most: keys remembered of a block. Records of later keys all enter; which those are depends on offsets alone.
    """

    def __init__(self, stored: Iterable[ThinnedKeys] = (), *, most: int = MAX_KEYS) -> None:
        self._most = most
        self._blocks: dict[int, Hashes] = {}  # ascending
        self._new: dict[int, list[Hashes]] = {}  # of them, those that no checkpoint has written
        for row in stored:
            hashes = np.frombuffer(row.hashes, "<u8").astype(np.uint64)
            self._blocks[row.block] = np.union1d(self._blocks.get(row.block, _NOTHING), hashes)

    def vote(self, blocks: Int64s, hashes: Hashes) -> Votes:
        """Decide on the next records of the partition, and remember their keys.

        Args:
            blocks: int64 (n,), the block of each record, in the order of the offsets.
            hashes: uint64 (n,), of `key_hashes`.
        """
        enters = hashes == 0
        rows = np.flatnonzero(~enters)
        if len(rows) == 0:
            return Votes(enters, 0, 0)
        order = rows[np.argsort(hashes[rows])]
        if (blocks[rows] != blocks[rows[0]]).any():
            order = order[np.argsort(blocks[order], kind="stable")]
        sorted_hashes, sorted_blocks = hashes[order], blocks[order]
        begins = np.ones(len(order), dtype=np.bool_)
        begins[1:] = (sorted_hashes[1:] != sorted_hashes[:-1]) | (sorted_blocks[1:] != sorted_blocks[:-1])
        places = np.flatnonzero(begins)
        first, keys, of_block = np.minimum.reduceat(order, places), sorted_hashes[places], sorted_blocks[places]
        unchecked = np.zeros(len(places), dtype=np.bool_)
        cuts = [0, *(np.flatnonzero(of_block[1:] != of_block[:-1]) + 1).tolist(), len(of_block)]
        for start, stop in itertools.pairwise(cuts):
            votes, beyond = self._take(int(of_block[start]), keys[start:stop], first[start:stop])
            enters[first[start:stop][votes]] = True
            unchecked[start:stop] = beyond
        extra = order[np.repeat(unchecked, np.diff(places, append=len(order)))]
        enters[extra] = True
        return Votes(enters, int(len(enters) - np.count_nonzero(enters)), len(extra))

    def _take(self, block: int, keys: Hashes, first: Int64s) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which of the distinct, ascending keys are new to the block, and which of those there is no room for."""
        seen = self._blocks.get(block, _NOTHING)
        places = np.searchsorted(seen, keys)
        new = np.ones(len(keys), dtype=np.bool_)
        inside = places < len(seen)
        new[inside] = seen[places[inside]] != keys[inside]
        beyond = np.zeros(len(keys), dtype=np.bool_)
        room, fresh = self._most - len(seen), np.flatnonzero(new)
        if len(fresh) > room:
            by_offset = np.argsort(first[fresh])
            beyond[fresh[by_offset[room:]]] = True
            new &= ~beyond
        if new.any():
            self._blocks[block] = np.insert(seen, places[new], keys[new])
            self._new.setdefault(block, []).append(keys[new])
        return new, beyond

    def close(self, below: int) -> None:
        """Forget the blocks below ``below``: every further record of theirs is late, and late records have no vote."""
        for block in [block for block in self._blocks if block < below]:
            del self._blocks[block]
            self._new.pop(block, None)

    def unwritten(self, partition: Partition, first_offset: int) -> list[ThinnedKeys]:
        """The keys that the next checkpoint has to write, for a checkpoint that begins at ``first_offset``."""
        return [
            ThinnedKeys(partition, block, first_offset, np.sort(np.concatenate(pieces)).astype("<u8").tobytes())
            for block, pieces in sorted(self._new.items())
        ]

    def written(self) -> None:
        """The checkpoint was committed."""
        self._new.clear()
