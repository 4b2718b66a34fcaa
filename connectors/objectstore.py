"""Files in object stores: S3, Google Cloud Storage, Azure, HTTP servers, whatever fsspec has a driver for.

Objects are read by ranges of bytes and never whole. They have no end that grows: an object that was replaced while it
is read is an `OffsetGap`. Who may read is known to fsspec's driver alone, from its environment (AWS_PROFILE,
GOOGLE_APPLICATION_CREDENTIALS, ...); no key of ours holds a credential, and no message shows one.
"""

from __future__ import annotations

import difflib
import glob
import io
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar

from connectors.file_reader import first_sentence
from detectors.errors import AccessRefused, MissingExtra, OffsetGap, SourceError, SourceUnreachable, UnknownTopic

_Answer = TypeVar("_Answer")

CHUNK: Final = 4 << 20  # bytes asked for at a time: a request costs about as much as a megabyte
_TRIES: Final = 4
_BACK_OFF_S: Final = 0.2  # doubled with each try
ANSWER_S: Final = 35.0  # of a store
_S3: Final = {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 1}}
_VERSIONS: Final = ("ETag", "etag", "generation")  # times differ between a list and a single answer
_EXTRAS: Final = {
    "s3": "driftd[s3]",
    "s3a": "driftd[s3]",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
}


def is_url(path: str) -> bool:
    """Whether a path lies in an object store: "s3://bucket/key"."""
    return "://" in path


@dataclass(frozen=True, slots=True)
class Object:
    """What a store says of an object: its size in bytes, and what changes when it is replaced ("" where unknown)."""

    size: int
    version: str


