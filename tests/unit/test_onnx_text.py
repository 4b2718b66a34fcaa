"""Sentence encoders in ONNX: which numbers come out, and what a careless user is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from detectors.errors import InvalidSettings, MissingExtra
from monitor.embedders.text import OnnxTextEmbedder, TextSettings
from tests.small_models import DIMENSION, INT32, VOCABULARY, WORDS, text_model, tokenizer

onnxruntime: Any = pytest.importorskip("onnxruntime")

TEXTS = [" ".join(WORDS[(row * 7 + place * 3) % len(WORDS)] for place in range(1 + row * 5 % 31)) for row in range(60)]


def build(path: Path, **settings: Any) -> OnnxTextEmbedder:
    embedder = TextSettings(field="/t", model=path, **settings).build()
    assert isinstance(embedder, OnnxTextEmbedder)
    return embedder


def model(folder: Path, **made: Any) -> Path:
    tokenizer(folder / "tokenizer.json", most=64)
    return text_model(folder / "model.onnx", **made)


def hidden(path: Path, text: str, output: str = "last_hidden_state") -> Any:
    """What the runtime says itself, of one text without padding."""
    ids = np.array([[2, *(VOCABULARY.get(word, 1) for word in text.split()), 3]], dtype=np.int64)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run([output], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]


def test_tokens_are_averaged_without_their_padding(tmp_path: Path) -> None:
    path = model(tmp_path)
    found = build(path).embed([["card refused", "my card please", "card refused"]])
    assert found.problems == [] and found.vectors.shape == (3, DIMENSION)
    np.testing.assert_allclose(found.vectors[0], hidden(path, "card refused").mean(axis=0), rtol=1e-5, atol=1e-6)
    assert found.vectors[0].tobytes() == found.vectors[2].tobytes()


def test_the_first_token_the_models_own_vector_and_a_value_inside_can_be_chosen(tmp_path: Path) -> None:
    path = model(tmp_path, outputs=["last_hidden_state", "pooler_output", "sentence_embedding"])
    text = "where is my parcel"

    def vector(**settings: Any) -> Any:
        return build(path, **settings).embed([[text]]).vectors[0]

    close: Any = np.testing.assert_allclose
    close(vector(pooling="cls"), hidden(path, text)[0], rtol=1e-4, atol=1e-5)
    close(vector(), hidden(path, text, "sentence_embedding"), rtol=1e-4, atol=1e-5)
    close(vector(output="pooler_output"), hidden(path, text, "pooler_output"), rtol=1e-4, atol=1e-5)
    inside = vector(output="normed", pooling="cls")
    assert inside.shape == (DIMENSION,) and abs(float(inside.mean())) < 1e-5  # normed: its mean is zero
    assert np.linalg.norm(vector(normalise=True).astype(np.float64)) == pytest.approx(1.0, abs=1e-6)


def test_a_head_of_pre_training_is_not_taken_unasked(tmp_path: Path) -> None:
    path = model(tmp_path, outputs=["last_hidden_state", "pooler_output"])
    text = "help me now"
    assert np.allclose(build(path).embed([[text]]).vectors[0], hidden(path, text).mean(axis=0), atol=1e-5)


def test_a_prefix_counts_and_is_no_part_of_the_record(tmp_path: Path) -> None:
    path = model(tmp_path)
    with_prefix = build(path, prefix="refund ").embed([["my card"]]).vectors
    assert with_prefix.tobytes() == build(path).embed([["refund my card"]]).vectors.tobytes()
    assert build(path, prefix="refund ").fingerprint() != build(path).fingerprint()
    assert [each.reason for each in build(path, prefix="refund ").embed([[" "]]).problems] == ["bad_value"]


def test_long_texts_are_cut_at_the_tokens_that_the_tokenizer_or_the_settings_say(tmp_path: Path) -> None:
    text_model(tmp_path / "model.onnx")
    tokenizer(tmp_path / "tokenizer.json", most=6)
    long, cut = "my card refused at the till now", "my card refused at"
    for settings, same in (({}, True), ({"max_tokens": 20}, False)):
        found = build(tmp_path, **settings).embed([[long, cut]]).vectors
        assert (found[0].tobytes() == found[1].tobytes()) is same


@pytest.mark.parametrize("made", [{}, {"quantised": True}, {"joined_rows": True}], ids=["plain", "quantised", "joined"])
def test_a_vector_is_the_same_among_others_alone_and_in_any_order(tmp_path: Path, made: dict[str, Any]) -> None:
    embedder = build(model(tmp_path, **made))
    assert (embedder._most_rows == 16) is (made == {})
    if made == {"joined_rows": True}:
        return  # alone, the mean over all rows is the row itself
    together = embedder.embed([TEXTS]).vectors
    order = np.random.default_rng(0).permutation(len(TEXTS))
    assert embedder.embed([[TEXTS[row] for row in order]]).vectors.tobytes() == together[order].tobytes()
    alone = np.concatenate([embedder.embed([[text]]).vectors for text in TEXTS])
    assert alone.tobytes() == together.tobytes()


def test_a_quantised_model_would_mix_rows_if_they_ran_together(tmp_path: Path) -> None:
    embedder = build(model(tmp_path, quantised=True))
    alone = embedder.embed([TEXTS]).vectors
    embedder._most_rows = 16
    assert embedder.embed([TEXTS]).vectors.tobytes() != alone.tobytes()


def test_inputs_of_other_types_and_fixed_shapes_are_fed(tmp_path: Path) -> None:
    usual = build(model(tmp_path / "a")).embed([TEXTS[:5]]).vectors
    small = build(model(tmp_path / "b", integers=INT32)).embed([TEXTS[:5]]).vectors
    assert small.tobytes() == usual.tobytes()
    fixed = build(model(tmp_path / "c", shape=[1, 32])).embed([TEXTS[:5]]).vectors
    np.testing.assert_allclose(fixed, usual, rtol=1e-4, atol=1e-5)
    for name in ("token_type_ids", "position_ids"):
        more = build(model(tmp_path / name, extra_input=name)).embed([TEXTS[:5]])
        assert more.problems == []
        assert (more.vectors.tobytes() == usual.tobytes()) is (name == "token_type_ids")


def test_the_fingerprint_covers_the_model_the_tokenizer_and_the_settings(tmp_path: Path) -> None:
    path = model(tmp_path)
    first = build(path).fingerprint()
    moved = model(tmp_path / "elsewhere")
    assert build(moved).fingerprint() == first
    others = [
        build(path, **each).fingerprint()
        for each in ({"pooling": "cls"}, {"max_tokens": 9}, {"max_chars": 9}, {"normalise": True}, {"output": "normed"})
    ]
    assert len({first, *others}) == 6
    tokenizer(tmp_path / "tokenizer.json", words=WORDS[::-1], most=64)
    assert build(path).fingerprint() != first
    moved.write_bytes(text_model(tmp_path / "other.onnx", positions=80).read_bytes())
    os.utime(moved, ns=(1, 1))
    assert build(moved).fingerprint() != first


def test_texts_that_no_tokenizer_can_read_are_problems_of_their_records(tmp_path: Path) -> None:
    found = build(model(tmp_path)).embed([["my card", "\ud83d", "\x00", "é" * 5000, None, "parcel"]])
    assert [(each.row, each.reason) for each in found.problems] == [(1, "bad_value"), (4, "missing_field")]
    assert found.vectors[[0, 2, 3, 5]].any(axis=1).all() and not found.vectors[[1, 4]].any()


def test_a_directory_may_hold_the_model_as_hubs_lay_it_out(tmp_path: Path) -> None:
    text_model(tmp_path / "onnx" / "model.onnx")
    tokenizer(tmp_path / "tokenizer.json", most=64)
    assert build(tmp_path).dimension == DIMENSION
    (tmp_path / "onnx" / "model.onnx").rename(tmp_path / "encoder.onnx")
    assert build(tmp_path).dimension == DIMENSION


def broken(folder: Path, what: str) -> dict[str, Any]:
    """Settings with one mistake, and the files that go with it."""
    path = model(folder)
    match what:
        case "no file":
            path.unlink()
        case "no onnx":
            path.write_text("version https://git-lfs.github.com/spec/v1")
        case "cut off":
            path.write_bytes(path.read_bytes()[:500])
        case "empty directory":
            (folder / "empty").mkdir()
            path = folder / "empty"
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "tokenizer of another kind":
            (folder / "tokenizer.json").write_text('{"vocab": ["my", "card"]}')
        case "tokenizer of a larger model":
            tokenizer(folder / "tokenizer.json", words=[*WORDS, *(f"word{number}" for number in range(50))])
        case "an input nobody feeds":
            text_model(path, extra_input="pixel_values")
        case "no such output":
            return {"model": path, "output": "last_hiden_state"}
        case "no vector of the text":
            return {"model": path, "pooling": "output"}
        case "too many tokens":
            return {"model": path, "max_tokens": 65}
        case "too many for its shape":
            text_model(path, shape=["rows", 16])
            return {"model": path, "max_tokens": 17}
        case "made for three rows":
            text_model(path, shape=[3, "tokens"])
    return {"model": path}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no file", "driftd downloads none"),
        ("no onnx", "cannot be read as an ONNX model"),
        ("cut off", "cannot be read as an ONNX model"),
        ("empty directory", "holds no .onnx files"),
        ("no tokenizer", "There is no tokenizer"),
        ("tokenizer of another kind", "is no tokenizer.json"),
        ("tokenizer of a larger model", "It is the tokenizer of another model"),
        ("an input nobody feeds", r"asks for pixel_values \(any, any\), which nobody feeds; there is input_ids"),
        ("no such output", r"'last_hiden_state'; there is last_hidden_state \(any, any, 12\)"),
        ("no vector of the text", r"needs one vector for each text; .* gives last_hidden_state \[1, 4, 12\]"),
        ("too many tokens", "refuses a text of 65 tokens: .* Set max_tokens"),
        ("too many for its shape", "takes texts of 16 tokens, and max_tokens is 17"),
        ("made for three rows", "takes exactly 3 rows at a time"),
    ],
)
def test_a_careless_user_is_told_what_is_wrong(tmp_path: Path, what: str, message: str) -> None:
    settings = TextSettings(field="/t", **(broken(tmp_path, what)))
    with pytest.raises(InvalidSettings, match=message) as raised:
        settings.build()
    assert raised.value.hint and "onnxruntime_src" not in str(raised.value)


def test_keys_of_a_model_are_refused_without_one() -> None:
    with pytest.raises(ValidationError, match=r"pooling, prefix: only with model"):
        TextSettings(field="/t", prefix="query: ", pooling="mean")


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers"])
def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    path = model(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"pip install 'driftd\[text\]'"):
        build(path)


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an embedder opened a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert build(path).embed([["my card"]]).problems == []


def test_weights_in_a_file_beside_the_model_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    library: Any = pytest.importorskip("onnx")
    path = model(tmp_path)
    whole = build(path).embed([["my card"]]).vectors
    inside = build(path, output="normed").embed([["my card"]]).vectors
    library.save_model(
        library.load(str(path)), str(path), save_as_external_data=True, location="model.onnx_data", size_threshold=100
    )
    first = build(path).fingerprint()
    assert build(path).embed([["my card"]]).vectors.tobytes() == whole.tobytes()
    assert build(path, output="normed").embed([["my card"]]).vectors.tobytes() == inside.tobytes()
    weights = bytearray((tmp_path / "model.onnx_data").read_bytes())
    weights[3] ^= 0x40
    (tmp_path / "model.onnx_data").write_bytes(weights)
    os.utime(path, ns=(1, 1))
    assert build(path).fingerprint() != first
