"""A small real HTTP server that embeds texts (Open Inference Protocol V2, OpenAI), with faults to order."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np

from tests.servers.receiver import Answer

MODEL = "minilm"


def vector_of(text: str, dimension: int) -> list[float]:
    """What the server makes of a text: the sum of a vector for each of its words, so that texts alike are near."""
    total = np.zeros(dimension)
    for word in text.lower().split():
        seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        total += np.random.default_rng(seed).normal(size=dimension)
    return [float(number) for number in total.astype(np.float32)]


@dataclass(frozen=True)
class Asked:
    """One request: its path, its headers, and the texts that it held."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    texts: list[str]


@dataclass
class EmbeddingServer:
    """``with EmbeddingServer() as server``: embeds; attributes may be changed while it runs.

    Attributes:
        dimension: of its vectors.
        token: what it wants to see; "" for nothing.
        refused: words, with the status that a request gets in which one of them stands.
        backwards: OpenAI's data comes in another order, each with its index.
        faults: answered first, one a request, in turn.
        asked: requests, oldest first.
    """

    dimension: int = 6
    token: str = ""
    refused: dict[str, int] = field(default_factory=dict)
    special: dict[str, list[float | None]] = field(default_factory=dict)
    backwards: bool = False
    faults: deque[Answer] = field(default_factory=deque)
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # headers and body in one packet

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                try:
                    self._answer(server._take(self.path, dict(self.headers.items()), body))
                except OSError:
                    self.close_connection = True  # the client did not wait for all of it

            def _answer(self, answer: Answer) -> None:
                if answer.hang:
                    server._closing.wait(30)
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in answer.headers:
                    self.send_header("Content-Length", str(len(answer.body)))
                else:
                    self.close_connection = True  # it promises more than it sends
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:
                pass  # a client that leaves early

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def texts(self) -> list[str]:
        """Every text that it was asked about, in order."""
        return [text for one in self.asked for text in one.texts]

    def __enter__(self) -> EmbeddingServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _take(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Answer:
        v2 = path.startswith("/v2/")
        texts = list(body["inputs"][0]["data"] if v2 else body["input"])
        self.asked.append(Asked(path, headers, body, texts))
        if self.token and headers.get("Authorization") != f"Bearer {self.token}":
            return Answer(401, body=b'{"error": "who are you?"}')
        if self.faults:
            return self.faults.popleft()
        if path not in (f"/v2/models/{MODEL}/infer", f"/v2/models/{MODEL}/versions/2/infer", "/v1/embeddings"):
            return Answer(404)
        for word, status in self.refused.items():
            if any(word in text for text in texts):
                return Answer(status, body=json.dumps({"error": f"I do not like {texts}"}).encode())
        vectors = [self.special.get(text, vector_of(text, self.dimension)) for text in texts]
        answer = self._v2(body, vectors) if v2 else self._openai(body, vectors)
        return Answer(200, body=json.dumps(answer).encode())

    def _v2(self, body: dict[str, Any], vectors: Sequence[list[float | None]]) -> dict[str, Any]:
        flat = [number for vector in vectors for number in vector]
        name = body.get("outputs", [{"name": "embedding"}])[0]["name"]
        shape = [len(vectors), self.dimension]
        return {"model_name": MODEL, "outputs": [{"name": name, "datatype": "FP32", "shape": shape, "data": flat}]}

    def _openai(self, body: dict[str, Any], vectors: Sequence[list[float | None]]) -> dict[str, Any]:
        data: list[dict[str, Any]] = []
        for index, vector in enumerate(vectors):
            shown: object = vector[: body.get("dimensions", self.dimension)]
            if body["encoding_format"] == "base64":
                shown = base64.b64encode(np.array(shown, dtype="<f4").tobytes()).decode()
            data.append({"object": "embedding", "index": index, "embedding": shown})
        return {"object": "list", "model": body["model"], "data": data[::-1] if self.backwards else data}
