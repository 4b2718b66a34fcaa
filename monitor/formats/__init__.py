"""How records are wrapped: opening one gives the documents that pointers are looked up in. A format is one file."""

from __future__ import annotations

from monitor.formats.opened import Envelope, Format, Opened

__all__ = ["Envelope", "Format", "Opened"]
