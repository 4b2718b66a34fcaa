"""docs/guarantees.md: every promise names the tests that hold it, and those tests are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
PROMISES = re.findall(r"^\*\*(.+?)\*\*\n(.*?)(?=^\*\*|^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)


def test_every_promise_names_a_test_that_holds_it() -> None:
    assert len(PROMISES) == TEXT.count("*Held by*") >= 12
    for promise, body in PROMISES:
        assert re.search(r"^\*Held by\* `tests/", body, re.MULTILINE), f"nothing holds: {promise}"


def test_every_test_that_is_named_exists() -> None:
    assert len(NAMED) > 25
    for file, name in NAMED:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in names, f"{file} has no {name}"


def test_every_test_is_named_in_full() -> None:
    assert len(re.findall(r"tests/\w+/test_", TEXT)) == len(NAMED), "a test is named without its file or its function"


def test_the_commands_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make (\w+)`", TEXT)):
        assert f"\n{target}:" in makefile
