"""The settings that `driftd bootstrap` writes: YAML with a comment beside each key that says what speaks for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from connectors.files import SUFFIXES
from connectors.objectstore import is_url
from monitor.sniff import Path, Sniffed

_WIDTH: Final = 48  # characters before a comment
_LONGEST: Final = 120
_FLAT: Final = 4  # keys of so many levels stand in braces
_BLOCKS: Final = (10, 30, 60, 300, 600, 3600)  # seconds of event time
_BLOCK_RECORDS: Final = 20  # of a block, usually


def source_of(place: str, brokers: str) -> dict[str, Any]:
    """The source that --from names: files where it looks like a path, a topic otherwise."""
    looks_like_files = "/" in place or is_url(place) or any(c in place for c in "*?[")
    if looks_like_files or any(place.endswith(suffix) for suffix in SUFFIXES):
        return {"kind": "files", "path": place}
    return {"kind": "kafka", "brokers": brokers, "topic": place}


def model_name_of(place: str) -> str:
    """A name for the model: lower case letters, digits and _."""
    last = re.split(r"[/\\]", place.rstrip("/"))[-1]
    stem = re.sub(r"\.(jsonl|ndjson|parquet|pq|npy)$", "", last)
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")
    return name if name[:1].isalpha() else f"model_{name}".rstrip("_")


def block_of(records: int, seconds: float) -> float:
    """The shortest usual length of a block, in seconds, that holds some twenty records on average."""
    return float(
        next((block for block in _BLOCKS if records * block >= _BLOCK_RECORDS * max(seconds, 1.0)), _BLOCKS[-1])
    )


def lateness_of(disorder_ms: int) -> float:
    """How long to wait for late records, in seconds: twice what 999 of 1,000 need, at least the default."""
    default = 30.0
    needed = 2 * disorder_ms / 1000
    return default if needed <= default else float(-(-int(needed) // 60) * 60)


def content_of(
    name: str,
    source: Mapping[str, Any],
    found: Sniffed,
    *,
    block_s: float = 10.0,
    lateness_s: float = 30.0,
) -> dict[str, Any]:
    """The settings as data."""
    model: dict[str, Any] = {"source": dict(source), "record": found.record, "spaces": found.spaces}
    drift = {"block": _duration(block_s)} if block_s != 10.0 else {}
    if lateness_s != 30.0:
        drift["lateness"] = _duration(lateness_s)
    if drift:
        model["drift"] = drift
    return {
        "database": "sqlite:///driftd.db",
        "references": "./references",
        "models": {name: model},
        "alarms": {"page_every_days": 90, "warn_every_days": 1},
        "sinks": {"console": {"kind": "console"}},
    }


def text_of_settings(
    content: Mapping[str, Any], name: str, found: Sniffed, *, head: Sequence[str], comments: Mapping[Path, str]
) -> str:
    """The settings as a file.

    Args:
        head: lines of comment at the top.
        comments: beside keys, by their path from the top; those of ``found`` are by their path from the model on.
    """
    beside = {("models", name, *path): text for path, text in found.comments.items()} | dict(comments)
    unused = [(("models", name, *path), line) for path, line in found.unused]
    lines = [f"# {line}".rstrip() for line in head]
    lines += ["# Every key can also come from the environment: DRIFTD_HTTP__BIND=127.0.0.1:9000", ""]
    _write(lines, content, (), beside, unused)
    if found.unsure:
        lines += ["", "# Not sure:", *(f"#   {sentence}" for sentence in found.unsure)]
    return "\n".join(lines) + "\n"


def _write(
    lines: list[str],
    content: Mapping[str, Any],
    at: Path,
    comments: Mapping[Path, str],
    unused: Sequence[tuple[Path, str]],
) -> None:
    indent = "  " * len(at)
    for key, value in content.items():
        path = (*at, str(key))
        inner = isinstance(value, Mapping) and bool(value) and (len(path) < _FLAT or path[-1] == "segments")
        shown = f"{indent}{_flow(key)}:" if inner else f"{indent}{_flow(key)}: {_flow(value)}"
        comment = comments.get(path, "")
        beside = f"{shown:<{_WIDTH}}  # {comment}"
        if not comment:
            lines.append(shown)
        elif len(beside) <= _LONGEST:
            lines.append(beside)
        else:
            lines += [f"{indent}# {comment}", shown]
        if inner:
            _write(lines, value, path, comments, unused)
    lines += [f"{indent}# {line}" for path, line in unused if path == at]


def _flow(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return text.removesuffix("\n...\n").strip()


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"
