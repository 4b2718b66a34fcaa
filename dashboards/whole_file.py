"""Files for people: each appears whole or not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path

from detectors.errors import InvalidInput


def write_whole(path: Path, content: bytes, *, what: str) -> None:
    """Write a file, or leave what was there.

    Args:
        what: what it holds, for the error: "The map".

    Raises:
        InvalidInput: it cannot be written there.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()  # on a full disk it would take what room there is
        raise InvalidInput(
            f"{what} cannot be written to {path}: {error.strerror or error}.",
            hint="Name a file in a directory that exists, may be written and has room.",
        ) from error


def is_png(path: Path, *, example: str) -> bool:
    """Whether a picture of this name is a PNG file; else it is an HTML page.

    Args:
        example: a name without its ending, for the error: "map".

    Raises:
        InvalidInput: the name ends neither with .png nor with .html.
    """
    ending = path.suffix.lower()
    if ending not in (".png", ".html"):
        raise InvalidInput(
            f"A picture is a PNG or an HTML file, not {path.name}.", hint=f"--picture {example}.png or {example}.html"
        )
    return ending == ".png"
