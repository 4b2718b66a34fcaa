"""docs/embedders.md: each of its settings examples is read, built on small files that are made here, and embeds.

A kind joins with its section: pointers of its examples that are not in `VALUES` yet, and files that are not in `FILES`.
"""

from __future__ import annotations

import base64
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from monitor.embedders import EmbedderSettings
from tests import small_models, vector_files
from tests.servers.embeddings import EmbeddingServer

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "embedders.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
ROWS = 80

# What stands at the pointers of the page's examples, in row i of a baseline.
VALUES: dict[str, Callable[[int], Any]] = {
    "/embedding": lambda i: np.random.default_rng(i).normal(size=8).tolist(),
    "/logits": lambda i: base64.b64encode(np.random.default_rng(i).normal(size=10).astype("<f4").tobytes()).decode(),
    "/input/text": lambda i: ["my card was refused", "where is my parcel", "refund, please"][i % 3],
    "/caption": lambda i: ["help me", "where is the till", "my parcel now"][i % 3],
    "/photo": lambda i: base64.b64encode(_picture(i)).decode(),
    "/photo_file": lambda i: f"{i % 3}.ppm",
    "/pixels": lambda i: base64.b64encode(np.random.default_rng(i).bytes(64)).decode(),
    "/amount": lambda i: 10.0 + i,
    "/age": lambda i: 20 + i % 50,
    "/country": lambda i: ["NO", "SE", "FI"][i % 3],
    "/channel": lambda i: ["web", "app"][i % 2],
    "/output/score": lambda i: (i % 97) / 97,
    "/took_ms": lambda i: None if i % 7 == 0 else 40 + i,
    "/sql": lambda i: f"SELECT {i % 7} FROM orders WHERE id = {i}",
    "/items": lambda i: [f"item-{i % 12}", "item-3"],
    "/clicked_vectors": lambda i: np.random.default_rng(i).normal(size=(1 + i % 3, 8)).tolist(),
    "/user/id": lambda i: i % 7,
    "/item/id": lambda i: f"item-{i % 12}",
    "/answer": lambda i: ["your card is now", "the parcel is at the till"][i % 2],
    "/payer": lambda i: f"payer {i % 9}",
    "/payee": lambda i: i * i % 7,
    "/title": lambda i: ["my card", "where is my parcel", "help"][i % 3],
    "/body": lambda i: ["please help me now", "the card was refused at the till"][i % 2],
    "/output/label": lambda i: ["refund", "delivery", "other"][i % 3],
}
# The files that the page's examples name, each made by a function that is given where.
FILES: dict[str, Callable[[Path], object]] = {
    "models/all-MiniLM-L6-v2/model.onnx": lambda path: small_models.text_model(
        path, inside="/encoder/layer.3/output/LayerNorm/LayerNormalization_output_0"
    ),
    "models/e5-small/model.onnx": lambda path: small_models.text_model(path),
    "models/clip-text/model.onnx": lambda path: small_models.text_model(path, outputs=["sentence_embedding"]),
    **{
        f"models/{name}/tokenizer.json": lambda path: small_models.tokenizer(path, most=32)
        for name in ("all-MiniLM-L6-v2", "e5-small", "clip-text")
    },
    "models/mobilenetv2.onnx": lambda path: small_models.image_model(path),
    "models/clip-vision.onnx": lambda path: small_models.image_model(path),
    "models/vgg16.onnx": lambda path: small_models.image_model(path, inside="vgg0_dense1_relu0_fwd"),
    **{f"images/{number}.ppm": lambda path: path.write_bytes(_picture(int(path.stem))) for number in range(3)},
    "my_encoder.py": lambda path: _write(
        path, re.findall(r"```python\n# my_encoder.py\n(.*?)```", DOCUMENT, re.DOTALL)[0]
    ),
    "models/glove.6B.50d.txt": lambda path: _write_vectors(path, vector_files.glove, vector_files.WORDS),
    "models/items.npy": lambda path: _write_vectors(path, vector_files.npy, vector_files.ITEMS),
    "models/users.npy": lambda path: _write_vectors(path, vector_files.npy, [str(number) for number in range(7)]),
}


def _write_vectors(
    path: Path, form: Callable[[Path, Sequence[str], vector_files.Floats], None], names: Sequence[str]
) -> None:
    form(path, names, vector_files.vectors_of(names))


def _picture(number: int) -> bytes:
    """An image of 18 x 22 pixels, as PPM."""
    return b"P6 22 18 255\n" + np.random.default_rng(number).bytes(18 * 22 * 3)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def examples() -> Iterator[tuple[str, dict[str, Any]]]:
    for block in BLOCKS:
        for name, space in yaml.safe_load(block).get("spaces", {}).items():
            yield name, space["embedder"]


def kinds() -> set[str]:
    union, *_ = typing.get_args(EmbedderSettings)
    return {model.model_fields["kind"].default for model in typing.get_args(union)}


def test_every_kind_has_an_example_and_a_row_of_the_table() -> None:
    assert {embedder["kind"] for _, embedder in examples()} == kinds()
    assert set(re.findall(r"^\| \[`(\w+)`", DOCUMENT, re.MULTILINE)) == kinds()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for name, make in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make(folder / name)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddingServer]:
    with EmbeddingServer() as server:
        yield server


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings, id=f"{settings['kind']}-{number}-{name}")
        for number, (name, settings) in enumerate(examples())
    ],
)
def test_the_example_embeds(
    settings: dict[str, Any], folder: Path, server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    if "url" in settings:
        settings = settings | {"url": re.sub(r"http://localhost:\d+", server.url, settings["url"])}
    parsed: Any = TypeAdapter(EmbedderSettings).validate_python(settings)
    embedder = parsed.build()
    columns = [[VALUES[field](row) for row in range(ROWS)] for field in embedder.fields]
    embedder.fit(columns)
    embedded = embedder.embed([column[:7] for column in columns])
    assert embedded.problems == []
    assert embedded.vectors.shape[0] == 7 and embedded.vectors.shape[1] >= 1
    assert np.isfinite(embedded.vectors).all() and embedded.vectors.any(axis=1).all()
