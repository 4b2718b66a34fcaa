"""`driftd truth`: one true answer, files of them, and the list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from connectors.database.rows import Advance, Checkpoint
from connectors.database.store import Store
from connectors.records import Partition
from detectors.errors import InvalidInput
from monitor.answers import pack
from monitor.cli import app
from monitor.thinning import key_hashes
from monitor.truth_cli import NEVER_RIGHT

P0 = Partition("orders", 0)
SETTINGS = """
database: sqlite:///{folder}/driftd.db
models:
  triage:
    source: {{kind: files, path: tickets.jsonl}}
    record: {{id: /id, prediction: /answer}}
    spaces: {{input: {{embedder: {{kind: vector, field: /v}}}}}}
  plain:
    source: {{kind: files, path: others.jsonl}}
    spaces: {{input: {{embedder: {{kind: vector, field: /v}}}}}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings, and a database that remembers the answer "cat" to the records t0 to t9."""
    (tmp_path / "driftd.yaml").write_text(SETTINGS.format(folder=tmp_path))
    monkeypatch.chdir(tmp_path)
    ids = [f"t{n}" for n in range(10)]
    row = pack(
        P0,
        0,
        hashes=key_hashes(ids),
        time_ms=np.arange(10),
        answers=["cat"] * 10,
        confidence=np.full(10, 0.5, np.float32),
    )
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        store.commit(Checkpoint("triage", [Advance(P0, None, 10, 10, 10, 0, 0)], answers=[row]))
    return tmp_path


def run(*words: str, code: int = 0, stdin: bytes | None = None) -> Any:
    result = CliRunner().invoke(app, ["truth", *words], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_one_true_answer_is_said_in_words_and_listed(folder: Path) -> None:
    assert run("t3", "dog").stderr == "The right answer to t3 is dog: it counts from now on.\n"
    waits = run("t99", "dog", "--weight", "4").stderr
    assert "it waits until" in waits and "set models.triage.performance.remember: 1" in waits
    took = json.loads(run("t98", "dog", "--prediction", "cat", "--confidence", "0.5", "--json").stdout)
    assert took == {"new": 1, "repeated": 0, "matched": 1, "waiting": 0, "bad": 0}
    rows = json.loads(run("--list", "--json").stdout)
    assert [(row["record"], row["truth"], row["answer"], row["version"]) for row in rows] == [
        ("t3", "dog", "cat", 1),
        ("t99", "dog", None, 0),
        ("t98", "dog", "cat", 2),
    ]
    shown = run("--list", "--waiting")
    assert "t99" in shown.stdout and "t98" not in shown.stdout
    assert "3 true answers in all: 2 count" in shown.stderr and "1 wait for the model's answer" in shown.stderr


def test_a_file_given_twice_says_nothing_twice_and_what_is_none_is_named(folder: Path) -> None:
    table = "id;label;chance\nt1;cat;0.1\nt2;dog;0.1\nt3;;0.1\nt77;dog;\n"
    Path("truths.csv").write_text(table)
    said = run("--file", "truths.csv", code=1).stderr
    assert "2 count from now on, 1 waits for its record." in said
    assert "Line 4: label of t3 is missing" in said and "1 line is no true answer (1 bad_truth)." in said
    assert "3 were known" in run("--file", "truths.csv", code=1).stderr
    with Store.open(f"sqlite:///{folder}/driftd.db") as store:
        assert [row.said.weight for row in store.truths("triage")] == pytest.approx([10.0, 10.0])


def test_lines_and_parquet_files_hold_the_same_columns(folder: Path) -> None:
    lines = b'{"id": "t1", "label": "cat"}\n{"id": "t2", "label": "dog"}\n'
    assert json.loads(run("--file", "-", "--json", stdin=lines).stdout)["matched"] == 2
    times = pa.array([1_700_000_000_000, None], pa.timestamp("ms", tz="UTC"))
    columns = {"ID": ["t4", "t5"], "label": [1.5, 2.5], "weight": [float("nan"), 3.0], "time": times}
    pq.write_table(pa.table(columns), "truths.parquet")
    assert "2 count from now on." in run("--file", "truths.parquet").stderr
    with Store.open(f"sqlite:///{folder}/driftd.db") as store:
        found = [(row.said.record_id, row.said.truth, row.said.weight) for row in store.truths("triage", after=2)]
        assert found == [("t4", "1.5", 1.0), ("t5", "2.5", 3.0)]
        assert store.truths("triage", after=2)[0].said.time_ms == 1_700_000_000_000


def test_what_cannot_be_done_is_said_with_what_to_type(folder: Path) -> None:
    Path("torn.parquet").write_bytes(b"PAR1 and no more")
    pq.write_table(pa.table({"id": ["t1"]}), "short.parquet")
    for words, problem in (
        ((), "What is right"),
        (("t1",), "What is right"),
        (("t1", "--file", "x.csv"), "A file says"),
        (("--list", "--file", "x.csv"), "--list takes"),
        (("--file", "gone.csv"), "cannot be read"),
        (("--file", "torn.parquet"), "no Parquet file"),
        (("--file", "short.parquet"), "expected id and label"),
        (("t1", "cat", "--model", "plain"), "no model plain whose answers are mapped"),
        (("t1", "cat", "--weight", "-1"), "weight of t1"),
        (("t1", "cat", "--confidence", "0.5"), "--confidence belongs to --prediction"),
    ):
        with pytest.raises(InvalidInput, match=problem):
            run(*words)


def test_where_no_true_answer_is_ever_what_the_model_said_their_spelling_is_to_be_looked_at(folder: Path) -> None:
    Path("upper.csv").write_text("id,label\n" + "t1,CAT\n" * NEVER_RIGHT + "t50,cat\n" * NEVER_RIGHT)
    said = run("--file", "upper.csv").stderr
    assert f"None of the newest {NEVER_RIGHT} is what the model answered." in said
    assert 'Of t1, "CAT" is right, and the model said "cat".' in said
    Path("mixed.csv").write_text("id,label\nt2,cat\n")
    assert "None of the newest" not in run("--file", "mixed.csv").stderr
