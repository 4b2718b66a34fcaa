"""JSON lines, from files that may grow and from pipes: bytes cut into lines that know where they begin."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from connectors.file_reader import Int64s, Rows, cannot_be_read
from detectors.errors import OffsetGap, SourceError

_CHUNK: Final = 1 << 20  # bytes read at a time
_MAX_LINE: Final = 16 << 20  # bytes of a line that are kept; the decoder refuses it as too large
_MAX_REPLAY: Final = 256 << 20  # bytes of stdin kept for a rewind
_BOM: Final = b"\xef\xbb\xbf"


class _Bytes(Protocol):
    """Where lines are cut from."""

    name: str
    ended: bool  # nothing comes any more

    def seek(self, offset: int) -> None: ...

    def read(self) -> bytes: ...  # b"": nothing now

    def size(self) -> int: ...

    def before(self, offset: int) -> tuple[bytes, bytes] | None: ...  # the bytes on both sides; None: cannot look

    def count_lines(self, offset: int) -> int: ...

    def forget(self, offset: int) -> None: ...

    def close(self) -> None: ...


class FileBytes:
    """The bytes of a file that may grow."""

    def __init__(self, path: str, *, end: int | None, follow: bool) -> None:
        self.name = path
        self.ended = False
        self._end = end
        self._follow = follow
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115, PTH123 - stays open between polls
        self._inode = os.fstat(self._file.fileno()).st_ino

    def seek(self, offset: int) -> None:
        self._file.seek(offset)
        self.ended = False

    def read(self) -> bytes:
        position = self._file.tell()
        most = _CHUNK if self._end is None else min(_CHUNK, self._end - position)
        try:
            data = self._file.read(most) if most > 0 else b""
            if not data:
                self.ended = True
                self._refuse_other_file(position)
        except OSError as error:
            raise cannot_be_read(self.name, error) from error
        return data

    def _refuse_other_file(self, position: int) -> None:
        """At its end, the file must still be the one that was opened."""
        now = Path(self.name).stat() if self._follow else os.fstat(self._file.fileno())
        if now.st_ino != self._inode or now.st_size < position:
            what = "replaced" if now.st_ino != self._inode else "cut off"
            raise OffsetGap(
                f"{self.name} was {what} while it was read; byte {position} was next.",
                hint="Give each file a name of its own and follow the directory: path: logs/, follow: true.",
            )

    def size(self) -> int:
        size = os.fstat(self._file.fileno()).st_size
        return size if self._end is None else min(size, self._end)

    def before(self, offset: int) -> tuple[bytes, bytes] | None:
        around = os.pread(self._file.fileno(), 2, offset - 1)
        return around[:1], around[1:]

    def count_lines(self, offset: int) -> int:
        lines = 0
        for start in range(0, offset, _CHUNK):
            lines += os.pread(self._file.fileno(), min(_CHUNK, offset - start), start).count(b"\n")
        return lines

    def forget(self, offset: int) -> None:
        """Everything stays in the file."""

    def close(self) -> None:
        self._file.close()


class PipeBytes:
    """The bytes of stdin, with those since the last checkpoint kept for a rewind."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.name = name
        self.ended = False
        self._descriptor = descriptor
        self._kept = bytearray()
        self._kept_from = 0  # position of the first kept byte
        self._next = 0  # position that is read next; beyond the kept bytes when a stored position is skipped to

    def seek(self, offset: int) -> None:
        if offset < self._kept_from:
            raise SourceError(
                f"{self.name} cannot go back to byte {offset}: a pipe is kept only from byte {self._kept_from} on.",
                hint="Start again with the same input: what is stored is skipped.",
            )
        self._next = offset
        self.ended = False

    def read(self) -> bytes:
        arrived = self._kept_from + len(self._kept)
        if self._next >= arrived:
            if not select.select([self._descriptor], [], [], 0)[0]:
                return b""
            data = os.read(self._descriptor, _CHUNK)
            if not data:
                self.ended = True
                if self._next > arrived:
                    raise OffsetGap(
                        f"{self.name} ended at byte {arrived}, but byte {self._next} was next.",
                        hint="Pipe the same input in again, or give it another name: name: stdin-2.",
                    )
                return b""
            self._kept += data
        skipped = self._next - self._kept_from
        piece = bytes(self._kept[skipped : skipped + _CHUNK])
        self._next += len(piece)
        too_many = len(self._kept) - _MAX_REPLAY
        if not piece or too_many > 0:  # skipped to a stored position, or nobody ever commits
            self.forget(self._kept_from + (len(self._kept) if not piece else too_many))
        return piece

    def size(self) -> int:
        return self._next

    def before(self, offset: int) -> tuple[bytes, bytes] | None:
        return None

    def count_lines(self, offset: int) -> int:
        return 0

    def forget(self, offset: int) -> None:
        keep_from = min(offset, self._kept_from + len(self._kept))
        if keep_from > self._kept_from:
            del self._kept[: keep_from - self._kept_from]
            self._kept_from = keep_from

    def close(self) -> None:
        """Not ours to close."""


