"""What holds for every kind of embedder. A new kind joins by being in the union, with its examples below."""

from __future__ import annotations

import base64
import copy
import functools
import math
import tempfile
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from pydantic import BaseModel, TypeAdapter

from detectors.errors import DriftdError, InvalidInput, InvalidReference, MissingExtra
from detectors.reference import Geometry
from monitor.decode import DEAD_LETTER_REASONS
from monitor.embedders import Embedder, EmbedderSettings
from tests import vector_files
from tests.servers.embeddings import EmbeddingServer

ROWS = 150
Example = tuple[dict[str, Any], Callable[[np.random.Generator], list[Any]]]


def vector_row(random: np.random.Generator) -> list[Any]:
    return [random.normal(size=6).tolist()]


def packed_row(random: np.random.Generator) -> list[Any]:
    return [base64.b64encode(random.normal(size=6).astype("<f4").tobytes()).decode()]


def table_row(random: np.random.Generator) -> list[Any]:
    number = float(random.gamma(2.0, 100.0))
    return [
        number if random.random() < 0.9 else None,
        int(random.integers(0, 9)),
        str(random.choice(["NO", "SE", "FI"])),
    ]


def image_row(random: np.random.Generator) -> list[Any]:
    return [random.integers(0, 256, size=(4, 5)).tolist()]


def picture_row(random: np.random.Generator) -> list[Any]:
    """A small file as programs for images have written them for decades: PPM."""
    pixels = random.integers(0, 256, size=(18, 22, 3), dtype=np.uint8)
    return [base64.b64encode(b"P6 22 18 255\n" + pixels.tobytes()).decode()]


def text_row(random: np.random.Generator) -> list[Any]:
    words = ["card", "refused", "at", "the", "till", "please", "help", "me", "now"]
    return [" ".join(random.choice(words, size=int(random.integers(1, 3))))]


def number_row(random: np.random.Generator) -> list[Any]:
    return [float(random.beta(8.0, 2.0))]


def number_or_none_row(random: np.random.Generator) -> list[Any]:
    return [[None, int(random.poisson(2.0))][int(random.random() < 0.9)]]


def pair_of_numbers_row(random: np.random.Generator) -> list[Any]:
    return [float(random.normal()), int(random.integers(0, 9))]


def category_row(random: np.random.Generator) -> list[Any]:
    return [str(random.choice(["refund", "delivery", "other"], p=[0.6, 0.3, 0.1]))]


def items_row(random: np.random.Generator) -> list[Any]:
    return [random.choice(vector_files.ITEMS, size=int(random.integers(1, 5))).tolist()]


def item_vectors_row(random: np.random.Generator) -> list[Any]:
    return [random.normal(size=(int(random.integers(1, 5)), 3)).tolist()]


def two_items_row(random: np.random.Generator) -> list[Any]:
    return random.choice(vector_files.ITEMS, size=2).tolist()


def edge_row(random: np.random.Generator) -> list[Any]:
    left = int(random.integers(0, 20))
    return [f"payer {left}", left % 4 + 4 * int(random.integers(0, 3))]


def title_and_body_row(random: np.random.Generator) -> list[Any]:
    return [*text_row(random), *text_row(random)]


def text_and_number_row(random: np.random.Generator) -> list[Any]:
    return [*text_row(random), *number_row(random)]


def category_or_none_row(random: np.random.Generator) -> list[Any]:
    return [[None, True, 7, "other"][int(random.integers(0, 4))]]


