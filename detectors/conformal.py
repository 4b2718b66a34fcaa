"""Split-conformal p-values, the 49 bins that summaries count them in, and chance drawn from a record's position.

A score is compared with the scores of calibration records, which are in no index: p = (1 + #{calibration >= score}) /
(n + 1) (Bates, Candès, Lei, Romano, Sesia 2023). A small p means a strange record; if records are exchangeable,
P(p <= a) <= a.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

# Upper edges of the bins of p: fine in both tails, because 2 % of foreign records all lie below p = 1e-5 and hardly
# show in 1{p < .01}. Every edge is a multiple of 2**-17, so that edge * (n + 1) is exact.
P_EDGES: npt.NDArray[np.float64] = np.concatenate(
    [2.0 ** -np.arange(17, 5, -1), np.arange(1, 32) / 32, 1 - 2.0 ** -np.arange(6, 11), [1.0]]
)
P_EDGES.flags.writeable = False
N_BINS = len(P_EDGES)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def p_values(scores: npt.NDArray[np.float32], calibration: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """p = (1 + #{calibration >= score}) / (n_calibration + 1) for every score; ties go to the larger p.

    Args:
        scores: float32 (n,).
        calibration: float32 (n_calibration,), ascending.
    """
    greater_or_equal = len(calibration) - np.searchsorted(calibration, scores, side="left")
    return np.asarray((1.0 + greater_or_equal) / (len(calibration) + 1.0), np.float64)


def randomised_p_values(
    scores: npt.NDArray[np.float32],
    calibration: npt.NDArray[np.float32],
    *,
    uniforms: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """p = (#{calibration > score} + u (1 + #{calibration = score})) / (n_calibration + 1): uniform under the null.

    Args:
        scores: float32 (n,).
        calibration: float32 (n_calibration,), ascending.
        uniforms: float64 (n,) in (0, 1), such as `position_uniforms` gives.
    """
    first = np.searchsorted(calibration, scores, side="left")
    after = np.searchsorted(calibration, scores, side="right")
    return (len(calibration) - after + uniforms * (1.0 + (after - first))) / (len(calibration) + 1.0)


def score_thresholds(calibration: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The 48 scores at which p crosses an inner edge, ascending: all that a worker needs to count bins of p.

    Args:
        calibration: float32 (n,), ascending.
    """
    n = len(calibration)
    # p <= edge  <=>  #{calibration >= score} <= allowed  <=>  score > the (allowed + 1)-th largest calibration score.
    allowed = np.floor(P_EDGES[:-1] * (n + 1)).astype(np.int64) - 1
    thresholds = np.full(N_BINS - 1, np.inf, np.float32)  # p never gets as small as the edge
    reachable = allowed >= 0
    thresholds[reachable] = calibration[n - 1 - allowed[reachable]]
    return thresholds[::-1].copy()


def p_bins(scores: npt.NDArray[np.float32], thresholds: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Index of the first edge of `P_EDGES` that is not below p, for every score.

    Args:
        scores: float32 (n,).
        thresholds: float32 (48,), from `score_thresholds`.
    """
    return (N_BINS - 1 - np.searchsorted(thresholds, scores, side="left")).astype(np.uint8)


def hash64(numbers: npt.NDArray[np.int64] | npt.NDArray[np.uint64], seed: int = 0) -> npt.NDArray[np.uint64]:
    """64 well-mixed bits for every number: the finaliser of splitmix64 (Steele, Lea, Flood 2014). Pure and vectorised.

    Args:
        numbers: int64 or uint64, any shape.
        seed: 0 <= seed < 2**64; another seed gives independent bits.
    """
    with np.errstate(over="ignore"):
        bits = np.asarray(numbers).astype(np.uint64) + np.uint64(1)
        bits = bits * _GOLDEN + np.uint64(seed)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(bits ^ (bits >> np.uint64(31)), np.uint64)


def position_hashes(
    topic: str,
    partition: int,
    offsets: npt.NDArray[np.int64],
    *,
    rows: npt.NDArray[np.int64] | None = None,
    purpose: str = "",
) -> npt.NDArray[np.uint64]:
    """64 bits for every record, a function of its position alone, so that every replay draws the same.

    Args:
        topic, partition: where the records lie.
        offsets: int64 (n,).
        rows: int64 (n,), which row of its record each is; row 0 draws what a record of one row draws.
        purpose: a word; draws for different purposes are independent.
    """
    place = f"{purpose}\0{topic}\0{partition}".encode()
    seed = int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "little")
    bits = hash64(offsets, seed)
    if rows is None or not rows.any():
        return bits
    return np.where(rows == 0, bits, hash64(bits ^ hash64(rows), seed))  # another seed: else row and offset could swap


def position_uniforms(
    topic: str,
    partition: int,
    offsets: npt.NDArray[np.int64],
    *,
    rows: npt.NDArray[np.int64] | None = None,
    purpose: str = "",
) -> npt.NDArray[np.float64]:
    """Uniform numbers in (0, 1), one for every record, a function of its position alone. See `position_hashes`."""
    bits = position_hashes(topic, partition, offsets, rows=rows, purpose=purpose) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53
