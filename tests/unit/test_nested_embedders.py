"""Embedders that are made of embedders: settings, problems, what they learn, and what joins them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from detectors.errors import InvalidInput, InvalidReference, InvalidSettings
from detectors.geometry import ANGULAR, STANDARD, TEXT
from monitor.embedders import Embedder, EmbedderSettings, learns_apart
from monitor.embedders.embedder import Columns, Embedded
from monitor.embedders.parts import Parts, unit_rows
from monitor.settings import load_settings

VECTOR = {"kind": "vector", "field": "/v", "dimension": 3}
NUMBER = {"kind": "number", "field": "/n"}
NGRAMS_NO = {"kind": "ngrams", "idf": False}
NGRAMS = {**NGRAMS_NO, "field": "/t"}


def build(**settings: Any) -> Embedder:
    parsed: Any = TypeAdapter(EmbedderSettings).validate_python(settings)
    embedder: Embedder = parsed.build()
    return embedder


def problems_of(text: str, folder: Path) -> str:
    (folder / "driftd.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidSettings) as caught:
        load_settings(folder / "driftd.yaml")
    return "\n".join(caught.value.problems)


def test_problems_of_a_part_name_its_line_its_key_and_what_was_meant(tmp_path: Path) -> None:
    found = problems_of(
        """models:
  m:
    source: {kind: files, path: x.jsonl}
    spaces:
      s:
        embedder:
          kind: concat
          parts:
            ngrams:
              kind: ngrams
              field: /a
              dimensoin: 64
            other: {kind: wrods, field: /t}
            deep: {kind: pair, left: {kind: number, feild: /x}, right: {kind: vector, field: /v}}
