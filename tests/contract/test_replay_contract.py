"""What was judged live is judged again from the stored summaries: the same to the byte, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from connectors.database import schema
from connectors.database.ageing import AgeRule
from connectors.database.rows import IncidentRow, ReadingRow
from connectors.database.store import Store
from detectors.errors import DriftdError, InvalidInput, InvalidReference
from monitor.ageing import sum_of_summaries
from monitor.app import build_workers
from monitor.incidents import OPERATIONAL
from monitor.references import from_source
from monitor.replay import Replayed, replay
from monitor.replay_processes import Variant
from monitor.replay_settings import variants_of
from monitor.settings import Settings

START_MS = 1_772_438_400_000
EVERY_MS, BASELINE, STREAM = 40, 6_000, 14_000
CAMPAIGN = np.array([4.0, 4.0, 0.0, 0.0])
MODEL = "cards"


def lines() -> list[bytes]:
    """Normal records; then a wave of fraud, broken lines, a new version, and at the end one country drifts."""
    chance = np.random.default_rng(4)
    n = BASELINE + STREAM
    x = chance.normal(size=(n, 4))
    names = np.full(n, "normal", object)
    at = BASELINE + 3_000 + chance.choice(1_500, 150, replace=False)
    x[at], names[at] = CAMPAIGN + chance.normal(0, 0.1, (150, 4)), "campaign"
    country = np.where(np.arange(n) % 3 == 0, "de", "fr")
    drifts = (np.arange(n) >= BASELINE + 9_000) & (country == "de")
    x[drifts, 0] += 1.2
    broken = set(range(BASELINE + 6_000, BASELINE + 6_400, 3))
    amount = chance.exponential(40.0, n)
    amount[BASELINE + 12_000 :] *= 1.5
    return [
        b"{broken"
        if row in broken
        else json.dumps(
            {
                "id": f"{names[row]}-{row}",
                "ts": START_MS + EVERY_MS * row,
                "v": vector,
                "amount": round(float(amount[row]), 2),
                "country": country[row],
                "version": "1" if row < BASELINE + 8_000 else "2",
            }
        ).encode()
        for row, vector in enumerate(x.round(3).tolist())
    ]


def settings_for(folder: Path, database: str, **changes: Any) -> Settings:
    model: dict[str, Any] = {
        "source": {"kind": "files", "path": str(folder / "stream.jsonl")},
        "record": {
            "id": "/id",
            "time": "/ts",
            "version": "/version",
            "segments": {"country": "/country"},
            "keep": ["/amount"],
        },
        "spaces": {
            "input": {"embedder": {"kind": "vector", "field": "/v", "encoding": "list", "geometry": "standard"}},
            "amount": {"embedder": {"kind": "number", "field": "/amount"}},
        },
        "reference": {"collect": BASELINE},
        "drift": {"block": 10, "lateness": 5, "second_opinions": ["adwin", "page_hinkley"]},
        "fraud": {
            "space": "input",
            "fields": {"amount": "/amount"},
            "alpha": 0.005,
            "review": 0.002,
            "alerts": {"most": 25, "every": "5m"},
        },
    }
    return Settings.model_validate(
        {
            "database": database,
            "references": str(folder / "references"),
            "incidents": {"resolve_after": "30s", "deploy_grace": "20s"},
            "models": {MODEL: {**model, **changes}},
            "sinks": {"log": {"kind": "jsonl", "path": str(folder / "log.jsonl")}},
        }
    )


def run(settings: Settings, store: Store, *, ends: bool = True) -> None:
    (worker,) = build_workers(settings, store)
    worker.start()
    clock = 0.0
    while not worker.step(START_MS + 10_000_000, clock).finished:
        clock += 1.0
    if ends:
        worker.close_blocks_at_end(START_MS)
    worker.source.close()
    worker.close()


@dataclass
class Lived:
    settings: Settings
    store: Store

    def incidents(self) -> list[IncidentRow]:
        return [row for row in self.store.incidents(model=MODEL) if row.kind not in OPERATIONAL]

    def told(self) -> list[str]:
        table = schema.outbox
        with self.store._database.reading() as connection:
            query = sa.select(table.c.notification_id).where(table.c.model == MODEL).order_by(table.c.id)
            return list(connection.execute(query).scalars())

    def again(self, settings: Settings | None = None, **more: Any) -> Replayed:
        (found,) = replay(self.store, MODEL, [Variant("now", settings or self.settings)], **more)
        return found


def in_order(rows: list[ReadingRow]) -> list[str]:
    # As text: NaN is not itself.
    return sorted(map(repr, rows))


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def lived(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    """A model that was watched live, with drift of a segment, two spaces, fraud, dead letters and a deployment."""
    folder = tmp_path_factory.mktemp("lived")
    (folder / "stream.jsonl").write_bytes(b"\n".join(lines()) + b"\n")
    database = f"sqlite:///{folder}/driftd.db"
    if request.param == "postgresql":
        database = request.getfixturevalue("postgres").new_database()
    settings = settings_for(folder, database)
    with Store.open(database) as store:
        store.migrate()
        run(settings, store)
        yield Lived(settings, store)


def test_the_same_settings_give_the_same_bytes(lived: Lived) -> None:
    again = lived.again(readings=True, causes=True)
    assert in_order(again.readings) == in_order(lived.store.readings(MODEL))
    assert sorted(again.incidents, key=lambda row: row.id) == sorted(lived.incidents(), key=lambda row: row.id)
    assert [notification.id for notification in again.told] == lived.told()
    kinds = {row.kind for row in again.incidents}
    assert kinds >= {"drift", "fraud_wave", "dead_letters"}, kinds
    assert {row.segment for row in again.incidents} >= {"", "country=de"}


def test_nothing_is_written(lived: Lived) -> None:
    before = rows_of(lived.store)
    lived.again(causes=True)
    assert rows_of(lived.store) == before
    if lived.settings.database.startswith("sqlite"):
        path = Path(lived.settings.database.removeprefix("sqlite:///"))
        content = path.read_bytes()
        lived.again()
        assert path.read_bytes() == content


def rows_of(store: Store) -> dict[str, list[str]]:
    """Everything in the database, as text."""
    with store._database.reading() as connection:
        return {
            name: sorted(map(repr, connection.execute(sa.select(table)).all()))
            for name, table in schema.metadata.tables.items()
        }


def test_without_readings_and_causes_the_same_is_told(lived: Lived) -> None:
    whole, bare = lived.again(readings=True, causes=True), lived.again()
    assert bare.readings == []
    assert [told.id for told in bare.told] == [told.id for told in whole.told]

    def life(row: IncidentRow) -> tuple[object, ...]:
        return row.id, row.severity, row.opened_ms, row.resolved_ms, row.revision, row.detail.get("told")

    assert [life(row) for row in bare.incidents] == [life(row) for row in whole.incidents]
    assert (bare.alerts, bare.unlisted) == (whole.alerts, whole.unlisted)
    assert bare.alerts == sum(row.flagged for row in lived.store.kept(MODEL, space="fraud", limit=10_000))


def test_several_variants_in_one_pass_are_what_each_is_alone(lived: Lived) -> None:
    variants = variants_of(
        lived.settings, MODEL, ["alarms.page_every_days=1, alarms.warn_every_days=.1", "fraud.alerts.most=3"], []
    )
    together = replay(lived.store, MODEL, variants)
    assert [one.name for one in together] == ["as now", *(variant.name for variant in variants[1:])]
    assert together == [replay(lived.store, MODEL, [variant])[0] for variant in variants]
    eager, few = together[1:]
    assert eager.incidents != together[0].incidents
    assert few.alerts < together[0].alerts
    assert few.incidents != together[0].incidents, "a wave says how many hits are beyond the budget"


@pytest.mark.parametrize("processes", [2, 3])
def test_segments_folded_by_several_processes_say_the_same(lived: Lived, processes: int) -> None:
    variants = variants_of(lived.settings, MODEL, ["alarms.page_every_days=1, alarms.warn_every_days=.1"], [])
    alone = replay(lived.store, MODEL, variants, processes=1)
    assert replay(lived.store, MODEL, variants, processes=processes) == alone
    assert len({row.segment for row in alone[0].incidents}) > 1


def test_a_process_that_cannot_go_on_ends_the_replay(
    lived: Lived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(lived.store), "url", f"sqlite:///{tmp_path}/nowhere/driftd.db")
    with pytest.raises(DriftdError, match="ended before it was done"):
        replay(lived.store, MODEL, [Variant("now", lived.settings)], processes=2)


def test_a_period_is_judged_by_alarms_that_know_what_came_before(lived: Lived) -> None:
    whole = lived.again(readings=True)
    middle = START_MS + EVERY_MS * (BASELINE + 8_000)
    later = lived.again(readings=True, from_ms=middle)
    assert later.judged_ms[0] == -(-middle // 10_000) * 10_000
    assert later.readings == [row for row in whole.readings if row.start_ms >= middle]
    assert later.incidents == [row for row in whole.incidents if (row.resolved_ms or 2**60) > later.judged_ms[0]]
    assert later.told == whole.told[-len(later.told) :] != whole.told
    until = lived.again(readings=True, to_ms=middle)
    assert until.readings == [row for row in whole.readings if row.start_ms < middle]


def test_a_time_of_which_nothing_is_stored_is_refused(lived: Lived) -> None:
    with pytest.raises(InvalidInput, match=r"No summaries of cards are stored of that time"):
        lived.again(to_ms=1)


# --- references -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    """A model whose references were replaced while it was watched."""
    folder = tmp_path_factory.mktemp("promoted")
    settings = settings_for(folder, f"sqlite:///{folder}/driftd.db")
    stream, content = folder / "stream.jsonl", lines()
    with Store.open(settings.database) as store:
        store.migrate()
        stream.write_bytes(b"\n".join(content[: BASELINE + 5_000]) + b"\n")
        run(settings, store, ends=False)
        start = START_MS + EVERY_MS * 1_000
        from_source(settings, MODEL, start_ms=start, end_ms=None, progress=lambda step, share: None)
        with stream.open("ab") as file:
            file.write(b"\n".join(content[BASELINE + 5_000 :]) + b"\n")
        run(settings, store)
        yield Lived(settings, store)


def test_a_history_with_two_references_is_judged_with_each_in_its_time(promoted: Lived) -> None:
    again = promoted.again(readings=True, causes=True)
    assert {row.reference for row in again.readings} == {1, 2}
    assert in_order(again.readings) == in_order(promoted.store.readings(MODEL))
    assert sorted(again.incidents, key=lambda row: row.id) == sorted(promoted.incidents(), key=lambda row: row.id)
    assert [notification.id for notification in again.told] == promoted.told()


def test_a_reference_whose_folder_is_gone_is_named(promoted: Lived) -> None:
    (row, _) = promoted.store.references(MODEL, "input")
    hidden = Path(row.path).rename(Path(row.path).with_name("hidden"))
    try:
        with pytest.raises(InvalidReference, match=str(row.path)):
            promoted.again()
    finally:
        hidden.rename(row.path)


# --- history that has aged --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lived, Lived]]:
    """A stream before and after its stored summaries were added up: eight blocks each, but for the newest."""
    folder = tmp_path_factory.mktemp("aged")
    (folder / "stream.jsonl").write_bytes(b"\n".join(lines()) + b"\n")
    settings = settings_for(folder, f"sqlite:///{folder}/driftd.db")
    with Store.open(settings.database) as store:
        store.migrate()
        run(settings, store)
    copy = settings.model_copy(update={"database": f"sqlite:///{folder}/aged.db"})
    shutil.copy(folder / "driftd.db", folder / "aged.db")
    with Store.open(settings.database) as fine, Store.open(copy.database) as coarse:
        assert coarse.merge_summaries(MODEL, [AgeRule(10, 8)], sum_of_summaries, most=100_000).into > 0
        yield Lived(settings, fine), Lived(copy, coarse)


def test_a_history_that_was_added_up_shows_the_same_a_little_later(aged: tuple[Lived, Lived]) -> None:
    fine, coarse = (one.again(readings=True) for one in aged)
    assert [seconds for _, _, seconds in fine.resolution] == [10.0]
    assert [seconds for _, _, seconds in coarse.resolution] == [80.0, 10.0]
    assert coarse.resolution[0][1] == coarse.resolution[1][0]
    wide = [row for row in coarse.readings if row.end_ms - row.start_ms == 80_000]
    assert wide and all(row.start_ms % 80_000 == 0 for row in wide)
    for key in (("drift", "input", "country=de"), ("fraud_wave", "", "")):
        (early,) = [row for row in fine.incidents if (row.kind, row.space, row.segment) == key]
        (late,) = [row for row in coarse.incidents if (row.kind, row.space, row.segment) == key]
        # An alarm of ready vectors waits for a look at their encoder, which is one at the next summary.
        most = 160_000 if key[0] == "drift" else 80_000
        assert -80_000 <= late.opened_ms - early.opened_ms <= most
        assert abs(late.onset_ms - early.onset_ms) <= 80_000


def test_where_alarms_begin_anew_a_replay_says_so(aged: tuple[Lived, Lived], tmp_path: Path) -> None:
    fine, _ = aged
    whole = fine.again()
    assert whole.notes == []
    start = START_MS + EVERY_MS * (BASELINE + 7_000)
    shutil.copy(fine.settings.database.removeprefix("sqlite:///"), tmp_path / "pruned.db")
    short = fine.settings.retention.model_copy(update={"summaries_days": 0.001})
    with Store.open(f"sqlite:///{tmp_path}/pruned.db") as store:
        with store._database.writing() as connection:
            connection.execute(sa.delete(schema.summaries).where(schema.summaries.c.block < start // 10_000))
        later = Lived(fine.settings.model_copy(update={"retention": short}), store).again()
    assert [note for note in later.notes if "Alarms begin anew at 2026-03-02 08:08:40Z" in note], later.notes

    def drift(replayed: Replayed) -> int:
        rows = [row for row in replayed.incidents if row.kind == "drift" and row.segment == "country=de"]
        return max(row.opened_ms for row in rows)

    # A strong change after it is seen as fast, or nearly so.
    assert abs(drift(later) - drift(whole)) <= 20_000
