"""Small files of word vectors and item vectors, in every form that driftd reads."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Floats = npt.NDArray[np.float32]

WORDS = ("the", "at", "me", "my", "is", "was", "where", "please", "now", "help", "card", "refused", "till", "parcel")
ITEMS = tuple(f"item-{number}" for number in range(12))


def vectors_of(names: Sequence[str], dimension: int = 8, seed: int = 0) -> Floats:
    """Random vectors, float32 (n, dimension)."""
    return np.random.default_rng(seed).normal(size=(len(names), dimension)).astype(np.float32)


def glove(path: Path, names: Sequence[str], vectors: Floats) -> None:
    """A line for each vector: its name, and its numbers."""
    lines = [f"{name} {' '.join(map(repr, row.tolist()))}\n" for name, row in zip(names, vectors, strict=True)]
    path.write_text("".join(lines), encoding="utf-8")


def word2vec_text(path: Path, names: Sequence[str], vectors: Floats) -> None:
    """As GloVe, with a first line of two numbers; fastText's .vec looks like it."""
    glove(path, names, vectors)
    path.write_text(f"{len(names)} {vectors.shape[1]}\n{path.read_text(encoding='utf-8')}", encoding="utf-8")


def word2vec_binary(path: Path, names: Sequence[str], vectors: Floats) -> None:
    """As the word2vec program writes it, with a line feed after each vector."""
    rows = [
        name.encode() + b" " + struct.pack(f"<{len(row)}f", *row) + b"\n"
        for name, row in zip(names, vectors.tolist(), strict=True)
    ]
    path.write_bytes(f"{len(names)} {vectors.shape[1]}\n".encode() + b"".join(rows))


def gensim_binary(path: Path, names: Sequence[str], vectors: Floats) -> None:
    """As gensim writes it, without line feeds."""
    rows = [
        name.encode() + b" " + struct.pack(f"<{len(row)}f", *row)
        for name, row in zip(names, vectors.tolist(), strict=True)
    ]
    path.write_bytes(f"{len(names)} {vectors.shape[1]}\n".encode() + b"".join(rows))


def npy(path: Path, names: Sequence[str], vectors: Floats) -> None:
    """An array, and the names beside it."""
    with path.open("wb") as file:
        np.save(file, vectors)
    path.with_name(path.name + ".ids").write_text("\n".join(names) + "\n", encoding="utf-8")


def parquet(path: Path, names: Sequence[str], vectors: Floats) -> None:
    """A column of names and one of lists."""
    columns = {"id": pa.array(names), "vector": pa.array(vectors.tolist(), type=pa.list_(pa.float32()))}
    pq.write_table(pa.table(columns), path)


FORMS: dict[str, Callable[[Path, Sequence[str], Floats], None]] = {
    "glove.txt": glove,
    "word2vec.txt": word2vec_text,
    "word2vec.bin": word2vec_binary,
    "gensim.bin": gensim_binary,
    "table.npy": npy,
    "table.parquet": parquet,
}
