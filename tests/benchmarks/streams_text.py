"""Streams of sentence vectors of unlimited length whose law is that of real ones, with and without a change in them.

`TextModel` is a mixture fitted to the MiniLM vectors of CLINC150 (Larson et al., 2019): a Gaussian around each of 140
intents, with the covariance within intents pooled over them and Zipf's law for how common they are. Ten more intents
stay out, to be the new topics; the vectors that CLINC150 calls out of scope have a mean and a covariance of their own.
`RealPools` resamples the real vectors themselves: one half of each intent for the baseline, the other for the streams.

Both give streams in pieces of any length (`open`), for the drift benchmarks beside this file. The folder with the
vectors is `../shared/data`, or what DRIFTD_DATA says.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Kind = Literal["independent", "sessions", "votes", "seasonal"]

TOPICS, NEW_TOPICS, PRIOR_TOPICS = 140, 10, 15
PERIOD = 20_000  # records in a season
SWING = 0.5  # log of the factor by which a season makes a topic more or less common
LANES, SESSION = 16, 8  # sessions interleaved, and their mean length
SHARED = 0.95  # of a record's variance within its topic that its whole session has in common
VOTING = 256  # records of sessions in a block of event time, in which each session has one vote


@dataclass(frozen=True)
class Shift:
    """What changes at the onset.

    Attributes:
        new: share of the records that become one topic that the baseline has not.
        topic: which of the ten new ones, 0 to 9; None for one drawn by chance.
        prior: factor on how common 15 topics are, every ninth by frequency.
        bias: length of a constant vector added to unit vectors.
        spread: factor on the standard deviation within topics.
        ood: share of the records that come from elsewhere.
        flood: share of the records that are copies of one record.
    """

    new: float = 0.0
    topic: int | None = None
    prior: float = 1.0
    bias: float = 0.0
    spread: float = 1.0
    ood: float = 0.0
    flood: float = 0.0


SHIFTS = {
    "new topic 10 %": Shift(new=0.10),
    "new topic 2 %": Shift(new=0.02),
    "prior": Shift(prior=3.0),
    "bias": Shift(bias=0.05),
    "spread": Shift(spread=1.1),
    "out of domain 2 %": Shift(ood=0.02),
    "flood 5 %": Shift(flood=0.05),
}
NO_SHIFT = Shift()


class Stream(Protocol):
    """Vectors in the order of time.

    Attributes:
        start: records since the beginning of a season at which the stream begins, a multiple of 256; 0 without one.
    """

    start: int

    def take(self, n: int) -> Floats:
        """The next ``n`` vectors, float32 (n, d); ``n`` a multiple of 16."""


class Source(Protocol):
    """Where streams come from."""

    def baseline(self, n: int, *, kind: Kind, seed: int) -> Floats:
        """``n`` records of normal traffic."""

    def open(self, seed: int, *, kind: Kind = "independent", shift: Shift = NO_SHIFT, onset: int = 0) -> Stream:
        """A new stream; the same arguments give the same vectors."""


def data_folder() -> Path:
    """The folder of real vectors; ends the program with a line on standard error where there is none."""
    folder = Path(os.environ.get("DRIFTD_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    folder = folder / "embeddings_minilm"
    if not folder.is_dir():
        print(f"skipped: no folder {folder}. Set DRIFTD_DATA to the folder with embeddings_minilm/.", file=sys.stderr)
        raise SystemExit(0)
    return folder


def load(name: str) -> tuple[Floats, npt.NDArray[np.str_]]:
    """Unit vectors (n, 384) and labels (n,) of one file."""
    with np.load(data_folder() / f"{name}.npz") as file:
        return unit(file["X"].astype(np.float32)), file["label"]


def unit(x: Floats) -> Floats:
    """Rows divided by their lengths."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def chance(seed: int, *purpose: int) -> np.random.Generator:
    """Random numbers that depend on the numbers given, and on nothing else."""
    return np.random.default_rng([seed, *purpose])


def raised_topics(random: np.random.Generator) -> Ints:
    """Topics of the prior shift: every ninth by frequency, from a random one of the third to the eleventh on."""
    return (2 + random.integers(9) + 9 * np.arange(PRIOR_TOPICS)).astype(np.int64) % TOPICS


