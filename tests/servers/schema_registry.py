"""A small real schema registry: the paths that driftd asks for, on a free port of this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Registry:
    """What the server answers with, and what it was asked.

    Attributes:
        answers: JSON documents by path; all other paths are unknown.
        asked: paths, in the order in which they came.
        login: name and password that are needed; None: none.
        broken: bytes that are sent in place of an answer; None: it works.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"/subjects": []}
        self.asked: list[str] = []
        self.login: tuple[str, str] | None = None
        self.broken: bytes | None = None
        self.url = ""

    def add(self, number: int, schema: Any, **more: Any) -> None:
        """Register a schema under a number."""
        self.answers[f"/schemas/ids/{number}"] = {"schema": json.dumps(schema), **more}


@contextmanager
def registry(port: int = 0) -> Iterator[Registry]:
    """Start one, on a port of its own unless one is given."""
    state = Registry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            if state.broken is not None:
                self.wfile.write(state.broken)
                self.close_connection = True
                return
            code, answer = 200, state.answers.get(self.path)
            if state.login is not None:
                expected = "Basic " + base64.b64encode(":".join(state.login).encode()).decode()
                if self.headers.get("Authorization") != expected:
                    code, answer = 401, {"error_code": 40101}
            if answer is None:
                code, answer = 404, {"error_code": 40403}
            body = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the library's
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
