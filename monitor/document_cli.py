"""What `driftd label` and `driftd truth` have in common: a file is taken in, and it is said what became of it."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

import typer

from monitor.terminal import put_json, say

if TYPE_CHECKING:
    from monitor.document_reader import Desk
    from monitor.joining import Took
    from monitor.labels import BadLabel

AT_A_TIME = 20_000  # documents of one transaction
MOST_SHOWN = 10  # lines that are none

D = TypeVar("D")
Made = TypeVar("Made", covariant=True)
_Problem = tuple[int, "BadLabel"]


class Read(Protocol[Made]):
    """Makes a document of what a line holds, or raises BadLabel."""

    def __call__(self, document: Any, now_ms: int, *, origin: str) -> Made: ...


def take_file(what: str, name: str, *, desk: Desk[D], read: Read[D], json: bool) -> None:
    """Take the documents of a file in, and say what became of them.

    Args:
        what: a document, in a word, such as "label".
        name: of the file, or - for standard input.
        json: say it to a program.

    Raises:
        Exit: with 1 where a line is none.
        InvalidInput: the file cannot be read.
        StoreError: the database refuses.
    """
    from monitor.document_files import opened
    from monitor.joining import Took
    from monitor.progress import bar

    problems: list[_Problem] = []
    total = Took(0, 0, 0)
    stream, size = opened(name)
    with bar(f"{what}s") as progress, stream:
        documents = _documents(stream, name, read=read, problems=problems)
        while portion := list(islice(documents, AT_A_TIME)):
            total = total.plus(desk.take(portion))
            progress(stream.tell() if size else total.new + total.repeated, size or -1)
    bad = Counter(problem.reason for _, problem in problems)
    if json:
        shown = [_said(problem) for problem in problems[:MOST_SHOWN]]
        put_json({**data_of(total, len(problems)), "problems": shown})
    else:
        say(in_words(total) if total.new or total.repeated or problems else f"There are no {what}s in {name}.")
        for problem in problems[:MOST_SHOWN]:
            say(f"  {_said(problem)}")
        if problems:
            lines = f"1 line is no {what}" if len(problems) == 1 else f"{len(problems):,} lines are no {what}s"
            say(f"{lines} ({', '.join(f'{n} {reason}' for reason, n in bad.items())}).")
            say("Mend them and give the file again: what was taken is known, and nothing comes of it twice.")
    if problems:
        raise typer.Exit(1)


def _documents(stream: BinaryIO, name: str, *, read: Read[D], problems: list[_Problem]) -> Iterator[D]:
    """The documents of a file; what is none is noted with its line.

    One without a time and an origin is known again by what its line says, and by how many such lines came before:
    the same file given twice, or with more lines at its end, says nothing twice.
    """
    from monitor.document_files import lines_of
    from monitor.labels import BadLabel

    now_ms = int(time.time() * 1000)
    seen = Counter[bytes]()
    for number, line, document in lines_of(stream, name):
        digest = hashlib.sha256(line).digest()[:16]
        seen[digest] += 1
        try:
            yield read(document(), now_ms, origin=f"file:{digest.hex()}:{seen[digest]}")
        except BadLabel as error:
            problems.append((number, error))


def in_words(took: Took) -> str:
    """What became of labels: "97 count from now on, 2 were known, 1 waits for its record."."""

    def of(count: int, one: str, several: str) -> str:
        return f"{count:,} {one if count == 1 else several}"

    parts = [of(took.counting, "counts from now on", "count from now on")]
    if took.known:
        parts.append(of(took.known, "was known", "were known"))
    if took.waiting:
        parts.append(of(took.waiting, "waits for its record", "wait for their records"))
    return f"{', '.join(parts)}."


def data_of(took: Took, bad: int = 0) -> dict[str, int]:
    """What became of documents, for a program."""
    return took.counts() | {"bad": bad}


def _said(problem: _Problem) -> str:
    number, error = problem
    return f"Line {number}: {error.message}"
