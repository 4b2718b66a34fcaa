"""Values that were compressed with gzip before they were sent, inflated within a bound."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

from monitor.parsing import BrokenValue

MAGIC: Final = b"\x1f\x8b"  # no JSON and no MessagePack begins so
_ENCODING: Final = "content-encoding"
_MAX_MEMBERS: Final = 16  # a value of many tiny ones would take long
_GZIP_WINDOW: Final = 31  # 32 kB, with the header and checksum of gzip


def inflated(value: bytes, headers: Mapping[str, bytes], *, by_magic: bool, max_bytes: int) -> bytes:
    """The value without its compression.

    Args:
        headers: ``content-encoding`` of the record counts.
        by_magic: gzip is recognised by its first bytes, too: where the codec leaves no doubt.
        max_bytes: longest value; no more than that is ever inflated.

    Raises:
        BrokenValue: ``bad_encoding``: damaged, or another compression; ``too_large``.
    """
    encoding = headers.get(_ENCODING, b"").strip().lower()
    if value[:2] == MAGIC and by_magic:
        return gunzip(value, max_bytes=max_bytes)
    if encoding in (b"", b"identity"):
        return value
    if encoding not in (b"gzip", b"x-gzip"):
        name = str(encoding[:30], "utf-8", "replace")
        raise BrokenValue("bad_encoding", f"content-encoding {name} is not read; expected gzip.")
    if by_magic:
        return value  # said to be compressed, and is not: some clients inflate, and leave the header
    return gunzip(value, max_bytes=max_bytes)


def gunzip(value: bytes, *, max_bytes: int) -> bytes:
    """The inflated value, of one gzip member or several.

    Raises:
        BrokenValue: ``bad_encoding``, ``too_large``.
    """
    parts: list[bytes] = []
    room = max_bytes + 1
    while value:
        stream = zlib.decompressobj(wbits=_GZIP_WINDOW)
        try:
            part = stream.decompress(value, room)
        except zlib.error as error:
            raise BrokenValue("bad_encoding", "The value is not gzip, or damaged.") from error
        parts.append(part)
        room -= len(part)
        if room <= 0:
            raise BrokenValue("too_large", f"More than {max_bytes} bytes when inflated; max_bytes is {max_bytes}.")
        if not stream.eof or len(parts) == _MAX_MEMBERS:
            raise BrokenValue("bad_encoding", "The gzip value ends too early, or has too many members.")
        value = stream.unused_data
    if not parts:
        raise BrokenValue("bad_encoding", "The value is empty, which no gzip value is.")
    return b"".join(parts)
