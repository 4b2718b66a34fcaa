"""Settings to be tried in a replay: how a person names them, and what a replay can answer of them.

A summary was made by one embedder, one reference and one length of blocks, of records that were mapped in one way. What
is decided after that, when blocks are folded, can be decided anew; everything before takes the records themselves.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from detectors.errors import InvalidInput
from monitor.replay_processes import Variant
from monitor.settings import ModelSettings, Settings, load_settings, with_changes

NOW = "as now"  # the first variant

# What folding decides, by the path of a key; MODEL is the replayed one, NAME any name.
_ANSWERED = (
    "alarms",
    "incidents",
    "notify.repeat_interval",
    "models.NAME.weight",
    "models.NAME.spaces.NAME.weight",
    "models.NAME.drift.page_every_days",
    "models.NAME.drift.warn_every_days",
    "models.MODEL.harm",
    "models.MODEL.performance.floor",
    "models.MODEL.performance.tolerance",
    "models.MODEL.performance.scale",
    "models.MODEL.performance.window",
    "models.MODEL.performance.least",
    "models.MODEL.performance.trained",
    "models.MODEL.performance.max_age",
    "models.MODEL.drift.channels",
    "models.MODEL.drift.segment_weights",
    "models.MODEL.drift.tolerance",
    "models.MODEL.drift.second_opinions",
    "models.MODEL.outliers.budget",
    "models.MODEL.outliers.tolerance",
    "models.MODEL.fraud.alerts",
    "models.MODEL.dead_letters.alert_ratio",
    "models.MODEL.dead_letters.stop_ratio",
)
# What takes the records, and why. The first that fits is said.
_NEEDS_VECTORS = (
    ("models.MODEL.spaces", "vectors are made by an embedder"),
    ("models.MODEL.record", "it decides what is taken out of a record"),
    ("models.MODEL.reference", "it takes part when a reference is built"),
    ("models.MODEL.performance.calibration", "it takes part when a reference is built"),
    ("models.MODEL.drift.block", "summaries are of blocks of the length that was set then"),
    ("models.MODEL.drift.lateness", "it decides which records are late"),
    ("models.MODEL.drift.thin_by_key", "it decides which records enter the summaries"),
    ("models.MODEL.drift.per_class", "it decides which segments have summaries"),
    ("models.MODEL.drift.season", "a season is learned when a reference is built"),
    ("models.MODEL.outliers.alpha", "it decides which records are kept; no alarm depends on it"),
    ("models.MODEL.outliers.sample", "it decides which records are kept; no alarm depends on it"),
    ("models.MODEL.outliers.keep_vectors", "it decides what is kept of records; no alarm depends on it"),
    ("models.MODEL.fraud.labels", ""),  # where labels come from: says nothing of those that are there
    ("models.MODEL.fraud.alerts.segments", "hits are counted by segment when records are scored"),
    ("models.MODEL.fraud", "it takes part when records are scored"),
)


def variants_of(settings: Settings, model: str, sets: Sequence[str], files: Sequence[Path]) -> list[Variant]:
    """The variants that a person asks for: the settings as they are, then one for each change and each file.

    Args:
        sets: such as "alarms.page_every_days=30, drift.tolerance=.1"; ``models.MODEL.`` may be left out.
        files: whole settings files.

    Raises:
        InvalidInput: no KEY=VALUE, or a file without the model.
        InvalidSettings: a key that is not known, or a value that does not fit.
    """
    variants = [Variant(NOW, settings)]
    for text in sets:
        changes = {_path(key, model): value for key, value in _pairs(text)}
        variants.append(Variant(text, with_changes(settings, _alone(changes, settings), named=f'--try "{text}"')))
    for file in files:
        loaded = load_settings(file)
        if model not in loaded.models:
            raise InvalidInput(
                f"{file} has no model {model}; it has {', '.join(loaded.models)}.",
                hint=f"Name it {model} there, or replay another one: --model NAME",
            )
        known = {variant.name for variant in variants}
        variants.append(Variant(str(file) if file.name in known else file.name, loaded))
    names = [variant.name for variant in variants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidInput(f'"{twice}" is to be tried twice.', hint="Once is enough: it has the same outcome.")
    return variants


def needs_vectors(before: Settings, after: Settings, model: str, *, period: tuple[str, str] = ("T", "T")) -> list[str]:
    """Which changes of settings a replay cannot answer: key and reason, a line each, and last what answers it.

    Args:
        period: from when to when history would have to be scored again.

    Returns:
        Nothing where it can answer them all.
    """
    found = []
    for path in _changed(before, after):
        key = ".".join(path)
        segments_only = _fits("models.MODEL.fraud.alerts.segments", path, model) and _known_segments(
            before, after, model
        )
        for pattern, why in _NEEDS_VECTORS:
            if _fits(pattern, path, model):
                if why and not _is_answered(path, model, segments_only=segments_only):
                    found.append(f"{key}: {why}")
                break
    if not found:
        return []
    start, end = (shlex.quote(time) for time in period)
    command = f"driftd backfill --model {model} --from {start} --to {end} --into sqlite:///trial.db --settings FILE"
    return [*found, f"Score that time again with these settings, into a database of its own: {command}"]


def without_effect(before: Settings, after: Settings, model: str) -> list[str]:
    """Keys that were changed and that no alarm of the past depends on, such as addresses."""
    return [
        ".".join(path)
        for path in _changed(before, after)
        if not any(_fits(pattern, path, model) for pattern in _ANSWERED)
        and not any(why and _fits(pattern, path, model) for pattern, why in _NEEDS_VECTORS)
    ]


# --- what a person writes ---------------------------------------------------------------------------------------------


def _pairs(text: str) -> Iterator[tuple[str, object]]:
    for part in _parts(text):
        key, sign, value = part.partition("=")
        if not sign or not key.strip():
            raise InvalidInput(
                f"--try {part.strip()!r} changes nothing.", hint='Write KEY=VALUE: --try "alarms.page_every_days=30"'
            )
        try:
            yield key.strip(), yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InvalidInput(
                f"--try: the value of {key.strip()} is not YAML.",
                hint='For example: --try "drift.channels={mix: false}"',
            ) from error


def _parts(text: str) -> list[str]:
    """The text cut at commas that stand in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def _path(key: str, model: str) -> tuple[str, ...]:
    """The path of a key from the top of the settings; ``models.MODEL.`` may be left out."""
    path = tuple(key.split("."))
    if path[0] in Settings.model_fields:
        return path
    known = [*Settings.model_fields, *ModelSettings.model_fields]
    near = difflib.get_close_matches(path[0], known, n=1, cutoff=0.6) or [path[0]]
    return ("models", model, *path) if near[0] in ModelSettings.model_fields else path


