"""`driftd nearest`: neighbours and vector arithmetic on references, and what careless people do."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from connectors.database.rows import KeptRecord
from connectors.records import Partition
from dashboards.nearest_picture import MAX_GROUPS, nearest_html, spread
from detectors.errors import DriftdError, InvalidInput
from detectors.reference import ANGULAR, STANDARD, Reference
from monitor.cli import app
from monitor.nearest import Neighbourhood, example_of, words_of
from monitor.nearest_cli import nearest as nearest_command
from monitor.nearest_drawing import map_of
from tests.acceptance.command import ROOT, driftd
from tests.servers.embeddings import MODEL, EmbeddingServer, vector_of

START_MS = 1_772_438_400_000
KINDS, PEOPLE = ("king", "queen", "prince"), ("man", "woman", "child")
WORDS = [f"{kind} {person}" for kind in KINDS for person in PEOPLE]


def concepts(n: int = 900) -> tuple[np.ndarray[Any, np.dtype[np.float32]], list[str]]:
    """Records of nine words; a word's vector is the sum of two directions, with a little noise."""
    random = np.random.default_rng(5)
    axes = {name: random.normal(size=12) for name in KINDS + PEOPLE}
    words = [WORDS[row % 9] for row in range(n)]
    vectors = np.array([axes[a] + axes[b] for a, b in (word.split() for word in words)])
    return (vectors + 0.02 * random.normal(size=vectors.shape)).astype(np.float32), words


@pytest.fixture(scope="module")
def reference() -> Reference:
    vectors, words = concepts()
    return Reference.build(
        vectors,
        geometry=ANGULAR,
        ids=[f"r{row}" for row in range(len(words))],
        excerpts=[json.dumps({"word": word, "kind": word.split()[0]}) for word in words],
    )


def word(record_id: str) -> str:
    return WORDS[int(record_id[1:]) % 9]


def of_word(place: Neighbourhood, wanted: str) -> str:
    return next(record_id for record_id in place.ids if word(record_id) == wanted)


def test_the_neighbours_of_a_record_are_of_its_kind_and_not_itself(reference: Reference) -> None:
    place = Neighbourhood(reference, name="here")
    record = of_word(place, "king man")
    found = place.look([place.record(record)], k=5)
    assert [word(one.id) for one in found.neighbours] == ["king man"] * 5
    assert record not in [one.id for one in found.neighbours]
    closeness = [one.closeness for one in found.neighbours]
    assert found.measure == "cosine" and closeness == sorted(closeness, reverse=True) and 0.9 < closeness[0] <= 1.0
    assert found.neighbours[0].words == "king man · kind: king"
    assert found.p_value > 0.001


def test_king_minus_man_plus_woman_has_what_is_like_both(reference: Reference) -> None:
    place = Neighbourhood(reference, name="here")
    terms = [
        place.record(of_word(place, "king man")),
        place.record(of_word(place, "queen man"), -1),
        place.record(of_word(place, "queen woman")),
    ]
    found = place.look(terms, k=3)
    assert [word(one.id) for one in found.neighbours] == ["king woman"] * 3
    assert re.fullmatch(r"r\d+ - r\d+ \+ r\d+", found.query)


def test_a_sum_of_nothing_is_said(reference: Reference) -> None:
    place = Neighbourhood(reference, name="here")
    record = place.record(place.ids[0])
    with pytest.raises(InvalidInput, match="nothing is left"):
        place.look([record, place.record(place.ids[0], -1)], k=3)


def test_a_foreign_vector_is_very_strange_and_a_known_one_is_not(reference: Reference) -> None:
    place = Neighbourhood(reference, name="here")
    strange = place.look([place.vector(np.eye(12, dtype=np.float32)[3], "x")], k=3)
    known = place.look([place.vector(concepts()[0][4], "y")], k=3)
    assert strange.p_value < 0.01 < known.p_value
    assert strange.score > known.score and "strange" in strange.strangeness and known.strangeness.startswith("usual")


def test_the_score_is_the_one_that_a_record_would_have(reference: Reference) -> None:
    place = Neighbourhood(reference, name="here")
    vector = concepts()[0][7] + 0.3
    found, scored = place.look([place.vector(vector, "x")], k=1), reference.score(vector[None])
    assert found.score == pytest.approx(float(scored.distance[0]), abs=1e-4)
    assert found.prototype == scored.nearest[0]


