"""The data of `driftd demo`: handwritten digits, a model that reads them, and a long stream with known events.

scikit-learn carries 1,797 real handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak, 1998). From them this file
makes

* a digit reader: a logistic regression that has seen the digits 0 to 7 of one third of the images, and nothing else. It
  is the model that driftd watches;
* the baseline: records of normal operation, each an image of the other two thirds, shifted by parts of a pixel, turned
  by a few degrees and scanned with a little noise, with the probabilities that the reader gave;
* the stream: the same images drawn with the same weights but distorted anew, so that its clean stretches are truly
  clean and not a repetition; with damaged scans, broken lines, and a period in which one scanner brings in a digit that
  the reader never learned;
* fraud in it: the digits are amounts on cheques, and somebody makes a 4 of a 1 with two strokes of a paler pen, as
  cheques are really altered. A few come one by one; later a ring brings a wave of them through one scanner. A forged
  digit looks like a digit: few are outliers;
* what is true: people type a part of the digits themselves, those of the baseline before, those of the stream later.

What happened when is returned as `DemoTruth`, so that a report can be held against it. The same seed gives the same
bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

SIDE: Final = 8  # pixels in a row and in a column
KNOWN_DIGITS: Final = 8  # the reader learns 0 to 7
UNKNOWN_DIGIT: Final = 9
SCANNERS: Final = ("north", "south")
DRIFT_SCANNER: Final = "south"

ALTERED_DIGIT: Final = 1  # to a 4, the known digit that is two strokes away
RING_SCANNER: Final = "north"

# Strong enough that no two scans of an image are alike, weak enough that a person reads every one of them.
MAX_SHIFT_PX: Final = 0.5
MAX_TURN_DEGREES: Final = 7.0
NOISE: Final = 5.0  # standard deviation, of 255

START_MS: Final = 1_772_438_400_000  # 2026-03-02T08:00:00Z, on the grid of every block length that divides a day
_CHUNK: Final = 20_000  # images made at a time: about 5 MB an array


@dataclass(frozen=True, slots=True)
class DamagedScan:
    """A record whose picture was spoilt.

    Attributes:
        id: the record's id.
        time_ms: its event time.
        damage: one of `DAMAGES`.
    """

    id: str
    time_ms: int
    damage: str


@dataclass(frozen=True, slots=True)
class UnknownDigit:
    """The period in which a digit that the reader never learned is part of the traffic.

    Attributes:
        digit: which one.
        scanner: the scanner that brings all of them in.
        start_ms: time of the first record that may be one; the share rises from here.
        full_ms: time from which `share` of all records are one.
        end_ms: time from which none is one.
        share: of all records, both scanners together.
        records: how many there are.
    """

    digit: int
    scanner: str
    start_ms: int
    full_ms: int
    end_ms: int
    share: float
    records: int


@dataclass(frozen=True, slots=True)
class Ring:
    """The period in which somebody brings in many altered digits.

    Attributes:
        scanner: through which all of them come.
        start_ms, end_ms: the period; the first and the last of them lie in it.
        forged: ids of the altered scans, in the order of time.
    """

    scanner: str
    start_ms: int
    end_ms: int
    forged: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DemoTruth:
    """What was written, and what happened in it.

    Attributes:
        baseline, stream: the two JSONL files.
        baseline_records, stream_records: lines in each; broken lines are counted.
        start_ms, end_ms: event time of the stream's first record, and the end of its last block.
        block_ms: event time that holds `block_records` records of the stream.
        unknown_digit: the drift.
        damaged: the spoilt scans in the order of time. None lies in the drift.
        forged: ids of the altered scans that came one by one before the ring, in the order of time.
        ring: the wave of altered scans.
        answers_ms: when people have answered: customers about altered cheques, between these and the ring; an analyst
            about alerts, in the drift; and once more after it.
        broken: records that cannot be used, by what is wrong with them; see `BREAKAGES`.
        typed: digits that people typed themselves for some of the stream's records, whatever the reader said: id, event
            time and digit, in the order of time.
        accuracy: share of the digits that the reader reads rightly: in the stream's first clean stretch, and while
            the unknown digit is at its height.
    """

    baseline: Path
    stream: Path
    baseline_records: int
    stream_records: int
    start_ms: int
    end_ms: int
    block_ms: int
    block_records: int
    unknown_digit: UnknownDigit
    damaged: tuple[DamagedScan, ...]
    forged: tuple[str, ...]
    ring: Ring
    answers_ms: tuple[int, int, int]
    broken: dict[str, int]
    typed: tuple[tuple[str, int, str], ...]
    accuracy: tuple[float, float]


class _Scan(msgspec.Struct, omit_defaults=True):
    """One line of the files."""

    id: str
    ts: int  # event time, milliseconds since 1970
    scanner: str
    pixels: str  # base64 of 64 bytes, row by row, 0 paper, 255 ink
    probabilities: list[float]  # of the digits 0 to 7
    prediction: str
    confidence: float
    typed: str | None = None  # what a person read


def make_demo(
    directory: Path,
    *,
    seed: int = 7,
    baseline_records: int = 100_000,
    clean_blocks: int = 180,
    drift_blocks: int = 40,
    ramp_blocks: int = 4,
    recovery_blocks: int = 100,
    block_records: int = 256,
    block_ms: int = 10_000,
    share: float = 0.10,
    damaged_share: float = 0.0005,
    forged: int = 8,
    ring: int = 100,
    typed: float = 0.02,
    start_ms: int = START_MS,
) -> DemoTruth:
    """Write ``baseline.jsonl`` and ``stream.jsonl`` into a directory.

    Each line is an object with the fields id, ts, scanner, pixels, probabilities, prediction and confidence. The
    stream is a clean stretch, a drift that rises over its first ``ramp_blocks`` and stays at ``share``, and a clean
    stretch again; the baseline lies in the time just before it. Altered scans come one by one in the first third of the
    first stretch; the ring comes after three fifths of it, for a ninth of it.

    Args:
        directory: made if it is missing; files of these names in it are replaced.
        seed: the same seed and numbers give the same bytes.
        baseline_records: lines of the baseline.
        clean_blocks, drift_blocks, recovery_blocks: length of the three stretches.
        block_records: records in a block; event time runs evenly.
        share: share of the unknown digit in all traffic at the height of the drift, at most 0.5.
        damaged_share: share of spoilt scans outside the drift. At 0.001 they are as frequent as the one record in a
            thousand that is flagged by chance, which is a change of the traffic, and driftd begins to say so.
        forged, ring: altered scans before the ring, and in it.
        typed: share of the stream's records that a person reads later on; of the baseline's, five times as many.

    Raises:
        InvalidInput: a number above is out of range.
    """
    if not 0.0 <= share <= 1.0 / len(SCANNERS):
        raise InvalidInput(
            f"share is {share}, but one of {len(SCANNERS)} scanners brings in the unknown digit.",
            hint=f"Choose a share between 0 and {1 / len(SCANNERS):g}.",
        )
    if not 0 <= ramp_blocks <= drift_blocks:
        raise InvalidInput(f"ramp_blocks is {ramp_blocks}.", hint=f"It lies in the {drift_blocks} blocks of the drift.")
    directory.mkdir(parents=True, exist_ok=True)
    pool, pool_digits, reader = _digits_and_reader(seed)
    known = np.flatnonzero(pool_digits < KNOWN_DIGITS)
    unknown = np.flatnonzero(pool_digits == UNKNOWN_DIGIT)

    baseline = directory / "baseline.jsonl"
    # Independent streams of chance, so that more baseline records do not change the stream.
    chance, baseline_chance = (np.random.default_rng([seed, purpose]) for purpose in (2, 1))
    times = start_ms - (baseline_records - np.arange(baseline_records, dtype=np.int64)) * block_ms // block_records
    baseline_typist, typist = (np.random.default_rng([seed, purpose]) for purpose in (4, 5))
    with baseline.open("wb") as file:
        for rows in _chunks(baseline_records):
            images = baseline_chance.choice(known, len(rows))
            scanners = baseline_chance.integers(0, len(SCANNERS), len(rows))
            pixels = distort(pool[images], baseline_chance)
            scans = _scans("b", rows, times[rows], scanners, pixels, reader)
            for row in np.flatnonzero(baseline_typist.random(len(rows)) < 5 * typed).tolist():
                scans[row].typed = str(pool_digits[images[row]])
            _write(file, scans, {})

    records = (clean_blocks + drift_blocks + recovery_blocks) * block_records
    onset, end = clean_blocks * block_records, (clean_blocks + drift_blocks) * block_records
    times = start_ms + np.arange(records, dtype=np.int64) * block_ms // block_records
    scanners = chance.integers(0, len(SCANNERS), records)
    rising = (np.arange(records) - onset) / max(ramp_blocks * block_records, 1)
    risen = np.where((np.arange(records) >= onset) & (np.arange(records) < end), np.clip(rising, 0.0, 1.0), 0.0)
    if ramp_blocks == 0:
        risen[onset:end] = 1.0
    affected = scanners == SCANNERS.index(DRIFT_SCANNER)
    strange = affected & (chance.random(records) < risen * share * len(SCANNERS))

    calm = np.flatnonzero((np.arange(records) < onset) | (np.arange(records) >= end))
    per_breakage = min(3, len(calm) // 100)
    spoilt_count = round(damaged_share * len(calm))
    chosen = chance.permutation(calm)[: spoilt_count + per_breakage * len(BREAKAGES)]
    spoilt = np.sort(chosen[:spoilt_count])
    damage_of = {int(row): DAMAGES[i % len(DAMAGES)] for i, row in enumerate(spoilt)}
    breakage_of = {int(row): BREAKAGES[i % len(BREAKAGES)] for i, row in enumerate(chosen[spoilt_count:])}

    # Chance of its own, so that everything else is what it would be without fraud.
    forger = np.random.default_rng([seed, 3])
    ring_start, ring_end = (block * block_records for block in _ring_blocks(clean_blocks))
    whole = np.ones(records, np.bool_)
    whole[chosen] = False
    single_rows = _some(np.flatnonzero(whole[: onset // 3]), forged, forger)
    usable = whole & (scanners == SCANNERS.index(RING_SCANNER))
    ring_rows = _some(ring_start + np.flatnonzero(usable[ring_start:ring_end]), ring, forger)
    altered = np.sort(np.concatenate([single_rows, ring_rows]))
    ones = forger.choice(np.flatnonzero(pool_digits == ALTERED_DIGIT), len(altered))
    altered_images = _alter(pool[ones], forger)

    right = np.zeros(records, np.bool_)
    told: list[tuple[str, int, str]] = []
    stream = directory / "stream.jsonl"
    with stream.open("wb") as file:
        for rows in _chunks(records):
            images = chance.choice(known, len(rows))
            images[strange[rows]] = chance.choice(unknown, int(strange[rows].sum()))
            here = (altered >= rows[0]) & (altered <= rows[-1])
            images[altered[here] - rows[0]] = ones[here]
            drawn = pool[images]
            drawn[altered[here] - rows[0]] = altered_images[here]
            pixels = distort(drawn, chance)
            for row in spoilt[(spoilt >= rows[0]) & (spoilt <= rows[-1])]:
                pixels[row - rows[0]] = _spoil(pixels[row - rows[0]], damage_of[int(row)], chance)
            scans = _scans("s", rows, times[rows], scanners[rows], pixels, reader)
            digits = [str(digit) for digit in pool_digits[images].tolist()]
            right[rows] = [scan.prediction == digit for scan, digit in zip(scans, digits, strict=True)]
            looked = np.flatnonzero((typist.random(len(rows)) < typed) & whole[rows])
            told += [(scans[row].id, scans[row].ts, digits[row]) for row in looked.tolist()]
            broken = {row - int(rows[0]): kind for row, kind in breakage_of.items() if rows[0] <= row <= rows[-1]}
            _write(file, scans, broken)

    def time_at(row: int) -> int:
        return start_ms + row * block_ms // block_records

    return DemoTruth(
        baseline=baseline,
        stream=stream,
        baseline_records=baseline_records,
        stream_records=records,
        start_ms=start_ms,
        end_ms=time_at(records),
        block_ms=block_ms,
        block_records=block_records,
        unknown_digit=UnknownDigit(
            digit=UNKNOWN_DIGIT,
            scanner=DRIFT_SCANNER,
            start_ms=time_at(onset),
            full_ms=time_at(onset + ramp_blocks * block_records),
            end_ms=time_at(end),
            share=share,
            records=int(strange.sum()),
        ),
        damaged=tuple(DamagedScan(_id("s", int(row)), int(times[row]), damage_of[int(row)]) for row in spoilt),
        forged=tuple(_id("s", row) for row in single_rows.tolist()),
        ring=Ring(
            scanner=RING_SCANNER,
            start_ms=time_at(ring_start),
            end_ms=time_at(ring_end),
            forged=tuple(_id("s", row) for row in ring_rows.tolist()),
        ),
        answers_ms=(
            time_at(clean_blocks * 2 // 5 * block_records),
            time_at((clean_blocks + drift_blocks // 2) * block_records),
            time_at((clean_blocks + drift_blocks + recovery_blocks // 2) * block_records),
        ),
        broken={kind: list(breakage_of.values()).count(kind) for kind in BREAKAGES if per_breakage},
        typed=tuple(told),
        accuracy=(
            float(right[: max(onset, 1)].mean()),
            float(right[min(onset + ramp_blocks * block_records, end - 1) : end].mean()),
        ),
    )


def distort(images: Floats, chance: np.random.Generator) -> Pixels:
    """Scan images anew: shifted by parts of a pixel, turned by a few degrees, with noise.

    Args:
        images: float64 (n, 8, 8), 0 to 255.
        chance: gives each image its own shift, turn and noise.

    Returns:
        uint8 (n, 64). Bilinear interpolation; what lies outside of an image is paper.
    """
    n = len(images)
    turn = np.deg2rad(chance.uniform(-MAX_TURN_DEGREES, MAX_TURN_DEGREES, n))[:, None]
    shift_y, shift_x = chance.uniform(-MAX_SHIFT_PX, MAX_SHIFT_PX, (2, n, 1))
    centre = (SIDE - 1) / 2
    y, x = (axis.ravel() - centre for axis in np.mgrid[0:SIDE, 0:SIDE])
    # Two pixels of paper around each image, so that no neighbour of a sampling point lies outside.
    margin, wide = 2, SIDE + 4
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin))).reshape(-1)
    from_y = np.clip(np.cos(turn) * y + np.sin(turn) * x + shift_y + centre, -margin, SIDE) + margin
    from_x = np.clip(np.cos(turn) * x - np.sin(turn) * y + shift_x + centre, -margin, SIDE) + margin
    top, left = from_y.astype(np.int64), from_x.astype(np.int64)
    down, right = from_y - top, from_x - left
    corner = np.arange(n)[:, None] * (wide * wide) + top * wide + left
    upper = padded[corner] * (1 - right) + padded[corner + 1] * right
    lower = padded[corner + wide] * (1 - right) + padded[corner + wide + 1] * right
    scanned: Floats = upper * (1 - down) + lower * down + chance.normal(0.0, NOISE, (n, SIDE * SIDE))
    return np.rint(np.clip(scanned, 0, 255)).astype(np.uint8)


def _ring_blocks(clean_blocks: int) -> tuple[int, int]:
    """First block of the ring, and the first one after it."""
    first = clean_blocks * 3 // 5
    return first, first + max(clean_blocks // 9, 1)


def _some(rows: npt.NDArray[np.int64], count: int, chance: np.random.Generator) -> npt.NDArray[np.int64]:
    """So many of the rows, ascending.

    Raises:
        InvalidInput: there are not so many.
    """
    if count > len(rows):
        raise InvalidInput(
            f"{count} altered scans do not fit into {len(rows)} records.", hint="Choose fewer, or more clean_blocks."
        )
    return np.sort(chance.choice(rows, count, replace=False))


# A 4 from a 1: from its head down to the left, and from there a bar to the right, through it. Rows and columns.
_STROKES: Final = (((1.2, 2.2), (4.6, 1.2)), ((4.6, 1.2), (4.4, 6.0)))
# Of 255; the writers' reaches 255. As pale as this, 100 altered scans in 5,120 are ranked with an average precision of
# .14 by the outlier score, .82 with 5 known cases and .96 with 20; mean of seeds 100 to 109.
_PALE_INK: Final = (160.0, 200.0)
_UNSTEADY_PX: Final = 0.3  # standard deviation of where a stroke begins and ends
_PEN_PX: Final = 0.55  # standard deviation of a stroke's profile


def _alter(images: Floats, chance: np.random.Generator) -> Floats:
    """Images of a 1, float64 (n, 8, 8), with the strokes that make a 4 of each."""
    pixel = np.indices((SIDE, SIDE)).transpose(1, 2, 0)
    ink = chance.uniform(*_PALE_INK, (len(images), 1, 1))
    altered = images
    for ends in _STROKES:
        start, end = (end + chance.normal(0.0, _UNSTEADY_PX, (len(images), 1, 1, 2)) for end in ends)
        along = ((pixel - start) * (end - start)).sum(axis=-1) / ((end - start) ** 2).sum(axis=-1)
        nearest = start + np.clip(along, 0.0, 1.0)[..., None] * (end - start)
        apart = ((pixel - nearest) ** 2).sum(axis=-1)
        altered = np.maximum(altered, ink * np.exp(-apart / (2 * _PEN_PX**2)))
    return altered


DAMAGES: Final = ("inverted", "half covered", "streak", "smeared", "static", "two at once")


def _spoil(pixels: Pixels, damage: str, chance: np.random.Generator) -> Pixels:
    """One scan, uint8 (64,), spoilt in one of the ways of `DAMAGES`."""
    image: Pixels = pixels.reshape(SIDE, SIDE).copy()
    if damage == "inverted":
        image = 255 - image
    elif damage == "half covered":
        image[:, : SIDE // 2] = 255  # a fold of the paper throws its shadow
    elif damage == "streak":
        image[int(chance.integers(0, SIDE)), :] = 255
    elif damage == "smeared":
        image = (0.3 * image + 0.7 * image.mean(axis=1, keepdims=True)).astype(np.uint8)
    elif damage == "static":
        static = chance.integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
        image = np.where(chance.random((SIDE, SIDE)) < 0.25, static, image)
    else:  # the feeder took two sheets
        image = np.maximum(image, np.rot90(image))
    return image.reshape(-1)


BREAKAGES: Final = ("line cut off", "pixels missing", "half of the pixels", "probability is null")


def _break(scan: _Scan, breakage: str) -> bytes:
    """The line of a scan, broken in one of the ways of `BREAKAGES`."""
    if breakage == "line cut off":
        return msgspec.json.encode(scan)[:60]
    record: dict[str, Any] = msgspec.to_builtins(scan)
    if breakage == "pixels missing":
        del record["pixels"]
    elif breakage == "half of the pixels":
        record["pixels"] = base64.b64encode(base64.b64decode(scan.pixels)[: SIDE * SIDE // 2]).decode()
    else:
        record["probabilities"][0] = None
    return msgspec.json.encode(record)


def _digits_and_reader(seed: int) -> tuple[Floats, npt.NDArray[np.int64], Any]:
    """The images of the traffic, 0 to 255, their digits, and the reader, which never saw any of them."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    digits = load_digits()
    images: Floats = digits.images * (255.0 / 16.0)
    labels: npt.NDArray[np.int64] = digits.target.astype(np.int64)
    chance = np.random.default_rng([seed, 0])
    order = chance.permutation(len(images))
    learn, traffic = order[: len(order) // 3], order[len(order) // 3 :]
    learn = np.repeat(learn[labels[learn] < KNOWN_DIGITS], 8)
    reader = LogisticRegression(C=1.0, max_iter=3000)
    with threadpool_limits(1):
        reader.fit(distort(images[learn], chance) / 255.0, labels[learn])
    # Another processor ends the training some 1e-9 beside this one; rounded, both read alike.
    reader.coef_, reader.intercept_ = np.round(reader.coef_, 3), np.round(reader.intercept_, 3)
    return images[traffic], labels[traffic], reader


def _chunks(n: int) -> Iterator[npt.NDArray[np.int64]]:
    for first in range(0, n, _CHUNK):
        yield np.arange(first, min(first + _CHUNK, n), dtype=np.int64)


def _id(letter: str, row: int) -> str:
    return f"{letter}{row:06d}"


def _scans(
    letter: str,
    rows: npt.NDArray[np.int64],
    times: npt.NDArray[np.int64],
    scanners: npt.NDArray[np.int64],
    pixels: Pixels,
    reader: Any,
) -> list[_Scan]:
    probabilities = np.round(reader.predict_proba(pixels / 255.0), 4)
    best = probabilities.argmax(axis=1)
    return [
        _Scan(_id(letter, row), time, SCANNERS[scanner], base64.b64encode(raw).decode(), given, str(digit), sure)
        for row, time, scanner, raw, given, digit, sure in zip(
            rows.tolist(),
            times.tolist(),
            scanners.tolist(),
            map(bytes, pixels),
            probabilities.tolist(),
            reader.classes_[best].tolist(),
            probabilities.max(axis=1).tolist(),
            strict=True,
        )
    ]


def _write(file: IO[bytes], scans: list[_Scan], broken: dict[int, str]) -> None:
    """Write a line for each scan; ``broken`` names the rows to break, and how."""
    if not broken:
        file.write(msgspec.json.Encoder().encode_lines(scans))
        return
    lines = [msgspec.json.encode(scan) for scan in scans]
    for row, breakage in broken.items():
        lines[row] = _break(scans[row], breakage)
    file.write(b"\n".join(lines) + b"\n")
