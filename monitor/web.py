"""HTTP: /metrics, /livez, /readyz and a status page, served by a thread of its own.

* /livez answers 503 when a model's last poll came back too long ago: the process hangs, start it anew.
* /readyz answers 503 while something does not work, with a JSON list of what was looked at; a restart will not help.
* POST /labels takes labels in, and POST /truths true answers: monitor/label_requests.py.
* / is the same for people, in one page without scripts or anything from elsewhere; /status the same as JSON.

The daemon writes into a `Status`, the server reads from it; they share nothing else.
"""

from __future__ import annotations

import dataclasses
import html
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from string import Template
from typing import TYPE_CHECKING, Any, Protocol

from detectors.errors import DriftdError
from monitor.label_requests import LABELS, MAX_BODY, TRUTHS, TakesLabels, too_large

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import Response

STOP_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What is to know about one model now.

    Attributes:
        state: in words, such as "running" or "collecting baseline: 12,000 of 50,000 records".
        ready: it does what it should.
        records, dead_letters: since the process started.
        lag: records not read yet; None if unknown.
        open_incidents: pages and warnings that are open.
        muted_incidents: of them, those that a mute covers.
        watermark_ms: event time that was reached, milliseconds since 1970; None before the first record.
        reference: numbers of the references, such as "input 1, output 1"; "" before there is one.
        finished: its source was read to its end, so that no more polls are expected.
        blind: what is said of it cannot be relied on; ``state`` says why.
    """

    name: str
    state: str = "starting"
    ready: bool = False
    records: int = 0
    dead_letters: int = 0
    lag: int | None = None
    open_incidents: int = 0
    muted_incidents: int = 0
    watermark_ms: int | None = None
    reference: str = ""
    finished: bool = False
    blind: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. ``detail`` says what was found, in words for a person."""

    name: str
    ok: bool
    detail: str


class Shown(Protocol):
    """What the server asks, from several threads at once: a `Status`, or what several processes say together."""

    def models(self) -> Sequence[ModelStatus]:
        """All models, as they are now."""

    def readiness(self) -> Sequence[Check]:
        """Everything that must work; never empty."""

    def liveness(self) -> Check:
        """Whether a new start is not needed."""


class Exposition(Protocol):
    """Metrics to be served."""

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics as text, and its content type, for a client that sends this Accept header."""


class Status:
    """What the daemon is doing, for the HTTP server. Safe to use from several threads.

        status.model("triage", state="collecting baseline: 12,000 of 50,000 records", ready=False)
        status.polled("triage")
        status.model("triage", state="running", ready=True, records=512, lag=3)
        status.check("database", ok=False, detail="locked by another process")

    Args:
        clock: monotonic seconds.
        live_within_s: a model whose last poll came back longer ago than this is not alive. Polls return within a
            second; building a reference takes up to a minute, in which there are none.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, live_within_s: float = 180.0) -> None:
        self._clock = clock
        self._live_within_s = live_within_s
        self._lock = threading.Lock()
        self._models: dict[str, ModelStatus] = {}
        self._polled: dict[str, float] = {}
        self._checks: dict[str, Check] = {}

    def model(self, name: str, **changes: Any) -> None:
        """Change what is known of a model: any fields of `ModelStatus`. The first call makes it known."""
        with self._lock:
            self._polled.setdefault(name, self._clock())
            self._models[name] = dataclasses.replace(self._models.get(name, ModelStatus(name)), **changes)

    def polled(self, name: str) -> None:
        """A poll of the model's source came back, with or without records."""
        with self._lock:
            self._polled[name] = self._clock()

    def check(self, name: str, *, ok: bool, detail: str) -> None:
        """The result of looking at something that all models share, such as "database"."""
        with self._lock:
            self._checks[name] = Check(name, ok, detail)

    def models(self) -> list[ModelStatus]:
        """All models, as they are now."""
        with self._lock:
            return list(self._models.values())

    def readiness(self) -> list[Check]:
        """Everything that must work, models last. Never empty: before there is anything, one check says "starting"."""
        with self._lock:
            models = [Check(f"model {model.name}", model.ready, model.state) for model in self._models.values()]
            found = [*self._checks.values(), *models]
        return found or [Check("start", False, "starting")]

    def liveness(self) -> Check:
        """Whether all models poll."""
        now = self._clock()
        with self._lock:
            ages = {name: now - polled for name, polled in self._polled.items() if not self._models_finished(name)}
        if not ages:
            return Check("polls", True, "no model polls yet")
        name = max(ages, key=lambda model: ages[model])
        detail = f"the last poll of {name} came back {ages[name]:.1f} s ago"
        return Check("polls", ages[name] <= self._live_within_s, f"{detail} (limit {self._live_within_s:g} s)")

    def _models_finished(self, name: str) -> bool:
        return name in self._models and self._models[name].finished