USER: dict[str, Any] = {"kind": "entity", "field": "/user", "path": "ITEMS"}
ITEM: dict[str, Any] = {"kind": "entity", "field": "/item", "path": "ITEMS"}
WORD_MEAN: dict[str, Any] = {"kind": "words", "field": "/b", "path": "WORDS"}
EXAMPLES: dict[str, list[Example]] = {
    "number": [({"field": "/n"}, number_row), ({"field": "/n", "optional": True}, number_or_none_row)],
    "category": [({"field": "/c"}, category_row), ({"field": "/c", "optional": True}, category_or_none_row)],
    "vector": [
        ({"field": "/v"}, vector_row),
        ({"field": "/v", "encoding": "base64", "dimension": 6, "geometry": "standard"}, packed_row),
    ],
    "tabular": [
        ({"numbers": ["/a", "/b"], "categories": ["/c"], "hash_dimension": 8}, table_row),
        ({"numbers": ["/a", "/b"], "categories": ["/c"], "hash_dimension": 8, "dimension": 4}, table_row),
        *(
            (
                {"numbers": ["/a", "/b"], "categories": ["/c"], "hash_dimension": 16, "dimension": 3, "reduce": how},
                table_row,
            )
            for how in ("svd", "autoencoder", "auto")
        ),
    ],
    "pixels": [
        ({"field": "/p", "shape": [4, 5]}, image_row),
        ({"field": "/p", "shape": [4, 5], "dimension": 3}, image_row),
    ],
    "text": [
        ({"field": "/t"}, text_row),
        ({"field": "/t", "model": "TEXT_MODEL"}, text_row),
        ({"field": "/t", "model": "TEXT_MODEL", "output": "normed", "pooling": "cls"}, text_row),
    ],
    "image": [
        ({"field": "/i", "model": "IMAGE_MODEL"}, picture_row),
        ({"field": "/i", "model": "IMAGE_MODEL", "output": "features", "normalise": True}, picture_row),
    ],
    "http": [
        ({"field": "/t", "protocol": "v2", "url": "EMBEDDING_SERVER", "model": "minilm"}, text_row),
        (
            {
                "field": "/t",
                "protocol": "openai",
                "url": "EMBEDDING_SERVER/v1",
                "model": "minilm",
                "encoding": "base64",
                "batch": 7,
            },
            text_row,
        ),
    ],
    "python": [
        ({"callable": "tests.contract.encoders:letters", "fields": ["/t"]}, text_row),
        (
            {
                "callable": "tests.contract.encoders:Scaled",
                "fields": ["/a", "/b"],
                "init": {"factor": 2.0},
                "rows": "one",
            },
            pair_of_numbers_row,
        ),
    ],
    "words": [
        ({"field": "/t", "path": "WORDS"}, text_row),
        ({"field": "/t", "path": "WORDS", "weighting": "sif"}, text_row),
    ],
    "ngrams": [({"field": "/t"}, text_row), ({"field": "/t", "idf": False, "dimension": 64}, text_row)],
    "entity": [
        ({"field": "/items", "path": "ITEMS"}, items_row),
        ({"field": "/items", "dimension": 3, "last": 2, "geometry": "text"}, item_vectors_row),
    ],
    "pair": [
        ({"left": USER, "right": ITEM}, two_items_row),
        ({"left": USER, "right": ITEM, "score": "both"}, two_items_row),
        ({"left": USER, "right": ITEM, "score": "both", "measure": "dot"}, two_items_row),
    ],
    "graph": [({"of": "/from", "to": "/to"}, edge_row), ({"of": "/from", "to": "/to", "dimension": 3}, edge_row)],
    "concat": [
        (
            {"parts": {"text": {"kind": "ngrams", "field": "/t"}, "n": {"kind": "number", "field": "/n"}}},
            text_and_number_row,
        ),
        (
            {
                "parts": {"t": {"kind": "ngrams", "field": "/t", "idf": False}, "w": WORD_MEAN},
                "weights": {"w": 2.0},
            },
            title_and_body_row,
        ),
    ],
    "average": [
        ({"fields": ["/t", "/b"], "embedder": {"kind": "ngrams"}}, title_and_body_row),
        ({"parts": {"t": {**WORD_MEAN, "field": "/t"}, "b": {**WORD_MEAN, "weighting": "sif"}}}, title_and_body_row),
    ],
}
# Rows that no embedder of this kind can use.
BAD: dict[str, list[list[Any]]] = {
    "vector": [[None], ["text"], [{"a": 1}], [[]], [True], [[1.0, None, 2.0, 3.0, 4.0, 5.0]]],
    "tabular": [["text", 1, "NO"], [[1.0], 1, "NO"], [1.0, 1, {"a": 1}], [math.inf, 1, "NO"], [10**200, 1, "NO"]],
    "pixels": [[None], ["text"], [[[1, 2], [3]]], [[[1, 2]]], [[["a"] * 5] * 4], [[[math.nan] * 5] * 4]],
    "text": [[None], [""], ["  \n"], [3], [["text"]]],
    "image": [[None], [""], ["text"], [3], ["AAAA"], [base64.b64encode(b"P6 22 18 255\n123").decode()]],
    "http": [[None], [""], ["  \n"], [3], [["text"]]],
    "python": [[None, None]],
    "number": [["text"], [True], [[1.0]], [math.inf], [10**400], [-1e200]],
    "category": [[0.5], [["a"]], [{"a": 1}], [math.nan]],
    "words": [[None], [""], [" ... "], [3], [["card"]]],
    "ngrams": [[None], [""], ["  \n"], [3], [["text"]]],
    "entity": [[None], [[]], [True], [[0.5]], [{"a": 1}], [[None]]],
    "pair": [[None, "item-1"], ["item-1", None], ["item-1", "unheard of"], [["item-1"], [0.5]]],
    "graph": [[None, 1], ["payer 1", None], [0.5, 1], ["payer 1", ["a"]]],
    "concat": [[None, None], ["", ""], [3, 3]],
    "average": [[None, None], ["", "card"], [3, "card"], [["card"], "card"]],
}


