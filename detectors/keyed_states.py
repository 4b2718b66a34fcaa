"""A small state for each of many keys, bounded: the keys that were not used for longest are dropped.

Which keys those are depends on the offsets alone. Dropping happens where the offsets pass a multiple of 4,096, never
at the end of a batch, so that states are the same however records are cut into batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidReference

Hashes = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]
States = npt.NDArray[np.void]  # structured, with the field "offset": of the key's last record

EPOCH = 4096  # offsets between two chances to be dropped


@dataclass(frozen=True, slots=True)
class Seeds:
    """What the keys of the baseline begin with.

    Attributes:
        hashes: uint64 (n,), ascending.
        states: (n,), of the type that the states have.
    """

    hashes: Hashes
    states: States

    @classmethod
    def none(cls, blank: np.void) -> Seeds:
        """No key begins with anything."""
        return cls(np.zeros(0, np.uint64), np.zeros(0, blank.dtype))


class KeyedStates:
    """The states of one partition.

    Args:
        blank: one state, what a key that nobody knows begins with.
        seeds: what the keys of the baseline begin with.
        most: keys remembered; between two multiples of 4,096 offsets those that come anew are remembered as well.
        stored: (hash, blob) of former `unwritten`.

    Raises:
        InvalidReference: a blob of another length.
    """

    def __init__(self, blank: np.void, *, seeds: Seeds, most: int, stored: Iterable[tuple[int, bytes]] = ()) -> None:
        self._blank = blank
        self._seeds = seeds
        self._most = most
        self.dropped = 0  # keys, since this object was made
        rows = sorted(stored)
        size = blank.dtype.itemsize
        if any(len(blob) != size for _, blob in rows):
            raise InvalidReference(
                "stored states of entities do not fit the model that should read them.",
                hint="Build the reference again: its entity model begins anew.",
            )
        self._hashes: Hashes = np.array([key for key, _ in rows], np.uint64)
        self._slots: Int64s = np.arange(len(rows))
        self._states: States = np.frombuffer(b"".join(blob for _, blob in rows), blank.dtype).copy()
        self._changed: list[Hashes] = []
        self._epoch = int(self._states["offset"].max()) // EPOCH if rows else -1

    def __len__(self) -> int:
        return len(self._hashes)

    def pieces(self, hashes: Hashes, offsets: Int64s) -> Iterator[slice]:
        """Cut a batch where keys may have to be dropped, and drop them there.

        Args:
            hashes: uint64 (n,), of keys.
            offsets: int64 (n,), ascending.
        """
        if len(hashes) == 0:
            return
        epochs = offsets // EPOCH
        if len(self) + len(hashes) <= self._most:  # nothing to drop, wherever one looks
            self._epoch = int(epochs[-1])
            yield slice(0, len(hashes))
            return
        cuts = [0, *(np.flatnonzero(epochs[1:] != epochs[:-1]) + 1).tolist(), len(hashes)]
        for start, stop in itertools.pairwise(cuts):
            if int(epochs[start]) != self._epoch:
                self._drop()
                self._epoch = int(epochs[start])
            yield slice(start, stop)

    def get(self, keys: Hashes) -> States:
        """A copy of the states of distinct, ascending keys: the remembered ones, else the seeds', else blank ones."""
        states = np.full(len(keys), self._blank, self._blank.dtype)
        place, found = _find(self._seeds.hashes, keys)
        states[found] = self._seeds.states[place]
        place, found = _find(self._hashes, keys)
        states[found] = self._states[self._slots[place]]
        return states

    def put(self, keys: Hashes, states: States) -> None:
        """Remember the states of distinct, ascending keys."""
        place, found = _find(self._hashes, keys)
        self._states[self._slots[place]] = states[found]
        if not found.all():
            new = keys[~found]
            slots = np.arange(len(self), len(self) + len(new))
            if slots[-1] >= len(self._states):
                room = np.zeros(max(1024, len(self._states) // 2, len(new)), self._blank.dtype)
                self._states = np.concatenate([self._states, room])
            self._states[slots] = states[~found]
            at = np.searchsorted(self._hashes, new)
            self._hashes, self._slots = np.insert(self._hashes, at, new), np.insert(self._slots, at, slots)
        self._changed.append(keys)

    def as_seeds(self) -> Seeds:
        """All states, as what other partitions begin with."""
        states = self._states[self._slots]
        states["offset"] = -1
        return Seeds(self._hashes.copy(), states)

    def unwritten(self) -> list[tuple[int, int, bytes]]:
        """(hash, offset of its last record, blob) of each key that changed since `written`; b"" for a dropped one."""
        if not self._changed:
            return []
        keys = np.unique(np.concatenate(self._changed))
        place, found = _find(self._hashes, keys)
        states, size = self._states[self._slots[place]], self._blank.dtype.itemsize
        content = states.tobytes()
        blobs = [content[start : start + size] for start in range(0, len(content), size)]
        kept = list(zip(keys[found].tolist(), states["offset"].tolist(), blobs, strict=True))
        return kept + [(key, -1, b"") for key in keys[~found].tolist()]

    def written(self) -> None:
        """What `unwritten` gave was committed."""
        self._changed.clear()

    def _drop(self) -> None:
        extra = len(self) - self._most
        if extra <= 0:
            return
        kept_states = self._states[self._slots]
        oldest_first = np.lexsort((self._hashes, kept_states["offset"]))
        keep = np.ones(len(self), np.bool_)
        keep[oldest_first[:extra]] = False
        self._changed.append(self._hashes[~keep])
        self._states, self._hashes = kept_states[keep], self._hashes[keep]
        self._slots = np.arange(len(self._hashes))
        self.dropped += extra


def _find(sorted_keys: Hashes, keys: Hashes) -> tuple[Int64s, npt.NDArray[np.bool_]]:
    """Places of those keys that are there, int64 (m,), and which they are, bool (n,)."""
    places = np.searchsorted(sorted_keys, keys)
    inside = np.minimum(places, max(len(sorted_keys) - 1, 0))
    found = sorted_keys[inside] == keys if len(sorted_keys) else np.zeros(len(keys), np.bool_)
    return np.asarray(inside[found], np.int64), np.asarray(found, np.bool_)


def blank_state(dtype: np.dtype[Any]) -> np.void:
    """A state of zeros whose last record is nowhere."""
    state = np.zeros(1, dtype)
    state["offset"] = -1
    blank: np.void = state[0]
    return blank
