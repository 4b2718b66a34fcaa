"""docs/scores.md: what it says of columns, members and files is so, and its programs run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from connectors import ScoresSettings
from connectors.kafka_scores import SCHEMA, messages
from connectors.parquet_scores import MOST_DAYS, ParquetScores
from monitor.scores import MOST_ROWS, MOST_VECTOR_BYTES, RETRY_DROPPED_MS, RETRY_MS
from monitor.settings import _models_below_union
from tests.unit.test_scores import places, scored, seen

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "scores.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (`[^|]*) \| (`[^|]*|[^|]*) \| ", TEXT.split("## What there is of a record")[1], re.MULTILINE)


def program(first_line: str) -> str:
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if code.startswith(first_line)]
    return str(found)


def test_every_setting_has_its_line() -> None:
    listed = set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", TEXT.split("## What there")[0], re.MULTILINE)))
    )
    known = {name for model in _models_below_union(ScoresSettings) for name in model.model_fields}
    assert listed == known - {"kind"}


def test_every_member_and_every_column_has_its_line(tmp_path: Path) -> None:
    named = [(re.findall(r"`\s?([\w.]+)`", member), re.findall(r"`(\w+)`", column)) for member, column in ROWS]
    members = {name for member, _ in named for name in member}
    columns = {name for member, column in named for name in (column or member)}
    (_, value), *_ = messages(scored(), "m")
    message = json.loads(value)
    inside = {f".{name}" for name in [*message.pop("spaces")["input"], *message["fraud"]]}
    assert members == set(message) | inside | {"spaces.NAME"}
    writer = ParquetScores(tmp_path, model="m", token="t")
    writer.publish(writer.write([scored()], 0))
    columns.remove("fraud")  # an object in messages alone
    assert columns == set(ds.dataset(tmp_path, partitioning="hive").schema.names) - {"date"}


def test_its_numbers_are_those_of_the_code() -> None:
    assert SCHEMA.decode() in TEXT
    assert f"more than {MOST_DAYS}" in TEXT
    assert f"every {RETRY_MS // 1000} seconds" in TEXT
    assert RETRY_DROPPED_MS == 60_000
    assert f"{MOST_ROWS:,} records or {MOST_VECTOR_BYTES >> 20} MiB" in TEXT


def test_its_programs_read_and_merge_what_is_committed(tmp_path: Path) -> None:
    writer = ParquetScores(tmp_path, model="support", token="t")
    for first in (10, 20, 30):
        writer.publish(writer.write([scored(first=first)], 0))
    writer.write([scored(first=40)], 0)  # not committed
    before = places(tmp_path)
    space: dict[str, object] = {}
    exec(program("# pyarrow").replace("/data/scores", str(tmp_path)).replace("1e-4", "0.3"), space)
    assert space["strange"].num_rows == 12  # type: ignore[attr-defined]
    assert space["scores"].count_rows() == len(before) == 24  # type: ignore[attr-defined]
    exec(program("# merge.py"), space)
    (day,) = (tmp_path / "model=support").iterdir()
    space["merge"](day)  # type: ignore[operator]
    assert len(seen(tmp_path)) == 1
    assert places(tmp_path) == before


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_every_program_is_python(code: str) -> None:
    compile(code, "docs/scores.md", "exec")
