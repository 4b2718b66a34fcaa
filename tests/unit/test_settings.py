"""Settings: what is accepted, and for every rule a file that breaks it, with its message."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from detectors.errors import InvalidInput, InvalidSettings
from detectors.pyod_models import Model
from monitor.settings import kinds, load_settings

BAD = sorted((Path(__file__).parent / "bad_settings").glob("*.yaml"))
GOOD = """
models:
  support:
    source: {kind: kafka, brokers: "localhost:9092", topic: tickets}
    record: {id: /id, time: {path: /ts, unit: ms}, segments: {country: /country}}
    spaces: {input: {embedder: {kind: vector, field: /v, encoding: list}}}
    drift: {block: 1m}
sinks:
  pager: {kind: webhook, url: "https://example.org/hook", secret: hunter2}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "driftd.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_file_says_what_is_wrong(path: Path) -> None:
    expected = [
        line.removeprefix("# expect: ") for line in path.read_text().splitlines() if line.startswith("# expect")
    ]
    with pytest.raises(InvalidSettings) as refused:
        load_settings(path)
    said = "\n".join([refused.value.message, *refused.value.problems])
    assert expected
    for line in expected:
        assert line in said


def test_a_missing_file_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="driftd init"):
        load_settings(tmp_path / "driftd.yaml")


def test_defaults_fill_in(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, GOOD))
    model = settings.models["support"]
    assert (model.drift.block, settings.page_every_days, model.outliers.budget) == (60.0, 90.0, 0.001)
    assert settings.http.bind == "127.0.0.1:9464"


def test_a_model_need_be_named_only_where_there_are_several(tmp_path: Path) -> None:
    one = load_settings(write(tmp_path, GOOD))
    assert one.model_named(None) == one.model_named("support") == "support"
    with pytest.raises(InvalidInput, match="There is no model orders") as refused:
        one.model_named("orders")
    assert refused.value.hint == "Choose: --model support"
    two = one.model_copy(update={"models": {"orders": one.models["support"], **one.models}})
    with pytest.raises(InvalidInput, match="There are several models") as refused:
        two.model_named(None)
    assert refused.value.hint == "Choose: --model orders|support"
    assert two.model_named("orders") == "orders"


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTD_MODELS__SUPPORT__SOURCE__TOPIC", "other")
    monkeypatch.setenv("DRIFTD_HTTP__BIND", "0.0.0.0:1234")
    settings = load_settings(write(tmp_path, GOOD))
    assert settings.models["support"].source.topic == "other"  # type: ignore[union-attr]
    assert settings.models["support"].drift.block == 60.0
    assert settings.http.bind == "0.0.0.0:1234"


def test_a_bad_value_of_the_environment_is_named_and_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTD_MODELS__SUPPORT__DRIFT__BLOCK", "s3cret")
    with pytest.raises(InvalidSettings) as refused:
        load_settings(write(tmp_path, GOOD))
    said = "\n".join(refused.value.problems)
    assert "environment DRIFTD_MODELS__SUPPORT__DRIFT__BLOCK" in said
    assert "s3cret" not in said


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, GOOD))
    assert "hunter2" not in repr(settings)
    with pytest.raises(InvalidSettings) as refused:
        load_settings(write(tmp_path, GOOD.replace("secret: hunter2", "secrt: hunter2")))
    assert "hunter2" not in str(refused.value) + "".join(refused.value.problems)


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        settings.database = "sqlite:///other.db"  # type: ignore[misc]


def test_every_kind_has_a_line_of_description() -> None:
    found = list(kinds())
    assert {group for group, _, _ in found} == {"embedders", "sources", "sinks", "scores", "scorers"}
    for group, kind, description in found:
        assert len(description) > 20, f"{group} {kind}"
    (pyod,) = [description for group, _, description in found if group == "scorers"]
    assert all(model in pyod for model in get_args(Model))


def test_the_predicted_label_is_a_segment_field_unless_switched_off(tmp_path: Path) -> None:
    mapped = GOOD.replace("record: {id: /id,", "record: {id: /id, prediction: /out/label,")
    model = load_settings(write(tmp_path, mapped)).models["support"]
    assert model.segment_fields == {"country": "/country", "prediction": "/out/label"}
    assert model.watched_record.segments == model.segment_fields
    off = load_settings(write(tmp_path, mapped.replace("drift: {block: 1m}", "drift: {per_class: false}")))
    assert off.models["support"].segment_fields == {"country": "/country"}
    named = load_settings(write(tmp_path, mapped.replace("country: /country", "intent: /out/label")))
    assert named.models["support"].segment_fields == {"intent": "/out/label"}
    assert load_settings(write(tmp_path, GOOD)).models["support"].segment_fields == {"country": "/country"}