def test_records_of_one_vector_are_shown_once() -> None:
    vectors = np.repeat(np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32), 10, axis=0)
    reference = Reference.build(vectors, geometry=STANDARD)
    place = Neighbourhood(reference, name="here")
    found = place.look([place.vector(vectors[0], "x")], k=4)
    assert len({reference.exemplars[one.exemplar].tobytes() for one in found.neighbours}) == 4
    assert found.neighbours[0].times > 1 and found.measure == "distance"
    distances = [one.closeness for one in found.neighbours]
    assert distances == sorted(distances) and distances[0] == pytest.approx(0.0, abs=1e-4)
    assert found.neighbours[0].id.startswith("row ")
    row = found.neighbours[1].id.removeprefix("row ")
    assert place.look([place.record(row)], k=1).neighbours[0].id != f"row {row}"


def kept_record(vector: bytes | None, reference: int = 3) -> KeptRecord:
    return KeptRecord(
        Partition("t", 0), 1, START_MS, "input", 1, "late", "outlier", 1.0, 0.001, reference, -1, None, None, {}, {},
        vector=vector,
    )  # fmt: skip


def test_a_record_that_was_kept_is_found_by_its_vector(reference: Reference) -> None:
    x = reference.exemplars[5].astype("<f2").tobytes()
    place = Neighbourhood(reference, name="here", kept=lambda name: kept_record(x), version=3)
    found = place.look([place.record("late")], k=1)
    assert found.neighbours[0].exemplar == 5  # not left out: it is another record
    for record, said in ((kept_record(None), "keep_vectors"), (kept_record(x, 2), "version 2")):
        with pytest.raises(InvalidInput) as raised:
            Neighbourhood(reference, name="here", kept=lambda name, r=record: r, version=3).record("late")
        assert said in str(raised.value)


def test_an_unknown_record_is_answered_with_known_ones(reference: Reference) -> None:
    place = Neighbourhood(reference, name="here")
    near = place.ids[3]
    with pytest.raises(InvalidInput) as raised:
        place.record(near + "x")
    assert near in raised.value.hint


def test_what_cannot_be_looked_up_says_what_to_do(reference: Reference) -> None:
    vectors = concepts()[0]
    with pytest.raises(InvalidInput, match="exemplars"):
        Neighbourhood(Reference.build(vectors, exemplars=0), name="here")
    place = Neighbourhood(reference, name="here", without_embedder="name the settings")
    with pytest.raises(InvalidInput) as raised:
        place.term("a text")
    assert "name the settings" in raised.value.hint
    with pytest.raises(DriftdError, match="12"):
        place.vector(np.ones(5, dtype=np.float32), "x")


def test_an_example_names_every_field() -> None:
    assert example_of(["/a", "/in/b", "/in/c"]) == '{"a": ..., "in": {"b": ..., "c": ...}}'
    assert example_of(["header:tenant"]) == '{"header:tenant": ...}'


@pytest.mark.parametrize(
    ("excerpt", "words"),
    [
        (
            '{"t": "where is my card", "label": "a_label_of_more_than_24_characters"}',
            "where is my card · label: a_label_of_more_than_...",
        ),
        ('{"amount": 3.5, "land": "NO"}', "amount: 3.5 · land: NO"),
        ('{"t": "cut in the mid', '{"t": "cut in the mid'),
        ('["a"]', "['a']"),
        ('{"a": null}', ""),
    ],
)
def test_a_record_is_said_in_a_few_words(excerpt: str, words: str) -> None:
    assert words_of(excerpt) == words


# --- the map ----------------------------------------------------------------------------------------------------------


def test_the_map_is_coloured_by_a_kept_field_of_few_values(reference: Reference) -> None:
    place = Neighbourhood(reference, name="here")
    found = place.look([place.record(of_word(place, "king man"))], k=5)
    picture = map_of(place, found)
    assert set(picture.groups) == {"king", "queen", "prince"} and picture.grouped_by.startswith("kind")
    assert picture.groups[picture.neighbours[0].group] == "king"
    assert 0 < picture.explained <= 1 and np.isfinite(picture.dots).all()
    grouped = map_of(place, found, by="groups")
    assert len(grouped.groups) == MAX_GROUPS and "alike" in grouped.grouped_by
    with pytest.raises(InvalidInput, match="colour") as raised:
        map_of(place, found, by="colour")
    assert "kind" in raised.value.hint


