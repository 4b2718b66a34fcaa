"""`driftd reference build --vectors` and `driftd score`, without the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detectors.errors import InvalidInput, InvalidReference
from monitor.references import describe, from_vectors
from monitor.scoring import score_file


def sorted_vectors() -> np.ndarray:
    """20 classes of 400 records, one class after the other."""
    chance = np.random.default_rng(3)
    centres = chance.normal(size=(20, 12)) * 3
    return (np.repeat(centres, 400, axis=0) + chance.normal(size=(8_000, 12))).astype(np.float32)


def build(vectors: Path, output: Path, *, shuffle: bool = False) -> str:
    return from_vectors(
        vectors, output, field="vector", standardised=False, shuffle=shuffle, progress=lambda step, share: None
    )


def test_a_sorted_file_is_noticed_and_shuffle_mends_it(tmp_path: Path) -> None:
    np.save(tmp_path / "X.npy", sorted_vectors())
    assert "--shuffle" in build(tmp_path / "X.npy", tmp_path / "sorted")
    assert "--shuffle" not in build(tmp_path / "X.npy", tmp_path / "mixed", shuffle=True)


def test_a_reference_is_never_overwritten(tmp_path: Path) -> None:
    np.save(tmp_path / "X.npy", sorted_vectors())
    build(tmp_path / "X.npy", tmp_path / "refs")
    with pytest.raises(InvalidReference):
        build(tmp_path / "X.npy", tmp_path / "refs")
    assert describe(tmp_path / "refs")["dimension"] == 12


def test_scores_are_the_same_in_every_format(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = sorted_vectors()
    np.save(tmp_path / "X.npy", vectors)
    pq.write_table(pa.table({"vector": vectors[:100].tolist()}), tmp_path / "Y.parquet")
    (tmp_path / "Y.jsonl").write_text("\n".join(json.dumps({"vector": row}) for row in vectors[:100].tolist()))
    np.save(tmp_path / "Y.npy", vectors[:100])
    build(tmp_path / "X.npy", tmp_path / "refs", shuffle=True)

    def scored(source: str, target: str, *, p_values: bool = False) -> Path:
        rows = score_file(
            tmp_path / "refs", input=tmp_path / source, output=tmp_path / target, p_values=p_values, field="vector"
        )
        assert rows == 100
        return tmp_path / target

    scores = np.load(scored("Y.npy", "a.npy"))
    assert (scores.dtype, scores.shape) == (np.float32, (100,))
    np.testing.assert_array_equal(np.load(scored("Y.parquet", "b.npy")), scores)
    np.testing.assert_array_equal(np.load(scored("Y.jsonl", "c.npy")), scores)
    chances = np.load(scored("Y.npy", "d.npy", p_values=True))
    assert (chances.dtype, bool((chances > 0).all()), bool((chances <= 1).all())) == (np.float64, True, True)
    table = pq.read_table(scored("Y.npy", "e.parquet", p_values=True)).to_pydict()
    np.testing.assert_allclose(table["score"], scores)
    np.testing.assert_allclose(table["p_value"], chances)
    lines = [json.loads(line) for line in scored("Y.npy", "f.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(100))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"not numpy", "not a NumPy array file"), (None, "There is no file"), (np.zeros(5), "expected numbers of shape")],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: bytes | np.ndarray | None, said: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / "X.npy").write_bytes(content)
    elif content is not None:
        np.save(tmp_path / "X.npy", content)
    with pytest.raises(InvalidInput, match=said):
        build(tmp_path / "X.npy", tmp_path / "refs")


def test_vectors_of_another_dimension_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "X.npy", sorted_vectors())
    np.save(tmp_path / "Y.npy", np.ones((4, 7), dtype=np.float32))
    build(tmp_path / "X.npy", tmp_path / "refs")
    with pytest.raises(InvalidInput, match="12"):
        score_file(
            tmp_path / "refs", input=tmp_path / "Y.npy", output=tmp_path / "s.npy", p_values=False, field="vector"
        )
    assert not (tmp_path / "s.npy").exists()
