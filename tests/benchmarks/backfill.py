"""How fast history is scored: against live scoring, and by two processes of Dask against one. Files as the source.

The same records and the same model in every run: 384-dimensional vectors as base64 in JSON lines, two segment fields, a
share of outliers, four files that lie beside each other in time; SQLite. Each way is a process of its own, they take
turns, and the median of the rounds counts:

* live: `monitor.worker.Worker`, as `driftd run` drives it, until the files are read and the last block is closed.
* backfill: `monitor.history.HistoryWorker`, as `driftd backfill` drives it.
* dask: the same with `--dask 2`: this process cuts, writes and folds on the two cores on which two others score.

Rates count from when references are loaded and the source is opened; with Dask from when the processes are there, so
that their loading of references and of libraries counts. `whole_ratio` counts the start of the processes as well.
CPU seconds are of the kernel's books: of the process itself, and of its children. They say what limits where the
machine is not quiet: `cpu_bound_ratio` is what two cores with nothing else to do would give at most,
2 * (CPU seconds of backfill) / (CPU seconds of dask in all its processes).

    python tests/benchmarks/backfill.py [RECORDS] [ROUNDS]
"""

from __future__ import annotations

import base64
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
os.environ.update(ONE_THREAD)

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from monitor.app import build_history, build_workers, open_store
from monitor.backfill import job_of, local_runner, run_job
from monitor.backfill_plan import begin, plan_backfill
from monitor.references import from_source
from monitor.settings import Settings, load_settings

MODEL = "texts"
D = 384
FILES = 4
POOL = 20_000
BASELINE = 20_000
RATE = 1_000  # records a second of event time
START_MS = 1_772_438_400_000
NOW_MS = 1_800_000_000_000


def write_records(folder: Path, first: int, after: int) -> None:
    """Unit vectors around 40 centres, as an encoder of texts makes them; one in a thousand from elsewhere."""
    chance = np.random.default_rng(7)
    centres = chance.normal(size=(40, D))
    topic = chance.integers(0, 40, POOL)
    vectors = centres[topic] + chance.normal(size=(POOL, D))
    vectors[::1000] = 3 * chance.normal(size=(len(vectors[::1000]), D))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = [base64.b64encode(row.tobytes()).decode() for row in vectors.astype("<f4")]
    folder.mkdir()
    files = [(folder / f"{number}.jsonl").open("w") for number in range(FILES)]
    for number in range(first, after):
        place = (number * 7919) % POOL
        line = (
            f'{{"id":"r{number}","ts":{START_MS + number * 1000 // RATE},"v":"{texts[place]}",'
            f'"country":"c{number % 8}","topic":"t{topic[place] % 10}"}}\n'
        )
        files[number % FILES].write(line)
    for file in files:
        file.close()


def settings_file(folder: Path, records: Path, database: Path) -> Path:
    content = {
        "database": f"sqlite:///{database}",
        "references": str(folder / "references"),
        "models": {
            MODEL: {
                "source": {"kind": "files", "path": str(records)},
                "record": {
                    "id": "/id",
                    "time": {"path": "/ts", "unit": "ms"},
                    "segments": {"country": "/country", "topic": "/topic"},
                },
                "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "base64"}}},
                "reference": {"collect": BASELINE},
                "drift": {"season": "none"},
            }
        },
        "sinks": {},
    }
    path = database.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(content))
    return path


def live(settings: Settings) -> dict[str, float]:
    with open_store(settings) as store:
        (worker,) = build_workers(settings, store)
        worker.start()
        steps: list[float] = []
        began = time.perf_counter()
        finished = False
        while not finished:
            now = time.monotonic()
            finished = worker.step(int(time.time() * 1000), now).finished
            steps.append(time.monotonic() - now)
        worker.close_blocks_at_end(NOW_MS)
        seconds = time.perf_counter() - began
        records = sum(state.records for state in store.partition_states(MODEL))
        worker.source.close()
        worker.close()
    return {"records": records, "seconds": seconds, "p99_step_ms": float(np.quantile(steps, 0.99)) * 1000}


