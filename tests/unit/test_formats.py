"""docs/formats.md says what the code does: its settings are valid and its list of reasons is whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from connectors.files import FilesSettings
from monitor.decode import DEAD_LETTER_REASONS, Decoder, RecordSettings
from monitor.embedders import EmbedderSettings

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.mark.parametrize("text", BLOCKS)
def test_settings_in_the_document_are_valid(text: str) -> None:
    block: dict[str, Any] = yaml.safe_load(text)
    assert block.keys() <= {"record", "spaces", "source"}
    record = RecordSettings.model_validate(block.get("record", {}))
    for space in block.get("spaces", {}).values():
        settings: Any = TypeAdapter(EmbedderSettings).validate_python(space["embedder"])
        fields = [settings.field] if hasattr(settings, "field") else [*settings.numbers.values()]
        Decoder(record, fields)
    if "source" in block:
        FilesSettings.model_validate(block["source"])


def test_every_kind_of_embedder_and_every_reason_is_described() -> None:
    kinds = re.findall(r"^\*\*`(\w+)`\*\*", DOCUMENT.split("## Embedders")[1].split("## Files")[0], re.MULTILINE)
    schema = TypeAdapter(EmbedderSettings).json_schema()
    assert sorted(kinds) == sorted(schema["discriminator"]["mapping"])
    rows = re.findall(r"^\| (`.*?) \|", DOCUMENT.split("## Dead letters")[1], re.MULTILINE)
    assert re.findall(r"`(\w+)`", "".join(rows)) == list(DEAD_LETTER_REASONS)
