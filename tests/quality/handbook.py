"""The Fraud-Detection-Handbook's card transactions (Le Borgne, Siblini, Lebichot, Bontempi 2022), split and judged as
there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.conformal import hash64
from detectors.entities import EntityModel, EntityStates
from detectors.reference import Reference
from tests.quality.adbench import DATA

FILE = DATA / "fraud" / "handbook_jul11_aug14.parquet"
FIRST_WEEK = ("2018-07-11", "2018-07-18")
TRAINED = ("2018-07-25", "2018-08-01")
TESTED = ("2018-08-08", "2018-08-15")
DELAY_DAYS = 7  # until the label of a transaction is known
INVESTIGATED = 100  # cards a day

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Transactions:
    """In the order of time. vectors: float32 (n, 15). fraud: bool (n,). card, terminal, day: int64 (n,)."""

    vectors: Floats
    fraud: Bools
    card: npt.NDArray[np.int64]
    terminal: npt.NDArray[np.int64]
    day: npt.NDArray[np.int64]

    def __getitem__(self, rows: Bools) -> Transactions:
        return Transactions(self.vectors[rows], self.fraud[rows], self.card[rows], self.terminal[rows], self.day[rows])

    def between(self, days: tuple[str, str]) -> Bools:
        """Those from the first day on and before the second, bool (n,)."""
        first, after = (int(np.datetime64(day).astype(np.int64)) for day in days)
        return (self.day >= first) & (self.day < after)


def everything() -> Transactions:
    """11 July to 14 August 2018."""
    from pyarrow import parquet

    table = parquet.read_table(FILE)
    features = [
        name for name in table.schema.names if name.startswith(("TX_AMOUNT", "TX_DURING")) or name.endswith("WINDOW")
    ]
    return Transactions(
        np.column_stack([table[name].to_numpy() for name in features]).astype(np.float32),
        table["TX_FRAUD"].to_numpy() == 1,
        table["CUSTOMER_ID"].to_numpy(),
        table["TERMINAL_ID"].to_numpy(),
        table["TX_DATETIME"].to_numpy().astype("datetime64[D]").astype(np.int64),
    )


def split(
    stream: Transactions, *, trained: tuple[str, str] = TRAINED, tested: tuple[str, str] = TESTED
) -> tuple[Bools, Bools]:
    """A week of training and, after the delay, a week of tests without cards known to be compromised by then."""
    train, test = stream.between(trained), stream.between(tested)
    known = np.unique(stream.card[train & stream.fraud])
    first = int(stream.day[train].min())
    for day in np.unique(stream.day[test]).tolist():
        labelled = stream.fraud & (stream.day >= first) & (stream.day < day - DELAY_DAYS)
        compromised = np.union1d(known, stream.card[labelled])
        test &= (stream.day != day) | ~np.isin(stream.card, compromised)
    return train, test


def week_split() -> tuple[Transactions, Transactions]:
    """The handbook's own: trained on 25 to 31 July, tested on 8 to 14 August."""
    stream = everything()
    train, test = split(stream)
    return stream[train], stream[test]


def entity_surprise(
    stream: Transactions, of: npt.NDArray[np.int64], reference: Reference, baseline: Bools, *, batch: int = 4096
) -> Floats:
    """What the entities say of a stream, float32 (n, 2), fitted on the baseline and run from the first record on.

    Args:
        of: int64 (n,), whose record each is: ``stream.card`` or ``stream.terminal``.
        reference: prepares the vectors.
        baseline: bool (n,), what the entity model is fitted on.
    """
    hashes, offsets = hash64(of), np.arange(len(of))
    states = EntityStates(EntityModel.fit(stream.vectors[baseline], hashes[baseline], reference=reference))
    pieces = [slice(start, start + batch) for start in range(0, len(of), batch)]
    return np.concatenate([states.push(hashes[piece], stream.vectors[piece], offsets[piece]) for piece in pieces])


def card_precision(test: Transactions, scores: npt.NDArray[np.floating]) -> float:
    """Mean share of compromised cards among the 100 a day with the highest scores; detected cards leave the game."""
    detected: npt.NDArray[np.int64] = np.empty(0, np.int64)
    precisions = []
    for day in np.unique(test.day):
        today = (test.day == day) & ~np.isin(test.card, detected)
        order = np.argsort(-scores[today], kind="stable")
        _, first = np.unique(test.card[today][order], return_index=True)
        investigated = test.card[today][order][np.sort(first)[:INVESTIGATED]]
        found = np.intersect1d(investigated, test.card[today][test.fraud[today]])
        precisions.append(len(found) / INVESTIGATED)
        detected = np.union1d(detected, found)
    return float(np.mean(precisions))


def average_precision(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float:
    """Mean precision at the ranks of the positives; ties are ordered the worst way."""
    order = np.lexsort((positive, -scores))
    hits = positive[order]
    return float((np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)).mean())