class WebServer:
    """Serves a `Status`, or whatever can be shown like one, and the metrics.

    Args:
        host, port: where to listen; port 0 takes a free one, which ``port`` tells after `start`.
        labels, truths: who answers POST /labels and POST /truths; nobody by default.
    """

    def __init__(
        self,
        status: Shown,
        metrics: Exposition,
        *,
        host: str = "127.0.0.1",
        port: int = 9464,
        labels: TakesLabels | None = None,
        truths: TakesLabels | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self._status = status
        self._metrics = metrics
        self._takes = {path: takes for path, takes in ((LABELS, labels), (TRUTHS, truths)) if takes is not None}
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The address of the status page."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def start(self) -> None:
        """Listen, and return once requests are answered.

        Raises:
            DriftdError: the address cannot be taken.
        """
        import uvicorn

        listener = self._listen()
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app(),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=100,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="driftd-http", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise DriftdError(f"The HTTP server on {self.url} did not start.", hint="Look at the log above.")
            self._thread.join(0.005)

    def stop(self) -> None:
        """Finish the requests that are being answered and leave, within 2 seconds."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(STOP_WITHIN_S * 0.75)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(STOP_WITHIN_S * 0.25)
        self._server = self._thread = None

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            listener.listen(128)
        except OSError as error:
            listener.close()
            unknown = isinstance(error, socket.gaierror)
            problem = "its host is unknown" if unknown else (error.strerror or type(error).__name__).lower()
            raise DriftdError(
                f"The HTTP server cannot listen on {self.host}:{self.port}: {problem}.",
                hint="Set http.bind: 127.0.0.1:9464" if unknown else _BIND_HINT,
            ) from error
        return listener

    def _app(self) -> Any:
        from starlette.applications import Starlette
        from starlette.responses import Response
        from starlette.routing import Route

        status, metrics = self._status, self._metrics

        # Plain functions run in threads, so that one that waits for another process delays no other request.
        def show_metrics(request: Request) -> Response:
            body, content_type = metrics.exposition(request.headers.get("accept", ""))
            return Response(body, headers={"content-type": content_type})

        def livez(request: Request) -> Response:
            check = status.liveness()
            text = f"{'ok' if check.ok else 'not alive'}: {check.detail}\n"
            return Response(text, 200 if check.ok else 503, headers={**_NO_STORE, "content-type": "text/plain"})

        def readyz(request: Request) -> Response:
            checks = status.readiness()
            ready = all(check.ok for check in checks)
            body = {"ready": ready, "checks": [dataclasses.asdict(check) for check in checks]}
            return _json(body, 200 if ready else 503)

        def everything(request: Request) -> Response:
            body = {
                "live": dataclasses.asdict(status.liveness()),
                "checks": [dataclasses.asdict(check) for check in status.readiness()],
                "models": [dataclasses.asdict(model) for model in status.models()],
            }
            return _json(body, 200)

        def page(request: Request) -> Response:
            text = status_page(status.readiness(), status.models(), status.liveness())
            return Response(text, headers={**_NO_STORE, **_PAGE_HEADERS, "content-type": "text/html; charset=utf-8"})

        def _json(body: Any, code: int) -> Response:
            headers = {**_NO_STORE, "content-type": "application/json"}
            return Response(json.dumps(body, indent=2) + "\n", code, headers=headers)

        routes = {"/": page, "/metrics": show_metrics, "/livez": livez, "/readyz": readyz, "/status": everything}
        shown = [Route(path, endpoint) for path, endpoint in routes.items()]
        return Starlette(routes=[*shown, *(_taking_route(path, takes) for path, takes in self._takes.items())])


def _taking_route(path: str, takes: TakesLabels) -> Any:
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect
    from starlette.responses import Response
    from starlette.routing import Route

    async def take(request: Request) -> Response:
        authorization = request.headers.get("authorization", "")
        # Before the body is read: a stranger's is not worth its memory.
        answer = await run_in_threadpool(takes.allowed, authorization)
        if answer is None:
            body = bytearray()
            try:
                async for part in request.stream():
                    body += part
                    if len(body) > MAX_BODY:
                        break
            except ClientDisconnect:
                return Response(status_code=400)
            if len(body) > MAX_BODY:
                answer = too_large()
            else:
                model = request.query_params.get("model", "")
                answer = await run_in_threadpool(takes.answer, model, bytes(body), authorization)
        headers = {**_NO_STORE, **answer.headers, "content-type": "application/json"}
        return Response(json.dumps(answer.body) + "\n", answer.code, headers=headers)

    return Route(path, take, methods=["POST"])


def status_page(checks: Sequence[Check], models: Sequence[ModelStatus], liveness: Check) -> str:
    """The page at /, as HTML that needs nothing else."""
    ready = all(check.ok for check in checks) and liveness.ok
    rows = "".join(_row(model) for model in models) or '<tr><td colspan="8">no model yet</td></tr>'
    items = "".join(
        f'<li><span class="{"ok" if check.ok else "bad"}">{"ok" if check.ok else "not ok"}</span> '
        f"<b>{_text(check.name)}</b> {_text(check.detail)}</li>"
        for check in sorted([liveness, *checks], key=lambda check: check.ok)  # what fails comes first
    )
    return _PAGE.substitute(
        verdict="ready" if ready else "not ready", mark="ok" if ready else "bad", rows=rows, checks=items
    )


def _row(model: ModelStatus) -> str:
    good = model.ready and not model.blind
    state, semicolon, cautions = model.state.partition(";") if good else (model.state, "", "")
    opened = f"{model.open_incidents}, {model.muted_incidents} muted" if model.muted_incidents else model.open_incidents
    cells = [
        (f"<b>{_text(model.name)}</b>", "Model"),
        (f'<span class="{"ok" if good else "bad"}">{_text(state)}</span>{semicolon}{_text(cautions)}', "State"),
        (f"{model.records:,}", "Records"),
        (f"{model.dead_letters:,}", "Dead letters"),
        ("?" if model.lag is None else f"{model.lag:,}", "Lag"),
        (_text(_moment(model.watermark_ms)), "Event time"),
        (_text(model.reference or "none yet"), "Reference"),
        (f'<span class="{"bad" if model.open_incidents else "ok"}">{opened}</span>', "Open incidents"),
    ]
    return "<tr>" + "".join(f'<td data-label="{label}">{cell}</td>' for cell, label in cells) + "</tr>"


def _moment(time_ms: int | None) -> str:
    if time_ms is None:
        return "none yet"
    try:
        return f"{datetime.fromtimestamp(time_ms // 1000, UTC):%Y-%m-%d %H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return f"{time_ms} ms"


def _text(value: str) -> str:
    return html.escape(value.encode("utf-8", "replace").decode())


_BIND_HINT = "Stop what listens there, or set another address: http.bind: 127.0.0.1:9465 (port 0 takes a free one)"
_NO_STORE = {"cache-control": "no-store"}
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="refresh" content="10">
<title>driftd: ${verdict}</title>
<style>
:root { --ink: #1c2127; --paper: #ffffff; --soft: #5c6670; --line: #d9dee3; --ok: #1a6b36; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --paper: #14181c; --soft: #9aa5b0; --line: #333b43; --ok: #6fce8f; --bad: #ff8a80; }
}
body { margin: 2rem auto; padding: 0 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .45rem .75rem .45rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; font-size: .85rem; }
ul { list-style: none; padding: 0; margin: 0; }
li { padding: .25rem 0; overflow-wrap: anywhere; }
td { white-space: nowrap; }
td:nth-child(2), td:nth-child(7) { white-space: normal; overflow-wrap: break-word; }
nav a { margin-right: 1rem; }
a { color: inherit; }
.ok { color: var(--ok); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
@media (max-width: 44rem) {
  thead { display: none; }
  tr { display: block; border-bottom: 1px solid var(--line); padding: .5rem 0; }
  td { display: flex; white-space: normal; gap: 1rem; border: 0; padding: .1rem 0; }
  td::before { content: attr(data-label); color: var(--soft); flex: 0 0 8rem; }
}
</style>
</head>
<body>
<h1>driftd is <span class="$mark">${verdict}</span></h1>
<table>
<thead><tr><th>Model</th><th>State</th><th>Records</th><th>Dead letters</th><th>Lag</th><th>Event time</th>
<th>Reference</th><th>Open incidents</th></tr></thead>
<tbody>${rows}</tbody>
</table>
<h2>Checks</h2>
<ul>${checks}</ul>
<h2>For machines</h2>
<nav><a href="/metrics">/metrics</a><a href="/readyz">/readyz</a><a href="/livez">/livez</a>
<a href="/status">/status</a></nav>
</body>
</html>
""")