def kinds() -> dict[str, type[BaseModel]]:
    union, *_ = typing.get_args(EmbedderSettings)
    return {model.model_fields["kind"].default: model for model in typing.get_args(union)}


@functools.cache
def embedding_server() -> EmbeddingServer:
    """What stands at EMBEDDING_SERVER in the examples."""
    return EmbeddingServer().__enter__()


@pytest.fixture(scope="module", autouse=True)
def _end_embedding_server() -> Iterator[None]:
    yield
    if embedding_server.cache_info().currsize:
        embedding_server().__exit__(None, None, None)
        embedding_server.cache_clear()


@functools.cache
def vector_folder() -> tempfile.TemporaryDirectory[str]:
    """Where the files lie that are WORDS and ITEMS in the examples."""
    folder = tempfile.TemporaryDirectory()
    for name, names in (("WORDS", vector_files.WORDS), ("ITEMS", vector_files.ITEMS)):
        vector_files.word2vec_text(Path(folder.name) / name, names, vector_files.vectors_of(names))
    return folder


@functools.cache
def model_folder() -> tempfile.TemporaryDirectory[str]:
    """Where the files lie that are TEXT_MODEL and IMAGE_MODEL in the examples."""
    from tests import small_models  # needs the package onnx

    folder = tempfile.TemporaryDirectory()
    small_models.tokenizer(Path(folder.name) / "tokenizer.json", most=32)
    small_models.text_model(Path(folder.name) / "TEXT_MODEL.onnx")
    small_models.image_model(Path(folder.name) / "IMAGE_MODEL.onnx")
    return folder


def with_paths(settings: Any) -> Any:
    """The settings, nested ones too, with the paths of files in place of their names."""
    if isinstance(settings, dict):
        return {key: with_paths(value) for key, value in settings.items()}
    if settings in ("TEXT_MODEL", "IMAGE_MODEL"):
        return f"{model_folder().name}/{settings}.onnx"
    return f"{vector_folder().name}/{settings}" if settings in ("WORDS", "ITEMS") else settings


def build(kind: str, settings: dict[str, Any]) -> Embedder:
    settings = with_paths(settings)
    if str(settings.get("url")).startswith("EMBEDDING_SERVER"):
        settings = settings | {"url": settings["url"].replace("EMBEDDING_SERVER", embedding_server().url)}
    model: Any = TypeAdapter(EmbedderSettings).validate_python({"kind": kind, **settings})
    try:
        return cast(Embedder, model.build())
    except MissingExtra as error:
        pytest.skip(str(error))


def columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    return [[row[index] for row in rows] for index in range(width)]


CASES = [(kind, *example) for kind in kinds() for example in EXAMPLES.get(kind, [])]
every_kind = pytest.mark.parametrize(
    ("kind", "settings", "row"), CASES, ids=[f"{kind}-{len(settings)}" for kind, settings, _ in CASES]
)


def fitted(
    kind: str, settings: dict[str, Any], row: Callable[[np.random.Generator], list[Any]], rows: int = ROWS
) -> tuple[Embedder, list[list[Any]]]:
    random = np.random.default_rng(3)
    embedder = build(kind, settings)
    data = columns([row(random) for _ in range(rows)], len(embedder.fields))
    embedder.fit(data)
    return embedder, data


def test_every_kind_has_examples_here() -> None:
    assert set(EXAMPLES) == set(BAD) == set(kinds())


@pytest.mark.parametrize("kind", kinds())
def test_settings_describe_themselves(kind: str) -> None:
    model = kinds()[kind]
    assert model.__doc__ and model.__doc__.splitlines()[0].endswith(".")
    assert model.model_config["frozen"] and model.model_config["extra"] == "forbid"
    described = {name for name, field in model.model_fields.items() if field.description}
    assert described == set(model.model_fields) - {"kind"}


@every_kind
def test_it_says_what_it_is_and_needs(kind: str, settings: dict[str, Any], row: Any) -> None:
    embedder = build(kind, settings)
    assert embedder.kind == kind
    assert embedder.fields and all(name.startswith("/") for name in embedder.fields)
    assert isinstance(embedder.geometry, Geometry)
    assert isinstance(embedder.learns, bool)


@every_kind
def test_vectors_are_float32_contiguous_finite_and_the_input_is_untouched(
    kind: str, settings: dict[str, Any], row: Any
) -> None:
    embedder, data = fitted(kind, settings, row)
    before = copy.deepcopy(data)
    embedded = embedder.embed(data)
    assert embedded.problems == []
    assert embedded.vectors.dtype == np.float32 and embedded.vectors.ndim == 2 and len(embedded.vectors) == ROWS
    assert embedded.vectors.flags.c_contiguous and embedded.vectors.flags.writeable
    assert np.isfinite(embedded.vectors).all() and embedded.vectors.any(axis=1).all()
    assert data == before


@every_kind
def test_a_vector_does_not_depend_on_the_rows_around_it(kind: str, settings: dict[str, Any], row: Any) -> None:
    embedder, data = fitted(kind, settings, row)
    together = embedder.embed(data).vectors
    for start, end in ((0, 1), (1, 3), (3, 67), (67, 70), (149, 150)):
        part = embedder.embed([column[start:end] for column in data]).vectors
        assert part.tobytes() == together[start:end].tobytes()
    backwards = embedder.embed([column[::-1] for column in data]).vectors
    assert backwards[::-1].tobytes() == together.tobytes()


@every_kind
def test_the_same_baseline_gives_the_same_bytes(kind: str, settings: dict[str, Any], row: Any) -> None:
    first, data = fitted(kind, settings, row)
    second, _ = fitted(kind, settings, row)
    assert first.state() == second.state()
    assert first.fingerprint() == second.fingerprint()
    assert first.embed(data).vectors.tobytes() == second.embed(data).vectors.tobytes()


@every_kind
def test_a_restored_embedder_goes_on_as_the_first(kind: str, settings: dict[str, Any], row: Any) -> None:
    first, data = fitted(kind, settings, row)
    second = build(kind, settings)
    second.restore(first.state())
    assert second.state() == first.state() and second.fingerprint() == first.fingerprint()
    assert second.embed(data).vectors.tobytes() == first.embed(data).vectors.tobytes()


