"""The Fraud-Detection-Handbook's card transactions (Le Borgne, Siblini, Lebichot, Bontempi 2022), split and judged as
there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tests.quality.adbench import DATA

FILE = DATA / "fraud" / "handbook_jul11_aug14.parquet"
TRAINED = ("2018-07-25", "2018-08-01")
TESTED = ("2018-08-08", "2018-08-15")
DELAY_DAYS = 7  # until the label of a transaction is known
INVESTIGATED = 100  # cards a day


@dataclass(frozen=True, slots=True)
class Transactions:
    """vectors: float32 (n, 15). fraud: bool (n,). card, day: int64 (n,)."""

    vectors: npt.NDArray[np.float32]
    fraud: npt.NDArray[np.bool_]
    card: npt.NDArray[np.int64]
    day: npt.NDArray[np.int64]

    def __getitem__(self, rows: npt.NDArray[np.bool_]) -> Transactions:
        return Transactions(self.vectors[rows], self.fraud[rows], self.card[rows], self.day[rows])


def week_split() -> tuple[Transactions, Transactions]:
    """A week of training and, after the delay, a week of tests without cards known to be compromised by then."""
    from pyarrow import parquet

    table = parquet.read_table(FILE)
    features = [
        name for name in table.schema.names if name.startswith(("TX_AMOUNT", "TX_DURING")) or name.endswith("WINDOW")
    ]
    when = table["TX_DATETIME"].to_numpy().astype("datetime64[D]")
    everything = Transactions(
        np.column_stack([table[name].to_numpy() for name in features]).astype(np.float32),
        table["TX_FRAUD"].to_numpy() == 1,
        table["CUSTOMER_ID"].to_numpy(),
        when.astype(np.int64),
    )
    first, after, tested_from, tested_to = (int(np.datetime64(text).astype(np.int64)) for text in (*TRAINED, *TESTED))
    train = everything[(everything.day >= first) & (everything.day < after)]
    tested = np.zeros(len(when), bool)
    for day in range(tested_from, tested_to):
        labelled = everything.fraud & (everything.day >= first) & (everything.day < day - DELAY_DAYS)
        compromised = np.union1d(train.card[train.fraud], everything.card[labelled])
        tested |= (everything.day == day) & ~np.isin(everything.card, compromised)
    return train, everything[tested]


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
