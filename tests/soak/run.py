"""The long form of tests/integration/test_exactly_once.py: `make soak`. One JSON line for each scenario.

    python tests/soak/run.py [--records 2000000] [--kills 50] [--servers 5] [--beside 100] [--seed 1]

Every scenario reads the same topic with three workers, and must leave the bytes of one undisturbed worker in every
table, the same notifications at the receiver, and the counts that the labels of the records say. The last one scores
the first half of the topic as history, beside a daemon that reads the second. Exit code 1 where one does not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.servers.kafka import KafkaServer, missing_kafka
from tests.servers.postgres import PostgresServer
from tests.servers.receiver import Receiver
from tests.soak.beside import clean_joint, history_of, run_beside, text_of
from tests.soak.fingerprint import Fingerprint, first_difference
from tests.soak.harness import Content, Deployment, Disturbance, plan, produce

WORKERS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs of workers, with a join or leave for every ten")
    parser.add_argument("--servers", type=int, default=5, help="SIGKILLs of the broker, and as many of the database")
    parser.add_argument("--beside", type=int, default=100, help="SIGKILLs while history is scored beside a daemon")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if reason := missing_kafka():
        _say({"soak": "all", "skipped": reason})
        return 1
    with tempfile.TemporaryDirectory(prefix="driftd-soak-") as place:
        folder = Path(place)
        # Not below the folder: for root the server runs as another user, who may not enter there.
        with tempfile.TemporaryDirectory(prefix="driftd-postgres-") as directory:
            broker, postgres = KafkaServer(folder / "kafka"), PostgresServer(Path(directory))
            try:
                broker.start()
                return _scenarios(folder, broker, postgres, asked)
            finally:
                broker.stop()
                postgres.stop()


def _scenarios(folder: Path, broker: KafkaServer, postgres: PostgresServer, asked: argparse.Namespace) -> int:
    began = time.monotonic()
    content = produce(broker, folder / "topic", records=asked.records, partitions=4, seed=asked.seed)
    _say({"soak": "produce", "records": asked.records, "seconds": round(time.monotonic() - began, 1)})
    quiet = _run(folder / "one-worker", content, postgres, [], workers=1, seed=0)
    tenth = -(-asked.kills // 10)
    shaken = {
        "kills": plan(asked.seed, kill=asked.kills, join=1, leave=tenth, freeze=tenth),
        "servers": plan(asked.seed + 1, broker=asked.servers, database=asked.servers),
    }
    same = [
        _run(folder / name, content, postgres, due, workers=WORKERS, seed=asked.seed, quiet=quiet) is quiet
        for name, due in shaken.items()
    ]
    return 0 if all(same) and beside(folder, content, postgres, kills=asked.beside, seed=asked.seed) else 1


def beside(folder: Path, content: Content, postgres: PostgresServer, *, kills: int, seed: int) -> bool:
    """A backfill and a daemon, most of the kills for the former; whether the bytes are those of one quiet worker.

    Incidents are compared no further than that there are some: what a daemon has told of stays, and it knew no history.
    """
    quiet = Deployment(folder / "quiet", content, database=postgres.new_database(), poll_records=1_000, thins=False)
    quiet.run(workers=1)
    expected = quiet.fingerprint()
    quiet.delete()
    joint_ms = clean_joint(content.records, 0.5)
    both = Deployment(
        folder / "beside", content, database=postgres.new_database(), start=text_of(joint_ms), thins=False
    )
    few = max(1, kills // 50)
    victims = {"backfill": kills - kills // 6 - 2 * few, "daemon": kills // 6, "database": few, "broker": few}
    report = run_beside(both, joint_ms, kills=victims, seed=seed, postgres=postgres)
    found = both.fingerprint()
    wrong = first_difference(history_of(expected, incidents=False), history_of(found, incidents=False))
    wrong = wrong or ("" if found["incidents"] else "no incident")
    _say(
        {
            "soak": "beside",
            "records": len(content.records),
            "disturbed": report.kills,
            "seconds": round(report.seconds, 1),
            "identical": not wrong,
            **({"wrong": wrong} if wrong else {}),
        }
    )
    both.delete()
    return not wrong and sum(report.kills.values()) == kills


Left = tuple[Fingerprint, dict[str, Any]]


def _run(
    folder: Path,
    content: Content,
    postgres: PostgresServer,
    due: list[Disturbance],
    *,
    workers: int,
    seed: int,
    quiet: Left | None = None,
) -> Left | None:
    """One scenario. Returns what it left, or ``quiet`` where that is the same; None where something is wrong."""
    fetch_bytes = 64 << 10 if any(one.action == "broker" for one in due) else 1 << 20
    with Receiver() as receiver:
        deployment = Deployment(
            folder,
            content,
            database=postgres.new_database(),
            receiver=receiver,
            poll_records=1_000,
            fetch_bytes=fetch_bytes,
        )
        began = time.monotonic()
        report = deployment.run(workers=workers, disturbances=due, seed=seed, postgres=postgres)
        seconds = time.monotonic() - began
        left = (deployment.fingerprint(), deployment.told())
        wrong = [f"{check.name}: {check.detail}" for check in deployment.checks() if not check.ok]
        if quiet is not None:
            difference = first_difference(quiet[0], left[0]) or ("" if quiet[1] == left[1] else "what was told")
            wrong += [difference] if difference else []
    _say(
        {
            "soak": folder.name,
            "records": len(content.records),
            "workers": workers,
            "disturbed": report.done,
            "back_after_s": {server: [round(s, 1) for s in took] for server, took in report.recovery_s.items()},
            "seconds": round(seconds, 1),
            "records_per_second": round(len(content.records) / report.seconds),
            "incidents": len(left[1]),
            "identical": not wrong,
            **({"wrong": wrong[:3]} if wrong else {}),
        }
    )
    deployment.delete()
    if wrong:
        return None
    return quiet or left


def _say(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
