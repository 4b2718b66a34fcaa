"""`driftd nearest`: what a reference knows that is like a text, a record or a vector; a - b + c, too."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detectors.errors import InvalidInput
from monitor.terminal import DEFAULT_SETTINGS, AsJson, SettingsPath, put_json, put_table, say

if TYPE_CHECKING:
    from connectors.database.rows import ReferenceRow
    from monitor.nearest import Found, Neighbourhood, Term
    from monitor.settings import Settings

_FILE_AND_ROW = re.compile(r"(.+):(\d+)")


def nearest(
    query: Annotated[
        str | None,
        typer.Argument(
            metavar="[QUERY|-]", help="a text; fields as JSON; id:ID for a record; - reads a text from stdin"
        ),
    ] = None,
    record: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="a record of the baseline, or one that was kept")
    ] = None,
    vector: Annotated[
        str | None, typer.Option("--vector", metavar="FILE[:ROW]", help="a ready vector: .npy, .parquet or .jsonl")
    ] = None,
    plus: Annotated[list[str] | None, typer.Option("--plus", metavar="QUERY", help="add this one")] = None,
    minus: Annotated[list[str] | None, typer.Option("--minus", metavar="QUERY", help="take this one away")] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    model: Annotated[str | None, typer.Option("--model", help="which model, if there are several")] = None,
    space: Annotated[str | None, typer.Option("--space", help="which space, if there are several")] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", "-r", help="folder of a reference, instead of the active one")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="so many neighbours")] = 10,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="draw a map of the reference: a .png or .html file")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="colour the map by this kept field, or by groups of alike records: groups"),
    ] = None,
    field: Annotated[str, typer.Option("--field", help="column of the vectors in .parquet and .jsonl")] = "vector",
    json: AsJson = False,
) -> None:
    """Look for what is alike in a reference, and say how strange the query itself is.

    Examples: driftd nearest "my card was refused"; driftd nearest king --minus man --plus woman;
    driftd nearest --id txn-4711 --picture map.html
    """
    if picture is not None:
        from dashboards.whole_file import is_png

        is_png(picture, example="map")  # refused before the work, not after it
    if by is not None and picture is None:
        raise InvalidInput("--by says how a picture is coloured.", hint="Name the file: --picture map.html")
    if sum(one is not None for one in (query, record, vector)) != 1:
        raise InvalidInput(
            "What shall be looked for?" if (query, record, vector) == (None, None, None) else "One query at a time.",
            hint='Say a text: driftd nearest "my card was refused"; or --id ID; or --vector FILE',
        )
    place = _neighbourhood(settings, model, space, reference)
    terms = [_first(place, query, record, vector, field)]
    terms += [place.term(text, 1) for text in plus or ()] + [place.term(text, -1) for text in minus or ()]
    found = place.look(terms, k=k)
    if json:
        put_json({"reference": place.name, **found.data()})
    else:
        put_table(*table_of(found))
        say(in_words(found, place.name))
    if picture is not None:
        from dashboards.nearest_picture import write_map
        from monitor.nearest_drawing import map_of

        write_map(picture, map_of(place, found, by=by))
        say(f"Wrote {picture}.")


def _first(place: Neighbourhood, query: str | None, record: str | None, vector: str | None, field: str) -> Term:
    if record is not None:
        return place.record(record)
    if vector is not None:
        return _vector(place, vector, field)
    text = sys.stdin.read().strip() if query == "-" else str(query)
    if not text.strip():
        raise InvalidInput("The query is empty.", hint='Say a text: driftd nearest "my card was refused"')
    return place.term(text)


def _vector(place: Neighbourhood, name: str, field: str) -> Term:
    import numpy as np

    from monitor.scoring import read_vectors

    file, row = Path(name), None
    if not file.is_file() and (parts := _FILE_AND_ROW.fullmatch(name)) is not None:
        file, row = Path(parts[1]), int(parts[2])
    _, pieces = read_vectors(file, field)
    vectors = np.concatenate([*pieces] or [np.zeros((0, 0), np.float32)])
    if row is None and len(vectors) > 1:
        raise InvalidInput(f"{file} holds {len(vectors):,} vectors.", hint=f"Name one, from 0 on: --vector {file}:0")
    if (row or 0) >= len(vectors):
        raise InvalidInput(
            f"{file} has no row {row or 0}: it holds {len(vectors):,} vectors.", hint="Rows begin with 0."
        )
    return place.vector(vectors[row or 0], name)


def _neighbourhood(settings: Path, model: str | None, space: str | None, reference: Path | None) -> Neighbourhood:
    """What is looked in: a folder, or the active reference of a space in the settings."""
    from monitor.nearest import Neighbourhood
    from monitor.settings import load_settings

    if reference is None:
        return _of_settings(load_settings(settings), model, space)
    from detectors.reference import Reference

    loaded = Reference.load(reference)
    if not loaded.embedder.kind:
        hint = "It was built from ready vectors: look for one (--vector FILE), or for a record (--id ID)."
        return Neighbourhood(loaded, name=str(reference), without_embedder=hint)
    if not settings.is_file():
        made = f'"{loaded.embedder.kind}" of model {loaded.model}, space {loaded.space}'
        hint = f"It was made by the embedder {made}: name the settings in which that is: --settings FILE"
        return Neighbourhood(loaded, name=str(reference), without_embedder=hint)
    known = load_settings(settings)
    from connectors.database.rows import ReferenceRow

    version = int(reference.name) if reference.name.isdigit() else 0
    row = ReferenceRow(
        model=model or loaded.model,
        space=space or loaded.space,
        version=version,
        path=str(reference),
        records=loaded.n_records,
        dimension=loaded.dimension,
        checksum=loaded.checksum,
        created_ms=loaded.created_ms,
        active=False,
    )
    if row.model not in known.models or row.space not in known.models[row.model].spaces:
        hint = f"{settings} has no model {row.model} with a space {row.space}: --settings FILE, --model, --space"
        return Neighbourhood(loaded, name=str(reference), without_embedder=hint)
    return _with_embedder(known, row, name=str(reference))


def _of_settings(settings: Settings, model: str | None, space: str | None) -> Neighbourhood:
    from monitor.app import open_store

    chosen = settings.model_named(model)
    spaces = list(settings.models[chosen].spaces)
    if space not in spaces:
        if space is not None or len(spaces) > 1:
            problem = f"{chosen} has several spaces." if space is None else f"{chosen} has no space {space}."
            raise InvalidInput(problem, hint=f"Choose: --space {'|'.join(spaces)}")
        space = spaces[0]
    with open_store(settings) as store:
        row = store.active_reference(chosen, space)
    if row is None:
        raise InvalidInput(
            f"{chosen} has no reference of {space} yet.",
            hint="driftd run collects one; or build it: driftd reference build; or name a folder: --reference DIR",
        )
    return _with_embedder(settings, row, name=f"{chosen}/{space} version {row.version}")


def _with_embedder(settings: Settings, row: ReferenceRow, *, name: str) -> Neighbourhood:
    from connectors.database.rows import KeptRecord
    from monitor.app import open_store
    from monitor.nearest import Neighbourhood
    from monitor.spaces import load_spaces

    model = settings.models[row.model]
    embedder = model.spaces[row.space].embedder.build()
    [loaded] = load_spaces([row], model, {row.space: embedder})

    def kept(record_id: str) -> KeptRecord | None:
        with open_store(settings) as store:
            return store.find_kept(row.model, [record_id], space=row.space).get(record_id)

    return Neighbourhood(loaded.reference, name=name, embedder=embedder, kept=kept, version=row.version)


def table_of(found: Found) -> tuple[list[str], list[list[str]]]:
    """The neighbours as a table."""
    has_words = any(one.words for one in found.neighbours)
    columns = [found.measure, "id", *(["record"] if has_words else []), "prototype", "its share"]
    rows = []
    for one in found.neighbours:
        times = f" (x{one.times})" if one.times > 1 else ""
        words = [one.words + times] if has_words else []
        name = one.id if has_words else one.id + times
        rows.append([f"{one.closeness:.3f}", name, *words, str(one.prototype), f"{100 * one.share:.2g} %"])
    return columns, rows


def in_words(found: Found, reference: str) -> str:
    """What the query is to the reference, in one line."""
    return (
        f"{found.query}: {found.strangeness} (score {found.score:.3f}, p {found.p_value:.2g}, nearest prototype "
        f"{found.prototype}; {reference})."
    )
