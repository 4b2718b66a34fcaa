"""Embedders: from the fields of a record to a vector. A kind is one file, and one line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from monitor.embedders.average import AverageSettings
from monitor.embedders.category import CategorySettings
from monitor.embedders.concat import ConcatSettings
from monitor.embedders.embedder import Columns, Embedded, Embedder, Problem, embed_all, learns_apart
from monitor.embedders.entity import EntitySettings
from monitor.embedders.graph import GraphSettings
from monitor.embedders.http import HttpSettings
from monitor.embedders.image import ImageSettings
from monitor.embedders.ngrams import NgramsSettings
from monitor.embedders.number import NumberSettings
from monitor.embedders.pair import PairSettings
from monitor.embedders.pixels import PixelsSettings
from monitor.embedders.python import PythonSettings
from monitor.embedders.tabular import TabularSettings
from monitor.embedders.text import TextSettings
from monitor.embedders.vector import VectorSettings
from monitor.embedders.words import WordsSettings

EmbedderSettings = Annotated[
    VectorSettings
    | TabularSettings
    | NumberSettings
    | CategorySettings
    | PixelsSettings
    | TextSettings
    | ImageSettings
    | HttpSettings
    | PythonSettings
    | WordsSettings
    | NgramsSettings
    | EntitySettings
    | PairSettings
    | GraphSettings
    | ConcatSettings
    | AverageSettings,
    Field(discriminator="kind"),
]

__all__ = ["Columns", "Embedded", "Embedder", "EmbedderSettings", "Problem", "embed_all", "learns_apart"]
