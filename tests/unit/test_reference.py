"""References: what is measured, what is refused, what the disk holds, and that batches change nothing."""

from __future__ import annotations

import dataclasses
import functools
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from detectors.conformal import P_EDGES
from detectors.errors import InvalidInput, InvalidReference
from detectors.geometry import CLIP
from detectors.reference import ANGULAR, STANDARD, TEXT, EmbedderState, Geometry, Reference
from detectors.summary import fixed_point_sum, summarise

GOLDEN = Path(__file__).parent / "golden" / "reference-1"
GEOMETRIES = pytest.mark.parametrize("geometry", [ANGULAR, TEXT, STANDARD], ids=["angular", "text", "standard"])


def draw(n: int, d: int, *, seed: int = 0) -> np.ndarray:
    """Vectors in a dozen clusters, with directions of very unequal variance."""
    random = np.random.default_rng(seed)
    spread = np.arange(1, d + 1) ** -0.5
    centres = np.random.default_rng(99).standard_normal((12, d)) * 1.5
    return (centres[random.integers(0, 12, n)] * spread + random.standard_normal((n, d)) * spread).astype(np.float32)


@functools.cache
def built(geometry: Geometry = ANGULAR, d: int = 24) -> Reference:
    return Reference.build(draw(6000, d), geometry=geometry, block=64)


# ---- scoring --------------------------------------------------------------------------------------------------------


@GEOMETRIES
@pytest.mark.parametrize("d", [5, 100, 384])
def test_scores_are_the_same_bit_for_bit_in_every_batch(geometry: Geometry, d: int) -> None:
    reference = Reference.build(draw(3000, d), geometry=geometry)
    vectors = draw(2500, d, seed=1)
    whole = reference.score(vectors)
    random = np.random.default_rng(d)
    for size in (1, 2, 3, 31, 63, 64, 65, 1000):
        for start in random.integers(0, len(vectors) - size, 3).tolist():
            part = reference.score(vectors[start : start + size])
            for column in ("x", "distance", "nearest", "p_value", "bin"):
                assert np.array_equal(getattr(part, column), getattr(whole, column)[start : start + size]), column


@GEOMETRIES
def test_new_records_of_the_same_kind_get_uniform_p_values(geometry: Geometry) -> None:
    scored = built(geometry).score(draw(20_000, 24, seed=1))
    for level in (0.01, 0.1, 0.5, 0.9):
        assert (scored.p_value <= level).mean() == pytest.approx(level, abs=0.35 * level * (1 - level) + 0.003)
    assert (scored.p_value <= P_EDGES[scored.bin]).all()
    assert scored.x.dtype == scored.distance.dtype == np.float32
    assert (scored.nearest.dtype, scored.p_value.dtype, scored.bin.dtype) == (np.int32, np.float64, np.uint8)
    assert scored.nearest.max() < scored.prototypes == len(built(geometry).prototypes)


@GEOMETRIES
def test_strange_records_get_small_p_values(geometry: Geometry) -> None:
    strange = draw(500, 24, seed=2) * np.where(np.arange(24) % 2, -1, 3).astype(np.float32)
    assert np.median(built(geometry).score(strange).p_value) < 0.02


def test_the_distance_is_that_to_the_nearest_prototype_in_the_whitened_space() -> None:
    reference = built()
    vectors = draw(300, 24, seed=3)
    scored = reference.score(vectors)
    x = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    values, directions = np.linalg.eigh(reference.covariance)
    y = (x - reference.mean) @ (directions * (values + 0.1 * values.mean()) ** -0.25)
    # The rotation within the whitened space is free, so compare by way of the reference's own map.
    own = reference.search_space(scored.x)
    assert np.allclose(np.linalg.norm(y, axis=1), np.linalg.norm(own, axis=1), rtol=1e-4)
    distances = np.linalg.norm(own[:, None] - reference.prototypes[None], axis=2)
    assert np.array_equal(scored.nearest, distances.argmin(axis=1))
    assert np.allclose(scored.distance, distances.min(axis=1), atol=2e-5)
    assert np.array_equal(np.rint(scored.distance * 1e5).astype(np.float32) * np.float32(1e-5), scored.distance)


def test_length_does_not_matter_to_unit_geometry_however_extreme() -> None:
    vectors = draw(50, 24, seed=4)
    plain = built().score(vectors)
    for factor in (1e-25, 1e-4, 1e4, 1e25):
        assert np.allclose(built().score(vectors * np.float32(factor)).distance, plain.distance, atol=3e-5)