class LineReader:
    """Cuts bytes into lines. A last line without an end counts only when nothing more can come."""

    def __init__(self, stream: _Bytes, *, open_ended: bool, count_lines: bool) -> None:
        self._stream = stream
        self._open_ended = open_ended
        self._count_lines = count_lines
        self._begin(0, 0)

    def _begin(self, offset: int, line: int) -> None:
        self._lines: list[bytes] = []  # cut and not yet handed over, without blank ones
        self._starts = np.zeros(0, dtype=np.int64)
        self._numbers = np.zeros(0, dtype=np.int64)
        self._handed = 0
        self._position = offset  # of the next record, or of the end of what was cut
        self._cut_to = offset
        self._cut_lines = line
        self._tail = b""  # a line without its end yet, at most _MAX_LINE bytes of it
        self._tail_size = 0
        self._done = False

    @property
    def at_end(self) -> bool:
        return self._done and self._handed == len(self._lines)

    @property
    def remaining(self) -> int:
        return max(0, self._stream.size() - self._position)

    def seek(self, offset: int) -> None:
        name = self._stream.name
        around = self._stream.before(offset) if offset > 0 else None
        if around is not None:
            if offset > self._stream.size():
                raise OffsetGap(
                    f"{name} ends at byte {self._stream.size()}, but byte {offset} was next: cut off or replaced.",
                    hint="Restore the file, or give the new one another name.",
                )
            # After a last line without an end, the line may have been ended since.
            if around[0] != b"\n" and around[1] not in (b"", b"\n", b"\r"):
                raise OffsetGap(
                    f"Byte {offset} of {name} was next, but no line begins there: the file was replaced.",
                    hint="Restore the file, or give the new one another name.",
                )
        self._stream.seek(offset)
        self._begin(offset, self._stream.count_lines(offset) if self._count_lines else 0)

    def read(self, max_rows: int) -> Rows | None:
        while self._handed == len(self._lines):
            if not self._cut_more():
                return None
        end = min(self._handed + max_rows, len(self._lines))
        chosen = slice(self._handed, end)
        self._handed = end
        self._position = self._cut_to if end == len(self._lines) else int(self._starts[end])
        return Rows(self._starts[chosen], self._numbers[chosen], self._lines[chosen], self._position)

    def _cut_more(self) -> bool:
        """Cut the next piece into lines. False: there is none now."""
        if self._done:
            return False
        data = self._stream.read()
        if data:
            self._cut(data)
            return True
        if self._stream.ended and not self._open_ended:
            self._done = True
            if self._tail:
                self._accept([self._tail], np.array([self._tail_size], dtype=np.int64))
                self._tail, self._tail_size = b"", 0
                return True
        return False

    def _cut(self, data: bytes) -> None:
        last = data.rfind(b"\n")
        if last < 0:
            self._tail_size += len(data)
            if len(self._tail) < _MAX_LINE:
                self._tail = (self._tail + data)[:_MAX_LINE]
            self._accept([], np.zeros(0, dtype=np.int64))
            return
        lines = data[:last].split(b"\n")
        sizes = np.fromiter(map(len, lines), dtype=np.int64, count=len(lines)) + 1
        sizes[0] += self._tail_size
        lines[0] = (self._tail + lines[0])[:_MAX_LINE]
        self._accept(lines, sizes)
        self._tail = data[last + 1 :]
        self._tail_size = len(self._tail)

    def _accept(self, lines: list[bytes], sizes: Int64s) -> None:
        """Make lines ready to be handed over. ``sizes`` are their lengths in the file, ends included."""
        ends = self._cut_to + np.cumsum(sizes)
        starts = ends - sizes
        numbers = self._cut_lines + np.arange(len(lines), dtype=np.int64)
        if lines:
            if self._cut_to == 0 and lines[0].startswith(_BOM):
                lines[0] = lines[0].removeprefix(_BOM)
            self._cut_to = int(ends[-1])
            self._cut_lines += len(lines)
        if b"" in lines or b"\r" in lines:
            full = [row for row, line in enumerate(lines) if line not in (b"", b"\r")]
            lines, starts, numbers = [lines[row] for row in full], starts[full], numbers[full]
        self._lines, self._starts, self._numbers, self._handed = lines, starts, numbers, 0
        if not lines:
            self._position = self._cut_to

    def forget(self, offset: int) -> None:
        self._stream.forget(offset)

    def close(self) -> None:
        self._stream.close()


def line_start(stream: _Bytes, offset: int) -> int:
    """Where the first line begins that begins at ``offset`` > 0 or later; the end of the bytes where none does."""
    at = offset - 1
    stream.seek(at)
    while data := stream.read():
        if (end := data.find(b"\n")) >= 0:
            return at + end + 1
        at += len(data)
    return at


def after_last_line(path: str, size: int) -> int:
    """What follows the last complete line within the first ``size`` bytes of a file; 0 where no line is complete."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        for start in range((max(size, 1) - 1) // _CHUNK * _CHUNK, -1, -_CHUNK):
            last = os.pread(file.fileno(), min(_CHUNK, size - start), start).rfind(b"\n")
            if last >= 0:
                return start + last + 1
    return 0