def history(settings: Settings, processes: int) -> dict[str, float]:
    with open_store(settings) as store:
        source = build_history(MODEL, settings.models[MODEL])
        plan = plan_backfill(settings, MODEL, store, source, from_ms=None, to_ms=None, now_ms=NOW_MS)
        begin(plan, store)
        job = job_of(plan.rows[0], settings, store)
        steps: list[float] = []
        last = time.monotonic()

        def look(_: object) -> None:
            nonlocal last
            now = time.monotonic()
            steps.append(now - last)
            last = now

        if not processes:
            runner = local_runner(job, settings, store, source)
            began = time.perf_counter()
            last = time.monotonic()
            run_job(job, runner, store, stopping=threading.Event(), progress=look)
            return {
                "records": runner.found.records,
                "seconds": time.perf_counter() - began,
                "p99_step_ms": float(np.quantile(steps, 0.99)) * 1000,
            }
        from monitor.distributed import distributed_runner

        whole = time.perf_counter()
        with distributed_runner(job, settings, store, source, cluster=str(processes)) as remote:
            began, began_cpu = time.perf_counter(), time.process_time()
            run_job(job, remote, store, stopping=threading.Event(), progress=look)
            seconds, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
        return {
            "records": remote.found.records,
            "seconds": seconds,
            "whole_seconds": time.perf_counter() - whole,
            "pieces": remote.pieces,
            "again": remote.again,
            "piece_cpu_s": remote.worker_cpu_s,
            "client_cpu_s": cpu_s,
        }


def one_run(way: str, file: Path) -> None:
    """In a process of its own."""
    settings = load_settings(file)
    found = live(settings) if way == "live" else history(settings, 2 if way == "dask" else 0)
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    found["cpu_s"] = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    found["peak_mb"] = own.ru_maxrss / 1024
    found["worker_peak_mb"] = children.ru_maxrss / 1024
    print(json.dumps(found))


def measured(way: str, folder: Path, number: int) -> dict[str, float]:
    database = folder / f"{way}-{number}.db"
    database.write_bytes((folder / "baseline.db").read_bytes())
    file = settings_file(folder, folder / "records", database)
    command = [sys.executable, __file__, way, str(file)]
    done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    database.unlink()
    return found


def main(records: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_records(folder / "baseline", -BASELINE, 0)
        write_records(folder / "records", 0, records)
        settings = load_settings(settings_file(folder, folder / "baseline", folder / "baseline.db"))
        from_source(settings, MODEL, start_ms=None, end_ms=None, progress=lambda step, share: None)
        ways = ("live", "backfill", "dask")
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for number in range(rounds):
            for way in ways:
                found[way].append(measured(way, folder, number))
                assert found[way][-1]["records"] == records, (way, found[way][-1])

    def middle(way: str, name: str) -> float:
        return median(one[name] for one in found[way])

    def rate(way: str, seconds: str = "seconds") -> float:
        return records / middle(way, seconds)

    result: dict[str, Any] = {
        "benchmark": "backfill",
        "value": round(rate("backfill")),
        "unit": "records/s",
        "ratio": round(rate("backfill") / rate("live"), 3),
        "against": "live scoring by one process, of the same records",
        "cpu_ratio": round(middle("live", "cpu_s") / middle("backfill", "cpu_s"), 3),
        "dask_ratio": round(rate("dask") / rate("backfill"), 3),
        "dask_whole_ratio": round(rate("dask", "whole_seconds") / rate("backfill"), 3),
        "dask_cpu_bound_ratio": round(2 * middle("backfill", "cpu_s") / middle("dask", "cpu_s"), 3),
        "rates": {way: round(rate(way)) for way in ways},
        "cpu_us_per_record": {way: round(middle(way, "cpu_s") / records * 1e6, 1) for way in ways},
        "dask_us_per_record": {
            name: round(middle("dask", name) / records * 1e6, 1) for name in ("client_cpu_s", "piece_cpu_s")
        },
        "p99_step_ms": {way: round(middle(way, "p99_step_ms"), 1) for way in ("live", "backfill")},
        "peak_mb": {way: round(middle(way, "peak_mb")) for way in ways}
        | {"dask worker": round(middle("dask", "worker_peak_mb"))},
        "pieces": middle("dask", "pieces"),
        "again": middle("dask", "again"),
        "records": records,
        "rounds": rounds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] in ("live", "backfill", "dask"):
        one_run(sys.argv[1], Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 300_000, int(sys.argv[2]) if len(sys.argv) > 2 else 3)
