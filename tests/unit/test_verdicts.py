"""The verdict in the fold: what is said of a model after each block, however the blocks and true answers come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from connectors.database.rows import DeploymentRow, FoldState, NewTruth, TruthRow, VerdictRow
from detectors.conformal import N_BINS, P_EDGES
from detectors.performance import ConfidenceCalibration
from detectors.reference import Reference
from detectors.summary import CONFIDENCE_BINS
from monitor.evidence import Evidence
from monitor.pipeline import Space
from monitor.settings import Settings
from monitor.verdicts import Traffic, Verdicts

BLOCK_MS = 10_000
FIRST = 1_000
RECORDS = 200  # of a block
DAY_MS = 86_400_000
# Three of four answers are given with a confidence of .9, of which .96 are right; of the others half are.
SURE, UNSURE = 45, 25


def calibration() -> ConfidenceCalibration:
    counts, right = np.zeros(CONFIDENCE_BINS, np.int64), np.zeros(CONFIDENCE_BINS)
    counts[[UNSURE, SURE]], right[[UNSURE, SURE]] = [5_000, 15_000], [2_500, 14_400]
    return ConfidenceCalibration(counts, right)


@pytest.fixture(scope="module")
def reference() -> Reference:
    vectors = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    return Reference.build(vectors, performance=calibration().to_arrays())


def rules(
    reference: Reference,
    *,
    version: int = 1,
    harm: str = "normal",
    label: str | None = None,
    page_every_days: float = 90.0,
    **performance: Any,
) -> Verdicts:
    settings = Settings.model_validate(
        {
            "alarms": {"page_every_days": page_every_days, "warn_every_days": min(1.0, page_every_days)},
            "models": {
                "m": {
                    "source": {"kind": "files", "path": "x.jsonl"},
                    "record": {} if label is None else {"label": label},
                    "spaces": {"input": {"embedder": {"kind": "vector", "field": "/v"}}},
                    "performance": {"window": "10m", **performance},
                    "harm": harm,
                }
            },
        }
    )
    space = Space("input", cast(Any, None), reference, version, {})
    return Verdicts("m", settings, spaces=[space], only_warns={"input": ""})


def traffic(*, novel: float = 0.0, unsure: float = 0.25, records: int = RECORDS) -> dict[str, Traffic]:
    """The expected counts of a block, so that nothing is left to chance."""
    h = np.diff(np.concatenate([[0.0], P_EDGES])) * records * (1 - novel)
    h[0] += records * novel
    whole = np.floor(h).astype(np.int64)
    whole[-1] += records - whole.sum()
    confidence = np.zeros(CONFIDENCE_BINS, np.int64)
    confidence[UNSURE] = round(records * unsure)
    confidence[SURE] = records - confidence[UNSURE]
    return {"input": Traffic(records, whole, confidence)}


def drift(block: int, severity: Any = "page", *, channel: str = "shape") -> Evidence:
    return Evidence(
        model="m",
        kind="drift",
        space="input",
        block=block,
        start_ms=block * BLOCK_MS,
        end_ms=(block + 1) * BLOCK_MS,
        severity=severity,
        active=True,
        channel=channel,
        values={"channels": channel},
    )


class Answers:
    """True answers, as the database gives them; ``at`` says how many counted at which block, or nothing does."""

    def __init__(self, said: Sequence[NewTruth] = (), at: dict[int, int] | None = None) -> None:
        self.rows = [TruthRow(number, "m", number, 0, one) for number, one in enumerate(said, start=1)]
        self.at = at
        self.by_records: list[TruthRow] = []

    def truths(self, after: int, most: int, *, upto: int | None = None) -> list[TruthRow]:
        return [row for row in self.rows if row.version > after and (upto is None or row.version <= upto)][:most]

    def said(self, from_ms: int, to_ms: int) -> list[TruthRow]:
        found = [row for row in self.by_records if from_ms <= (row.said.event_ms or 0) < to_ms]
        return sorted(found, key=lambda row: (row.said.event_ms or 0, row.said.origin))

    def truths_at(self, from_block: int, below: int) -> dict[int, int] | None:
        return None if self.at is None else {at: n for at, n in self.at.items() if from_block <= at < below}


def told(n: int, *, wrong_every: int, event_ms: int | None = None, start: int = 0) -> list[NewTruth]:
    return [
        NewTruth(f"r{number}", "a", 0, 1.0, f"o{number}", "b" if number % wrong_every == 0 else "a", event_ms=event_ms)
        for number in range(start + 1, start + n + 1)
    ]


Block = tuple[Mapping[str, Traffic], Sequence[Evidence]]


def play(
    chosen: Verdicts,
    blocks: Sequence[Block],
    *,
    cuts: Sequence[int] = (),
    answers: Mapping[int, Answers] | None = None,
    state: FoldState | None = None,
    deployments: Sequence[DeploymentRow] = (),
    first: int = FIRST,
) -> tuple[list[VerdictRow], list[Evidence], FoldState | None]:
    """Blocks from the first on, in steps that end before the cuts; ``answers`` by the first block of a step."""
    found: list[VerdictRow] = []
    stale: list[Evidence] = []
    edges = [0, *cuts, len(blocks)]
    for begin, end in pairwise(edges):
        judge = chosen.restored(state)
        told_now = (answers or {}).get(begin, Answers())
        judge.hear(told_now, told_now, first + begin, first + end)
        for place in range(begin, end):
            row, said = judge.push(first + place, *blocks[place], deployments)
            found.append(row)
            stale += said
        state = judge.row()
    return found, stale, state


def calm(n: int, **changes: Any) -> list[Block]:
    return [(traffic(**changes), ())] * n


def test_a_calm_model_is_fresh_once_there_are_enough_records(reference: Reference) -> None:
    found, stale, _ = play(rules(reference), calm(80))
    assert [row.word for row in found[:2]] == ["too few records"] * 2 and {row.word for row in found[4:]} == {"fresh"}
    last = found[-1]
    assert abs(last.estimated - calibration().accuracy) < 0.005 and last.low < last.estimated < last.high
    assert last.records <= 60 / 16 * 17 * RECORDS, "the window moves on"
    assert last.floor == pytest.approx(calibration().floor(0.01)) and not stale


def test_any_cut_into_steps_gives_the_same_rows_and_state(reference: Reference) -> None:
    blocks = calm(30)
    blocks += [(traffic(novel=0.2), [drift(FIRST + 30 + n, "page" if n else "warn")]) for n in range(12)]
    blocks += calm(70)
    whole = play(rules(reference), blocks)
    assert {row.word for row in whole[0]} >= {"fresh", "degraded"}
    for cuts in ([1, 2, 3, 31, 44, 90], range(1, len(blocks))):
        again = play(rules(reference), blocks, cuts=list(cuts))
        assert again[2] == whole[2] and repr(again[:2]) == repr(whole[:2])


def test_new_content_degrades_a_model_by_estimate_and_its_end_makes_it_fresh(reference: Reference) -> None:
    blocks = calm(60) + [(traffic(novel=0.2), [drift(FIRST + 60 + n)]) for n in range(60)] + calm(100)
    found, stale, _ = play(rules(reference), blocks)
    at_height = found[118]
    assert at_height.word == "degraded" and at_height.since_ms <= (FIRST + 66) * BLOCK_MS, (
        "what came before the drift does not hide it"
    )
    assert at_height.novel == pytest.approx(0.2, abs=0.02)
    assert at_height.low < at_height.estimated * (1 - at_height.novel) < at_height.floor < at_height.high
    assert "like nothing in the baseline" in at_height.reasons[0] and "without labels" in at_height.reasons[-1]
    assert {entry.severity for entry in stale} == {"warn"}, "nobody has confirmed it"
    assert stale[0].kind == "stale" and stale[0].values["word"] == "degraded" and stale[0].onset_ms is not None
    assert found[-1].word == "fresh" and stale[-1].block < FIRST + 160
    urgent = play(rules(reference, harm="high"), blocks)[1]
    assert {entry.severity for entry in urgent} == {"page"}


def test_drift_that_leaves_the_answers_right_holds(reference: Reference) -> None:
    moved = [(traffic(), [drift(FIRST + 60 + n, channel="level")]) for n in range(40)]
    found, stale, _ = play(rules(reference), calm(60) + moved)
    assert found[-1].word == "drifted, holding" and not stale
    mixed = [(traffic(), [drift(FIRST + 60 + n, channel="mix")]) for n in range(40)]
    assert play(rules(reference), calm(60) + mixed)[0][-1].word == "mix changed"


def test_true_answers_prove_what_no_estimate_sees(reference: Reference) -> None:
    answers = {20: Answers(told(400, wrong_every=4))}
    found, stale, _ = play(rules(reference), calm(40), cuts=[20], answers=answers)
    assert found[19].word == "fresh" and found[20].word == "degraded"
    assert (found[20].labels, found[20].realised, found[20].truths) == (400, 0.75, 400)
    assert found[20].evidence > math.log10(500) and "prove" in found[20].reasons[0]
    assert stale[0].severity == "page" and stale[0].channel == "labels"
    right = play(rules(reference), calm(40), cuts=[20], answers={20: Answers(told(400, wrong_every=8))})[0]
    assert right[-1].word == "fresh" and right[-1].realised == pytest.approx(0.875)


def test_what_is_proven_is_not_taken_back_for_a_few_right_answers(reference: Reference) -> None:
    # A little worse than the floor: the evidence comes near what proves it again and again.
    wrong = np.random.default_rng(0).random(600) < 0.2
    said = Answers(
        [NewTruth(f"r{n}", "a", 0, 1.0, f"o{n}", "b" if one else "a") for n, one in enumerate(wrong.tolist())]
    ).rows
    answers = {place: Answers() for place in range(1, 151)}
    for place, one in answers.items():
        one.rows = said[: 4 * place]
    often = rules(reference, page_every_days=0.5)  # so that 500 labels between false alarms are enough
    words = [row.word for row in play(often, calm(151), cuts=list(answers), answers=answers)[0]]
    proofs = sum(one == "degraded" and before != "degraded" for before, one in pairwise(words))
    assert proofs == 1


def test_true_answers_that_come_in_parts_count_like_all_at_once_in_their_order(reference: Reference) -> None:
    said = told(900, wrong_every=7)
    at_once = play(rules(reference), calm(30), cuts=[10], answers={10: Answers(said)})
    rows = Answers(said)
    in_parts: dict[int, Answers] = {}
    for place, upto in ((10, 300), (11, 310), (20, 900)):
        in_parts[place] = Answers()
        in_parts[place].rows = rows.rows[:upto]
    parts = play(rules(reference), calm(30), cuts=[10, 11, 20], answers=in_parts)
    assert parts[0][-1].realised == at_once[0][-1].realised and parts[0][-1].truths == 900


def test_history_counts_true_answers_at_the_blocks_at_which_they_counted_live(reference: Reference) -> None:
    said = told(700, wrong_every=5)
    rows = Answers(said).rows
    live: dict[int, Answers] = {}
    for place, upto in ((5, 200), (17, 650), (30, 700)):
        live[place] = Answers()
        live[place].rows = rows[:upto]
    blocks = calm(50)
    first = play(rules(reference), blocks, cuts=[5, 17, 30], answers=live)
    at = {row.block: row.truths for row in first[0]}
    for cuts in ([], [3, 21]):
        told_again = {begin: Answers(said, at) for begin in [0, *cuts]}
        again = play(rules(reference), blocks, cuts=cuts, answers=told_again)
        assert again[2] == first[2] and repr(again[:2]) == repr(first[:2])


def test_what_records_say_counts_with_their_block_whoever_read_them_and_in_whatever_order(reference: Reference) -> None:
    blocks = calm(40)
    said = [
        replace(row, version=number)
        for number, one in enumerate(told(600, wrong_every=4))
        for row in [TruthRow(number, "m", 0, 0, replace(one, event_ms=(FIRST + number // 15) * BLOCK_MS + number))]
    ]
    shuffled = [said[place] for place in np.random.default_rng(1).permutation(len(said)).tolist()]
    found = []
    for rows, cuts in ((said, []), (shuffled, [1, 7, 25])):
        by_step = {begin: Answers() for begin in [0, *cuts]}
        for one in by_step.values():
            one.by_records = rows
        found.append(play(rules(reference, label="/truth"), blocks, cuts=cuts, answers=by_step))
    assert repr(found[0]) == repr(found[1])
    last = found[0][0][-1]
    assert (last.word, last.labels, last.realised, last.truths) == ("degraded", 600, 0.75, 0)
    unmapped = Answers()
    unmapped.by_records = said
    assert play(rules(reference), blocks, answers={0: unmapped})[0][-1].labels == 0


def test_labels_of_before_a_drift_do_not_vouch_for_it(reference: Reference) -> None:
    strange = [(traffic(novel=0.2), [drift(FIRST + 40 + n)]) for n in range(40)]
    old_ms, new_ms = FIRST * BLOCK_MS, (FIRST + 45) * BLOCK_MS
    before = Answers(told(400, wrong_every=10, event_ms=old_ms))
    found = play(rules(reference), calm(40) + strange, cuts=[10], answers={10: before})[0]
    assert found[-1].word == "degraded"
    since = Answers()
    since.rows = before.rows + Answers(told(700, wrong_every=11, event_ms=new_ms)).rows[400:]
    vouched = play(rules(reference), calm(40) + strange, cuts=[10, 60], answers={10: before, 60: since})[0]
    assert vouched[-1].word == "drifted, holding" and vouched[-1].labels == 300


def test_a_new_reference_begins_a_new_window_and_labels_stay(reference: Reference) -> None:
    answers = {0: Answers(told(300, wrong_every=9))}
    *_, state = play(rules(reference), calm(30, novel=0.3), answers=answers)
    found, *_ = play(rules(reference, version=2), calm(3), state=state, first=FIRST + 30)
    assert found[-1].records == 3 * RECORDS and found[-1].novel == pytest.approx(0.0, abs=0.02)
    assert found[-1].labels == 300


def test_an_old_model_and_labels_that_stopped_are_to_be_watched(reference: Reference) -> None:
    aged = rules(reference, max_age="30d")
    deployed = [DeploymentRow("v7", 0, (FIRST + 5) * BLOCK_MS - 31 * DAY_MS)]
    found, *_ = play(aged, calm(30), deployments=deployed)
    assert found[-1].word == "watch" and "performance.max_age allows 30 days" in " ".join(found[-1].reasons)
    assert found[-1].age_s == pytest.approx(31 * 86_400, abs=600)
    quiet = calm(10) + [(traffic(records=2_000), ())] * 4
    state = play(rules(reference), quiet[:10], answers={0: Answers(told(100, wrong_every=9))})[2]
    late, *_ = play(rules(reference), quiet[10:], state=state, first=FIRST + 4 * DAY_MS // BLOCK_MS)
    assert late[-1].word == "watch" and "No true answer has come for 4 days" in " ".join(late[-1].reasons)


def test_without_calibration_and_floor_nothing_is_estimated_and_it_says_so(reference: Reference) -> None:
    bare = replace(reference, performance={})
    found, stale, _ = play(rules(bare), calm(20), answers={0: Answers(told(400, wrong_every=2))})
    assert found[-1].word == "fresh" and math.isnan(found[-1].estimated) and math.isnan(found[-1].floor)
    assert "not known" in found[-1].reasons[0] and not stale
    floor, proven, _ = play(rules(bare, floor=0.7), calm(20), answers={0: Answers(told(400, wrong_every=2))})
    assert floor[-1].word == "degraded" and proven


def test_numbers_are_wrong_by_the_size_of_their_error(reference: Reference, tmp_path: Path) -> None:
    said = [
        NewTruth(f"r{number}", "10", 0, 1.0, f"o{number}", str(10 + number % 5)) for number in range(400)
    ]  # errors 0, 1, 2, 3, 4 of 4
    found, *_ = play(rules(reference, metric="mae", scale=4.0), calm(10), answers={0: Answers(said)})
    assert found[-1].realised == pytest.approx(0.5)
    assert (found[-1].metric_name, found[-1].metric) == ("mae", pytest.approx(2.0))
    words = [*said, NewTruth("r400", "about ten", 0, 1.0, "o400", "10")]
    again, *_ = play(rules(reference, metric="mae", scale=4.0), calm(10), answers={0: Answers(words)})
    assert again[-1].labels == 400 and again[-1].truths == 401, "what is no number counts nowhere"


def test_a_number_that_is_wrong_beyond_all_measure_is_one_wrong_answer(reference: Reference) -> None:
    said = [NewTruth(f"r{n}", "1e300" if n == 0 else "10", 0, 1e6, f"o{n}", "10") for n in range(400)]
    found, _, state = play(rules(reference, metric="mae", scale=4.0), calm(10), answers={0: Answers(said)})
    assert found[-1].labels == 400 and found[-1].realised == pytest.approx(1 - 1 / 400)
    again, *_ = play(rules(reference, metric="mae", scale=4.0), calm(3), state=state, first=FIRST + 10)
    assert again[-1].realised == found[-1].realised


def test_on_another_scale_labels_begin_anew(reference: Reference) -> None:
    state: FoldState | None
    *_, state = play(rules(reference, scale=4.0), calm(10), answers={0: Answers(numbers(300, wrong_by=3))})
    more = Answers(numbers(500, wrong_by=1))
    found, *_ = play(rules(reference, scale=2.0), calm(3), state=state, answers={0: more}, first=FIRST + 10)
    assert (found[-1].labels, found[-1].realised) == (200, 0.5)
    bare, *_ = play(rules(reference), calm(3), state=state, first=FIRST + 10)
    assert bare[-1].labels == 0 and math.isnan(bare[-1].evidence), "nor are they counted as right or wrong"


def numbers(n: int, *, wrong_by: int) -> list[NewTruth]:
    return [NewTruth(f"r{number}", "10", 0, 1.0, f"o{number}", str(10 + wrong_by)) for number in range(n)]


def test_another_metric_is_measured_over_the_same_answers(reference: Reference) -> None:
    said = [
        NewTruth(f"r{n}", "ill" if n % 4 == 0 else "well", 0, 1.0, f"o{n}", "ill" if n % 8 == 0 else "well")
        for n in range(400)
    ]
    found, *_ = play(rules(reference, metric="recall", positive="ill"), calm(10), answers={0: Answers(said)})
    assert (found[-1].realised, found[-1].metric_name, found[-1].metric) == (0.875, "recall", 0.5)
    plain, *_ = play(rules(reference), calm(10), answers={0: Answers(said)})
    assert plain[-1].metric_name == "" and math.isnan(plain[-1].metric)


def test_the_state_stays_small(reference: Reference) -> None:
    blocks = [(traffic(novel=0.1), [drift(FIRST + n, "warn")]) for n in range(300)]
    answers = {place: Answers() for place in range(0, 300, 10)}
    for place, one in answers.items():
        one.rows = Answers(told(100 * (place // 10 + 1), wrong_every=6)).rows
    *_, state = play(rules(reference), blocks, cuts=list(range(10, 300, 10)), answers=answers)
    assert state is not None and len(state.blob) < 60_000
    assert N_BINS == 49
