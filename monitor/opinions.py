"""Second opinions on the blocks of a space: which means river's detectors look at, and what is stored of their answers.

The detectors see the whole traffic of a space, one number per block: the mean normal score of the p-values, and in
spaces of kind ``number`` or ``pair`` the mean of the number, or of the affinity, too. Their readings have channels of
their own (``adwin``, ``page_hinkley``, ``adwin_value``, ``page_hinkley_value``), warn at most, open no incident and
spend no budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, get_args

import numpy as np
import numpy.typing as npt

from connectors.database.rows import ReadingRow
from detectors.baseline import TICK
from detectors.feedback import BlockScale, OpinionName, SecondOpinion
from detectors.fold import Rule
from detectors.summary import BlockSummary
from monitor.embedders.number import VALUE_COLUMN, OneNumber
from monitor.pipeline import EVERYTHING, Space

_VALUE: Final = "_value"  # ends the channel of a detector that looks at the number itself


def is_opinion(channel: str) -> bool:
    """Whether a reading's channel is one of a second opinion."""
    return channel.removesuffix(_VALUE) in get_args(OpinionName)


class _Sums(Protocol):
    """What a sum over a block's records is taken of, in standard deviations of a record."""

    def over(self, summary: BlockSummary) -> float: ...
    def shown(self, mean: float) -> float:
        """The mean in the unit that a person knows."""


@dataclass(frozen=True, slots=True)
class _Score:
    """The normal score of the p-value."""

    normal_score: npt.NDArray[np.float64]

    def over(self, summary: BlockSummary) -> float:
        return float(summary.h @ self.normal_score)

    def shown(self, mean: float) -> float:
        return mean


@dataclass(frozen=True, slots=True)
class _Value:
    """The number of a space of kind ``number``, or the affinity of one of kind ``pair``."""

    embedder: OneNumber
    centre: float
    scale: float

    def over(self, summary: BlockSummary) -> float:
        return float(summary.s[VALUE_COLUMN]) * TICK

    def shown(self, mean: float) -> float:
        return self.embedder.number_of(self.centre + self.scale * mean)


@dataclass(frozen=True, slots=True)
class OpinionStream:
    """One detector on one mean of a space.

    Attributes:
        channel: of its readings.
        name: the detector.
        sums: what the mean is of.
        scale: what a block's mean is compared with, measured on the baseline's blocks.
    """

    channel: str
    name: OpinionName
    sums: _Sums
    scale: BlockScale


def opinion_streams(space: Space, names: Sequence[OpinionName], rule: Rule) -> tuple[OpinionStream, ...]:
    """The detectors to run on the whole traffic of a space."""
    reference, blocks = space.reference, space.reference.blocks
    means: list[tuple[str, _Sums, BlockScale]] = [
        ("", _Score(rule.normal_score), BlockScale.of_blocks(blocks.h @ rule.normal_score, blocks.n_h))
    ]
    if isinstance(space.embedder, OneNumber):
        value = _Value(space.embedder, float(reference.centre[VALUE_COLUMN]), float(reference.scale[VALUE_COLUMN]))
        means.append((_VALUE, value, BlockScale.of_blocks(blocks.s[:, VALUE_COLUMN] * TICK, blocks.n)))
    return tuple(
        OpinionStream(f"{name}{suffix}", name, sums, scale)
        for name in dict.fromkeys(names)
        for suffix, sums, scale in means
    )


class Opinions:
    """The detectors of one space, block after block.

    Args:
        streams: from `opinion_streams`.
        stored: their states by channel, from `states`; a detector without one begins anew.
    """

    def __init__(self, streams: Sequence[OpinionStream], stored: Mapping[str, bytes]) -> None:
        self._streams = streams
        self._detectors = {
            stream.channel: SecondOpinion.from_bytes(stream.name, stored.get(stream.channel, b"")) for stream in streams
        }

    def push(
        self, block: int, summary: BlockSummary, *, space: Space, rule: Rule, block_ms: int
    ) -> Iterator[ReadingRow]:
        """A reading of each detector after one block with records.

        The strength is 0, or just enough to warn: how often such a change appears by chance, the detectors do not say.
        """
        for stream in self._streams:
            mean = stream.sums.over(summary) / summary.n
            changed = self._detectors[stream.channel].push(stream.scale.z(mean, summary.n))
            yield ReadingRow(
                space=space.name,
                segment=EVERYTHING,
                block=block,
                start_ms=block * block_ms,
                end_ms=(block + 1) * block_ms,
                channel=stream.channel,
                statistic=stream.sums.shown(mean),
                strength=rule.settings.warn_threshold if changed else 0.0,
                threshold=rule.settings.page_threshold,
                warn_threshold=rule.settings.warn_threshold,
                n=summary.n,
                effect=mean - stream.scale.centre,
                window_start_ms=block * block_ms,
                onset_ms=None,
                reference=space.version,
                page=False,
                warn=changed,
            )

    def states(self) -> dict[str, bytes]:
        """All that the next answers depend on, by channel."""
        return {channel: detector.to_bytes() for channel, detector in self._detectors.items()}
