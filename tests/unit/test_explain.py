"""An incident tells its cause, to the same bytes however the fold was cut; `driftd explain` shows it with the tests."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from connectors.database.rows import IncidentRow, MuteRow, ReferenceRow
from connectors.database.store import Store
from connectors.records import Partition, RawBatch
from dashboards.report import render
from dashboards.report_data import Cause, Excerpt, Growth, Header, Incident, Part, Report, Traffic
from detectors.errors import InvalidInput
from detectors.reference import STANDARD, Reference
from detectors.two_sample import TestResult
from monitor.ageing import merge_old_summaries
from monitor.causes import ClosedBlocks, cause_of, in_segment
from monitor.cli import app
from monitor.decode import Decoder
from monitor.embedders import Embedder
from monitor.explain import Explanation, explain, find_incident, tables_of, words_of
from monitor.folding import Folder
from monitor.pipeline import Pipeline, Space
from monitor.reporting import report_of
from monitor.settings import Settings
from monitor.wording import cause_in_words

START_MS = 1_772_438_400_000
ORDERS = Partition("orders", 0)
BLOCK = 64  # records, 1 s
CLEAN, CHANGED = 30, 20  # blocks


@pytest.fixture(scope="module")
def reference() -> Reference:
    random = np.random.default_rng(3)
    vectors = random.normal(size=(20_000, 6)).astype(np.float32)
    return Reference.build(
        vectors,
        geometry=STANDARD,
        prototypes=60,
        block=BLOCK,
        ids=[f"b-{row}" for row in range(len(vectors))],
        segments={"shop": ("a", "b")},
        segment_values={"shop": ["a", "b"] * 10_000},
        model="orders",
        space="input",
    )


@pytest.fixture(scope="module")
def stream() -> list[bytes]:
    """From the change on, a third of shop b's records lie three sigmas away."""
    random = np.random.default_rng(5)
    n = (CLEAN + CHANGED) * BLOCK
    x = random.normal(size=(n, 6))
    foreign = (np.arange(n) >= CLEAN * BLOCK) & (np.arange(n) % 2 == 1) & (random.random(n) < 1 / 3)
    x[foreign, :2] += 3.0
    return [
        json.dumps({"id": f"r{row}", "ts": START_MS + 1000 * row // BLOCK, "v": vector, "shop": "ab"[row % 2]}).encode()
        for row, vector in enumerate(x.round(4).tolist())
    ]


def settings_for(folder: Path, merge_summaries: dict[str, int] | None = None) -> Settings:
    return Settings(
        database=f"sqlite:///{folder}/driftd.db",
        references=folder / "references",
        models={
            "orders": {
                "source": {"kind": "files", "path": str(folder / "none.jsonl")},
                "record": {"id": "/id", "time": {"path": "/ts", "unit": "ms"}, "segments": {"shop": "/shop"}},
                "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list"}}},
                "outliers": {"sample": 0.1, "alpha": 0.01},
                "drift": {"block": 1, "lateness": 2},
            }
        },
        incidents={"resolve_after": 5},
        retention={} if merge_summaries is None else {"merge_summaries": merge_summaries},
        sinks={"log": {"kind": "jsonl", "path": str(folder / "log.jsonl")}},
    )


def run(
    folder: Path,
    reference: Reference,
    stream: Sequence[bytes],
    cuts: Sequence[int],
    *,
    merge_summaries: dict[str, int] | None = None,
    ages: bool = False,
) -> tuple[Settings, Store]:
    """Take the stream through the pipeline and the fold, with a checkpoint and a fold after each piece.

    Args:
        ages: old summaries are merged after each fold.
    """
    settings = settings_for(folder, merge_summaries)
    store = Store.open(settings.database)
    store.migrate()
    path = folder / "references" / "1"
    if not path.exists():
        path.parent.mkdir()
        checksum = reference.save(path)
        store.add_reference(
            ReferenceRow("orders", "input", 1, str(path), reference.n_records, 6, checksum, START_MS, active=True)
        )
    pipeline = pipeline_of(settings, reference)
    folder_of_model = Folder("orders", settings, spaces=pipeline.spaces)
    for first, after in itertools.pairwise([0, *cuts, len(stream)]):
        pipeline.process(batch_of(stream[first:after], first), None)
        store.commit(pipeline.checkpoint())
        pipeline.written()
        folder_of_model.step(store, 0, partitions=frozenset([ORDERS]))
        if ages:
            merge_old_summaries(store, settings, "orders")
    folder_of_model.close_all(store, 0)
    return settings, store


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, reference: Reference, stream: list[bytes]) -> tuple[Settings, Store]:
    return run(tmp_path_factory.mktemp("whole"), reference, stream, [])