""",
        tmp_path,
    )
    assert "driftd.yaml:12: models.m.spaces.s.embedder.parts.ngrams.dimensoin: unknown key. Did you mean dim" in found
    assert (
        "driftd.yaml:13: models.m.spaces.s.embedder.parts.other: unknown kind 'wrods'; valid kinds: 'vector'" in found
    )
    assert "Did you mean words?" in found
    assert "Did you mean words?" in found
    assert "driftd.yaml:14: models.m.spaces.s.embedder.parts.deep.left.feild: unknown key. Did you mean field?" in found


def test_settings_survive_a_round_trip() -> None:
    adapter = TypeAdapter[Any](EmbedderSettings)
    parsed = adapter.validate_python(
        {
            "kind": "concat",
            "parts": {"a": NUMBER, "b": {"kind": "average", "fields": ["/x", "/y"], "embedder": NGRAMS_NO}},
        }
    )
    assert adapter.validate_python(parsed.model_dump(exclude_unset=True)) == parsed
    assert adapter.validate_json(parsed.model_dump_json()) == parsed


def test_the_schema_lists_the_kinds_of_a_part() -> None:
    schema = TypeAdapter(EmbedderSettings).json_schema()
    kinds = schema["$defs"]["ConcatSettings"]["properties"]["parts"]["additionalProperties"]["properties"]["kind"]
    assert set(kinds["enum"]) == set(schema["discriminator"]["mapping"])


def test_fields_are_those_of_the_parts_in_order_and_problems_name_the_part() -> None:
    embedder = build(kind="concat", parts={"text": NGRAMS, "again": VECTOR})
    assert embedder.fields == ("/t", "/v") and not embedder.learns
    embedded = embedder.embed([["a text", None, "b text"], [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0]]])
    assert [(problem.row, problem.reason) for problem in embedded.problems] == [
        (1, "missing_field"),
        (2, "wrong_dimension"),
    ]
    assert embedded.problems[0].detail.startswith("text: /t") and embedded.problems[1].detail.startswith("again: /v")


def test_weights_are_shares_of_the_squared_distance() -> None:
    parts = {"text": NGRAMS, "vector": {**VECTOR, "geometry": "angular"}}
    vectors = (
        build(kind="concat", parts=parts, weights={"vector": 3.0})
        .embed([["a text", "a text", "and another"], [[1.0, 0.0, 0.0], [0.0, 5.0, 0.0], [9.0, 0.0, 0.0]]])
        .vectors
    )
    np.testing.assert_allclose(np.square(vectors).sum(axis=1), 4.0, rtol=1e-6)
    assert np.square(vectors[0] - vectors[1]).sum() == pytest.approx(3.0 * 2.0, rel=1e-6)
    text = unit_rows(build(**NGRAMS).embed([["a text", "and another"]]).vectors)
    assert np.square(vectors[0] - vectors[2]).sum() == pytest.approx(np.square(text[0] - text[1]).sum(), rel=1e-5)


def test_geometry_follows_the_parts() -> None:
    assert build(kind="concat", parts={"a": NUMBER}).geometry == STANDARD
    assert build(kind="concat", parts={"a": NGRAMS, "b": VECTOR}).geometry == TEXT
    assert build(kind="concat", parts={"a": VECTOR}).geometry == ANGULAR
    mixed = build(kind="concat", parts={"a": VECTOR, "b": {**VECTOR, "geometry": "standard"}})
    assert mixed.geometry == ANGULAR and mixed.learns


def test_in_a_mix_a_wild_number_turns_the_vector_and_a_usual_one_hardly() -> None:
    random = np.random.default_rng(0)
    embedder = build(kind="concat", parts={"text": NGRAMS, "facts": {**VECTOR, "geometry": "standard"}})
    embedder.fit([["one text"] * 500, random.normal(100.0, 5.0, size=(500, 3)).tolist()])
    usual, other, wild = unit_rows(
        embedder.embed([["one text"] * 3, [[100.0, 101.0, 99.0], [99.0, 100.0, 101.0], [200.0, 100.0, 100.0]]]).vectors
    )
    assert usual @ other > 0.95 > 0.75 > usual @ wild


def test_weights_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(InvalidInput, match="each counts the same"):
        build(kind="concat", parts={"a": NUMBER}, weights={"a": 2.0})
    with pytest.raises(ValueError, match="the parts are a"):
        build(kind="concat", parts={"a": NGRAMS}, weights={"b": 2.0})


def test_a_reference_of_other_parts_is_refused() -> None:
    first = build(kind="concat", parts={"a": NUMBER, "b": NGRAMS})
    first.fit([[1.0, 2.0, 3.0], ["x", "y", "z"]])
    with pytest.raises(InvalidReference, match="made from the parts a, b; the settings name a, c"):
        build(kind="concat", parts={"a": NUMBER, "c": NGRAMS}).restore(first.state())


def test_the_order_and_the_weights_of_parts_are_in_the_fingerprint() -> None:
    parts = {"a": NGRAMS, "b": VECTOR}
    found = {
        build(kind="concat", parts=parts).fingerprint(),
        build(kind="concat", parts=dict(reversed(parts.items()))).fingerprint(),
        build(kind="concat", parts=parts, weights={"a": 2.0}).fingerprint(),
    }
    assert len(found) == 3


def test_an_average_is_the_mean_of_directions() -> None:
    parts = {"a": VECTOR, "b": {**VECTOR, "field": "/w"}}
    embedder = build(kind="average", parts=parts)
    found = embedder.embed([[[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [[0.0, 7.0, 0.0], [-5.0, 0.0, 0.0]]])
    np.testing.assert_allclose(found.vectors[0], [0.5, 0.5, 0.0])
    assert [(problem.row, problem.reason) for problem in found.problems] == [(1, "zero_vector")]


def test_an_average_over_fields_learns_from_all_of_them_as_from_one() -> None:
    shared = build(kind="average", fields=["/title", "/body"], embedder={"kind": "ngrams"})
    titles, bodies = ["one", "two", "three"], ["four", "five", "six"]
    shared.fit([titles, bodies])
    alone = build(kind="ngrams", field="/title")
    alone.fit([[*titles, *bodies]])
    expected = (unit_rows(alone.embed([titles]).vectors) + unit_rows(alone.embed([bodies]).vectors)) / 2
    np.testing.assert_allclose(shared.embed([titles, bodies]).vectors, expected, atol=1e-6)


def test_what_is_missing_is_left_out_of_an_optional_average_alone() -> None:
    columns = [["title", None, None], [None, "body", None]]
    settings: dict[str, Any] = {"kind": "average", "fields": ["/title", "/body"], "embedder": NGRAMS_NO}
    assert len(build(**settings).embed(columns).problems) == 3
    found = build(**settings, optional=True).embed(columns)
    assert [problem.row for problem in found.problems] == [2]
    np.testing.assert_allclose(np.square(found.vectors).sum(axis=1), [1.0, 1.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "either fields"),
        ({"fields": ["/a"]}, "either fields"),
        ({"parts": {"a": NGRAMS}, "fields": ["/a"], "embedder": NGRAMS_NO}, "either fields"),
        ({"fields": ["/a", "/b"], "embedder": {**NGRAMS_NO, "field": "/c"}}, "leave field out"),
    ],
)
def test_an_average_of_fields_and_parts_at_once_is_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        build(kind="average", **settings)


def test_an_average_of_other_dimensions_or_geometries_is_refused() -> None:
    with pytest.raises(InvalidInput, match="kind: concat") as caught:
        build(kind="average", parts={"a": VECTOR, "b": NGRAMS}).embed([[[1.0, 2.0, 3.0]], ["text"]])
    assert "a: 3, b: 512" in str(caught.value)
    with pytest.raises(InvalidInput, match="means neither"):
        build(kind="average", parts={"a": VECTOR, "b": NUMBER})


class _Remote:
    """Stands for an embedder whose vectors another program makes."""

    kind, fields, learns, geometry, remote, apart = "remote", ("/r",), False, ANGULAR, True, True
    asked: list[str]

    def __init__(self) -> None:
        self.asked = []

    def fit(self, columns: Columns) -> None: ...

    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None: ...

    def fingerprint(self) -> str:
        return "remote"

    def embed(self, columns: Columns) -> Embedded:
        return self._answer("remembered", columns)

    def embed_anew(self, columns: Columns) -> Embedded:
        return self._answer("anew", columns)

    def forget(self) -> None:
        self.asked.append("forget")

    def _answer(self, how: str, columns: Sequence[Sequence[Any]]) -> Embedded:
        self.asked.append(how)
        return Embedded(np.ones((len(columns[0]), 2), dtype=np.float32), [])


def test_what_parts_are_the_whole_is() -> None:
    remote = _Remote()
    parts = Parts({"near": build(**NGRAMS), "far": remote})
    assert parts.remote and parts.apart
    assert not Parts({"near": build(**NGRAMS)}).remote
    columns = [["text"], [None]]
    parts.embed(columns)
    parts.embed(columns, anew=True)
    parts.forget()
    assert remote.asked == ["remembered", "anew", "forget"]


def test_a_concat_of_what_learns_apart_learns_apart() -> None:
    graph = {"kind": "graph", "of": "/a", "to": "/b"}
    assert learns_apart(build(kind="concat", parts={"g": graph, "t": NGRAMS}))
    assert not learns_apart(build(kind="concat", parts={"t": NGRAMS}))
