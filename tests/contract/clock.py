"""A wall clock that stands still until a test moves it."""

from __future__ import annotations


class Clock:
    """The wall clock of the store under test."""

    ms = 1_000

    def __call__(self) -> int:
        return self.ms
