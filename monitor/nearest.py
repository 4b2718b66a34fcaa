"""What a reference knows that is like a text, a record or a vector: neighbours, and vector arithmetic, for people.

Vectors are compared as they are prepared for scoring, before the soft whitening: by their cosine where they have unit
length, by their Euclidean distance where columns are standardised. "King - man + woman" is the sum of the prepared
vectors with these signs, brought to unit length again (Mikolov, Yih, Zweig 2013); what was put in is left out of what
comes out.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from connectors.database.rows import KeptRecord
from detectors import conformal
from detectors.errors import InvalidInput
from detectors.reference import Reference, nearest_prototypes
from monitor.amounts import percent
from monitor.embedders import Embedder, embed_all
from monitor.pointers import MISSING, parse_place, resolve

Floats = npt.NDArray[np.float32]

SAME: Final = 1e-6  # two vectors so near are one: texts that came twice
WORDS: Final = 80  # characters of a record that are shown


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One summand of a query.

    Attributes:
        sign: 1 or -1.
        name: as it was given.
        x: float32 (d,), prepared.
        known: it is a record of the baseline.
    """

    sign: Literal[1, -1]
    name: str
    x: Floats
    known: bool = False


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A record of the baseline.

    Attributes:
        exemplar: its number among the reference's exemplars.
        id: as the record says; "row 17" where the baseline's records had no ids.
        words: what was kept of it, shortened; "" for nothing.
        closeness: cosine, or Euclidean distance; see `Found.measure`.
        times: how many exemplars have this very vector.
        prototype: the nearest one.
        share: of the baseline's records that are nearest to that prototype.
    """

    exemplar: int
    id: str
    words: str
    closeness: float
    times: int
    prototype: int
    share: float


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a reference says of a query.

    Attributes:
        terms: of the query, in the order given.
        x: float32 (d,), the query, prepared.
        measure: cosine (larger is nearer) or distance (smaller is nearer).
        score, p_value: how strange the query itself is, as a record would be scored.
        prototype: the nearest one.
        neighbours: nearest first.
    """

    terms: tuple[Term, ...]
    x: Floats
    measure: Literal["cosine", "distance"]
    score: float
    p_value: float
    prototype: int
    neighbours: tuple[Neighbour, ...]

    @property
    def query(self) -> str:
        """The query in one line: "king - man + woman"."""
        parts = [f"{'+' if term.sign > 0 else '-'} {shortened(term.name, 60)}" for term in self.terms]
        return " ".join(parts).removeprefix("+ ")

    @property
    def strangeness(self) -> str:
        """How strange the query itself is, in words."""
        share = f"{percent(self.p_value)} of the baseline's records are as strange, or stranger"
        return f"{'very strange' if self.p_value <= 0.001 else 'unusual' if self.p_value <= 0.05 else 'usual'}: {share}"

    def data(self) -> dict[str, Any]:
        """For a program."""
        return {
            "query": [{"sign": term.sign, "name": term.name} for term in self.terms],
            "measure": self.measure,
            "score": self.score,
            "p_value": self.p_value,
            "prototype": self.prototype,
            "neighbours": [
                {
                    "id": one.id,
                    self.measure: one.closeness,
                    "words": one.words,
                    "times": one.times,
                    "prototype": one.prototype,
                    "share": one.share,
                    "exemplar": one.exemplar,
                }
                for one in self.neighbours
            ],
        }