def test_a_heavy_tail_is_clipped_before_it_owns_a_sum() -> None:
    vectors = draw(400, 24, seed=5)
    vectors[:, 3] = np.random.default_rng(0).standard_cauchy(400) * 1e20
    reference = Reference.build(vectors, geometry=STANDARD)
    vectors[7, 3], vectors[8, 3] = np.finfo(np.float32).max, -np.finfo(np.float32).max
    x = reference.score(vectors).x
    assert np.abs(x).max() <= CLIP
    assert (x[7, 3], x[8, 3]) == (CLIP, -CLIP)


def test_float64_integers_and_lists_are_taken_as_they_are() -> None:
    whole = np.random.default_rng(0).integers(1, 100, (5, 24))
    expected = built().score(whole.astype(np.float32)).distance
    for same in (whole, whole.astype(np.float64), whole.tolist(), np.asfortranarray(whole.astype(np.float32))):
        assert np.array_equal(built().score(same).distance, expected)


def test_no_records_are_scored_as_none() -> None:
    scored = built().score(np.zeros((0, 24), np.float32))
    assert len(scored) == 0
    assert scored.x.shape == (0, 24)


def test_given_arrays_are_not_changed_and_may_be_read_only() -> None:
    vectors = draw(200, 24, seed=6)
    vectors.flags.writeable = False
    copy = vectors.copy()
    for geometry in (ANGULAR, STANDARD):
        Reference.build(vectors, geometry=geometry).score(vectors)
    assert np.array_equal(vectors, copy)


# ---- what cannot be used --------------------------------------------------------------------------------------------


@GEOMETRIES
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(geometry: Geometry, bad: float) -> None:
    vectors = draw(5000, 24, seed=7)
    vectors[[4321, 17], [2, 3]] = bad
    with pytest.raises(InvalidInput, match=r"rows 17, 4321 of 5000 hold NaN or infinity"):
        built(geometry).score(vectors)
    with pytest.raises(InvalidInput, match=r"rows? (17|4321).* NaN or infinity"):
        Reference.build(vectors, geometry=geometry)


def test_zero_vectors_have_no_direction_and_are_named() -> None:
    vectors = draw(100, 24)
    vectors[3] = 0
    with pytest.raises(InvalidInput, match="row 3 of 100 holds nothing but zeros"):
        built().score(vectors)
    assert len(built(STANDARD).score(vectors)) == 100


def test_wrong_shapes_and_kinds_are_refused() -> None:
    with pytest.raises(InvalidInput, match="vectors have 23 dimensions, but the reference was built from 24"):
        built().score(draw(5, 23))
    with pytest.raises(InvalidInput, match=r"got shape \(24,\)"):
        built().score(np.zeros(24))
    with pytest.raises(InvalidInput, match="expected numbers, got dtype <U1"):
        built().score([["a"] * 24])


def test_a_baseline_needs_twenty_records() -> None:
    with pytest.raises(InvalidInput, match="at least 20 records, got 19"):
        Reference.build(draw(19, 3))
    assert Reference.build(draw(20, 3)).n_records == 20


def test_a_baseline_of_equal_records_is_refused() -> None:
    with pytest.raises(InvalidInput, match="all 50 records of the fit half are equal"):
        Reference.build(np.tile(draw(1, 24), (100, 1)))


def test_options_and_columns_that_do_not_fit_are_refused() -> None:
    vectors = draw(40, 3)
    with pytest.raises(InvalidInput, match="prototypes: expected at least 1, got 0"):
        Reference.build(vectors, prototypes=0)
    with pytest.raises(InvalidInput, match="block: expected at least 1 record, got 0"):
        Reference.build(vectors, block=0)
    with pytest.raises(InvalidInput, match="exemplars: expected 0 or more, got -1"):
        Reference.build(vectors, exemplars=-1)
    with pytest.raises(InvalidInput, match="ids: expected 40 entries, one for each vector, got 2"):
        Reference.build(vectors, ids=["a", "b"])
    with pytest.raises(InvalidInput, match=r"whitening power from 0 to 1, got 1\.5"):
        Geometry(unit=True, whitening=1.5)


