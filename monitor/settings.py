"""Settings: one YAML file plus DRIFTD_... environment variables, frozen, checked as a whole.

The environment reaches every key by its path with two underscores between the names:
``DRIFTD_MODELS__SUPPORT__SOURCE__TOPIC=tickets``. It wins over the file. Every problem is reported at once with the
file, the line, the key and a cure; values are never printed, because they may be secrets.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from connectors import ScoresSettings, SinkSettings, SourceSettings
from connectors.database.rows import MOST_BLOCKS
from connectors.kafka import KafkaSettings
from connectors.kafka_scores import KafkaScoresSettings
from detectors.errors import InvalidInput, InvalidSettings
from detectors.feedback import OpinionName
from detectors.pyod_models import Model, PyODSettings
from monitor.decode import RecordSettings
from monitor.embedders import EmbedderSettings
from monitor.embedders.parts import NestedEmbedder
from monitor.fraud_settings import FRAUD_SPACE, FraudSettings
from monitor.performance_settings import PerformanceSettings
from monitor.times import Duration, Wait, seconds_of

_NAME = re.compile(r"[a-z][a-z0-9_]*")


Weight = Annotated[float, Field(gt=0, le=1_000_000)]


DAY_S = 86_400.0
MIN_BLOCKS_PER_SEASON = 8  # one wave needs four of them


def season_of(value: object) -> object:
    """The value of ``drift.season``: "auto", "none", or seconds.

    Raises:
        ValueError: anything else.
    """
    if value in ("auto", "none"):
        return value
    try:
        seconds = seconds_of(value)
    except ValueError:
        seconds = None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError('expected "auto", "none" or a duration such as "1d" or "7d"')
    return float(seconds)


Season = Annotated[Literal["auto", "none"] | float, BeforeValidator(season_of)]


PREDICTION = "prediction"  # the segment field of the predicted label


class _Section(BaseModel, frozen=True, extra="forbid"):
    pass


class HttpSettings(_Section):
    """The address of /metrics, /livez, /readyz, the status page, and of labels that are sent to driftd."""

    bind: str = Field("127.0.0.1:9464", description="host:port; port 0 takes a free one")
    token: SecretStr | None = Field(
        None, min_length=1, description="what POST /labels must bear; better in the environment or token_file"
    )
    token_file: Path | None = Field(None, description="file that holds the token; read anew at each request")

    @model_validator(mode="after")
    def _one_token(self) -> HttpSettings:
        if self.token is not None and self.token_file is not None:
            raise ValueError("token and token_file both name the token; keep one")
        return self

    @field_validator("bind")
    @classmethod
    def _has_a_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise ValueError('expected host:port, such as "127.0.0.1:9464"')
        return value


class SpaceSettings(_Section):
    """One embedding of a record."""

    embedder: EmbedderSettings
    weight: Weight = Field(1.0, description="its share of the alarm budget, relative to other spaces")
    side: Literal["input", "output"] | None = Field(
        None, description="what it shows of the model; default: output where its name begins so, else input"
    )


class ReferenceSettings(_Section):
    """How the first reference comes to be when there is none: from the first records of the stream."""

    collect: int = Field(50_000, ge=1_000, description="records to collect before version 1 is built")
    segments: int = Field(20, ge=0, description="most values per segment field that get an alarm of their own")
    exemplars: int = Field(20_000, ge=0, description="raw vectors kept as evidence")
    canaries: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="records of the baseline whose raw fields are stored with the reference, to be embedded again: a "
        "changed encoder is told by them. Default: 64 where record.keep names all fields of the embedder, else texts "
        "that driftd made up, or none",
    )
    canaries_every: Duration = Field(600.0, description="time between two checks of all of them; one more at the start")


class OutlierSettings(_Section):
    """When a record is flagged: its p-value is at most alpha, and the share of flagged records stays in the budget."""

    alpha: float = Field(0.001, gt=0, le=0.1, description="largest p-value of a candidate")
    budget: float = Field(
        0.001,
        gt=0,
        le=0.1,
        description="largest share of records flagged over time; scattered outliers up to it are no drift",
    )
    tolerance: float = Field(
        2.0,
        ge=0,
        le=100,
        description="rates of candidates up to (1 + tolerance) times the calibrated one are no incident",
    )
    sample: float = Field(0.0005, ge=0, le=0.1, description="share of all records kept as a random sample")
    keep_vectors: bool = Field(True, description="keep the vectors of kept records, 2 bytes a dimension: for explain")


class AlarmSettings(_Section):
    """The one budget of false alarms: it holds for everything that is watched together, in days of event time."""

    page_every_days: float = Field(90.0, gt=0, description="days between false pages, on average, at least")
    warn_every_days: float = Field(1.0, gt=0, description="days between false warnings, on average, at least")


class IncidentSettings(_Section):
    """The life of incidents, in event time: when they are told, end, and come back."""

    resolve_after: Duration = Field(300.0, description="without evidence for so long, an incident resolves")
    cooldown: Wait = Field(3600.0, description="what comes back within this time is the same incident again")
    min_duration: Wait = Field(0.0, description="an incident that is over before is listed, and nobody is told")
    deploy_grace: Wait = Field(
        900.0, description="after a new version of the model (record.version), people are told what is left after this"
    )


class NotifySettings(_Section):
    """How often people are told. Named and meant as in Alertmanager; by the wall clock, but for repeat_interval."""

    group_wait: Wait = Field(10.0, description="wait for more of the same model before the first message")
    group_interval: Wait = Field(60.0, description="between two messages about a model")
    repeat_interval: Duration = Field(4 * 3600.0, description="event time between notices of an incident that goes on")
    most_per_minute: int = Field(10, ge=1, le=1000, description="messages of one sink; more models share a message")
    runbooks: str = Field(
        "",
        pattern=r"^(https?://[^\s#]+)?$",
        description="address of docs/runbooks.md as people reach it, for the links in alerts",
    )


class DriftSettings(_Section):
    """The drift alarm of one model, and how its share of the alarm budget is divided."""

    block: Duration = Field(10.0, description="event time of one block")
    page_every_days: float | None = Field(
        None, gt=0, description="the same as alarms.page_every_days, for a settings file with one model"
    )
    warn_every_days: float | None = Field(None, gt=0, description="the same as alarms.warn_every_days")
    per_class: bool = Field(
        True, description="watch the records of each predicted label by themselves, where record.prediction is mapped"
    )
    channels: dict[Literal["level", "shape", "mix"], bool] = Field(
        default_factory=dict, description="{mix: 0} mutes a channel; nobody else gets its share of the budget"
    )
    segment_weights: dict[str, Weight] = Field(
        default_factory=dict,
        description='shares among the segments, 1 where not named: {"country": 2, "country=de": 4}; a value counts '
        "before its field",
    )
    tolerance: float = Field(0.05, ge=0, le=5, description="ignore shifts of the mean below this many sigmas")
    second_opinions: tuple[OpinionName, ...] = Field(
        (),
        description="adwin, page_hinkley: detectors of river beside the rule; they show changes, and open no incident",
    )
    season: Season = Field(
        "auto",
        description='period, such as "1d", of which a new reference of at least two whole cycles follows the hour; '
        '"auto" tries a day and a week, "none" nothing',
    )
    lateness: Duration = Field(30.0, description="how far a record may lie behind the newest of its partition")
    thin_by_key: bool | None = Field(
        None,
        description="at most one record of a key enters the drift summaries of a block, in each partition; by default "
        "where record.key is mapped",
    )
    idle: Duration = Field(
        60.0, description="a partition read to its end and without records for so long does not hold blocks open"
    )
    wait: Duration = Field(
        600.0,
        description="longest wait for a slow partition: by the clock for one that stands still, in event time for one "
        "that is read to its end and lies so far behind the newest; what comes after that counts as late",
    )

    @model_validator(mode="after")
    def _an_idle_partition_is_not_stalled(self) -> DriftSettings:
        if self.idle >= self.wait:
            raise ValueError(f"idle ({self.idle:g} s) must be shorter than wait ({self.wait:g} s); raise wait as well")
        return self

    @model_validator(mode="after")
    def _a_season_holds_blocks(self) -> DriftSettings:
        if isinstance(self.season, float) and self.season < MIN_BLOCKS_PER_SEASON * self.block:
            raise ValueError(
                f"season must be at least {MIN_BLOCKS_PER_SEASON} blocks of {self.block:g} s; "
                "make the blocks shorter, or write season: none"
            )
        return self

    @property
    def season_blocks(self) -> tuple[float, ...]:
        """Periods to look for in a baseline, in blocks."""
        if isinstance(self.season, float):
            return (self.season / self.block,)
        usual = (DAY_S, 7 * DAY_S) if self.season == "auto" else ()
        return tuple(period / self.block for period in usual if period >= MIN_BLOCKS_PER_SEASON * self.block)


class DeadLetterSettings(_Section):
    """What happens to records that cannot be used."""

    payload_bytes: int = Field(4096, ge=0, le=1 << 20, description="bytes of the value that are kept")
    topic: str | None = Field(None, description="Kafka topic that gets them too (source of kind kafka only)")
    alert_ratio: float = Field(0.05, gt=0, le=1, description="share of dead letters that opens an incident")
    stop_ratio: float = Field(0.5, gt=0, le=1, description="share over the last stop_records that stops reading")
    stop_records: int = Field(1000, ge=100, description="records over which stop_ratio is judged")
    stop_run: int = Field(500, ge=10, description="so many in a row stop reading, too")


class ModelSettings(_Section):
    """One monitored model: where its records are, what is in them, and what to watch."""

    source: SourceSettings
    history: SourceSettings | None = Field(
        None, description="where older records are, for backfill, bootstrap and references; default: the source"
    )
    record: RecordSettings = RecordSettings()
    spaces: dict[str, SpaceSettings] = Field(min_length=1)
    weight: Weight = Field(1.0, description="its share of the alarm budget, relative to other models")
    harm: Literal["low", "normal", "high"] = Field(
        "normal", description="what wrong answers of this model cost; with low, it warns where it would page"
    )
    reference: ReferenceSettings = ReferenceSettings()
    outliers: OutlierSettings = OutlierSettings()
    drift: DriftSettings = DriftSettings()
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    fraud: FraudSettings | None = Field(None, description="score every record as fraud; default: not")
    performance: PerformanceSettings = PerformanceSettings()
    scores: ScoresSettings | None = Field(
        None, description="where every record's scores go, for other programs; default: nowhere"
    )

    @field_validator("spaces")
    @classmethod
    def _names_of_spaces(cls, value: dict[str, SpaceSettings]) -> dict[str, SpaceSettings]:
        return _check_names(value)

    @model_validator(mode="after")
    def _fraud_has_vectors(self) -> ModelSettings:
        if self.fraud is None:
            return self
        if FRAUD_SPACE in self.spaces:
            raise ValueError(f'a space may not be named "{FRAUD_SPACE}" where fraud is scored; give it another name')
        if self.fraud.space is not None and self.fraud.space not in self.spaces:
            raise ValueError(f"fraud.space: there is no space {self.fraud.space}; there is: {', '.join(self.spaces)}")
        labels = self.fraud.labels
        if labels is not None and labels.brokers is None:
            if not isinstance(self.source, KafkaSettings):
                raise ValueError(
                    "fraud.labels needs brokers: the source is no Kafka topic whose brokers could be taken"
                )
            if labels.topic == self.source.topic:
                raise ValueError("fraud.labels.topic is the topic of the records; labels come in one of their own")
        return self

    @property
    def fraud_space(self) -> str:
        """The space whose vectors are scored as fraud."""
        chosen = None if self.fraud is None else self.fraud.space
        return next(iter(self.spaces)) if chosen is None else chosen

    def side_of(self, space: str) -> Literal["input", "output"]:
        """What a space shows of the model."""
        stated = self.spaces[space].side
        if stated is not None:
            return stated
        return "output" if space.startswith("output") else "input"

    @property
    def reference_spaces(self) -> list[str]:
        """Every name under which references are numbered."""
        return [*self.spaces, *([] if self.fraud is None else [FRAUD_SPACE])]

    @property
    def extra_fields(self) -> list[str]:
        """Fields of a record that no embedder reads, but something else does."""
        return [] if self.fraud is None else self.fraud.record_fields

    @property
    def lateness_ms(self) -> int:
        """How far a record may lie behind the newest of its partition: ``drift.lateness``, and the wait for a pair."""
        pair = self.record.pair
        return round((self.drift.lateness + (pair.timeout if pair is not None else 0.0)) * 1000)

    @property
    def thins_by_key(self) -> bool:
        """Whether drift counts at most one record of a key in a block."""
        return self.record.key is not None and self.drift.thin_by_key is not False

    @model_validator(mode="after")
    def _thinning_needs_a_key(self) -> ModelSettings:
        if self.drift.thin_by_key and self.record.key is None:
            raise ValueError("drift.thin_by_key needs record.key: map what names a session, such as key: /session_id")
        return self

    @model_validator(mode="after")
    def _topic_needs_kafka(self) -> ModelSettings:
        if self.dead_letters.topic is not None and self.source.kind != "kafka":
            raise ValueError("dead_letters.topic needs a source of kind kafka; leave it out, the table holds them")
        return self

    @model_validator(mode="after")
    def _scores_have_a_place(self) -> ModelSettings:
        if isinstance(self.scores, KafkaScoresSettings):
            source = self.source if isinstance(self.source, KafkaSettings) else None
            if self.scores.brokers is None and source is None:
                raise ValueError("scores needs brokers: the source is no Kafka topic whose brokers could be taken")
            if self.scores.brokers is None and source is not None and self.scores.topic == source.topic:
                raise ValueError("scores.topic is the topic that is read: driftd would score its own scores")
            if self.scores.brokers is None and self.scores.topic == self.dead_letters.topic:
                raise ValueError("scores.topic is dead_letters.topic too; give the scores a topic of their own")
        return self

    @model_validator(mode="after")
    def _something_may_alarm(self) -> ModelSettings:
        if all(self.drift.channels.get(name) is False for name in ("level", "shape", "mix")):
            raise ValueError("drift.channels mutes all of level, shape and mix; leave one on")
        return self

    @model_validator(mode="after")
    def _known_segments(self) -> ModelSettings:
        known = self.segment_fields
        named = [("drift.segment_weights", name) for name in self.drift.segment_weights]
        named += [("fraud.alerts.segments", name) for name in (self.fraud.alerts.segments if self.fraud else ())]
        for where, name in named:
            if name.partition("=")[0] not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                raise ValueError(
                    f"{where}: there is no segment field {name.partition('=')[0]}"
                    f"{f', did you mean {near[0]}?' if near else ''}; fields: {', '.join(known) or 'none'}"
                )
        return self

    @property
    def segment_fields(self) -> dict[str, str]:
        """The fields whose values are watched by themselves: name to place in the record."""
        fields = dict(self.record.segments)
        if self.drift.per_class and self.record.prediction not in (None, *fields.values()):
            fields.setdefault(PREDICTION, str(self.record.prediction))
        return fields

    @property
    def watched_record(self) -> RecordSettings:
        """What to take out of a record: the mapped fields, with all segment fields."""
        return self.record.model_copy(update={"segments": self.segment_fields})


class RetentionSettings(_Section):
    """How long rows stay in the database, in days."""

    readings_days: float = Field(90.0, gt=0)
    summaries_days: float = Field(90.0, gt=0)
    kept_days: float = Field(30.0, gt=0)
    dead_letters_days: float = Field(30.0, gt=0)
    kept_rows: int = Field(1_000_000, ge=1000, description="most kept records; the oldest go first")
    dead_letter_rows: int = Field(100_000, ge=1000, description="most dead letters; the oldest go first")
    remembered_days: float = Field(120.0, gt=0, description="how late a label may come, where fraud is scored")
    remembered_mb: float = Field(1024.0, gt=0, description="most megabytes of records that labels may still mean")
    answers_days: float = Field(120.0, gt=0, description="how late a true answer may come; see performance.remember")
    answers_mb: float = Field(1024.0, gt=0, description="most megabytes of answers that true ones may still meet")
    merge_summaries: dict[Duration, int] = Field(
        default_factory=lambda: {2 * DAY_S: 8, 7 * DAY_S: 64, 30 * DAY_S: 128},
        description="by age in event time, how many blocks one stored summary is of: powers of two; {} merges none",
    )

    @field_validator("merge_summaries")
    @classmethod
    def _steps(cls, value: dict[float, int]) -> dict[float, int]:
        steps = dict(sorted(value.items()))
        for width in steps.values():
            if not 2 <= width <= MOST_BLOCKS or width & (width - 1):
                raise ValueError(
                    f"{width} blocks: write a power of two from 2 to {MOST_BLOCKS}, such as {{2d: 8, 7d: 64}}"
                )
        if list(steps.values()) != sorted(set(steps.values())):
            raise ValueError("older summaries are of more blocks than younger ones, such as {2d: 8, 7d: 64}")
        return steps


class CheckpointSettings(_Section):
    """How often a transaction is written: whichever of the two comes first."""

    every: Duration = 1.0
    records: int = Field(50_000, ge=1, le=1_000_000)
    poll_records: int = Field(4096, ge=1, le=100_000, description="most records of one poll")


class Settings(BaseSettings):
    """Everything that `driftd run` needs to know."""

    model_config = SettingsConfigDict(
        env_prefix="DRIFTD_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    database: str = Field(
        "sqlite:///driftd.db", description="SQLAlchemy URL: sqlite:///FILE or postgresql+psycopg://..."
    )
    references: Path = Field(Path("references"), description="folder of the references")
    http: HttpSettings = HttpSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    alarms: AlarmSettings = AlarmSettings()
    incidents: IncidentSettings = IncidentSettings()
    notify: NotifySettings = NotifySettings()
    # By a factory: what the file says of merge_summaries takes the place of the default, and is not added to it.
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    log_format: Literal["text", "json"] = "text"
    models: dict[str, ModelSettings] = Field(min_length=1)
    sinks: dict[str, SinkSettings] = Field(default_factory=lambda: _console_sink())

    @field_validator("models", "sinks")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _check_names(value)

    @model_validator(mode="after")
    def _scores_of_one_model_in_a_topic(self) -> Settings:
        users: dict[str, str] = {}
        for name, model in self.models.items():
            if isinstance(model.scores, KafkaScoresSettings):
                other = users.setdefault(model.scores.topic, name)
                if other != name:
                    raise ValueError(
                        f"models.{other}.scores.topic and models.{name}.scores.topic are the same, and so may be the "
                        "keys of their messages. Give each model a topic of its own"
                    )
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> Settings:
        for level in ("page", "warn"):
            stated = self._stated(f"{level}_every_days")
            if len(set(stated.values())) > 1:
                raise ValueError(_one_budget_hint(level, stated, self))
        if self.page_every_days < self.warn_every_days:
            raise ValueError(
                f"alarms: pages ({self.page_every_days:g} days) must be rarer than warnings "
                f"({self.warn_every_days:g} days)"
            )
        return self

    def model_named(self, name: str | None) -> str:
        """The name of a model that a person asks for; without one, of the only model.

        Raises:
            InvalidInput: there is none of that name, or there are several.
        """
        if name in self.models:
            return name
        if name is None and len(self.models) == 1:
            return next(iter(self.models))
        raise InvalidInput(
            "There are several models." if name is None else f"There is no model {name}.",
            hint=f"Choose: --model {'|'.join(self.models)}",
        )

    @property
    def page_every_days(self) -> float:
        """Days of event time between two false pages of the whole deployment, on average, at least."""
        return self._every_days("page_every_days")

    @property
    def warn_every_days(self) -> float:
        """Days of event time between two false warnings of the whole deployment, on average, at least."""
        return self._every_days("warn_every_days")

    def _every_days(self, key: str) -> float:
        return float(next(iter(self._stated(key).values()), getattr(self.alarms, key)))

    def _stated(self, key: str) -> dict[str, float]:
        """Where the settings state a run length, and which."""
        places = {"alarms": getattr(self.alarms, key)} if key in self.alarms.model_fields_set else {}
        models = {f"models.{name}.drift": getattr(model.drift, key) for name, model in self.models.items()}
        return places | {place: days for place, days in models.items() if days is not None}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (env_settings, init_settings)


def _console_sink() -> dict[str, Any]:
    from connectors.console import ConsoleSettings

    return {"console": ConsoleSettings()}


def _one_budget_hint(level: str, stated: dict[str, float], settings: Settings) -> str:
    """Several models state several run lengths: what one budget with weights would be."""
    key = f"{level}_every_days"
    said = ", ".join(f"{place}: {days:g}" for place, days in stated.items())
    # Each model may have had its part of the budget at its own rate; as many false alarms in all, as one number.
    alone = {name: stated.get(f"models.{name}.drift", getattr(settings.alarms, key)) for name in settings.models}
    together = len(alone) / sum(1.0 / days for days in alone.values())
    weights = ", ".join(f"models.{name}.weight: {together / days:.3g}" for name, days in alone.items())
    return (
        f"{key} is one number for the whole deployment, but found {said}. "
        f"State it once: alarms: {{{key}: {together:.3g}}}, and give more of it to a model by its weight: {weights}"
    )


def _check_names(named: dict[str, Any]) -> dict[str, Any]:
    wrong = [name for name in named if not _NAME.fullmatch(name)]
    if wrong:
        raise ValueError(f"names are lower case letters, digits and _, and begin with a letter: {', '.join(wrong)}")
    return named


def load_settings(path: Path) -> Settings:
    """Read and check a settings file together with the environment.

    Raises:
        InvalidSettings: `problems` holds a line for each problem: file:line: key: what is wrong, and a cure.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InvalidSettings(
            f"There is no settings file {path}.", hint="Make one: driftd init, or name it: --settings FILE"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"The settings file {path} cannot be read: {type(error).__name__}.") from error
    lines, duplicates = _lines_of(path, text)
    if duplicates:
        raise _invalid(path, duplicates)
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise _invalid(path, [f"{path}: expected keys such as models and database, found none. See: driftd init"])
    before = dict(os.environ)
    try:
        return Settings(**content)
    except ValidationError as error:
        raise _invalid(path, _problems(path, error, lines)) from None
    except Exception as error:  # pydantic-settings wraps a broken environment value in its own error
        if type(error).__name__ != "SettingsError":
            raise
        names = [name for name in before if name.startswith("DRIFTD_") and name in str(error)]
        raise _invalid(path, [f"environment {names or 'DRIFTD_...'}: not a value of the expected form"]) from None


