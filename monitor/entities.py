"""Entities whose records lie in several partitions: what is usual of them is known in pieces, which is said once.

What is known of an entity is exact where all of its records are in one partition, as they are where the topic is keyed
by the entity. A worker sees that they are not when it writes one entity from two of its partitions; `driftd doctor`
sees it across workers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from connectors.database.rows import EntityRow
from monitor.log import event

log = logging.getLogger(__name__)

HINT = "Key the topic by that field, or map another one: its past is exact only where it has one partition."


class CountsScattered(Protocol):
    """What `scattered_text` needs: `connectors.database.store.Store`."""

    def scattered_entities(self, model: str) -> dict[str, int]:
        """By kind, how many have records in several partitions of one topic."""


def scattered(rows: Sequence[EntityRow]) -> dict[str, int]:
    """By kind, how many of the entities written by one checkpoint have records in several partitions of one topic."""
    found: dict[str, list[int]] = {}
    for topic, kind in sorted({(row.partition.topic, row.kind) for row in rows}):
        chosen = [row for row in rows if row.blob and row.kind == kind and row.partition.topic == topic]
        # A partition writes an entity once, so that one which occurs twice is in two of them.
        _, times = np.unique(np.array([row.entity for row in chosen], np.int64), return_counts=True)
        found.setdefault(kind, []).append(int(np.count_nonzero(times > 1)))
    return {kind: sum(counts) for kind, counts in found.items() if any(counts)}


class ScatterWatch:
    """Logs once for each kind that its entities lie in several partitions.

    Args:
        model: the model's name.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._said: set[str] = set()

    def look(self, rows: Sequence[EntityRow]) -> None:
        """Look at what a checkpoint writes."""
        if len({row.partition for row in rows}) < 2 or {row.kind for row in rows} <= self._said:
            return
        for kind, count in scattered(rows).items():
            if kind not in self._said:
                self._said.add(kind)
                log.warning(
                    event("entities in several partitions", model=self._model, kind=kind, entities=count, hint=HINT)
                )


def scattered_text(store: CountsScattered, model: str) -> tuple[bool, str]:
    """Whether every entity has one partition, and a sentence that says so."""
    counts = store.scattered_entities(model)
    if not counts:
        return True, "each entity's records are in one partition"
    said = ", ".join(f"{count:,} of kind {kind}" for kind, count in sorted(counts.items()))
    return False, f"entities have records in several partitions: {said}. {HINT}"
