"""Replay on several cores: segments are folded apart, each share of them in a process of its own.

What their blocks say goes to the process that asked, which alone knows the incidents.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from detectors.errors import DriftdError
from monitor.settings import Settings

if TYPE_CHECKING:
    from monitor.folding import Weighed


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings to be tried, and what to call them."""

    name: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class Task:
    """What a process needs to know to fold a share of the segments.

    Attributes:
        database: the store's address.
        timeline: first block and number of blocks of every stored step.
        share, of: every ``of``-th segment, beginning with number ``share``.
    """

    database: str
    model: str
    variants: Sequence[Variant]
    timeline: Sequence[tuple[int, int]]
    first_judged: int
    share: int
    of: int


@contextmanager
def helped(task: Task) -> Iterator[list[Iterator[list[Weighed]]]]:
    """Start a process for every share but the task's own; each gives what one batch after the other says, by variant.

    Raises:
        DriftdError: a process ended before it was done.
    """
    running: list[subprocess.Popen[bytes]] = []
    try:
        for share in range(task.of):
            if share == task.share:
                continue
            process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            running.append(process)
            assert process.stdin is not None
            pickle.dump(replace(task, share=share), process.stdin)
            process.stdin.close()
        yield [_answers(process) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _answers(process: subprocess.Popen[bytes]) -> Iterator[list[Weighed]]:
    assert process.stdout is not None
    while True:
        try:
            yield pickle.load(process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            raise DriftdError(
                "A process that folded a part of the segments ended before it was done.",
                hint="What it said stands above. Where memory is short, replay less at once: driftd replay --from T",
            ) from error


def _main() -> None:
    from monitor.replay import weigh_share

    task = pickle.load(sys.stdin.buffer)
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed is no answer

        def tell(weighed: list[Weighed]) -> None:
            pickle.dump(weighed, answers)
            answers.flush()

        weigh_share(task, tell)


if __name__ == "__main__":
    _main()
