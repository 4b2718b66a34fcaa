"""Where a value stands in a record: a JSON pointer (RFC 6901), a header, the key, or the whole body.

/input/text      a field of the decoded value; ~0 stands for "~" and ~1 for "/" inside a name
header:NAME      a header of the record, read as UTF-8; of several with one name the last counts
key              the record's key, read as UTF-8
body             the undecoded value (codec raw only)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator

Tokens = tuple[str, ...]

HEADER: Final = "header:"
_INDEX: Final = re.compile(r"0|[1-9][0-9]*")
_BAD_ESCAPE: Final = re.compile(r"~(?![01])")


class Missing:
    """The type of `MISSING`, what `resolve` gives where a pointer leads nowhere."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()


@dataclass(frozen=True, slots=True)
class Place:
    """A parsed field name.

    Attributes:
        kind: "pointer", "header", "key" or "body".
        tokens: the pointer's names and indexes, unescaped; empty for the other kinds.
        header: the header's name; "" for the other kinds.
    """

    kind: Literal["pointer", "header", "key", "body"]
    tokens: Tokens = ()
    header: str = ""


def parse_place(text: str) -> Place:
    """Parse a field name as it stands in the settings.

    >>> parse_place("/input/a~1b").tokens
    ('input', 'a/b')

    Raises:
        ValueError: neither a pointer nor ``header:NAME``, ``key`` or ``body``; the text says what was expected.
    """
    if text == "key":
        return Place("key")
    if text in ("", "body"):
        return Place("body")
    if text.startswith(HEADER):
        name = text.removeprefix(HEADER)
        if not name:
            raise ValueError('expected the header\'s name after "header:"')
        return Place("header", header=name)
    return Place("pointer", parse_pointer(text))


def parse_pointer(text: str) -> Tokens:
    """The unescaped names of a JSON pointer (RFC 6901 sections 3 and 4).

    >>> parse_pointer("/output/scores/0")
    ('output', 'scores', '0')

    Raises:
        ValueError: it does not begin with "/", or holds a "~" that is neither "~0" nor "~1".
    """
    if not text.startswith("/"):
        raise ValueError(f'expected a pointer such as "/{text.replace(".", "/")}", header:NAME or key')
    if _BAD_ESCAPE.search(text):
        raise ValueError('in a pointer, "~" is written "~0" and "/" inside a name "~1"')
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in text[1:].split("/"))


def is_index(token: str) -> bool:
    """The token can name an element of an array."""
    return _INDEX.fullmatch(token) is not None


def resolve(document: Any, tokens: Sequence[str]) -> Any:
    """The value at a pointer, or `MISSING`.

    >>> resolve({"a": [{"b": 1}]}, ("a", "0", "b"))
    1
    """
    value = document
    for token in tokens:
        if isinstance(value, dict):
            value = value.get(token, MISSING)
        elif isinstance(value, list) and is_index(token) and len(token) < 10 and int(token) < len(value):
            value = value[int(token)]
        else:
            return MISSING
        if value is MISSING:
            return MISSING
    return value


def replace(document: Any, tokens: Sequence[str], value: Any) -> Any:
    """A copy of the document with another value at the pointer; the document itself where the pointer leads nowhere.

    Only the containers on the way are copied.
    """
    if resolve(document, tokens) is MISSING:
        return document
    if not tokens:
        return value
    if isinstance(document, list):
        index = int(tokens[0])
        return [*document[:index], replace(document[index], tokens[1:], value), *document[index + 1 :]]
    return {**document, tokens[0]: replace(document[tokens[0]], tokens[1:], value)}


def _checked(text: str) -> str:
    parse_place(text)
    return text


FieldName = Annotated[str, AfterValidator(_checked)]
