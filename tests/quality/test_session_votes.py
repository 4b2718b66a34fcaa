"""Thinning by key, counted: sessions of near-duplicates keep the contract, and a retry storm is nobody's drift."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.fold import FoldSettings, FoldState, Rule, fold
from monitor.thinning import SeenKeys, key_hashes
from tests.streams import Baseline, Topics

pytestmark = pytest.mark.quality

BLOCK = 64  # records before thinning: sixteen sessions with four records each
VOTES = 16
COPIES = 8


@pytest.fixture(scope="module")
def topics():
    return Topics()


def voting(keys, block):
    """Which of the records in blocks of so many have a vote."""
    return SeenKeys().vote(np.arange(len(keys)) // block, key_hashes([str(key) for key in keys.tolist()])).enters


def sessions(topics, n, random, **change):
    """Vectors of sessions of eight near-duplicates, sixteen of them interleaved, and the session of each."""
    place = np.arange(n)
    return topics.draw(n, random, copies=COPIES, **change), place // (16 * COPIES) * 16 + place % 16


def thinned(topics, n, random, **change):
    vectors, keys = sessions(topics, n, random, **change)
    return vectors[voting(keys, BLOCK)]


def rule_of(baseline, *, block, page, warn=None):
    run_lengths = (page / block, (page if warn is None else warn) / block)
    return Rule(baseline.constants, FoldSettings(*run_lengths, hold_off_blocks=0, max_blocks=25_000 // block))


def pages(rule, summaries):
    """The blocks that page."""
    state, found = FoldState.start(rule), []
    for number, summary in enumerate(summaries):
        state, readings = fold(state, summary, rule)
        if any(reading.page for reading in readings):
            found.append(number)
    return found


def test_sessions_keep_the_contract_whether_records_or_sessions_vote(topics, record_property):
    random = np.random.default_rng(4)
    records, nominal = 192_000, 64_000
    everyone = Baseline(topics.draw(102_400, random, copies=COPIES), random, block=BLOCK)
    voters = Baseline(thinned(topics, 204_800, random), random, block=VOTES)
    found = {}
    for name, baseline, size in (("records", everyone, BLOCK), ("votes", voters, VOTES)):
        draw = np.random.default_rng(9)
        stream = [
            summary
            for _ in range(3)
            for vectors in [thinned(topics, 64_000, draw) if name == "votes" else sessions(topics, 64_000, draw)[0]]
            for summary in baseline.summaries(vectors, size)
        ]
        assert len(stream) == records // BLOCK
        found[name] = len(pages(rule_of(baseline, block=BLOCK, page=nominal), stream))
        assert pages(rule_of(baseline, block=BLOCK, page=250), stream), "a count of zero would see nothing"
    record_property("pages_of_records", float(found["records"]))
    record_property("pages_of_votes", float(found["votes"]))
    assert max(found.values()) <= records / nominal


@pytest.mark.parametrize(("change", "at_most"), [({"new_topic": 0.1}, 800), ({"prior": 3.0}, 4_500)])
def test_changes_are_found_in_the_votes_of_sessions(topics, change, at_most, record_property):
    random = np.random.default_rng(4)
    baseline = Baseline(thinned(topics, 204_800, random), random, block=VOTES)
    rule = rule_of(baseline, block=BLOCK, page=1e7)
    delays = []
    for run in range(5):
        draw = np.random.default_rng(100 + run)
        stream = np.concatenate([thinned(topics, 2_048, draw), thinned(topics, 16_384, draw, **change)])
        found = pages(rule, baseline.summaries(stream, VOTES))
        assert found
        delays.append((found[0] + 1) * BLOCK - 2_048)
    record_property("mean_delay_in_records", float(np.mean(delays)))
    assert min(delays) > 0
    assert np.mean(delays) <= at_most


def test_a_session_that_sends_one_record_again_and_again_pages_only_without_thinning(topics, record_property):
    random = np.random.default_rng(1)
    block, blocks, storms, copies = 256, 12, 12, 20
    baseline = Baseline(topics.draw(60_000, random), random, block=block)
    rule = rule_of(baseline, block=block, page=1e7)
    found = {}
    for thins in (True, False):
        draw, summaries = np.random.default_rng(5), []
        for _ in range(storms):
            vectors, keys = topics.draw(blocks * block, draw), np.arange(blocks * block)
            again = 6 * block + np.arange(8, 8 + 2 * copies, 2)
            vectors[again], keys[again] = vectors[again[0]], keys[again[0]]
            enters = voting(keys, block) if thins else np.ones(len(keys), dtype=bool)
            for first in range(0, len(keys), block):
                inside = slice(first, first + block)
                summaries += baseline.summaries(vectors[inside][enters[inside]], int(enters[inside].sum()))
        found[thins] = len({number // blocks for number in pages(rule, summaries)})
    record_property("storms_that_page_of_12", found)
    assert found == {True: 0, False: storms}