@every_kind
def test_what_learns_refuses_to_embed_before(kind: str, settings: dict[str, Any], row: Any) -> None:
    _, data = fitted(kind, settings, row)
    embedder = build(kind, settings)
    if embedder.learns:
        with pytest.raises(InvalidReference, match="reference build"):
            embedder.embed(data)
    else:
        assert embedder.embed(data).problems == []


@every_kind
def test_other_settings_have_another_fingerprint(kind: str, settings: dict[str, Any], row: Any) -> None:
    other: dict[str, dict[str, Any]] = {
        "vector": {"field": "/other"},
        "tabular": {"numbers": ["/a", "/other"], "categories": ["/c"]},
        "pixels": {"field": "/p", "shape": [5, 4]},
        "text": {"field": "/t", "max_chars": 7},
        "image": {"field": "/i", "model": "IMAGE_MODEL", "preset": "clip"},
        "http": {"field": "/t", "protocol": "v2", "url": "http://localhost", "model": "other"},
        "python": {"callable": "tests.contract.encoders:longer", "fields": ["/t"]},
        "number": {"field": "/other"},
        "category": {"field": "/other"},
        "words": {"field": "/t", "path": "ITEMS"},
        "ngrams": {"field": "/t", "n": [2, 2]},
        "entity": {"field": "/items", "path": "WORDS"},
        "pair": {"left": USER, "right": USER},
        "graph": {"of": "/from", "to": "/to", "dimension": 4},
        "concat": {"parts": {"t": {"kind": "ngrams", "field": "/other"}}},
        "average": {"fields": ["/t", "/other"], "embedder": {"kind": "ngrams"}},
    }
    assert build(kind, settings).fingerprint() != build(kind, other[kind]).fingerprint()


@every_kind
def test_a_broken_or_foreign_state_is_refused(kind: str, settings: dict[str, Any], row: Any) -> None:
    if not fitted(kind, settings, row)[0].state():
        return
    for state in (b"\xc1", b"\x92\xa5other\x01", build("vector", {"field": "/v", "dimension": 3}).state()[:-1]):
        with pytest.raises(InvalidReference, match="driftd reference build"):
            build(kind, settings).restore(state)


@every_kind
def test_bad_rows_are_named_and_harm_no_other(kind: str, settings: dict[str, Any], row: Any) -> None:
    embedder, data = fitted(kind, settings, row)
    good = embedder.embed(data).vectors
    rows = [list(values) for values in zip(*data, strict=True)]
    where = list(range(1, 1 + 3 * len(BAD[kind]), 3))
    for place, bad in zip(where, BAD[kind], strict=True):
        rows[place] = bad
    embedded = embedder.embed(columns(rows, len(embedder.fields)))
    assert [problem.row for problem in embedded.problems] == where
    assert {problem.reason for problem in embedded.problems} <= set(DEAD_LETTER_REASONS)
    assert all(problem.detail.endswith(".") and len(problem.detail) < 200 for problem in embedded.problems)
    assert not embedded.vectors[where].any()
    others = np.setdiff1d(np.arange(ROWS), where)
    assert embedded.vectors[others].tobytes() == good[others].tobytes()


@every_kind
def test_no_rows_give_no_vectors(kind: str, settings: dict[str, Any], row: Any) -> None:
    embedder, _ = fitted(kind, settings, row)
    embedded = embedder.embed([[] for _ in embedder.fields])
    assert embedded.vectors.shape[0] == 0 and embedded.problems == []


@every_kind
def test_a_baseline_without_a_usable_row_is_refused(kind: str, settings: dict[str, Any], row: Any) -> None:
    embedder = build(kind, settings)
    bad = columns(BAD[kind][:1] * 5, len(embedder.fields))
    if embedder.learns:
        with pytest.raises(InvalidInput):
            embedder.fit(bad)
    else:
        try:
            embedder.fit(bad)
        except DriftdError as error:
            assert error.hint
        assert len(embedder.embed(bad).problems) == 5