def test_the_page_needs_nothing_and_shows_no_markup_of_a_record() -> None:
    vectors, words = concepts()
    evil = [json.dumps({"t": f"<script>alert({row})</script> $x$ {word}"}) for row, word in enumerate(words)]
    place = Neighbourhood(Reference.build(vectors, excerpts=evil), name="here")
    terms = [place.vector(vectors[0], "<b>a</b>"), place.vector(vectors[1], "b", -1), place.vector(vectors[2], "c")]
    picture = map_of(place, place.look(terms, k=12))
    page = nearest_html(picture)
    assert "<script>alert" not in page and "<b>a" not in page and "&lt;script&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and page == nearest_html(picture)
    assert page.count('class="number"') == 2 * 12


def test_numbers_do_not_lie_on_each_other() -> None:
    spots = spread([(0.0, 0.0)] * 30, avoid=[(0.0, 0.0)], room=10.0)
    apart = [np.hypot(a[0] - b[0], a[1] - b[1]) for i, a in enumerate(spots) for b in spots[:i]]
    assert min(apart) >= 10.0 and min(np.hypot(*spot) for spot in spots) >= 10.0


def test_numbered_marks_at_the_edge_of_a_map_are_not_cut_off() -> None:
    spots = spread([(16.0, 300.0)] * 12, avoid=[(16.0, 300.0)], room=20.0, within=(690.0, 640.0))
    assert min(x for x, _ in spots) >= 10.0


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of texts and of a table, with references, and the server that embeds the texts."""
    folder = tmp_path_factory.mktemp("nearest")
    with EmbeddingServer(dimension=16) as server, (folder / "stream.jsonl").open("w") as stream:
        for row in range(1_200):
            record = {"id": f"q{row}", "ts": START_MS + row, "text": WORDS[row % 9], "in": {"n": row % 17, "c": "NO"}}
            stream.write(json.dumps(record) + "\n")
        stream.flush()
        embedder = {"kind": "http", "protocol": "v2", "url": server.url, "model": MODEL, "field": "/text"}
        tabular = {"kind": "tabular", "numbers": ["/in/n"], "categories": ["/in/c"], "hash_dimension": 4}
        settings = {
            "database": f"sqlite:///{folder}/driftd.db",
            "references": str(folder / "references"),
            "models": {
                "royal": {
                    "source": {"kind": "files", "path": str(folder / "stream.jsonl")},
                    "record": {"id": "/id", "time": "/ts", "keep": ["/text"]},
                    "spaces": {"words": {"embedder": embedder}, "table": {"embedder": tabular}},
                    "reference": {"collect": 1_000, "canaries": 0},
                }
            },
        }
        (folder / "driftd.yaml").write_text(json.dumps(settings))
        empty = settings | {"database": f"sqlite:///{folder}/empty.db"}
        (folder / "empty.yaml").write_text(json.dumps(empty))
        np.save(folder / "two.npy", np.array([vector_of("king man", 16), vector_of("queen woman", 16)], np.float32))
        built = CliRunner().invoke(
            app, ["reference", "build", "-s", str(folder / "driftd.yaml")], catch_exceptions=False
        )
        assert built.exit_code == 0, built.output
        yield folder


def nearest(folder: Path, *words: str, settings: str = "driftd.yaml") -> Any:
    done = CliRunner().invoke(app, ["nearest", *words, "-s", str(folder / settings), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_command_finds_what_a_text_is_like(folder: Path) -> None:
    found = nearest(folder, "king man", "--space", "words", "-k", "3")
    assert found["neighbours"][0]["words"] == "king man" and found["neighbours"][0]["cosine"] == pytest.approx(1.0)
    assert found["neighbours"][0]["times"] > 1 and len(found["neighbours"]) == 3
    assert found["reference"] == "royal/words version 1" and found["p_value"] > 0.001


def test_the_command_adds_and_takes_away(folder: Path) -> None:
    words = ("king man", "--minus", "man", "--plus", "woman", "--space", "words", "-k", "1")
    assert nearest(folder, *words)["neighbours"][0]["words"] == "king woman"


def test_the_command_takes_fields_as_json_and_vectors_from_files(folder: Path) -> None:
    found = nearest(folder, '{"in": {"n": 3, "c": "NO"}}', "--space", "table")
    assert found["neighbours"][0]["distance"] == pytest.approx(0.0, abs=1e-5)
    found = nearest(folder, "--vector", f"{folder}/two.npy:1", "--space", "words")
    assert found["neighbours"][0]["words"] == "queen woman"
    found = nearest(folder, "--id", found["neighbours"][0]["id"], "--space", "words")
    assert found["neighbours"][0]["words"] != "queen woman"  # those of the same vector are the record's own
    by_folder = nearest(folder, "king man", "--reference", str(folder / "references/royal/words/1"))
    assert by_folder["neighbours"][0]["words"] == "king man"


def test_every_command_of_the_document_is_understood() -> None:
    document = (ROOT / "docs" / "nearest.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\$ driftd nearest (.*)$|`driftd nearest (.*?)`", document, re.MULTILINE)
    assert len(lines) >= 7
    alone = typer.Typer()
    alone.command()(nearest_command)
    for line in ("".join(both) for both in lines):
        assert get_command(alone).make_context("nearest", shlex.split(line)).params


@pytest.mark.parametrize("name", ["map.png", "map.html"])
def test_the_command_draws_a_map(folder: Path, name: str) -> None:
    nearest(
        folder, "king man", "--minus", "man", "--plus", "woman", "--space", "words", "--picture", str(folder / name)
    )
    drawn = (folder / name).read_bytes()
    assert (
        drawn.startswith(b"\x89PNG" if name.endswith("png") else b"<!doctype html>") and 20_000 < len(drawn) < 2_000_000
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "What shall be looked for?"),
        (["a", "--id", "b"], "One query at a time"),
        (["king"], "--space words|table"),
        (["king", "--space", "wrods"], "has no space wrods"),
        (["king", "--model", "x"], "--model royal"),
        (["  ", "--space", "words"], "query is empty"),
        (["king", "--space", "table"], '{"in": {"n": ..., "c": ...}}'),
        (['{"in": {"n": "x"}}', "--space", "table"], "needs the fields /in/n, /in/c"),
        (["--id", "q9999999", "--space", "words"], "Known are, for example: q"),
        (["--vector", "FOLDER/two.npy", "--space", "words"], "--vector FOLDER/two.npy:0"),
        (["--vector", "FOLDER/two.npy:7", "--space", "words"], "has no row 7"),
        (["king", "--space", "words", "--picture", "map.gif"], "PNG or an HTML"),
        (["king", "--space", "words", "--by", "text"], "--picture"),
    ],
)
def test_careless_people_are_told_what_to_type(folder: Path, words: list[str], said: str) -> None:
    words = [one.replace("FOLDER", str(folder)) for one in words]
    with pytest.raises(DriftdError) as raised:
        CliRunner().invoke(app, ["nearest", *words, "-s", str(folder / "driftd.yaml")], catch_exceptions=False)
    assert said.replace("FOLDER", str(folder)) in str(raised.value)
    assert isinstance(raised.value, InvalidInput)


def test_the_field_that_colours_a_map_is_named_with_its_slash_or_without(folder: Path) -> None:
    for name in ("text", "/text"):
        picture = folder / f"by{name.strip('/')}.html"
        nearest(folder, "king", "--space", "words", "--picture", str(picture), "--by", name)
        assert "Colours: /text" in picture.read_text()
        picture.unlink()


def test_without_a_reference_yet_the_command_says_how_to_get_one(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="driftd reference build"):
        nearest(folder, "king", "--space", "words", settings="empty.yaml")


def test_a_reference_of_ready_vectors_is_looked_up_by_row_without_settings(tmp_path: Path) -> None:
    vectors, _ = concepts()
    Reference.build(vectors).save(tmp_path / "1")
    row = str(Reference.load(tmp_path / "1").exemplar_rows[0])
    done = CliRunner().invoke(app, ["nearest", "--id", row, "-r", str(tmp_path / "1"), "-s", str(tmp_path / "none")])
    assert done.exit_code == 0 and "row " in done.stdout and "of the baseline" in done.stderr
    failed = driftd("nearest", "a text", "--reference", "1", cwd=tmp_path)
    assert failed.returncode == 2 and "--vector FILE" in failed.stderr and "Traceback" not in failed.stderr
