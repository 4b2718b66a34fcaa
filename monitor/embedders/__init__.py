"""Embedders: from the fields of a record to a vector. A kind is one file, and one line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from monitor.embedders.category import CategorySettings
from monitor.embedders.embedder import Columns, Embedded, Embedder, Problem, embed_all
from monitor.embedders.http import HttpSettings
from monitor.embedders.number import NumberSettings
from monitor.embedders.pixels import PixelsSettings
from monitor.embedders.python import PythonSettings
from monitor.embedders.tabular import TabularSettings
from monitor.embedders.text import TextSettings
from monitor.embedders.vector import VectorSettings

EmbedderSettings = Annotated[
    VectorSettings
    | TabularSettings
    | NumberSettings
    | CategorySettings
    | PixelsSettings
    | TextSettings
    | HttpSettings
    | PythonSettings,
    Field(discriminator="kind"),
]

__all__ = ["Columns", "Embedded", "Embedder", "EmbedderSettings", "Problem", "embed_all"]
