"""Small encoders in ONNX with their tokenizer, made here: as exporters make large ones, with a few hundred weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

helper = pytest.importorskip(
    "onnx.helper", reason="the package onnx makes the tests' models: pip install 'driftd[dev]'"
)
numpy_helper = pytest.importorskip("onnx.numpy_helper")

FLOAT, UINT8, INT32, INT64, FLOAT16 = 1, 2, 6, 7, 10
WORDS = ["card", "refused", "at", "the", "till", "please", "help", "me", "now", "where", "is", "my", "parcel", "refund"]
VOCABULARY = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
DIMENSION = 12
CHANNELS = 6


class Graph:
    """Nodes and weights of a model that grows."""

    def __init__(self, seed: int = 5) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def weight(self, array: Any) -> str:
        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.array(array), name))
        return name

    def random(self, *shape: int) -> str:
        return self.weight(self._random.normal(size=shape).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.weight(np.array(values, dtype=np.int64))

    def add(self, operator: str, *inputs: str, output: str = "", outputs: int = 1, **attributes: Any) -> str:
        name = output or f"value_{len(self._nodes)}"
        names = [name, *(f"{name}_{more}" for more in range(1, outputs))]
        self._nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return name

    def save(self, path: Path, inputs: dict[str, tuple[int, Sequence[Any]]], outputs: dict[str, Sequence[Any]]) -> Path:
        """Write the model; inputs with their types and shapes, outputs of float32 with theirs."""
        given = [helper.make_tensor_value_info(name, type_, list(shape)) for name, (type_, shape) in inputs.items()]
        made = [helper.make_tensor_value_info(name, FLOAT, list(shape)) for name, shape in outputs.items()]
        graph = helper.make_graph(self._nodes, "small", given, made, self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.SerializeToString())
        return path


def tokenizer(path: Path, *, words: Sequence[str] = WORDS, most: int | None = None) -> Path:
    """A tokenizer.json of whole words, with [CLS] and [SEP] around a text, as BERT has it."""
    library: Any = pytest.importorskip("tokenizers")
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    made = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    around = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    made.post_processor = library.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    if most is not None:
        made.enable_truncation(most)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(str(path))
    return path


def text_model(
    path: Path,
    *,
    outputs: Sequence[str] = ("last_hidden_state",),
    extra_input: str = "",
    positions: int = 64,
    shape: Sequence[Any] = ("rows", "tokens"),
    integers: int = INT64,
    quantised: bool = False,
    joined_rows: bool = False,
    inside: str = "normed",
) -> Path:
    """One layer of BERT: token and position vectors, attention over what the mask allows, a norm, a product.

    Args:
        outputs: of last_hidden_state, pooler_output and sentence_embedding.
        extra_input: one more input, which is added to each token.
        quantised: the last product by dynamic quantisation, one scale for all rows.
        joined_rows: the mean over all rows is taken off, which no file tells.
        inside: name of the normed vectors, which are no output.
    """
    graph = Graph()
    ids = graph.add("Cast", "input_ids", to=INT64)
    x = graph.add("Gather", graph.random(len(VOCABULARY), DIMENSION), ids)
    length = graph.add("Gather", graph.add("Shape", ids), graph.ints(1))
    table = graph.random(positions, DIMENSION)
    x = graph.add("Add", x, graph.add("Slice", table, graph.ints(0), length, graph.ints(0)))
    mask = graph.add("Cast", "attention_mask", to=FLOAT)
    off = graph.add("Sub", graph.weight(np.float32(1)), mask)
    off = graph.add("Unsqueeze", graph.add("Mul", off, graph.weight(np.float32(-1e4))), graph.ints(1))
    if extra_input:
        x = graph.add("Add", x, graph.add("Unsqueeze", graph.add("Cast", extra_input, to=FLOAT), graph.ints(2)))
    keys = graph.add("Transpose", graph.add("MatMul", x, graph.random(DIMENSION, DIMENSION)), perm=[0, 2, 1])
    attention = graph.add("Softmax", graph.add("Add", graph.add("MatMul", x, keys), off), axis=-1)
    x = graph.add("Add", graph.add("MatMul", attention, x), x)
    weight, bias = graph.weight(np.ones(DIMENSION, np.float32)), graph.weight(np.zeros(DIMENSION, np.float32))
    x = graph.add("LayerNormalization", x, weight, bias, axis=-1, output=inside)
    if joined_rows:
        x = graph.add("Sub", x, graph.add("ReduceMean", x, axes=[0], keepdims=1))
    if quantised:
        small = graph.add("DynamicQuantizeLinear", x, outputs=3, output="small")
        table = graph.weight(np.random.default_rng(1).integers(0, 255, (DIMENSION, DIMENSION)).astype(np.uint8))
        product = graph.add("MatMulInteger", small, table, f"{small}_2", graph.weight(np.uint8(128)))
        x = graph.add("Mul", graph.add("Cast", product, to=FLOAT), f"{small}_1", output="last_hidden_state")
    else:
        x = graph.add("MatMul", x, graph.random(DIMENSION, DIMENSION), output="last_hidden_state")
    first = graph.add("Gather", x, graph.weight(np.int64(0)), axis=1)
    graph.add("Tanh", graph.add("MatMul", first, graph.random(DIMENSION, DIMENSION)), output="pooler_output")
    graph.add("MatMul", first, graph.random(DIMENSION, 9), output="sentence_embedding")
    whole = {"last_hidden_state": [*shape, DIMENSION], "pooler_output": [shape[0], DIMENSION]}
    whole["sentence_embedding"] = [shape[0], 9]
    inputs = dict.fromkeys(("input_ids", "attention_mask", *filter(None, [extra_input])), (integers, shape))
    return graph.save(path, inputs, {name: whole[name] for name in outputs})


def image_model(
    path: Path,
    *,
    size: tuple[Any, Any] = (16, 20),
    layout: str = "nchw",
    channels: Any = 3,
    integers: bool = False,
    rows: Any = "rows",
    output: str = "logits",
    joined_rows: bool = False,
    inside: str = "features",
) -> Path:
    """A convolution, its positive part (a map), the mean over the map, a product.

    Args:
        output: logits (2-d), features (the map) or tokens (the map's places as a transformer's tokens).
        inside: name of the map, where it is no output.
    """
    graph = Graph()
    x = graph.add("Cast", "image", to=FLOAT)
    if layout == "nhwc":
        x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    kernel = graph.random(CHANNELS, channels if isinstance(channels, int) else 3, 3, 3)
    x = graph.add("Conv", x, kernel, strides=[2, 2])
    features = graph.add("Relu", x, output=inside)
    if joined_rows:
        features = graph.add("Sub", features, graph.add("ReduceMean", features, axes=[0], keepdims=1))
    tokens = graph.add("Reshape", features, graph.ints(0, CHANNELS, -1))
    graph.add("Transpose", tokens, perm=[0, 2, 1], output="tokens")
    pooled = graph.add("GlobalAveragePool", features, output="pooled")
    flat = graph.add("Reshape", pooled, graph.ints(0, CHANNELS))
    graph.add("MatMul", flat, graph.random(CHANNELS, 9), output="logits")
    shape = [rows, channels, *size] if layout == "nchw" else [rows, *size, channels]
    shapes = {"logits": [rows, 9], "features": [rows, CHANNELS, None, None], "tokens": [rows, None, CHANNELS]}
    return graph.save(path, {"image": (UINT8 if integers else FLOAT, shape)}, {output: shapes[output]})
