"""Small images as PNG, without an image library."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
MAX_SIDE: Final = 64  # a thumbnail needs no more; larger images are averaged down


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """An image as a PNG file (ISO/IEC 15948): uint8 (h, w) grey or (h, w, 3) colour.

    Raises:
        InvalidInput: another shape or type.
    """
    if pixels.dtype != np.uint8 or pixels.size == 0 or not (pixels.ndim == 2 or pixels.shape[2:] == (3,)):
        raise InvalidInput(
            f"A picture has shape {pixels.shape} and type {pixels.dtype}.",
            hint="Give uint8 of shape (height, width) or (height, width, 3).",
        )
    height, width = pixels.shape[:2]
    colour = 0 if pixels.ndim == 2 else 2
    rows = pixels.reshape(height, -1)
    unfiltered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(unfiltered, 9)) + _chunk(b"IEND", b"")


def thumbnail(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The image with at most `MAX_SIDE` pixels a side, by averaging whole squares of pixels."""
    step = -(-max(pixels.shape[:2]) // MAX_SIDE)
    if step <= 1:
        return pixels
    height, width = (max(side // step, 1) for side in pixels.shape[:2])
    # An image narrower than one square keeps its whole width.
    tall, wide = min(step, pixels.shape[0]), min(step, pixels.shape[1])
    cut = pixels[: height * tall, : width * wide].astype(np.float64)
    squares: npt.NDArray[Any] = cut.reshape(height, tall, width, wide, -1).mean(axis=(1, 3))
    result: npt.NDArray[np.uint8] = np.rint(squares).astype(np.uint8).reshape(height, width, *pixels.shape[2:])
    return result


def data_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """The image's thumbnail as a data URI for an <img>."""
    return "data:image/png;base64," + base64.b64encode(png(thumbnail(pixels))).decode()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
