"""Changed encoders of ready vectors against changed worlds, on sentence vectors: one JSON line each.

    python tests/benchmarks/encoder_jump.py

Each set of vectors in turn is the baseline and, with the last 2,048 of it (of dated newswire, the last in time), the
stream. A changed encoder is put over the stream; a changed world replaces a share of it by records of other sets, or by
one topic of them. A stream is looked at in blocks of 512, the first of which is as ever; the question is whether the
encoder is suspected, and in which block. The constants were chosen on the sets of ``CHOSEN_ON``, but for ``SHIFT`` and
``GROWN``, which three floods over the smallest of the others led to. 2 minutes on one core.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from detectors.encoder_jump import Jump, Usual, look_at
from detectors.norms import Norms, log_norms
from detectors.reference import ANGULAR, TEXT, Geometry, Reference
from detectors.segments import constants_of
from detectors.summary import summarise

DATA = Path(os.environ.get("DRIFTD_DATA", Path(__file__).parents[3] / "shared" / "data")) / "embeddings_minilm"
CHOSEN_ON = ("clinc150_without_oos_test", "banking77")
SETS = (*CHOSEN_ON, "ag_news_test", "reuters_feb_apr_1987", "sms_spam")
BLOCK, BLOCKS = 512, 4
Floats = npt.NDArray[np.float32]


def encoders(baseline: Floats) -> dict[str, npt.NDArray[np.float32] | object]:
    """Functions of a stream of vectors, by name."""
    random = np.random.default_rng(0)
    width = baseline.shape[1]
    rotation = np.linalg.qr(random.normal(size=(width, width)))[0].astype(np.float32)
    order, signs = random.permutation(width), random.choice([-1.0, 1.0], size=width).astype(np.float32)
    mixing = random.normal(size=(width, width)).astype(np.float32)
    mean = baseline.mean(axis=0)

    def cut(kept: int) -> object:
        return lambda x: np.concatenate([x[:, :kept], np.zeros((len(x), width - kept), np.float32)], axis=1)

    def longer(x: Floats) -> Floats:
        return x * random.uniform(4.0, 8.0, size=(len(x), 1)).astype(np.float32)

    def in_int8(x: Floats) -> Floats:
        largest = np.abs(x).max(axis=1, keepdims=True)
        return np.asarray(np.rint(x * 127 / largest) * largest / 127, np.float32)

    def as_long(change: object) -> object:
        return lambda x: (y := change(x)) / np.linalg.norm(y, axis=1, keepdims=True)  # type: ignore[operator]

    return {
        "another model": as_long(lambda x: np.tanh(4 * x @ mixing)),
        "rotated": lambda x: x @ rotation,
        "dimensions in another order": lambda x: x[:, order],
        "signs flipped": lambda x: x * signs,
        "not of length one": longer,
        "half cut off, zeros instead": cut(width // 2),
        "half cut off, length one": as_long(cut(width // 2)),
        "a third cut off, length one": as_long(cut(width - width // 3)),
        "centred, length one": as_long(lambda x: x - mean),
        "negated": lambda x: -x,
        "rounded to int8": in_int8,
    }


def found_in(reference: Reference, usual: Usual, stream: Floats) -> tuple[int | None, str]:
    """Block, from 1, in which the encoder is suspected, and by what; None if it is not."""
    jump = Jump()
    for block in range(BLOCKS):
        vectors = stream[block * BLOCK : (block + 1) * BLOCK]
        summary = summarise(np.zeros(BLOCK, np.int64), reference.score(vectors))[0]
        look = look_at(usual, summary, Norms.of(log_norms(vectors)))
        jump = jump.push(look, block, some_as_before=False)
        if jump.stage == "changed":
            return block, jump.why
    return None, ""


def measure(name: str, vectors: dict[str, Floats], topics: dict[str, npt.NDArray[np.str_]], geometry: Geometry) -> None:
    rows = vectors[name]
    if name != "reuters_feb_apr_1987":
        rows = np.random.default_rng(0).permutation(rows)
    cut = len(rows) - BLOCKS * BLOCK if name != "sms_spam" else len(rows) * 2 // 3
    baseline, stream = rows[:cut], rows[cut:][: BLOCKS * BLOCK]
    stream = np.resize(stream, (BLOCKS * BLOCK, rows.shape[1]))  # of the smallest set some come twice
    reference = Reference.build(baseline, geometry=geometry, block=256)
    usual = Usual(reference, constants_of(reference.drift, ""))
    kind = "chosen on" if name in CHOSEN_ON else "others"
    where = {"baseline": name, "geometry": "text" if geometry == TEXT else "angular", "constants": kind}

    def tell(what: str, change: str, found: tuple[int | None, str]) -> None:
        line = {"benchmark": f"encoder_jump/{what}", "value": found[0], "unit": "block", "change": change, **where}
        print(json.dumps({**line, "why": found[1]}), flush=True)

    tell("world", "none", found_in(reference, usual, stream))
    for change, function in encoders(baseline).items():
        changed = np.asarray(function(stream[BLOCK:]), np.float32)  # type: ignore[operator]
        tell("encoder", change, found_in(reference, usual, np.concatenate([stream[:BLOCK], changed])))
    random = np.random.default_rng(1)
    for other, foreign in vectors.items():
        if other == name:
            continue
        one = foreign[topics[other] == topics[other][0]]
        for what, new in (("domain", foreign), ("topic", one)):
            for share in (0.3, 0.5, 0.8, 1.0):
                replaced = random.random(len(stream)) < share
                replaced[:BLOCK] = False
                drawn = new[random.integers(0, len(new), size=len(stream))]
                mixed = np.where(replaced[:, None], drawn, stream)
                tell("world", f"{what} of {other}: {share}", found_in(reference, usual, mixed))
    own = rows[topics_of(name, vectors, topics, rows) == topics[name][0]]
    prior = np.concatenate([stream[:BLOCK], own[random.integers(0, len(own), size=len(stream) - BLOCK)]])
    tell("world", "one topic of its own: 1.0", found_in(reference, usual, prior))


def topics_of(
    name: str, vectors: dict[str, Floats], topics: dict[str, npt.NDArray[np.str_]], rows: Floats
) -> npt.NDArray[np.str_]:
    """The topics of a set in the order of ``rows``."""
    same = rows is vectors[name]
    return topics[name] if same else np.random.default_rng(0).permutation(topics[name])


def main() -> int:
    if not DATA.is_dir():
        print(f"encoder_jump: skipped: no data at {DATA}; set DRIFTD_DATA", file=sys.stderr)
        return 0
    vectors, topics = {}, {}
    for name in SETS:
        with np.load(DATA / f"{name}.npz") as stored:
            inside = ~np.char.startswith(stored["split"], "oos") if name.startswith("clinc") else slice(None)
            vectors[name] = stored["X"][inside].astype(np.float32)
            topics[name] = stored["label"][inside].astype(str)
    for geometry in (ANGULAR, TEXT):
        for name in SETS:
            measure(name, vectors, topics, geometry)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