@GEOMETRIES
@pytest.mark.parametrize("n", [20, 50, 333])
def test_small_baselines_work_with_more_dimensions_than_records_constant_columns_and_duplicates(
    geometry: Geometry, n: int
) -> None:
    vectors = draw(n, 384, seed=8)
    vectors[:, 5] = 4.2
    vectors[:, 6] = 0
    vectors[n // 2 :: 2] = vectors[0]
    reference = Reference.build(vectors, geometry=geometry)
    scored = reference.score(vectors)
    assert np.isfinite(scored.distance).all()
    assert reference.n_fit >= 0.4 * n
    assert reference.n_calibration >= 0.4 * n
    assert len(reference.prototypes) >= 1


# ---- what is measured -----------------------------------------------------------------------------------------------


@GEOMETRIES
def test_block_sums_add_up_to_the_baseline(geometry: Geometry) -> None:
    vectors = draw(6000, 24)
    reference, blocks = built(geometry), built(geometry).blocks
    scored = reference.score(vectors)
    assert len(blocks) == -(-6000 // 64)
    assert blocks.n.tolist() == [64] * 93 + [48]
    assert np.array_equal(blocks.s.sum(axis=0), fixed_point_sum(scored.x))
    assert np.array_equal(blocks.s[5], fixed_point_sum(scored.x[320:384]))
    assert np.array_equal(blocks.c.sum(axis=0), np.bincount(scored.nearest, minlength=scored.prototypes))
    assert blocks.n_h.sum() == reference.n_calibration
    assert np.array_equal(blocks.h.sum(axis=1), blocks.n_h)
    assert set(blocks.n_h.tolist()) == {0, 48, 64} or set(blocks.n_h.tolist()) == {0, 64}
    live = summarise(np.arange(6000) // 64, scored)
    for block in np.flatnonzero(blocks.n_h).tolist():
        assert np.array_equal(live[block].h, blocks.h[block])
        assert np.array_equal(live[block].s, blocks.s[block])


def test_moments_are_those_of_the_fit_half() -> None:
    reference = built()
    x = reference.prepare(draw(6000, 24))
    fit = x[np.repeat(reference.blocks.n_h == 0, reference.blocks.n)].astype(np.float64)
    assert len(fit) == reference.n_fit
    assert np.allclose(reference.mean, fit.mean(axis=0), atol=1e-6)
    assert np.allclose(reference.covariance, np.cov(fit.T, bias=True), atol=1e-7)
    assert reference.prototype_counts.sum() == reference.n_fit


def test_the_halves_are_disjoint_balanced_and_spread_over_the_whole_baseline() -> None:
    reference = built()
    assert abs(reference.n_fit - reference.n_calibration) <= 2 * 64
    fit, held_out = (set(map(bytes, part)) for part in (reference.exemplars, reference.calibration_vectors))
    assert (len(fit), len(held_out)) == (reference.n_fit, reference.n_calibration)
    assert not fit & held_out
    held_out_blocks = reference.blocks.n_h > 0
    for tenth in np.array_split(held_out_blocks, 9):
        assert 0.2 < tenth.mean() < 0.8
    tens = held_out_blocks[:90].reshape(9, 10)
    assert (tens.sum(axis=1) == 5).all()
    assert len({tuple(ten) for ten in tens.tolist()}) > 5  # by hash, not by a pattern that a season could follow


def test_calibration_never_takes_more_than_it_needs() -> None:
    reference = Reference.build(draw(250_000, 2), prototypes=20, exemplars=50)
    assert 95_000 < reference.n_calibration <= 101_024  # and at most a stretch more
    assert len(reference.calibration_vectors) == 20_000
    assert len(reference.exemplars) == 50


def test_one_giant_block_does_not_take_all_records_to_one_half() -> None:
    vectors = draw(4000, 6)
    blocks = np.maximum(0, np.arange(4000) - 3900)
    reference = Reference.build(vectors, block_ids=blocks)
    assert 0.4 < reference.n_fit / 4000 < 0.6


def test_more_than_4096_blocks_are_merged_with_their_neighbours() -> None:
    blocks = Reference.build(draw(9000, 3), block=1, prototypes=3).blocks
    assert len(blocks) == 3000
    assert blocks.n.tolist() == [3] * 3000
    assert blocks.number.tolist() == list(range(0, 9000, 3))
    assert abs(blocks.n_h.sum() - 4500) <= 140


def test_the_order_of_arrival_does_not_matter_where_times_or_blocks_are_known() -> None:
    vectors = draw(2000, 8)
    shuffled = np.random.default_rng(0).permutation(2000)
    times, blocks = np.arange(2000) * 10 + 5, np.arange(2000) // 40
    for column in ({"times_ms": times}, {"block_ids": blocks, "times_ms": times}):
        ordered = Reference.build(vectors, block=40, **column)  # type: ignore[arg-type]
        arrived = Reference.build(
            vectors[shuffled],
            block=40,
            **{name: values[shuffled] for name, values in column.items()},  # type: ignore[arg-type]
        )
        assert (ordered.first_ms, ordered.last_ms) == (5, 19_995)
        assert np.array_equal(ordered.blocks.s, arrived.blocks.s)
        assert np.array_equal(ordered.blocks.n_h, arrived.blocks.n_h)
        assert np.array_equal(np.sort(shuffled[arrived.exemplar_rows]), ordered.exemplar_rows)
        if "block_ids" not in column:
            assert np.array_equal(ordered.calibration_scores, arrived.calibration_scores)


def test_the_same_baseline_and_seed_give_the_same_reference() -> None:
    vectors = draw(1500, 8)
    first = Reference.build(vectors, seed=3)
    assert Reference.build(vectors, seed=3).checksum == first.checksum
    assert Reference.build(vectors, seed=4).checksum != first.checksum


def test_a_clump_of_fewer_than_five_gets_no_prototype() -> None:
    reference = Reference.build(draw(4000, 12), prototypes=600)
    assert 20 < len(reference.prototypes) < 600
    assert reference.prototype_counts.min() >= 5
    assert reference.prototype_counts.sum() == reference.n_fit
    scored = reference.score(reference.exemplars)
    assert np.array_equal(np.bincount(scored.nearest, minlength=scored.prototypes), reference.prototype_counts)


def test_more_prototypes_than_records_are_cut_to_the_records() -> None:
    assert len(Reference.build(draw(100, 4), prototypes=5000).prototypes) <= 50


def test_exemplars_carry_their_ids_and_excerpts() -> None:
    vectors = draw(500, 6)
    reference = Reference.build(
        vectors, exemplars=40, ids=[f"id {row}" for row in range(500)], excerpts=[f"{row} " * 400 for row in range(500)]
    )
    rows = reference.exemplar_rows.tolist()
    assert len(rows) == len(set(rows)) == 40
    assert np.array_equal(reference.exemplars, reference.prepare(vectors[rows]))
    assert reference.exemplar_ids == tuple(f"id {row}" for row in rows)
    assert all(text.startswith(f"{row} ") for row, text in zip(rows, reference.exemplar_excerpts, strict=True))
    assert max(map(len, reference.exemplar_excerpts)) == 500
    distance, nearest = reference.exemplar_index().search(reference.search_space(reference.exemplars), 1)
    assert nearest[:, 0].tolist() == list(range(40))
    assert (distance == 0).all()


def test_a_reference_without_exemplars_says_so() -> None:
    reference = Reference.build(draw(100, 4), exemplars=0)
    with pytest.raises(InvalidReference, match="holds no exemplars"):
        reference.exemplar_index()


def test_progress_goes_from_nothing_to_all() -> None:
    told: list[tuple[str, float]] = []
    Reference.build(draw(200, 4), progress=lambda step, share: told.append((step, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert {"moments", "prototypes", "calibration"} <= {step for step, _ in told}


# ---- on disk --------------------------------------------------------------------------------------------------------


def small(**options: object) -> Reference:
    vectors = np.random.default_rng(12).standard_normal((60, 4)).astype(np.float32) + np.arange(4, dtype=np.float32)
    return Reference.build(
        vectors,
        block=12,
        exemplars=10,
        excerpts=[f"record {row}" for row in range(60)],
        ids=[f"id-{row}" for row in range(60)],
        times_ms=np.arange(60) * 1000 + 1_700_000_000_000,
        embedder=EmbedderState("text", "abc", b"\x00state"),
        segments={"country": ("at", "ch")},
        model="m",
        space="input",
        created_ms=1_700_000_100_000,
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "references" / "1"
    small().save(path)
    return path


@GEOMETRIES
def test_a_saved_reference_comes_back_whole(tmp_path: Path, geometry: Geometry) -> None:
    reference = small(geometry=geometry)
    checksum = reference.save(tmp_path / "new" / "reference")
    loaded = Reference.load(tmp_path / "new" / "reference")
    assert loaded.checksum == checksum == reference.checksum
    for field in dataclasses.fields(Reference):
        before, after = getattr(reference, field.name), getattr(loaded, field.name)
        if field.name == "blocks":
            for column in dataclasses.fields(before):
                assert np.array_equal(getattr(before, column.name), getattr(after, column.name))
        elif field.name == "drift":
            assert before.keys() == after.keys()
            assert before
            assert all(np.array_equal(before[name], after[name]) for name in before)
        elif isinstance(before, np.ndarray):
            assert np.array_equal(before, after)
            assert before.dtype == after.dtype
        else:
            assert before == after, field.name
    vectors = draw(100, 4)
    assert np.array_equal(loaded.score(vectors).distance, reference.score(vectors).distance)


def test_nothing_but_the_reference_is_left_in_the_directory(saved: Path) -> None:
    assert [path.name for path in saved.parent.iterdir()] == ["1"]


def test_a_reference_without_exemplars_comes_back(tmp_path: Path) -> None:
    Reference.build(draw(100, 4), exemplars=0).save(tmp_path / "r")
    assert Reference.load(tmp_path / "r").exemplars.shape == (0, 4)


def test_a_reference_is_never_overwritten(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(InvalidReference, match="exists, and a reference is never overwritten"):
        Reference.build(draw(100, 4)).save(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_write_that_fails_midway_leaves_nothing(tmp_path: Path) -> None:
    reference = Reference.build(draw(2000, 24))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(InvalidReference, match="cannot write the reference"):
            reference.save(tmp_path / "r")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidReference, match=r"cannot write the reference .*file/r"):
        small().save(tmp_path / "file" / "r")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidReference, match=r"none does not exist.*driftd reference build"):
        Reference.load(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidReference, match="file is a file"):
        Reference.load(tmp_path / "file")
    with pytest.raises(InvalidReference, match=r"holds no reference\.json"):
        Reference.load(tmp_path)


def test_a_changed_byte_in_any_file_is_noticed(saved: Path) -> None:
    files = sorted(saved.iterdir())
    assert len(files) > 20
    for file in files:
        good = file.read_bytes()
        for place in {len(good) - 1, len(good) // 2, 60}:
            file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            with pytest.raises(InvalidReference):
                Reference.load(saved)
        file.write_bytes(good)
    Reference.load(saved)


def test_a_truncated_or_missing_file_is_named(saved: Path) -> None:
    for name in ("prototypes.npy", "exemplars.npy", "block_s.npy", "embedder_state.npy"):
        file = saved / name
        good = file.read_bytes()
        for length in (0, 9, 100, len(good) - 1):
            file.write_bytes(good[:length])
            with pytest.raises(InvalidReference, match=f"damaged: {name}"):
                Reference.load(saved)
        file.unlink()
        with pytest.raises(InvalidReference, match=f"damaged: {name} is missing"):
            Reference.load(saved)
        file.write_bytes(good)


def test_another_format_version_is_named(saved: Path) -> None:
    manifest = json.loads((saved / "reference.json").read_text())
    manifest["format_version"] = 7
    (saved / "reference.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidReference, match="expected format version 1, got 7"):
        Reference.load(saved)
    (saved / "reference.json").write_text("{}")
    with pytest.raises(InvalidReference, match="does not describe a reference"):
        Reference.load(saved)
    (saved / "reference.json").write_text("{")
    with pytest.raises(InvalidReference, match="is not JSON"):
        Reference.load(saved)


def test_pickled_objects_are_never_loaded(saved: Path) -> None:
    np.save(saved / "mean.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InvalidReference, match=r"damaged: mean\.npy"):
        Reference.load(saved)


def test_a_reference_of_format_version_1_is_read_for_ever(tmp_path: Path) -> None:
    # Written by the release that introduced the format. If this fails, users' references cannot be read any more.
    shutil.copytree(GOLDEN, tmp_path / "r")
    reference = Reference.load(tmp_path / "r")
    assert reference.checksum == json.loads((GOLDEN / "reference.json").read_text())["checksum"]
    assert (reference.model, reference.space, reference.n_records) == ("m", "input", 60)
    assert reference.embedder == EmbedderState("text", "abc", b"\x00state")
    assert reference.exemplar_excerpts[0].startswith("record ")
    scored = reference.score(np.array([[0, 1, 2, 3], [1, 1, 1, 1], [9, -9, 0, 0]], np.float32))
    assert np.allclose(scored.distance, [0.39764, 1.13212, 3.88571], atol=2e-5)
    assert np.allclose(scored.p_value, [30 / 31, 4 / 31, 1 / 31])
