"""Takes the place of `driftd run` under a supervisor, and does what the variable ACTS says for its ordinal.

serve: answer as a worker that reads does, until SIGTERM. deaf: the same, but ignore SIGTERM. fails: the same, but end
with 1. stuck: never let another thread run. A number: end with that exit code.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading

from connectors.prometheus import Metrics
from monitor.child import Parent
from monitor.web import Status, WebServer


def main() -> int:
    words = sys.argv[1:]
    ordinal = words[words.index("--ordinal") + 1]
    parent = Parent(int(words[words.index("--parent") + 1]))
    act = json.loads(os.environ["ACTS"])[int(ordinal)]
    if act.isdigit():
        return int(act)
    done = threading.Event()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if act == "deaf" else lambda number, frame: done.set())
    parent.follow()
    status, metrics = Status(), Metrics()
    status.model("orders", state="running", ready=True, lag=0)
    metrics.records.labels("orders").inc(100 + int(ordinal))
    metrics.expected_false_pages.set(0.5)
    web = WebServer(status, metrics, port=0)
    web.start()
    parent.tell(web.port)
    if act == "stuck":
        ctypes.PyDLL(None).pause()
    done.wait()
    web.stop()
    return 1 if act == "fails" else 0


sys.exit(main())
