"""Whole numbers in few bytes, by NumPy alone: no library's compressor decides, so equal numbers have equal bytes.

Two codings. **Signed numbers of one size** (sums of vectors): each in as many bits as the largest needs; whole bytes
lie side by side, what is left over in planes of four, two and one bit. **Counts** (histograms, mostly zero or small):
first which are not zero, as gaps or as a bit for each, whichever is shorter; then each of them, less one, in one, two,
four or eight bits; and last what is above these bits, where there is anything above.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_COUNTS = struct.Struct("<BIIII")  # bits of a value, counts that are not zero, bytes of gaps, exceptions, bytes of them
_LONG = 255  # as a gap: so far, and on
_WIDTHS = (1, 2, 4, 8)  # bytes
_UNSIGNED: dict[int, np.dtype[Any]] = {width: np.dtype(f"<u{width}") for width in _WIDTHS}


def _spread(bits: int, *, shift: int = 0, more: int = 0) -> npt.NDArray[Any]:
    """For every byte, the ``8 / bits`` numbers in it, each a byte of one wide number: one look-up, not four steps."""
    numbers = np.arange(256, dtype=np.int64)[:, None] >> np.arange(0, 8, bits) & (1 << bits) - 1
    return ((numbers << shift) + more).astype(np.uint8).reshape(256, -1).view(_UNSIGNED[8 // bits]).ravel()


_SPREAD = {(bits, shift): _spread(bits, shift=shift) for bits in (1, 2, 4) for shift in range(8)}
_COUNTED = {bits: _spread(bits, more=1) for bits in (1, 2, 4)}


def narrowest(largest: int) -> np.dtype[Any]:
    """The narrowest type without a sign that holds numbers up to ``largest``, little-endian."""
    return next(_UNSIGNED[width] for width in _WIDTHS if largest < 1 << 8 * width)


def signed_to_bytes(numbers: Int64s) -> bytes:
    """The numbers, int64 (d,), in as many bits as the largest magnitude needs; the first byte says how many."""
    if len(numbers) == 0:
        return b"\0"
    reach = max(int(numbers.max()), ~int(numbers.min()))
    bits = reach.bit_length() + 1
    whole, rest = divmod(bits, 8)
    octets = np.ascontiguousarray(numbers, "<i8").view(np.uint8).reshape(-1, 8)
    parts = [bytes([bits]), octets[:, :whole].tobytes()]
    if rest:
        top = octets[:, whole]
        shift = 0
        for width in (4, 2, 1):
            if rest & width:
                parts.append(_packed(top >> np.uint8(shift) & np.uint8((1 << width) - 1), width))
                shift += width
    return b"".join(parts)


def signed_from_bytes(data: bytes, position: int, length: int) -> tuple[Int64s, int]:
    """What `signed_to_bytes` wrote of ``length`` numbers, int64 (d,), and where it ends.

    Raises:
        InvalidInput: it ends too early, or has an impossible size.
    """
    bits = _byte_at(data, position)
    position += 1
    if bits > 64:
        raise InvalidInput(f"a number of {bits} bits.")
    if length == 0:
        return np.zeros(0, np.int64), position
    whole, rest = divmod(bits, 8)
    octets = np.zeros((length, 8), np.uint8)
    if whole:
        octets[:, :whole] = _octets(data, position, length * whole).reshape(length, whole)
        position += length * whole
    if rest:
        shift = 0
        for width in (4, 2, 1):
            if rest & width:
                size = -(-length * width // 8)
                octets[:, whole] |= _SPREAD[width, shift].take(_octets(data, position, size)).view(np.uint8)[:length]
                position += size
                shift += width
    numbers = octets.reshape(-1).view("<i8")
    if bits < 64:
        numbers <<= 64 - bits
        numbers >>= 64 - bits
    return np.asarray(numbers, np.int64), position


def counts_to_bytes(counts: Int64s) -> bytes:
    """Counts, int64 (m,), none of them negative."""
    marks = counts != 0
    places = marks.nonzero()[0]
    values = counts[places]
    values -= 1
    largest = int(values.max()) if len(values) else 0
    values = values.astype(narrowest(largest))
    gaps = b"" if len(counts) <= 8 * len(places) else _gaps(places)
    if len(counts) <= 8 * len(gaps):
        gaps = b""
    parts = [gaps or np.packbits(marks, bitorder="little").tobytes() if len(places) else b""]
    bits = _cheapest_bits(values, largest)
    small = values.astype(np.uint8)
    parts.append(small.tobytes() if bits == 8 else _packed(small & np.uint8((1 << bits) - 1), bits))
    where, where_gaps = places[:0], b""
    if largest >> bits:
        high = values >> bits
        where = high.nonzero()[0]
        high = high[where]
        kind = narrowest(largest >> bits)
        where_gaps = _gaps(where)
        parts += [where_gaps, bytes([kind.itemsize]), high.astype(kind).tobytes()]
    return _COUNTS.pack(bits, len(places), len(gaps), len(where), len(where_gaps)) + b"".join(parts)


def counts_from_bytes(data: bytes, position: int, length: int) -> tuple[Int64s, int]:
    """What `counts_to_bytes` wrote of ``length`` counts, int64 (m,), and where it ends.

    Raises:
        InvalidInput: it ends too early, or has a count outside the bins.
    """
    if len(data) < position + _COUNTS.size:
        raise InvalidInput("it ends too early.")
    bits, found, gaps, exceptions, where_gaps = _COUNTS.unpack_from(data, position)
    if bits not in (1, 2, 4, 8):
        raise InvalidInput(f"a count of {bits} bits.")
    position += _COUNTS.size
    counts = np.zeros(length, np.int64)
    if found == 0:
        return counts, position
    if gaps:
        places = _from_gaps(data, position, gaps)
        position += gaps
    else:
        size = -(-length // 8)
        places = _SPREAD[1, 0].take(_octets(data, position, size)).view(np.bool_)[:length].nonzero()[0]
        position += size
    size = -(-found * bits // 8)
    raw = _octets(data, position, size)
    values: npt.NDArray[Any] = raw + np.int64(1) if bits == 8 else _COUNTED[bits].take(raw).view(np.uint8)[:found]
    position += size
    if exceptions:
        where = _from_gaps(data, position, where_gaps)
        position += where_gaps
        width = _byte_at(data, position)
        if width not in _WIDTHS:
            raise InvalidInput("a count has an unknown width.")
        high = _octets(data, position + 1, exceptions * width).view(_UNSIGNED[width])
        position += 1 + exceptions * width
        if len(where) != exceptions or where[-1] >= found:
            raise InvalidInput("a large count has no place.")
        values = values.astype(np.int64)
        values[where] += high.astype(np.int64) << bits
    if len(places) != found or places[-1] >= length:
        raise InvalidInput(f"a histogram of {length} bins has a count outside them.")
    counts[places] = values
    return counts, position


def _cheapest_bits(values: npt.NDArray[Any], largest: int) -> int:
    """Bits of each value; about the fewest bytes, where what does not fit takes two."""
    best, cost = 8, len(values)
    if largest > 255:
        cost += 2 * int(np.count_nonzero(values > 255))
    for bits in (4, 2, 1):
        needed = len(values) * bits // 8
        if largest >> bits:
            needed += 2 * int(np.count_nonzero(values >> bits))
        if needed < cost:
            best, cost = bits, needed
    return best


def _packed(small: Bytes, bits: int) -> bytes:
    """Numbers below 2**bits, ``8 / bits`` of them in a byte, the first one lowest."""
    if bits == 1:
        return np.packbits(small, bitorder="little").tobytes()
    each = 8 // bits
    if len(small) % each:
        small = np.concatenate([small, np.zeros(-len(small) % each, np.uint8)])
    small = np.ascontiguousarray(small)
    # A multiplication moves all of them to the top at once; no carry reaches it, because no two meet in a bit.
    if bits == 4:
        return (small.view("<u2") * np.uint16(0x0110) >> np.uint16(8)).astype(np.uint8).tobytes()
    return (small.view("<u4") * np.uint32(0x01041040) >> np.uint32(24)).astype(np.uint8).tobytes()


def _gaps(places: Int64s) -> bytes:
    """The gaps between ascending places, a byte each, the first one from zero; a long one takes more bytes."""
    gaps = places.copy()
    gaps[1:] -= places[:-1]
    if len(gaps) and int(gaps.max()) >= _LONG:
        long = gaps // _LONG
        ends = np.cumsum(long + 1) - 1
        octets = np.full(int(ends[-1]) + 1, _LONG, np.uint8)
        octets[ends] = gaps - long * _LONG
        return octets.tobytes()
    return gaps.astype(np.uint8).tobytes()


def _from_gaps(data: bytes, position: int, size: int) -> Int64s:
    octets = _octets(data, position, size)
    places = octets.cumsum(dtype=np.int64)
    return places if octets.max(initial=0) < _LONG else places[octets != _LONG]


def _octets(data: bytes, position: int, size: int) -> Bytes:
    if len(data) < position + size:
        raise InvalidInput("it ends too early.")
    return np.frombuffer(data, np.uint8, size, position)


def _byte_at(data: bytes, position: int) -> int:
    if len(data) <= position:
        raise InvalidInput("it ends too early.")
    return data[position]
