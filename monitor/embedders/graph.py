"""Relationships: pairs of nodes, such as who paid whom, by vectors that are learned from the pairs of the baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from detectors.errors import InvalidInput, InvalidReference
from detectors.geometry import ANGULAR
from monitor.embedders.embedder import (
    Columns,
    Embedded,
    Floats,
    decode_state,
    encode_state,
    fingerprint,
    not_fitted,
)
from monitor.embedders.parts import Problems, unit_rows, without
from monitor.pointers import FieldName

_SMOOTHING: Final = 0.75  # of the right side's shares (Levy, Goldberg and Dagan 2015)
_DENSE: Final = 512  # nodes of the smaller side up to which all singular values are computed
_LENGTH: Final = 256  # characters of a node's name


class GraphSettings(BaseModel, frozen=True, extra="forbid"):
    """A relationship between two nodes: who paid whom, who bought what; learned from the pairs of the baseline."""

    kind: Literal["graph"] = "graph"
    of: FieldName = Field(description="where the node stands that the relationship begins at")
    to: FieldName = Field(description="where the node stands that it leads to")
    dimension: int = Field(32, ge=2, le=512, description="numbers for each node")
    most_nodes: int = Field(50_000, ge=2, le=1_000_000, description="nodes of each side that have a vector")

    def build(self) -> GraphEmbedder:
        """Make the embedder."""
        return GraphEmbedder(self)


class _Side(msgspec.Struct, frozen=True):
    nodes: tuple[str, ...]
    vectors: bytes  # float32 (nodes, dimension), each of length 1 or zero


class _Learned(msgspec.Struct, frozen=True):
    dimension: int
    of: _Side
    to: _Side


class GraphEmbedder:
    """Makes vectors of pairs of nodes.

    Nodes have the vectors whose products approximate their positive pointwise mutual information in the baseline, by
    its truncated singular value decomposition, split evenly between the sides (Levy and Goldberg 2014), scaled to
    length 1. A record's vector: that of one node, that of the other, their product column by column, scaled to length
    1, and the cosine.

    A node that is not known has a vector of its own in one more column of its side. Pairs that were learned from match
    better than others that are as usual, and have no unknown node: a reference is built of records that were not
    learned from, so that both are as strange as they are seldom.
    """

    kind = "graph"
    learns = True
    apart = True
    geometry = ANGULAR

    def __init__(self, settings: GraphSettings) -> None:
        self._settings = settings
        self._learned: _Learned | None = None
        self._rows: list[dict[str, int]] = [{}, {}]
        self._vectors: list[Floats] = []
        self.fields = (settings.of, settings.to)

    def fit(self, columns: Columns) -> None:
        """Learn from the pairs of a baseline; equal pairs give equal bytes."""
        pairs, problems = self._read(columns)
        good = np.delete(np.arange(len(columns[0])), list(problems)).tolist()
        names = [[side[row] for row in good] for side in pairs]
        known = [_commonest(side, self._settings.most_nodes) for side in names]
        if not good:
            raise InvalidInput(
                f"None of {len(columns[0])} records holds a pair of nodes.", hint="Check of and to of the embedder."
            )
        if min(map(len, known)) < 2:
            raise InvalidInput(
                f"One side has the same node in all {len(good)} records of the baseline: no relationships.",
                hint="Name other fields in of and to, or collect a longer baseline.",
            )
        rows = [{name: row for row, name in enumerate(side)} for side in known]
        places = [np.array([rows[side].get(name, -1) for name in names[side]]) for side in (0, 1)]
        both = (places[0] >= 0) & (places[1] >= 0)
        sides = _node_vectors(
            places[0][both], places[1][both], (len(known[0]), len(known[1])), self._settings.dimension
        )
        made = [_Side(nodes, vectors.astype("<f4").tobytes()) for nodes, vectors in zip(known, sides, strict=True)]
        self._learn(_Learned(self._settings.dimension, made[0], made[1]))

    def _learn(self, learned: _Learned) -> None:
        self._learned = learned
        self._rows, self._vectors = [], []
        for side in (learned.of, learned.to):
            vectors = np.frombuffer(side.vectors, dtype="<f4").reshape(len(side.nodes), learned.dimension)
            # One more column and one more row: the vector of unknown nodes.
            table = np.zeros((len(side.nodes) + 1, learned.dimension + 1), dtype=np.float32)
            table[:-1, :-1] = vectors
            table[~table.any(axis=1), -1] = 1.0
            self._vectors.append(table)
            self._rows.append({name: row for row, name in enumerate(side.nodes)})

    def state(self) -> bytes:
        return b"" if self._learned is None else encode_state(self.kind, self._learned)

    def restore(self, state: bytes) -> None:
        if not state:
            self._learned = None
            return
        learned = decode_state(self.kind, state, _Learned)
        if learned.dimension != self._settings.dimension:
            raise InvalidReference(
                f"The reference was made with {learned.dimension} numbers for each node; the settings say "
                f"{self._settings.dimension}.",
                hint="Restore the settings, or build a new reference: driftd reference build",
            )
        self._learn(learned)

    def fingerprint(self) -> str:
        return fingerprint(self.kind, self._settings.model_dump(), self.state())

    def embed(self, columns: Columns) -> Embedded:
        if self._learned is None:
            raise not_fitted(self.kind)
        pairs, problems = self._read(columns)
        left, right = (
            table[[rows.get(name, len(rows)) for name in names]]
            for names, rows, table in zip(pairs, self._rows, self._vectors, strict=True)
        )
        d = self._settings.dimension
        product = left[:, :d] * right[:, :d]
        cosine = np.einsum("ij->i", product)[:, None]
        return without(np.concatenate([left, right, unit_rows(product), cosine], axis=1), problems)

    def _read(self, columns: Columns) -> tuple[list[list[str]], Problems]:
        """The names of both sides' nodes, and the rows that are a problem."""
        problems: Problems = {}
        pairs = []
        for field, column in zip(self.fields, columns, strict=True):
            names = [_name(value) for value in column]
            for row in [row for row, name in enumerate(names) if name is None]:
                if column[row] is None:
                    problems.setdefault(row, ("missing_field", f"{field} is missing."))
                else:
                    problems.setdefault(row, ("bad_value", f"{field} is neither text nor an integer."))
            pairs.append([name or "" for name in names])
        return pairs, problems