def drift_of(store: Store, segment: str = "") -> IncidentRow:
    return next(row for row in store.incidents() if (row.kind, row.segment) == ("drift", segment))


def cause_in(row: IncidentRow) -> dict[str, Any]:
    cause = row.detail["cause"]
    assert isinstance(cause, dict)
    return cause


def foreign_prototypes(reference: Reference) -> set[int]:
    random = np.random.default_rng(8)
    x = random.normal(size=(2_000, 6))
    x[:, :2] += 3.0
    counts = np.bincount(reference.score(x.astype(np.float32)).nearest, minlength=len(reference.prototypes))
    return set(np.flatnonzero(counts >= 20).tolist())


def test_an_incident_stores_where_its_change_comes_from(ran: tuple[Settings, Store], reference: Reference) -> None:
    cause = cause_in(drift_of(ran[1]))
    assert cause["segments"][0]["segment"] == "shop=b"
    assert cause["segments"][0]["part"] > 0.9
    gained = [row for row in cause["prototypes"] if row["z"] > 0]
    assert gained
    assert {row["prototype"] for row in gained} <= foreign_prototypes(reference)
    assert all(row["exemplar"]["id"].startswith("b-") for row in gained)
    strange = [int(row["id"][1:]) for row in cause["strangest"]]
    assert len(strange) == 10
    assert sum(row % 2 == 1 and row >= CLEAN * BLOCK for row in strange) >= 9
    assert "The change comes from shop=b; prototype" in drift_of(ran[1]).text


@pytest.mark.parametrize("cuts", [list(range(64, 3_200, 64)), [1_000, 2_001, 2_002, 2_500]])
def test_the_cause_has_the_same_bytes_however_the_fold_is_cut(
    ran: tuple[Settings, Store], reference: Reference, stream: list[bytes], tmp_path: Path, cuts: list[int]
) -> None:
    _, store = run(tmp_path, reference, stream, cuts)
    assert [asdict(row) for row in store.incidents()] == [asdict(row) for row in ran[1].incidents()]
    sent, expected = (one.outbox_due(0, 99) for one in (store, ran[1]))
    assert [row.notification for row in sent] == [row.notification for row in expected]
    assert any("of the change comes from shop=b" in row.notification.text for row in sent)


def test_when_old_blocks_are_merged_is_not_seen_in_a_cause(
    ran: tuple[Settings, Store], reference: Reference, stream: list[bytes], tmp_path: Path
) -> None:
    steps, cuts = {"3s": 2, "8s": 8}, list(range(50, 3_200, 150))
    incidents = []
    for name, ages in (("kept", False), ("merged", True)):
        folder = tmp_path / name
        folder.mkdir()
        settings, store = run(folder, reference, stream, cuts, merge_summaries=steps, ages=ages)
        incidents.append([asdict(row) for row in store.incidents()])
        widths = {row.blocks for row in store.summaries("orders", "input", segment="shop=b")}
        assert widths == ({1, 2, 8} if ages else {1})
    assert incidents[0] == incidents[1]
    assert cause_in(drift_of(store))["from_ms"] < cause_in(drift_of(ran[1]))["from_ms"], "a whole group is read"
    merge_old_summaries(store, settings, "orders")
    later = explain(settings, store, drift_of(store).id)
    assert later.cause == cause_in(drift_of(store)), "what was stored when it was told says more"
    assert any("retention.merge_summaries" in note for note in later.notes)


