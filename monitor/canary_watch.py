"""Looks at the canaries of a watched model: all of them now and then, a few before each checkpoint.

An embedder that asks another program may be another one from one moment to the next. So a few of its canaries are
embedded after the records of a checkpoint, and before it is written: an encoder that was replaced among these records
is seen while nothing of them counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from monitor.canaries import FEW, CanaryCheck, EncoderChanged, are_of, checked
from monitor.pipeline import Space

AGAIN_S = 10.0  # while the encoder is another one, all canaries so often


class CanaryWatch:
    """The canaries of a model.

    Args:
        spaces: just loaded, so that their canaries were looked at.
        every_s: time between two looks at all of them.

    Attributes:
        latest: what came of the last look at all canaries, by space.
    """

    def __init__(self, spaces: Sequence[Space], *, every_s: float) -> None:
        self._spaces = {
            space.name: space
            for space in spaces
            if space.reference.canaries is not None and are_of(space.reference.canaries, space.embedder)
        }
        self._every_s = every_s
        self._next: float | None = None
        self._turn = 0
        self.latest: dict[str, CanaryCheck] = {
            space.name: space.check for space in self._spaces.values() if space.check is not None
        }

    def look(self, clock_s: float) -> None:
        """Look at all canaries, if it is time.

        Args:
            clock_s: monotonic clock, seconds.

        Raises:
            EncoderChanged: a vector is another one.
            SourceError: an embedder asks another program, and it does not answer; it is asked again at the next call.
        """
        if self._next is None:
            self._next = clock_s + self._every_s
        if clock_s >= self._next:
            self.look_at_all()
            self._next = clock_s + self._every_s

    def soon(self) -> None:
        """Look at all canaries at the next call: another program did not answer, and may come back as another one."""
        self._next = float("-inf")

    def look_at_all(self) -> None:
        """Look at all canaries of all spaces. Raises as `look`."""
        for name, space in self._spaces.items():
            assert space.reference.canaries is not None
            self.latest[name] = checked(space.reference.canaries, space.embedder)
        for name, check in self.latest.items():
            self._judge(self._spaces[name], check)

    def look_at_a_few(self) -> None:
        """Look at the next few canaries of each space whose embedder asks another program. Raises as `look`."""
        for space in self._spaces.values():
            canaries = space.reference.canaries
            if canaries is None or not getattr(space.embedder, "remote", False):
                continue
            count = len(canaries.vectors)
            rows = sorted({(self._turn + step) % count for step in range(FEW)})
            self._judge(space, checked(canaries, space.embedder, rows=rows))
        self._turn += FEW

    @staticmethod
    def _judge(space: Space, check: CanaryCheck) -> None:
        if check.change is not None:
            raise EncoderChanged(
                f"Reference {space.reference.model}/{space.name} version {space.version}: {check.text}",
                space=space.name,
                check=check,
            )
