"""The embedder `python`: a function of the user's, and all that it may do wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from detectors.errors import DriftdError, InvalidInput, InvalidReference, InvalidSettings
from monitor.embedders.embedder import embed_all
from monitor.embedders.python import PythonEmbedder, PythonSettings
from tests.contract import encoders

TEXTS = ["the card was refused", "hello", "another one at the till", "no"]


def embedder_of(name: str, **changes: Any) -> PythonEmbedder:
    fields = changes.pop("fields", ["/t"])
    return PythonSettings(callable=f"tests.contract.encoders:{name}", fields=fields, **changes).build()


@pytest.mark.parametrize("rows", ["batch", "one"])
def test_the_function_gets_a_list_and_its_array_is_the_vectors(rows: str) -> None:
    embedded = embedder_of("letters", rows=rows).embed([TEXTS])
    assert embedded.problems == []
    assert embedded.vectors.tobytes() == encoders.letters(TEXTS).astype(np.float32).tobytes()


def test_a_class_is_made_once_and_called_with_a_list_for_each_field() -> None:
    embedder = embedder_of("Scaled", fields=["/a", "/b"], init={"factor": 2.0})
    assert embedder.embed([[1, 2], [3, 4]]).vectors.tolist() == [[2.0, 6.0, 1.0], [4.0, 8.0, 1.0]]


def test_what_a_class_is_made_with_is_not_shown() -> None:
    settings = PythonSettings(callable="tests.contract.encoders:Scaled", fields=["/a"], init={"key": "sk-4711"})
    assert "Scaled" in repr(settings) and "sk-4711" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flat", r"shape \(4,\) for 4 records; expected \(4, d\)"),
        ("too_few", r"shape \(3, 8\) for 4 records"),
        ("words", "returns list, which is no array of numbers"),
    ],
)
def test_a_function_that_returns_something_else_is_told_what_was_expected(name: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as raised:
        embedder_of(name).embed([TEXTS])
    assert raised.value.hint


def test_a_vector_that_depends_on_the_rows_around_it_is_found_with_the_first_rows() -> None:
    with pytest.raises(InvalidInput, match=r"number 0 is 1\.0 alone, and .* among 4 records") as raised:
        embedder_of("beside_others").embed([TEXTS])
    assert "rows: one" in raised.value.hint
    assert embedder_of("beside_others", rows="one").embed([TEXTS]).vectors.tolist() == [[1.0] * 8] * 4


def test_an_error_of_the_function_is_the_problem_of_the_row_at_which_it_fails() -> None:
    kinds: list[str] = []
    embedded = embed_all(embedder_of("fails"), [[*TEXTS, "boom"]], 5, failed=kinds.append)
    assert [(problem.row, problem.reason) for problem in embedded.problems] == [(4, "embedder_failed")]
    assert kinds == ["RuntimeError"] and "boom" not in embedded.problems[0].detail
    assert embedded.vectors[:4].tobytes() == encoders.letters(TEXTS).astype(np.float32).tobytes()


def test_missing_fields_are_not_given_to_the_function() -> None:
    embedder = embedder_of("Scaled", fields=["/a", "/b"], init={"factor": 2.0})
    embedded = embedder.embed([[1, None, 3], [3, 4, None]])
    assert [(problem.row, problem.reason) for problem in embedded.problems] == [
        (1, "missing_field"),
        (2, "missing_field"),
    ]
    assert embedded.vectors.tolist() == [[2.0, 6.0, 1.0], [0.0] * 3, [0.0] * 3]


def test_numbers_beyond_float32_are_not_finite() -> None:
    embedder = embedder_of("Scaled", fields=["/a", "/b"], init={"factor": 1.0, "power": 9})
    embedded = embedder.embed([[1, 1e30, float("nan")], [1, 1, 1]])
    assert [(problem.row, problem.reason) for problem in embedded.problems] == [(1, "not_finite"), (2, "not_finite")]


def test_the_fingerprint_changes_with_the_file_the_settings_and_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    prints = set()
    for number, source in enumerate(("def f(x): return [[1.0]] * len(x)", "def f(x): return [[2.0]] * len(x)")):
        (tmp_path / f"encoder_{number}.py").write_text(source)
        (tmp_path / "alias").mkdir(exist_ok=True)
    for settings in (
        {"callable": "encoder_0:f"},
        {"callable": "encoder_1:f"},
        {"callable": "encoder_0:f", "version": "1"},
        {"callable": "encoder_0:f", "version": "2"},
    ):
        prints.add(PythonSettings(fields=["/t"], **settings).build().fingerprint())
    assert len(prints) == 4
    again = PythonSettings(fields=["/t"], callable="encoder_0:f", rows="one").build().fingerprint()
    assert again in prints  # calling it row by row changes no vector


def test_the_fingerprint_is_of_the_file_in_which_the_function_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "written_here.py").write_text("def f(x): return [[1.0]] * len(x)")
    (tmp_path / "named_here.py").write_text("from written_here import f")
    before = PythonSettings(fields=["/t"], callable="named_here:f").build().fingerprint()
    (tmp_path / "written_here.py").write_text("def f(x): return [[3.0]] * len(x)")
    assert PythonSettings(fields=["/t"], callable="named_here:f").build().fingerprint() != before


def test_another_dimension_than_the_reference_has_is_refused() -> None:
    first = embedder_of("letters")
    first.embed([TEXTS])
    other = embedder_of("longer")
    other.restore(first.state())
    with pytest.raises(InvalidReference, match="9-dimensional vectors; before, they had 8"):
        other.embed([TEXTS])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"callable": "no_such_package.encoder:f"}, "PYTHONPATH"),
        ({"callable": "tests.contract.encoders:leters"}, "It has: .*letters"),
        ({"callable": "tests.contract.encoders:NOTHING"}, "cannot be called"),
        ({"callable": "tests.contract.encoders:Scaled"}, "factor"),
        ({"callable": "tests.contract.encoders:letters", "init": {"a": 1}}, "Leave init out"),
        ({"callable": "time:time"}, "Set version"),
    ],
)
def test_what_cannot_be_imported_says_what_to_do(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSettings, match=said):
        PythonSettings(fields=["/t"], **settings).build()


def test_a_module_that_fails_while_it_is_imported_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_encoder.py").write_text("raise OSError('no weights')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DriftdError, match="OSError: no weights"):
        PythonSettings(fields=["/t"], callable="broken_encoder:f").build()


@pytest.mark.parametrize("name", ["encoder", "encoder.f", "a b:f", "encoder:"])
def test_a_name_that_is_no_import_path_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=r"callable\n.*expected package.module:function"):
        PythonSettings(fields=["/t"], callable=name)
