"""The kinds of panels, as Grafana 9.2 and everything after it reads them.

Each panel says which question it answers, how to read it, and what to do next; together that is its description in
Grafana, and docs/dashboards.md. Nothing here is newer than Grafana 9.2: later
versions bring old dashboards up to date when they load them, by their schemaVersion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dashboards.grafana.targets import Target

# One colour, one meaning, on every dashboard.
PAGE, WARN, CAUTION, FINE, BLIND, NEUTRAL = "red", "orange", "yellow", "green", "purple", "text"

Steps = tuple[tuple[float | None, str], ...]  # from this value on, this colour; None for the lowest


@dataclass(frozen=True, slots=True)
class Link:
    """Where a click on a value leads; the url may hold ``${__data.fields.NAME}`` and variables."""

    title: str
    url: str

    def to_json(self) -> dict[str, Any]:
        """The data link of a field."""
        return {"title": self.title, "url": self.url, "targetBlank": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """How one column of a table, or one series of a graph, is shown.

    Attributes:
        name: of the column or series, or a regular expression between slashes.
        unit, decimals: as for panels.
        width: pixels.
        colours: words or numbers with the colour that their cell has.
        steps: thresholds of its own, which colour its cell or number.
        colour: of the whole series.
        dashed: a line that is a limit, not a measurement.
        hidden: only there for links.
        link: where a click leads.
    """

    name: str
    unit: str | None = None
    decimals: int | None = None
    width: int | None = None
    colours: tuple[tuple[str, str], ...] = ()
    steps: Steps = ()
    colour: str | None = None
    dashed: bool = False
    hidden: bool = False
    link: Link | None = None

    def to_json(self, kind: str) -> dict[str, Any]:
        """The override of a panel of this kind."""
        properties: list[dict[str, Any]] = []
        if self.unit is not None:
            properties.append({"id": "unit", "value": self.unit})
        if self.decimals is not None:
            properties.append({"id": "decimals", "value": self.decimals})
        if self.width is not None:
            properties.append({"id": "custom.width", "value": self.width})
        if self.colours:
            properties.append(
                {"id": "mappings", "value": [_value_map([(word, word, colour) for word, colour in self.colours])]}
            )
        if self.steps:
            properties.append({"id": "thresholds", "value": _thresholds(self.steps)})
        if kind == "table" and (self.colours or self.steps):
            shown = "color-background" if self.colours else "color-text"
            properties.append({"id": "custom.displayMode", "value": shown})
        if self.colour is not None:
            properties.append({"id": "color", "value": {"mode": "fixed", "fixedColor": self.colour}})
        if self.dashed:
            properties.append({"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}})
            properties.append({"id": "custom.fillOpacity", "value": 0})
            properties.append({"id": "custom.lineWidth", "value": 1})
        if self.hidden:
            properties.append({"id": "custom.hidden", "value": True})
        if self.link is not None:
            properties.append({"id": "links", "value": [self.link.to_json()]})
        by = "byRegexp" if self.name.startswith("/") else "byName"
        return {"matcher": {"id": by, "options": self.name}, "properties": properties}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """What all panels have.

    Attributes:
        title: unique in its dashboard.
        question: what a person wants to know who looks at it.
        reading: how to read it.
        next_step: what to do then.
        targets: what it asks; all of one data source.
        unit: one of Grafana's units; in a table, of the columns that have no unit of their own.
        steps: thresholds, where they mean something.
        words: values with the word that is shown instead, and its colour.
        links: where a click on any value leads.
        empty: what is said where there is nothing to show.
        columns: what differs for single columns or series.
        width, height: of 24 columns, and in rows of 30 pixels.
    """

    kind: ClassVar[str]
    colours_by: ClassVar[str] = "thresholds"

    title: str
    question: str
    reading: str
    next_step: str
    targets: tuple[Target, ...]
    unit: str = "short"
    decimals: int | None = None
    low: float | None = None
    high: float | None = None
    steps: Steps = ()
    words: tuple[tuple[str, str, str], ...] = ()
    columns: tuple[Column, ...] = ()
    links: tuple[Link, ...] = ()
    empty: str | None = None
    width: int = 12
    height: int = 8

    @property
    def description(self) -> str:
        """What Grafana shows behind the panel's small i."""
        return f"{self.question} {self.reading} Next: {self.next_step}"

    def options(self) -> dict[str, Any]:
        """Of the kind of panel."""
        raise NotImplementedError

    def custom(self) -> dict[str, Any]:
        """How the kind of panel draws a field."""
        return {}

    def to_json(self, number: int, x: int, y: int) -> dict[str, Any]:
        """The panel, at its place on the grid."""
        defaults: dict[str, Any] = {
            "color": {"mode": self.colours_by},
            "custom": self.custom(),
            "mappings": [_value_map(self.words)] if self.words else [],
            "thresholds": _thresholds(self.steps or ((None, NEUTRAL),)),
            "unit": self.unit,
            "links": [link.to_json() for link in self.links],
        }
        optional = {"decimals": self.decimals, "min": self.low, "max": self.high, "noValue": self.empty}
        defaults |= {name: value for name, value in optional.items() if value is not None}
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "datasource": self.targets[0].datasource,
            "targets": [target.to_json(chr(ord("A") + place)) for place, target in enumerate(self.targets)],
            "fieldConfig": {"defaults": defaults, "overrides": [column.to_json(self.kind) for column in self.columns]},
            "options": self.options(),
            "maxDataPoints": 1000,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat(Panel):
    """Few large numbers: the newest of each series, or each number of a row."""

    kind: ClassVar[str] = "stat"

    graph: bool = False
    background: bool = False

    def options(self) -> dict[str, Any]:
        return {
            "reduceOptions": {"values": False, "calcs": ["lastNotNull"], "fields": ""},
            "orientation": "auto",
            "textMode": "auto",
            "colorMode": "background" if self.background else "value",
            "graphMode": "area" if self.graph else "none",
            "justifyMode": "auto",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSeries(Panel):
    """Lines or bars over time; a line for each series.

    Attributes:
        bars: counts of a stretch of time, not a level.
        stacked: the sum matters.
        log: a logarithmic axis.
        calcs: what the legend says of each series.
    """

    kind: ClassVar[str] = "timeseries"
    colours_by: ClassVar[str] = "palette-classic"

    bars: bool = False
    stacked: bool = False
    log: bool = False
    calcs: tuple[str, ...] = ("lastNotNull", "max")

    def options(self) -> dict[str, Any]:
        return {
            "legend": {"showLegend": True, "displayMode": "table", "placement": "bottom", "calcs": list(self.calcs)},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }

    def custom(self) -> dict[str, Any]:
        return {
            "drawStyle": "bars" if self.bars else "line",
            "lineInterpolation": "linear",
            "lineWidth": 1 if self.bars else 2,
            "fillOpacity": 70 if self.bars else 20 if self.stacked else 0,
            "showPoints": "auto",
            "pointSize": 4,
            # Series on grids of their own have no value at each other's times; a real gap is longer than that.
            "spanNulls": 3_600_000,
            "scaleDistribution": {"type": "log", "log": 10} if self.log else {"type": "linear"},
            "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if self.steps else "off"},
            "axisPlacement": "auto",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Table(Panel):
    """Rows of a query, in its order."""

    kind: ClassVar[str] = "table"

    def options(self) -> dict[str, Any]:
        return {"showHeader": True, "footer": {"show": False, "reducer": ["sum"], "fields": ""}}

    def custom(self) -> dict[str, Any]:
        return {"align": "auto", "displayMode": "auto", "inspect": True, "filterable": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmap(Panel):
    """A row of cells for each number column of the query, the first at the bottom."""

    kind: ClassVar[str] = "heatmap"
    colours_by: ClassVar[str] = "palette-classic"

    low: float = 0

    def options(self) -> dict[str, Any]:
        return {
            "calculate": False,
            "cellGap": 1,
            "cellValues": {"unit": self.unit, "decimals": self.decimals},
            "color": {
                "mode": "scheme",
                "scheme": "Oranges",
                "scale": "exponential",
                "exponent": 0.5,
                "fill": "dark-orange",
                "steps": 64,
                "reverse": False,
                "min": self.low,
            },
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "showValue": "never",
            "tooltip": {"show": True, "yHistogram": False},
            "yAxis": {"axisPlacement": "left", "reverse": False},
        }

    def custom(self) -> dict[str, Any]:
        return {"scaleDistribution": {"type": "linear"}, "hideFrom": {"legend": False, "tooltip": False, "viz": False}}


@dataclass(frozen=True, slots=True, kw_only=True)
class StateTimeline(Panel):
    """Words over time, a band for each series."""

    kind: ClassVar[str] = "state-timeline"

    def options(self) -> dict[str, Any]:
        return {
            "mergeValues": True,
            "showValue": "auto",
            "alignValue": "left",
            "rowHeight": 0.9,
            "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "single", "sort": "none"},
        }

    def custom(self) -> dict[str, Any]:
        return {"lineWidth": 0, "fillOpacity": 80}


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Words for the reader, in Markdown."""

    kind: ClassVar[str] = "text"

    title: str
    question: str
    next_step: str
    content: str
    width: int = 24
    height: int = 9

    def to_json(self, number: int, x: int, y: int) -> dict[str, Any]:
        """The panel, at its place on the grid."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": f"{self.question} Next: {self.next_step}",
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "options": {"mode": "markdown", "content": self.content},
        }


AnyPanel = Panel | Text


@dataclass(frozen=True, slots=True)
class Row:
    """A line across the dashboard with the panels below it, which belong together."""

    title: str
    panels: tuple[AnyPanel, ...]


def _thresholds(steps: Steps) -> dict[str, Any]:
    return {"mode": "absolute", "steps": [{"color": colour, "value": value} for value, colour in steps]}


def _value_map(words: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    options = {value: {"text": word, "color": colour, "index": i} for i, (value, word, colour) in enumerate(words)}
    return {"type": "value", "options": options}