class ObjectStore:
    """The store that a URL names, read-only.

    Args:
        url: of an object, a directory or a glob: only its scheme and host matter here.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    @cached_property
    def _files(self) -> Any:
        """fsspec's driver.

        Raises:
            MissingExtra, SourceError: there is none.
        """
        scheme = self._url.partition("://")[0]
        try:
            import fsspec
        except ImportError as error:
            raise MissingExtra(
                f"{self._url} is in an object store, which needs fsspec.", hint="pip install 'driftd[objects]'"
            ) from error
        options: dict[str, Any] = {"use_listings_cache": False}  # what is added later must be seen
        if scheme in ("s3", "s3a"):
            options["config_kwargs"] = _S3
        try:
            files = fsspec.filesystem(scheme, **options)
            if "config_kwargs" in options:
                files.retries = 1  # tries of tries of tries would take minutes; ours are enough
            return files
        except ImportError as error:
            package = _EXTRAS.get(scheme, f"fsspec[{scheme}]")
            raise MissingExtra(
                f"Reading {scheme}:// needs a package that is not installed.", hint=f"pip install '{package}'"
            ) from error
        except ValueError as error:
            known = ", ".join(f"{name}://" for name in ("s3", "gs", "abfs", "https"))
            raise SourceError(f"No store is known for {scheme}://.", hint=f"Known are {known} and more.") from error

    def find(self, wanted: str, belongs: Callable[[str], bool]) -> dict[str, Object]:
        """The objects that a URL names: itself, those directly in a directory that belong, or those of a glob.

        Raises:
            UnknownTopic: neither an object, nor a directory, nor a glob.
            SourceError: the store does not answer, or does not let us.
        """
        if _has_magic(wanted):
            return self._objects(self._ask(wanted, lambda files: files.glob(wanted, detail=True)).values())
        if not wanted.endswith("/") and self._ask(wanted, lambda files: files.isfile(wanted)):
            return {wanted: self.look(wanted)}
        try:
            inner = self._ask(wanted, lambda files: files.ls(wanted, detail=True))
        except UnknownTopic as error:
            raise UnknownTopic(f"There is no object {wanted}.", hint=self._nearest(wanted)) from error
        return {url: found for url, found in self._objects(inner).items() if belongs(url)}

    def look(self, url: str) -> Object:
        """What the store says of an object now. Raises SourceError."""
        return _object(url, self._ask(url, lambda files: files.info(url)))

    def read(self, url: str, start: int, end: int) -> bytes:
        """The bytes start <= position < end of an object; fewer where it is shorter by now. Raises SourceError."""
        if end <= start:
            return b""
        data: bytes = self._ask(url, lambda files: files.cat_file(url, start=start, end=end))
        if len(data) > end - start:
            raise SourceError(
                f"{url} comes from a server that does not hand over parts.", hint="Download it, and name the file."
            )
        return data

    def _objects(self, infos: Iterable[Any]) -> dict[str, Object]:
        files = {str(self._files.unstrip_protocol(info["name"])): info for info in infos if info["type"] == "file"}
        # A directory on a web server is a list of links, without sizes.
        return {url: _object(url, files[url]) if files[url].get("size") else self.look(url) for url in sorted(files)}

    def _nearest(self, url: str) -> str:
        """A guess at what a user meant, out of the names beside it."""
        parent, _, name = url.rstrip("/").rpartition("/")
        if parent.endswith("/"):
            return "There is no such bucket, or it cannot be seen with these credentials."
        try:
            infos = self._ask(parent, lambda files: files.ls(parent, detail=True))
        except SourceError:
            return f"There is nothing below {parent} either."
        names = [str(info["name"]).rstrip("/").rpartition("/")[2] for info in infos]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        return f"Did you mean {parent}/{near[0]}?" if near else f"{parent}/ holds {', '.join(sorted(names)[:3])}, ..."

    def _ask(self, url: str, question: Callable[[Any], _Answer]) -> _Answer:
        """Ask, again and again where the trouble may pass.

        Raises:
            SourceUnreachable, AccessRefused, UnknownTopic, SourceError: what is wrong.
        """
        files = self._files
        for attempt in range(_TRIES):
            try:
                return question(files)
            except Exception as error:
                translated = _translated(url, error)
                if not translated.retryable or attempt + 1 == _TRIES:
                    raise translated from error
                time.sleep(_BACK_OFF_S * 2**attempt)
        raise AssertionError("unreachable")


class ObjectBytes:
    """The bytes of an object, for `connectors.file_lines.LineReader`.

    Args:
        end: read so many bytes; all of them by default.
    """

    def __init__(self, store: ObjectStore, url: str, *, end: int | None = None) -> None:
        self.name = url
        self.ended = False
        self._store = store
        self._found = store.look(url)
        self._end = self._found.size if end is None else min(end, self._found.size)
        self._next = 0

    @property
    def version(self) -> str:
        """What the store called this state of the object."""
        return self._found.version

    def seek(self, offset: int) -> None:
        self._next = offset
        self.ended = False

    def read(self) -> bytes:
        end = min(self._next + CHUNK, self._end)
        data = self._store.read(self.name, self._next, end)
        if len(data) < end - self._next or (not data and self._store.look(self.name) != self._found):
            raise replaced(self.name)
        self._next += len(data)
        self.ended = not data
        return data

    def size(self) -> int:
        return self._end

    def before(self, offset: int) -> tuple[bytes, bytes] | None:
        around = self._store.read(self.name, offset - 1, min(offset + 1, self._found.size))
        return around[:1], around[1:]

    def count_lines(self, offset: int) -> int:
        starts = range(0, offset, CHUNK)
        return sum(self._store.read(self.name, at, min(at + CHUNK, offset)).count(b"\n") for at in starts)

    def forget(self, offset: int) -> None:
        """Everything stays in the object."""

    def close(self) -> None:
        """Nothing is held open."""


class ObjectFile(io.RawIOBase):
    """An object as a file to seek and read in: each read is a request for exactly those bytes, and nothing is kept."""

    def __init__(self, store: ObjectStore, url: str) -> None:
        super().__init__()
        self._store = store
        self._url = url
        self.found = store.look(url)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.found.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self.found.size if size is None or size < 0 else min(self._at + size, self.found.size)
        data = self._store.read(self._url, self._at, end)
        if len(data) < end - self._at:
            raise replaced(self._url)
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def replaced(url: str) -> OffsetGap:
    """An object is not the one any more that was opened."""
    return OffsetGap(
        f"{url} was replaced while it was read.",
        hint="Write each object once, under a name of its own; begin anew with those that are there.",
    )


def _object(url: str, info: Mapping[str, Any]) -> Object:
    if info.get("size") is None:
        raise SourceError(f"{url} does not say how large it is.", hint="Download it, and name the file instead.")
    return Object(int(info["size"]), next((str(info[key]).strip('"') for key in _VERSIONS if info.get(key)), ""))


def _has_magic(url: str) -> bool:
    # A question mark is part of web addresses.
    return glob.has_magic(url.replace("?", "") if url.startswith(("http://", "https://")) else url)


def _translated(url: str, error: Exception) -> SourceError:
    """Any error of a driver as one of ours. Drivers raise Python's own errors mostly, else they are known by name."""
    name, status = type(error).__name__, getattr(error, "status", None)
    if isinstance(error, SourceError):
        return error
    if isinstance(error, FileNotFoundError | NotADirectoryError) or status == 404:
        return UnknownTopic(f"There is no {url}.", hint="Check the name, and that these credentials may see it.")
    if isinstance(error, PermissionError) or "Credentials" in name or status in (401, 403):
        return AccessRefused(
            f"{url} may not be read: {first_sentence(error)}.",
            hint="Credentials come from the driver's environment: AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, ...",
        )
    passing = isinstance(error, ConnectionError | TimeoutError) or "Timeout" in name or "Connection" in name
    if passing or "Connect" in name or name == "ClientPayloadError" or (isinstance(status, int) and status >= 500):
        return SourceUnreachable(
            f"{url} does not answer: {first_sentence(error)}.", hint="driftd tries again; check the network."
        )
    return SourceError(f"{url} cannot be read: {name}: {first_sentence(error)}.", hint="Check the name of the object.")
