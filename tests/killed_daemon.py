"""`driftd run` that ends by SIGKILL at a given moment of its scores' way, as a real process.

The moments are written METHOD:WHEN, such as "ParquetScores.write:before". The process dies the ``nth`` time that it
comes there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

KILLED = """
import os, pathlib, signal, sys
from connectors.database.store import Store
from connectors.kafka_scores import KafkaScores
from connectors.parquet_scores import ParquetScores
moment, nth = sys.argv[1], int(sys.argv[2])
name, when = moment.split(":")
owner, method = name.split(".")
owner = {"Store": Store, "KafkaScores": KafkaScores, "ParquetScores": ParquetScores, "Path": pathlib.Path}[owner]
original, times = getattr(owner, method), 0
def dying(self, *arguments, **named):
    global times
    if owner is pathlib.Path and "_pending" not in str(self):
        return original(self, *arguments, **named)
    times += 1
    if when == "before" and times == nth:
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(self, *arguments, **named)
    if when == "after" and times == nth:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, method, dying)
from monitor.cli import main
sys.argv = ["driftd", "run", "-s", "driftd.yaml"]
main()
"""


def run_until_killed(folder: Path, moment: str, nth: int) -> int:
    """Run it with the settings in ``folder``; its exit code, -9 where it was killed."""
    command = [sys.executable, "-c", KILLED, moment, str(nth)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": ""}
    with (folder / "killed.log").open("ab") as log:
        return subprocess.run(
            command, cwd=folder, env=environment, stdout=log, stderr=log, timeout=90, check=False
        ).returncode
