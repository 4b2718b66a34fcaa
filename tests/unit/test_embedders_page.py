"""docs/embedders.md: each of its settings examples is read, built on small files that are made here, and embeds.

A kind joins with its section: pointers of its examples that are not in `VALUES` yet, and files that are not in `FILES`.
"""

from __future__ import annotations

import base64
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from monitor.embedders import EmbedderSettings
from tests.servers.embeddings import EmbeddingServer

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "embedders.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
ROWS = 80

# What stands at the pointers of the page's examples, in row i of a baseline.
VALUES: dict[str, Callable[[int], Any]] = {
    "/embedding": lambda i: np.random.default_rng(i).normal(size=8).tolist(),
    "/logits": lambda i: base64.b64encode(np.random.default_rng(i).normal(size=10).astype("<f4").tobytes()).decode(),
    "/input/text": lambda i: ["my card was refused", "where is my parcel", "refund, please"][i % 3],
    "/pixels": lambda i: base64.b64encode(np.random.default_rng(i).bytes(64)).decode(),
    "/amount": lambda i: 10.0 + i,
    "/age": lambda i: 20 + i % 50,
    "/country": lambda i: ["NO", "SE", "FI"][i % 3],
    "/channel": lambda i: ["web", "app"][i % 2],
    "/output/score": lambda i: (i % 97) / 97,
    "/took_ms": lambda i: None if i % 7 == 0 else 40 + i,
    "/output/label": lambda i: ["refund", "delivery", "other"][i % 3],
}
# The files that the page's examples name, each made by a function that is given where.
FILES: dict[str, Callable[[Path], None]] = {
    "my_encoder.py": lambda path: _write(
        path, re.findall(r"```python\n# my_encoder.py\n(.*?)```", DOCUMENT, re.DOTALL)[0]
    ),
}


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