class _AsGiven(Settings):
    """Settings to which the environment adds nothing."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def with_changes(settings: Settings, changes: Mapping[tuple[str, ...], object], *, named: str) -> Settings:
    """The same settings but for some keys, checked as a whole. The environment changes nothing of it.

    Args:
        changes: the new value of each key, by its path from the top, such as ("alarms", "page_every_days").
        named: what problems are said to be in, such as an option of a command.

    Raises:
        InvalidSettings: as `load_settings`.
    """
    content = settings.model_dump(exclude_unset=True)
    for path, value in changes.items():
        place = content
        for name in path[:-1]:
            inner = place.get(name)
            place[name] = place = dict(inner) if isinstance(inner, Mapping) else {}
        place[path[-1]] = value
    return as_given(content, named=named)


def as_given(content: Mapping[str, Any], *, named: str) -> Settings:
    """Settings of this content. The environment changes nothing of it.

    Args:
        named: what problems are said to be in.

    Raises:
        InvalidSettings: as `load_settings`.
    """
    try:
        return _AsGiven(**content)
    except ValidationError as error:
        raise _invalid(Path(named), _problems(Path(named), error, {})) from None


def _invalid(path: Path, problems: list[str]) -> InvalidSettings:
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return InvalidSettings(f"{path} cannot be used ({count}).", problems=problems)


def _lines_of(path: Path, text: str) -> tuple[dict[tuple[str, ...], int], list[str]]:
    """The line of every key, by its path, and the problems that only the text shows."""
    lines: dict[tuple[str, ...], int] = {}
    problems: list[str] = []

    def walk(node: yaml.Node, at: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inner = (*at, str(key.value))
                line = key.start_mark.line + 1
                if inner in lines:
                    problems.append(
                        f"{path}:{line}: {'.'.join(inner)}: stands here and in line {lines[inner]}; keep one"
                    )
                lines[inner] = line
                walk(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                walk(value, (*at, str(index)))

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _invalid(path, [f"{path}:{line}: not YAML: {error.problem}"]) from None
    if root is not None:
        walk(root, ())
    return lines, problems


def _problems(path: Path, error: ValidationError, lines: dict[tuple[str, ...], int]) -> list[str]:
    return [_problem(path, entry, lines) for entry in error.errors(include_input=False, include_url=False)]


def _problem(path: Path, entry: Any, lines: dict[tuple[str, ...], int]) -> str:
    key = _without_tags(tuple(str(part) for part in entry["loc"]), lines)
    line = next((lines[key[:end]] for end in range(len(key), 0, -1) if key[:end] in lines), None)
    variable = "DRIFTD_" + "__".join(key).upper()
    if variable in os.environ:
        place = f"environment {variable}"
    else:
        place = f"{path}:{line}" if line else str(path)
    return f"{place}: {'.'.join(key) or 'settings'}: {_cure(entry, key)}"


def _without_tags(key: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> tuple[str, ...]:
    """Pydantic puts the chosen kind of a union into the path; a user never wrote it there."""
    clean: tuple[str, ...] = ()
    for index, part in enumerate(key):
        is_tag = index > 0 and (*clean, part) not in lines and part in _kinds() and (*clean, "kind") in lines
        if not is_tag:
            clean = (*clean, part)
    return clean


def _kinds() -> set[str]:
    return {kind for _, kind, _ in kinds()}


_ALIKE: Final = 0.65  # of kinds: "vec" and "vector" are .67 alike, "bert" and "number" .6


def _cure(entry: Any, key: tuple[str, ...]) -> str:
    kind, context = entry["type"], entry.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key.{_where_instead(key)}"
    if kind == "missing":
        return "is missing"
    if kind == "union_tag_invalid":
        expected = str(context["expected_tags"])
        found = str(context["tag"])
        near = difflib.get_close_matches(found, re.findall(r"'([^']*)'", expected), n=1, cutoff=_ALIKE)
        return f"unknown kind {found!r}; valid kinds: {expected}.{f' Did you mean {near[0]}?' if near else ''}"
    if kind == "union_tag_not_found":
        return "needs a kind; see: driftd kinds"
    message = str(entry["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _where_instead(key: tuple[str, ...]) -> str:
    """The guess at what a user meant by a key that is not known where it stands; "" for none."""
    *folder, name = key
    known = _known_keys()
    beside = {path[-1] for path in known if _fits(path[:-1], folder)} - {name}
    if near := difflib.get_close_matches(name, beside, n=1, cutoff=0.6):
        return f" Did you mean {near[0]}?"
    elsewhere = sorted({path for path in known if path[-1] == name and not _fits(path[:-1], folder)}, key=len)
    if elsewhere:
        return f" It belongs to {'.'.join(elsewhere[0][:-1]) or 'the top of the file'}."
    if any(_fits(path, key) for path in known):
        return " Only another kind takes it."
    near = difflib.get_close_matches(name, {path[-1] for path in known}, n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def _fits(path: Sequence[str], key: Sequence[str]) -> bool:
    return len(path) == len(key) and all(part in ("NAME", found) for part, found in zip(path, key, strict=True))


_DEEPEST = 10  # keys above those of an embedder within an embedder, whose names are known: two within each other


def _known_keys() -> set[tuple[str, ...]]:
    """The path of every key that settings can have; NAME stands for a name of the user's choice."""
    found: set[tuple[str, ...]] = set()
    waiting: list[tuple[Any, tuple[str, ...]]] = [(Settings, ())]
    while waiting:
        item, path = waiting.pop()
        if isinstance(item, type) and issubclass(item, BaseModel):
            inner = {(*path, name): field.rebuild_annotation() for name, field in item.model_fields.items()}
            found.update(inner)
            waiting += [(annotation, at) for at, annotation in inner.items()]
        else:
            marks = map(type, getattr(item, "__metadata__", ()))
            if NestedEmbedder in marks and len(path) < _DEEPEST:
                waiting.append((EmbedderSettings, path))
            at = (*path, "NAME") if getattr(item, "__origin__", None) in (dict, Mapping) else path
            waiting += [(part, at) for part in getattr(item, "__args__", ())]
    return found


def kinds() -> Iterator[tuple[str, str, str]]:
    """Every (group, kind, description) that settings can name; the registries are the unions themselves."""
    groups = ("embedders", EmbedderSettings), ("sources", SourceSettings), ("sinks", SinkSettings)
    for group, union in (*groups, ("scores", ScoresSettings)):
        for model in sorted(_models_below_union(union), key=lambda model: str(model.model_fields["kind"].default)):
            yield group, str(model.model_fields["kind"].default), _first_line(model)
    yield "scorers", "pyod", f"{_first_line(PyODSettings)} model: {', '.join(get_args(Model))}."


def _models_below_union(union: Any) -> list[type[BaseModel]]:
    inner = union.__origin__ if hasattr(union, "__metadata__") else union
    return list(getattr(inner, "__args__", (inner,)))


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]
