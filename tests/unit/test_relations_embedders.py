"""Items, pairs and relationships: what a record's vector is made of, and what is strange by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from detectors.errors import InvalidInput
from detectors.fold import FoldSettings, Rule
from detectors.outlier import OutlierScorer
from detectors.reference import Reference
from monitor.embedders import Embedder, EmbedderSettings
from monitor.embedders.graph import _positive_information
from monitor.embedders.number import VALUE_COLUMN, OneNumber
from monitor.opinions import opinion_streams
from monitor.pipeline import Space
from monitor.references import from_source
from monitor.settings import load_settings
from tests import vector_files

LEFT = {"kind": "vector", "field": "/l"}
RIGHT = {"kind": "vector", "field": "/r"}


def build(**settings: Any) -> Embedder:
    parsed: Any = TypeAdapter(EmbedderSettings).validate_python(settings)
    embedder: Embedder = parsed.build()
    return embedder


@pytest.fixture
def items(tmp_path: Path) -> Path:
    vector_files.npy(tmp_path / "items.npy", vector_files.ITEMS, vector_files.vectors_of(vector_files.ITEMS))
    return tmp_path / "items.npy"


def test_an_entity_is_the_mean_of_its_last_known_items(items: Path) -> None:
    vectors = vector_files.vectors_of(vector_files.ITEMS)
    embedder = build(kind="entity", field="/items", path=str(items), last=3)
    found = embedder.embed([[["item-9", "item-0", "gone", "item-2"], "item-5", ["item-1"]]])
    np.testing.assert_allclose(found.vectors[0], (vectors[0] + vectors[2]) / 2, rtol=1e-6)
    assert found.vectors[1].tobytes() == vectors[5].tobytes()
    assert found.problems == []


def test_an_entity_without_a_known_item_says_how_many_it_has(items: Path) -> None:
    found = build(kind="entity", field="/items", path=str(items)).embed([[["gone", "lost"], ["item-1"]]])
    assert [(problem.row, problem.reason) for problem in found.problems] == [(0, "bad_value")]
    assert "none of 2 items is known" in found.problems[0].detail


def test_items_beyond_the_most_are_not_known(items: Path) -> None:
    embedder = build(kind="entity", field="/items", path=str(items), most_items=2)
    found = embedder.embed([["item-1", "item-2"]])
    assert [problem.row for problem in found.problems] == [1]
    whole = build(kind="entity", field="/items", path=str(items))
    assert embedder.fingerprint() != whole.fingerprint()


def test_numbers_as_ids_are_found(tmp_path: Path) -> None:
    vectors = vector_files.vectors_of(["7", "8"])
    vector_files.parquet(tmp_path / "items.parquet", ["7", "8"], vectors)
    found = build(kind="entity", field="/items", path=str(tmp_path / "items.parquet")).embed([[[7], "8"]])
    assert found.vectors.tobytes() == vectors.tobytes()


def test_item_vectors_may_stand_in_the_record() -> None:
    embedder = build(kind="entity", field="/clicks", dimension=2, last=2)
    found = embedder.embed(
        [
            [
                [[9.0, 9.0], [1.0, 0.0], [0, 1]],
                [[1.0]],
                [["a", "b"]],
                [],
                [1.0, 2.0],
                [[1e300, 0.0]],
                [[1.0, 0], [-1.0, 0]],
            ]
        ]
    )
    np.testing.assert_allclose(found.vectors[0], [0.5, 0.5])
    assert [(problem.row, problem.reason) for problem in found.problems] == [
        (1, "wrong_dimension"),
        (2, "bad_vector"),
        (3, "bad_vector"),
        (4, "bad_vector"),
        (5, "not_finite"),
        (6, "zero_vector"),
    ]


def test_a_npy_table_of_float32_is_mapped(items: Path) -> None:
    from monitor.embedders.vector_table import read_table

    assert isinstance(read_table(items, most=100).vectors.base, np.memmap)


def matched(n: int, seed: int, *, dimension: int = 24) -> tuple[list[list[float]], list[list[float]]]:
    """Sides that match with a cosine of about .8, in 24 dimensions."""
    random = np.random.default_rng(seed)
    left = random.normal(size=(n, dimension))
    return left.tolist(), (left + 0.75 * random.normal(size=left.shape)).tolist()


def test_mismatched_sides_are_strange_and_uncommonly_good_matches_are_not() -> None:
    left, right = matched(6000, 1)
    embedder = build(kind="pair", left=LEFT, right=RIGHT)
    embedder.fit([left, right])
    reference = Reference.build(embedder.embed([left, right]).vectors, geometry=embedder.geometry, prototypes=300)
    scorer = OutlierScorer(reference, basis="prototypes")

    fresh = matched(2000, 2)
    usual = scorer.p_values(embedder.embed(list(fresh)).vectors)
    exchanged = scorer.p_values(embedder.embed([fresh[0], fresh[1][1:] + fresh[1][:1]]).vectors)
    perfect = scorer.p_values(embedder.embed([fresh[0], fresh[0]]).vectors)

    assert (usual <= 0.01).mean() < 0.02
    assert (exchanged <= 0.01).mean() > 0.9
    assert (perfect <= 0.1).mean() == 0.0


def test_mismatched_sides_are_strange_beside_a_few_mismatches_in_the_baseline() -> None:
    left, right = matched(6000, 7)
    right[:120] = right[1:121]  # one in fifty, each as low as those to come
    embedder = build(kind="pair", left=LEFT, right=RIGHT)
    embedder.fit([left, right])
    mixed = np.random.default_rng(8).permutation(embedder.embed([left, right]).vectors)
    scorer = OutlierScorer(Reference.build(mixed, geometry=embedder.geometry, prototypes=300), basis="prototypes")
    fresh = matched(2000, 9)
    exchanged = scorer.p_values(embedder.embed([fresh[0], fresh[1][1:] + fresh[1][:1]]).vectors)
    assert (exchanged <= 0.04).mean() > 0.95


def test_the_affinity_is_shown_in_its_own_unit() -> None:
    left, right = matched(500, 3)
    embedder = build(kind="pair", left=LEFT, right=RIGHT)
    embedder.fit([left, right])
    assert isinstance(embedder, OneNumber)
    a, b = (np.array(side) for side in (left, right))
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    shown = [embedder.number_of(float(row[VALUE_COLUMN])) for row in embedder.embed([left, right]).vectors]
    np.testing.assert_allclose(shown, np.minimum(cosine, np.median(cosine)), atol=1e-5)
    assert not isinstance(build(kind="pair", left=LEFT, right=RIGHT, score="both"), OneNumber)


def test_second_opinions_look_at_the_affinity() -> None:
    left, right = matched(2000, 6)
    embedder = build(kind="pair", left=LEFT, right=RIGHT)
    embedder.fit([left, right])
    vectors = embedder.embed([left, right]).vectors
    reference = Reference.build(vectors, geometry=embedder.geometry, block_ids=np.arange(2000) // 50)
    streams = opinion_streams(
        Space("match", embedder, reference, 1, {}), ["adwin"], Rule(reference.drift, FoldSettings(1e5, 1e3))
    )
    assert [stream.channel for stream in streams] == ["adwin", "adwin_value"]
    shown = streams[1].sums.shown(float(np.quantile(reference.prepare(vectors)[:, VALUE_COLUMN], 0.1, method="lower")))
    a, b = (np.array(side) for side in (left, right))
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert shown == pytest.approx(np.quantile(cosine, 0.1, method="lower"), abs=1e-4)


def test_both_holds_the_sides_their_product_and_the_affinity() -> None:
    embedder = build(kind="pair", left=LEFT, right=RIGHT, score="both")
    (row,) = embedder.embed([[[3.0, 4.0]], [[0.0, 2.0]]]).vectors.tolist()
    np.testing.assert_allclose(row, [0.6, 0.8, 0.0, 1.0, 0.0, 1.0, 0.8], rtol=1e-6)


def test_a_product_counts_lengths_and_a_cosine_does_not() -> None:
    left, right = matched(500, 4)
    longer = [[10.0 * number for number in row] for row in left]
    for measure, same in (("cosine", True), ("dot", False)):
        embedder = build(kind="pair", left=LEFT, right=RIGHT, measure=measure)
        embedder.fit([left, right])
        near = [embedder.embed([side, right]).vectors[:, VALUE_COLUMN] for side in (left, longer)]
        assert np.allclose(*near, atol=1e-4) is same


def test_sides_of_other_dimensions_are_refused() -> None:
    embedder = build(kind="pair", left=LEFT, right=RIGHT, score="both")
    with pytest.raises(InvalidInput, match="left makes 2 numbers, right 3"):
        embedder.embed([[[1.0, 2.0]], [[1.0, 2.0, 3.0]]])


def payments(n: int, seed: int) -> tuple[list[str], list[str]]:
    """400 payers in 8 towns, each paying in the 30 shops of its town, but for one payment in a hundred."""
    random = np.random.default_rng(seed)
    payers = random.integers(0, 400, n)
    towns = np.where(random.random(n) < 0.01, random.integers(0, 8, n), payers % 8)
    return [f"payer {p}" for p in payers], [f"shop {s}" for s in towns * 30 + random.integers(0, 30, n)]


def test_a_payment_in_another_town_is_strange_and_so_is_an_unknown_shop() -> None:
    embedder = build(kind="graph", of="/of", to="/to", dimension=8)
    embedder.fit(list(payments(20_000, 1)))
    reference = Reference.build(
        embedder.embed(list(payments(20_000, 2))).vectors, geometry=embedder.geometry, prototypes=500
    )
    scorer = OutlierScorer(reference, basis="prototypes")

    payers, shops = payments(4000, 3)
    usual = scorer.p_values(embedder.embed([payers, shops]).vectors)
    elsewhere = [f"shop {(int(shop.split()[1]) + 60) % 240}" for shop in shops]
    abroad = scorer.p_values(embedder.embed([payers, elsewhere]).vectors)
    unknown = scorer.p_values(embedder.embed([payers, ["a new shop"] * 4000]).vectors)

    assert 0.002 < (usual <= 0.01).mean() < 0.025
    assert (abroad <= 0.02).mean() > 0.95
    assert (unknown <= 0.01).all()


def test_equal_pairs_give_equal_bytes_in_both_ways_of_the_decomposition() -> None:
    for nodes in (40, 900):  # of the smaller side: every singular value, or the first few by iteration
        random = np.random.default_rng(5)
        pairs = [[f"n{x}" for x in random.integers(0, nodes, 20_000)] for _ in range(2)]
        states = []
        for _ in range(2):
            embedder = build(kind="graph", of="/of", to="/to", dimension=4)
            embedder.fit(pairs)
            states.append(embedder.state())
        assert states[0] == states[1] and len(states[0]) > nodes * 2 * 16


def test_information_is_that_of_its_definition() -> None:
    left, right = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 2])
    found = _positive_information(left, right, (3, 3)).toarray()
    shares = np.array([2.0, 3.0, 1.0]) ** 0.75
    shares /= shares.sum()
    for row in range(3):
        for column in range(3):
            pairs = int(((left == row) & (right == column)).sum())
            expected = np.log(pairs / (left == row).sum() / shares[column]) if pairs else 0.0
            assert found[row, column] == pytest.approx(max(expected, 0.0))
    assert found[0, 1] == 0.0 < found[0, 0]


def test_only_the_commonest_nodes_have_vectors() -> None:
    embedder = build(kind="graph", of="/of", to="/to", dimension=2, most_nodes=2)
    embedder.fit([["a", "a", "a", "b", "b", "c"], ["x", "x", "y", "y", "y", "x"]])
    known, unknown = embedder.embed([["b", "c"], ["x", "x"]]).vectors
    assert known[2] == 0.0 and unknown[2] == 1.0 and not unknown[:2].any()


def test_a_side_of_one_node_is_no_relationship() -> None:
    with pytest.raises(InvalidInput, match="no relationships"):
        build(kind="graph", of="/of", to="/to").fit([["a"] * 5, ["x", "y", "z", "x", "y"]])


def test_a_reference_is_made_of_records_that_a_graph_did_not_learn_from(tmp_path: Path) -> None:
    payers, shops = payments(3000, 4)
    # Exchanged in the second half: were it learned from, the shop there would be known.
    shops[1500:] = ["a new shop"] * 1500
    rows = [
        {"ts": 1_700_000_000_000 + 1000 * row, "of": of, "to": to}
        for row, (of, to) in enumerate(zip(payers, shops, strict=True))
    ]
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "driftd.yaml").write_text(
        f"""
database: sqlite:///{tmp_path}/driftd.db
references: {tmp_path}/references
models:
  m:
    source: {{kind: files, path: {tmp_path}/records.jsonl}}
    record: {{time: {{path: /ts, unit: ms}}}}
    reference: {{collect: 3000}}
    spaces: {{graph: {{embedder: {{kind: graph, of: /of, to: /to, dimension: 4}}}}}}
"""
    )
    (row,) = from_source(
        load_settings(tmp_path / "driftd.yaml"),
        "m",
        start_ms=None,
        end_ms=None,
        season="none",
        progress=lambda step, share: None,
    )
    reference = Reference.load(Path(row.path))
    assert (row.records, reference.first_ms) == (1500, 1_700_000_000_000 + 1_500_000)
    embedder = build(kind="graph", of="/of", to="/to", dimension=4)
    embedder.restore(reference.embedder.state)
    unknown = embedder.embed([payers[1500:1501], ["a new shop"]]).vectors[0]
    assert unknown[9] == 1.0 and not unknown[5:9].any()  # the column of unknown nodes of the side `to`