class TextModel:
    """The mixture. Topics are numbered by how common they are; which intent is which rank is drawn once."""

    def __init__(self) -> None:
        vectors, labels = load("clinc150_without_oos_test")
        names = np.array([name for name in np.unique(labels) if name != "oos"])
        names = names[chance(150).permutation(len(names))]
        means = np.stack([vectors[labels == name].mean(axis=0) for name in names])
        known = np.isin(labels, names[:TOPICS])
        place = {name: number for number, name in enumerate(names)}
        within = vectors[known] - means[[place[name] for name in labels[known]]]
        values, directions = np.linalg.eigh((within.T @ within).astype(np.float64) / (len(within) - TOPICS))
        elsewhere = vectors[labels == "oos"]
        self.means, self.new_means = means[:TOPICS], means[TOPICS:]
        self.factor: Floats = (np.sqrt(np.maximum(values, 0.0))[:, None] * directions.T).astype(np.float32)
        self.ood_mean = elsewhere.mean(axis=0)
        self.ood_factor: Floats = ((elsewhere - self.ood_mean) / np.sqrt(len(elsewhere) - 1)).astype(np.float32)
        self.prior = 1.0 / np.arange(1, TOPICS + 1)
        self.prior /= self.prior.sum()
        self.phases = chance(151).uniform(0.0, 2.0 * np.pi, TOPICS)

    def baseline(self, n: int, *, kind: Kind, seed: int) -> Floats:
        """``n`` records of normal traffic; a seasonal one begins with a season."""
        stream, rows = _TextStream(self, seed, kind, NO_SHIFT, 0), np.empty((n, self.means.shape[1]), np.float32)
        stream.start = 0
        for start in range(0, n, 16_000):
            rows[start : start + 16_000] = stream.take(16_000)[: n - start]
        return rows

    def open(self, seed: int, *, kind: Kind = "independent", shift: Shift = NO_SHIFT, onset: int = 0) -> Stream:
        """A new stream, changed by ``shift`` from record ``onset`` on."""
        return _TextStream(self, seed, kind, shift, onset)


