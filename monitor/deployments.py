"""Versions of the watched model, as its records name them (``record.version``): which are known, and which are new.

A new version is a deployment. What drifts right after one is most often the new version itself, and not the world:
incidents that open in the grace period after it wait for its end, and an incident names a deployment near its onset.
Everything here is a function of the closed blocks, in their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from connectors.database.rows import DeploymentRow

MOST_KNOWN = 256  # versions; the oldest go first
MOST_DEPLOYMENTS = 16  # that incidents can still be set beside
MIN_RECORDS = 10  # of a block that name a version before it counts: one odd record is no deployment
MIN_SHARE = 0.01
NEAR_MS = 3_600_000  # a deployment this far from an onset is named


def present(versions: Mapping[str, int], records: int) -> list[str]:
    """The versions that enough records of a block name, in the order of their names.

    Args:
        versions: records of each version.
        records: of the block in all.
    """
    enough = max(MIN_RECORDS, MIN_SHARE * records)
    return sorted(version for version, count in versions.items() if count >= enough)


def take_in(known: Sequence[str], found: Iterable[str]) -> tuple[list[str], list[str]]:
    """The versions that are known after a block, and of them those that were deployed in it.

    The first versions that a stream ever names are where it starts, and no deployment.

    Args:
        known: before the block, oldest first.
        found: present in the block.
    """
    new = [version for version in found if version not in known]
    return [*known, *new][-MOST_KNOWN:], new if known else []


def as_known_at(deployments: Sequence[DeploymentRow], block: int) -> Sequence[DeploymentRow]:
    """The deployments that the fold of this block knows of, however many later blocks are folded with it.

    Args:
        deployments: in the order of their blocks.
    """
    return [row for row in deployments if row.block <= block][-MOST_DEPLOYMENTS:]


def grace_end_ms(deployments: Sequence[DeploymentRow], at_ms: int, grace_ms: int) -> int | None:
    """When the grace period ends in which a moment lies; None where it lies in none."""
    ends = [row.start_ms + grace_ms for row in deployments if row.start_ms <= at_ms < row.start_ms + grace_ms]
    return max(ends, default=None)


def nearest(deployments: Sequence[DeploymentRow], onset_ms: int) -> DeploymentRow | None:
    """The deployment nearest to an onset, of those that are near; of two alike the later one."""
    near = [row for row in deployments if abs(row.start_ms - onset_ms) <= NEAR_MS]
    return min(near, key=lambda row: (abs(row.start_ms - onset_ms), -row.start_ms, row.version), default=None)
