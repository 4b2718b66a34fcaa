"""A `driftd run` that hangs: the watchdog ends the real process, and says where it stood."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.watchdog import EXIT_CODE

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys, threading
from pathlib import Path
import connectors.files, monitor.daemon, monitor.watchdog, monitor.worker
from monitor.settings import load_settings

def never_comes_back(*words, **more):
    threading.Event().wait()

where, poll_s, step_s = sys.argv[1:]
monitor.worker.POLL_LIMIT_S, monitor.daemon.STEP_S = float(poll_s), float(step_s)
owner = connectors.files.FilesSource if where in ("poll", "open") else monitor.worker.Worker
setattr(owner, where, never_comes_back)
sys.exit(monitor.daemon.Daemon(load_settings(Path("driftd.yaml"))).run())
"""


@pytest.mark.parametrize(
    ("where", "poll_s", "step_s", "what"),
    [
        ("poll", 2.0, 600, "poll of orders"),
        ("_collect", 60, 3.0, "step of orders"),
        ("open", 60, 3.0, "start"),
    ],
)
def test_a_daemon_that_hangs_exits_with_70_and_its_stacks(
    tmp_path: Path, where: str, poll_s: float, step_s: float, what: str
) -> None:
    (tmp_path / "records.jsonl").write_text('{"v": [1, 2, 3]}\n')
    (tmp_path / "driftd.yaml").write_text(
        'http: {bind: "127.0.0.1:0"}\n'
        "models:\n"
        "  orders:\n"
        "    source: {kind: files, path: records.jsonl}\n"
        "    spaces: {input: {embedder: {kind: vector, field: /v, encoding: list}}}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, where, f"{poll_s}", f"{step_s}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == EXIT_CODE, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "hangs, and ends itself" in line]
    assert f'what="{what}' in line and "never_comes_back" in line
    assert "(most recent call first)" in done.stderr