def _commonest(names: Sequence[str], most: int) -> tuple[str, ...]:
    """At most so many of the nodes, commonest first, ties by name."""
    counts = Counter(names)
    return tuple(sorted(counts, key=lambda node: (-counts[node], node))[:most])


def _name(value: Any) -> str | None:
    if type(value) is str:
        return value[:_LENGTH]
    return str(value) if type(value) is int and abs(value) < 1 << 128 else None


def _node_vectors(
    left: npt.NDArray[np.intp], right: npt.NDArray[np.intp], shape: tuple[int, int], dimension: int
) -> Sequence[Floats]:
    """Vectors of the nodes of both sides, float32 (nodes, dimension) each, rows of length 1 or zero.

    Args:
        left, right: the nodes of each pair.
        shape: nodes of each side.
    """
    information = _positive_information(left, right, shape)
    dimension_found = min(dimension, *shape)
    if min(shape) <= max(_DENSE, 2 * dimension):
        u, values, vt = np.linalg.svd(information.toarray(), full_matrices=False)
    else:
        from scipy.sparse.linalg import svds

        # The iteration begins at a given vector, so that it ends at the same one.
        start = np.random.default_rng(0).uniform(-1.0, 1.0, min(shape))
        u, values, vt = svds(information, k=dimension_found, v0=start, tol=1e-6)
    order = np.argsort(-values, kind="stable")[:dimension_found]
    u, values, v = u[:, order], values[order], vt[order].T
    sign = np.where(u[np.abs(u).argmax(axis=0), np.arange(len(order))] < 0.0, -1.0, 1.0)  # a direction has none
    made = []
    for side in (u, v):
        vectors = np.zeros((len(side), dimension), dtype=np.float32)
        vectors[:, : len(order)] = side * (sign * np.sqrt(values))
        # A node of which the directions say nothing has no vector; rounding would give it one of chance.
        vectors[np.abs(vectors).max(axis=1) < 1e-6] = 0.0
        made.append(unit_rows(vectors))
    return made


def _positive_information(left: npt.NDArray[np.intp], right: npt.NDArray[np.intp], shape: tuple[int, int]) -> Any:
    """Positive pointwise mutual information of the pairs, a sparse matrix, float64.

    The right side's shares are taken to the power .75, so that rare nodes do not stand out.
    """
    from scipy.sparse import coo_matrix, csr_matrix

    counts = coo_matrix((np.ones(len(left)), (left, right)), shape=shape).tocsr().tocoo()
    of = np.bincount(counts.row, weights=counts.data, minlength=shape[0])
    to = np.bincount(counts.col, weights=counts.data, minlength=shape[1]) ** _SMOOTHING
    to /= max(to.sum(), 1.0)
    information = np.log(counts.data / (of[counts.row] * to[counts.col]))
    return csr_matrix((np.maximum(information, 0.0), (counts.row, counts.col)), shape=shape)
