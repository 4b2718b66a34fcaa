"""Sink `jsonl`: appends each notification to a file, one JSON object a line.

Each line is written by one call in append mode, so several processes may share the file. A line that a crash or a full
disk cut short is ended before the next one is written: readers find one broken line and lose nothing else. A file that
was renamed or removed by a log rotation is opened anew under its name.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from connectors.notification import Notification
from detectors.errors import SinkError


class JsonlSettings(BaseModel, frozen=True, extra="forbid"):
    """Appends each notification to a file, one JSON object a line."""

    kind: Literal["jsonl"] = "jsonl"
    path: Path = Field(description="the file; made if it does not exist, in a folder that does")
    fsync: bool = Field(False, description="wait until each line is on the disk")

    def build(self) -> JsonlSink:
        """The sink; the file is opened by the first notification."""
        return JsonlSink(self.path, fsync=self.fsync)


def notification_json(notification: Notification) -> bytes:
    """A notification as one JSON object on one line; its keys are the fields of `Notification`."""
    return json.dumps(asdict(notification)).encode()


class JsonlSink:
    """Appends notifications to a file. Called from one thread.

    The keys of a line are the fields of `Notification`; times are milliseconds since 1970.
    """

    def __init__(self, path: Path, *, fsync: bool = False) -> None:
        self._path = path
        self._fsync = fsync
        self._file: int | None = None

    def send(self, notification: Notification) -> None:
        """Append one line.

        Raises:
            SinkError: the file cannot be opened or written; retryable, since a person can mend that.
        """
        line = notification_json(notification) + b"\n"
        try:
            file = self._current()
            data = line if self._ends_with_a_line(file) else b"\n" + line
            written = os.write(file, data)
            while written < len(data):  # a signal, or a disk that fills up; the next call says which
                written += os.write(file, data[written:])
            if self._fsync:
                os.fsync(file)
        except OSError as error:
            self.close()
            raise self._failed(error) from error

    def check(self) -> str:
        """Whether the file can be written, without making it.

        Raises:
            SinkError: it cannot.
        """
        try:
            if self._path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not self._path.exists():
                if not self._path.parent.is_dir():
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                if not os.access(self._path.parent, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            elif not os.access(self._path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise self._failed(error) from error
        return f"jsonl {self._path}"

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)

    def _current(self) -> int:
        """The open file, which is the one that has the name now."""
        if self._file is not None:
            try:
                named, ours = self._path.stat(), os.fstat(self._file)
                if (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino):
                    return self._file
            except FileNotFoundError:
                pass
            self.close()
        flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            self._file = os.open(self._path, os.O_RDWR | flags, 0o644)
        except PermissionError:
            self._file = os.open(self._path, os.O_WRONLY | flags, 0o644)  # may be written but not read
        return self._file

    def _ends_with_a_line(self, file: int) -> bool:
        """False where the last byte is no line end. A pipe, a device or a file we may not read counts as ended."""
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            return True
        try:
            return os.pread(file, 1, status.st_size - 1) == b"\n"
        except OSError as error:
            if error.errno == errno.EBADF:
                return True
            raise

    def _failed(self, error: OSError) -> SinkError:
        hint, reason = "", error.strerror or type(error).__name__
        if error.errno == errno.ENOENT:
            reason = f"there is no folder {self._path.parent}"
            hint = f"Make it: mkdir -p {self._path.parent}"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "Free space on that disk; the notification waits."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "Give driftd's user the right to write it, or name another file: sinks.NAME.path"
        elif error.errno == errno.EISDIR:
            hint = "Name a file: sinks.NAME.path"
        return SinkError(
            f"Notifications cannot be appended to {self._path}: {reason}.",
            retryable=error.errno != errno.EISDIR,
            hint=hint,
        )