def test_the_report_spreads_records_of_merged_blocks(reference: Reference, stream: list[bytes], tmp_path: Path) -> None:
    steps = {"3s": 2, "8s": 8}
    settings, store = run(tmp_path, reference, stream, [1_000, 2_000], merge_summaries=steps, ages=True)
    timeline = next(line for line in report_of(settings, store, "orders").timelines if line.segment == "shop=b")
    assert int(timeline.n.sum()) == (CLEAN + CHANGED) * BLOCK // 2
    assert set(timeline.n.tolist()) == {BLOCK // 2}


def test_a_segments_incident_is_about_its_own_records(ran: tuple[Settings, Store]) -> None:
    row = drift_of(ran[1], "shop=b")
    cause = cause_in(row)
    assert [entry["segment"] for entry in cause["segments"]] == ["shop=b"]
    assert all(int(entry["id"][1:]) % 2 == 1 for entry in cause["strangest"])
    assert "comes from here" in row.text


def test_kept_records_hold_the_vectors_that_the_reference_prepared(
    ran: tuple[Settings, Store], reference: Reference, stream: list[bytes]
) -> None:
    kept = ran[1].kept("orders", limit=20)
    for record in kept:
        assert record.vector is not None
        given = np.array([json.loads(stream[record.offset])["v"]], dtype=np.float32)
        assert np.frombuffer(record.vector, "<f2") == pytest.approx(reference.prepare(given)[0], abs=4e-3)


def pipeline_of(settings: Settings, reference: Reference, *, keep_vectors: bool = True) -> Pipeline:
    model = settings.models["orders"]
    embedder: Embedder = model.spaces["input"].embedder.build()
    embedder.embed([[[0.0] * 5 + [1.0]]])
    return Pipeline(
        "orders",
        decoder=Decoder(model.record, fields=["/v"]),
        spaces=[Space("input", embedder, reference, 1, reference.segments)],
        block_ms=1000,
        lateness_ms=2000,
        alpha=model.outliers.alpha,
        sample=model.outliers.sample,
        keep_vectors=keep_vectors,
        stored=lambda partitions: {},
    )


def batch_of(values: Sequence[bytes], first: int = 0) -> RawBatch:
    n = len(values)
    return RawBatch(
        partition=ORDERS,
        offsets=np.arange(first, first + n, dtype=np.int64),
        timestamps_ms=np.full(n, -1, dtype=np.int64),
        keys=[None] * n,
        values=list(values),
        headers=[()] * n,
        next_offset=first + n,
    )


def test_vectors_are_not_kept_where_settings_forbid_it(
    reference: Reference, stream: list[bytes], tmp_path: Path
) -> None:
    pipeline = pipeline_of(settings_for(tmp_path), reference, keep_vectors=False)
    pipeline.process(batch_of(stream[:500]), None)
    kept = pipeline.checkpoint().kept
    assert len(kept) > 20
    assert all(record.vector is None for record in kept)


def test_late_records_are_not_kept(reference: Reference, stream: list[bytes], tmp_path: Path) -> None:
    """Whether they come before or after their block is closed is chance, and a cause must not depend on it."""
    pipeline = pipeline_of(settings_for(tmp_path), reference)
    pipeline.process(batch_of([*stream[1_000:1_100], *stream[:300]]), None)
    kept = pipeline.checkpoint().kept
    assert {record.offset for record in kept} <= set(range(100))
    assert kept


@pytest.fixture(scope="module")
def explained(ran: tuple[Settings, Store]) -> Explanation:
    return explain(*ran, drift_of(ran[1]).id[:6])


def test_explain_reads_on_while_an_incident_is_open(ran: tuple[Settings, Store], explained: Explanation) -> None:
    row = drift_of(ran[1])
    assert row.status == "open"
    assert explained.cause is not None
    assert explained.cause["records"] == (CLEAN + CHANGED) * BLOCK - row.onset_ms % START_MS // 1000 * BLOCK
    assert explained.cause["records"] >= cause_in(row)["records"]
    assert explained.cause["changed"] >= cause_in(row)["changed"]


def test_explain_runs_the_tests_against_the_reference_and_the_past(explained: Explanation) -> None:
    by_name = {(test.against, test.result.name): test.result for test in explained.tests}
    assert explained.cause is not None
    assert by_name["reference", "score_psi"].m == explained.cause["records"]
    for against in ("reference", "before"):
        for name in ("domain_classifier", "mmd", "frechet"):
            assert by_name[against, name].p_value <= 0.02, (against, name)
    assert len([title for title, _, rows in tables_of(explained) if rows]) == 5


def test_too_few_kept_records_are_said(ran: tuple[Settings, Store]) -> None:
    settings, store = ran
    model = settings.models["orders"]
    few = model.model_copy(update={"outliers": model.outliers.model_copy(update={"sample": 0.001})})
    found = explain(settings.model_copy(update={"models": {"orders": few}}), store, drift_of(store).id)
    assert [test.result.name for test in found.tests] == ["score_psi"]
    assert any("outliers.sample" in note for note in found.notes)


def test_an_incident_without_a_space_points_to_the_doctor(ran: tuple[Settings, Store]) -> None:
    settings, store = ran
    row = replace(drift_of(store), id="dead00000000", kind="dead_letters", space="", segment="")

    class Other:
        def incidents(self) -> list[IncidentRow]:
            return [row]

    found = explain(settings, Other(), "dead")  # type: ignore[arg-type]
    assert (found.cause, found.tests) == (None, ())
    assert "driftd doctor" in found.notes[0]


def test_unknown_and_ambiguous_ids_are_refused_with_a_cure(ran: tuple[Settings, Store]) -> None:
    with pytest.raises(InvalidInput, match="no incident zzz"):
        find_incident(ran[1], "zzz")
    with pytest.raises(InvalidInput, match="incidents begin with"):
        find_incident(ran[1], "")


def test_the_command_prints_tables_and_the_same_as_json(
    ran: tuple[Settings, Store], explained: Explanation, tmp_path: Path
) -> None:
    settings, store = ran
    folder = Path(settings.models["orders"].source.path).parent  # type: ignore[union-attr]
    file = tmp_path / "driftd.yaml"
    file.write_text(
        f"database: {settings.database}\nreferences: {folder}/references\nmodels:\n  orders:\n"
        f"    source: {{kind: files, path: {folder}/none.jsonl}}\n"
        "    record: {id: /id, time: {path: /ts, unit: ms}, segments: {shop: /shop}}\n"
        "    spaces: {input: {embedder: {kind: vector, field: /v, encoding: list}}}\n"
        "    outliers: {sample: 0.1, alpha: 0.01}\n    drift: {block: 1, lateness: 2}\n"
        "incidents: {resolve_after: 5}\n"
    )
    row = drift_of(store)
    shown = CliRunner().invoke(app, ["explain", row.id, "-s", str(file)])
    assert shown.exit_code == 0, shown.output
    for words in ("Where the change comes from", "shop=b", "Classic tests", "classifier AUC", "The strangest records"):
        assert words in shown.output
    as_json = CliRunner().invoke(app, ["explain", row.id[:8], "-s", str(file), "--json"])
    data = json.loads(as_json.stdout)
    assert data == json.loads(json.dumps(explained.data()))
    assert {"against", "name", "n", "m", "statistic", "p_value", "words"} <= set(data["tests"][0])


def test_no_more_than_the_stated_blocks_are_read(
    ran: tuple[Settings, Store], reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor.causes.MOST_BLOCKS", 8)
    row = drift_of(ran[1])
    space = Space("input", None, reference, 1, reference.segments)  # type: ignore[arg-type]
    with ran[1].begin_fold("orders") as fold:
        cause = cause_of(row, space, ClosedBlocks(fold), segments=["shop=a", "shop=b"], block_ms=1000)
    assert cause is not None
    assert cause["to_ms"] - cause["from_ms"] == 6_000  # type: ignore[operator]
    assert (cause["records"], cause["records_before"]) == (6 * BLOCK, 2 * BLOCK)


def test_segments_of_kept_records(ran: tuple[Settings, Store], reference: Reference) -> None:
    space = Space("input", None, reference, 1, {"shop": ["a", "b"]})  # type: ignore[arg-type]
    record = ran[1].kept("orders", limit=1)[0]
    for shop, inside in (("a", {"", "shop=a"}), ("zz", {"", "shop=(other)"})):
        moved = replace(record, segments={"shop": shop})
        assert {name for name in ("", "shop=a", "shop=b", "shop=(other)") if in_segment(moved, name, space)} == inside


PROTOTYPE = {"prototype": 17, "share": 0.061, "expected": 0.0041, "z": 9.0, "exemplar": {"id": "r-123"}}
SOUTH = {"segment": "scanner=south", "part": 0.58, "share": 0.25, "before": 0.25, "own": 0.58, "moved": 0.0}


@pytest.mark.parametrize(
    ("cause", "segment", "words"),
    [
        (
            {"segments": [SOUTH], "prototypes": [PROTOTYPE]},
            "",
            "58 % of the change comes from scanner=south; prototype 17 (like record r-123) grew from 0.41 % to 6.1 %.",
        ),
        ({"segments": [SOUTH | {"part": 1.1}]}, "", "The change comes from scanner=south."),
        ({"segments": [SOUTH]}, "scanner=south", "58 % of the change of the whole traffic comes from here."),
        ({"segments": [SOUTH | {"part": 0.3, "share": 0.25}]}, "", ""),  # no more than its share of the records
        (
            {"segments": [SOUTH | {"part": 0.9, "own": 0.1, "moved": 0.8, "share": 0.5}]},
            "",
            "90 % of the change comes from scanner=south, which went from 25 % to 50 % of the records.",
        ),
        (
            {"prototypes": [PROTOTYPE | {"z": -9.0, "share": 0.001}]},
            "",
            "Prototype 17 (like record r-123) shrank from 0.41 % to 0.1 %.",
        ),
        ({"strangest": [{"id": "s1"}, {"id": "s2"}]}, "", "The strangest records since then: s1, s2."),
        ({}, "", ""),
    ],
)
def test_a_cause_in_words(cause: dict[str, object], segment: str, words: str) -> None:
    assert cause_in_words(cause, segment) == words


def test_a_test_in_words() -> None:
    sure = TestResult("domain_classifier", 100, 100, 0.83, 0.005, 0.78, 0.88)
    assert words_of(sure) == "of a new and an old record, a classifier finds the new one in 83 % of the pairs"
    assert "no better than chance" in words_of(replace(sure, p_value=0.3))
    assert "could be the same" in words_of(TestResult("mmd", 100, 100, 0.0, 0.6))
    assert "has changed" in words_of(TestResult("frechet", 100, 100, 1.0, 0.002))
    assert "3 principal components differ" in words_of(TestResult("ks", 9, 9, 0.4, 0.001, component=2, changed=3))
    assert "a moderate change by custom" in words_of(TestResult("score_psi", 9, 9, 0.2, 0.001))


def test_the_report_shows_what_changed_with_every_text_escaped() -> None:
    nasty = "<script>alert(1)</script>"
    cause = Cause(
        records=1_234,
        parts=(Part(nasty, 1.2, 0.25), Part("b", -0.2, 0.75)),
        growths=(
            Growth(nasty, 0.004, 0.061, usual=Excerpt(text=nasty), now=Excerpt(pixels=np.eye(8, dtype=np.uint8))),
        ),
    )
    incident = Incident("page", nasty, "text", "input", "", START_MS, START_MS, None, 7.0, cause)
    calm = replace(incident, title="no cause known", cause=None)
    page = render(
        Report(
            header=Header("t", START_MS, START_MS + 60_000, "page", "v"),
            traffic=Traffic(1, 0),
            references=(),
            incidents=(calm, incident),
        )
    )
    shown = page[page.index("What changed") :]
    assert nasty not in page
    assert "no cause known" not in shown
    for words in ("1,234 records", "width:100%", "width:0%", "0.4\u00a0% → 6.1\u00a0%", "data:image/png"):
        assert words in shown


def test_the_report_takes_the_cause_from_the_database(ran: tuple[Settings, Store]) -> None:
    settings, store = ran
    report = report_of(settings, store, "orders")
    shown = next(one for one in report.incidents if not one.segment and one.cause is not None)
    assert shown.cause is not None
    assert shown.cause.parts[0].segment == "shop=b"
    assert shown.cause.growths[0].share > shown.cause.growths[0].expected


def test_the_report_says_what_people_did_about_an_incident(ran: tuple[Settings, Store]) -> None:
    settings, store = ran
    mute = MuteRow("0a", "orders", "", "", "", 0, 1_772_438_400_000, "the topic moves", "kari", 0)
    muted = "Muted until 2026-03-02 08:00:00Z by kari: the topic moves."
    assert not any("Muted" in one.text for one in report_of(settings, store, "orders").incidents)
    for one in report_of(settings, store, "orders", mutes=[mute]).incidents:
        assert (muted in one.text) == (one.resolved_ms is None)
