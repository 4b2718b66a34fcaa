"""docs/sinks.md: its settings load, and it has a section for every kind of sink."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import yaml
from pydantic import TypeAdapter

from connectors import SinkSettings

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "sinks.md").read_text()
KINDS = {model.model_fields["kind"].default for model in get_args(get_args(SinkSettings)[0])}


def test_the_settings_in_the_document_are_valid() -> None:
    shown = set()
    for block in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL):
        for settings in yaml.safe_load(block)["sinks"].values():
            TypeAdapter(SinkSettings).validate_python(settings)
            shown.add(settings["kind"])
    assert shown >= KINDS - {"grafana"}, "a kind has no example"


def test_every_kind_has_a_row_in_the_table_and_a_section_of_its_own() -> None:
    for kind in KINDS:
        assert f"\n| `{kind}` | " in DOCUMENT, kind
        assert f"\n## {kind}\n" in DOCUMENT or kind == "grafana", kind  # docs/grafana.md
