"""docs/verdict.md: the words there are, settings that parse, commands and options that exist."""

from __future__ import annotations

import re
from pathlib import Path

import typer
import yaml

from connectors.prometheus import Metrics
from dashboards.verdict_words import WORDS
from monitor.cli import app
from monitor.performance_settings import PerformanceSettings
from monitor.record import RecordSettings

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "verdict.md").read_text(encoding="utf-8")


def test_every_word_is_explained_and_no_other() -> None:
    assert set(re.findall(r"^\| \*\*([a-z, ]+)\*\* \|", TEXT, re.MULTILINE)) == set(WORDS)


def test_the_settings_are_settings() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (model,) = yaml.safe_load(example)["models"].values()
    RecordSettings.model_validate(model["record"])
    settings = PerformanceSettings.model_validate(model["performance"])
    assert settings.window == 3600.0 and settings.max_age == 180 * 86_400.0


def test_the_commands_take_the_options_that_are_shown() -> None:
    command = typer.main.get_command(app)
    lines = re.findall(r"^(?:\$ )?(driftd .*)$", TEXT, re.MULTILINE)
    assert len(lines) > 8
    for line in lines:
        words = line.split()
        found = command.commands[words[1]]  # type: ignore[attr-defined]
        known = {option for parameter in found.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_the_metrics_are_there() -> None:
    assert set(re.findall(r"`(driftd_[a-z_]+)", TEXT)) <= {spec.name for spec in Metrics().specs}


def test_links_lead_somewhere() -> None:
    for page, anchor in re.findall(r"\]\(([\w.]+)(?:#([\w-]+))?\)", TEXT):
        if page.endswith(".png"):
            assert (ROOT / "docs" / page).is_file()
            continue
        other = (ROOT / "docs" / page).read_text(encoding="utf-8")
        headings = {line.strip("# ").lower().replace(" ", "-") for line in other.splitlines() if line.startswith("#")}
        assert not anchor or anchor in headings, f"{page}#{anchor}"