class _TextStream:
    """Sources (sessions, or single records) with a topic and a vector each, and the records that come from them."""

    def __init__(self, model: TextModel, seed: int, kind: Kind, shift: Shift, onset: int) -> None:
        self._model, self._kind, self._shift, self._onset = model, kind, shift, onset
        self._random = random = chance(seed, 1)
        self._at = 0
        self.start = 256 * int(random.integers(PERIOD // 256)) if kind == "seasonal" else 0
        drawn = int(random.integers(NEW_TOPICS))
        self._new = model.new_means[drawn if shift.topic is None else shift.topic]
        self._direction = unit(random.standard_normal((1, model.means.shape[1]), dtype=np.float32))[0]
        prior = model.prior.copy()
        prior[raised_topics(random)] *= shift.prior
        self._prior = prior / prior.sum()
        self._copied = unit(model.means[random.choice(TOPICS, size=1, p=model.prior)] + self._noise(1))[0]
        self._carried: Floats | None = None
        self._votes: list[Floats] = []
        self._voted, self._votes_onset = 0, onset
        if kind == "votes":
            self._onset = np.iinfo(np.int64).max  # in records; not known before so many votes were cast

    def take(self, n: int) -> Floats:
        if self._kind == "votes":
            return self._take_votes(n)
        times = np.arange(self._at, self._at + n)
        if self._kind == "sessions":
            x = self._sessions(times)
        else:
            x = self._sources(times)
        self._at += n
        x = unit(x)
        if self._shift.bias:
            x[times >= self._onset] += np.float32(self._shift.bias) * self._direction
        return x

    def _sources(self, times: Ints) -> Floats:
        """One vector for each of the times (m,) at which a source begins."""
        model, shift, random = self._model, self._shift, self._random
        changed = times >= self._onset
        x = model.means[self._topics(times, changed)]
        replaced = random.random(len(times))
        x[changed & (replaced < shift.new)] = self._new
        scale = np.where(changed, shift.spread, 1.0).astype(np.float32)
        x = x + scale[:, None] * self._noise(len(times))
        strange = changed & (replaced < shift.ood)
        draws = random.standard_normal((int(strange.sum()), len(model.ood_factor)), dtype=np.float32)
        x[strange] = model.ood_mean + draws @ model.ood_factor
        x[changed & (replaced < shift.flood)] = self._copied
        return np.asarray(x)

    def _topics(self, times: Ints, changed: npt.NDArray[np.bool_]) -> Ints:
        model, random = self._model, self._random
        topics = np.empty(len(times), np.int64)
        if self._kind != "seasonal":
            for part, prior in ((~changed, model.prior), (changed, self._prior)):
                topics[part] = random.choice(TOPICS, size=int(part.sum()), p=prior)
            return topics
        step = 160  # records through which a season stands still
        hours = (times + self.start) // step
        for hour in np.unique(hours):
            angle = 2.0 * np.pi * (hour % (PERIOD // step)) * step / PERIOD
            for part, prior in ((~changed, model.prior), (changed, self._prior)):
                at = np.flatnonzero(part & (hours == hour))
                now = prior * np.exp(SWING * np.sin(angle + model.phases))
                topics[at] = random.choice(TOPICS, size=len(at), p=now / now.sum())
        return topics

    def _noise(self, n: int) -> Floats:
        draws = self._random.standard_normal((n, len(self._model.factor)), dtype=np.float32)
        return np.asarray(draws @ self._model.factor)

    def _take_votes(self, n: int) -> Floats:
        """The first record of each session in each block of 256 records: a session is a key to thin by."""
        while sum(map(len, self._votes)) < n:
            if self._voted >= self._votes_onset:
                self._onset = min(self._onset, self._at)
            times = np.arange(self._at, self._at + VOTING)
            self._at += VOTING
            x = self._sessions(times)
            first = np.sort(np.unique(self._number, return_index=True)[1])
            x = unit(x[first])
            if self._shift.bias:
                x[times[first] >= self._onset] += np.float32(self._shift.bias) * self._direction
            self._votes.append(x)
            self._voted += len(x)
        votes = np.concatenate(self._votes)
        self._votes = [votes[n:]]
        return votes[:n]

    def _sessions(self, times: Ints) -> Floats:
        """Sixteen lanes of sessions, of geometric length with mean 8; every sixteenth record is of the same lane."""
        steps = len(times) // LANES
        begins = self._random.random((steps, LANES)) < 1.0 / SESSION
        carried = self._carried
        if carried is None:
            begins[0] = True
            carried = np.zeros((LANES, self._model.means.shape[1]), np.float32)
        x = self._sources(times.reshape(steps, LANES)[begins])
        # Numbered in the order of time; a lane that began nothing yet goes on with what it carried over.
        number = np.where(begins, LANES + np.cumsum(begins.reshape(-1)).reshape(begins.shape) - 1, 0)
        number[0] = np.where(begins[0], number[0], np.arange(LANES))
        number = np.maximum.accumulate(number, axis=0)
        self._number = number.reshape(-1)
        everything = np.concatenate([carried, x])
        self._carried = everything[number[-1]]
        own = np.float32(np.sqrt((1.0 - SHARED) / SHARED)) * self._noise(len(times))
        return np.asarray(everything[number.reshape(-1)] + own)


class RealPools:
    """Real vectors: half of every CLINC150 intent but ten for the baseline, the other half to draw streams from.

    New topics are the ten intents left out; what is out of domain is messages of SMS spam and newswire (AG News) in
    equal parts. A stream draws from some 10,000 records with replacement, so its own law differs from the baseline's by
    as much as two samples of that size do, which no rule can tell from drift; `pool` says how many there are.
    """

    def __init__(self) -> None:
        vectors, labels = load("clinc150_without_oos_test")
        names = np.array([name for name in np.unique(labels) if name != "oos"])
        names = names[chance(150).permutation(len(names))]
        random = chance(152)
        halves: tuple[list[Floats], list[Floats]] = ([], [])
        for name in names[:TOPICS]:
            of_topic = vectors[labels == name]
            order = random.permutation(len(of_topic))
            halves[0].append(of_topic[order[::2]])
            halves[1].append(of_topic[order[1::2]])
        self._baseline = np.concatenate(halves[0])
        self.topics = halves[1]
        self.rows = np.concatenate(self.topics)
        self.topic = np.repeat(np.arange(TOPICS), [len(rows) for rows in self.topics])
        self.means = np.stack([rows.mean(axis=0) for rows in self.topics])
        self.new = [vectors[labels == name] for name in names[TOPICS:]]
        self.elsewhere = (load("sms_spam")[0], load("ag_news_test")[0])
        self.pool = len(self.rows)

    def baseline(self, n: int, *, kind: Kind, seed: int) -> Floats:
        """The baseline's half in random order, all of it, whatever ``n``: resampling would add nothing."""
        return self._baseline[chance(seed, 3).permutation(len(self._baseline))]

    def open(self, seed: int, *, kind: Kind = "independent", shift: Shift = NO_SHIFT, onset: int = 0) -> Stream:
        """A new stream of independent draws, changed by ``shift`` from record ``onset`` on."""
        return _RealStream(self, seed, shift, onset)


class _RealStream:
    def __init__(self, pools: RealPools, seed: int, shift: Shift, onset: int) -> None:
        self.start = 0
        self._pools, self._shift, self._onset = pools, shift, onset
        self._random = random = chance(seed, 2)
        self._at = 0
        drawn = int(random.integers(NEW_TOPICS))
        self._new = pools.new[drawn if shift.topic is None else shift.topic]
        self._direction = unit(random.standard_normal((1, pools.rows.shape[1]), dtype=np.float32))[0]
        weights = np.ones(TOPICS)
        weights[raised_topics(random)] *= shift.prior
        self._weights = weights[pools.topic] / weights[pools.topic].sum()
        self._copied = pools.rows[random.integers(len(pools.rows))]

    def take(self, n: int) -> Floats:
        pools, shift, random = self._pools, self._shift, self._random
        changed = np.arange(self._at, self._at + n) >= self._onset
        self._at += n
        row = random.integers(len(pools.rows), size=n)
        if shift.prior != 1.0:
            row = np.where(changed, random.choice(len(pools.rows), size=n, p=self._weights), row)
        x = pools.rows[row]
        if shift.spread != 1.0:
            mean = pools.means[pools.topic[row]]
            x = np.where(changed[:, None], unit(mean + np.float32(shift.spread) * (x - mean)), x)
        replaced = random.random(n)
        at = np.flatnonzero(changed & (replaced < shift.new))
        x[at] = self._new[random.integers(len(self._new), size=len(at))]
        at = np.flatnonzero(changed & (replaced < shift.ood))
        for side, rows in enumerate(pools.elsewhere):
            half = at[side::2]
            x[half] = rows[random.integers(len(rows), size=len(half))]
        x[changed & (replaced < shift.flood)] = self._copied
        x[changed] += np.float32(shift.bias) * self._direction
        return x