class Neighbourhood:
    """Looks things up in one reference.

    Args:
        name: of the reference, for errors.
        embedder: what made its vectors; None where only ids and ready vectors can be looked up.
        without_embedder: how to get one, for the error.
        kept: finds a record that driftd kept, by its id.

    Raises:
        InvalidInput: the reference has no exemplars.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        name: str,
        embedder: Embedder | None = None,
        without_embedder: str = "",
        kept: Callable[[str], KeptRecord | None] = lambda record_id: None,
        version: int = 0,
    ) -> None:
        if len(reference.exemplars) == 0:
            raise InvalidInput(
                f"The reference {name} keeps no exemplars, so that there is nothing to look among.",
                hint="Set models.NAME.reference.exemplars: 20000, and build it again: driftd reference build",
            )
        self.reference = reference
        self.name = name
        self._embedder = embedder
        self._without_embedder = without_embedder
        self._kept = kept
        self._version = version
        self.ids = reference.exemplar_ids or tuple(f"row {row}" for row in reference.exemplar_rows.tolist())
        self._places = {one: place for place, one in enumerate(self.ids)}

    # ---- terms ----------------------------------------------------------------------------------------------------

    def term(self, text: str, sign: Literal[1, -1] = 1) -> Term:
        """A term as people type it: ``id:NAME`` for a record, otherwise what the embedder takes.

        Raises:
            InvalidInput: there is no such record, or the embedder makes nothing of it.
        """
        if text.startswith("id:"):
            return self.record(text.removeprefix("id:"), sign)
        return Term(sign, text, self.reference.prepare(self._embedded(text)[None])[0])

    def record(self, record_id: str, sign: Literal[1, -1] = 1) -> Term:
        """A record of the baseline that is an exemplar, or one that driftd kept with its vector.

        Raises:
            InvalidInput: there is none; names known ones that look alike.
        """
        named = f"row {record_id}" if not self.reference.exemplar_ids and record_id.isdigit() else record_id
        place = self._places.get(named)
        if place is not None:
            return Term(sign, record_id, self.reference.exemplars[place], known=True)
        record = self._kept(record_id)
        if record is None:
            raise InvalidInput(
                f"The reference {self.name} keeps no record {record_id}, and among the records kept since there is "
                "none of this id.",
                hint=f"Known are, for example: {', '.join(self._alike(named))}. Exemplars are a choice by chance of "
                "the baseline.",
            )
        if record.vector is None:
            raise InvalidInput(
                f"Record {record_id} was kept without its vector.",
                hint="For records to come: outliers.keep_vectors: true",
            )
        if record.reference != self._version:
            raise InvalidInput(
                f"The vector of record {record_id} was prepared for version {record.reference} of the reference, and "
                f"{self.name} is another one.",
                hint="Look it up in that version: --reference DIR, see driftd reference list",
            )
        return Term(sign, record_id, np.frombuffer(record.vector, "<f2").astype(np.float32))

    def vector(self, vector: Floats, name: str, sign: Literal[1, -1] = 1) -> Term:
        """A ready vector, float32 (d,), as the embedder makes them.

        Raises:
            InvalidInput: it has another dimension, or is not finite.
        """
        return Term(sign, name, self.reference.prepare(vector[None])[0])

    def _alike(self, record_id: str) -> list[str]:
        near = difflib.get_close_matches(record_id, self.ids[:20_000], n=3, cutoff=0.4)
        return near or list(self.ids[:3])

    def _embedded(self, text: str) -> Floats:
        embedder = self._embedder
        if embedder is None:
            raise InvalidInput(
                f"The reference {self.name} does not say how to embed a text.", hint=self._without_embedder
            )
        tried = list(_readings(text, embedder.fields))
        problem = ""
        for values in tried:
            embedded = embed_all(
                embedder,
                [[value] for value in values],
                1,
                dimension=self.reference.dimension,
                failed=lambda kind: None,
            )
            if not embedded.problems:
                vector: Floats = embedded.vectors[0]
                return vector
            problem = problem or embedded.problems[0].detail
        if len(embedder.fields) == 1 and tried:
            raise InvalidInput(
                f'The embedder "{embedder.kind}" makes nothing of "{shortened(text, 60)}": {problem}',
                hint=f"Give what {embedder.fields[0]} holds: driftd nearest '{example_of(embedder.fields)}'",
            )
        raise InvalidInput(
            f'The embedder "{embedder.kind}" needs the fields {", ".join(embedder.fields)}'
            + (f": {problem}" if problem else "."),
            hint=f"Give them as JSON: driftd nearest '{example_of(embedder.fields)}'",
        )

    # ---- looking --------------------------------------------------------------------------------------------------

    def look(self, terms: Sequence[Term], *, k: int) -> Found:
        """The ``k`` exemplars nearest to the sum of the terms, those of one vector shown once.

        Of a sum, and of a record of the baseline, exemplars that have the vector of a term are left out.

        Raises:
            InvalidInput: nothing is left of the sum.
        """
        reference = self.reference
        x = np.sum([term.sign * term.x.astype(np.float64) for term in terms], axis=0)
        if reference.geometry.unit:
            length = float(np.linalg.norm(x))
            if length < SAME:
                raise InvalidInput("What is added and what is taken away is the same: nothing is left to look for.")
            x = x / length
        query = np.ascontiguousarray(x, np.float32)
        score, prototype = nearest_prototypes(reference.prototype_index, reference.search_space(query[None]))
        left_out = terms if len(terms) > 1 or terms[0].known else ()
        return Found(
            terms=tuple(terms),
            x=query,
            measure="cosine" if reference.geometry.unit else "distance",
            score=float(score[0]),
            p_value=float(conformal.p_values(score, reference.calibration_scores)[0]),
            prototype=int(prototype[0]),
            neighbours=self._neighbours(query, k, left_out),
        )

    def _neighbours(self, query: Floats, k: int, left_out: Sequence[Term]) -> tuple[Neighbour, ...]:
        reference = self.reference
        exemplars = reference.exemplars
        unit = reference.geometry.unit
        closeness = exemplars @ query if unit else np.linalg.norm(exemplars - query, axis=1)
        order = np.argsort(-closeness if unit else closeness, kind="stable")
        hidden = np.zeros(len(exemplars), dtype=np.bool_)
        for term in left_out:
            hidden |= np.abs(exemplars - term.x).max(axis=1) <= SAME
        first: dict[bytes, int] = {}
        times: dict[bytes, int] = {}
        for place in order[~hidden[order]].tolist():
            key = exemplars[place].tobytes()
            if key not in first:
                if len(first) == k:
                    break
                first[key] = place
            times[key] = times.get(key, 0) + 1
        places = list(first.values())
        if not places:
            return ()
        _, prototypes = nearest_prototypes(reference.prototype_index, reference.search_space(exemplars[places]))
        shares = reference.prototype_counts / max(int(reference.prototype_counts.sum()), 1)
        return tuple(
            Neighbour(
                exemplar=place,
                id=self.ids[place],
                words=words_of(reference.exemplar_excerpts[place]) if reference.exemplar_excerpts else "",
                closeness=float(closeness[place]),
                times=times[key],
                prototype=int(prototype),
                share=float(shares[prototype]),
            )
            for (key, place), prototype in zip(first.items(), prototypes, strict=True)
        )


def _readings(text: str, fields: Sequence[str]) -> list[list[Any]]:
    """What the embedder may be given of a text, the likeliest first: one value for each field."""
    try:
        document = json.loads(text)
    except ValueError:
        document = MISSING
    readings: list[list[Any]] = []
    if isinstance(document, dict):
        places = [parse_place(field) for field in fields]
        values = [resolve(document, place.tokens) if place.kind == "pointer" else MISSING for place in places]
        if any(value is not MISSING for value in values):
            readings.append([None if value is MISSING else value for value in values])
    if len(fields) == 1:
        readings.append([text])
        if document is not MISSING and not isinstance(document, str):
            readings.append([document])
    return readings


def example_of(fields: Sequence[str]) -> str:
    """A record in JSON with a place for each field.

    >>> example_of(("/in/amount", "/in/country"))
    '{"in": {"amount": ..., "country": ...}}'
    """
    document: dict[str, Any] = {}
    for field in fields:
        tokens = parse_place(field).tokens or (field,)
        inner = document
        for token in tokens[:-1]:
            found = inner.setdefault(token, {})
            if not isinstance(found, dict):
                break
            inner = found
        inner[tokens[-1]] = "\0"
    return json.dumps(document, ensure_ascii=False).replace('"\\u0000"', "...")


def words_of(excerpt: str) -> str:
    """What was kept of a record, in one short line.

    >>> words_of('{"/text": "where is my card", "/label": "card"}')
    'where is my card · label: card'
    >>> words_of("")
    ''
    """
    try:
        document = json.loads(excerpt) if excerpt else {}
    except ValueError:  # longer than what is stored of an excerpt
        return shortened(excerpt, WORDS)
    if not isinstance(document, dict):
        return shortened(str(document), WORDS)
    texts = {name: str(value) for name, value in document.items() if value is not None}
    longest = max(texts, key=lambda name: (texts[name].count(" "), len(texts[name])), default="")
    others = [f"{name.rsplit('/', 1)[-1]}: {shortened(text, 24)}" for name, text in texts.items() if name != longest]
    # What has the most words says most, and stands first, by itself where it is a text.
    head = (
        [texts[longest] if isinstance(document.get(longest), str) else f"{longest}: {texts[longest]}"] if texts else []
    )
    return shortened(" · ".join(head + others), WORDS)


def shortened(text: str, most: int) -> str:
    """At most so many characters, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3].rstrip()}..."
