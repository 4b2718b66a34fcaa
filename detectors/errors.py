"""Every error that driftd raises on purpose, in one tree.

    DriftdError                    message, hint
    ├── InvalidSettings            the settings file or environment; holds every problem found
    ├── InvalidInput               a file, an option or an array that the user gave
    ├── InvalidReference           a reference that is missing, damaged, or made for something else
    ├── MissingExtra               an optional package that is not installed
    ├── SourceError                retryable: bool
    │   ├── SourceUnreachable      nothing answers at the address
    │   ├── AccessRefused          wrong credentials, unknown certificate authority, no permission
    │   ├── UnknownTopic           the topic or the file does not exist
    │   ├── MissingCodec           a batch is compressed with a codec whose package is not installed
    │   └── OffsetGap              the stored offset is no longer in the source
    ├── StoreError                 retryable: bool
    │   ├── StoreUnreachable       the database does not answer
    │   ├── StoreBusy              another process holds the database's lock
    │   ├── StoreFull              no space left, or a read-only file
    │   └── OwnershipLost          another owner moved the offsets or the fold first
    ├── ClusterError               the workers of another cluster do not do their part
    ├── SinkError                  retryable: bool, retry_after_s
    └── GrafanaError               retryable: bool, retry_after_s, status

This file is the one thing that `detectors` and `connectors` share: a foreign exception is translated once, in the file
that calls the foreign library, with its cause kept.
"""

from __future__ import annotations

from collections.abc import Sequence


class DriftdError(Exception):
    """What failed, and what to do about it.

    Args:
        message: what failed, where, what was found and what was expected.
        hint: what to type or change next; may be empty.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class InvalidSettings(DriftdError):
    """The settings cannot be used. ``problems`` holds one line for each, with file, key and cure."""

    def __init__(self, message: str, *, problems: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class InvalidInput(DriftdError):
    """A file, an option or an array that the user gave cannot be used."""


class InvalidReference(DriftdError):
    """A reference is missing, damaged, of an unknown format, or made for another embedder."""


class MissingExtra(DriftdError):
    """An optional package is needed and not installed."""


class RetryableError(DriftdError):
    """An error of an outside system. ``retryable``: the same call may succeed later."""

    retryable = False


class SourceError(RetryableError):
    """A source of records failed."""


class SourceUnreachable(SourceError):
    """Nothing answers at the source's address."""

    retryable = True


class AccessRefused(SourceError):
    """The source refuses our credentials, or we refuse its certificate."""


class UnknownTopic(SourceError):
    """The topic or file to read does not exist."""


class MissingCodec(SourceError):
    """Records are compressed with a codec whose package is not installed."""


class OffsetGap(SourceError):
    """The next offset that we stored is no longer in the source: records were lost or the topic was made anew."""


class StoreError(RetryableError):
    """The database failed."""


class StoreUnreachable(StoreError):
    """The database does not answer."""

    retryable = True


class StoreBusy(StoreError):
    """Another process holds the database's lock for too long."""

    retryable = True


class StoreFull(StoreError):
    """The database cannot be written: no space left, or read-only."""

    retryable = True


class OwnershipLost(StoreError):
    """A compare-and-set matched no row: another owner was here first, and nothing of ours was written."""


class ClusterError(DriftdError):
    """A Dask cluster cannot be reached, or its workers cannot score."""


class SinkError(RetryableError):
    """A notification could not be delivered.

    Args:
        retryable: the same notification may be accepted later.
        retry_after_s: seconds that the receiver asked us to wait, if it did.
    """

    def __init__(self, message: str, *, retryable: bool, retry_after_s: float | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class GrafanaError(RetryableError):
    """Grafana refused a call, or did not answer it.

    Args:
        status: of the HTTP answer; None where there was none, or none that could be read.
        retryable: the same call may succeed later.
        retry_after_s: seconds that Grafana asked us to wait, if it did.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None,
        retryable: bool,
        retry_after_s: float | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retryable = retryable
        self.retry_after_s = retry_after_s