def _alone(changes: Mapping[tuple[str, ...], object], settings: Settings) -> dict[tuple[str, ...], object]:
    """The same changes; where one states the budget of false alarms, no other place does."""
    found = dict(changes)
    for key in ("page_every_days", "warn_every_days"):
        places = [("alarms", key), *(("models", name, "drift", key) for name in settings.models)]
        stated = [changes[place] for place in places if place in changes]
        if stated:
            found.update({place: stated[0] for place in places[:1] if place not in changes})
            found.update({place: None for place in places[1:] if place not in changes})
    return found


# --- what changed -----------------------------------------------------------------------------------------------------


def _changed(before: Settings, after: Settings) -> list[tuple[str, ...]]:
    one, other = dict(_leaves(before.model_dump())), dict(_leaves(after.model_dump()))
    missing = object()
    found = sorted(path for path in one | other if one.get(path, missing) != other.get(path, missing))
    # A mapping that was empty is no leaf any more: what is in it now says so.
    return [path for path in found if not any(path == longer[: len(path)] != longer for longer in found)]


def _leaves(content: Mapping[str, object], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*at, str(name)))
        else:
            yield (*at, str(name)), value


def _fits(pattern: str, path: Sequence[str], model: str) -> bool:
    parts = pattern.split(".")
    return len(parts) <= len(path) and all(
        part == "NAME" or found == (model if part == "MODEL" else part)
        for part, found in zip(parts, path, strict=False)
    )


def _is_answered(path: Sequence[str], model: str, *, segments_only: bool) -> bool:
    if _fits("models.MODEL.fraud.alerts.segments", path, model):
        return segments_only
    return any(_fits(pattern, path, model) for pattern in _ANSWERED)


def _known_segments(before: Settings, after: Settings, model: str) -> bool:
    """Whether fraud alerts of segments are asked for only where hits were counted by segment."""
    one, other = before.models[model].fraud, after.models[model].fraud
    return one is not None and other is not None and set(other.alerts.segments) <= set(one.alerts.segments)
