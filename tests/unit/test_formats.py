"""docs/formats.md says what the code does: its settings, its examples, its list of reasons."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from connectors import SourceSettings
from connectors.records import Partition, RawBatch
from monitor.decode import DEAD_LETTER_REASONS, Decoder, RecordSettings
from monitor.embedders import EmbedderSettings

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.mark.parametrize("text", BLOCKS)
def test_settings_in_the_document_are_valid(text: str) -> None:
    block: dict[str, Any] = yaml.safe_load(text)
    assert block.keys() <= {"record", "spaces", "source", "history"}
    record = RecordSettings.model_validate(block.get("record", {}))
    for space in block.get("spaces", {}).values():
        settings: Any = TypeAdapter(EmbedderSettings).validate_python(space["embedder"])
        fields = [settings.field] if hasattr(settings, "field") else [*settings.numbers.values()]
        Decoder(record, fields)
    for place in block.keys() & {"source", "history"}:
        TypeAdapter(SourceSettings).validate_python(block[place])


# Settings, a record, and the rows that become of it.
EXAMPLES = re.findall(r"```yaml\n([^`]*)```\n\n```json\n([^`]*)```\n\n```json\n([^`]*)```", DOCUMENT)


@pytest.mark.parametrize(("settings", "record", "rows"), EXAMPLES)
def test_the_records_in_the_document_become_what_it_says(settings: str, record: str, rows: str) -> None:
    block, shown, expected = yaml.safe_load(settings), json.loads(record), json.loads(rows)
    fields = [space["embedder"]["field"] for space in block["spaces"].values()]
    batch = RawBatch(
        Partition("orders", 0),
        np.array([41]),
        np.array([1_772_438_400_000]),
        [None],
        [json.dumps(shown["value"]).encode()],
        [[(name, text.encode()) for name, text in shown.get("headers", {}).items()]],
        42,
    )
    events = Decoder(RecordSettings.model_validate(block["record"]), fields).decode(batch, None)
    assert events.dead == []
    found = [
        {"id": id_} | {name: values[row] for name, values in events.fields.items()}
        for row, id_ in enumerate(events.ids)
    ]
    assert found == expected


def test_every_format_is_described() -> None:
    part = DOCUMENT.split("## Formats")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)`(?! \| a record)", part, re.MULTILINE)
    assert sorted(named) == sorted(RecordSettings.model_json_schema()["properties"]["format"]["enum"])
    assert len(EXAMPLES) >= 3


def test_every_reason_is_described() -> None:
    rows = re.findall(r"^\| (`.*?) \|", DOCUMENT.split("## Dead letters")[1], re.MULTILINE)
    assert re.findall(r"`(\w+)`", "".join(rows)) == list(DEAD_LETTER_REASONS)
