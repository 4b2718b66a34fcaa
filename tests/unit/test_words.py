"""Static word vectors: every form of file, what counts as a word, weights, and what is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detectors.errors import InvalidInput, InvalidReference
from monitor.embedders.vector_table import read_table
from monitor.embedders.words import WordsEmbedder, WordsSettings, zipf_weights
from tests import vector_files

NAMES = ["the", "card", "New York", "naïve", "Till", "till", "the"]


def words(path: Path, **settings: Any) -> WordsEmbedder:
    return WordsSettings(field="/t", path=path, **settings).build()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    vector_files.glove(tmp_path / "words.txt", vector_files.WORDS, vector_files.vectors_of(vector_files.WORDS))
    return tmp_path / "words.txt"


def vector_of(path: Path, word: str) -> vector_files.Floats:
    table = read_table(path, most=1000)
    return table.vectors[table.row_of[word]]


@pytest.mark.parametrize("form", [form for form in vector_files.FORMS if not form.endswith(".bin")])
def test_every_form_of_file_is_read_to_the_bit_and_of_equal_names_the_first_counts(form: str, tmp_path: Path) -> None:
    vectors = vector_files.vectors_of(NAMES)
    vector_files.FORMS[form](tmp_path / "file", NAMES, vectors)
    table = read_table(tmp_path / "file", most=100)
    assert list(table.names) == NAMES
    assert table.vectors.tobytes() == vectors.tobytes()
    assert table.row_of["the"] == 0 and table.lowercased["till"] == 4


@pytest.mark.parametrize("form", ["word2vec.bin", "gensim.bin"])
def test_binary_files_are_read_with_line_feeds_and_without(form: str, tmp_path: Path) -> None:
    names = [f"word{number}" for number in range(3000)]
    vectors = vector_files.vectors_of(names, dimension=300)  # more than one piece of the file
    vector_files.FORMS[form](tmp_path / "file", names, vectors)
    table = read_table(tmp_path / "file", most=2500)
    assert list(table.names) == names[:2500]
    assert table.vectors.tobytes() == vectors[:2500].tobytes()


def test_all_forms_of_the_same_vectors_have_one_fingerprint(tmp_path: Path) -> None:
    vectors = vector_files.vectors_of(vector_files.WORDS)
    found = set()
    for form, write in vector_files.FORMS.items():
        write(tmp_path / form, vector_files.WORDS, vectors)
        found.add(words(tmp_path / form).fingerprint())
    assert len(found) == 1


def test_another_number_in_the_file_is_another_fingerprint_and_refuses_the_state(tmp_path: Path) -> None:
    vectors = vector_files.vectors_of(vector_files.WORDS)
    vector_files.glove(tmp_path / "a", vector_files.WORDS, vectors)
    vectors[3, 2] += 1e-3
    vector_files.glove(tmp_path / "b", vector_files.WORDS, vectors)
    first, second = (words(tmp_path / name, weighting="sif") for name in "ab")
    first.fit([["my card", "the till"]])
    assert first.fingerprint() != second.fingerprint()
    with pytest.raises(InvalidReference, match="other word vectors"):
        second.restore(first.state())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x00\x01\x02 not a table", "no table of vectors"),
        (b"the 0.1 0.2\ncard 0.1\n", "is not a name and 2 numbers"),
        (b"2 3\nthe 0.1 0.2 0.3\ncard 0.1 0.2 x\n", "is not a name and 3 numbers"),
        (b"the 0.1 nan\n", "NaN or infinity"),
        (b"3 4\nthe \x00\x00\x80\x3f\x00\x00", "ends within a vector"),
        (b"\x93NUMPY", "has no names"),
        (b"PAR1 broken", "cannot be read as a table"),
        (b"", "no table of vectors"),
    ],
)
def test_what_is_no_table_is_refused_with_the_path(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InvalidInput, match=expected) as caught:
        read_table(tmp_path / "file", most=100)
    assert str(tmp_path) in str(caught.value) and caught.value.hint


def test_a_missing_file_is_refused_before_the_first_record(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="There is no file"):
        words(tmp_path / "nowhere.txt")


def test_a_text_is_the_mean_of_its_words(path: Path) -> None:
    embedded = words(path).embed([["My card, please!"]])
    expected = np.mean([vector_of(path, word) for word in ("my", "card", "please")], axis=0)
    np.testing.assert_allclose(embedded.vectors[0, :-1], expected, rtol=1e-6)
    assert embedded.vectors[0, -1] == 0.0


def test_the_last_column_is_the_share_of_unknown_words_in_lengths_of_a_word(path: Path) -> None:
    embedder = words(path)
    table = read_table(path, most=1000)
    length = float(np.linalg.norm(table.vectors, axis=1).mean())
    found = embedder.embed([["card xylograph", "card", "qwxz bnfg"]])
    np.testing.assert_allclose(found.vectors[:, -1], [length / 2, 0.0, length], rtol=1e-6)
    np.testing.assert_allclose(found.vectors[0, :-1], vector_of(path, "card"), rtol=1e-6)
    assert not found.vectors[2, :-1].any() and found.problems == []


def test_an_unknown_word_with_hyphens_or_apostrophes_is_looked_up_in_pieces(path: Path) -> None:
    found = words(path).embed([["card-till", "card till", "card's"]]).vectors
    assert found[0].tobytes() == found[1].tobytes()
    assert found[2, -1] > 0.0  # "s" is not known


def test_capital_letters_count_where_they_are_set_to(path: Path) -> None:
    small, as_written = words(path), words(path, lowercase=False)
    assert small.embed([["CARD"]]).vectors.tobytes() == small.embed([["card"]]).vectors.tobytes()
    assert not as_written.embed([["CARD"]]).vectors[0, :-1].any()


def test_sif_weighs_common_words_less_and_takes_the_common_direction_out(path: Path) -> None:
    weights = zipf_weights(400_000)
    assert weights[0] < 0.05 and weights[-1] > 0.99 and (np.diff(weights) >= 0).all()
    embedder = words(path, weighting="sif")
    texts = [f"{a} {b}" for a in vector_files.WORDS for b in vector_files.WORDS]
    embedder.fit([texts])
    vectors = embedder.embed([texts]).vectors[:, :-1].astype(np.float64)
    spread = np.linalg.eigvalsh(vectors.T @ vectors)
    assert spread[0] < 1e-6 * spread[-1]  # one direction holds nothing any more


def test_only_the_first_words_of_a_file_are_read(path: Path) -> None:
    embedder = words(path, most_words=3)
    assert not embedder.embed([["parcel"]]).vectors[0, :-1].any()
    assert embedder.fingerprint() != words(path).fingerprint()


def test_processes_share_one_copy_of_a_file(path: Path) -> None:
    assert read_table(path, most=100) is read_table(path, most=100)


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html>\n<html><body>404</body></html>\n", b"", b"\x08\x08\x12 an onnx model"]
)
def test_a_file_of_something_else_is_refused_before_the_first_record(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InvalidInput, match="no table of vectors"):
        words(tmp_path / "file")
